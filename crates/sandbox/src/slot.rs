//! A slot: a process that makes sandboxes one after the other, in the same cgroup and the same
//! (empty) network namespace, and awaits each one's end.
//!
//! What a slot keeps from one sandbox to the next is what costs time and cannot carry anything
//! over: the network namespace has no interface that is up and no command has power over it; the
//! cgroup is only a counter. Mounts, PIDs, IPC and user namespace are new for every sandbox.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Signal, WaitOptions};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::cgroup::{self, Slot as Cgroup};
use crate::defence::{self, Layer};
use crate::helper;
use crate::keeper::{Identity, forbidden};
use crate::network;
use crate::owners::OwnerMap;
use crate::plan::{LimitsRung, Plan, Source};
use crate::setup;
use crate::spawner::{Spawner, slot_name};
use crate::sys;
use crate::template::{Parts, Views, clone_tree};
use crate::wire::{Context, Kind, Refusal, receive, receive_descriptor, send};

/// Ends a sandbox that was refused while it was set up: the refusal is already sent, and what the
/// host sends besides is read.
pub const REFUSED: i32 = 3;

/// What a sandbox needs of its slot.
pub struct Ground<'a> {
    /// Who commands are.
    pub identity: Identity,
    /// How memory is bounded.
    pub rung: LimitsRung,
    /// The plan.
    pub plan: &'a Plan,
    /// What the root is put together from.
    pub parts: &'a Parts,
    /// The image's layers, the topmost first, then the repository's directory: what overlays are
    /// laid over.
    pub lowers: Vec<OwnedFd>,
    /// The plan's read-only mounts, in its order.
    pub read_only: Vec<OwnedFd>,
    /// The sealed layers.
    pub stack: Option<OwnedFd>,
}

/// The slot's life.
pub fn main(spawner: &Spawner, views: &Views, socket: OwnedFd) -> ! {
    crate::lease::failpoint("helper: slot began");
    let mut stream = UnixStream::from(socket);
    // PID 1's signal descriptor stays behind; a slot waits for its one child and nothing else.
    sys::reset_signals();
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    let cgroup = match enter(spawner) {
        Ok(cgroup) => cgroup,
        Err(refusal) => {
            let _ = send(&mut stream, Kind::Refused, &refusal.encode());
            sys::exit(1);
        }
    };
    if send(&mut stream, Kind::Ready, &[]).is_err() {
        sys::exit(1);
    }
    let mut slot = Slot { spawner, views, cgroup, memory_bytes: 0, owner: None };
    loop {
        let plan = match receive(&mut stream) {
            Ok(Some((Kind::Create, body))) => Plan::decode(&body),
            // The host program has let go of this slot, or is gone.
            _ => sys::exit(0),
        };
        let Ok(plan) = plan else { sys::exit(1) };
        if slot.host(&plan, &mut stream).is_err() {
            // The sandbox's PID 1 died unasked, perhaps in the middle of a reply: the closed
            // socket says so.
            sys::exit(1);
        }
        if send(&mut stream, Kind::Gone, &[]).is_err() {
            sys::exit(1);
        }
    }
}

fn enter(spawner: &Spawner) -> Result<Option<Cgroup>, Refusal> {
    let cgroup = match &spawner.cgroup {
        Some(home) => {
            let name = slot_name(rustix::process::getpid());
            Some(cgroup::enter_slot(home, spawner.rung, &name)?)
        }
        None => None,
    };
    if defence::has(Layer::NetNamespace) {
        forbidden(sys::unshare(UnshareFlags::NEWNET), "make a network namespace")?;
        network::loopback_up().step("bring the loopback interface up")?;
    }
    Ok(cgroup)
}

struct Slot<'a> {
    spawner: &'a Spawner,
    views: &'a Views,
    cgroup: Option<Cgroup>,
    memory_bytes: u64,
    /// The last repository owner's map, which the next repository's likely is too.
    owner: Option<OwnerMap>,
}

