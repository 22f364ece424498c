//! Where commands run: the trait [`Sandbox`] and its messages.
//!
//! Commands are stateless: the working directory and the environment come with each request, so
//! that the state of a sandbox is its files and nothing else, and a fork is exact.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::patch::FileChange;
use crate::task::RepoSource;

/// The root file system of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RootFs {
    /// The host's system directories, read-only, and a home of its own.
    #[default]
    Host,
    /// Directories of the host stacked as an overlay, the topmost first: a container image's
    /// layers, or one root directory. All of it can be written inside; nothing is written to them.
    Layers(Vec<PathBuf>),
}

/// What a sandbox is made of.
#[derive(Debug, Clone)]
pub struct SandboxSpec {
    /// What stands below the repository.
    pub root: RootFs,
    /// The repository; its tree appears at [`SandboxSpec::workdir`].
    pub repo: RepoSource,
    /// Where the repository appears inside, such as `/testbed`.
    pub workdir: String,
    /// Host directories that appear read-only inside: (host directory, absolute path inside).
    /// Such as an environment that was built once for the task.
    pub read_only_mounts: Vec<(PathBuf, String)>,
    /// Environment of every command, on top of a minimal one. The host's is never inherited.
    pub env: BTreeMap<String, String>,
    /// Bounds on what the commands may use.
    pub limits: SandboxLimits,
}

/// Bounds on a sandbox. Every one is enforced; a provider that cannot enforce one refuses to start.
#[derive(Debug, Clone, PartialEq)]
pub struct SandboxLimits {
    /// Memory of all processes together, in bytes.
    pub memory_bytes: u64,
    /// Number of processes and threads alive at once.
    pub num_processes: u64,
    /// CPU time of one command, in seconds.
    pub cpu_seconds: u64,
    /// Bytes kept of each of stdout and stderr; the rest is read and thrown away.
    pub output_bytes: usize,
    /// Bytes that may be written to disk (size of the writable layer).
    pub disk_bytes: u64,
}

impl Default for SandboxLimits {
    fn default() -> Self {
        Self {
            memory_bytes: 512 << 20,
            num_processes: 128,
            cpu_seconds: 60,
            output_bytes: 256 << 10,
            disk_bytes: 64 << 20,
        }
    }
}

/// One command for [`Sandbox::exec`].
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Program and arguments; the program is looked up in the sandbox's `PATH`.
    pub argv: Vec<String>,
    /// Absolute working directory inside the sandbox.
    pub cwd: String,
    /// Additional environment variables.
    pub env: BTreeMap<String, String>,
    /// Bytes given on standard input, which is then closed.
    pub stdin: Vec<u8>,
    /// Wall-clock bound; past it the command's whole process tree is killed.
    pub timeout: Duration,
}

impl ExecRequest {
    /// `bash -c SCRIPT` in `cwd` (`sh` where there is no bash is the provider's affair).
    pub fn shell(script: &str, cwd: &str, timeout: Duration) -> Self {
        Self::argv(&["bash", "-c", script], cwd, timeout)
    }

