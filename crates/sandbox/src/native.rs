//! One sandbox, from the host's side.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, FileChange, OutputStream, RepoSource, RootFs, Sandbox,
    SandboxError, SandboxLimits, SandboxSpec,
};

use crate::branch::Launch;
use crate::command::{Command, Ended, STDOUT};
use crate::defence::{Defences, Layer};
use crate::diff::{Pristine, Written};
use crate::fill::{open_repository, send_directory, send_files, send_upper};
use crate::helper::{SNAPSHOT_CHANGES, read_request, write_request};
use crate::overlay::MAX_LAYERS;
use crate::plan::{Plan, Sealed, Source};
use crate::provider::{Inner, Slot, died, from_refusal, host_error};
use crate::python;
use crate::template::{HOME, MAX_STACK};
use crate::tree::{Entry, Marks, Merged, Place};
use crate::wire::{Kind, MAX_FRAME, Refusal, malformed, receive, send};

/// How long PID 1 may take to answer, beyond what the request itself may take.
pub(crate) const GRACE: Duration = Duration::from_mins(1);
/// Longest output that is kept of one stream.
const MAX_OUTPUT: usize = 16 << 20;
/// Bytes of memory that must be left when the disk, which is memory too, is full.
pub const BESIDE_DISK: u64 = 32 << 20;

/// A native sandbox.
pub struct NativeSandbox {
    pub(crate) inner: Arc<Inner>,
    /// `None` once it is destroyed, or found dead.
    pub(crate) slot: Option<Slot>,
    /// Its sealed layers while nothing runs: after a fork, until it is used again.
    pub(crate) stack: Option<OwnedFd>,
    /// Whether its slot has written what others may hold.
    pub(crate) is_forked: bool,
    pub(crate) plan: Plan,
    /// What it held at its first fork since all was in one layer.
    pub(crate) base: Sealed,
    pub(crate) repo: RepoSource,
    pub(crate) env: BTreeMap<String, String>,
}

/// Gets output as it comes.
type Sink<'a> = dyn FnMut(OutputStream, &[u8]) + 'a;

impl NativeSandbox {
    /// Makes a sandbox.
    pub(crate) fn create(inner: &Arc<Inner>, spec: &SandboxSpec) -> Result<Self, SandboxError> {
        let mut sandbox = Self::plan(inner, spec)?;
        match sandbox.start_fresh() {
            Launch::NoOverlay(_) if sandbox.plan.layers.is_empty() => {
                sandbox.plan.source = Source::Tree;
                sandbox.start_fresh().into_result()?;
            }
            other => other.into_result()?,
        }
        Ok(sandbox)
    }

    /// A sandbox that is not yet started.
    pub(crate) fn plan(inner: &Arc<Inner>, spec: &SandboxSpec) -> Result<Self, SandboxError> {
        check(&spec.limits)?;
        let source = match &spec.repo {
            RepoSource::Files(_) => Source::Tree,
            RepoSource::Directory(path) => {
                let path = canonical(path)?;
                if inner.machine().overlay { Source::Directory(path) } else { Source::Tree }
            }
            RepoSource::InRoot => Source::InRoot,
        };
        let layers = match &spec.root {
            RootFs::Host => Vec::new(),
            RootFs::Layers(layers) => image_layers(layers)?,
        };
        if layers.is_empty() && source == Source::InRoot {
            return Err(SandboxError::Unsupported(
                "a repository in the root needs a root of its own: an image or a directory"
                    .to_owned(),
            ));
        }
        let mut read_only = Vec::new();
        for (from, to) in &spec.read_only_mounts {
            read_only.push((canonical(from)?, to.clone()));
        }
        let plan = Plan {
            layers,
            workdir: spec.workdir.clone(),
            source,
            read_only,
            limits: spec.limits.clone(),
            sealed: Sealed::default(),
            lend: false,
            renew: false,
        };
        Ok(Self {
            inner: Arc::clone(inner),
            slot: None,
            stack: None,
            is_forked: false,
            plan,
            base: Sealed::default(),
            repo: spec.repo.clone(),
            env: environment(&spec.root, &spec.env, inner.defences()),
        })
    }

