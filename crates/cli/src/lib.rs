//! The `patchwright` program: arguments in, tables and pages out. What it does is in the other
//! crates; this one asks them and tells people.

pub mod args;
mod commands;
pub mod error;
mod numbers;
mod output;
mod progress;
pub mod report;
mod signals;
mod table;

use std::process::ExitCode;

use clap::Parser;

use args::Cli;
use error::CliError;

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help goes to standard output with code 0, mistakes to standard error with code 2.
        Err(error) => error.exit(),
    };
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            if !matches!(error, CliError::Interrupted) {
                output::error(&error);
            }
            error.exit_code()
        }
    }
}
