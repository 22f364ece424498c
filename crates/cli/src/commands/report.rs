//! `patchwright report`.

use std::process::ExitCode;

use crate::args::ReportArgs;
use crate::error::CliError;
use crate::output;
use crate::report::{self, ReportError};

/// Renders the page again and shows the table.
pub fn run(args: &ReportArgs) -> Result<ExitCode, CliError> {
    let journal = args.dir.join("journal.jsonl");
    if !journal.is_file() {
        return Err(CliError::usage(format!(
            "{}: not a run directory, it has no journal.jsonl",
            args.dir.display()
        )));
    }
    let (path, evaluations) = report::write(&args.dir)?;
    output::evaluations(&evaluations, args.json)?;
    output::note(format!("Wrote {}", path.display()));
    Ok(ExitCode::SUCCESS)
}

impl From<ReportError> for CliError {
    fn from(error: ReportError) -> Self {
        Self::failed(error)
    }
}