    fn start_fresh(&mut self) -> Launch {
        let repo = self.repo.clone();
        let whole = self.plan.source == Source::Tree;
        let disk_bytes = self.plan.limits.disk_bytes;
        let maps_owners = self.inner.machine().privileged;
        let (launch, _) = self.start_surely(None, |to| match &repo {
            RepoSource::Files(files) => send_files(files, to),
            RepoSource::Directory(path) if whole => send_directory(path, disk_bytes, to),
            RepoSource::Directory(path) => send_upper(path, maps_owners, disk_bytes, to),
            RepoSource::InRoot => Ok(()),
        });
        launch
    }

    /// Sends a request and awaits its answer.
    pub(crate) fn ask(
        &mut self,
        kind: Kind,
        body: &[u8],
        time: Duration,
    ) -> Result<Vec<u8>, SandboxError> {
        self.ask_and_hear(kind, body, time, &mut |_, _| ())
    }

    /// As [`Self::ask`]; `sink` gets the output that comes before the answer.
    fn ask_and_hear(
        &mut self,
        kind: Kind,
        body: &[u8],
        time: Duration,
        sink: &mut Sink<'_>,
    ) -> Result<Vec<u8>, SandboxError> {
        self.wake()?;
        let Some(slot) = &self.slot else { return Err(died("it was used after its end")) };
        let stream = &slot.stream;
        let mut answer = stream
            .set_read_timeout(Some(time.saturating_add(GRACE)))
            .and_then(|()| send(&mut &*stream, kind, body))
            .and_then(|()| receive(&mut &*stream));
        let mut left = self.plan.limits.output_bytes.saturating_mul(2);
        while let Ok(Some((Kind::Output, body))) = &answer {
            if body.len() > left.saturating_add(1) {
                break;
            }
            left -= body.len().saturating_sub(1);
            if let Some((number, bytes)) = body.split_first() {
                let is_stdout = *number == STDOUT;
                sink(if is_stdout { OutputStream::Stdout } else { OutputStream::Stderr }, bytes);
            }
            answer = receive(&mut &*stream);
        }
        match answer {
            Ok(Some((Kind::Done, body))) => Ok(body),
            Ok(Some((Kind::Refused, body))) => match Refusal::decode(&body) {
                Ok(refusal) => Err(from_refusal(refusal)),
                Err(error) => Err(self.dead(&error.to_string())),
            },
            Ok(Some(_)) => Err(self.dead("it answered out of protocol")),
            Ok(None) => Err(self.dead("its PID 1 is gone")),
            Err(error) => Err(self.dead(&error.to_string())),
        }
    }

    fn run(
        &mut self,
        request: &ExecRequest,
        sink: Option<&mut Sink<'_>>,
    ) -> Result<ExecOutput, SandboxError> {
        let Some(mut command) = command(&self.env, request) else {
            return Ok(not_started("the command or its environment holds a NUL byte"));
        };
        command.streamed = sink.is_some();
        let body = command.encode();
        if body.len() > MAX_FRAME {
            return Err(SandboxError::Limit(format!(
                "a command with its input may have {MAX_FRAME} bytes, this one has {}",
                body.len()
            )));
        }
        let answer = match sink {
            Some(sink) => self.ask_and_hear(Kind::Exec, &body, request.timeout, sink)?,
            None => self.ask(Kind::Exec, &body, request.timeout)?,
        };
        match Ended::decode(&answer) {
            Ok(ended) => Ok(ended.0),
            Err(error) => Err(self.dead(&error.to_string())),
        }
    }

    /// The sandbox is of no more use: everything in it ends now.
    pub(crate) fn dead(&mut self, why: &str) -> SandboxError {
        if let Some(slot) = self.slot.take() {
            self.inner.abandon(slot);
        }
        died(why)
    }

