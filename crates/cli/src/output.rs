//! Standard output is data, standard error is for people. Colours are dropped where they are not
//! wanted: no terminal, `NO_COLOR`; `CLICOLOR_FORCE` keeps them.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anstyle::{AnsiColor, Style};
use patchwright_train::metrics::EvaluationResult;
use serde::Serialize;

use crate::error::CliError;
use crate::table;

const ERROR: Style = AnsiColor::Red.on_default().bold();

/// Writes data. A reader that has seen enough (`| head`) is no failure.
///
/// # Errors
/// When standard output cannot be written, such as on a full disk.
pub fn data(text: &str) -> Result<(), CliError> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As [`data`].
pub fn json(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string_pretty(value).map_err(CliError::failed)?;
    data(&(text + "\n"))
}

/// What `--json` prints of measurements: the same shape as in `report.json`.
#[derive(Serialize)]
struct Evaluations<'a> {
    schema_version: u32,
    evaluations: &'a [EvaluationResult],
}

/// Writes measurements as JSON, or as the table that a run ends with.
///
/// # Errors
/// As [`data`].
pub fn evaluations(evaluations: &[EvaluationResult], as_json: bool) -> Result<(), CliError> {
    if as_json {
        json(&Evaluations { schema_version: 1, evaluations })
    } else {
        data(&table::evaluations(evaluations))
    }
}

/// Writes a value as one line of JSON.
///
/// # Errors
/// As [`data`].
pub fn json_line(value: &impl Serialize) -> Result<(), CliError> {
    let text = serde_json::to_string(value).map_err(CliError::failed)?;
    data(&(text + "\n"))
}

/// Tells people something.
pub fn note(text: impl Display) {
    anstream::eprintln!("{text}");
}

/// Tells people what went wrong.
pub fn error(error: &impl Display) {
    anstream::eprintln!("{ERROR}error:{ERROR:#} {error}");
}
