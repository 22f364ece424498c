//! Removing what dead owners left.

use std::path::PathBuf;

use serde::Serialize;

use super::process::{self, ProcessId};
use super::registry::{Content, LeaseError, Machine, Registry, State, cgroup_name};
use super::{Record, SUFFIX, remove};
use crate::provider::process_name;

/// What one dead owner left, or what was removed of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// The lease.
    pub lease: String,
    /// The owner's process number, which may be another process's by now.
    pub owner_pid: u32,
    /// Sandboxes that were alive when the owner died.
    pub num_sandboxes: usize,
    /// Helper processes that outlived it.
    pub processes: Vec<u32>,
    /// Cgroups.
    pub cgroups: Vec<PathBuf>,
    /// Mounts.
    pub mounts: Vec<PathBuf>,
    /// Directories.
    pub directories: Vec<PathBuf>,
    /// What could not be removed, and why; the lease then stays for another try.
    pub failures: Vec<String>,
}

/// What was found in the registry.
#[derive(Debug, Default)]
pub struct Reaped {
    /// One for each dead owner.
    pub dead: Vec<Leftovers>,
    /// Owners that live, whose sandboxes were left alone.
    pub num_living: usize,
    /// Leases that are not believed, and were left alone.
    pub problems: Vec<LeaseError>,
}

impl Registry {
    /// Removes every process, cgroup, mount and directory that dead owners left, and their
    /// leases. With `dry_run` it only tells.
    ///
    /// # Errors
    /// When the registry or `/proc` cannot be read.
    pub fn reap(&self, dry_run: bool) -> Result<Reaped, LeaseError> {
        let machine = Machine::this()?;
        let (leases, stale) = self.names()?;
        let mut reaped = Reaped::default();
        for name in stale.iter().filter(|_| !dry_run) {
            let _ = self.unlink(name);
        }
        for name in leases {
            match self.look(&name, &machine) {
                Ok(State::Living(_)) => reaped.num_living += 1,
                Ok(State::Gone) => {}
                Ok(State::Dead(held)) => {
                    let (content, _lock) = &*held;
                    let id = name.trim_end_matches(SUFFIX);
                    let mut left = find(id, content, &machine);
                    if !dry_run {
                        clear(content, &machine, &mut left);
                        if left.failures.is_empty()
                            && let Err(error) = self.unlink(&name)
                        {
                            left.failures.push(format!("{name}: {error}"));
                        }
                    }
                    reaped.dead.push(left);
                }
                Err(error) => reaped.problems.push(error),
            }
        }
        Ok(reaped)
    }
}

/// The lease's processes. Of another boot there are none, and those of another PID namespace can
/// be neither seen nor named; they end with their owner.
fn processes(id: &str, content: &Content, machine: &Machine) -> Vec<ProcessId> {
    if content.machine != *machine {
        return Vec::new();
    }
    let mut found = process::bearing(&process_name(id));
    if let Some(keeper) = content.keeper.filter(|keeper| keeper.is_alive())
        && !found.contains(&keeper)
    {
        found.push(keeper);
    }
    found
}

fn find(id: &str, content: &Content, machine: &Machine) -> Leftovers {
    let mut left = Leftovers {
        lease: id.to_owned(),
        owner_pid: content.owner.pid,
        processes: processes(id, content, machine).iter().map(|process| process.pid).collect(),
        ..Leftovers::default()
    };
    if let Some(keeper) = content.keeper
        && content.machine.boot == machine.boot
    {
        left.cgroups = remove::cgroups(&[cgroup_name(keeper)]);
    }
    for (_, record) in &content.records {
        match record {
            Record::Directory(path) => {
                left.mounts.extend(remove::mounts_below(path));
                if path.symlink_metadata().is_ok() {
                    left.directories.push(path.clone());
                }
            }
            Record::Sandbox(_) => left.num_sandboxes += 1,
            Record::Free => {}
        }
    }
    left
}

/// Removes what was found, the processes first: they may still make what the rest removes.
fn clear(content: &Content, machine: &Machine, left: &mut Leftovers) {
    // The keeper is born before it is recorded, and forks until it is dead.
    for _ in 0..4 {
        let processes = processes(&left.lease, content, machine);
        if processes.is_empty() {
            break;
        }
        for process in processes {
            match process.kill() {
                Ok(_) => {}
                Err(error) => left.failures.push(format!("process {}: {error}", process.pid)),
            }
            if !left.processes.contains(&process.pid) {
                left.processes.push(process.pid);
            }
        }
    }
    if !left.failures.is_empty() {
        return;
    }
    let mut failures = Vec::new();
    let mut note = |path: &PathBuf, result: std::io::Result<()>| {
        if let Err(error) = result {
            failures.push(format!("{}: {error}", path.display()));
        }
    };
    left.cgroups.iter().for_each(|path| note(path, remove::cgroup(path)));
    left.mounts.iter().for_each(|path| note(path, remove::unmount(path)));
    left.directories.iter().for_each(|path| note(path, remove::tree(path).map(drop)));
    left.failures = failures;
}
