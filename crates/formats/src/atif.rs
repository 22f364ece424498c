//! ATIF, the Agent Trajectory Interchange Format (Harbor RFC 0001), version 1.7; 1.0 to 1.7 and
//! later minor versions are read.
//!
//! One document a rollout. A turn's message is what the model wrote; its command, if it ran, is
//! the call of the tool [`TOOL`], and the observation that call's result. Token ids and
//! log-probabilities are in the metrics of each step, so that it can be trained on.

use std::path::Path;

use patchwright_core::{
    FinishReason, Message, PolicyVersion, Role, Rollout, RolloutStatus, TokenSpan, Trajectory,
    Turn, TurnOutcome,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{FormatError, Origin, file_stem, read_bounded};

/// What is written in `schema_version`.
pub const SCHEMA_VERSION: &str = "ATIF-v1.7";

/// Name of the tool that commands are calls of.
pub const TOOL: &str = "command";

/// A rollout as a document, its branches embedded in `subagent_trajectories`. `prompt_ids`: whether
/// each step has the ids of its whole prompt too, which makes a document's size grow with the
/// square of its turns.
pub fn document(rollout: &Rollout, origin: &Origin, prompt_ids: bool) -> Value {
    let stem = file_stem(rollout);
    let mut document = one(&rollout.trajectory, &stem, origin, prompt_ids);
    document["session_id"] = stem.clone().into();
    document["extra"] = extra(rollout);
    let branches: Vec<Value> = rollout
        .branches
        .iter()
        .enumerate()
        .map(|(index, branch)| {
            let number = index + 1;
            let mut embedded = one(branch, &format!("{stem}.b{number}"), origin, prompt_ids);
            embedded["extra"] = json!({"branch": number});
            embedded
        })
        .collect();
    if !branches.is_empty() {
        document["subagent_trajectories"] = branches.into();
    }
    document
}

fn one(trajectory: &Trajectory, name: &str, origin: &Origin, prompt_ids: bool) -> Value {
    let mut steps = Vec::new();
    for message in &trajectory.messages {
        let mut step = json!({
            "step_id": steps.len() + 1,
            "source": source(message.role),
            "message": message.content,
        });
        if message.role == Role::Assistant {
            // A solved example of the prompt, or what another branch said: not of this trajectory,
            // and not to be trained on.
            step["is_copied_context"] = true.into();
        }
        steps.push(step);
    }
    if trajectory.messages.is_empty() && !trajectory.prompt.is_empty() {
        steps.push(json!({"step_id": 1, "source": "user", "message": trajectory.prompt}));
    }
    for turn in &trajectory.turns {
        steps.push(agent_step(trajectory, turn, steps.len() + 1, prompt_ids));
    }
    let sums = trajectory.turns.iter().fold((0, 0), |(prompt, completion), turn| {
        (prompt + turn.sampled.start, completion + turn.sampled.end - turn.sampled.start)
    });
    let num_steps = steps.len();
    json!({
        "schema_version": SCHEMA_VERSION,
        "trajectory_id": name,
        "agent": {
            "name": origin.agent_name,
            "version": origin.agent_version,
            "model_name": origin.model_name,
        },
        "steps": steps,
        "final_metrics": {
            "total_prompt_tokens": sums.0,
            "total_completion_tokens": sums.1,
            "total_steps": num_steps,
        },
    })
}

fn source(role: Role) -> &'static str {
    match role {
        Role::System => "system",
        Role::User | Role::Tool => "user",
        Role::Assistant => "agent",
    }
}

/// What ATIF has no field for.
fn extra(rollout: &Rollout) -> Value {
    json!({
        "instance_id": rollout.instance_id,
        "sibling": rollout.sibling,
        "attempt": rollout.attempt,
        "policy_version": rollout.policy_version,
        "status": rollout.status,
        "failure": rollout.failure,
        "failure_detail": rollout.failure_detail,
        "solved": rollout.solved,
        "reward": rollout.solved.map(|solved| if solved { 1.0 } else { 0.0 }),
        "patch": rollout.patch,
    })
}

