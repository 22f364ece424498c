//! The directory of leases, and reading what is in it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::Serialize;

use super::process::ProcessId;
use super::{HEAD, PAGE, Record, SUFFIX};

/// Environment variable that names the registry's directory.
const VARIABLE: &str = "PATCHWRIGHT_RUNTIME_DIR";
/// Start of the name of a lease that is being written.
const NEW: &str = ".new.";
/// Pages of a lease, at most: beyond it is no lease of ours.
const MAX_PAGES: u64 = 1 << 16;
/// Files that are looked at in a registry, at most.
const MAX_FILES: usize = 100_000;

/// Why there is no lease, or why one is not believed.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// No directory can be used as the registry.
    #[error(
        "sandboxes cannot be recorded, so none is made: {0}; let PATCHWRIGHT_RUNTIME_DIR name a \
         directory of yours (mode 0700)"
    )]
    NoRegistry(String),
    /// A directory that was asked for cannot be recorded or made.
    #[error("{}: cannot hold a sandbox's directory: {why}", path.display())]
    Directory {
        /// The parent directory.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// A lease that is damaged, or no lease. It is left alone.
    #[error(
        "{}: not believed and left alone: {why}; when no patchwright is running, delete it", path.display()
    )]
    Refused {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A lease could not be written.
    #[error("the sandbox's lease cannot be written: {0}")]
    Record(#[source] io::Error),
    /// The system failed.
    #[error("lease registry: {0}")]
    Io(#[from] io::Error),
}

/// What a process number means something in: one boot, one PID namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// Random for every boot.
    pub boot: String,
    /// The inode of the PID namespace.
    pub pid_namespace: u64,
}

impl Machine {
    /// Here and now.
    pub fn this() -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let namespace = rustix::fs::stat("/proc/self/ns/pid")?;
        Ok(Self { boot, pid_namespace: namespace.st_ino })
    }
}

/// The program that a lease belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// Its process number.
    pub pid: u32,
    /// Its command line, where it lives and may be seen; else empty.
    pub command: String,
}

/// A sandbox that lives.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Living {
    /// Whose it is.
    pub owner: Owner,
    /// The lease it is recorded in, and its place there: no two living ones have the same.
    pub id: String,
    /// Seconds since it was asked for.
    pub age_seconds: f64,
    /// How its memory is bounded.
    pub limits: String,
}

/// A lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub owner: ProcessId,
    pub keeper: Option<ProcessId>,
    pub machine: Machine,
    /// Records, by page.
    pub records: Vec<(u64, Record)>,
}

/// A directory of leases that is this user's alone.
#[derive(Debug, Clone)]
pub struct Registry {
    path: PathBuf,
    dir: Arc<OwnedFd>,
}

/// Whether a lease's owner lives.
pub(super) enum State {
    /// It does.
    Living(Content),
    /// It does not, and no one else may say so while the file is held.
    Dead(Box<(Content, File)>),
    /// The lease is gone.
    Gone,
}

impl Registry {
    /// The registry in which this program records its sandboxes: the first that can be used of
    /// `PATCHWRIGHT_RUNTIME_DIR`, `XDG_RUNTIME_DIR/patchwright`, for root `/run/patchwright`,
    /// `/tmp/patchwright-UID` and `/dev/shm/patchwright-UID`.
    ///
    /// # Errors
    /// [`LeaseError::NoRegistry`] when none can be.
    pub fn open() -> Result<Self, LeaseError> {
        let mut reasons = Vec::new();
        for path in places() {
            match Self::at(&path) {
                Ok(registry) => return Ok(registry),
                Err(why) => reasons.push(format!("{}: {why}", path.display())),
            }
        }
        Err(LeaseError::NoRegistry(reasons.join("; ")))
    }

    /// All registries of this user that exist: a program may have been started under other
    /// settings.
    pub fn all() -> Vec<Self> {
        places()
            .into_iter()
            .filter(|path| path.symlink_metadata().is_ok())
            .filter_map(|path| Self::at(&path).ok())
            .collect()
    }

