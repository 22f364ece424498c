//! SWE-agent's `.traj`: a JSON document a rollout, with `trajectory` (one entry a turn), `history`
//! (all messages) and `info` (end and submission).

use std::path::Path;

use patchwright_core::{
    FinishReason, Message, PolicyVersion, Role, Rollout, RolloutStatus, TokenSpan, Trajectory,
    Turn, TurnOutcome,
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{FormatError, read_bounded};

/// A rollout as a document.
pub fn document(rollout: &Rollout) -> Value {
    let trajectory = &rollout.trajectory;
    let mut history: Vec<Value> = trajectory.messages.iter().map(prompt_message).collect();
    let mut steps = Vec::new();
    for turn in &trajectory.turns {
        steps.push(json!({
            "action": turn.command,
            "observation": turn.observation,
            "response": turn.text,
            "thought": thought(turn),
            "execution_time": null,
            "state": {},
            "query": [],
            "extra_info": {"outcome": turn.outcome},
        }));
        history.push(json!({
            "role": "assistant", "content": turn.text, "thought": thought(turn),
            "action": turn.command, "agent": "main", "message_type": "action",
        }));
        if !turn.observation.is_empty() {
            history.push(json!({
                "role": "user", "content": turn.observation,
                "agent": "main", "message_type": "observation",
            }));
        }
    }
    let num_sampled = trajectory.num_sampled_tokens();
    let num_prompted: usize = trajectory.turns.iter().map(|turn| turn.sampled.start).sum();
    json!({
        "trajectory": steps,
        "history": history,
        "info": {
            "exit_status": exit_status(rollout),
            "submission": rollout.patch,
            "model_stats": {
                "instance_cost": 0.0,
                "tokens_sent": num_prompted,
                "tokens_received": num_sampled,
                "api_calls": trajectory.turns.len(),
            },
            "solved": rollout.solved,
            "sibling": rollout.sibling,
            "attempt": rollout.attempt,
            "policy_version": rollout.policy_version,
        },
        "environment": rollout.instance_id,
        "replay_config": null,
    })
}

fn prompt_message(message: &Message) -> Value {
    let kind = if message.role == Role::System { "system_prompt" } else { "observation" };
    let mut value = json!({
        "role": message.role, "content": message.content, "agent": "main", "message_type": kind,
    });
    if message.role == Role::Assistant {
        value["is_demo"] = true.into();
    }
    value
}

/// What stands before the block of the command.
fn thought(turn: &Turn) -> &str {
    match turn.text.find("```command") {
        Some(start) if !turn.command.is_empty() => turn.text[..start].trim_end(),
        _ if turn.text == turn.command => "",
        _ => &turn.text,
    }
}

/// The end in SWE-agent's words.
fn exit_status(rollout: &Rollout) -> &'static str {
    match rollout.status {
        RolloutStatus::Submitted => "submitted",
        RolloutStatus::TurnLimit => "exit_cost",
        RolloutStatus::ContextLimit => "exit_context",
        RolloutStatus::FormatLimit => "exit_format",
        RolloutStatus::Failed => "exit_environment_error",
    }
}

#[derive(Deserialize)]
struct Document {
    trajectory: Vec<Step>,
    #[serde(default)]
    history: Vec<HistoryItem>,
    #[serde(default)]
    info: Info,
    #[serde(default)]
    environment: Option<String>,
}

#[derive(Deserialize)]
struct Step {
    #[serde(default)]
    action: String,
    #[serde(default)]
    observation: Option<String>,
    #[serde(default)]
    response: String,
    #[serde(default)]
    thought: Option<String>,
    #[serde(default)]
    extra_info: Option<Value>,
}

#[derive(Deserialize)]
struct HistoryItem {
    role: Role,
    /// Text, or the parts of newer versions.
    #[serde(default)]
    content: Value,
    #[serde(default)]
    is_demo: bool,
}

#[derive(Deserialize, Default)]
struct Info {
    #[serde(default)]
    exit_status: Option<String>,
    #[serde(default)]
    submission: Option<String>,
    #[serde(default)]
    solved: Option<bool>,
    #[serde(default)]
    sibling: Option<u32>,
    #[serde(default)]
    attempt: Option<u32>,
    #[serde(default)]
    policy_version: Option<u64>,
}

