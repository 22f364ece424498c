//! The helper's outermost process. It chooses powers and cgroups, starts the spawner in a PID
//! namespace of its own, waits for its end, and removes the cgroups.
//!
//! ```text
//! host program ── keeper ── spawner (PID 1) ─┬─ slot ── sandbox (PID 1) ── command
//!    control socket ─────────────┘           ├─ slot ── sandbox (PID 1)
//!    one socket a slot ──────────────────────┴─ slot     (idle)
//! ```
//! When the host program dies, however it dies, its end of the control socket closes, the spawner
//! ends, and the kernel kills everything in its PID namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::{RecvFlags, SendFlags, SocketType};
use rustix::process::{DumpableBehavior, Signal, WaitOptions};
use rustix::thread::{CapabilitySet, Gid, Uid, UnshareFlags};

use crate::cgroup::Home;
use crate::defence::{self, Layer};
use crate::plan::{Boot, LimitsRung};
use crate::probe::trial;
use crate::spawner::{self, Spawner};
use crate::sys;
use crate::wire::{Cause, Context, Refusal};

/// The host user that commands run as where the program was started as root: no files, no
/// processes and no powers are this user's.
pub const HOST_ID: u32 = 65_533;

/// Longest message on the control socket, in bytes.
pub const MAX_CONTROL: usize = 64 << 10;

/// Who commands are on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// User id outside every sandbox.
    pub uid: u32,
    /// Group id outside every sandbox.
    pub gid: u32,
    /// Whether the helper has root's powers to set sandboxes up with.
    pub privileged: bool,
}

/// The helper's `main`.
pub fn main() -> ! {
    let control = sys::take_stdin();
    // Set by hand in somebody's shell, the mark must do nothing worse than end the program.
    if !rustix::net::sockopt::socket_type(&control).is_ok_and(|t| t == SocketType::SEQPACKET) {
        sys::exit(2);
    }
    // Descriptor 0 stays taken, so that no later descriptor becomes a standard one by accident.
    let code = match rustix::io::fcntl_dupfd_cloexec(&control, 3) {
        Ok(duplicate) => {
            drop(control);
            run(duplicate)
        }
        Err(_) => 1,
    };
    sys::exit(code)
}

fn run(control: OwnedFd) -> i32 {
    // Away from the terminal: Ctrl-C is for the host program, which ends its sandboxes itself.
    let _ = rustix::process::setsid();
    let _ = rustix::stdio::dup2_stdin(null());
    rustix::process::umask(rustix::fs::Mode::from(0o022));
    sys::reset_signals();
    sys::fix_addresses();
    let mut buffer = vec![0; MAX_CONTROL];
    let boot = match rustix::net::recv(&control, &mut buffer[..], RecvFlags::empty()) {
        Ok((n, _)) if buffer[..n] == *trial::REQUEST => {
            trial::answer(&control);
            return 0;
        }
        Ok((n, _)) if n > 0 => match Boot::decode(&buffer[..n]) {
            Ok(boot) => boot,
            Err(_) => return 1,
        },
        _ => return 1,
    };
    defence::take(boot.defences);
    if defence::has(Layer::Descriptors) {
        sys::close_all_but(control.as_fd());
    }
    match start(&control, &boot) {
        Ok((spawner, home)) => {
            drop(control);
            let _ = rustix::process::waitpid(Some(spawner), WaitOptions::empty());
            if let Some(home) = home {
                home.remove();
            }
            0
        }
        Err(refusal) => {
            send_refusal(&control, &refusal);
            1
        }
    }
}

/// `/dev/null`, or a closed pipe where there is none.
fn null() -> OwnedFd {
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    rustix::fs::open("/dev/null", flags, rustix::fs::Mode::empty())
        .or_else(|_| rustix::pipe::pipe().map(|(read, _)| read))
        .unwrap_or_else(|_| sys::exit(1))
}

/// Answers a refusal on the control socket: byte 1, then the refusal.
pub fn send_refusal(control: impl AsFd, refusal: &Refusal) {
    let mut message = vec![1];
    message.extend_from_slice(&refusal.encode());
    let _ = rustix::net::send(control, &message, SendFlags::NOSIGNAL);
}