    pub(crate) fn pristine(&self) -> Result<Pristine, SandboxError> {
        match &self.repo {
            RepoSource::Files(files) => Ok(Pristine::Files(Arc::clone(files))),
            RepoSource::Directory(path) => {
                let dirs = vec![open_repository(path)?];
                Ok(Pristine::Merged(Merged::new(dirs, Marks::None)))
            }
            RepoSource::InRoot => {
                let failed = |e: rustix::io::Errno| host_error("read the image's layers", e.into());
                let dirs = self.plan.layers.iter().map(|path| open_repository(path));
                let root = Merged::new(dirs.collect::<Result<_, _>>()?, Marks::Unpacked);
                Ok(Pristine::Merged(
                    match root.at(self.plan.workdir.as_bytes()).map_err(failed)? {
                        Place::Dir(dir) => dir,
                        _ => Merged::new(Vec::new(), Marks::Unpacked),
                    },
                ))
            }
        }
    }

    fn written(&mut self) -> Result<Written, SandboxError> {
        self.wake()?;
        let Some(slot) = &self.slot else { return Err(died("it was used after its end")) };
        let mut written = Written::new(false);
        let mut refused = None;
        let taken = (|| -> io::Result<()> {
            slot.stream.set_read_timeout(Some(GRACE))?;
            send(&mut &slot.stream, Kind::Snapshot, &[SNAPSHOT_CHANGES])?;
            let mut from = BufReader::with_capacity(128 << 10, &slot.stream);
            match receive(&mut from)? {
                Some((Kind::Done, body)) => written = Written::new(body == [1]),
                Some((Kind::Refused, body)) => {
                    refused = Some(from_refusal(Refusal::decode(&body)?));
                    return Ok(());
                }
                _ => return Err(malformed("it answered out of protocol")),
            }
            loop {
                match Entry::receive(&mut from)? {
                    Ok(Some(entry)) => {
                        if let Err(error) = written.add(entry) {
                            refused.get_or_insert(SandboxError::Limit(error.to_string()));
                        }
                    }
                    Ok(None) => return Ok(()),
                    Err(refusal) => {
                        refused = Some(from_refusal(refusal));
                        return Ok(());
                    }
                }
            }
        })();
        taken.map_err(|error| self.dead(&error.to_string()))?;
        refused.map_or(Ok(written), Err)
    }
}

impl Sandbox for NativeSandbox {
    fn exec(&mut self, request: &ExecRequest) -> Result<ExecOutput, SandboxError> {
        self.run(request, None)
    }

    fn exec_streamed(
        &mut self,
        request: &ExecRequest,
        sink: &mut dyn FnMut(OutputStream, &[u8]),
    ) -> Result<ExecOutput, SandboxError> {
        self.run(request, Some(sink))
    }

    fn read(&mut self, path: &str, max_bytes: usize) -> Result<Vec<u8>, SandboxError> {
        self.ask(Kind::Read, &read_request(path, max_bytes), Duration::ZERO)
    }

    fn write(&mut self, path: &str, bytes: &[u8]) -> Result<(), SandboxError> {
        if bytes.len() as u64 > self.plan.limits.disk_bytes || bytes.len() > MAX_FRAME / 2 {
            return Err(SandboxError::Limit(format!("{path}: {} bytes are too many", bytes.len())));
        }
        self.ask(Kind::Write, &write_request(path, bytes), Duration::ZERO).map(drop)
    }

    fn diff(&mut self) -> Result<Vec<FileChange>, SandboxError> {
        let written = self.written()?;
        let pristine = self.pristine()?;
        written.changes(&pristine).map_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                SandboxError::Limit(error.to_string())
            } else {
                host_error("read the pristine repository", error)
            }
        })
    }

    fn fork(&mut self) -> Result<Box<dyn Sandbox>, SandboxError> {
        Ok(Box::new(self.branch()?))
    }

    fn snapshot(&mut self, to: &Path) -> Result<(), SandboxError> {
        self.save(to)
    }

    fn destroy(mut self: Box<Self>) -> Result<(), SandboxError> {
        self.end();
        Ok(())
    }
}

