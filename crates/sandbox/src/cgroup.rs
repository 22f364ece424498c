//! The memory controller, where there is one that may be used.
//!
//! A provider has one directory, each of its slots one below it. Processes are never moved while a
//! sandbox is made: moving one waits for an RCU grace period (milliseconds). A slot moves itself
//! in once, and the sandboxes that it forks, one after the other, are born there.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};

use crate::plan::LimitsRung;
use crate::wire::{Context, Refusal};

const PREFIX: &str = "patchwright-";

/// A provider's cgroup.
pub struct Home {
    /// v1 or v2.
    pub rung: LimitsRung,
    path: PathBuf,
    /// The directory, held open: the slots reach it by this after the host's files are out of view.
    pub dir: OwnedFd,
}

impl Home {
    /// Takes the best rung there is, or the one demanded. `None` is [`LimitsRung::Watchdog`].
    pub fn take(demand: Option<LimitsRung>) -> Result<Option<Self>, Refusal> {
        if demand == Some(LimitsRung::Watchdog) {
            return Ok(None);
        }
        let mut reasons = Vec::new();
        for rung in [LimitsRung::CgroupV2, LimitsRung::CgroupV1] {
            if demand.is_some_and(|demanded| demanded != rung) {
                continue;
            }
            for parent in candidates(rung) {
                match Self::make(rung, &parent) {
                    Ok(home) => return Ok(Some(home)),
                    Err(error) => reasons.push(format!("{}: {error}", parent.display())),
                }
            }
        }
        match demand {
            None => Ok(None),
            Some(rung) => Err(Refusal {
                cause: crate::wire::Cause::Unsupported,
                what: format!("limits by {rung}"),
                why: if reasons.is_empty() {
                    "no memory controller is mounted".to_owned()
                } else {
                    reasons.join("; ")
                },
                errno: 0,
            }),
        }
    }

    fn make(rung: LimitsRung, parent: &Path) -> io::Result<Self> {
        if rung == LimitsRung::CgroupV2 {
            let control = parent.join("cgroup.subtree_control");
            if !fs::read_to_string(&control)?.split_whitespace().any(|c| c == "memory") {
                fs::write(&control, "+memory")?;
            }
        } else if !parent.join("memory.limit_in_bytes").exists() {
            return Err(io::ErrorKind::NotFound.into());
        }
        sweep(parent);
        let pid = std::process::id();
        let started = start_time(pid).unwrap_or_default();
        let path = parent.join(format!("{PREFIX}{pid}-{started}"));
        fs::create_dir(&path)?;
        let made = (|| {
            if rung == LimitsRung::CgroupV2 {
                fs::write(path.join("cgroup.subtree_control"), "+memory")?;
            }
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let dir = rustix::fs::open(&path, flags, Mode::empty())?;
            // A trial: the rung is only in force where a limit can really be set.
            let slot = Slot::make(rung, &dir, "trial")?;
            let set = slot.set_memory(1 << 30);
            remove_child(&dir, "trial");
            set?;
            Ok(dir)
        })();
        match made {
            Ok(dir) => Ok(Self { rung, path, dir }),
            Err(error) => {
                let _ = fs::remove_dir(&path);
                Err(error)
            }
        }
    }

    /// Removes the cgroup with all slots, whose processes must be dead.
    pub fn remove(&self) {
        for _ in 0..100 {
            remove_tree(&self.path);
            if !self.path.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A slot's cgroup.
pub struct Slot {
    rung: LimitsRung,
    dir: OwnedFd,
}

impl Slot {
    /// Makes the directory `name` below the home.
    pub fn make(rung: LimitsRung, home: &OwnedFd, name: &str) -> io::Result<Self> {
        rustix::fs::mkdirat(home, name, Mode::from(0o755))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(home, name, flags, Mode::empty())?;
        Ok(Self { rung, dir })
    }

    /// Moves this process in.
    pub fn enter(&self) -> io::Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Sets the bound on memory and swap together.
    pub fn set_memory(&self, bytes: u64) -> io::Result<()> {
        let value = bytes.to_string();
        if self.rung == LimitsRung::CgroupV2 {
            self.write("memory.max", &value)?;
            return optional(self.write("memory.swap.max", "0"));
        }
        // memsw must never be below the plain limit, so a growing limit needs it raised first.
        let raised = optional(self.write("memory.memsw.limit_in_bytes", &value));
        self.write("memory.limit_in_bytes", &value)?;
        raised.or_else(|_| optional(self.write("memory.memsw.limit_in_bytes", &value)))
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, file, flags, Mode::empty())?;
        rustix::io::write(&file, value.as_bytes())?;
        Ok(())
    }
}

/// A kernel without swap accounting has no file for it, and nothing to bound.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes a slot's directory; the process may have died a moment ago.
pub fn remove_child(home: &OwnedFd, name: &str) {
    for _ in 0..20 {
        match rustix::fs::unlinkat(home, name, AtFlags::REMOVEDIR) {
            Err(rustix::io::Errno::BUSY) => std::thread::sleep(Duration::from_millis(1)),
            _ => return,
        }
    }
}

fn remove_tree(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let _ = fs::remove_dir(path);
}

/// Removes what providers left that are dead.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(owner) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        let Some((pid, started)) = owner.split_once('-') else { continue };
        let alive = pid.parse().ok().and_then(start_time).is_some_and(|t| t.to_string() == started);
        // One that is alive in another PID namespace is not empty, and the kernel refuses.
        if !alive {
            remove_tree(&entry.path());
        }
    }
}

