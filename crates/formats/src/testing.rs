//! Rollouts for tests.

use patchwright_core::{
    FailureClass, FinishReason, Message, PolicyVersion, Role, Rollout, RolloutStatus, TokenSpan,
    Trajectory, Turn, TurnOutcome,
};

/// A solved rollout of two turns and a format error, and one that the infrastructure failed.
pub fn rollouts() -> Vec<Rollout> {
    let message = |role, content: &str| Message { role, content: content.to_owned() };
    let turn = |text: &str, command: &str, observation: &str, outcome, start, end| Turn {
        text: text.to_owned(),
        command: command.to_owned(),
        observation: observation.to_owned(),
        outcome,
        sampled: TokenSpan { start, end },
        finish_reason: FinishReason::Stop,
    };
    let ls = "I look.\n```command\nls -l\n```";
    let submit = "Done: \u{e9}\u{1f600}.\n```command\nsubmit\n```";
    let turns = vec![
        turn(ls, "ls -l", "a.py\n(Current directory: /testbed)", TurnOutcome::Executed, 3, 6),
        turn("No command.", "", "There was no command.", TurnOutcome::FormatError, 8, 9),
        turn(submit, "submit", "", TurnOutcome::Submitted, 11, 13),
    ];
    let sampler_logprobs =
        [0., 0., 0., -0.5, -0.25, -1., 0., 0., -2., 0., 0., -0.125, -0.0625].to_vec();
    let trajectory = Trajectory {
        tokens: (100..113).collect(),
        sampler_logprobs,
        num_prompt_tokens: 3,
        prompt: "<s>rules<u>issue<a>".to_owned(),
        messages: vec![message(Role::System, "rules"), message(Role::User, "issue")],
        turns,
    };
    let solved = Rollout {
        instance_id: "owner__repo-1".to_owned(),
        sibling: 2,
        policy_version: PolicyVersion(7),
        status: RolloutStatus::Submitted,
        failure: None,
        failure_detail: None,
        solved: Some(true),
        patch: "--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-x\n+y\n".to_owned(),
        trajectory,
    };
    let failed = Rollout {
        instance_id: "owner__repo-2".to_owned(),
        status: RolloutStatus::Failed,
        failure: Some(FailureClass::Sandbox),
        failure_detail: Some("disk full".to_owned()),
        solved: None,
        patch: String::new(),
        trajectory: Trajectory::default(),
        ..solved.clone()
    };
    vec![solved, failed]
}

/// Who made them.
pub fn origin() -> crate::Origin {
    crate::Origin {
        agent_name: "patchwright".to_owned(),
        agent_version: "0.1.0".to_owned(),
        model_name: "org/base".to_owned(),
    }
}
