//! The host's side: [`NativeSandboxes`] starts the helper and hands out slots.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use patchwright_core::{Sandbox, SandboxError, SandboxProvider, SandboxSpec};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType,
};

use crate::defence::Defences;
use crate::keeper::MAX_CONTROL;
use crate::lease::{Entry, Lease, LeaseError, LeasedDir, Registry, failpoint};
use crate::native::NativeSandbox;
use crate::plan::{Boot, LimitsRung, Machine};
use crate::probe::{self, Feature, FeatureStatus, trial};
use crate::python;
use crate::spawner::{KILL_SLOT, NEW_SLOT};
use crate::sys;
use crate::wire::{Kind, Refusal, receive};

/// How long the helper may take to answer a control request.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(30);

/// How sandboxes are made.
#[derive(Debug, Clone, Copy)]
pub struct NativeOptions {
    /// Sandboxes alive at once, at most; one more is refused.
    pub max_sandboxes: usize,
    /// Demand this way of bounding memory; `None` takes the best that the machine allows. A
    /// demand that cannot be met is an error.
    pub limits_rung: Option<LimitsRung>,
    /// The layers of defence in force; only the attack suite has this.
    #[cfg(feature = "attack-tests")]
    #[doc(hidden)]
    pub defences: Defences,
}

impl NativeOptions {
    #[cfg(feature = "attack-tests")]
    fn defences(self) -> Defences {
        self.defences
    }

    #[cfg(not(feature = "attack-tests"))]
    #[expect(clippy::unused_self, reason = "the attack suite's options have a say")]
    fn defences(self) -> Defences {
        Defences::default()
    }
}

impl Default for NativeOptions {
    fn default() -> Self {
        Self {
            max_sandboxes: 1024,
            limits_rung: None,
            #[cfg(feature = "attack-tests")]
            defences: Defences::default(),
        }
    }
}

/// Makes native sandboxes. Cheap to clone; the helper lives as long as the last clone or sandbox.
#[derive(Clone)]
pub struct NativeSandboxes {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    machine: Machine,
    defences: Defences,
    max_sandboxes: usize,
    alive: AtomicUsize,
    idle: Mutex<Vec<Slot>>,
    /// `None` once it is closed, which ends the helper.
    control: Mutex<Option<OwnedFd>>,
    keeper: Mutex<Child>,
    /// Given up last, when all that it names is gone.
    lease: Lease,
}

/// A slot of the helper: a process that makes one sandbox at a time.
pub(crate) struct Slot {
    /// The socket to the slot, and to the sandbox while there is one.
    pub stream: UnixStream,
    pid: u32,
    /// Whether its cgroup still bears what others read: the next sandbox needs another.
    pub owes: bool,
    /// The record of the sandbox that is in it, if one is.
    entry: Option<Entry>,
}

