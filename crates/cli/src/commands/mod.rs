//! One module a command: each reads its arguments, asks another crate, and tells the result.

mod report;

use std::process::ExitCode;

use clap::CommandFactory;

use crate::args::{Cli, Command, CompletionsArgs};
use crate::error::CliError;
use crate::output;

/// Does what was asked. An exit code other than 0 is a command's own, such as the sandbox's.
pub fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Report(args) => report::run(&args),
        Command::Completions(args) => completions(&args),
        _ => Ok(ExitCode::FAILURE),
    }
}

fn completions(args: &CompletionsArgs) -> Result<ExitCode, CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "patchwright", &mut text);
    output::data(&String::from_utf8_lossy(&text))?;
    Ok(ExitCode::SUCCESS)
}
