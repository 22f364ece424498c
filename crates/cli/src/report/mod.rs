//! `report.html`: one self-contained page about a run, rendered from its journal.

mod agreement;
mod charts;
mod curves;
mod run;
mod view;

use std::path::{Path, PathBuf};

use askama::Template;
use patchwright_train::journal::JournalError;
use patchwright_train::metrics::EvaluationResult;

pub use run::Run;

/// A report that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The run's journal.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The page cannot be filled in; a defect of this program.
    #[error("report.html: {0}")]
    Render(#[from] askama::Error),
    /// The page cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// Renders `report.html` into a run directory and gives its path and the run's evaluations. The
/// old page stays until the new one is whole.
///
/// # Errors
/// [`ReportError`].
pub fn write(dir: &Path) -> Result<(PathBuf, Vec<EvaluationResult>), ReportError> {
    let run = Run::read(dir)?;
    let html = view::Page::new(&run).render()?;
    let path = dir.join("report.html");
    let partial = dir.join("report.html.part");
    std::fs::write(&partial, html)
        .and_then(|()| std::fs::rename(&partial, &path))
        .map_err(|source| ReportError::Io { path: path.display().to_string(), source })?;
    Ok((path, run.evaluations))
}
