//! What is on the machine before and after many sandboxes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use patchwright_sandbox::Registry;
use serde::Serialize;

/// How long other programs' cgroups and directories may take to go.
const PATIENCE: Duration = Duration::from_secs(3);

/// Things that a sandbox could leave. Mounts, descriptors and children are this program's; cgroups
/// and directories are those of its name on the whole machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    file_descriptors: usize,
    mounts: usize,
    cgroups: usize,
    directories: usize,
    processes: usize,
}

/// Counts before and after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leftovers {
    /// Sandboxes that were made and destroyed in between.
    pub num_lives: usize,
    /// Before the first.
    pub before: Counts,
    /// After the last, and its provider.
    pub after: Counts,
}

impl Leftovers {
    /// Counts again after `num_lives`. Other programs' cgroups and directories come and go, so
    /// that more than before is looked at again for a while.
    pub fn since(before: Counts, num_lives: usize) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let counted = Self { num_lives, before, after: Counts::now() };
            if counted.is_clean() || Instant::now() >= deadline {
                return counted;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Whether there is nothing more than before.
    pub fn is_clean(&self) -> bool {
        let all =
            |c: &Counts| [c.file_descriptors, c.mounts, c.cgroups, c.directories, c.processes];
        all(&self.before).iter().zip(all(&self.after)).all(|(before, after)| after <= *before)
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = (&self.before, &self.after);
        write!(
            f,
            "Before and after {} sandboxes: file descriptors {} and {}, mounts {} and {}, cgroups \
             {} and {}, directories {} and {}, processes {} and {}.",
            self.num_lives,
            a.file_descriptors,
            b.file_descriptors,
            a.mounts,
            b.mounts,
            a.cgroups,
            b.cgroups,
            a.directories,
            b.directories,
            a.processes,
            b.processes
        )
    }
}

impl Counts {
    /// What is there now.
    pub fn now() -> Self {
        let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let hierarchies = mountinfo.lines().filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            right.starts_with("cgroup").then(|| left.split(' ').nth(4))?.map(PathBuf::from)
        });
        let registries = Registry::all();
        let temporary = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
        Self {
            file_descriptors: entries(Path::new("/proc/self/fd")).len(),
            mounts: mountinfo.lines().count(),
            cgroups: hierarchies.map(|at| ours(&at, 8)).sum(),
            directories: registries.iter().map(|r| entries(r.path()).len()).sum::<usize>()
                + temporary.iter().map(|dir| ours(dir, 0)).sum::<usize>(),
            processes: children(),
        }
    }
}

fn entries(dir: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(dir).into_iter().flatten().flatten().collect()
}

/// Entries named after the program, `depth` levels down.
fn ours(dir: &Path, depth: usize) -> usize {
    entries(dir)
        .iter()
        .map(|entry| {
            let own = entry.file_name().to_string_lossy().starts_with("patchwright");
            let below = depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir());
            usize::from(own) + if below { ours(&entry.path(), depth - 1) } else { 0 }
        })
        .sum()
}

/// This process's children.
fn children() -> usize {
    let own = std::process::id().to_string();
    entries(Path::new("/proc"))
        .iter()
        .filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok())
        .filter(|stat| {
            let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
            parent == Some(own.as_str())
        })
        .count()
}