/// When a process was started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// Directories that a provider's cgroup might be made in, best first.
fn candidates(rung: LimitsRung) -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    candidates_in(rung, &mounts, &own)
}

fn candidates_in(rung: LimitsRung, mounts: &str, own: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for line in mounts.lines() {
        // "… root mountpoint options … - fstype source super-options"
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let left: Vec<_> = left.split(' ').collect();
        let right: Vec<_> = right.split(' ').collect();
        let (Some(root), Some(at), Some(kind)) = (left.get(3), left.get(4), right.first()) else {
            continue;
        };
        let v2 = rung == LimitsRung::CgroupV2;
        let controllers = right.get(2).copied().unwrap_or_default();
        let fits = if v2 {
            *kind == "cgroup2"
        } else {
            *kind == "cgroup" && controllers.split(',').any(|c| c == "memory")
        };
        if !fits {
            continue;
        }
        let path = own.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let mine = if v2 { id == "0" } else { names.split(',').any(|c| c == "memory") };
            mine.then_some(path)
        });
        let Some(path) = path else { continue };
        // Inside a container the mount's root is below the hierarchy's, or the path is relative
        // to a cgroup namespace.
        let inside = path.strip_prefix(root.trim_end_matches('/')).unwrap_or(path);
        let own = PathBuf::from(at).join(inside.trim_start_matches('/'));
        // v2 allows no processes beside child groups, so where ours is a leaf the parent serves.
        if v2 && let Some(parent) = own.parent().filter(|p| p.starts_with(at)) {
            out.push(own.clone());
            out.push(parent.to_owned());
        } else {
            out.push(own);
        }
    }
    out
}

/// Makes a slot's cgroup and moves this process in.
pub fn enter_slot(home: &OwnedFd, rung: LimitsRung, name: &str) -> Result<Slot, Refusal> {
    let slot = Slot::make(rung, home, name).step("make a cgroup")?;
    slot.enter().step("enter a cgroup")?;
    Ok(slot)
}

#[cfg(test)]
mod tests {
    use super::candidates_in;
    use crate::plan::LimitsRung;
    use std::path::PathBuf;

    const HYBRID: &str = "\
30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
31 30 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
32 30 0:28 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn hybrid_machines_give_both_hierarchies() {
        let own = "4:memory:/a/b\n8:pids:/\n0::/\n";
        assert_eq!(
            candidates_in(LimitsRung::CgroupV1, HYBRID, own),
            [PathBuf::from("/sys/fs/cgroup/memory/a/b")]
        );
        assert_eq!(
            candidates_in(LimitsRung::CgroupV2, HYBRID, own),
            [PathBuf::from("/sys/fs/cgroup/unified/")]
        );
    }

    #[test]
    fn a_delegated_leaf_offers_its_parent_too() {
        let mounts = "35 1 0:30 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let own = "0::/user.slice/app.slice/x.scope\n";
        assert_eq!(
            candidates_in(LimitsRung::CgroupV2, mounts, own),
            [
                PathBuf::from("/sys/fs/cgroup/user.slice/app.slice/x.scope"),
                PathBuf::from("/sys/fs/cgroup/user.slice/app.slice"),
            ]
        );
    }

    #[test]
    fn a_container_s_mount_root_is_taken_off() {
        let mounts = "31 30 0:27 /docker/c1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let own = "4:memory:/docker/c1\n";
        assert_eq!(
            candidates_in(LimitsRung::CgroupV1, mounts, own),
            [PathBuf::from("/sys/fs/cgroup/memory/")]
        );
    }
}
