//! `patchwright train`: from tasks to a better policy.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use patchwright_train::TrainError;
use patchwright_train::events::CancelToken;
use patchwright_train::report::Report;
use patchwright_train::world::find_checkpoint;

use crate::args::TrainArgs;
use crate::error::CliError;
use crate::progress::Progress;
use crate::{output, report, signals};

/// Starts a run, or goes on with one, and ends with its table.
pub fn run(args: &TrainArgs) -> Result<ExitCode, CliError> {
    let progress = Arc::new(Progress::to_stderr());
    let result = match &args.resume {
        Some(dir) => resume(dir, &progress),
        None => start(args, &progress),
    };
    progress.finish();
    let (dir, finished) = result?;
    let (page, _) = report::write(&dir)?;
    if args.json {
        output::json(&finished)?;
    } else {
        output::evaluations(&finished.evaluations, false)?;
    }
    output::note(format!("Report: {}", page.display()));
    Ok(ExitCode::SUCCESS)
}

fn start(args: &TrainArgs, progress: &Arc<Progress>) -> Result<(PathBuf, Report), CliError> {
    let recipe = super::policy::load_recipe(&args.recipe, args.seed, &args.overrides)?;
    // Before the task sets are made, which may take a while.
    find_checkpoint(&recipe.engine.checkpoint)?;
    let path = args.out.clone().unwrap_or_else(|| {
        Path::new("runs").join(format!("{}-{}", recipe.run.name, recipe.run.seed))
    });
    let cancel = cancel_token(&path, progress, false)?;
    let report = patchwright_train::train(&recipe, &path, progress.as_ref(), cancel)?;
    Ok((path, report))
}

fn resume(path: &Path, progress: &Arc<Progress>) -> Result<(PathBuf, Report), CliError> {
    if !path.is_dir() {
        return Err(CliError::usage(format!("--resume {}: no such directory", path.display())));
    }
    let cancel = cancel_token(path, progress, true)?;
    let report = patchwright_train::resume(path, progress.as_ref(), cancel)?;
    Ok((path.to_owned(), report))
}

/// `resumed`: the directory holds a run whatever happens; else only once the run has begun.
fn cancel_token(
    path: &Path,
    progress: &Arc<Progress>,
    resumed: bool,
) -> Result<&'static CancelToken, CliError> {
    let (path, progress) = (path.to_owned(), Arc::clone(progress));
    signals::cancel_token(move || {
        if resumed || progress.has_run() {
            progress.say(&format!(
                "Stopping cleanly; once more stops at once. Go on with: patchwright train --resume {}",
                path.display()
            ));
        } else {
            progress.say(
                "Stopping before the run has begun; nothing is lost, start again with the same \
                 command.",
            );
        }
    })
}

impl From<TrainError> for CliError {
    fn from(error: TrainError) -> Self {
        match error {
            TrainError::Recipe(_) => Self::usage(error),
            TrainError::Interrupted { .. } | TrainError::Cancelled => Self::Interrupted,
            error => Self::failed(error),
        }
    }
}