impl NativeSandboxes {
    /// Starts the helper and makes sure that sandboxes can be made. Removes what programs that
    /// were killed have left (see [`Registry::reap`]).
    ///
    /// # Errors
    /// [`SandboxError::Unsupported`] where the machine forbids it; the text says how to allow it.
    pub fn new(options: NativeOptions) -> Result<Self, SandboxError> {
        if sys::is_helper() || !sys::hook_is_linked() {
            return Err(SandboxError::Unsupported(
                "this process was started as a sandbox helper but runs as a program: do not set \
                 PATCHWRIGHT_SANDBOX_HELPER, and do not strip `.init_array`"
                    .to_owned(),
            ));
        }
        if let FeatureStatus::Missing(remedy) = probe::kernel().status {
            return Err(SandboxError::Unsupported(remedy));
        }
        for registry in Registry::all() {
            // What cannot be removed stays recorded, and `patchwright sandbox reap` tells of it.
            let _ = registry.reap(false);
        }
        let lease = Lease::take().map_err(|error| unrecorded(&error))?;
        let (control, keeper) = spawn_keeper(lease.id())?;
        failpoint("host: keeper started");
        lease.set_keeper(keeper.id()).map_err(|error| unrecorded(&error))?;
        failpoint("host: keeper recorded");
        let defences = options.defences();
        let prefixes = python::find().prefixes.clone();
        let boot = Boot { rung: options.limits_rung, prefixes, defences };
        let mut keeper = Some(keeper);
        let started = ask(&control, &boot.encode(), None).and_then(|answer| {
            Machine::decode(&answer).map_err(|error| Refusal::io("start the helper", &error))
        });
        match (started, keeper.take()) {
            (Ok(machine), Some(keeper)) => Ok(Self {
                inner: Arc::new(Inner {
                    machine,
                    defences,
                    max_sandboxes: options.max_sandboxes,
                    alive: AtomicUsize::new(0),
                    idle: Mutex::new(Vec::new()),
                    control: Mutex::new(Some(control)),
                    keeper: Mutex::new(keeper),
                    lease,
                }),
            }),
            (Err(refusal), keeper) => {
                drop(control);
                if let Some(mut keeper) = keeper {
                    await_end(&mut keeper);
                }
                Err(SandboxError::Unsupported(probe::explain(&refusal)))
            }
            (Ok(_), None) => Err(SandboxError::Died("the helper was not started".to_owned())),
        }
    }

    /// What the machine allows, each feature with its remedy where it is missing. Starts a helper
    /// to find out.
    pub fn probe() -> Vec<Feature> {
        let mut features = vec![probe::kernel(), probe::user_namespaces()];
        features.extend(probe::trials(run_trials()));
        features.extend(probe::system_calls());
        let made = Self::new(NativeOptions::default());
        features.extend(probe::control_groups(made.as_ref().ok().map(Self::limits_rung)));
        let status = match &made {
            Ok(provider) if provider.inner.machine.privileged => {
                FeatureStatus::Ok("made as root, run as an unprivileged user".to_owned())
            }
            Ok(_) => FeatureStatus::Ok("made and run as this user".to_owned()),
            Err(error) => FeatureStatus::Missing(error.to_string()),
        };
        features.push(Feature { name: "sandboxes", status });
        if let Ok(provider) = made {
            features.push(Feature {
                name: "repository overlay",
                status: if provider.inner.machine.overlay {
                    FeatureStatus::Ok("directories are shared, not copied".to_owned())
                } else {
                    FeatureStatus::Degraded(
                        "repositories are copied into each sandbox: Linux 6.6 or newer shares them"
                            .to_owned(),
                    )
                },
            });
        }
        features
    }

    /// Ends every sandbox at once, from whatever thread, and awaits the end: requests that are
    /// under way fail with [`SandboxError::Died`], and no further sandbox can be made. Nothing is
    /// left behind then, whether or not this is dropped. For Ctrl-C.
    pub fn shut_down(&self) {
        self.inner.shut_down();
    }

    /// How memory is bounded here.
    pub fn limits_rung(&self) -> LimitsRung {
        self.inner.machine.rung
    }
}

impl SandboxProvider for NativeSandboxes {
    fn create(&self, spec: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        Ok(Box::new(NativeSandbox::create(&self.inner, spec)?))
    }

    fn restore(&self, spec: &SandboxSpec, from: &Path) -> Result<Box<dyn Sandbox>, SandboxError> {
        Ok(Box::new(NativeSandbox::restore(&self.inner, spec, from)?))
    }
}

impl std::fmt::Debug for NativeSandboxes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NativeSandboxes")
            .field("machine", &self.inner.machine)
            .finish_non_exhaustive()
    }
}

impl Inner {
    /// A directory on the host that the lease names until it is dropped.
    pub(crate) fn directory_in(
        &self,
        parent: &Path,
        prefix: &str,
    ) -> Result<LeasedDir, SandboxError> {
        let taken = self.lease.directory(parent, prefix);
        taken.map_err(|error| host_error("write a snapshot", io::Error::other(error)))
    }

