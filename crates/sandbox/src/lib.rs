//! Native Linux sandboxes: namespaces, overlay, limits, diffs.
//!
//! [`NativeSandboxes`] makes them; each is a [`patchwright_core::Sandbox`]. Nothing has to be
//! installed and `main` has nothing to call: a program that links this crate re-executes itself as
//! the helper, diverted before `main`.
//!
//! How the processes hang together is told in `keeper`, how a sandbox is built in `setup`, how a
//! command is run in `command`.

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
pub use native::NativeSandbox;
pub use plan::LimitsRung;
pub use probe::{Feature, FeatureStatus};
pub use provider::{NativeOptions, NativeSandboxes};