fn start(control: &OwnedFd, boot: &Boot) -> Result<(rustix::process::Pid, Option<Home>), Refusal> {
    crate::lease::failpoint("helper: keeper began");
    let home = Home::take(boot.rung)?;
    crate::lease::failpoint("helper: cgroup made");
    let started = (|| {
        if home.is_some() {
            // Commands set their own back; helpers must outlive a command that eats all memory.
            let _ = fs::write("/proc/self/oom_score_adj", "-1000");
        }
        let identity = take_identity()?;
        let flags = UnshareFlags::NEWPID | UnshareFlags::NEWUTS;
        forbidden(sys::unshare(flags), "make a PID namespace")?;
        rustix::system::sethostname(b"sandbox").step("set the host name")?;
        if let Some(pid) = sys::fork(0).step("fork the spawner")? {
            return Ok(pid);
        }
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
        let rung = home.as_ref().map_or(LimitsRung::Watchdog, |home| home.rung);
        let cgroup = home.as_ref().and_then(|home| home.dir.try_clone().ok());
        spawner::main(Spawner::new(control, identity, rung, cgroup), boot)
    })();
    match started {
        Ok(pid) => Ok((pid, home)),
        Err(refusal) => {
            if let Some(home) = home {
                home.remove();
            }
            Err(refusal)
        }
    }
}

/// A step whose failure means that the kernel forbids sandboxes.
pub fn forbidden(result: io::Result<()>, what: &str) -> Result<(), Refusal> {
    result.step(what).map_err(|refusal| Refusal { cause: Cause::Unsupported, ..refusal })
}

/// Finds the powers that sandboxes are set up with: root's own, or those over a new user
/// namespace in which this user is all there is.
pub fn take_identity() -> Result<Identity, Refusal> {
    let has = rustix::thread::capabilities(None).step("read capabilities")?.effective;
    let needed = CapabilitySet::SYS_ADMIN
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::FOWNER
        | CapabilitySet::CHOWN;
    let root = rustix::process::geteuid().is_root();
    if root && has.contains(needed) && !in_user_namespace() {
        return Ok(Identity { uid: HOST_ID, gid: HOST_ID, privileged: true });
    }
    if root && has.contains(CapabilitySet::SETUID | CapabilitySet::SETGID) && !in_user_namespace() {
        // Root of a container without the power to mount: its uid must not reach a sandbox.
        become_user(HOST_ID, HOST_ID).step("give up root")?;
    }
    let identity = Identity {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        privileged: false,
    };
    enter_user_namespace(identity, identity.uid, identity.gid)?;
    Ok(identity)
}

/// Whether user ids are mapped, so that the host's root is not root.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let mut fields = map.split_whitespace();
    !(fields.next() == Some("0") && fields.next() == Some("0"))
}

/// Takes other ids, for good.
fn become_user(uid: u32, gid: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Makes a user namespace that knows one user and one group, `identity`, as `uid` and `gid`.
/// Root's powers end here: the ids are taken first, and the namespace's powers reach no further
/// than its own objects.
pub fn enter_user_namespace(identity: Identity, uid: u32, gid: u32) -> Result<(), Refusal> {
    if identity.privileged {
        // Kept over the change of ids only because machines may forbid user namespaces to users
        // without powers.
        rustix::thread::set_keep_capabilities(true).step("keep capabilities")?;
        become_user(identity.uid, identity.gid).step("become an unprivileged user")?;
        let mut sets = rustix::thread::capabilities(None).step("read capabilities")?;
        sets.effective = sets.permitted;
        rustix::thread::set_capabilities(None, sets).step("raise capabilities")?;
    }
    forbidden(sys::unshare(UnshareFlags::NEWUSER), "make a user namespace")?;
    // The maps belong to root while the process is not dumpable.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable).step("become dumpable")?;
    write_map("setgroups", "deny")?;
    write_map("uid_map", &format!("{uid} {} 1", identity.uid))?;
    write_map("gid_map", &format!("{gid} {} 1", identity.gid))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).step("hide memory")
}

fn write_map(file: &str, text: &str) -> Result<(), Refusal> {
    let what = format!("write /proc/self/{file}");
    forbidden(fs::write(format!("/proc/self/{file}"), text), &what)
}
