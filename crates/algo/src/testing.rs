//! Rollouts made by hand, for tests.

use patchwright_core::{
    FinishReason, PolicyVersion, Rollout, RolloutStatus, TokenSpan, Trajectory, Turn, TurnOutcome,
};

/// A rollout of `num_turns` turns (one prompt token, two sampled and one observation token each),
/// the first `num_format_errors` of which are malformed.
pub fn rollout(
    solved: Option<bool>,
    status: RolloutStatus,
    num_turns: usize,
    num_format_errors: usize,
) -> Rollout {
    let mut trajectory = Trajectory { num_prompt_tokens: 1, ..Trajectory::default() };
    trajectory.tokens.push(0);
    trajectory.sampler_logprobs.push(0.0);
    for index in 0..num_turns {
        let start = trajectory.tokens.len();
        trajectory.tokens.extend([1, 2, 3]);
        trajectory.sampler_logprobs.extend([-0.5, -0.25, 0.0]);
        trajectory.turns.push(Turn {
            text: String::new(),
            command: String::new(),
            observation: String::new(),
            outcome: if index < num_format_errors {
                TurnOutcome::FormatError
            } else {
                TurnOutcome::Executed
            },
            sampled: TokenSpan { start, end: start + 2 },
            finish_reason: FinishReason::Stop,
        });
    }
    Rollout {
        instance_id: "a__b-1".into(),
        sibling: 0,
        attempt: 0,
        policy_version: PolicyVersion(0),
        status,
        failure: None,
        failure_detail: None,
        solved,
        patch: String::new(),
        trajectory,
        branches: Vec::new(),
    }
}
