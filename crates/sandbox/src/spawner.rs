//! The spawner: PID 1 of the provider's PID namespace. It builds the template once and forks a
//! slot whenever the host program asks for one.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags};
use rustix::process::{Pid, Signal, WaitOptions};

use crate::cgroup;
use crate::defence::{self, Layer};
use crate::keeper::{Identity, MAX_CONTROL, send_refusal};
use crate::overlay;
use crate::plan::{Boot, LimitsRung, Machine};
use crate::seccomp;
use crate::slot;
use crate::sys;
use crate::template::{self, Views};
use crate::wire::{Decoder, Refusal};

/// Control request: fork a slot for the socket that comes along.
pub const NEW_SLOT: u8 = 1;
/// Control request: kill a slot (its number follows) and await its end.
pub const KILL_SLOT: u8 = 2;

/// What the spawner and its slots share.
pub struct Spawner {
    /// The control socket.
    pub control: OwnedFd,
    /// Who commands are.
    pub identity: Identity,
    /// How memory is bounded.
    pub rung: LimitsRung,
    /// The provider's cgroup.
    pub cgroup: Option<OwnedFd>,
    /// Whether directories can be overlays.
    pub overlay: bool,
}

impl Spawner {
    /// Takes over what the keeper prepared.
    pub fn new(
        control: &OwnedFd,
        identity: Identity,
        rung: LimitsRung,
        cgroup: Option<OwnedFd>,
    ) -> Self {
        let control = control.try_clone().unwrap_or_else(|_| sys::exit(1));
        Self { control, identity, rung, cgroup, overlay: false }
    }
}

/// The spawner's life.
pub fn main(mut spawner: Spawner, boot: &Boot) -> ! {
    crate::lease::failpoint("helper: spawner began");
    let (views, signals) = match prepare(boot, spawner.rung) {
        Ok(prepared) => prepared,
        Err(refusal) => {
            send_refusal(&spawner.control, &refusal);
            sys::exit(1);
        }
    };
    spawner.overlay = template::tmpfs_has_user_attributes();
    let machine = Machine {
        rung: spawner.rung,
        privileged: spawner.identity.privileged,
        overlay: spawner.overlay,
        stacks: spawner.overlay && overlay::takes_single_layers(),
    };
    let mut hello = vec![0];
    hello.extend_from_slice(&machine.encode());
    if rustix::net::send(&spawner.control, &hello, SendFlags::NOSIGNAL).is_err() {
        sys::exit(1);
    }
    loop {
        let mut fds =
            [PollFd::new(&spawner.control, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => sys::exit(1),
        }
        let (asked, died) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if died {
            let mut drained = [0u8; 1024];
            let _ = rustix::io::read(&signals, &mut drained);
            reap(&spawner);
        }
        if asked {
            serve(&spawner, &views);
        }
    }
}

fn prepare(boot: &Boot, rung: LimitsRung) -> Result<(Views, OwnedFd), Refusal> {
    seccomp::prepare(rung)?;
    let signals = sys::child_signals().map_err(|error| Refusal::io("signalfd", &error))?;
    Ok((template::build(&boot.prefixes)?, signals))
}

/// Awaits dead slots (and orphans) and removes their cgroups.
fn reap(spawner: &Spawner) {
    while let Ok(Some((pid, _))) = rustix::process::wait(WaitOptions::NOHANG) {
        forget(spawner, pid);
    }
}

fn forget(spawner: &Spawner, pid: Pid) {
    if let Some(home) = &spawner.cgroup {
        cgroup::remove_child(home, &slot_name(pid));
    }
}

/// Name of a slot's cgroup.
pub fn slot_name(pid: Pid) -> String {
    format!("slot-{}", pid.as_raw_nonzero())
}

fn serve(spawner: &Spawner, views: &Views) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; MAX_CONTROL];
    let mut parts = [std::io::IoSliceMut::new(&mut buffer)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let n = match rustix::net::recvmsg(&spawner.control, &mut parts, &mut ancillary, flags) {
        Ok(message) if message.bytes > 0 => message.bytes,
        // The host program is gone: the end of PID 1 is the end of everything.
        _ => {
            if !defence::has(Layer::ParentDeath) {
                while rustix::process::wait(WaitOptions::empty()).is_ok() {}
            }
            sys::exit(0)
        }
    };
    let socket = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut request = Decoder::new(&buffer[..n]);
    let answer = match (request.u8(), socket) {
        (Ok(NEW_SLOT), Some(socket)) => new_slot(spawner, views, socket),
        (Ok(KILL_SLOT), _) => {
            if let Some(pid) = request.u32().ok().and_then(|pid| Pid::from_raw(pid as i32)) {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                forget(spawner, pid);
            }
            Ok(0)
        }
        _ => Err(Refusal::io("control", &crate::wire::malformed("unknown request"))),
    };
    match answer {
        Ok(number) => {
            let mut message = vec![0];
            message.extend_from_slice(&number.to_le_bytes());
            let _ = rustix::net::send(&spawner.control, &message, SendFlags::NOSIGNAL);
        }
        Err(refusal) => send_refusal(spawner.control.as_fd(), &refusal),
    }
}

fn new_slot(spawner: &Spawner, views: &Views, socket: OwnedFd) -> Result<u32, Refusal> {
    match sys::fork(0).map_err(|error| Refusal::io("fork a slot", &error))? {
        Some(pid) => Ok(pid.as_raw_nonzero().get() as u32),
        None => slot::main(spawner, views, socket),
    }
}