    /// A program with arguments, without a shell.
    pub fn argv(argv: &[&str], cwd: &str, timeout: Duration) -> Self {
        Self {
            argv: argv.iter().map(ToString::to_string).collect(),
            cwd: cwd.to_owned(),
            env: BTreeMap::new(),
            stdin: Vec::new(),
            timeout,
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExecStatus {
    /// It exited with this code.
    Exited(i32),
    /// This signal ended it.
    Signaled(i32),
    /// It was killed at [`ExecRequest::timeout`].
    TimedOut,
}

/// Where a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What a command left.
#[derive(Debug, Clone)]
pub struct ExecOutput {
    /// How it ended.
    pub status: ExecStatus,
    /// Standard output, at most [`SandboxLimits::output_bytes`].
    pub stdout: Vec<u8>,
    /// Standard error, at most [`SandboxLimits::output_bytes`].
    pub stderr: Vec<u8>,
    /// Bytes of both streams that were thrown away.
    pub dropped_bytes: u64,
}

/// A failure of the sandbox itself, never of the command that ran in it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The kernel or the machine forbids what a sandbox needs; the text says how to allow it.
    #[error("{0}")]
    Unsupported(String),
    /// The sandbox's disk, memory or process limit stopped an operation of the host's.
    #[error("sandbox limit reached: {0}")]
    Limit(String),
    /// The path does not exist, is not a file, or leads out of the sandbox.
    #[error("{path}: {reason}")]
    Path {
        /// The path inside the sandbox.
        path: String,
        /// Why it was refused.
        reason: String,
    },
    /// The helper died or answered out of protocol.
    #[error("sandbox died: {0}")]
    Died(String),
    /// An operation of the host failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// A place where untrusted commands run. Dropping one destroys it as [`Sandbox::destroy`] does.
pub trait Sandbox: Send {
    /// Runs one command to its end. A failing command is an `Ok` with its status.
    ///
    /// # Errors
    /// Only when the sandbox itself failed.
    fn exec(&mut self, request: &ExecRequest) -> Result<ExecOutput, SandboxError>;

    /// As [`Sandbox::exec`]; what is kept of the output is also given to `sink`, as it comes where
    /// the sandbox can, else at the end. `sink` must return soon: the command is not watched
    /// meanwhile.
    ///
    /// # Errors
    /// As [`Sandbox::exec`].
    fn exec_streamed(
        &mut self,
        request: &ExecRequest,
        sink: &mut dyn FnMut(OutputStream, &[u8]),
    ) -> Result<ExecOutput, SandboxError> {
        let output = self.exec(request)?;
        sink(OutputStream::Stdout, &output.stdout);
        sink(OutputStream::Stderr, &output.stderr);
        Ok(output)
    }

    /// Reads a file by its absolute path inside, at most `max_bytes` of it.
    ///
    /// # Errors
    /// [`SandboxError::Path`] when there is no such regular file.
    fn read(&mut self, path: &str, max_bytes: usize) -> Result<Vec<u8>, SandboxError>;

    /// Writes a whole file by its absolute path inside, making parent directories. An existing
    /// file keeps its mode.
    ///
    /// # Errors
    /// [`SandboxError::Path`] or [`SandboxError::Limit`].
    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<(), SandboxError>;

    /// The changes of the repository against its pristine tree, sorted by path. Taken by the
    /// host, from the host's own copy: nothing the commands left (git metadata, hooks, filters)
    /// has a say. `.git`, `__pycache__` and `*.pyc` are left out.
    ///
    /// # Errors
    /// Only when the sandbox itself failed.
    fn diff(&mut self) -> Result<Vec<FileChange>, SandboxError>;

    /// A second sandbox with the same files. Neither sees the other's later changes.
    ///
    /// What was written before counts against the limits of both.
    ///
    /// # Errors
    /// [`SandboxError::Limit`] when one more sandbox would be too many; else only when the sandbox
    /// itself failed.
    fn fork(&mut self) -> Result<Box<dyn Sandbox>, SandboxError>;

    /// Writes all that was written inside to the file `to`, for [`SandboxProvider::restore`] in
    /// this process or a later one. `to` is replaced as a whole or not at all.
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`] where the kind of sandbox has no snapshots.
    fn snapshot(&mut self, to: &Path) -> Result<(), SandboxError> {
        let why = "this kind of sandbox has no snapshots";
        Err(SandboxError::Unsupported(format!("{}: {why}", to.display())))
    }

    /// Kills every process and removes every trace. Awaits the end.
    ///
    /// # Errors
    /// When something could not be removed.
    fn destroy(self: Box<Self>) -> Result<(), SandboxError>;
}

/// Makes sandboxes.
pub trait SandboxProvider: Send + Sync {
    /// Makes one, ready for `exec`.
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`] where the machine forbids it.
    fn create(&self, spec: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError>;

    /// Makes one with the files of a snapshot. `spec` must have the pristine files of the sandbox
    /// that the snapshot is of, wherever they are now.
    ///
    /// # Errors
    /// [`SandboxError::Path`] when `from` is not a snapshot, is damaged, or is one of something
    /// else; [`SandboxError::Unsupported`] where the kind of sandbox has no snapshots.
    fn restore(&self, spec: &SandboxSpec, from: &Path) -> Result<Box<dyn Sandbox>, SandboxError> {
        let _ = spec;
        let why = "this kind of sandbox has no snapshots";
        Err(SandboxError::Unsupported(format!("{}: {why}", from.display())))
    }
}
