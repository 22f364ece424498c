//! Standard output is data, standard error is for people. Colours are dropped where they are not
//! wanted: no terminal, `NO_COLOR`; `CLICOLOR_FORCE` keeps them.

use std::fmt::Display;
use std::io::{ErrorKind, Write};

use anstyle::{AnsiColor, Style};
use serde::Serialize;

use crate::error::CliError;

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