    /// What the helper found.
    pub fn machine(&self) -> Machine {
        self.machine
    }

    /// The layers of defence in force.
    pub fn defences(&self) -> Defences {
        self.defences
    }

    /// Takes a slot, a new one where none is idle.
    pub fn take_slot(&self) -> Result<Slot, SandboxError> {
        if self.alive.fetch_add(1, Ordering::AcqRel) >= self.max_sandboxes {
            self.alive.fetch_sub(1, Ordering::AcqRel);
            return Err(SandboxError::Limit(format!(
                "{} sandboxes are alive, which is `max_sandboxes`",
                self.max_sandboxes
            )));
        }
        let taken = self.lease.sandbox().map_err(|error| unrecorded(&error)).and_then(|entry| {
            failpoint("host: sandbox recorded");
            let idle = lock(&self.idle).pop();
            let mut slot = idle.map_or_else(|| self.new_slot(), Ok)?;
            slot.entry = Some(entry);
            Ok(slot)
        });
        taken.inspect_err(|_| {
            self.alive.fetch_sub(1, Ordering::AcqRel);
        })
    }

    fn new_slot(&self) -> Result<Slot, SandboxError> {
        let (ours, theirs) = UnixStream::pair().map_err(|e| host_error("make a socket", e))?;
        let answer = self.control(&[NEW_SLOT], Some(&theirs.into()))?;
        let pid = answer.try_into().map(u32::from_le_bytes).map_err(|_| died("control answer"))?;
        let slot = Slot { stream: ours, pid, owes: false, entry: None };
        failpoint("host: slot made");
        let ready = slot
            .stream
            .set_read_timeout(Some(CONTROL_TIMEOUT))
            .and_then(|()| slot.stream.set_write_timeout(Some(CONTROL_TIMEOUT)))
            .and_then(|()| receive(&mut &slot.stream));
        match ready {
            Ok(Some((Kind::Ready, _))) => Ok(slot),
            Ok(Some((Kind::Refused, body))) => {
                self.discard(slot);
                Err(Refusal::decode(&body).map_or_else(|_| died("a slot"), from_refusal))
            }
            _ => {
                self.discard(slot);
                Err(died("a slot did not start"))
            }
        }
    }

    /// Gives a slot back whose sandbox is gone.
    pub fn give_back(&self, mut slot: Slot) {
        slot.entry = None;
        lock(&self.idle).push(slot);
        self.alive.fetch_sub(1, Ordering::AcqRel);
    }

    /// Ends a slot that is out of step, with all in it.
    pub fn abandon(&self, slot: Slot) {
        self.discard(slot);
        self.alive.fetch_sub(1, Ordering::AcqRel);
    }

    fn discard(&self, slot: Slot) {
        let mut request = vec![KILL_SLOT];
        request.extend_from_slice(&slot.pid.to_le_bytes());
        // Without a helper there is no slot either.
        let _ = self.control(&request, None);
        drop(slot.stream);
    }

    fn control(&self, request: &[u8], fd: Option<&OwnedFd>) -> Result<Vec<u8>, SandboxError> {
        let control = lock(&self.control);
        let socket = control.as_ref().ok_or_else(|| died("the helper has ended"))?;
        ask(socket, request, fd).map_err(from_refusal)
    }
}

