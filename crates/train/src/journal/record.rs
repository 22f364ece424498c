//! The records of a journal.

use patchwright_algo::filter::DropReason;
use patchwright_algo::reward::Reward;
use patchwright_core::{FailureClass, PolicyVersion, Rollout, RolloutStatus};
use serde::{Deserialize, Serialize};

use crate::metrics::{EvaluationResult, IterationMetrics};

/// Version of the journal's schema, on its first line.
pub const SCHEMA_VERSION: u32 = 1;

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// The first line.
    Header {
        /// [`SCHEMA_VERSION`].
        schema_version: u32,
        /// Version of the program that made the run.
        program_version: String,
        /// The recipe's name.
        recipe: String,
        /// The seed.
        seed: u64,
    },
    /// The run begins or goes on with sandboxes of this machine.
    SandboxLimits {
        /// How memory is bounded: `cgroup v2`, `cgroup v1`, `rlimits and watchdog`.
        rung: String,
    },
    /// A stage begins (not written again when it goes on after a resume).
    StageStarted {
        /// The stage.
        stage: String,
        /// Instances of the pool, or of the task set.
        num_tasks: usize,
    },
    /// A finished rollout.
    Rollout(RolloutRecord),
    /// The siblings of an instance in short: the solve history.
    Group(GroupRecord),
    /// An iteration is finished. All before it is synced.
    Iteration {
        /// Its numbers.
        metrics: IterationMetrics,
        /// Whether `checkpoints/<policy_version>` has its weights.
        checkpoint: bool,
        /// Sandboxes that were made during it.
        num_sandboxes: u64,
    },
    /// A policy was measured on a task set.
    Evaluation {
        /// Its numbers.
        result: EvaluationResult,
        /// Sandboxes that were made during it.
        num_sandboxes: u64,
        /// Tokens that were sampled during it.
        num_sampled_tokens: usize,
    },
    /// A stage is finished.
    StageFinished {
        /// The stage.
        stage: String,
        /// The weights that it ended with.
        policy_version: PolicyVersion,
        /// Wall clock of this part of it (since its start or the last resume), in seconds.
        wall_seconds: f64,
        /// Highest memory of the process so far, in bytes; 0 where it is not known.
        peak_memory_bytes: u64,
    },
    /// The run was stopped.
    Interrupted {
        /// The stage it was in.
        stage: String,
        /// Its first iteration that is not finished.
        iteration: usize,
        /// Why: `cancelled`, or the error.
        reason: String,
        /// Wall clock of this part of the stage, in seconds.
        wall_seconds: f64,
    },
    /// The run goes on. Records of `stage` from `iteration` on, and of later stages, that stand
    /// before this line count no more: that work is done again.
    Resumed {
        /// The stage.
        stage: String,
        /// The iteration that is run next, from 0.
        iteration: usize,
        /// The weights loaded.
        policy_version: PolicyVersion,
    },
    /// Something worth knowing that is not a number.
    Notice {
        /// The stage.
        stage: String,
        /// The text.
        text: String,
    },
    /// All stages are finished.
    RunFinished {
        /// The last weights.
        policy_version: PolicyVersion,
    },
}

/// A rollout in short, with its text for some.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RolloutRecord {
    /// The stage.
    pub stage: String,
    /// The iteration, from 0.
    pub iteration: usize,
    /// For evaluations: `held-out` or `transfer`; empty otherwise.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub task_set: String,
    /// The task.
    pub instance_id: String,
    /// Which sibling; in evaluations the run.
    pub sibling: u32,
    /// The weights.
    pub policy_version: PolicyVersion,
    /// How it ended.
    pub status: RolloutStatus,
    /// Why it is not a success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<FailureClass>,
    /// What happened, for failures of the infrastructure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_detail: Option<String>,
    /// The verdict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub solved: Option<bool>,
    /// The reward, in RL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reward: Option<Reward>,
    /// The advantage, where it is trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advantage: Option<f64>,
    /// Turns.
    pub num_turns: usize,
    /// Turns with formatting errors.
    pub num_format_errors: usize,
    /// All tokens.
    pub num_tokens: usize,
    /// Sampled tokens.
    pub num_sampled_tokens: usize,
    /// The prompt, for rollouts that are kept to be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub prompt: String,
    /// The turns, for rollouts that are kept to be read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub turns: Vec<TurnText>,
    /// The patch, for rollouts that are kept to be read.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub patch: String,
}

/// A turn to be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnText {
    /// What the model wrote.
    pub text: String,
    /// What was answered.
    pub observation: String,
}

impl RolloutRecord {
    /// The short form of a rollout; `readable` keeps its text.
    pub fn new(stage: &str, iteration: usize, rollout: &Rollout, readable: bool) -> Self {
        let trajectory = &rollout.trajectory;
        let turns = trajectory.turns.iter().map(|turn| TurnText {
            text: turn.text.clone(),
            observation: turn.observation.clone(),
        });
        Self {
            stage: stage.to_owned(),
            iteration,
            task_set: String::new(),
            instance_id: rollout.instance_id.clone(),
            sibling: rollout.sibling,
            policy_version: rollout.policy_version,
            status: rollout.status,
            failure: rollout.failure,
            failure_detail: rollout.failure_detail.clone(),
            solved: rollout.solved,
            reward: None,
            advantage: None,
            num_turns: rollout.num_turns(),
            num_format_errors: trajectory.num_format_errors(),
            num_tokens: rollout.trajectories().map(|trajectory| trajectory.tokens.len()).sum(),
            num_sampled_tokens: rollout.num_sampled_tokens(),
            prompt: if readable { trajectory.prompt.clone() } else { String::new() },
            turns: if readable { turns.collect() } else { Vec::new() },
            patch: if readable { rollout.patch.clone() } else { String::new() },
        }
    }
}

/// A group in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// The stage.
    pub stage: String,
    /// The iteration, from 0.
    pub iteration: usize,
    /// The task.
    pub instance_id: String,
    /// Siblings with a grade.
    pub num_graded: usize,
    /// Solved ones.
    pub num_solved: usize,
    /// Why the group was not trained on (RL).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<DropReason>,
}

impl Record {
    /// The stage that the record is about, and its iteration where it has one.
    pub fn place(&self) -> Option<(&str, Option<usize>)> {
        match self {
            Self::StageStarted { stage, .. }
            | Self::StageFinished { stage, .. }
            | Self::Notice { stage, .. } => Some((stage, None)),
            Self::Rollout(rollout) => Some((&rollout.stage, Some(rollout.iteration))),
            Self::Group(group) => Some((&group.stage, Some(group.iteration))),
            Self::Iteration { metrics, .. } => Some((&metrics.stage, Some(metrics.iteration))),
            Self::Header { .. }
            | Self::SandboxLimits { .. }
            | Self::RunFinished { .. }
            | Self::Resumed { .. }
            | Self::Evaluation { .. }
            | Self::Interrupted { .. } => None,
        }
    }
}
