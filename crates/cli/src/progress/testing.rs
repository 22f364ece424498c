//! Events for tests.

use patchwright_core::{FailureClass, PolicyVersion, RolloutStatus};
use patchwright_train::events::{RolloutFinished, RunEvent, StageKind, StagePlan};
use patchwright_train::metrics::{EvaluationResult, Funnel, IterationMetrics, MeanSem};

pub fn plan(name: &str, kind: StageKind, num_rollouts: usize, num_iterations: usize) -> StagePlan {
    StagePlan { name: name.into(), kind, num_rollouts, num_iterations }
}

/// A rollout of 100 tokens.
pub fn finished(stage: &str, iteration: usize, solved: Option<bool>) -> RunEvent {
    RunEvent::RolloutFinished(RolloutFinished {
        stage: stage.into(),
        iteration,
        instance_id: "a__b-1".into(),
        solved,
        status: RolloutStatus::Submitted,
        failure: (solved == Some(false)).then_some(FailureClass::Model),
        num_turns: 5,
        num_sampled_tokens: 100,
    })
}

pub fn iteration(stage: &str, iteration: usize) -> IterationMetrics {
    IterationMetrics {
        stage: stage.into(),
        iteration,
        policy_version: PolicyVersion(iteration as u64 + 1),
        funnel: Funnel {
            num_rollouts: 300,
            num_solved: 60,
            num_groups: 30,
            num_groups_all_solved: 2,
            num_groups_all_failed: 14,
            ..Funnel::default()
        },
        reward_mean: 0.18,
        solve_rate: 0.2 + 0.01 * iteration as f64,
        num_turns_mean: 5.25,
        entropy: 0.41,
        grad_norm: 0.834,
        num_sampled_tokens: 30_000,
        rollout_seconds: 3.0,
        train_seconds: 1.5,
        ..IterationMetrics::default()
    }
}

pub fn evaluation(policy: &str, task_set: &str, mean: f64) -> EvaluationResult {
    EvaluationResult {
        policy: policy.into(),
        policy_version: PolicyVersion(0),
        task_set: task_set.into(),
        num_tasks: 100,
        num_runs: 10,
        pass_at_1: MeanSem { mean, sem: mean / 20.0 },
        pass_k: 10,
        pass_at_10: (mean * 3.0).min(1.0),
        mean_turns: 6.25,
        num_failed_infrastructure: 0,
        entropy: 0.4,
        submit_rate: 0.8,
        wall_seconds: 12.0,
    }
}
