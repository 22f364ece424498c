//! Native Linux sandboxes: namespaces, overlay, limits, diffs.
//!
//! [`NativeSandboxes`] makes them; each is a [`patchwright_core::Sandbox`]. Nothing has to be
//! installed and `main` has nothing to call: a program that links this crate re-executes itself as
//! the helper, diverted before `main`.
//!
//! How the processes hang together is told in `keeper`, how a sandbox is built in `setup`, how a
//! command is run in `command`.
//!
//! # What stands between a command and the machine
//!
//! User, PID, mount, network, IPC and UTS namespaces with one unprivileged id; no capabilities and
//! `no_new_privs`; a root put together from read-only mounts, with `/proc` masked; an allow-list of
//! system calls (`seccomp`); bounds on memory, processes, CPU and wall-clock time, disk, files and
//! output; three descriptors, an environment of its own, a network that is one loopback interface
//! and leads nowhere; and the end of everything with the host
//! program. Each layer has a name (`defence`), and the attack suite (`tests/attacks`) shows for
//! each that its attack succeeds without it; what held is listed in `target/attacks.txt`.
//!
//! What this cannot give: commands run on the host's kernel, so a fault in a system call that is
//! allowed is a way out; caches, the clock and the load of the machine are shared and can be
//! measured from inside; and where there is no memory controller the bound on memory is kept by
//! looking every 10 ms, so that it can be passed for that long. Where commands are a determined
//! adversary's, run the whole program in a virtual machine.

#![deny(unsafe_code)]

mod branch;
mod cgroup;
mod command;
mod defence;
mod diff;
mod fill;
mod helper;
mod keeper;
mod lease;
mod links;
mod native;
mod network;
mod overlay;
mod owners;
mod plan;
mod probe;
mod provider;
mod python;
mod seccomp;
mod setup;
mod slot;
mod snapshot;
mod spawner;
mod sys;
mod template;
mod tree;
mod watch;
mod wire;

#[cfg(feature = "attack-tests")]
#[doc(hidden)]
pub use defence::{Defences, Fault, Layer};
pub use lease::{LeaseError, Leftovers, Living, Owner, Reaped, Registry};
pub use native::{BESIDE_DISK, NativeSandbox};
pub use plan::LimitsRung;
pub use probe::{Feature, FeatureStatus};
pub use provider::{NativeOptions, NativeSandboxes};
