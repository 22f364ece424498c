//! `patchwright eval`: checkpoints, and models at servers, on a task set.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use patchwright_train::evaluate::evaluate;
use patchwright_train::events::{CancelToken, Observer, RunEvent, StageKind, StagePlan};
use patchwright_train::history::SolveHistory;
use patchwright_train::journal::{Journal, Record, SCHEMA_VERSION};
use patchwright_train::metrics::EvaluationResult;
use patchwright_train::recipe::{Recipe, SamplerKind, TaskSetRecipe, TaskSource};
use patchwright_train::remember::RememberingEnvironment;
use patchwright_train::run::{Run, World};
use patchwright_train::run_dir::RunDir;
use patchwright_train::task_sets::{TaskSets, task_sets};
use patchwright_train::world::{find_checkpoint, open_provider};
use serde::{Deserialize, Serialize};

use super::policy;
use crate::args::{EvalApi, EvalArgs};
use crate::error::CliError;
use crate::progress::Progress;
use crate::{output, signals};

/// What an evaluation's directory was begun with.
#[derive(Debug, Serialize, Deserialize)]
struct Plan {
    recipe: Recipe,
    tasks: String,
    /// Empty: the recipe's checkpoint.
    models: Vec<String>,
    compare: Vec<PathBuf>,
}

/// A directory's files.
pub(super) const PLAN: &str = "eval.json";
/// In the directory of each model.
pub(super) const ROLLOUTS: &str = "rollouts.jsonl";
const REPORT: &str = "report.json";

/// The part of a report that is compared.
#[derive(Serialize, Deserialize)]
struct Evaluations {
    schema_version: u32,
    evaluations: Vec<EvaluationResult>,
}

/// Measures and shows the table.
pub fn run(args: &EvalArgs) -> Result<ExitCode, CliError> {
    let (plan, dir) = match &args.resume {
        Some(dir) => (read_json::<Plan>(&dir.join(PLAN), "--resume")?, Some(dir.clone())),
        None => (plan(args)?, args.out.clone()),
    };
    let mut compared = Vec::new();
    for path in &plan.compare {
        compared.extend(read_json::<Evaluations>(path, "--compare")?.evaluations);
    }
    // Where nothing is to be kept, it is in a directory that goes.
    let scratch = tempfile::tempdir().map_err(|error| CliError::failed(error.to_string()))?;
    let kept = dir.as_deref().unwrap_or(scratch.path());
    if dir.is_some() && args.resume.is_none() {
        begin(kept, &plan)?;
    }
    let progress = Arc::new(Progress::to_stderr());
    let result = measure(&plan, kept, &progress);
    progress.finish();
    if result.is_err() && dir.is_some() {
        output::note(format!("Go on with: patchwright eval --resume {}", kept.display()));
    }
    let measured = result?;
    if dir.is_some() {
        let report = Evaluations { schema_version: 1, evaluations: measured.clone() };
        write_json(&kept.join(REPORT), &report)?;
    }
    output::evaluations(&[compared, measured].concat(), args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn plan(args: &EvalArgs) -> Result<Plan, CliError> {
    check_named(&args.tasks, &args.models)?;
    let mut recipe = recipe(args)?;
    recipe.engine.checkpoint.clone_from(&args.checkpoint);
    if let Some(runs) = args.runs {
        recipe.eval.num_runs = runs;
        recipe.eval.num_runs_transfer = runs;
        recipe.eval.pass_k = recipe.eval.pass_k.min(runs);
    }
    let is_chosen = args.recipe.overrides.iter().any(|o| o.starts_with("agent.profile="));
    if !args.models.is_empty() && args.api == EvalApi::Openai && !is_chosen {
        "full".clone_into(&mut recipe.agent.profile);
    }
    let plan = Plan {
        recipe,
        tasks: args.tasks.clone(),
        models: args.models.clone(),
        compare: args.compare.clone(),
    };
    for (recipe, _) in plan.targets() {
        recipe.check()?;
        if recipe.sampler != SamplerKind::Openai {
            find_checkpoint(&recipe.engine.checkpoint)?;
        }
    }
    Ok(plan)
}

fn recipe(args: &EvalArgs) -> Result<Recipe, CliError> {
    let Some(model) = args.models.first() else {
        if args.api_key_env.is_some() {
            return Err(CliError::usage("--api-key-env is for --model, and there is none"));
        }
        return policy::recipe(&args.recipe, "embedded");
    };
    let sampler = match args.api {
        EvalApi::Openai => "openai",
        EvalApi::Vllm => "vllm",
        EvalApi::Sglang => "sglang",
        EvalApi::LlamaCpp => "llama_cpp",
    };
    policy::recipe_at_server(&args.recipe, model, sampler, args.api_key_env.as_deref())
}

impl Plan {
    /// Each policy's recipe and name.
    fn targets(&self) -> Vec<(Recipe, String)> {
        if self.models.is_empty() {
            return vec![(self.recipe.clone(), self.recipe.engine.checkpoint.clone())];
        }
        self.models.iter().map(|model| at_server(&self.recipe, model)).collect()
    }
}

/// A recipe that samples from the model at a server, written `URL[#NAME]`, and the model's name.
pub(super) fn at_server(recipe: &Recipe, model: &str) -> (Recipe, String) {
    let (url, name) = model.split_once('#').unwrap_or((model, ""));
    let url = url.trim_end_matches('/');
    let mut recipe = recipe.clone();
    recipe.servers.urls = vec![url.strip_suffix("/v1").unwrap_or(url).to_owned()];
    if !name.is_empty() {
        name.clone_into(&mut recipe.servers.model);
    }
    (recipe, if name.is_empty() { url.to_owned() } else { name.to_owned() })
}

/// Refuses a task set and servers that cannot be, before the set is made, which may take a while.
pub(super) fn check_named(tasks: &str, models: &[String]) -> Result<(), CliError> {
    let is_known = ["held-out", "transfer"].contains(&tasks);
    if !is_known && !Path::new(tasks).exists() {
        return Err(CliError::usage(format!(
            "--tasks {tasks}: neither held-out nor transfer, and there is no such file"
        )));
    }
    let is_url = |model: &&String| ["http://", "https://"].iter().any(|p| model.starts_with(p));
    if let Some(model) = models.iter().find(|model| !is_url(model)) {
        return Err(CliError::usage(format!(
            "--model {model:?} is no server: write http://HOST:PORT or https://HOST, and the \
             model's name there behind a #"
        )));
    }
    Ok(())
}

/// A new directory for an evaluation.
fn begin(dir: &Path, plan: &Plan) -> Result<(), CliError> {
    if dir.join(PLAN).exists() {
        let dir = dir.display();
        return Err(CliError::usage(format!(
            "--out {dir}: there is an evaluation already; go on with --resume {dir}, or name \
             another directory"
        )));
    }
    std::fs::create_dir_all(dir)
        .map_err(|error| CliError::usage(format!("--out {}: {error}", dir.display())))?;
    write_json(&dir.join(PLAN), plan)
}

pub(super) fn read_json<T: for<'de> Deserialize<'de>>(
    path: &Path,
    flag: &str,
) -> Result<T, CliError> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("{flag}: {name}: {error}")))?;
    serde_json::from_str(&text).map_err(|error| {
        CliError::usage(format!("{flag}: {name}: {error}; it is no file of such a command"))
    })
}

pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(CliError::failed)?;
    std::fs::write(path, text + "\n")
        .map_err(|error| CliError::failed(format!("{}: {error}", path.display())))
}

fn measure(
    plan: &Plan,
    dir: &Path,
    progress: &Arc<Progress>,
) -> Result<Vec<EvaluationResult>, CliError> {
    let cancel = {
        let progress = Arc::clone(progress);
        signals::cancel_token(move || progress.say("Stopping; once more stops at once."))?
    };
    let mut results = Vec::new();
    for (index, (recipe, name)) in plan.targets().into_iter().enumerate() {
        let dir = dir.join(format!("model-{index}"));
        results.extend(measure_one(recipe, &name, &plan.tasks, &dir, progress, cancel)?);
    }
    Ok(results)
}

fn measure_one(
    recipe: Recipe,
    name: &str,
    tasks: &str,
    dir: &Path,
    progress: &Arc<Progress>,
    cancel: &CancelToken,
) -> Result<Vec<EvaluationResult>, CliError> {
    let observer: &dyn Observer = progress.as_ref();
    let provider = open_provider(&recipe)?;
    let sets = sets(tasks, &recipe, provider.as_ref(), observer, cancel)?;
    let num_tasks: usize = sets.evaluation_sets.iter().map(|(_, tasks)| tasks.len()).sum();
    let mut world = World::with_tasks(&recipe, provider, sets, observer, cancel)?;
    std::fs::create_dir_all(dir).map_err(|error| CliError::failed(error.to_string()))?;
    let known = RememberingEnvironment::open(&dir.join(ROLLOUTS), world.environment)?;
    if known.num_known() > 0 {
        progress.say(&format!("{name}: {} rollouts are there already.", known.num_known()));
    }
    world.environment = Arc::new(known);
    // An evaluation journals as a run does; this journal is not kept.
    let scratch = tempfile::tempdir().map_err(|error| CliError::failed(error.to_string()))?;
    let run_dir = RunDir::create(scratch.path(), &recipe)?;
    let header = Record::Header {
        schema_version: SCHEMA_VERSION,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: recipe.run.name.clone(),
        seed: recipe.run.seed,
    };
    let journal = Journal::create(&run_dir.journal(), &header).map_err(CliError::failed)?;
    let stage = "eval".to_owned();
    let num_rollouts = num_tasks * recipe.eval.num_runs;
    let kind = StageKind::Evaluation;
    let plan = StagePlan { name: stage.clone(), kind, num_rollouts, num_iterations: 1 };
    observer.event(&RunEvent::StageStarted { plan, first_iteration: 0 });
    let mut run = Run {
        recipe,
        dir: run_dir,
        journal,
        world,
        history: SolveHistory::default(),
        stage_versions: BTreeMap::new(),
        observer,
        cancel,
    };
    Ok(evaluate(&mut run, &stage, name)?)
}

/// The set that was asked for: one of the recipe's, or a file's.
pub(super) fn sets(
    name: &str,
    recipe: &Recipe,
    provider: &dyn patchwright_core::SandboxProvider,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<TaskSets, CliError> {
    let none = || TaskSetRecipe { source: TaskSource::None, ..TaskSetRecipe::default() };
    let mut tasks = recipe.tasks.clone();
    tasks.train = none();
    match name {
        "held-out" => tasks.transfer = none(),
        "transfer" => tasks.held_out = none(),
        path => {
            tasks.transfer = none();
            tasks.held_out = TaskSetRecipe {
                source: TaskSource::File,
                path: path.to_owned(),
                ..TaskSetRecipe::default()
            };
        }
    }
    let mut sets = task_sets(&tasks, provider, observer, cancel)?;
    for (set, _) in &mut sets.evaluation_sets {
        name.clone_into(set);
    }
    Ok(sets)
}
