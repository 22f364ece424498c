//! What a run tells whoever watches it: progress bars, dashboards, tests.
//!
//! Events are for eyes only: nothing of a run depends on them, and the journal holds all that
//! lasts. They are sent from worker threads as well, so an [`Observer`] must be quick.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use patchwright_core::{FailureClass, PolicyVersion, Rollout, RolloutStatus};
use serde::{Deserialize, Serialize};

use crate::metrics::{EvaluationResult, IterationMetrics};

/// What a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StageKind {
    /// Opening the engine, making and checking task sets.
    Setup,
    /// Measuring a policy.
    Evaluation,
    /// Rejection-sampling fine-tuning.
    Rft,
    /// Reinforcement learning.
    Rl,
}

/// One stage of a run's plan, and what is needed to say how long it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Unique in a run: `setup`, `eval-base`, `rft`, `eval-rft`, `rl-1`, `eval-rl-1` …
    pub name: String,
    /// What it does.
    pub kind: StageKind,
    /// Rollouts that it will run (fewer when a pool is small, more when groups are resampled).
    pub num_rollouts: usize,
    /// Iterations; 1 for stages without any.
    pub num_iterations: usize,
}

/// Something happened.
#[derive(Debug, Clone, PartialEq)]
pub enum RunEvent {
    /// The run begins, or goes on.
    RunStarted {
        /// The run directory.
        dir: PathBuf,
        /// The recipe's name.
        recipe: String,
        /// The seed.
        seed: u64,
        /// All stages in order, finished ones included.
        stages: Vec<StagePlan>,
    },
    /// A run goes on from here.
    Resumed {
        /// The stage that it goes on in.
        stage: String,
        /// The iteration of that stage, from 0.
        iteration: usize,
        /// The weights that it goes on with.
        policy_version: PolicyVersion,
        /// Bytes of a torn last line that were cut from the journal.
        num_journal_bytes_cut: u64,
    },
    /// A stage begins.
    StageStarted {
        /// As in [`RunEvent::RunStarted`]; counts are exact now.
        plan: StagePlan,
        /// The iteration that it begins at; above 0 after a resume.
        first_iteration: usize,
    },
    /// Rollouts of one iteration (or evaluation) begin.
    RolloutsStarted {
        /// The stage.
        stage: String,
        /// The iteration, from 0.
        iteration: usize,
        /// How many.
        num_rollouts: usize,
    },
    /// One rollout ended, in whatever order they do.
    RolloutFinished(RolloutFinished),
    /// An optimizer step was taken.
    OptimizerStep {
        /// The stage.
        stage: String,
        /// The iteration, from 0.
        iteration: usize,
        /// The step of the iteration, from 0.
        step: usize,
        /// Steps that the iteration takes.
        num_steps: usize,
        /// All tokens of the batch, prompts and observations included.
        num_tokens: usize,
    },
    /// An iteration of RFT or RL ended.
    IterationFinished(IterationMetrics),
    /// A policy was measured on a task set.
    EvaluationFinished(EvaluationResult),
    /// A stage ended.
    StageFinished {
        /// The stage.
        stage: String,
        /// How long it took (the part before an interruption is not counted).
        wall_seconds: f64,
    },
    /// How far work of a stage is that is not rollouts: task sets being made, pretraining.
    Progress {
        /// What is being done, such as the task set's name.
        part: String,
        /// What is counted, such as `instances`.
        unit: &'static str,
        /// How many are done. Events may overtake one another; the largest counts.
        num_done: usize,
        /// How many there may be at most.
        num_wanted: usize,
    },
    /// Something worth saying, such as the way task sets are made.
    Notice(String),
    /// The run was asked to stop and has stopped; `--resume` goes on.
    Interrupted {
        /// The stage it was in.
        stage: String,
        /// The first iteration that is not finished.
        iteration: usize,
    },
    /// All is done; the report is written.
    RunFinished {
        /// Seconds of this process.
        wall_seconds: f64,
    },
}

