//! Finished task sets on disk, under the hash of all that they depend on.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use patchwright_core::{TaskError, TaskInstance};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::finished;

use super::{BuildOptions, BuildReport, EmbeddedRepo, driver::DRIVER};

/// Raised whenever the same input would give another set: the rules of injection, the wording of
/// issues, the shape of hidden tests.
const VERSION: u32 = 1;

/// The place of one task set in the cache.
pub(super) struct Entry {
    path: PathBuf,
}

/// The first line of an entry; the instances follow, one a line.
#[derive(Serialize, Deserialize)]
struct Head {
    report: BuildReport,
    /// Hash of the lines that follow: a damaged entry is built again.
    sha256: String,
}

impl Entry {
    pub fn new(
        dir: &Path,
        repos: &[EmbeddedRepo],
        options: &BuildOptions,
    ) -> Result<Self, TaskError> {
        let key = serde_json::to_vec(&(VERSION, DRIVER, options, repos))
            .map_err(|e| TaskError::Validation(format!("the key of the cache: {e}")))?;
        Ok(Self { path: dir.join(format!("tasks-{}.jsonl", &hex(&key)[..32])) })
    }

    /// The set, if it is there and whole.
    pub fn read(&self) -> Option<(Vec<TaskInstance>, BuildReport)> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (head, body) = text.split_once('\n')?;
        let head: Head = serde_json::from_str(head).ok()?;
        if head.sha256 != hex(body.as_bytes()) {
            return None;
        }
        let instances: Result<Vec<TaskInstance>, _> =
            body.lines().map(serde_json::from_str).collect();
        Some((instances.ok()?, BuildReport { cached: true, ..head.report }))
    }

    /// Writes the set so that a reader finds all or nothing.
    pub fn write(&self, instances: &[TaskInstance], report: &BuildReport) -> Result<(), TaskError> {
        let line = |value: Result<String, serde_json::Error>| {
            value.map(|text| text + "\n").map_err(|e| TaskError::Io {
                context: format!("writing {}", self.path.display()),
                source: e.into(),
            })
        };
        let mut body = String::new();
        for instance in instances {
            body += &line(serde_json::to_string(instance))?;
        }
        let head = Head { report: report.clone(), sha256: hex(body.as_bytes()) };
        let text = line(serde_json::to_string(&head))? + &body;
        finished::write_bytes(&self.path, text.as_bytes())
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