/// Reads a `.traj`. The rollout has text and no tokens. Its instance is the file's name, as
/// SWE-agent has it, unless the document says that we wrote it.
///
/// # Errors
/// [`FormatError`] when the file cannot be read or is no `.traj`.
pub fn read(path: &Path) -> Result<Rollout, FormatError> {
    let place = path.display().to_string();
    let bytes = read_bounded(path)?;
    let document: Document = serde_json::from_slice(&bytes)
        .map_err(|error| FormatError::malformed(&*place, format!("no .traj: {error}")))?;
    let ours = document.info.policy_version.is_some();
    let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    let instance_id = match document.environment {
        Some(environment) if ours => environment,
        _ => name.to_owned(),
    };
    Ok(Rollout {
        instance_id,
        sibling: document.info.sibling.unwrap_or(0),
        attempt: document.info.attempt.unwrap_or(0),
        policy_version: PolicyVersion(document.info.policy_version.unwrap_or(0)),
        status: status(document.info.exit_status.as_deref()),
        failure: None,
        failure_detail: None,
        solved: document.info.solved,
        patch: document.info.submission.unwrap_or_default(),
        trajectory: Trajectory {
            messages: prompt(&document.history),
            turns: document.trajectory.into_iter().map(turn).collect(),
            ..Trajectory::default()
        },
        branches: Vec::new(),
    })
}

/// An end that SWE-agent could not help, such as its cost, stands for a used-up budget.
fn status(exit_status: Option<&str>) -> RolloutStatus {
    let words = exit_status.unwrap_or_default();
    if words.contains("context") {
        RolloutStatus::ContextLimit
    } else if words.contains("format") {
        RolloutStatus::FormatLimit
    } else if words.contains("environment") || words.contains("error") {
        RolloutStatus::Failed
    } else if words.starts_with("submitted") {
        RolloutStatus::Submitted
    } else {
        RolloutStatus::TurnLimit
    }
}

/// The messages before the agent's first own one.
fn prompt(history: &[HistoryItem]) -> Vec<Message> {
    let prompt = history.iter().take_while(|item| item.role != Role::Assistant || item.is_demo);
    prompt.map(|item| Message { role: item.role, content: content(&item.content) }).collect()
}

fn content(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            let texts = parts.iter().filter_map(|part| part["text"].as_str());
            texts.collect::<Vec<_>>().join("\n")
        }
        _ => String::new(),
    }
}

fn turn(step: Step) -> Turn {
    let command = step.action.trim_end_matches('\n').to_owned();
    let outcome = step.extra_info.and_then(|extra| {
        serde_json::from_value::<TurnOutcome>(extra.get("outcome")?.clone()).ok()
    });
    let outcome = outcome.unwrap_or(match command.split_whitespace().next() {
        None => TurnOutcome::FormatError,
        Some("submit") => TurnOutcome::Submitted,
        Some(_) => TurnOutcome::Executed,
    });
    let text =
        if step.response.is_empty() { step.thought.unwrap_or_default() } else { step.response };
    Turn {
        text,
        command,
        observation: step.observation.unwrap_or_default(),
        outcome,
        sampled: TokenSpan { start: 0, end: 0 },
        finish_reason: FinishReason::Stop,
    }
}

#[cfg(test)]
mod tests {
    use patchwright_core::{RolloutStatus, TokenSpan, TurnOutcome};
    use serde_json::{Value, json};

    use super::{document, read};
    use crate::testing::rollouts;

    fn read_value(value: &Value) -> Result<patchwright_core::Rollout, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("owner__repo-9.traj");
        std::fs::write(&path, value.to_string()).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn a_round_trip_keeps_the_text() {
        let rollout = rollouts().remove(0);
        let document = document(&rollout);
        assert_eq!(document["trajectory"][0]["thought"], "I look.");
        let mut expected = rollout;
        let trajectory = &mut expected.trajectory;
        (trajectory.tokens, trajectory.sampler_logprobs) = (vec![], vec![]);
        (trajectory.num_prompt_tokens, trajectory.prompt) = (0, String::new());
        for turn in &mut trajectory.turns {
            turn.sampled = TokenSpan { start: 0, end: 0 };
        }
        assert_eq!(read_value(&document).unwrap(), expected);
    }

    #[test]
    fn a_document_of_swe_agent() {
        let read = read_value(&json!({
            "environment": "swe_main",
            "trajectory": [
                {"action": "ls -F\n", "observation": "a/\n", "response": "R", "thought": "T",
                 "state": "{}", "query": [], "execution_time": 0.2},
                {"action": "submit\n", "observation": "", "response": "S", "thought": "S"}],
            "history": [
                {"role": "system", "content": "rules", "agent": "main"},
                {"role": "user", "content": [{"type": "text", "text": "issue"}]},
                {"role": "assistant", "content": "R"}],
            "info": {"exit_status": "submitted (exit_cost)", "submission": "diff"},
        }))
        .unwrap();
        assert_eq!(read.instance_id, "owner__repo-9");
        assert_eq!((read.status, read.patch.as_str()), (RolloutStatus::Submitted, "diff"));
        assert_eq!(read.trajectory.messages[1].content, "issue");
        assert_eq!(read.trajectory.messages.len(), 2);
        let turns = &read.trajectory.turns;
        assert_eq!((turns[0].command.as_str(), turns[0].outcome), ("ls -F", TurnOutcome::Executed));
        assert_eq!(turns[1].outcome, TurnOutcome::Submitted);
        let error = read_value(&json!({"steps": []})).unwrap_err();
        assert!(error.contains("no .traj"), "{error}");
    }
}