impl Drop for NativeSandbox {
    fn drop(&mut self) {
        self.end();
    }
}

fn check(limits: &SandboxLimits) -> Result<(), SandboxError> {
    let refuse = |why: String| Err(SandboxError::Limit(why));
    if limits.disk_bytes.saturating_add(BESIDE_DISK) > limits.memory_bytes {
        return refuse(format!(
            "disk_bytes ({}) must be at least {BESIDE_DISK} below memory_bytes ({}): what is \
             written is held in memory",
            limits.disk_bytes, limits.memory_bytes
        ));
    }
    if limits.output_bytes > MAX_OUTPUT {
        return refuse(format!(
            "output_bytes ({}) may be at most {MAX_OUTPUT}",
            limits.output_bytes
        ));
    }
    if limits.num_processes == 0 || limits.cpu_seconds == 0 || limits.disk_bytes == 0 {
        return refuse("num_processes, cpu_seconds and disk_bytes must be at least 1".to_owned());
    }
    Ok(())
}

fn canonical(path: &Path) -> Result<PathBuf, SandboxError> {
    path.canonicalize().map_err(|error| SandboxError::Path {
        path: path.display().to_string(),
        reason: error.to_string(),
    })
}

/// The directories that an image is, found on the host.
fn image_layers(layers: &[PathBuf]) -> Result<Vec<PathBuf>, SandboxError> {
    // Some room is for the layers of forks.
    let most = MAX_LAYERS - MAX_STACK;
    if layers.is_empty() || layers.len() > most {
        return Err(SandboxError::Unsupported(format!(
            "an image must have 1 to {most} layers, this one has {}",
            layers.len()
        )));
    }
    layers
        .iter()
        .map(|path| {
            let path = canonical(path)?;
            if path.is_dir() {
                return Ok(path);
            }
            let reason = "is not a directory, as a layer must be".to_owned();
            Err(SandboxError::Path { path: path.display().to_string(), reason })
        })
        .collect()
}

/// What every command finds in its environment.
fn environment(
    root: &RootFs,
    own: &BTreeMap<String, String>,
    defences: Defences,
) -> BTreeMap<String, String> {
    let system = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let (path, home) = match (root, &python::find().bin) {
        (RootFs::Host, Some(bin)) => (format!("{}:{system}", bin.display()), HOME),
        (RootFs::Host, None) => (system.to_owned(), HOME),
        (RootFs::Layers(_), _) => (system.to_owned(), "/root"),
    };
    let mut env: BTreeMap<String, String> = [
        ("PATH", path.as_str()),
        ("HOME", home),
        ("LANG", "C.UTF-8"),
        ("PYTHONDONTWRITEBYTECODE", "1"),
        ("PYTHONHASHSEED", "0"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect();
    if !defences.has(Layer::Environment) {
        env.extend(std::env::vars());
    }
    env.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    env
}

/// The command as it travels; `None` when a text cannot be a C string.
fn command(base: &BTreeMap<String, String>, request: &ExecRequest) -> Option<Command> {
    let mut env = base.clone();
    env.extend(request.env.iter().map(|(name, value)| (name.clone(), value.clone())));
    let argv: Vec<_> =
        request.argv.iter().map(|a| CString::new(a.as_str()).ok()).collect::<Option<_>>()?;
    let env =
        env.iter().map(|(n, v)| CString::new(format!("{n}={v}")).ok()).collect::<Option<_>>()?;
    let argv = if argv.is_empty() { vec![CString::default()] } else { argv };
    let (cwd, stdin) = (request.cwd.clone(), request.stdin.clone());
    Some(Command { argv, cwd, env, stdin, timeout: request.timeout, streamed: false })
}

fn not_started(why: &str) -> ExecOutput {
    ExecOutput {
        status: ExecStatus::Exited(126),
        stdout: Vec::new(),
        stderr: format!("{why}\n").into_bytes(),
        dropped_bytes: 0,
    }
}