impl Inner {
    fn shut_down(&self) {
        lock(&self.idle).clear();
        drop(lock(&self.control).take());
        await_end(&mut lock(&self.keeper));
        self.lease.give_up();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// A lock whose data stays whole whatever happens to its holder.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a helper try the kernel's features one by one.
fn run_trials() -> Result<Vec<Option<Refusal>>, String> {
    // It makes nothing that outlives it, so the lease it would be found by need not exist.
    let (control, mut keeper) = spawn_keeper("trials").map_err(|error| error.to_string())?;
    let answer = ask(&control, trial::REQUEST, None);
    drop(control);
    await_end(&mut keeper);
    let answer = answer.map_err(|refusal| format!("{}: {}", refusal.what, refusal.why))?;
    trial::read(&answer).map_err(|error| error.to_string())
}

/// The name that a lease's helper processes bear in the process list.
pub(crate) fn process_name(lease: &str) -> String {
    format!("patchwright-sandbox {lease}")
}

fn unrecorded(error: &LeaseError) -> SandboxError {
    SandboxError::Unsupported(error.to_string())
}

fn spawn_keeper(lease: &str) -> Result<(OwnedFd, Child), SandboxError> {
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
            .map_err(|e| host_error("make a socket", e.into()))?;
    rustix::net::sockopt::set_socket_timeout(
        &ours,
        rustix::net::sockopt::Timeout::Recv,
        Some(CONTROL_TIMEOUT),
    )
    .map_err(|e| host_error("prepare a socket", e.into()))?;
    let mark = sys::MARK.to_string_lossy().into_owned();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(process_name(lease)).env_clear().env(mark, "1");
    #[cfg(test)]
    crate::lease::pass_failpoint(&mut command);
    let keeper = command
        .current_dir("/")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| host_error("start the sandbox helper", e))?;
    Ok((ours, keeper))
}

/// One request and its answer on the control socket.
fn ask(control: &OwnedFd, request: &[u8], fd: Option<&OwnedFd>) -> Result<Vec<u8>, Refusal> {
    let what = "talk to the sandbox helper";
    let failed = |error: rustix::io::Errno| Refusal::io(what, &error.into());
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = fd.map(|fd| [fd.as_fd()]);
    if let Some(fds) = &fds {
        ancillary.push(SendAncillaryMessage::ScmRights(fds));
    }
    let parts = [IoSlice::new(request)];
    rustix::net::sendmsg(control, &parts, &mut ancillary, SendFlags::NOSIGNAL).map_err(failed)?;
    let mut buffer = vec![0; MAX_CONTROL];
    let n = loop {
        match rustix::net::recv(control, &mut buffer[..], RecvFlags::empty()) {
            Ok((_, n)) => break n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    };
    match buffer[..n].split_first() {
        Some((0, answer)) => Ok(answer.to_vec()),
        Some((_, refusal)) => {
            Err(Refusal::decode(refusal).unwrap_or_else(|error| Refusal::io(what, &error)))
        }
        None => Err(Refusal::io(what, &std::io::ErrorKind::UnexpectedEof.into())),
    }
}

/// Awaits the helper's end, which follows the end of its control socket.
fn await_end(keeper: &mut Child) {
    let deadline = Instant::now() + CONTROL_TIMEOUT;
    let mut pause = Duration::from_micros(200);
    while Instant::now() < deadline {
        if !matches!(keeper.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
    let _ = keeper.kill();
    let _ = keeper.wait();
}

/// A failure of the host's own system calls.
pub(crate) fn host_error(context: &str, source: std::io::Error) -> SandboxError {
    SandboxError::Io { context: context.to_owned(), source }
}

/// A helper that is gone or out of step.
pub(crate) fn died(what: &str) -> SandboxError {
    SandboxError::Died(what.to_owned())
}

/// What a helper's refusal is to the caller.
pub(crate) fn from_refusal(refusal: Refusal) -> SandboxError {
    use crate::wire::Cause;
    match refusal.cause {
        Cause::Path => SandboxError::Path { path: refusal.what, reason: refusal.why },
        Cause::Limit => SandboxError::Limit(format!("{}: {}", refusal.what, refusal.why)),
        Cause::Unsupported | Cause::NoOverlay => {
            SandboxError::Unsupported(probe::explain(&refusal))
        }
        Cause::Io => {
            let source = if refusal.errno == 0 {
                std::io::Error::other(refusal.why)
            } else {
                std::io::Error::from_raw_os_error(refusal.errno)
            };
            SandboxError::Io { context: refusal.what, source }
        }
    }
}
