//! `patchwright rollout`: the agent, the sandbox and the grader on any SWE-bench-style rows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use patchwright_agent::{
    AgentConfig, GradeCache, Grader, GraderOptions, Profile, Renderer, ScriptedSampler, Tokenizer,
    fixture,
};
use patchwright_core::{PolicyVersion, Rollout, SandboxProvider, TaskInstance};
use patchwright_train::agent_environment::AgentEnvironment;
use patchwright_train::environment::{Environment, RolloutSpec, Task};
use patchwright_train::events::{CancelToken, Observer, RunEvent, StageKind, StagePlan};
use patchwright_train::images::TaskImages;
use patchwright_train::journal::RolloutRecord;
use patchwright_train::recipe::Recipe;
use patchwright_train::rollout_engine::{BatchSpec, Job, RolloutEngine};
use patchwright_train::run::World;
use patchwright_train::task_sets::{TaskSets, prepare_tasks};
use patchwright_train::world::open_provider;
use serde::Serialize;

use super::{policy, tasks};
use crate::args::RolloutArgs;
use crate::error::CliError;
use crate::progress::Progress;
use crate::{output, signals, table};

/// Name of the stage in seeds and progress.
const STAGE: &str = "rollout";
/// Tokens of a scripted turn and of its trajectory at most: a script is no model, and its author
/// sees its length.
const MAX_SCRIPT_TOKENS: usize = 64 << 20;
/// Most rollouts at once, whatever the recipe says: it may be a cluster's.
const MAX_WORKERS: usize = 64;

/// Runs every instance once and shows what became of it. Exit code 1 when the infrastructure
/// failed one: a partial failure is no success.
pub fn run(args: &RolloutArgs) -> Result<ExitCode, CliError> {
    let default = if args.script.is_some() { "swe-rebench" } else { "embedded" };
    let mut recipe = policy::recipe(&args.recipe, default)?;
    let workers = &mut recipe.infrastructure.num_workers;
    *workers = MAX_WORKERS.min(*workers);
    let instances = tasks::chosen(tasks::read(&args.tasks)?, &args.instances, &args.tasks)?;
    let script = args.script.as_deref().map(|path| read_script(path, &instances)).transpose()?;
    if let Some(out) = args.out.as_deref().filter(|out| out.exists()) {
        let out = out.display();
        return Err(CliError::usage(format!("--out {out}: is there already; name a new file")));
    }
    let progress = Arc::new(Progress::to_stderr());
    let result = roll_out(args, recipe, instances, script, &progress);
    progress.finish();
    let rollouts = result?;
    if let Some(out) = &args.out {
        keep(out, &rollouts)?;
    }
    show(&rollouts, args.json)?;
    let failed = rollouts.iter().filter(|rollout| rollout.solved.is_none()).count();
    if failed > 0 {
        output::note(format!("{failed} of {} rollouts have no grade", rollouts.len()));
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

type Script = BTreeMap<String, Vec<String>>;

fn roll_out(
    args: &RolloutArgs,
    mut recipe: Recipe,
    instances: Vec<TaskInstance>,
    script: Option<Script>,
    progress: &Arc<Progress>,
) -> Result<Vec<Rollout>, CliError> {
    let cancel = {
        let progress = Arc::clone(progress);
        signals::cancel_token(move || progress.say("Stopping; once more stops at once."))?
    };
    let observer: &dyn Observer = progress.as_ref();
    let tasks = prepare_tasks(instances, observer, cancel)?;
    let provider = open_provider(&recipe)?;
    let (environment, policy_version, context_tokens) = if let Some(script) = script {
        let environment = ScriptedEnvironment::new(&recipe, script, provider)?;
        let environment: Arc<dyn Environment> = Arc::new(environment);
        (environment, PolicyVersion(0), MAX_SCRIPT_TOKENS)
    } else {
        recipe.engine.checkpoint = args.checkpoint.clone().unwrap_or_else(|| "base".to_owned());
        let world = World::with_tasks(&recipe, provider, TaskSets::default(), observer, cancel)?;
        let version = world.trainer.policy_version();
        (world.environment, version, recipe.eval.context_tokens)
    };
    let spec = BatchSpec {
        stage: STAGE.to_owned(),
        iteration: 0,
        part: String::new(),
        policy_version,
        max_turns: recipe.eval.max_turns,
        context_tokens,
        temperature: recipe.eval.temperature,
        demonstration: false,
    };
    announce(observer, tasks.len());
    let jobs: Vec<Job> = tasks.into_iter().map(|task| Job { task, sibling: 0 }).collect();
    // Here every rollout is shown, so that one that failed stops none of the others.
    recipe.infrastructure.max_failed_fraction = 1.0;
    let engine = RolloutEngine {
        environment: environment.as_ref(),
        limits: &recipe.infrastructure,
        seed: recipe.run.seed,
        observer,
        cancel,
        keep: None,
    };
    Ok(engine.run(&spec, &jobs)?)
}

fn announce(observer: &dyn Observer, num_rollouts: usize) {
    let kind = StageKind::Evaluation;
    let plan = StagePlan { name: STAGE.to_owned(), kind, num_rollouts, num_iterations: 1 };
    observer.event(&RunEvent::StageStarted { plan, first_iteration: 0 });
    let stage = STAGE.to_owned();
    observer.event(&RunEvent::RolloutsStarted { stage, iteration: 0, num_rollouts });
}

/// Writes whole rollouts to the new file `out`.
fn keep(out: &Path, rollouts: &[Rollout]) -> Result<(), CliError> {
    let written = std::fs::File::create_new(out).and_then(|file| {
        let mut file = std::io::BufWriter::new(file);
        patchwright_formats::native::write(&mut file, rollouts)?;
        file.into_inner().map_err(std::io::IntoInnerError::into_error)?.sync_all()
    });
    written.map_err(|error| CliError::failed(format!("--out {}: {error}", out.display())))
}

/// A line of `--json`: a rollout as journals have it.
#[derive(Serialize)]
struct Line {
    schema_version: u32,
    #[serde(flatten)]
    rollout: RolloutRecord,
}

fn show(rollouts: &[Rollout], json: bool) -> Result<(), CliError> {
    if json {
        return rollouts.iter().try_for_each(|rollout| {
            let rollout = RolloutRecord::new(STAGE, 0, rollout, true);
            output::json_line(&Line { schema_version: 1, rollout })
        });
    }
    let rows = rollouts.iter().map(|rollout| {
        let verdict = match rollout.solved {
            Some(true) => "solved",
            Some(false) => "not solved",
            None => "no grade",
        };
        let status = serde_json::to_value(rollout.status).unwrap_or_default();
        vec![
            rollout.instance_id.clone(),
            verdict.to_owned(),
            status.as_str().unwrap_or_default().replace('_', " "),
            rollout.num_turns().to_string(),
            rollout.failure_detail.clone().unwrap_or_default(),
        ]
    });
    output::data(&table::table(&["Instance", "Verdict", "Ended", "Turns", ""], &[3], rows))
}

/// Reads a script and makes sure that every instance has one.
fn read_script(path: &Path, instances: &[TaskInstance]) -> Result<Script, CliError> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| CliError::usage(format!("--script {name}: {error}")))?;
    let script: Script = serde_json::from_str(&text).map_err(|error| {
        CliError::usage(format!(
            "--script {name}: {error}; expected a JSON object from instance ids to lists of turns"
        ))
    })?;
    for instance in instances {
        if !script.contains_key(&instance.instance_id) {
            return Err(CliError::usage(format!(
                "--script {name}: nothing for {}; choose others with --instance",
                instance.instance_id
            )));
        }
    }
    Ok(script)
}