    /// A directory that is made where it is missing, and refused where it is not this user's
    /// alone, or a link.
    ///
    /// # Errors
    /// When it cannot be used; the text says why.
    pub fn at(path: &Path) -> Result<Self, String> {
        if !path.is_absolute() {
            return Err("is not an absolute path".to_owned());
        }
        match rustix::fs::mkdirat(CWD, path, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.to_string()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| e.to_string())?;
        let stat = rustix::fs::fstat(&dir).map_err(|error| error.to_string())?;
        let own = rustix::process::geteuid().as_raw();
        if stat.st_uid != own {
            return Err(format!("belongs to user {}, not to user {own}", stat.st_uid));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(format!("others may write to it (mode {:o})", stat.st_mode & 0o777));
        }
        Ok(Self { path: path.to_owned(), dir: Arc::new(dir) })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a lease whose first page is `head`, and locks it: it is never seen unlocked. Gives
    /// its name.
    pub(super) fn add(&self, head: &[u8]) -> Result<(String, File), LeaseError> {
        // Another program's reaper may take what it finds half made for left behind.
        for _ in 0..8 {
            let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid")?;
            let id: String = uuid.chars().filter(char::is_ascii_hexdigit).take(16).collect();
            let owner = ProcessId::this()?;
            let new = format!("{NEW}{}.{}.{id}", owner.pid, owner.started);
            let flags =
                OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let file = rustix::fs::openat(&self.dir, new.as_str(), flags, mode)
                .map_err(|error| LeaseError::Record(error.into()))?;
            super::failpoint("host: lease made");
            let locked = rustix::fs::flock(&file, FlockOperation::LockExclusive)
                .map_err(|error| LeaseError::Record(error.into()));
            let mut file = File::from(file);
            let done = locked
                .and_then(|()| file.write_all(head).map_err(LeaseError::Record))
                .and_then(|()| {
                    let name = format!("{id}{SUFFIX}");
                    rustix::fs::renameat(&self.dir, new.as_str(), &self.dir, name.as_str())
                        .map_err(|error| LeaseError::Record(error.into()))
                });
            match done {
                Ok(()) => return Ok((id, file)),
                Err(LeaseError::Record(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let _ = rustix::fs::unlinkat(&self.dir, new.as_str(), AtFlags::empty());
                    return Err(error);
                }
            }
        }
        Err(LeaseError::NoRegistry(format!("{}: leases vanish from it", self.path.display())))
    }

    /// Takes a lease away.
    pub(super) fn remove(&self, id: &str) {
        let _ = self.unlink(&format!("{id}{SUFFIX}"));
    }

    pub(super) fn unlink(&self, name: &str) -> io::Result<()> {
        rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()).map_err(Into::into)
    }

    /// Names of the leases, sorted, and of files that only a program which was killed in the
    /// middle of making one can have left.
    pub(super) fn names(&self) -> io::Result<(Vec<String>, Vec<String>)> {
        let (mut leases, mut stale) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.path)?.take(MAX_FILES) {
            let name = entry?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.ends_with(SUFFIX) && !name.starts_with('.') {
                leases.push(name.to_owned());
            } else if let Some(rest) = name.strip_prefix(NEW) {
                let mut fields = rest.split('.').map(str::parse);
                let owner = match (fields.next(), fields.next()) {
                    (Some(Ok(pid)), Some(Ok(started))) => {
                        Some(ProcessId { pid: pid as u32, started })
                    }
                    _ => None,
                };
                if !owner.is_some_and(ProcessId::is_alive) {
                    stale.push(name.to_owned());
                }
            }
        }
        leases.sort();
        Ok((leases, stale))
    }

