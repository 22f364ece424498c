//! Trajectories, samples and predictions in the formats of others, out and in.
//!
//! The hub is [`Rollout`]: every format is written from it, and what can be read becomes one.
//!
//! | format | out | in | read by |
//! |---|---|---|---|
//! | [`native`]: one rollout a line, tokens and all | yes | yes | this program |
//! | [`atif`]: Agent Trajectory Interchange Format 1.7 | yes | yes | Harbor, viewers, SFT pipelines |
//! | [`swe_agent`]: `.traj` | yes | yes | SWE-agent and its inspectors |
//! | [`mini_swe_agent`]: `.traj.json` | yes | no | mini-swe-agent's inspector |
//! | [`chat`]: messages, for supervised fine-tuning | yes | no | trainers that take chat messages |
//! | [`columns`]: tokens, masks and log-probabilities as Parquet | yes | no | pyarrow, pandas, datasets |
//! | [`predictions`]: `preds.json`, `.jsonl`, and a report | yes | no | SWE-bench |
//!
//! A rollout of a foreign agent may have branches beside its main trajectory: rows of their own in
//! [`columns`], conversations of their own in [`chat`], embedded in [`atif`]; `.traj`,
//! `.traj.json` and predictions have the main one alone.
//!
//! What a format cannot hold is left out, never invented: a rollout that came from a text format
//! has no tokens, and an export that needs them says so.

use std::io;
use std::path::PathBuf;

use patchwright_core::Rollout;

pub mod atif;
pub mod chat;
pub mod columns;
pub mod mini_swe_agent;
pub mod native;
pub mod predictions;
pub mod swe_agent;

#[cfg(test)]
mod testing;

/// Longest document or line that is read: 256 MiB.
pub const MAX_DOCUMENT_BYTES: u64 = 256 << 20;

/// Names what made the rollouts, for formats that want to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The agent, such as `patchwright`.
    pub agent_name: String,
    /// Its version.
    pub agent_version: String,
    /// The model that it asked; predictions are filed under it.
    pub model_name: String,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Rollouts that something was written of.
    pub num_rollouts: usize,
    /// Rows or lines: one for each of their trajectories that the format takes.
    pub num_rows: usize,
}

/// Something that cannot be written or read in a format.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// A file cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A document is not what its format says.
    #[error("{place}: {reason}")]
    Malformed {
        /// File, and line or step where there is one.
        place: String,
        /// What is wrong, and what was expected.
        reason: String,
    },
    /// The format needs what the rollout does not have.
    #[error("{rollout}: {reason}")]
    Lacking {
        /// The rollout.
        rollout: String,
        /// What is missing, and how to get it.
        reason: String,
    },
}

impl FormatError {
    pub(crate) fn io(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self + '_ {
        |error| Self::Io { path: path.to_owned(), error }
    }

    pub(crate) fn malformed(place: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Malformed { place: place.into(), reason: reason.into() }
    }
}

/// A file name for a rollout, unique among the siblings, attempts and policies of a run:
/// `INSTANCE.vVERSION.SIBLING`, and `.aATTEMPT` where it is not the first. Characters that file systems or shells trip over become `_`.
pub fn file_stem(rollout: &Rollout) -> String {
    let id: String = rollout
        .instance_id
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' })
        .collect();
    let id = id.trim_start_matches('.');
    let stem = format!("{id}.v{}.{}", rollout.policy_version, rollout.sibling);
    if rollout.attempt == 0 { stem } else { format!("{stem}.a{}", rollout.attempt) }
}

/// Reads a file of at most [`MAX_DOCUMENT_BYTES`].
pub(crate) fn read_bounded(path: &std::path::Path) -> Result<Vec<u8>, FormatError> {
    use std::io::Read;
    let file = std::fs::File::open(path).map_err(FormatError::io(path))?;
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES + 1).read_to_end(&mut bytes).map_err(FormatError::io(path))?;
    if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
        let reason = format!("is larger than {} MiB", MAX_DOCUMENT_BYTES >> 20);
        return Err(FormatError::malformed(path.display().to_string(), reason));
    }
    Ok(bytes)
}
