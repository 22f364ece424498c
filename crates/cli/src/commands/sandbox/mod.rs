//! `patchwright sandbox`: commands where the agent runs them, and what is left of them.

mod leases;
mod run;
mod setting;
mod shell;

use std::io::Write;
use std::process::ExitCode;

use patchwright_core::{ExecOutput, ExecStatus, SandboxError};

use crate::args::SandboxCommand;
use crate::error::CliError;
use crate::output;

/// Does what was asked.
pub fn dispatch(command: &SandboxCommand) -> Result<ExitCode, CliError> {
    match command {
        SandboxCommand::Run(args) => run::run(args),
        SandboxCommand::Shell(args) => shell::run(args),
        SandboxCommand::List(args) => leases::list(args),
        SandboxCommand::Reap(args) => leases::reap(args),
    }
}

/// Tells what became of a command, and gives the exit code that a shell would show for it.
fn conclude(result: &ExecOutput, timeout_s: u64) -> u8 {
    if result.dropped_bytes > 0 {
        output::note(format!(
            "{} bytes of output were dropped; --output keeps more",
            result.dropped_bytes
        ));
    }
    match result.status {
        ExecStatus::Exited(code) => code.clamp(0, 255) as u8,
        ExecStatus::Signaled(signal) => {
            output::note(format!("ended by signal {signal}"));
            (128 + signal).clamp(0, 255) as u8
        }
        ExecStatus::TimedOut => {
            output::note(format!("killed after {timeout_s} s; --timeout gives more"));
            124
        }
    }
}

/// Writes bytes as they are; a reader that has seen enough is no failure.
fn write(to: &mut impl Write, bytes: &[u8]) -> Result<(), CliError> {
    match to.write_all(bytes).and_then(|()| to.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::failed(format!("output: {error}")))
        }
        _ => Ok(()),
    }
}

impl From<SandboxError> for CliError {
    fn from(error: SandboxError) -> Self {
        Self::failed(format!("sandbox: {error}"))
    }
}
