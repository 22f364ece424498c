//! `patchwright sandbox run`: one command in a fresh sandbox.

use std::io::Read;
use std::process::ExitCode;

use patchwright_core::ExecRequest;
use patchwright_core::patch::render;

use super::setting::Setting;
use super::{conclude, setting};
use crate::args::SandboxRunArgs;
use crate::error::CliError;
use crate::output;

/// Bytes of standard input that are passed in, at most.
const MAX_STDIN: u64 = 16 << 20;

/// Runs the command and passes on its output and exit code.
pub fn run(args: &SandboxRunArgs) -> Result<ExitCode, CliError> {
    let stdin = if args.stdin { stdin()? } else { Vec::new() };
    let mut setting = Setting::make(&args.sandbox, || ())?;
    let argv: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let mut request = ExecRequest::argv(&argv, &setting.cwd, setting.timeout);
    request.stdin = stdin;
    let done = setting.exec(&request).and_then(|result| {
        let diff = if args.diff { render(&setting.sandbox.diff()?) } else { String::new() };
        Ok((result, diff))
    });
    let (result, diff) = match done {
        Ok(done) => done,
        Err(error) => {
            drop(setting);
            setting::close();
            return Err(error);
        }
    };
    setting.end()?;
    let code = conclude(&result, args.sandbox.timeout);
    output::data(&diff)?;
    Ok(ExitCode::from(code))
}

fn stdin() -> Result<Vec<u8>, CliError> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(MAX_STDIN + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| CliError::failed(format!("standard input: {error}")))?;
    if bytes.len() as u64 > MAX_STDIN {
        let limit = MAX_STDIN >> 20;
        return Err(CliError::usage(format!("standard input is longer than {limit} MiB")));
    }
    Ok(bytes)
}