fn agent_step(trajectory: &Trajectory, turn: &Turn, step_id: usize, prompt_ids: bool) -> Value {
    let mut step = json!({
        "step_id": step_id,
        "source": "agent",
        "message": turn.text,
        "llm_call_count": 1,
        "extra": {"outcome": turn.outcome, "finish_reason": turn.finish_reason},
    });
    let call_id = format!("call-{step_id}");
    if !turn.command.is_empty() {
        step["tool_calls"] = json!([{
            "tool_call_id": call_id,
            "function_name": TOOL,
            "arguments": {"command": turn.command},
        }]);
    }
    if !turn.observation.is_empty() {
        let mut result = json!({"content": turn.observation});
        if !turn.command.is_empty() {
            result["source_call_id"] = call_id.into();
        }
        step["observation"] = json!({"results": [result]});
    }
    let TokenSpan { start, end } = turn.sampled;
    if end > start {
        let mut metrics = json!({
            "prompt_tokens": start,
            "completion_tokens": end - start,
            "completion_token_ids": trajectory.tokens[start..end],
            "logprobs": trajectory.sampler_logprobs[start..end],
        });
        if prompt_ids {
            metrics["prompt_token_ids"] = json!(trajectory.tokens[..start]);
        }
        step["metrics"] = metrics;
    }
    step
}

#[derive(Deserialize)]
struct Document {
    schema_version: String,
    #[serde(default)]
    session_id: Option<String>,
    #[serde(default)]
    trajectory_id: Option<String>,
    steps: Vec<Step>,
    #[serde(default)]
    extra: Option<Map<String, Value>>,
    #[serde(default)]
    subagent_trajectories: Option<Vec<Embedded>>,
}

/// What is read of an embedded trajectory.
#[derive(Deserialize)]
struct Embedded {
    steps: Vec<Step>,
}

#[derive(Deserialize)]
struct Step {
    source: String,
    message: Content,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default)]
    tool_calls: Option<Vec<ToolCall>>,
    #[serde(default)]
    observation: Option<Observation>,
    #[serde(default)]
    extra: Option<Map<String, Value>>,
    #[serde(default)]
    is_copied_context: Option<bool>,
}

#[derive(Deserialize)]
struct ToolCall {
    function_name: String,
    arguments: Map<String, Value>,
}

#[derive(Deserialize)]
struct Observation {
    results: Vec<ObservationResult>,
}

#[derive(Deserialize)]
struct ObservationResult {
    #[serde(default)]
    content: Option<Content>,
}

/// Text, or parts of which some are text.
#[derive(Deserialize, Serialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Map<String, Value>>),
}

impl Content {
    /// The text; a note in place of each part that is none.
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Parts(parts) => {
                let texts = parts.iter().map(|part| match part.get("text") {
                    Some(Value::String(text)) => text.clone(),
                    _ => match part.get("type") {
                        Some(Value::String(kind)) => format!("[{kind}]"),
                        _ => "[?]".to_owned(),
                    },
                });
                texts.collect::<Vec<_>>().join("\n")
            }
        }
    }
}

/// Reads a document. The rollout has text and no tokens: those of a document are of a tokenizer
/// that it does not name. What others wrote has no grade.
///
/// # Errors
/// [`FormatError`] when the file cannot be read or is no ATIF document.
pub fn read(path: &Path) -> Result<Rollout, FormatError> {
    let place = path.display().to_string();
    let bytes = read_bounded(path)?;
    let document: Document = serde_json::from_slice(&bytes)
        .map_err(|error| FormatError::malformed(&*place, format!("no ATIF document: {error}")))?;
    let version = document.schema_version.strip_prefix("ATIF-v1.");
    if version.is_none_or(|minor| minor.parse::<u32>().is_err()) {
        let reason = format!(
            "schema_version is {:?}, expected ATIF-v1.0 to {SCHEMA_VERSION}",
            document.schema_version
        );
        return Err(FormatError::malformed(place, reason));
    }
    rollout(document).map_err(|reason| FormatError::malformed(place, reason))
}

