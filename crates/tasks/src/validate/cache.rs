//! Finished task sets on disk, under the hash of all that they depend on.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use patchwright_core::{TaskError, TaskInstance};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

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

    /// Writes the set beside its place and moves it there, so that a reader finds all or nothing.
    pub fn write(&self, instances: &[TaskInstance], report: &BuildReport) -> Result<(), TaskError> {
        let mut body = String::new();
        for instance in instances {
            let line = serde_json::to_string(instance)
                .map_err(|e| self.failure(std::io::Error::other(e)))?;
            body.push_str(&line);
            body.push('\n');
        }
        let head = Head { report: report.clone(), sha256: hex(body.as_bytes()) };
        let head =
            serde_json::to_string(&head).map_err(|e| self.failure(std::io::Error::other(e)))?;
        let partial = self.path.with_extension(format!("{}.partial", std::process::id()));
        let write = || -> std::io::Result<()> {
            if let Some(dir) = self.path.parent() {
                fs::create_dir_all(dir)?;
            }
            let mut file = fs::File::create(&partial)?;
            writeln!(file, "{head}")?;
            file.write_all(body.as_bytes())?;
            file.sync_all()?;
            fs::rename(&partial, &self.path)
        };
        write().map_err(|e| {
            let _ = fs::remove_file(&partial);
            self.failure(e)
        })
    }

    fn failure(&self, source: std::io::Error) -> TaskError {
        TaskError::Io { context: format!("writing the task cache {}", self.path.display()), source }
    }
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
