//! What can stop a run.

use std::path::{Path, PathBuf};

use patchwright_core::{PolicyVersion, SandboxError, TaskError, TrainerError};

use crate::journal::JournalError;
use crate::recipe::RecipeError;

/// A run that stopped. Each text says what, where and how to go on.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The recipe cannot be used.
    #[error(transparent)]
    Recipe(#[from] RecipeError),
    /// A task set cannot be made or read.
    #[error("task set: {0}")]
    Task(#[from] TaskError),
    /// The training engine failed or training diverged.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    /// The journal cannot be written or read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// Sandboxes cannot be made on this machine.
    #[error("sandbox: {0}")]
    Sandbox(#[from] SandboxError),
    /// Something that the run needs is missing or wrong.
    #[error("{what}: {reason}")]
    Setup {
        /// What is needed.
        what: String,
        /// What is wrong with it, and how to mend it.
        reason: String,
    },
    /// A file of the run directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The breaker: too many rollouts failed for reasons that are not the policy's.
    #[error(
        "{stage}, iteration {iteration}: {num_failed} of {num_rollouts} rollouts failed in the \
         infrastructure, more than infrastructure.max_failed_fraction allows; the last said: \
         {detail}. Nothing was trained on them; mend the cause, then go on with --resume"
    )]
    Infrastructure {
        /// The stage.
        stage: String,
        /// The iteration, from 0.
        iteration: usize,
        /// Failed ones.
        num_failed: usize,
        /// All of the batch.
        num_rollouts: usize,
        /// What one of them said.
        detail: String,
    },
    /// Trainer and sampler do not agree about the same tokens under the same weights.
    #[error(
        "{stage}, iteration {iteration}: trainer and sampler differ by {difference} on the \
         log-probability of a token under version {policy_version}, the bound is {bound} \
         (infrastructure.max_logprob_difference): one of them has other weights or other tokens"
    )]
    LogprobMismatch {
        /// The stage.
        stage: String,
        /// The iteration, from 0.
        iteration: usize,
        /// The weights.
        policy_version: PolicyVersion,
        /// The largest difference.
        difference: f32,
        /// The bound.
        bound: f32,
    },
    /// A sample is older than the recipe allows.
    #[error(
        "a sample of version {sampled} met the trainer at version {trainer}, more than \
         max_staleness = {max_staleness} behind"
    )]
    Stale {
        /// The version that sampled.
        sampled: PolicyVersion,
        /// The version being trained.
        trainer: PolicyVersion,
        /// The recipe's bound.
        max_staleness: usize,
    },
    /// The number of updates is not what the finished iterations make.
    #[error(
        "the policy is at version {found}, but the finished iterations make {expected}: work was \
         lost or done twice"
    )]
    LostUpdates {
        /// Updates by count.
        expected: PolicyVersion,
        /// The trainer's version.
        found: PolicyVersion,
    },
    /// A part of the run ended because the run was asked to stop.
    #[error("the run was asked to stop")]
    Cancelled,
    /// The run was asked to stop, and did.
    #[error("interrupted; go on with --resume {}", dir.display())]
    Interrupted {
        /// The run directory.
        dir: PathBuf,
    },
    /// The run to resume is finished.
    #[error("{}: the run is finished, there is nothing to resume; see report.json", dir.display())]
    Finished {
        /// The run directory.
        dir: PathBuf,
    },
}

impl TrainError {
    /// Wraps an I/O error with the file that it is about.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + '_ {
        move |source| Self::Io { path: path.display().to_string(), source }
    }

    /// Something that the run needs is missing or wrong.
    pub fn setup(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Setup { what: what.into(), reason: reason.into() }
    }
}
