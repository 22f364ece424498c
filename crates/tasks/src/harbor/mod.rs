//! Harbor task directories, the successor of Terminal-Bench's, in and out.
//!
//! ```text
//! <task>/instruction.md          the issue
//!        task.toml               settings; [metadata] is free
//!        environment/Dockerfile  what the agent works in
//!        tests/test.sh           writes the reward to /logs/verifier/reward.txt
//!        solution/solve.sh       applies the gold patch
//! ```
//! Only `instruction.md` and what `environment` builds are seen by an agent there, so everything of
//! a row that is hidden goes below `tests/` and `solution/`.
//!
//! Nothing is lost either way. A row that is written takes all of its fields along as
//! `tests/patchwright.json`. A directory that is read keeps all its files in the row's field
//! `harbor`, from which they are written again byte for byte; a directory that is just what would
//! be written for its row needs no such field.

mod read;
mod render;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use patchwright_core::TaskInstance;
use serde_json::{Map, Value, json};

pub use read::read_task;

/// Longest file of a task that is read, in bytes.
pub const MAX_FILE_BYTES: u64 = 16 << 20;

/// All files of a task together, in bytes.
pub const MAX_TASK_BYTES: u64 = 64 << 20;

/// Files of a task at most.
pub const MAX_FILES: usize = 4096;

/// The row as this program wrote it.
const ROW_FILE: &str = "tests/patchwright.json";

/// The field that keeps the files of a directory that others made.
const FIELD: &str = "harbor";

/// A directory that cannot be read or written as a Harbor task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct HarborError {
    /// The task's directory.
    pub path: PathBuf,
    /// What is wrong, beginning with the file where there is one.
    pub reason: String,
}

/// A file of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TaskFile {
    bytes: Vec<u8>,
    executable: bool,
}

impl TaskFile {
    fn text(text: impl Into<String>) -> Self {
        Self { bytes: text.into().into_bytes(), executable: false }
    }

    fn script(text: impl Into<String>) -> Self {
        Self { executable: true, ..Self::text(text) }
    }
}

/// The files of a task by path below its directory, with `/`.
type Files = BTreeMap<String, TaskFile>;

/// Writes a task as a directory below `out`, named after its `instance_id`. Returns its path.
///
/// # Errors
/// [`HarborError`] when a path would leave the directory, when there is such a directory already,
/// or when it cannot be written.
pub fn write_task(out: &Path, instance: &TaskInstance) -> Result<PathBuf, HarborError> {
    let dir = out.join(render::dir_name(&instance.instance_id));
    let error = |reason: String| HarborError { path: dir.clone(), reason };
    let files = render::render(instance).map_err(error)?;
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(out)?;
        std::fs::create_dir(&dir)?;
        for (path, file) in &files {
            let path = dir.join(path);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent)?;
            }
            std::fs::write(&path, &file.bytes)?;
            if file.executable {
                use std::os::unix::fs::PermissionsExt;
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
            }
        }
        Ok(())
    };
    write().map_err(|e| error(format!("writing it: {e}")))?;
    Ok(dir)
}

/// The files as the value of the row's field `harbor`.
fn to_value(files: &Files) -> Value {
    let mut texts = Map::new();
    let mut executable = Vec::new();
    for (path, file) in files {
        let value = match std::str::from_utf8(&file.bytes) {
            Ok(text) => Value::String(text.to_owned()),
            Err(_) => json!({ "base64": BASE64_STANDARD.encode(&file.bytes) }),
        };
        texts.insert(path.clone(), value);
        if file.executable {
            executable.push(Value::String(path.clone()));
        }
    }
    json!({ "files": texts, "executable": executable })
}

/// The files of a row's field `harbor`.
fn from_value(value: &Value) -> Result<Files, String> {
    let files = value["files"].as_object().ok_or("harbor.files: expected an object")?;
    let executables: Vec<&str> = match value["executable"].as_array() {
        Some(paths) => paths.iter().filter_map(Value::as_str).collect(),
        None => Vec::new(),
    };
    let mut out = Files::new();
    for (path, value) in files {
        let bytes = match (value.as_str(), value["base64"].as_str()) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(text)) => {
                let decoded = BASE64_STANDARD.decode(text);
                decoded.map_err(|error| format!("harbor.files.{path}: {error}"))?
            }
            (None, None) => return Err(format!("harbor.files.{path}: expected text or base64")),
        };
        let executable = executables.contains(&path.as_str());
        out.insert(path.clone(), TaskFile { bytes, executable });
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
