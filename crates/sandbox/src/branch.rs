//! The lives of a sandbox: how one starts, how a fork seals what it has written, how it goes on.
//!
//! A fork ends the sandbox's PID 1, which hands its layers over as one descriptor: a tree of
//! mounts. They are not written from then on. The copy starts over them with a new layer on top,
//! and so does the sandbox itself when it is next used. Nothing is copied, whatever the number of
//! files. Who holds a layer, by a mount or by a descriptor, keeps it; the kernel frees it with the
//! last.
//!
//! What is sealed counts in full against `disk_bytes` of every sandbox over it, and its memory
//! against the sandbox that wrote it, until that one ends: then nobody's limit bears it any more,
//! and the slot counts anew for the next. Without cgroups it counts against every sandbox over it.
//!
//! A file of before a fork takes its room again when it is first changed. Before that eats half of
//! what is free, or there are too many layers, a fork copies what is in view into one layer first.
//!
//! Names of one file (hard links) stay one file over a fork where sandboxes are made as root; the
//! kernel does not do it for users, and there they part when one of them is next written.

use std::io::{self, BufReader, BufWriter, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use patchwright_core::SandboxError;
use rustix::net::RecvFlags;

use crate::helper::SNAPSHOT_ALL;
use crate::native::{GRACE, NativeSandbox};
use crate::plan::{LimitsRung, Plan, Sealed};
use crate::provider::{Inner, Slot, died, from_refusal, host_error};
use crate::setup::num_inodes;
use crate::template::MAX_STACK;
use crate::wire::{
    Cause, Decoder, Kind, Refusal, malformed, receive, receive_descriptor, send, send_descriptor,
};

/// Layers past which a fork copies. Each costs a little at every file that is looked up.
const MANY_LAYERS: u32 = MAX_STACK as u32 - 64;

/// How a start ended.
pub enum Launch {
    /// The sandbox waits for requests.
    Ready,
    /// The machine has no overlay for it; the slot is free.
    NoOverlay(Refusal),
    /// It was refused; the slot is free.
    Refused(SandboxError),
    /// The slot is of no more use.
    Broken(SandboxError),
}

impl Launch {
    /// Whether the sandbox runs.
    pub fn into_result(self) -> Result<(), SandboxError> {
        match self {
            Self::Ready => Ok(()),
            Self::NoOverlay(refusal) => Err(from_refusal(refusal)),
            Self::Refused(error) | Self::Broken(error) => Err(error),
        }
    }
}

/// Starts the plan's sandbox in a slot, over `stack` where the plan has sealed layers, with the
/// tree that `fill` sends. Beside the outcome comes `stack` anew, if the plan lends it.
pub fn launch(
    slot: &Slot,
    plan: &Plan,
    stack: Option<&OwnedFd>,
    fill: impl FnOnce(&mut BufWriter<&UnixStream>) -> Result<(), SandboxError>,
) -> (Launch, Option<OwnedFd>) {
    let stream = &slot.stream;
    let failed = |error: io::Error| host_error("make a sandbox", error);
    let _ = stream.set_read_timeout(Some(GRACE));
    let mut to = BufWriter::with_capacity(128 << 10, stream);
    let plan = Plan { renew: slot.owes, ..plan.clone() };
    let sent = send(&mut to, Kind::Create, &plan.encode())
        .and_then(|()| match stack {
            Some(stack) => to.flush().and_then(|()| send_descriptor(stream, stack)),
            None => Ok(()),
        })
        .map_err(failed)
        .and_then(|()| fill(&mut to))
        .and_then(|()| send(&mut to, Kind::End, &[]).and_then(|()| to.flush()).map_err(failed));
    // What could not be sent must not be sent when the writer goes.
    let _ = to.into_parts();
    let mut again = None;
    let answer = match sent {
        Ok(()) => loop {
            match receive(&mut &*stream) {
                Ok(Some((Kind::Stack, _))) => again = receive_descriptor(stream).ok(),
                answer => break answer.ok().flatten(),
            }
        },
        Err(error) => return (Launch::Broken(error), again),
    };
    let launch = match answer {
        Some((Kind::Ready, _)) => Launch::Ready,
        Some((Kind::Refused, body)) => {
            let refusal = Refusal::decode(&body);
            let free = matches!(receive(&mut &*stream), Ok(Some((Kind::Gone, _))));
            match refusal {
                Ok(refusal) if free && refusal.cause == Cause::NoOverlay => {
                    Launch::NoOverlay(refusal)
                }
                Ok(refusal) if free => Launch::Refused(from_refusal(refusal)),
                Ok(refusal) => Launch::Broken(from_refusal(refusal)),
                Err(error) => Launch::Broken(failed(error)),
            }
        }
        _ => Launch::Broken(died("while it was made")),
    };
    (launch, again)
}

/// A slot that is alive: one that was killed while it was idle is passed over.
pub fn take_slot(inner: &Inner) -> Result<Slot, SandboxError> {
    loop {
        let slot = inner.take_slot()?;
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(&slot.stream, &mut [0u8; 1][..], flags) {
            Err(rustix::io::Errno::AGAIN) => return Ok(slot),
            // Closed, or in the middle of a word.
            _ => inner.abandon(slot),
        }
    }
}

impl NativeSandbox {
    /// Starts in a slot of its own.
    pub(crate) fn start(
        &mut self,
        stack: Option<&OwnedFd>,
        fill: impl FnOnce(&mut BufWriter<&UnixStream>) -> Result<(), SandboxError>,
    ) -> (Launch, Option<OwnedFd>) {
        let mut slot = match take_slot(&self.inner) {
            Ok(slot) => slot,
            Err(error) => return (Launch::Refused(error), None),
        };
        let (launch, again) = launch(&slot, &self.plan, stack, fill);
        match launch {
            Launch::Ready => {
                slot.owes = false;
                self.slot = Some(slot);
            }
            Launch::Broken(_) => self.inner.abandon(slot),
            Launch::NoOverlay(_) | Launch::Refused(_) => self.inner.give_back(slot),
        }
        (launch, again)
    }

    /// As [`NativeSandbox::start`], once more in another slot if the first one was found dead.
    pub(crate) fn start_surely(
        &mut self,
        stack: Option<&OwnedFd>,
        fill: impl Fn(&mut BufWriter<&UnixStream>) -> Result<(), SandboxError>,
    ) -> (Launch, Option<OwnedFd>) {
        match self.start(stack, &fill) {
            (Launch::Broken(SandboxError::Io { .. } | SandboxError::Died(_)), None) => {
                self.start(stack, &fill)
            }
            other => other,
        }
    }

    /// Goes on after a fork, if there was one.
    pub(crate) fn wake(&mut self) -> Result<(), SandboxError> {
        let Some(stack) = self.stack.take() else { return Ok(()) };
        let Some(slot) = &self.slot else { return Err(died("it was used after its end")) };
        let (launch, _) = launch(slot, &self.plan, Some(&stack), |_| Ok(()));
        match launch {
            Launch::Ready => Ok(()),
            Launch::Broken(error) => Err(self.dead(&error.to_string())),
            refused => {
                self.stack = Some(stack);
                refused.into_result()
            }
        }
    }

    /// A second sandbox over what this one has written.
    pub(crate) fn branch(&mut self) -> Result<Self, SandboxError> {
        if self.slot.is_none() {
            return Err(died("it was used after its end"));
        }
        if !self.inner.machine().stacks {
            return self.copy();
        }
        if self.stack.is_none() {
            self.seal()?;
            if self.is_crowded() {
                *self = self.copy()?;
                self.seal()?;
            }
        }
        let mut branch = self.sibling();
        branch.plan.lend = true;
        let (launch, again) = branch.start_surely(self.stack.as_ref(), |_| Ok(()));
        branch.plan.lend = false;
        self.stack = again.or(self.stack.take());
        launch.into_result().map(|()| branch)
    }

    /// The same sandbox, not yet started.
    fn sibling(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            slot: None,
            stack: None,
            is_forked: false,
            plan: self.plan.clone(),
            base: self.base,
            repo: self.repo.clone(),
            env: self.env.clone(),
        }
    }

    /// Ends PID 1 and takes its layers over.
    fn seal(&mut self) -> Result<(), SandboxError> {
        let body = self.ask(Kind::Seal, &[], Duration::ZERO)?;
        let Some(slot) = &self.slot else { return Err(died("it was used after its end")) };
        let taken = (|| {
            let mut body = Decoder::new(&body);
            let (bytes, inodes) = (body.u64()?, body.u64()?);
            let stack = receive_descriptor(&slot.stream)?;
            match receive(&mut &slot.stream)? {
                Some((Kind::Gone, _)) => Ok((bytes, inodes, stack)),
                _ => Err(malformed("it did not end")),
            }
        })();
        let (bytes, inodes, stack) =
            taken.map_err(|error: io::Error| self.dead(&error.to_string()))?;
        let below = self.plan.sealed;
        self.plan.sealed = Sealed {
            layers: below.layers + 1,
            bytes: below.bytes.saturating_add(bytes),
            inodes: below.inodes.saturating_add(inodes),
        };
        if below.layers == 0 {
            self.base = self.plan.sealed;
        }
        self.stack = Some(stack);
        self.is_forked = true;
        Ok(())
    }

    /// Whether what is in view should be copied into one layer.
    fn is_crowded(&self) -> bool {
        let (sealed, base) = (self.plan.sealed, self.base);
        let disk = self.plan.limits.disk_bytes;
        let eaten = |now: u64, first: u64, all: u64| {
            now.saturating_sub(first) >= all.saturating_sub(first) / 2
        };
        sealed.layers >= MANY_LAYERS
            || sealed.layers > 1
                && (eaten(sealed.bytes, base.bytes, disk)
                    || eaten(sealed.inodes, base.inodes, num_inodes(disk)))
    }

    /// A second sandbox with a copy of all that is written, in one layer.
    fn copy(&mut self) -> Result<Self, SandboxError> {
        self.wake()?;
        let Some(slot) = &self.slot else { return Err(died("it was used after its end")) };
        let mut copy = self.sibling();
        copy.plan.sealed = Sealed::default();
        let mut source = Ok(());
        let (launch, _) = copy.start(None, |to| {
            source = relay(&slot.stream, |kind, body| send(to, kind, body));
            Ok(())
        });
        match source {
            Ok(()) => launch.into_result().map(|()| copy),
            Err(Relay::Refused(refusal)) => Err(from_refusal(refusal)),
            Err(Relay::Broken(error)) => Err(self.dead(&error.to_string())),
        }
    }

    /// Kills everything and awaits the end; once is enough.
    pub(crate) fn end(&mut self) {
        let Some(mut slot) = self.slot.take() else { return };
        let is_idle = match self.stack.take() {
            Some(_) => true,
            None => slot
                .stream
                .set_read_timeout(Some(GRACE))
                .and_then(|()| send(&mut &slot.stream, Kind::Destroy, &[]))
                .and_then(|()| receive(&mut &slot.stream))
                .is_ok_and(|answer| matches!(answer, Some((Kind::Gone, _)))),
        };
        // Layers that a fork still reads are on the account of this slot's cgroup.
        slot.owes |= self.is_forked && self.inner.machine().rung != LimitsRung::Watchdog;
        if is_idle {
            self.inner.give_back(slot);
        } else {
            // It died by itself; its slot has ended with it, and this makes sure.
            self.inner.abandon(slot);
        }
    }
}

/// Why a sandbox's files could not be taken out.
pub enum Relay {
    /// The sandbox said so, and lives.
    Refused(Refusal),
    /// The sandbox is out of step.
    Broken(io::Error),
}

/// Carries all that is written in a sandbox over to `to`, without its end. The source is read to
/// its end whatever becomes of the other side.
pub fn relay(
    source: &UnixStream,
    mut to: impl FnMut(Kind, &[u8]) -> io::Result<()>,
) -> Result<(), Relay> {
    let started = source
        .set_read_timeout(Some(GRACE))
        .and_then(|()| send(&mut &*source, Kind::Snapshot, &[SNAPSHOT_ALL]));
    started.map_err(Relay::Broken)?;
    let mut from = BufReader::with_capacity(128 << 10, source);
    let mut writable = true;
    loop {
        match receive(&mut from).map_err(Relay::Broken)? {
            Some((Kind::End, _)) => return Ok(()),
            Some((Kind::Refused, body)) => {
                return Err(Relay::Refused(Refusal::decode(&body).map_err(Relay::Broken)?));
            }
            Some((kind, body)) => writable = writable && to(kind, &body).is_ok(),
            None => return Err(Relay::Broken(io::ErrorKind::UnexpectedEof.into())),
        }
    }
}
