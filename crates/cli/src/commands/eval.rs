//! `patchwright eval`: a checkpoint on a task set.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use patchwright_train::evaluate::evaluate;
use patchwright_train::events::{CancelToken, Observer, RunEvent, StageKind, StagePlan};
use patchwright_train::history::SolveHistory;
use patchwright_train::journal::{Journal, Record, SCHEMA_VERSION};
use patchwright_train::metrics::EvaluationResult;
use patchwright_train::recipe::{Recipe, TaskSetRecipe, TaskSource};
use patchwright_train::run::{Run, World};
use patchwright_train::run_dir::RunDir;
use patchwright_train::task_sets::{TaskSets, task_sets};
use patchwright_train::world::{find_checkpoint, open_provider};

use super::policy;
use crate::args::EvalArgs;
use crate::error::CliError;
use crate::progress::Progress;
use crate::{output, signals};

/// Measures and shows the table.
pub fn run(args: &EvalArgs) -> Result<ExitCode, CliError> {
    let mut recipe = policy::recipe(&args.recipe, "embedded")?;
    recipe.engine.checkpoint.clone_from(&args.checkpoint);
    if let Some(runs) = args.runs {
        recipe.eval.num_runs = runs;
        recipe.eval.num_runs_transfer = runs;
        recipe.eval.pass_k = recipe.eval.pass_k.min(runs);
    }
    recipe.check()?;
    // Before the task set is made, which may take a while.
    find_checkpoint(&recipe.engine.checkpoint)?;
    let progress = Arc::new(Progress::to_stderr());
    let result = measure(args, recipe, &progress);
    progress.finish();
    output::evaluations(&result?, args.json)?;
    Ok(ExitCode::SUCCESS)
}

fn measure(
    args: &EvalArgs,
    recipe: Recipe,
    progress: &Arc<Progress>,
) -> Result<Vec<EvaluationResult>, CliError> {
    let cancel = {
        let progress = Arc::clone(progress);
        signals::cancel_token(move || progress.say("Stopping; once more stops at once."))?
    };
    let observer: &dyn Observer = progress.as_ref();
    let provider = open_provider(&recipe)?;
    let sets = sets(&args.tasks, &recipe, provider.as_ref(), observer, cancel)?;
    let num_tasks: usize = sets.evaluation_sets.iter().map(|(_, tasks)| tasks.len()).sum();
    let world = World::with_tasks(&recipe, provider, sets, observer)?;
    // An evaluation journals as a run does; this journal is not kept.
    let scratch = tempfile::tempdir().map_err(|error| CliError::failed(error.to_string()))?;
    let dir = RunDir::create(scratch.path(), &recipe)?;
    let header = Record::Header {
        schema_version: SCHEMA_VERSION,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: recipe.run.name.clone(),
        seed: recipe.run.seed,
    };
    let journal = Journal::create(&dir.journal(), &header).map_err(CliError::failed)?;
    let stage = "eval".to_owned();
    let num_rollouts = num_tasks * recipe.eval.num_runs;
    let kind = StageKind::Evaluation;
    let plan = StagePlan { name: stage.clone(), kind, num_rollouts, num_iterations: 1 };
    observer.event(&RunEvent::StageStarted { plan, first_iteration: 0 });
    let mut run = Run {
        recipe,
        dir,
        journal,
        world,
        history: SolveHistory::default(),
        stage_versions: BTreeMap::new(),
        observer,
        cancel,
    };
    Ok(evaluate(&mut run, &stage, &args.checkpoint)?)
}

/// The set that was asked for: one of the recipe's, or a file's.
fn sets(
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
            if !Path::new(path).exists() {
                return Err(CliError::usage(format!(
                    "--tasks {path}: neither held-out nor transfer, and there is no such file"
                )));
            }
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
