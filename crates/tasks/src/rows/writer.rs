//! Writing a task set, or what was found of one, row by row.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use patchwright_core::TaskError;
use serde::Serialize;

use super::io;

/// Writes rows as JSON lines. The file appears whole, with [`RowWriter::finish`], or not at all:
/// until then the rows are in a file beside it, which is removed when the writer is dropped.
pub struct RowWriter {
    path: PathBuf,
    partial: PathBuf,
    /// `None` once the file has its name.
    out: Option<BufWriter<File>>,
    num_rows: usize,
}

impl RowWriter {
    /// Begins a file; makes its directory if there is none.
    ///
    /// # Errors
    /// [`TaskError::Io`].
    pub fn create(path: &Path) -> Result<Self, TaskError> {
        let Some(name) = path.file_name() else {
            let reason = "it is not the name of a file";
            let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
            return Err(io("writing", path, error));
        };
        let mut name = name.to_owned();
        name.push(format!(".{}.partial", std::process::id()));
        let partial = path.with_file_name(name);
        let open = || {
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            File::create(&partial)
        };
        let file = open().map_err(|e| io("writing", path, e))?;
        let out = Some(BufWriter::with_capacity(1 << 18, file));
        Ok(Self { path: path.to_owned(), partial, out, num_rows: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// [`TaskError::Io`].
    pub fn write(&mut self, row: &impl Serialize) -> Result<(), TaskError> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let mut write = || -> std::io::Result<()> {
            serde_json::to_writer(&mut *out, row)?;
            out.write_all(b"\n")
        };
        write().map_err(|e| io("writing", &self.path, e))?;
        self.num_rows += 1;
        Ok(())
    }

    /// Puts the file in its place. Returns the number of rows.
    ///
    /// # Errors
    /// [`TaskError::Io`]; the file is then as it was before.
    pub fn finish(mut self) -> Result<usize, TaskError> {
        let Some(out) = self.out.take() else { return Ok(self.num_rows) };
        let place = || -> std::io::Result<()> {
            let file = out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
            file.sync_all()?;
            std::fs::rename(&self.partial, &self.path)
        };
        place().map_err(|e| {
            let _ = std::fs::remove_file(&self.partial);
            io("writing", &self.path, e)
        })?;
        Ok(self.num_rows)
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}
