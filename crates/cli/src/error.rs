//! Errors at the edge: what happened, in one or two lines, and the exit code it means.

use std::fmt::Display;
use std::process::ExitCode;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The request is wrong: arguments, a recipe, a file that was named. Exit code 2.
    #[error("{0}")]
    Usage(String),
    /// The request is right and could not be done. Exit code 1.
    #[error("{0}")]
    Failed(String),
    /// It was asked to stop. What there is to say was said. Exit code 130.
    #[error("interrupted")]
    Interrupted,
}

impl CliError {
    /// A wrong request.
    pub fn usage(what: impl Display) -> Self {
        Self::Usage(what.to_string())
    }

    /// A failure.
    pub fn failed(what: impl Display) -> Self {
        Self::Failed(what.to_string())
    }

    /// The exit code of the design: 1 failed, 2 wrong use, 130 interrupted.
    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Failed(_) => 1,
            Self::Usage(_) => 2,
            Self::Interrupted => 130,
        })
    }
}
