//! The lease registry: what a program would leave behind if it were killed now.
//!
//! One file for each provider, in a directory that is this user's alone. The file is written and
//! locked before the provider's first process exists, and taken away after its last one is gone.
//! The lock is the owner's life: the kernel lets go of it when the owner dies, however that
//! happens, and whoever can lock the file may remove what it names (`reap`). The owner's pid,
//! start time and boot tell people whose it is, and veto what the lock allows.
//!
//! What a dead provider leaves is all found from its lease:
//! - *Processes*: the keeper, recorded before it is told to make anything, and whoever bears the
//!   lease's name. A slot, a sandbox and its commands live in the PID namespace of one of these.
//! - *Cgroups*: named after the keeper, below which the slots' own are.
//! - *Directories*: recorded before they are made, and named after the lease, so that no text in
//!   a lease can name any other directory. What is mounted in them is unmounted first.
//!
//! A sandbox has a page in the file that says since when it lives. A page is one write of a few
//! bytes into the page cache (about 2 microseconds), so each sandbox can be recorded before it is
//! made; nothing waits for a disk. Sandboxes have no mounts, sockets or files that the host sees.

mod process;
mod reap;
mod registry;
mod remove;
#[cfg(test)]
mod tests;

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

pub(crate) use process::ProcessId;
pub use reap::{Leftovers, Reaped};
use registry::Machine;
pub use registry::{LeaseError, Living, Owner, Registry};

/// Bytes of one record: a page, which a single write replaces wholly or not at all.
const PAGE: u64 = 4096;
/// Longest path that a lease can hold, in bytes.
const MAX_PATH: usize = 4000;
/// First line of every lease.
const HEAD: &str = "patchwright-lease 1";
/// End of a lease's file name.
const SUFFIX: &str = ".lease";

/// One record of a lease, at a page of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Record {
    /// Nothing.
    Free,
    /// A sandbox that lives, or is being made or removed, since so many milliseconds after 1970.
    Sandbox(u64),
    /// A directory on the host that goes with the owner.
    Directory(PathBuf),
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        match self {
            Self::Free => b"free\n".to_vec(),
            Self::Sandbox(since) => format!("sandbox {since}\n").into_bytes(),
            Self::Directory(path) => {
                [b"dir ".as_slice(), path.as_os_str().as_bytes(), b"\n"].concat()
            }
        }
    }

    /// Reads a page; the error says what is wrong with it.
    fn decode(page: &[u8]) -> Result<Self, String> {
        let line = one_line(page)?;
        if line == b"free" || line.is_empty() {
            return Ok(Self::Free);
        }
        if let Some(path) = line.strip_prefix(b"dir ") {
            return Ok(Self::Directory(PathBuf::from(OsStr::from_bytes(path))));
        }
        std::str::from_utf8(line)
            .ok()
            .and_then(|line| line.strip_prefix("sandbox "))
            .and_then(|since| since.parse().ok())
            .map(Self::Sandbox)
            .ok_or_else(|| "a record of unknown kind".to_owned())
    }
}

/// The text of a page before its line break; behind it there is only what an earlier, longer
/// record left, which the line break has ended.
fn one_line(page: &[u8]) -> Result<&[u8], String> {
    let end = page.iter().position(|byte| *byte == b'\n' || *byte == 0);
    match end {
        Some(end) if page[end] == b'\n' || end == 0 => Ok(&page[..end]),
        _ => Err("a record without an end".to_owned()),
    }
}

/// A provider's lease. Dropping it takes the file away: only after everything it names is gone.
pub(crate) struct Lease {
    registry: Registry,
    id: String,
    inner: Arc<Inner>,
    owner: ProcessId,
    machine: Machine,
}

struct Inner {
    file: File,
    pages: Mutex<Pages>,
}

struct Pages {
    next: u64,
    free: Vec<u64>,
}

/// A record of a lease; dropping it frees its page.
pub(crate) struct Entry {
    inner: Arc<Inner>,
    page: u64,
}

/// A directory on the host that a lease names.
///
/// Made by [`Lease::directory`]. Removed by the registry if the program dies; while it lives, by
/// whoever holds this, before it is dropped.
pub(crate) struct LeasedDir {
    path: PathBuf,
    _entry: Entry,
}

