//! The training stages of a recipe: `[rft]` and each `[[rl]]`.

use patchwright_algo::filter::DropOn;
use patchwright_algo::reward::{PenaltyOn, RewardConfig};
use patchwright_algo::schedule::Schedule;
use patchwright_core::AdamParams;
use serde::{Deserialize, Serialize};

/// `[rft]`: sample with the base policy, keep what succeeded, fine-tune on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RftRecipe {
    /// Whether the stage runs.
    pub enabled: bool,
    /// Tasks of the pool that are tried; 0 means all.
    pub num_tasks: usize,
    /// Rollouts of each.
    pub rollouts_per_task: usize,
    /// Successes of one task that are learned from at most; 0 means all.
    pub max_successes_per_task: usize,
    /// Turns of a rollout at most.
    pub max_turns: usize,
    /// Tokens of a trajectory at most.
    pub context_tokens: usize,
    /// Whether the prompt shows a solved example while sampling, which is removed for training.
    pub one_shot_demonstration: bool,
    /// Whether turns that caused formatting errors are masked out of the loss.
    pub mask_format_errors: bool,
    /// Passes over the successes.
    pub epochs: usize,
    /// Trajectories of one optimizer step.
    pub batch_size: usize,
    /// Peak learning rate.
    pub lr: f32,
    /// Optimizer steps over which the learning rate rises from 0.
    pub warmup_steps: usize,
    /// What it does afterwards.
    pub schedule: Schedule,
    /// Decoupled weight decay of `AdamW`.
    pub weight_decay: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub adam_eps: f32,
    /// Bound on the gradient's global norm; 0 turns it off.
    pub grad_clip: f32,
}

impl Default for RftRecipe {
    fn default() -> Self {
        Self {
            enabled: true,
            num_tasks: 300,
            rollouts_per_task: 10,
            max_successes_per_task: 0,
            max_turns: 10,
            context_tokens: 768,
            one_shot_demonstration: false,
            mask_format_errors: true,
            epochs: 1,
            batch_size: 16,
            lr: 1.5e-4,
            warmup_steps: 2,
            schedule: Schedule::Cosine,
            weight_decay: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            adam_eps: 1e-8,
            grad_clip: 1.0,
        }
    }
}

impl RftRecipe {
    /// Optimizer parameters at a learning rate.
    pub fn adam(&self, lr: f32) -> AdamParams {
        AdamParams {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
        }
    }
}

/// One `[[rl]]` stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RlStageRecipe {
    /// Name in reports and checkpoints: `rl-1`, `rl-2`.
    pub name: String,
    /// Iterations: rollouts, then optimizer steps, then a new policy version.
    pub iterations: usize,
    /// Task instances of an iteration.
    pub problems_per_iteration: usize,
    /// Sibling rollouts of each instance.
    pub group_size: usize,
    /// Turns of a rollout at most, `T_max`.
    pub max_turns: usize,
    /// Turns from which on a trajectory is penalised, `L_thr`; `max_turns` turns the penalty off.
    pub length_threshold: usize,
    /// Which rollouts the length penalty falls on.
    pub length_penalty_on: PenaltyOn,
    /// Subtracted for each turn with a formatting error.
    pub format_error_penalty: f64,
    /// Subtracted when the agent never submits.
    pub no_submission_penalty: f64,
    /// Which reward decides that a group is dropped.
    pub drop_on: DropOn,
    /// Added to the standard deviation of the group's rewards, `delta`.
    pub advantage_delta: f64,
    /// Further rounds of instances that replace dropped groups, at most; 0 trains on what is left.
    pub num_resample_rounds: usize,
    /// Tokens of a trajectory at most.
    pub context_tokens: usize,
    /// The importance ratio is clipped to `[1 - clip_low, 1 + clip_high]`.
    pub clip_low: f32,
    /// See `clip_low`.
    pub clip_high: f32,
    /// Trajectories of one optimizer step; the number of steps is kept within the next two.
    pub batch_size: usize,
    /// Optimizer steps of an iteration at least (fewer only when there are fewer samples).
    pub min_optimizer_steps: usize,
    /// Optimizer steps of an iteration at most.
    pub max_optimizer_steps: usize,
    /// Passes over an iteration's samples.
    pub epochs: usize,
    /// Peak learning rate.
    pub lr: f32,
    /// Iterations over which the learning rate rises.
    pub warmup_iterations: usize,
    /// What it does afterwards.
    pub schedule: Schedule,
    /// Decoupled weight decay of `AdamW`.
    pub weight_decay: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub adam_eps: f32,
    /// Bound on the gradient's global norm; 0 turns it off.
    pub grad_clip: f32,
    /// Before the stage, drop instances from the pool by what earlier stages recorded of them.
    pub refresh_pool: bool,
    /// Instances solved more often than this are dropped.
    pub pool_max_success_rate: f64,
    /// Instances that were tried and never solved are dropped.
    pub pool_drop_never_solved: bool,
    /// Versions that the sampling policy may lag behind the trained one; 0 is synchronous.
    pub max_staleness: usize,
}

impl Default for RlStageRecipe {
    fn default() -> Self {
        Self {
            name: "rl-1".into(),
            iterations: 52,
            problems_per_iteration: 40,
            group_size: 10,
            max_turns: 12,
            length_threshold: 8,
            length_penalty_on: PenaltyOn::Successes,
            format_error_penalty: 0.03,
            no_submission_penalty: 0.1,
            drop_on: DropOn::Outcome,
            advantage_delta: 1e-6,
            num_resample_rounds: 0,
            context_tokens: 768,
            clip_low: 0.2,
            clip_high: 0.3,
            batch_size: 32,
            min_optimizer_steps: 1,
            max_optimizer_steps: 4,
            epochs: 1,
            lr: 2e-4,
            warmup_iterations: 0,
            schedule: Schedule::Constant,
            weight_decay: 0.01,
            beta1: 0.9,
            beta2: 0.99,
            adam_eps: 1e-8,
            grad_clip: 1.0,
            refresh_pool: false,
            pool_max_success_rate: 2.0 / 3.0,
            pool_drop_never_solved: true,
            max_staleness: 0,
        }
    }
}

impl RlStageRecipe {
    /// Optimizer parameters at a learning rate.
    pub fn adam(&self, lr: f32) -> AdamParams {
        AdamParams {
            lr,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            grad_clip: self.grad_clip,
        }
    }

    /// What shapes the reward of the stage's rollouts.
    pub fn reward(&self) -> RewardConfig {
        RewardConfig {
            max_turns: self.max_turns,
            length_threshold: self.length_threshold,
            length_penalty_on: self.length_penalty_on,
            format_error_penalty: self.format_error_penalty,
            no_submission_penalty: self.no_submission_penalty,
        }
    }
}