impl Slot<'_> {
    /// Makes one sandbox and awaits its end. `Err` when the socket is no longer in step.
    fn host(&mut self, plan: &Plan, stream: &mut UnixStream) -> Result<(), ()> {
        let stack = match plan.sealed.layers {
            0 => None,
            _ => Some(receive_descriptor(&*stream).map_err(drop)?),
        };
        let ground = match self.ground(plan, stack) {
            Ok(ground) => ground,
            Err(refusal) => {
                send(stream, Kind::Refused, &refusal.encode()).map_err(drop)?;
                return drain(stream);
            }
        };
        let mut namespaces = libc::CLONE_NEWNS | libc::CLONE_NEWIPC;
        if defence::has(Layer::PidNamespace) {
            namespaces |= libc::CLONE_NEWPID;
        }
        match sys::fork(namespaces).step("make the sandbox's namespaces") {
            Ok(Some(pid)) => {
                drop(ground);
                let status = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                match status.ok().flatten().and_then(|(_, status)| status.exit_status()) {
                    Some(0 | REFUSED) => Ok(()),
                    _ => Err(()),
                }
            }
            Ok(None) => {
                crate::lease::failpoint("helper: sandbox began");
                sandbox(&ground, stream)
            }
            Err(refusal) => {
                send(stream, Kind::Refused, &refusal.encode()).map_err(drop)?;
                drain(stream)
            }
        }
    }

    /// Moves to a new cgroup of the same name. The old one's charges end with what bears them.
    fn renew(&mut self) -> Result<(), Refusal> {
        let Some(home) = &self.spawner.cgroup else { return Ok(()) };
        let name = slot_name(rustix::process::getpid());
        let aside = format!("{name}-aside");
        let rung = self.spawner.rung;
        self.cgroup = Some(cgroup::enter_slot(home, rung, &aside)?);
        cgroup::remove_child(home, &name);
        self.cgroup = Some(cgroup::enter_slot(home, rung, &name)?);
        cgroup::remove_child(home, &aside);
        self.memory_bytes = 0;
        Ok(())
    }

    fn ground<'p>(&mut self, plan: &'p Plan, stack: Option<OwnedFd>) -> Result<Ground<'p>, Refusal>
    where
        Self: 'p,
    {
        if plan.renew {
            self.renew()?;
        }
        if let Some(cgroup) = &self.cgroup
            && self.memory_bytes != plan.limits.memory_bytes
            && defence::has(Layer::Memory)
        {
            cgroup.set_memory(plan.limits.memory_bytes).step("set the memory limit")?;
            self.memory_bytes = plan.limits.memory_bytes;
        }
        let mut ground = Ground {
            identity: self.spawner.identity,
            rung: self.spawner.rung,
            plan,
            parts: &self.views.parts,
            lowers: Vec::new(),
            read_only: Vec::new(),
            stack,
        };
        let needs_host = matches!(plan.source, Source::Directory(_))
            || !plan.layers.is_empty()
            || !plan.read_only.is_empty();
        if needs_host {
            let mounts = Some(LinkNameSpaceType::Mount);
            use_view(&self.views.host, mounts)?;
            let found = setup::find_sources(&mut ground, self.spawner.overlay, &mut self.owner);
            use_view(&self.views.template, mounts)?;
            found?;
        }
        Ok(ground)
    }
}

fn use_view(view: &OwnedFd, kind: Option<LinkNameSpaceType>) -> Result<(), Refusal> {
    move_into_link_name_space(std::os::fd::AsFd::as_fd(view), kind).step("change the view")
}

/// Finds a host directory as a detached mount.
pub fn source(path: &std::path::Path) -> Result<OwnedFd, Refusal> {
    clone_tree(path).map_err(|refusal| Refusal::path(path.display().to_string(), refusal.why))
}

/// PID 1 of a sandbox, from its birth on.
fn sandbox(ground: &Ground<'_>, stream: &mut UnixStream) -> ! {
    match setup::build(ground, stream) {
        Ok(built) => helper::serve(stream, &built, ground.plan, ground.rung),
        Err(refusal) => {
            let sent = send(stream, Kind::Refused, &refusal.encode());
            let _ = stream.flush();
            // Whether or not the tree was read, the host sends nothing after its end.
            sys::exit(if sent.is_ok() { REFUSED } else { 1 });
        }
    }
}

/// Reads the tree of a plan that was refused before anything read it.
pub fn drain(stream: &mut UnixStream) -> Result<(), ()> {
    loop {
        match receive(stream) {
            Ok(Some((Kind::End, _))) => return Ok(()),
            Ok(Some(_)) => {}
            _ => return Err(()),
        }
    }
}
