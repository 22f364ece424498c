//! The programs: RFT, RL, evaluation and the whole pipeline; the rollout engine, the journal and
//! resume.
//!
//! Start reading at [`pipeline`] (which stages, in which order) and [`rl`] (the loop). A
//! [`recipe`] decides what a run does; a [`run::World`] is what it works with; [`environment`] is
//! the seam to agent, sandbox and grader; [`events`] tell whoever watches.

use std::path::Path;
use std::time::Instant;

pub mod agent_environment;
pub mod agreement;
pub mod bench;
pub mod environment;
mod episodes;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod foreign_environment;
pub mod gateway;
pub mod history;
pub mod images;
pub mod journal;
mod kept;
pub mod learn;
pub mod metrics;
pub mod pipeline;
pub mod pool;
pub mod pretrain;
pub mod recipe;
pub mod remember;
pub mod report;
pub mod rft;
pub mod rl;
pub mod rollout_engine;
pub mod run;
pub mod run_dir;
pub mod scheduler;
pub mod task_sets;
pub mod world;

#[cfg(test)]
mod testing;

pub use error::TrainError;
use events::{CancelToken, Observer};
use recipe::Recipe;
use report::Report;
use run::World;
use run_dir::RunDir;

/// Runs a recipe from evaluation of the base policy to the report, in the new run directory `out`.
///
/// # Errors
/// [`TrainError`]; [`TrainError::Interrupted`] when `cancel` was set. What was finished is kept,
/// and [`resume`] goes on. [`TrainError::Cancelled`] when it was set before there was a run
/// directory: then nothing was begun, and there is nothing to go on with.
pub fn train(
    recipe: &Recipe,
    out: &Path,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Report, TrainError> {
    let start = Instant::now();
    RunDir::check_free(out)?;
    let world = World::open(recipe, observer, cancel)?;
    let dir = RunDir::create(out, recipe)?;
    pipeline::start(recipe, dir, world, start.elapsed().as_secs_f64(), observer, cancel)
}

/// Goes on with the interrupted run in `dir` from its last finished iteration, with the recipe it
/// was started with.
///
/// # Errors
/// [`TrainError::Finished`] when there is nothing left to do, else as [`train`].
pub fn resume(
    dir: &Path,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Report, TrainError> {
    let (dir, recipe) = RunDir::open(dir)?;
    pipeline::check_unfinished(&dir)?;
    let world = World::open(&recipe, observer, cancel)?;
    pipeline::resume(recipe, dir, world, observer, cancel)
}
