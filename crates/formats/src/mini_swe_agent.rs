//! mini-swe-agent's `.traj.json`, format `mini-swe-agent-1.1`: the chat, with what each turn ran
//! in `extra.actions`, and how it ended in `info`.

use patchwright_core::{Rollout, RolloutStatus};
use serde_json::{Value, json};

use crate::Origin;

/// What is written in `trajectory_format`.
pub const TRAJECTORY_FORMAT: &str = "mini-swe-agent-1.1";

/// A rollout as a document.
pub fn document(rollout: &Rollout, origin: &Origin) -> Value {
    let trajectory = &rollout.trajectory;
    let prompt = trajectory.messages.iter();
    let mut messages: Vec<Value> =
        prompt.map(|message| json!({"role": message.role, "content": message.content})).collect();
    for turn in &trajectory.turns {
        let actions: Vec<Value> = (!turn.command.is_empty())
            .then(|| json!({"command": turn.command}))
            .into_iter()
            .collect();
        messages.push(json!({
            "role": "assistant",
            "content": turn.text,
            "extra": {"actions": actions, "outcome": turn.outcome},
        }));
        if !turn.observation.is_empty() {
            messages.push(json!({"role": "user", "content": turn.observation}));
        }
    }
    messages.push(json!({
        "role": "exit",
        "content": rollout.patch,
        "extra": {"exit_status": exit_status(rollout), "submission": rollout.patch},
    }));
    json!({
        "instance_id": rollout.instance_id,
        "info": {
            "exit_status": exit_status(rollout),
            "submission": rollout.patch,
            "model_stats": {"instance_cost": 0.0, "api_calls": trajectory.turns.len()},
            "mini_version": "",
            "config": {
                "agent_type": origin.agent_name,
                "model": {"model_name": origin.model_name},
            },
            "solved": rollout.solved,
            "sibling": rollout.sibling,
            "attempt": rollout.attempt,
            "policy_version": rollout.policy_version,
        },
        "messages": messages,
        "trajectory_format": TRAJECTORY_FORMAT,
    })
}

/// The end in mini-swe-agent's words.
fn exit_status(rollout: &Rollout) -> &'static str {
    match rollout.status {
        RolloutStatus::Submitted => "Submitted",
        RolloutStatus::TurnLimit | RolloutStatus::ContextLimit => "LimitsExceeded",
        RolloutStatus::FormatLimit => "FormatError",
        RolloutStatus::Failed => "EnvironmentError",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::document;
    use crate::testing::{origin, rollouts};

    #[test]
    fn messages_and_the_end() {
        let document = document(&rollouts()[0], &origin());
        let messages = document["messages"].as_array().unwrap();
        let roles: Vec<_> = messages.iter().map(|m| m["role"].as_str().unwrap()).collect();
        let turns = ["assistant", "user", "assistant", "user", "assistant", "exit"];
        assert_eq!(roles, [&["system", "user"][..], &turns].concat());
        assert_eq!(messages[2]["extra"]["actions"], json!([{"command": "ls -l"}]));
        assert_eq!(messages[4]["extra"]["actions"], json!([]));
        assert_eq!(document["info"]["exit_status"], "Submitted");
        assert_eq!(document["info"]["model_stats"]["api_calls"], 3);
    }
}