    /// Reads a lease and finds whether its owner lives; a dead one's is held against others.
    pub(super) fn look(&self, name: &str, machine: &Machine) -> Result<State, LeaseError> {
        let refused = |why: String| LeaseError::Refused { path: self.path.join(name), why };
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.dir, name, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(State::Gone),
            Err(Errno::LOOP) => return Err(refused("is a symbolic link".to_owned())),
            Err(error) => return Err(refused(error.to_string())),
        };
        let stat = rustix::fs::fstat(&file).map_err(|error| refused(error.to_string()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(refused("is not a regular file".to_owned()));
        }
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(refused(format!("belongs to user {}", stat.st_uid)));
        }
        if stat.st_size as u64 > MAX_PAGES * PAGE {
            return Err(refused(format!("has {} bytes, more than any lease", stat.st_size)));
        }
        let living = match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => false,
            Err(Errno::WOULDBLOCK) => true,
            Err(error) => return Err(refused(error.to_string())),
        };
        // What was reaped, or given up, between being opened and being locked.
        if rustix::fs::fstat(&file).map_err(io::Error::from)?.st_nlink == 0 {
            return Ok(State::Gone);
        }
        if stat.st_nlink != 1 {
            return Err(refused("has other names (hard links)".to_owned()));
        }
        let mut file = File::from(file);
        let mut bytes = Vec::new();
        Read::by_ref(&mut file)
            .take(MAX_PAGES * PAGE)
            .read_to_end(&mut bytes)
            .map_err(|error| refused(error.to_string()))?;
        let content = parse(&bytes, name.trim_end_matches(SUFFIX)).map_err(refused)?;
        // A program that is about to end has let go of its lease for a moment.
        if living || (content.machine == *machine && content.owner.is_alive()) {
            return Ok(State::Living(content));
        }
        Ok(State::Dead(Box::new((content, file))))
    }

    /// The sandboxes that live, the oldest first, and leases that are not believed.
    ///
    /// # Errors
    /// When the registry or `/proc` cannot be read.
    pub fn living(&self) -> Result<(Vec<Living>, Vec<LeaseError>), LeaseError> {
        let machine = Machine::this()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (mut living, mut problems) = (Vec::new(), Vec::new());
        for name in self.names()?.0 {
            match self.look(&name, &machine) {
                Ok(State::Living(content)) => {
                    let id = name.trim_end_matches(SUFFIX);
                    living.extend(sandboxes(&content, id, now, machine == content.machine));
                }
                Ok(State::Dead(_) | State::Gone) => {}
                Err(error) => problems.push(error),
            }
        }
        living.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        Ok((living, problems))
    }
}

fn sandboxes(content: &Content, id: &str, now: Duration, here: bool) -> Vec<Living> {
    let command = if here { command_line(content.owner.pid) } else { String::new() };
    let limits = match content.keeper {
        Some(keeper) if here => limits_of(keeper),
        _ => "unknown".to_owned(),
    };
    let since = |record: &Record| match record {
        Record::Sandbox(since) => Some(Duration::from_millis(*since)),
        _ => None,
    };
    content
        .records
        .iter()
        .filter_map(|(page, record)| Some((page, since(record)?)))
        .map(|(page, since)| Living {
            owner: Owner { pid: content.owner.pid, command: command.clone() },
            id: format!("{id}.{page}"),
            age_seconds: now.saturating_sub(since).as_secs_f64(),
            limits: limits.clone(),
        })
        .collect()
}

/// Where registries may be, the best first.
fn places() -> Vec<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set(VARIABLE) {
        return vec![path];
    }
    let own = rustix::process::geteuid();
    let mut places = Vec::new();
    if let Some(path) = set("XDG_RUNTIME_DIR") {
        places.push(path.join("patchwright"));
    }
    if own.is_root() {
        places.push(PathBuf::from("/run/patchwright"));
    }
    places.push(PathBuf::from(format!("/tmp/patchwright-{}", own.as_raw())));
    places.push(PathBuf::from(format!("/dev/shm/patchwright-{}", own.as_raw())));
    places
}

