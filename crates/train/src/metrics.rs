//! The numbers of a run: each iteration's, each evaluation's, and the report's.

use patchwright_core::PolicyVersion;
use serde::{Deserialize, Serialize};

use crate::agreement::Agreement;

/// How the rollouts of an iteration became training samples. Every rollout is in exactly one of
/// `num_failed_infrastructure`, `num_dropped_*` and `num_trained`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Funnel {
    /// Rollouts that were run.
    pub num_rollouts: usize,
    /// Solved ones.
    pub num_solved: usize,
    /// Without a grade because the infrastructure failed: never trained on.
    pub num_failed_infrastructure: usize,
    /// Ended by the turn limit.
    pub num_turn_limit: usize,
    /// Ended by the context limit.
    pub num_context_limit: usize,
    /// Ended by formatting errors.
    pub num_format_limit: usize,
    /// Graded ones whose patch was found to forge results: an alarm where it is not 0.
    #[serde(default)]
    pub num_cheats: usize,
    /// Groups that were run.
    pub num_groups: usize,
    /// Groups without an advantage because all siblings were solved.
    pub num_groups_all_solved: usize,
    /// Groups without an advantage because no sibling was solved.
    pub num_groups_all_failed: usize,
    /// Groups with fewer than two graded siblings.
    pub num_groups_infrastructure: usize,
    /// Graded rollouts in dropped groups, or with an advantage of exactly 0 (RL), or that are no
    /// successes (RFT).
    pub num_dropped_rollouts: usize,
    /// Rollouts that became training samples.
    pub num_trained: usize,
}

impl std::ops::AddAssign for Funnel {
    fn add_assign(&mut self, other: Self) {
        self.num_rollouts += other.num_rollouts;
        self.num_solved += other.num_solved;
        self.num_failed_infrastructure += other.num_failed_infrastructure;
        self.num_turn_limit += other.num_turn_limit;
        self.num_context_limit += other.num_context_limit;
        self.num_format_limit += other.num_format_limit;
        self.num_cheats += other.num_cheats;
        self.num_groups += other.num_groups;
        self.num_groups_all_solved += other.num_groups_all_solved;
        self.num_groups_all_failed += other.num_groups_all_failed;
        self.num_groups_infrastructure += other.num_groups_infrastructure;
        self.num_dropped_rollouts += other.num_dropped_rollouts;
        self.num_trained += other.num_trained;
    }
}

/// One iteration of RFT or RL. A line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct IterationMetrics {
    /// The stage's name.
    pub stage: String,
    /// The iteration, from 0.
    pub iteration: usize,
    /// The version that the iteration ended with.
    pub policy_version: PolicyVersion,
    /// Rollouts to samples.
    pub funnel: Funnel,
    /// Mean final reward over graded rollouts, penalties included.
    pub reward_mean: f64,
    /// Part of graded rollouts that are solved.
    pub solve_rate: f64,
    /// Mean turns of graded rollouts.
    pub num_turns_mean: f64,
    /// Part of all turns that were formatting errors.
    pub format_error_rate: f64,
    /// Mean over sampled tokens of minus their log-probability: an estimate of the entropy.
    pub entropy: f64,
    /// Loss per action token, mean over optimizer steps.
    pub loss: f64,
    /// Mean norm of the gradient before the clip.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Part of action tokens whose gradient a clip cut.
    pub clipped_fraction: f64,
    /// Largest difference between trainer's and sampler's log-probability of a token under the
    /// same weights; 0 when nothing was trained.
    pub logprob_difference_max: f32,
    /// Trainer and sampler on the tokens of the first step that they compared.
    #[serde(default)]
    pub agreement: Agreement,
    /// Versions that the sampling policy lagged behind.
    pub staleness: u64,
    /// Optimizer steps taken.
    pub num_optimizer_steps: usize,
    /// Tokens that the sampler drew.
    pub num_sampled_tokens: usize,
    /// Tokens of all training samples, prompts and observations included.
    pub num_trained_tokens: usize,
    /// Wall clock of rollouts, in seconds.
    pub rollout_seconds: f64,
    /// Wall clock of training, in seconds.
    pub train_seconds: f64,
}

/// A mean and its standard error over runs.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct MeanSem {
    /// The mean.
    pub mean: f64,
    /// Standard error of the mean; 0 for one run.
    pub sem: f64,
}

/// A policy measured on a task set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationResult {
    /// `base`, `rft`, `rl-1`, `rl-2`.
    pub policy: String,
    /// The weights measured.
    pub policy_version: PolicyVersion,
    /// `held-out` or `transfer`.
    pub task_set: String,
    /// Instances.
    pub num_tasks: usize,
    /// Runs over all of them.
    pub num_runs: usize,
    /// Mean solve rate of a run, and its standard error over the runs.
    pub pass_at_1: MeanSem,
    /// `k` of [`EvaluationResult::pass_at_10`], where it is not 10 (a run with fewer runs).
    pub pass_k: usize,
    /// Unbiased Pass@k (Chen et al. 2021) for `k` = [`EvaluationResult::pass_k`].
    pub pass_at_10: f64,
    /// Mean turns of a rollout.
    pub mean_turns: f64,
    /// Rollouts without a grade because the infrastructure failed; left out of every number above:
    /// neither a success nor a failure of the policy.
    pub num_failed_infrastructure: usize,
    /// Mean over sampled tokens of minus their log-probability.
    pub entropy: f64,
    /// Part of rollouts that the agent ended by submitting.
    pub submit_rate: f64,
    /// Wall clock in seconds.
    pub wall_seconds: f64,
}
