//! Rollouts for tests.

use patchwright_core::Rollout;

use crate::Origin;

/// A solved rollout of two turns and a format error, and one that the infrastructure failed.
pub fn rollouts() -> Vec<Rollout> {
    let lines = include_str!("../tests/rollouts.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What a gateway kept of a foreign agent: an attempt that the agent left, and one that solved the
/// task after a reply that the agent left out of its history, which is a branch.
pub fn foreign() -> Vec<Rollout> {
    let lines = include_str!("../tests/foreign.jsonl").lines();
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Who made them.
pub fn origin() -> Origin {
    Origin {
        agent_name: "patchwright".to_owned(),
        agent_version: "0.1.0".to_owned(),
        model_name: "org/base".to_owned(),
    }
}
