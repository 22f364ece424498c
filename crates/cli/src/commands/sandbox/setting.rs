//! From arguments to a sandbox that ends with Ctrl-C.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, OutputStream, RepoSource, RootFs, Sandbox, SandboxLimits,
    SandboxProvider, SandboxSpec,
};
use patchwright_images::{Image, PullOptions};
use patchwright_sandbox::{BESIDE_DISK, NativeOptions, NativeSandboxes};
use patchwright_train::events::CancelToken;

use super::write;
use crate::args::SandboxArgs;
use crate::commands::images::{PullProgress, open_store};
use crate::error::CliError;
use crate::signals;

/// Where the repository is inside.
pub const WORKDIR: &str = "/testbed";

/// The provider, for the signal handler.
static PROVIDER: OnceLock<NativeSandboxes> = OnceLock::new();

/// One sandbox, its working directory and its bound on time.
pub struct Setting {
    /// The sandbox.
    pub sandbox: Box<dyn Sandbox>,
    /// Where commands start.
    pub cwd: String,
    /// Bound on a command's wall-clock time.
    pub timeout: Duration,
    cancel: &'static CancelToken,
    /// Keeps the image's layers where they are.
    _image: Option<Image>,
}

impl Setting {
    /// Makes it. From now on the first signal ends the sandbox with all in it; `then` runs after.
    pub fn make(args: &SandboxArgs, then: fn()) -> Result<Self, CliError> {
        let cancel = signals::cancel_token(move || {
            if let Some(provider) = PROVIDER.get() {
                provider.shut_down();
            }
            then();
        })?;
        let (spec, cwd, image) = spec(args, cancel)?;
        let options = NativeOptions { max_sandboxes: 1, ..NativeOptions::default() };
        let provider = PROVIDER.get_or_init({
            let provider = NativeSandboxes::new(options)?;
            move || provider
        });
        let setting = |sandbox| Self {
            sandbox,
            cwd,
            timeout: Duration::from_secs(args.timeout),
            cancel,
            _image: image,
        };
        let made = provider.create(&spec);
        if cancel.is_cancelled() {
            drop(made);
            close();
            return Err(CliError::Interrupted);
        }
        made.map(setting).map_err(|error| {
            close();
            error.into()
        })
    }

    /// Runs a command and passes its output on as it comes; [`CliError::Interrupted`] when a signal
    /// came meanwhile.
    pub fn exec(&mut self, request: &ExecRequest) -> Result<ExecOutput, CliError> {
        // A reader of ours that dawdles must not keep the sandbox from watching its command.
        let (sender, receiver) = mpsc::channel::<(OutputStream, Vec<u8>)>();
        let result = std::thread::scope(|scope| {
            let writer = scope.spawn(move || {
                receiver.iter().try_for_each(|(stream, bytes)| match stream {
                    OutputStream::Stdout => write(&mut std::io::stdout().lock(), &bytes),
                    OutputStream::Stderr => write(&mut std::io::stderr().lock(), &bytes),
                })
            });
            let result = self.sandbox.exec_streamed(request, &mut |stream, bytes| {
                // The writer ends early only with an error, which is looked at below.
                let _ = sender.send((stream, bytes.to_vec()));
            });
            drop(sender);
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.map(|()| result)
        })?;
        if self.cancel.is_cancelled() { Err(CliError::Interrupted) } else { Ok(result?) }
    }

    /// Removes every trace.
    pub fn end(self) -> Result<(), CliError> {
        let ended = self.sandbox.destroy();
        close();
        Ok(ended?)
    }
}

/// Ends the helper: a static is never dropped.
pub fn close() {
    if let Some(provider) = PROVIDER.get() {
        provider.shut_down();
    }
}

/// The image, from the store where it is there.
fn find_image(name: &str, cancel: &'static CancelToken) -> Result<Image, CliError> {
    let store = open_store(None)?;
    if let Some(image) = store.get(name)? {
        return Ok(image);
    }
    let progress = PullProgress::to_stderr();
    progress.stop_with(cancel);
    let pulled = store.pull(name, &PullOptions::default(), &progress);
    progress.finish();
    if cancel.is_cancelled() { Err(CliError::Interrupted) } else { Ok(pulled?) }
}

/// The sandbox's specification, where its commands start, and the image it stands on.
fn spec(
    args: &SandboxArgs,
    cancel: &'static CancelToken,
) -> Result<(SandboxSpec, String, Option<Image>), CliError> {
    if args.disk.saturating_add(BESIDE_DISK) > args.memory {
        return Err(CliError::usage(format!(
            "--memory {} is too little for --disk {}: what is written is held in memory, and {} MiB \
             more are needed to run in",
            args.memory,
            args.disk,
            BESIDE_DISK >> 20
        )));
    }
    let mut env = BTreeMap::new();
    let image = args.image.as_deref().map(|name| find_image(name, cancel)).transpose()?;
    let (root, own_workdir) = match (&image, &args.rootfs) {
        (Some(image), _) => {
            env.extend(image.config().env.clone());
            let workdir = image.config().workdir.clone();
            (image.root(), if workdir.is_empty() { "/".to_owned() } else { workdir })
        }
        (None, Some(dir)) => {
            let dir = directory("--rootfs", dir)?;
            let has_repository = dir.join(&WORKDIR[1..]).is_dir();
            let workdir = if has_repository { WORKDIR } else { "/" };
            (RootFs::Layers(vec![dir]), workdir.to_owned())
        }
        (None, None) => (RootFs::Host, WORKDIR.to_owned()),
    };
    let repo = match &args.repo {
        Some(dir) => RepoSource::Directory(directory("--repo", dir)?),
        None if root == RootFs::Host => RepoSource::Files(Arc::default()),
        None => RepoSource::InRoot,
    };
    let workdir = if repo == RepoSource::InRoot { own_workdir } else { WORKDIR.to_owned() };
    env.extend(args.env.iter().cloned());
    let mut read_only_mounts = Vec::new();
    for (host, inside) in &args.mounts {
        read_only_mounts.push((directory("--mount", host)?, inside.clone()));
    }
    let cwd = match &args.cwd {
        Some(cwd) if !cwd.starts_with('/') => {
            return Err(CliError::usage(format!("--cwd {cwd}: must be an absolute path inside")));
        }
        Some(cwd) => cwd.clone(),
        None => workdir.clone(),
    };
    let limits = SandboxLimits {
        memory_bytes: args.memory,
        disk_bytes: args.disk,
        num_processes: args.processes,
        cpu_seconds: args.cpu,
        output_bytes: usize::try_from(args.output).unwrap_or(usize::MAX),
    };
    Ok((SandboxSpec { root, repo, workdir, read_only_mounts, env, limits }, cwd, image))
}

fn directory(option: &str, dir: &Path) -> Result<std::path::PathBuf, CliError> {
    match dir.canonicalize() {
        Ok(path) if path.is_dir() => Ok(path),
        Ok(_) => Err(CliError::usage(format!("{option} {}: not a directory", dir.display()))),
        Err(error) => Err(CliError::usage(format!("{option} {}: {error}", dir.display()))),
    }
}
