//! Chat messages, a conversation a line, for supervised fine-tuning.
//!
//! `{"messages": [{"role", "content", "weight"?}, …], "instance_id", …}`: the form that trainers of
//! chat models take. `weight` on assistant messages is that of `OpenAI`'s fine-tuning files: 1
//! is learned from, 0 is not. Turns that caused formatting errors have 0, and so have the solved
//! examples of a prompt, as in the reference's RFT.
//!
//! A branch of a foreign agent's episode is a conversation of its own; what it has in common with
//! another is its prompt, whose assistant messages have weight 0, so that each turn is learned
//! from once. A rollout in which nothing was said has no line. What the agent was answered by tools
//! is a user's message; the tools that its requests offered are not known.

use std::io::Write;

use patchwright_core::{Message, Role, Rollout, Trajectory, TurnOutcome};
use serde_json::{Value, json};

use crate::{FormatError, Written};

/// A rollout's conversations: the main one, then those of its branches; none where nothing was said.
///
/// # Errors
/// [`FormatError::Lacking`] when the messages of a prompt are not known.
pub fn records(rollout: &Rollout) -> Result<Vec<Value>, FormatError> {
    let said = rollout.trajectories().enumerate().filter(|(_, t)| !t.turns.is_empty());
    said.map(|(branch, trajectory)| record(rollout, branch, trajectory)).collect()
}

fn record(rollout: &Rollout, branch: usize, trajectory: &Trajectory) -> Result<Value, FormatError> {
    if trajectory.messages.is_empty() {
        return Err(FormatError::Lacking {
            rollout: rollout.instance_id.clone(),
            reason: "the messages of its prompt are not known (it was read from a format without \
                     them, or its agent asked at /v1/completions); --format parquet takes it"
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
        "attempt": rollout.attempt,
        "policy_version": rollout.policy_version,
        "branch": branch,
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

/// Writes conversations, one a line.
///
/// # Errors
/// As [`records`]; an error of `out` is reported as one of `path`.
pub fn write<'a>(
    out: &mut dyn Write,
    path: &std::path::Path,
    rollouts: impl IntoIterator<Item = &'a Rollout>,
) -> Result<Written, FormatError> {
    let mut written = Written::default();
    for rollout in rollouts {
        let records = records(rollout)?;
        for record in &records {
            let line = record.to_string() + "\n";
            out.write_all(line.as_bytes()).map_err(FormatError::io(path))?;
        }
        written.num_rollouts += usize::from(!records.is_empty());
        written.num_rows += records.len();
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::records;
    use crate::testing::{foreign, rollouts};

    #[test]
    fn error_turns_have_no_weight() {
        let rollouts = rollouts();
        let record = records(&rollouts[0]).unwrap().remove(0);
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
    fn branches_are_conversations() {
        let records = records(&foreign()[1]).unwrap();
        let said = |n: usize| -> Vec<String> {
            let messages = records[n]["messages"].as_array().unwrap().iter();
            messages.map(|m| format!("{} {} {}", m["role"], m["content"], m["weight"])).collect()
        };
        let expected = [
            r#""system" "rules" null"#,
            r#""user" "fix it" null"#,
            r#""user" "Write one command." null"#,
            r#""assistant" "I look." 1"#,
            r#""user" "a.py" null"#,
            r#""assistant" "Done." 1"#,
        ];
        assert_eq!(said(0), expected);
        assert_eq!(said(1)[1..], [expected[1], r#""assistant" "What?" 0"#]);
        assert_eq!((&records[1]["branch"], &records[1]["attempt"]), (&json!(1), &json!(1)));
    }

    #[test]
    fn what_has_no_conversation() {
        let mut rollouts = rollouts();
        assert_eq!(records(&rollouts[1]).unwrap(), Vec::<serde_json::Value>::new());
        rollouts[0].trajectory.messages.clear();
        let error = records(&rollouts[0]).unwrap_err().to_string();
        assert!(error.contains("owner__repo-1: the messages of its prompt"), "{error}");
    }
}