impl LeasedDir {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LeasedDir {
    fn drop(&mut self) {
        // A directory that was moved to its final place is not there any more, which is fine.
        let _ = remove::tree(&self.path);
    }
}

impl Lease {
    /// Records this program in the registry of this user.
    pub fn take() -> Result<Self, LeaseError> {
        Self::take_in(&Registry::open()?)
    }

    fn take_in(registry: &Registry) -> Result<Self, LeaseError> {
        let machine = Machine::this()?;
        let owner = ProcessId::this()?;
        let mut text = format!(
            "{HEAD}\nowner {} {}\nboot {}\npidns {}\n",
            owner.pid, owner.started, machine.boot, machine.pid_namespace
        );
        text.push_str("keeper 0 0\n");
        let (id, file) = registry.add(text.as_bytes())?;
        failpoint("host: lease written");
        let pages = Mutex::new(Pages { next: 1, free: Vec::new() });
        let inner = Arc::new(Inner { file, pages });
        Ok(Self { registry: registry.clone(), id, inner, owner, machine })
    }

    /// The lease's name, which the helper's processes bear.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Records the keeper. To be called before it is told to make anything.
    pub fn set_keeper(&self, pid: u32) -> Result<(), LeaseError> {
        // One that is dead already leaves nothing and needs no record.
        let Some(keeper) = ProcessId::of(pid) else { return Ok(()) };
        let text = format!(
            "{HEAD}\nowner {} {}\nboot {}\npidns {}\nkeeper {} {}\n",
            self.owner.pid,
            self.owner.started,
            self.machine.boot,
            self.machine.pid_namespace,
            keeper.pid,
            keeper.started
        );
        self.inner.write(0, text.as_bytes())
    }

    /// Records a sandbox that is about to be made.
    pub fn sandbox(&self) -> Result<Entry, LeaseError> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.enter(&Record::Sandbox(since.as_millis() as u64))
    }

    /// Records and makes a directory (mode 0700) below `parent`, whose name starts with `prefix`.
    pub fn directory(&self, parent: &Path, prefix: &str) -> Result<LeasedDir, LeaseError> {
        let refused =
            |why: &str| LeaseError::Directory { path: parent.to_owned(), why: why.to_owned() };
        let parent = parent.canonicalize().map_err(|error| refused(&error.to_string()))?;
        let page = self.inner.take_page();
        let path = parent.join(format!("{prefix}.{}.{page}", self.id));
        let bytes = path.as_os_str().as_bytes();
        if bytes.len() > MAX_PATH || bytes.contains(&b'\n') {
            self.inner.give_page(page);
            return Err(refused("its path is too long, or holds a line break"));
        }
        let entry = Entry { inner: Arc::clone(&self.inner), page };
        self.inner.write(page, &Record::Directory(path.clone()).encode())?;
        failpoint("host: directory recorded");
        let mut builder = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(&path).map_err(|error| refused(&error.to_string()))?;
        failpoint("host: directory made");
        Ok(LeasedDir { path, _entry: entry })
    }

    /// Takes the lease away; once everything that it names is gone.
    pub fn give_up(&self) {
        self.registry.remove(&self.id);
    }

    fn enter(&self, record: &Record) -> Result<Entry, LeaseError> {
        let page = self.inner.take_page();
        let entry = Entry { inner: Arc::clone(&self.inner), page };
        self.inner.write(page, &record.encode())?;
        Ok(entry)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.give_up();
    }
}

impl Inner {
    fn write(&self, page: u64, bytes: &[u8]) -> Result<(), LeaseError> {
        self.file.write_all_at(bytes, page * PAGE).map_err(LeaseError::Record)
    }

    fn take_page(&self) -> u64 {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.free.pop().unwrap_or_else(|| {
            pages.next += 1;
            pages.next - 1
        })
    }

    fn give_page(&self, page: u64) {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner).free.push(page);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.inner.write(self.page, &Record::Free.encode()).is_ok() {
            self.inner.give_page(self.page);
        }
    }
}

/// A place where tests stop the program for good: the host's side kills itself, a helper stays
/// where it is. Any other build has nothing here.
#[cfg(not(test))]
#[inline]
pub(crate) fn failpoint(_place: &str) {}

#[cfg(test)]
pub(crate) use tests::{failpoint, pass_failpoint};