fn trajectory(steps: &[Step]) -> Result<Trajectory, String> {
    let mut trajectory = Trajectory::default();
    for (index, step) in steps.iter().enumerate() {
        let copied = step.is_copied_context == Some(true);
        match step.source.as_str() {
            "agent" if copied => said(&mut trajectory, Role::Assistant, step.message.text()),
            "agent" => trajectory.turns.push(turn(step)),
            "user" | "system" if trajectory.turns.is_empty() => {
                let role = if step.source == "user" { Role::User } else { Role::System };
                said(&mut trajectory, role, step.message.text());
            }
            // Said to the agent while it worked: part of what it saw before its next turn.
            "user" | "system" => {
                let text = [step.message.text(), observed(step)].join("\n");
                if let Some(turn) = trajectory.turns.last_mut() {
                    join(&mut turn.observation, text.trim_end());
                }
            }
            other => return Err(format!("step {}: source {other:?}", index + 1)),
        }
    }
    Ok(trajectory)
}

fn rollout(document: Document) -> Result<Rollout, String> {
    let trajectory = trajectory(&document.steps)?;
    let embedded = document.subagent_trajectories.unwrap_or_default();
    let branch = |(index, embedded): (usize, &Embedded)| {
        let place = |error| format!("subagent_trajectories[{index}], {error}");
        self::trajectory(&embedded.steps).map_err(place)
    };
    let branches = embedded.iter().enumerate().map(branch).collect::<Result<_, _>>()?;
    let extra = document.extra.unwrap_or_default();
    let own = |key: &str| extra.get(key).cloned().unwrap_or_default();
    let instance_id = match own("instance_id") {
        Value::String(id) => Some(id),
        _ => document.trajectory_id.or(document.session_id),
    };
    let submitted =
        trajectory.turns.last().is_some_and(|turn| turn.outcome == TurnOutcome::Submitted);
    let status = serde_json::from_value(own("status")).unwrap_or(if submitted {
        RolloutStatus::Submitted
    } else {
        RolloutStatus::TurnLimit
    });
    Ok(Rollout {
        instance_id: instance_id.ok_or("it names no instance, session or trajectory")?,
        sibling: serde_json::from_value(own("sibling")).unwrap_or(0),
        attempt: serde_json::from_value(own("attempt")).unwrap_or(0),
        policy_version: serde_json::from_value(own("policy_version"))
            .unwrap_or(PolicyVersion::default()),
        status,
        failure: serde_json::from_value(own("failure")).unwrap_or(None),
        failure_detail: serde_json::from_value(own("failure_detail")).unwrap_or(None),
        solved: serde_json::from_value(own("solved")).unwrap_or(None),
        patch: own("patch").as_str().unwrap_or_default().to_owned(),
        trajectory,
        branches,
    })
}

fn said(trajectory: &mut Trajectory, role: Role, content: String) {
    trajectory.messages.push(Message { role, content });
}

fn join(text: &mut String, more: &str) {
    if !text.is_empty() && !more.is_empty() {
        text.push('\n');
    }
    text.push_str(more);
}

fn observed(step: &Step) -> String {
    let mut text = String::new();
    for result in step.observation.iter().flat_map(|observation| &observation.results) {
        join(&mut text, &result.content.as_ref().map(Content::text).unwrap_or_default());
    }
    text
}

fn turn(step: &Step) -> Turn {
    let calls = step.tool_calls.as_deref().unwrap_or_default();
    let commands: Vec<String> = calls.iter().map(command).collect();
    let own = |key: &str| step.extra.as_ref().and_then(|extra| extra.get(key)).cloned();
    let outcome = own("outcome").and_then(|value| serde_json::from_value(value).ok());
    let mut text = step.reasoning_content.clone().unwrap_or_default();
    join(&mut text, &step.message.text());
    Turn {
        text,
        outcome: outcome.unwrap_or(if commands.is_empty() {
            TurnOutcome::FormatError
        } else {
            TurnOutcome::Executed
        }),
        command: commands.join("\n"),
        observation: observed(step),
        sampled: TokenSpan { start: 0, end: 0 },
        finish_reason: own("finish_reason")
            .and_then(|value| serde_json::from_value(value).ok())
            .unwrap_or(FinishReason::Stop),
    }
}