impl RunEvent {
    /// [`RunEvent::StageStarted`] of what comes before the first stage.
    pub fn setup_started() -> Self {
        let plan = StagePlan {
            name: crate::pipeline::SETUP.to_owned(),
            kind: StageKind::Setup,
            num_rollouts: 0,
            num_iterations: 1,
        };
        Self::StageStarted { plan, first_iteration: 0 }
    }
}

/// A finished rollout in short.
#[derive(Debug, Clone, PartialEq)]
pub struct RolloutFinished {
    /// The stage.
    pub stage: String,
    /// The iteration, from 0.
    pub iteration: usize,
    /// The task.
    pub instance_id: String,
    /// Whether the hidden tests pass; `None` without a grade.
    pub solved: Option<bool>,
    /// How it ended.
    pub status: RolloutStatus,
    /// Why it is not a success.
    pub failure: Option<FailureClass>,
    /// Turns taken.
    pub num_turns: usize,
    /// Tokens that the sampler drew.
    pub num_sampled_tokens: usize,
}

impl RolloutFinished {
    /// What is told of a rollout of this stage and iteration.
    pub fn of(stage: &str, iteration: usize, rollout: &Rollout) -> Self {
        Self {
            stage: stage.to_owned(),
            iteration,
            instance_id: rollout.instance_id.clone(),
            solved: rollout.solved,
            status: rollout.status,
            failure: rollout.failure,
            num_turns: rollout.num_turns(),
            num_sampled_tokens: rollout.num_sampled_tokens(),
        }
    }
}

/// Says a line, from any thread.
pub type Speaker = Arc<dyn Fn(&str) + Send + Sync>;

/// Watches a run.
pub trait Observer: Send + Sync {
    /// Called for each event, from any thread.
    fn event(&self, event: &RunEvent);

    /// Says lines for people that come at any time and outlive the call that began them: a server
    /// is down, it is back.
    fn speaker(&self) -> Speaker {
        Arc::new(|_| {})
    }
}

/// Watches nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {
    fn event(&self, _: &RunEvent) {}
}

/// Asks a run to stop, from a signal handler or another thread. What is running is ended and
/// cleaned up, the journal says so, and the run can be resumed.
#[derive(Default)]
pub struct CancelToken {
    is_set: AtomicBool,
    hooks: Mutex<Vec<Hook>>,
}

/// Ends something that waits and cannot look at the token.
type Hook = Box<dyn Fn() + Send>;

impl CancelToken {
    /// A token that was not cancelled. `const`, so that a signal handler's can be a `static`.
    pub const fn new() -> Self {
        Self { is_set: AtomicBool::new(false), hooks: Mutex::new(Vec::new()) }
    }

    /// Asks to stop, and calls the hooks. From a thread: it takes a lock.
    pub fn cancel(&self) {
        self.is_set.store(true, Ordering::SeqCst);
        let hooks = std::mem::take(&mut *self.lock());
        for hook in hooks {
            hook();
        }
    }

    /// Whether [`CancelToken::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.is_set.load(Ordering::Relaxed)
    }

    /// Calls `hook` when the token is cancelled, at once if it was. It is kept as long as the token,
    /// and must be quick.
    pub fn on_cancel(&self, hook: impl Fn() + Send + 'static) {
        self.lock().push(Box::new(hook));
        // It may have been cancelled between the two.
        if self.is_set.load(Ordering::SeqCst) {
            self.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Hook>> {
        self.hooks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for CancelToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CancelToken({})", self.is_cancelled())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::CancelToken;

    #[test]
    fn hooks_are_called_once_also_late() {
        let (token, count) = (CancelToken::new(), Arc::new(AtomicUsize::new(0)));
        let hook = || {
            let count = Arc::clone(&count);
            move || {
                count.fetch_add(1, Ordering::SeqCst);
            }
        };
        token.on_cancel(hook());
        assert_eq!(count.load(Ordering::SeqCst), 0);
        token.cancel();
        token.cancel();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        token.on_cancel(hook());
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}
