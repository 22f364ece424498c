//! `patchwright sandbox run`: one command in a fresh sandbox.

use std::io::{Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use patchwright_core::patch::render;
use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, SandboxError, SandboxLimits, SandboxProvider, SandboxSpec,
};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};

use crate::args::SandboxRunArgs;
use crate::error::CliError;
use crate::output;

/// Where the repository is inside.
const WORKDIR: &str = "/testbed";
/// Bytes of standard input that are passed in, at most.
const MAX_STDIN: u64 = 16 << 20;

/// Runs the command and passes on its output and exit code.
pub fn run(args: &SandboxRunArgs) -> Result<ExitCode, CliError> {
    let spec = SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo: repository(args.repo.as_deref())?,
        workdir: WORKDIR.into(),
        read_only_mounts: Vec::new(),
        env: std::collections::BTreeMap::default(),
        limits: SandboxLimits::default(),
    };
    let argv: Vec<&str> = args.command.iter().map(String::as_str).collect();
    let mut request = ExecRequest::argv(&argv, WORKDIR, Duration::from_secs(args.timeout));
    if args.stdin {
        request.stdin = stdin()?;
    }
    let mut sandbox = NativeSandboxes::new(NativeOptions::default())?.create(&spec)?;
    let output = sandbox.exec(&request)?;
    let diff = if args.diff { render(&sandbox.diff()?) } else { String::new() };
    sandbox.destroy()?;
    pass_on(&mut std::io::stdout().lock(), &output.stdout)?;
    pass_on(&mut std::io::stderr().lock(), &output.stderr)?;
    if output.dropped_bytes > 0 {
        output::note(format!("{} bytes of output were dropped", output.dropped_bytes));
    }
    output::data(&diff)?;
    Ok(match output.status {
        ExecStatus::Exited(code) => ExitCode::from(code.clamp(0, 255) as u8),
        ExecStatus::Signaled(signal) => {
            output::note(format!("ended by signal {signal}"));
            ExitCode::from((128 + signal).clamp(0, 255) as u8)
        }
        ExecStatus::TimedOut => {
            output::note(format!("killed after {} s", args.timeout));
            ExitCode::from(124)
        }
    })
}

fn repository(dir: Option<&Path>) -> Result<RepoSource, CliError> {
    match dir {
        None => Ok(RepoSource::Files(Arc::default())),
        Some(dir) => match dir.canonicalize() {
            Ok(path) if path.is_dir() => Ok(RepoSource::Directory(path)),
            Ok(_) => Err(CliError::usage(format!("--repo {}: not a directory", dir.display()))),
            Err(error) => Err(CliError::usage(format!("--repo {}: {error}", dir.display()))),
        },
    }
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

/// Passes bytes on; a reader that has seen enough is no failure.
fn pass_on(to: &mut impl Write, bytes: &[u8]) -> Result<(), CliError> {
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