/// A call as a command: its argument `command`, or the call itself as JSON.
fn command(call: &ToolCall) -> String {
    match call.arguments.get("command").or_else(|| call.arguments.get("keystrokes")) {
        Some(Value::String(command)) => command.clone(),
        _ => json!({"name": call.function_name, "arguments": call.arguments}).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use patchwright_core::{TokenSpan, TurnOutcome};
    use serde_json::json;

    use super::{document, read};
    use crate::testing::{foreign, origin, rollouts};

    fn read_value(value: &serde_json::Value) -> Result<patchwright_core::Rollout, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("trajectory.json");
        std::fs::write(&path, value.to_string()).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    /// All but the tokens comes back.
    #[test]
    fn a_round_trip_keeps_the_text() {
        for rollout in rollouts().into_iter().chain(foreign()) {
            let mut expected = rollout.clone();
            let branches = expected.branches.iter_mut();
            for trajectory in std::iter::once(&mut expected.trajectory).chain(branches) {
                (trajectory.tokens, trajectory.sampler_logprobs) = (vec![], vec![]);
                (trajectory.num_prompt_tokens, trajectory.prompt) = (0, String::new());
                for turn in &mut trajectory.turns {
                    turn.sampled = TokenSpan { start: 0, end: 0 };
                }
            }
            let read = read_value(&document(&rollout, &origin(), false)).unwrap();
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn tokens_and_log_probabilities_are_written() {
        let steps = document(&rollouts()[0], &origin(), true)["steps"].clone();
        assert_eq!(steps[2]["metrics"]["completion_token_ids"], json!([103, 104, 105]));
        assert_eq!(steps[2]["metrics"]["prompt_token_ids"], json!([u32::MAX, 101, 102]));
        assert_eq!(steps[2]["metrics"]["logprobs"], json!([-0.5, -0.25, -1.0]));
        assert_eq!(steps[3].get("tool_calls"), None, "a format error called nothing");
    }

    #[test]
    fn documents_of_others() {
        let read = read_value(&json!({
            "schema_version": "ATIF-v1.5", "session_id": "s",
            "agent": {"name": "x", "version": "1"},
            "steps": [
                {"step_id": 1, "source": "user", "message": [{"type": "text", "text": "fix"}]},
                {"step_id": 2, "source": "agent", "message": "m", "reasoning_content": "r",
                 "tool_calls": [
                    {"tool_call_id": "1", "function_name": "bash", "arguments": {"command": "ls"}},
                    {"tool_call_id": "2", "function_name": "edit", "arguments": {"line": 3}}],
                 "observation": {"results": [
                    {"source_call_id": "1", "content": "a"},
                    {"source_call_id": "2", "content": [{"type": "image"}]}]}},
                {"step_id": 3, "source": "system", "message": "hurry"},
            ],
        }))
        .unwrap();
        assert_eq!((read.instance_id.as_str(), read.solved), ("s", None));
        let turn = &read.trajectory.turns[0];
        assert_eq!(turn.text, "r\nm");
        assert_eq!(turn.command, "ls\n{\"arguments\":{\"line\":3},\"name\":\"edit\"}");
        assert_eq!(turn.observation, "a\n[image]\nhurry");
        assert_eq!(turn.outcome, TurnOutcome::Executed);
    }

    #[test]
    fn what_is_no_atif_is_refused() {
        let error = read_value(&json!({"steps": []})).unwrap_err();
        assert!(error.contains("schema_version"), "{error}");
        let error = read_value(&json!({"schema_version": "ATIF-v2.0", "steps": []})).unwrap_err();
        assert!(error.contains("expected ATIF-v1.0 to ATIF-v1.7"), "{error}");
        let strange = json!({"schema_version": "ATIF-v1.7", "session_id": "s",
                             "steps": [{"source": "ghost", "message": ""}]});
        let error = read_value(&strange).unwrap_err();
        assert!(error.contains("step 1: source \"ghost\""), "{error}");
    }
}