/// The name of a keeper's cgroup.
pub(super) fn cgroup_name(keeper: ProcessId) -> String {
    format!("patchwright-{}-{}", keeper.pid, keeper.started)
}

/// How a keeper bounds memory, as its cgroup says.
fn limits_of(keeper: ProcessId) -> String {
    let found = super::remove::cgroups(&[cgroup_name(keeper)]);
    let rung = match found.first() {
        None => crate::plan::LimitsRung::Watchdog,
        Some(path) if path.join("cgroup.controllers").exists() => crate::plan::LimitsRung::CgroupV2,
        Some(_) => crate::plan::LimitsRung::CgroupV1,
    };
    rung.to_string()
}

fn command_line(pid: u32) -> String {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(|word| OsStr::from_bytes(word).to_string_lossy().into_owned())
        .collect();
    // Shown to people in a terminal.
    let text: String = words.join(" ").chars().filter(|c| !c.is_control()).take(200).collect();
    text
}

/// Reads a lease; the error says what is wrong.
pub(super) fn parse(bytes: &[u8], id: &str) -> Result<Content, String> {
    let head = bytes.get(..bytes.len().min(PAGE as usize)).unwrap_or_default();
    let text = head.split(|byte| *byte == 0).next().unwrap_or_default();
    let text = std::str::from_utf8(text).map_err(|_| "its first page is no text".to_owned())?;
    let mut lines = text.lines();
    match lines.next() {
        Some(HEAD) => {}
        Some(other) if other.starts_with("patchwright-lease ") => {
            return Err(format!("is of another version: {other}"));
        }
        _ => return Err(format!("does not start with `{HEAD}`")),
    }
    let mut field = |name: &str| {
        lines
            .next()
            .and_then(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .ok_or_else(|| format!("has no line `{name}` where it should be"))
    };
    let owner = process(field("owner")?)?;
    let boot = field("boot")?.to_owned();
    let pid_namespace =
        field("pidns")?.parse().map_err(|_| "its PID namespace is no number".to_owned())?;
    let keeper = process(field("keeper")?)?;
    let mut records = Vec::new();
    for (n, page) in bytes.chunks(PAGE as usize).enumerate().skip(1) {
        // The last page is as long as its text.
        let record = Record::decode(page).map_err(|why| format!("page {n}: {why}"))?;
        if let Record::Directory(path) = &record {
            is_own(path, id, n).map_err(|why| format!("page {n}: {}: {why}", path.display()))?;
        }
        if record != Record::Free {
            records.push((n as u64, record));
        }
    }
    let machine = Machine { boot, pid_namespace };
    let keeper = (keeper.pid != 0).then_some(keeper);
    Ok(Content { owner, keeper, machine, records })
}

fn process(text: &str) -> Result<ProcessId, String> {
    let wrong = || format!("`{text}` is no pid and start time");
    let (pid, started) = text.split_once(' ').ok_or_else(wrong)?;
    let pid: u32 = pid.parse().map_err(|_| wrong())?;
    let started = started.parse().map_err(|_| wrong())?;
    // Signals to 0 and below are for groups, and 1 is never a program of ours.
    if pid == 1 || pid > i32::MAX as u32 {
        return Err(wrong());
    }
    Ok(ProcessId { pid, started })
}

/// A directory is a lease's own when its name says so: no text in a lease can name another.
fn is_own(path: &Path, id: &str, page: usize) -> Result<(), &'static str> {
    let plain = path.is_absolute()
        && path
            .as_os_str()
            .as_bytes()
            .split(|byte| *byte == b'/')
            .skip(1)
            .all(|name| !name.is_empty() && name != b"." && name != b"..");
    if !plain {
        return Err("is not an absolute path of plain names");
    }
    let end = format!(".{id}.{page}");
    let named = path.file_name().is_some_and(|name| name.as_bytes().ends_with(end.as_bytes()));
    if named { Ok(()) } else { Err("is not named after this lease") }
}
