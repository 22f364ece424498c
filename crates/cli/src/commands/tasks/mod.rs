//! `patchwright tasks`: make and show task sets.

#![expect(clippy::format_push_string, reason = "one page of text")]

mod filter;
mod import;
pub mod inject;
mod meter;
mod real;
pub mod releases;
pub mod validate;

use std::process::ExitCode;
use std::sync::Arc;

use patchwright_core::{TaskError, TaskInstance};
use patchwright_tasks::rows::{read_task_set, write_task_set};
use patchwright_train::recipe::{Recipe, TaskSetRecipe, TaskSource};
use patchwright_train::task_sets::task_sets;
use patchwright_train::world::open_provider;

use crate::args::{GenerateArgs, ShowArgs, TaskKind};
use crate::error::CliError;
use crate::progress::Progress;
use crate::{output, signals, table};

pub use filter::filter;
pub use import::{export, import};

/// `tasks generate`.
pub fn generate(args: &GenerateArgs) -> Result<ExitCode, CliError> {
    if args.num == 0 || args.per_repo == 0 {
        return Err(CliError::usage("--num and --per-repo must be above 0"));
    }
    let mut recipe = Recipe::default();
    recipe.tasks.seed = args.seed;
    let source = match args.kind {
        TaskKind::Generated => TaskSource::Generated,
        TaskKind::Katas => TaskSource::Katas,
    };
    let none = TaskSetRecipe { source: TaskSource::None, ..TaskSetRecipe::default() };
    recipe.tasks.held_out = none.clone();
    recipe.tasks.transfer = none;
    recipe.tasks.train = TaskSetRecipe {
        source,
        num_instances: args.num,
        instances_per_repo: args.per_repo,
        ..TaskSetRecipe::default()
    };
    let progress = Arc::new(Progress::to_stderr());
    let cancel = {
        let progress = Arc::clone(&progress);
        signals::cancel_token(move || progress.say("Stopping; nothing is written."))?
    };
    let sets = open_provider(&recipe)
        .and_then(|provider| task_sets(&recipe.tasks, provider.as_ref(), &*progress, cancel));
    progress.finish();
    let sets = sets?;
    let instances = sets.train.iter().map(|task| &task.as_ref().instance);
    let num = write_task_set(&args.out, instances)?;
    output::note(format!("Wrote {num} instances to {}", args.out.display()));
    if num < args.num {
        output::note(format!(
            "The source has no more than {num} with --per-repo {}",
            args.per_repo
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// `tasks show`.
pub fn show(args: &ShowArgs) -> Result<ExitCode, CliError> {
    let tasks = read(&args.tasks)?;
    let Some(id) = &args.instance else {
        list(&tasks, args.json)?;
        return Ok(ExitCode::SUCCESS);
    };
    let Some(task) = tasks.iter().find(|task| task.instance_id == *id) else {
        return Err(CliError::usage(unknown_instance(
            id,
            &args.tasks.display().to_string(),
            &tasks,
        )));
    };
    if args.json {
        output::json_line(task)?;
    } else {
        output::data(&page(task, args.patch))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a task set that was named on the command line.
pub fn read(path: &std::path::Path) -> Result<Vec<TaskInstance>, CliError> {
    read_task_set(path).map_err(CliError::usage)
}

/// Says that an instance is not in a set.
pub fn unknown_instance(id: &str, set: &str, tasks: &[TaskInstance]) -> String {
    let first: Vec<&str> = tasks.iter().take(3).map(|task| task.instance_id.as_str()).collect();
    format!("{set} has no instance {id:?}; it has {} such as {}", tasks.len(), first.join(", "))
}

fn list(tasks: &[TaskInstance], json: bool) -> Result<(), CliError> {
    if json {
        return tasks.iter().try_for_each(output::json_line);
    }
    let rows = tasks.iter().map(|task| {
        let title = task.problem_statement.trim().lines().next().unwrap_or_default();
        let short: String = title.chars().take(60).collect();
        vec![
            task.instance_id.clone(),
            task.fail_to_pass.len().to_string(),
            task.pass_to_pass.len().to_string(),
            short,
        ]
    });
    output::data(&table::table(&["Instance", "Fail", "Pass", "Issue"], &[1, 2], rows))
}

fn page(task: &TaskInstance, patch: bool) -> String {
    let mut text = format!("{}\n\nRepository  {}", task.instance_id, task.repo);
    if !task.base_commit.is_empty() {
        text += &format!(" at {}", task.base_commit);
    }
    if !task.files.is_empty() {
        let paths: Vec<&str> = task.files.keys().map(String::as_str).collect();
        text += &format!(", {} files: {}", paths.len(), paths.join(", "));
    }
    text += &format!("\nMust pass   {}\n", task.fail_to_pass.join(", "));
    text += &format!("Must stay   {} tests that pass\n", task.pass_to_pass.len());
    text += &format!("\n{}\n", task.problem_statement.trim());
    if patch {
        text += &format!("\n{}\n", task.patch.trim_end());
    }
    text
}

/// The instances that were asked for, all without any.
pub fn chosen(
    tasks: Vec<TaskInstance>,
    ids: &[String],
    set: &std::path::Path,
) -> Result<Vec<TaskInstance>, CliError> {
    for id in ids {
        if !tasks.iter().any(|task| task.instance_id == *id) {
            let set = set.display().to_string();
            return Err(CliError::usage(unknown_instance(id, &set, &tasks)));
        }
    }
    let all = ids.is_empty();
    Ok(tasks.into_iter().filter(|task| all || ids.contains(&task.instance_id)).collect())
}

impl From<TaskError> for CliError {
    fn from(error: TaskError) -> Self {
        Self::failed(error)
    }
}
