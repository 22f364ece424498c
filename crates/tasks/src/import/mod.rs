//! Task sets of others: SWE-bench, SWE-bench Verified and SWE-rebench (V1, V2) rows as JSON lines
//! (also `.gz` and `.zst`), JSON arrays and Parquet, and Harbor task directories; files or
//! directories of them, read one row at a time.
//!
//! A row that is bad is an item like any other ([`BadRow`]): whoever reads decides whether to go
//! on. What is made uniform on the way is in `normalise`; everything else of a row is kept.

mod files;
mod json;
mod normalise;
mod parquet;
mod summary;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use patchwright_core::{TaskError, TaskInstance};
use serde::Serialize;

pub use files::{Format, InputFile};
pub use summary::{ImportSummary, MAX_REPORTED, import};

/// Why an item of the input is no instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BadKind {
    /// The row cannot be used; those after it can.
    Row,
    /// An instance of the same `instance_id` came before; that one counts.
    Duplicate,
    /// The rest of the file cannot be read.
    File,
}

/// An item of the input that is no instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadRow {
    /// What kind of trouble it is.
    pub kind: BadKind,
    /// The file, or the task's directory.
    pub path: String,
    /// Line of a JSONL file, else number of the row, both from 1; 0 for the file as a whole.
    pub row: usize,
    /// What is wrong, beginning with the field where there is one.
    pub reason: String,
}

impl fmt::Display for BadRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.row {
            0 => write!(f, "{}: {}", self.path, self.reason),
            row => write!(f, "{}:{row}: {}", self.path, self.reason),
        }
    }
}

/// One item of a file, before it is an instance.
enum Raw {
    /// JSON text.
    Json(Vec<u8>),
    /// A value that was put together, as of Parquet.
    Value(serde_json::Value),
    /// An instance that needs nothing more.
    Instance(Box<TaskInstance>),
}

/// The instance of one row's JSON text.
pub(crate) fn instance_of(bytes: &[u8]) -> Result<TaskInstance, String> {
    normalise::instance(Raw::Json(bytes.to_vec()))
}

/// Trouble in a file.
struct Trouble {
    reason: String,
    /// Nothing after it can be read.
    fatal: bool,
}

impl Trouble {
    fn row(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), fatal: false }
    }

    fn fatal(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), fatal: true }
    }
}

/// The rows of one file with their numbers.
type RawRows = Box<dyn Iterator<Item = (usize, Result<Raw, Trouble>)>>;

/// Reads instances of many files one at a time, in the order of the inputs and, in a directory, of
/// the files' paths.
pub struct TaskReader {
    /// Files still to come, the next one last.
    files: Vec<InputFile>,
    current: Option<(InputFile, RawRows)>,
    /// Where each `instance_id` was seen: index of the file's path, row.
    seen: HashMap<String, (u32, usize)>,
    paths: Vec<String>,
    bytes_done: u64,
    bytes_in_file: Arc<AtomicU64>,
    bytes_total: u64,
}

impl TaskReader {
    /// Finds the files of `inputs`; opens none yet.
    ///
    /// # Errors
    /// [`TaskError::Io`] when an input does not exist, or is a directory without task files.
    pub fn open(inputs: &[PathBuf], format: Format) -> Result<Self, TaskError> {
        let mut files = Vec::new();
        for input in inputs {
            files.extend(files::find(input, format)?);
        }
        let bytes_total = files.iter().map(|file| file.bytes).sum();
        files.reverse();
        Ok(Self {
            files,
            current: None,
            seen: HashMap::new(),
            paths: Vec::new(),
            bytes_done: 0,
            bytes_in_file: Arc::default(),
            bytes_total,
        })
    }

    /// Bytes of input read so far, and all there are.
    pub fn progress(&self) -> (u64, u64) {
        (self.bytes_done + self.bytes_in_file.load(Ordering::Relaxed), self.bytes_total)
    }

    fn close(&mut self) {
        if let Some((file, _)) = self.current.take() {
            self.bytes_done += file.bytes;
            self.bytes_in_file.store(0, Ordering::Relaxed);
        }
    }

    fn bad(&self, kind: BadKind, row: usize, reason: String) -> BadRow {
        let path = self.paths.last().cloned().unwrap_or_default();
        BadRow { kind, path, row, reason }
    }

    fn finish_row(&mut self, row: usize, raw: Raw) -> Result<TaskInstance, BadRow> {
        let instance =
            normalise::instance(raw).map_err(|reason| self.bad(BadKind::Row, row, reason))?;
        let place = ((self.paths.len().max(1) - 1) as u32, row);
        if let Some((path, earlier)) = self.seen.get(&instance.instance_id) {
            let path = self.paths.get(*path as usize).map_or("", String::as_str);
            let id = &instance.instance_id;
            let reason = format!("instance_id: {id} was already at {path}:{earlier}");
            return Err(self.bad(BadKind::Duplicate, row, reason));
        }
        self.seen.insert(instance.instance_id.clone(), place);
        Ok(instance)
    }
}

impl Iterator for TaskReader {
    type Item = Result<TaskInstance, BadRow>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.current.is_none() {
                let file = self.files.pop()?;
                self.paths.push(file.path.display().to_string());
                match file.rows(&self.bytes_in_file) {
                    Ok(rows) => self.current = Some((file, rows)),
                    Err(reason) => {
                        self.bytes_done += file.bytes;
                        return Some(Err(self.bad(BadKind::File, 0, reason)));
                    }
                }
            }
            let (_, rows) = self.current.as_mut()?;
            match rows.next() {
                None => self.close(),
                Some((row, Ok(raw))) => return Some(self.finish_row(row, raw)),
                Some((row, Err(trouble))) => {
                    let kind = if trouble.fatal { BadKind::File } else { BadKind::Row };
                    let bad = self.bad(kind, row, trouble.reason);
                    if trouble.fatal {
                        self.close();
                    }
                    return Some(Err(bad));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
