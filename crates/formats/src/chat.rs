//! Chat messages, a rollout a line, for supervised fine-tuning.
//!
//! `{"messages": [{"role", "content", "weight"?}, …], "instance_id", …}`: the form that trainers of
//! chat models take. `weight` on assistant messages is that of `OpenAI`'s fine-tuning files: 1
//! is learned from, 0 is not. Turns that caused formatting errors have 0, and so have the solved
//! examples of a prompt, as in the reference's RFT.

use std::io::Write;

use patchwright_core::{Message, Role, Rollout, TurnOutcome};
use serde_json::{Value, json};

use crate::FormatError;

/// A rollout as one record.
///
/// # Errors
/// [`FormatError::Lacking`] when the prompt's messages are not known.
pub fn record(rollout: &Rollout) -> Result<Value, FormatError> {
    let trajectory = &rollout.trajectory;
    if trajectory.messages.is_empty() {
        return Err(FormatError::Lacking {
            rollout: rollout.instance_id.clone(),
            reason: "the messages of its prompt are not known (the infrastructure failed before \
                     there was one, or it was read from a format without them)"
                .to_owned(),
        });
    }
    let mut messages: Vec<Value> = trajectory.messages.iter().map(prompt_message).collect();
    let last = trajectory.turns.len().saturating_sub(1);
    for (index, turn) in trajectory.turns.iter().enumerate() {
        let learned = matches!(turn.outcome, TurnOutcome::Executed | TurnOutcome::Submitted);
        messages.push(json!({
            "role": "assistant",
            "content": turn.text,
            "weight": u8::from(learned),
        }));
        // What answered the last turn was never read.
        if index < last && !turn.observation.is_empty() {
            messages.push(json!({"role": "user", "content": turn.observation}));
        }
    }
    Ok(json!({
        "messages": messages,
        "instance_id": rollout.instance_id,
        "sibling": rollout.sibling,
        "policy_version": rollout.policy_version,
        "solved": rollout.solved,
    }))
}

fn prompt_message(message: &Message) -> Value {
    let mut value = json!({"role": message.role, "content": message.content});
    if message.role == Role::Assistant {
        value["weight"] = 0.into();
    }
    value
}

/// Writes records, one a line.
///
/// # Errors
/// As [`record`]; an error of `out` is reported as one of `path`.
pub fn write<'a>(
    out: &mut dyn Write,
    path: &std::path::Path,
    rollouts: impl IntoIterator<Item = &'a Rollout>,
) -> Result<(), FormatError> {
    for rollout in rollouts {
        let line = record(rollout)?.to_string() + "\n";
        out.write_all(line.as_bytes()).map_err(FormatError::io(path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::record;
    use crate::testing::rollouts;

    #[test]
    fn error_turns_have_no_weight() {
        let rollouts = rollouts();
        let record = super::record(&rollouts[0]).unwrap();
        let said: Vec<_> = record["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| (message["role"].as_str().unwrap(), message["weight"].as_i64()))
            .collect();
        let expected = [
            ("system", None),
            ("user", None),
            ("assistant", Some(1)),
            ("user", None),
            ("assistant", Some(0)),
            ("user", None),
            ("assistant", Some(1)),
        ];
        assert_eq!(said, expected);
        assert_eq!(record["solved"], json!(true));
    }

    #[test]
    fn a_rollout_without_messages_is_refused() {
        let error = record(&rollouts()[1]).unwrap_err().to_string();
        assert!(error.contains("owner__repo-2: the messages of its prompt"), "{error}");
    }
}