/// The real environment with a script in place of a model.
struct ScriptedEnvironment {
    sampler: Arc<ScriptedSampler>,
    inner: AgentEnvironment,
}

impl ScriptedEnvironment {
    fn new(
        recipe: &Recipe,
        script: Script,
        provider: Arc<patchwright_train::agent_environment::CountingProvider>,
    ) -> Result<Self, CliError> {
        let name = &recipe.agent.profile;
        let profile = Profile::resolve(name)
            .map_err(|error| CliError::usage(format!("agent.profile: {error}")))?;
        let tokenizer = Arc::new(script_tokenizer(&script)?);
        let renderer = Renderer::new(Arc::clone(&tokenizer), profile).map_err(CliError::failed)?;
        let sampler = ScriptedSampler::new(tokenizer, renderer.stop_token(), Vec::new());
        let sampler = Arc::new(sampler.with_scripts(script));
        let options = GraderOptions {
            timeout: Duration::from_secs(recipe.infrastructure.grade_timeout_seconds),
            limits: recipe.sandbox.limits(),
            ..GraderOptions::default()
        };
        let graders: Arc<dyn SandboxProvider> = Arc::clone(&provider) as Arc<dyn SandboxProvider>;
        let images = Arc::new(TaskImages::default());
        let inner = AgentEnvironment {
            limits: recipe.sandbox.limits(),
            sampler: sampler.clone(),
            renderer,
            agent: AgentConfig {
                max_turn_tokens: MAX_SCRIPT_TOKENS,
                max_consecutive_format_errors: recipe.agent.max_format_errors,
                command_timeout_seconds: recipe.agent.command_timeout_seconds,
                ..AgentConfig::default()
            },
            grades: GradeCache::new(Grader::new(graders, options).with_roots(images.roots()), 1),
            images,
            provider,
        };
        Ok(Self { sampler, inner })
    }
}

impl Environment for ScriptedEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        self.sampler.begin(spec.session, &task.instance.instance_id);
        self.inner.rollout(task, spec, cancel)
    }
}

/// A tokenizer that loses nothing of the script: one token a character.
fn script_tokenizer(script: &Script) -> Result<Tokenizer, CliError> {
    let others: BTreeSet<String> = script
        .values()
        .flatten()
        .flat_map(|text| text.chars())
        .filter(|c| !c.is_ascii())
        .map(String::from)
        .collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    let json = fixture::tokenizer_json(&others);
    Tokenizer::from_bytes(json.as_bytes()).map_err(CliError::failed)
}
