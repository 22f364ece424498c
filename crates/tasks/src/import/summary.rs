//! Importing a whole set.

use std::path::Path;

use patchwright_core::TaskError;
use serde::Serialize;

use super::{BadKind, BadRow, TaskReader};
use crate::rows::RowWriter;

/// Bad rows that a summary names; the others are only counted.
pub const MAX_REPORTED: usize = 1000;

/// What became of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ImportSummary {
    /// Rows that were found, good or bad.
    pub num_read: usize,
    /// Rows in the new file.
    pub num_written: usize,
    /// Rows that could not be used.
    pub num_bad: usize,
    /// Rows whose `instance_id` came before.
    pub num_duplicates: usize,
    /// Files that could not be read to their end.
    pub num_broken_files: usize,
    /// Rows that name neither a container image nor a command that runs their tests: they can be
    /// kept, but nothing can be run.
    pub num_without_environment: usize,
    /// Whether it ended before the input did.
    pub stopped: bool,
    /// What was wrong, [`MAX_REPORTED`] at most.
    pub problems: Vec<BadRow>,
}

impl ImportSummary {
    fn count(&mut self, bad: BadRow) {
        match bad.kind {
            BadKind::Row => self.num_bad += 1,
            BadKind::Duplicate => self.num_duplicates += 1,
            BadKind::File => self.num_broken_files += 1,
        }
        self.num_read += usize::from(bad.kind != BadKind::File);
        if self.problems.len() < MAX_REPORTED {
            self.problems.push(bad);
        }
    }
}

/// Writes all instances of a reader as one JSONL file. `strict` writes nothing when a row is bad,
/// and stops at it. `proceed` is asked with bytes done and all bytes, about every hundred rows; at
/// `false` nothing is written.
///
/// # Errors
/// [`TaskError::Io`] when the file cannot be written.
pub fn import(
    mut reader: TaskReader,
    out: &Path,
    strict: bool,
    mut proceed: impl FnMut(u64, u64, &ImportSummary) -> bool,
) -> Result<ImportSummary, TaskError> {
    let mut writer = RowWriter::create(out)?;
    let mut summary = ImportSummary::default();
    while let Some(item) = reader.next() {
        match item {
            Ok(instance) => {
                summary.num_read += 1;
                let runs = instance.image().is_some()
                    || !instance.install_config.test_cmd.is_empty()
                    || !instance.files.is_empty();
                summary.num_without_environment += usize::from(!runs);
                writer.write(&instance)?;
            }
            Err(bad) => {
                summary.count(bad);
                summary.stopped |= strict;
            }
        }
        if summary.num_read.is_multiple_of(128) {
            let (done, total) = reader.progress();
            summary.stopped |= !proceed(done, total, &summary);
        }
        if summary.stopped {
            return Ok(summary);
        }
    }
    summary.num_written = writer.finish()?;
    Ok(summary)
}
