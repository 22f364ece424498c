//! Trees of files as a stream of frames: how a repository gets into a sandbox, how its changes
//! come out, and how a sandbox is copied.
//!
//! Paths are raw bytes relative to the tree's root, `/`-separated. Both sides treat names as
//! hostile: nothing is ever resolved through a symbolic link or out of the root.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags,
};

use crate::wire::{Context, Decoder, Encoder, Kind, Refusal, malformed, receive, send};

/// Deepest directory that is walked or made.
const MAX_DEPTH: usize = 200;
/// Data of a file per frame, in bytes.
const CHUNK: usize = 1 << 20;
/// Marks a directory of an overlay's upper layer that hides the lower one of the same name.
const OPAQUE: &str = "user.overlay.opaque";

/// One entry of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A directory; `opaque` hides what the pristine tree has there.
    Dir { path: Vec<u8>, mode: u32, mtime_s: i64, mtime_ns: u32, opaque: bool },
    /// A regular file of `size` bytes; data follows.
    File { path: Vec<u8>, mode: u32, mtime_s: i64, mtime_ns: u32, size: u64 },
    /// Data of the last file at an offset (holes are left out).
    Chunk { offset: u64, data: Vec<u8> },
    /// A symbolic link.
    Symlink { path: Vec<u8>, target: Vec<u8>, mtime_s: i64, mtime_ns: u32 },
    /// A deleted path of the pristine tree.
    Whiteout { path: Vec<u8> },
    /// A FIFO.
    Fifo { path: Vec<u8>, mode: u32, mtime_s: i64, mtime_ns: u32 },
    /// Another name of an earlier file.
    Hardlink { path: Vec<u8>, first: Vec<u8> },
}

impl Entry {
    /// The path, of all but chunks.
    pub fn path(&self) -> Option<&[u8]> {
        match self {
            Self::Dir { path, .. }
            | Self::File { path, .. }
            | Self::Symlink { path, .. }
            | Self::Whiteout { path }
            | Self::Fifo { path, .. }
            | Self::Hardlink { path, .. } => Some(path),
            Self::Chunk { .. } => None,
        }
    }

    /// Sends the entry.
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let mut body = Encoder::default();
        let kind = match self {
            Self::Dir { path, mode, mtime_s, mtime_ns, opaque } => {
                body.bytes(path).u32(*mode).u64(*mtime_s as u64).u32(*mtime_ns);
                body.u8(u8::from(*opaque));
                Kind::Dir
            }
            Self::File { path, mode, mtime_s, mtime_ns, size } => {
                body.bytes(path).u32(*mode).u64(*mtime_s as u64).u32(*mtime_ns).u64(*size);
                Kind::File
            }
            Self::Chunk { offset, data } => {
                body.u64(*offset).bytes(data);
                Kind::Chunk
            }
            Self::Symlink { path, target, mtime_s, mtime_ns } => {
                body.bytes(path).bytes(target).u64(*mtime_s as u64).u32(*mtime_ns);
                Kind::Symlink
            }
            Self::Whiteout { path } => {
                body.bytes(path);
                Kind::Whiteout
            }
            Self::Fifo { path, mode, mtime_s, mtime_ns } => {
                body.bytes(path).u32(*mode).u64(*mtime_s as u64).u32(*mtime_ns);
                Kind::Fifo
            }
            Self::Hardlink { path, first } => {
                body.bytes(path).bytes(first);
                Kind::Hardlink
            }
        };
        send(to, kind, &body.0)
    }

    /// Reads an entry from a frame; the path is checked.
    pub fn decode(kind: Kind, body: &[u8]) -> io::Result<Self> {
        let mut body = Decoder::new(body);
        if kind == Kind::Chunk {
            return Ok(Self::Chunk { offset: body.u64()?, data: body.bytes()?.to_vec() });
        }
        let path = body.bytes()?.to_vec();
        if !is_clean(&path) {
            return Err(malformed("a path of a tree is absolute, too deep, or has `..`"));
        }
        Ok(match kind {
            Kind::Dir => Self::Dir {
                path,
                mode: body.u32()?,
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
                opaque: body.u8()? != 0,
            },
            Kind::File => Self::File {
                path,
                mode: body.u32()?,
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
                size: body.u64()?,
            },
            Kind::Symlink => Self::Symlink {
                path,
                target: body.bytes()?.to_vec(),
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
            },
            Kind::Whiteout => Self::Whiteout { path },
            Kind::Fifo => Self::Fifo {
                path,
                mode: body.u32()?,
                mtime_s: body.u64()? as i64,
                mtime_ns: body.u32()?,
            },
            Kind::Hardlink => {
                let first = body.bytes()?.to_vec();
                if !is_clean(&first) {
                    return Err(malformed("a link of a tree leads out of it"));
                }
                Self::Hardlink { path, first }
            }
            _ => return Err(malformed("this frame is no part of a tree")),
        })
    }

    /// Receives the next entry; `None` at the end of the tree. A [`Kind::Refused`] frame in its
    /// place is the inner error.
    pub fn receive(from: &mut impl Read) -> io::Result<Result<Option<Self>, Refusal>> {
        match receive(from)?.ok_or(io::ErrorKind::UnexpectedEof)? {
            (Kind::End, _) => Ok(Ok(None)),
            (Kind::Refused, body) => Ok(Err(Refusal::decode(&body)?)),
            (kind, body) => Ok(Ok(Some(Self::decode(kind, &body)?))),
        }
    }
}

/// Whether `path` is relative, not empty, not too deep, and made of plain names.
pub fn is_clean(path: &[u8]) -> bool {
    let mut depth = 0;
    path.len() < 4096
        && path.split(|b| *b == b'/').all(|name| {
            depth += 1;
            let plain = !name.is_empty() && name != b"." && name != b"..";
            plain && name.len() < 256 && !name.contains(&0) && depth <= MAX_DEPTH + 8
        })
}

/// Opens `path` beneath `root` without following any symbolic link.
pub fn open_beneath(
    root: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve)
}

/// Which entries a walk leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    /// Nothing.
    Nothing,
    /// `.git`, `__pycache__` and `*.pyc`, wherever they are: no part of a change.
    Unversioned,
    /// `.git` at the top: what a repository's directory does not show inside.
    TopGit,
}

impl Skip {
    /// Whether a name at a depth is left out.
    pub fn skips(self, name: &[u8], depth: usize) -> bool {
        match self {
            Self::Nothing => false,
            Self::Unversioned => {
                name == b".git" || name == b"__pycache__" || name.ends_with(b".pyc")
            }
            Self::TopGit => depth == 0 && name == b".git",
        }
    }
}

/// Walks a directory and sends what is in it, names sorted.
pub struct Walk<'a, W> {
    to: &'a mut W,
    skip: Skip,
    /// Bytes of file data that may still be sent.
    budget: u64,
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a, W: Write> Walk<'a, W> {
    /// A walk that sends at most `budget` bytes of file data.
    pub fn new(to: &'a mut W, skip: Skip, budget: u64) -> Self {
        Self { to, skip, budget, links: HashMap::new() }
    }

    /// Sends `dir` itself, as `path`, and everything below it.
    pub fn send_whole(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), Refusal> {
        self.own_entry(dir, path)?;
        self.send(dir, path)
    }

    /// Sends the entry of `dir` itself, as `path`.
    pub fn own_entry(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), Refusal> {
        let stat = rustix::fs::fstat(dir).step(&lossy(path))?;
        let entry = Entry::Dir {
            path: path.to_vec(),
            mode: stat.st_mode & 0o7777,
            mtime_s: stat.st_mtime as i64,
            mtime_ns: stat.st_mtime_nsec as u32,
            opaque: false,
        };
        entry.send(self.to).step("send a tree")
    }

    /// Sends everything below `dir`, whose own path in the tree is `prefix` (empty at the top).
    pub fn send(&mut self, dir: &OwnedFd, prefix: &[u8]) -> Result<(), Refusal> {
        self.directory(dir, prefix, 0)
    }

    fn directory(&mut self, dir: &OwnedFd, prefix: &[u8], depth: usize) -> Result<(), Refusal> {
        if depth > MAX_DEPTH {
            return Err(Refusal::limit(lossy(prefix), "directories are nested too deeply"));
        }
        for name in sorted_names(dir).step(&lossy(prefix))? {
            if self.skip.skips(&name, depth) {
                continue;
            }
            let mut path = prefix.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            self.entry(dir, &name, path, depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        depth: usize,
    ) -> Result<(), Refusal> {
        let here = lossy(&path);
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).step(&here)?;
        let mode = stat.st_mode & 0o7777;
        let (mtime_s, mtime_ns) = (stat.st_mtime as i64, stat.st_mtime_nsec as u32);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let child = open_beneath(dir, name, READ_DIR, Mode::empty()).step(&here)?;
                let opaque = is_opaque(&child);
                Entry::Dir { path: path.clone(), mode, mtime_s, mtime_ns, opaque }
                    .send(self.to)
                    .step("send a tree")?;
                self.directory(&child, &path, depth + 1)
            }
            FileType::RegularFile => self.file(dir, name, path, &stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).step(&here)?;
                let target = target.into_bytes();
                let link = Entry::Symlink { path, target, mtime_s, mtime_ns };
                link.send(self.to).step("send a tree")
            }
            FileType::CharacterDevice if stat.st_rdev == 0 => {
                Entry::Whiteout { path }.send(self.to).step("send a tree")
            }
            FileType::Fifo => {
                let fifo = Entry::Fifo { path, mode, mtime_s, mtime_ns };
                fifo.send(self.to).step("send a tree")
            }
            // Sockets are dead with the command that made them; devices cannot be made inside.
            _ => Ok(()),
        }
    }

    fn file(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), Refusal> {
        if stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&(stat.st_dev as u64, stat.st_ino as u64)) {
                let link = Entry::Hardlink { path, first: first.clone() };
                return link.send(self.to).step("send a tree");
            }
            self.links.insert((stat.st_dev as u64, stat.st_ino as u64), path.clone());
        }
        let here = lossy(&path);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = open_beneath(dir, name, flags, Mode::empty()).step(&here)?;
        let size = stat.st_size as u64;
        let (mtime_s, mtime_ns) = (stat.st_mtime as i64, stat.st_mtime_nsec as u32);
        Entry::File { path, mode: stat.st_mode & 0o7777, mtime_s, mtime_ns, size }
            .send(self.to)
            .step("send a tree")?;
        let mut offset = 0;
        // Holes are skipped: a sparse file of a terabyte costs what it holds.
        while let Some((start, end)) = next_data(&file, offset, size) {
            let mut at = start;
            while at < end {
                let mut data = vec![0; CHUNK.min((end - at) as usize)];
                let n = rustix::io::pread(&file, &mut data, at).step(&here)?;
                if n == 0 {
                    return Ok(());
                }
                data.truncate(n);
                self.budget = self.budget.checked_sub(n as u64).ok_or_else(|| {
                    Refusal::limit(&here, "the files are larger than what may be taken out")
                })?;
                Entry::Chunk { offset: at, data }.send(self.to).step("send a tree")?;
                at += n as u64;
            }
            offset = end;
        }
        Ok(())
    }
}

/// Flags to read a directory.
pub const READ_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0u8; 4];
    matches!(rustix::fs::fgetxattr(dir, OPAQUE, &mut value[..]), Ok(1) if value[0] == b'y')
}

/// The names in a directory, sorted, without `.` and `..`.
fn sorted_names(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// The next range with data from `offset` on; file systems that know no holes give it whole.
fn next_data(file: &OwnedFd, offset: u64, size: u64) -> Option<(u64, u64)> {
    if offset >= size {
        return None;
    }
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(start) => {
            let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
            Some((start, end.min(size))).filter(|(start, end)| start < end)
        }
        Err(rustix::io::Errno::NXIO) => None,
        Err(_) => Some((offset, size)),
    }
}

/// Makes the tree that arrives from `from` below `root`, up to its end.
///
/// Directories get their modes and times last, so that a read-only one can be filled.
pub fn populate(from: &mut impl Read, root: &OwnedFd) -> Result<(), Refusal> {
    let mut maker = Maker { root, parent: None, file: None, directories: Vec::new() };
    let mut outcome = Ok(());
    // After a failure the rest is read and dropped, so that the sender is never stuck.
    while let Some(entry) = Entry::receive(from).step("receive a tree")?? {
        if outcome.is_ok() {
            outcome = maker.make(entry);
        }
    }
    outcome?;
    maker.finish()
}

struct Maker<'a> {
    root: &'a OwnedFd,
    /// The directory that was used last, by path.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// The file that chunks go to.
    file: Option<(OwnedFd, String, Timestamps)>,
    directories: Vec<(Vec<u8>, u32, Timestamps)>,
}

fn timestamps(seconds: i64, nanos: u32) -> Timestamps {
    let omit = Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT as _ };
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanos.min(999_999_999)) as _ };
    Timestamps { last_access: omit, last_modification: time }
}

impl Maker<'_> {
    fn make(&mut self, entry: Entry) -> Result<(), Refusal> {
        if let Entry::Chunk { offset, data } = entry {
            let Some((file, path, _)) = &self.file else {
                return Err(Refusal::io("a tree", &malformed("data without a file")));
            };
            return write_at(file, offset, &data).step(path);
        }
        self.finish_file()?;
        let path = entry.path().unwrap_or_default().to_vec();
        let here = lossy(&path);
        let (parent_path, name) = split(&path);
        self.enter(parent_path).step(&here)?;
        let (_, parent) = self.parent.as_ref().ok_or_else(|| Refusal::path(&here, "no parent"))?;
        match entry {
            Entry::Dir { mode, mtime_s, mtime_ns, opaque, .. } => {
                match rustix::fs::mkdirat(parent, name, Mode::from(0o755)) {
                    Ok(()) | Err(rustix::io::Errno::EXIST) => {}
                    Err(error) => return Err(error).step(&here),
                }
                if opaque {
                    let dir = open_beneath(parent, name, READ_DIR, Mode::empty()).step(&here)?;
                    let flags = XattrFlags::empty();
                    rustix::fs::fsetxattr(&dir, OPAQUE, b"y", flags).step(&here)?;
                }
                self.directories.push((path, mode, timestamps(mtime_s, mtime_ns)));
            }
            Entry::File { mode, mtime_s, mtime_ns, size, .. } => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let flags = flags | OFlags::CLOEXEC;
                let mode = Mode::from_raw_mode(mode);
                let file =
                    rustix::fs::openat(parent, name, flags, Mode::from(0o600)).step(&here)?;
                if size > 0 {
                    rustix::fs::ftruncate(&file, size).step(&here)?;
                }
                rustix::fs::fchmod(&file, mode).step(&here)?;
                self.file = Some((file, here, timestamps(mtime_s, mtime_ns)));
            }
            Entry::Symlink { target, mtime_s, mtime_ns, .. } => {
                rustix::fs::symlinkat(target.as_slice(), parent, name).step(&here)?;
                set_times(parent, name, mtime_s, mtime_ns).step(&here)?;
            }
            Entry::Whiteout { .. } => whiteout(parent, name).step(&here)?,
            Entry::Fifo { mode, mtime_s, mtime_ns, .. } => {
                let mode = Mode::from_raw_mode(mode);
                rustix::fs::mknodat(parent, name, FileType::Fifo, mode, 0).step(&here)?;
                rustix::fs::chmodat(parent, name, mode, AtFlags::empty()).step(&here)?;
                set_times(parent, name, mtime_s, mtime_ns).step(&here)?;
            }
            Entry::Hardlink { first, .. } => {
                let (first_parent, first_name) = split(&first);
                let from = self.open_dir(first_parent).step(&here)?;
                rustix::fs::linkat(&from, first_name, parent, name, AtFlags::empty())
                    .step(&here)?;
            }
            Entry::Chunk { .. } => {}
        }
        Ok(())
    }

    fn open_dir(&self, path: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { b"." } else { path };
        open_beneath(self.root, path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())
    }

    fn enter(&mut self, path: &[u8]) -> rustix::io::Result<()> {
        if !matches!(&self.parent, Some((held, _)) if held == path) {
            self.parent = Some((path.to_vec(), self.open_dir(path)?));
        }
        Ok(())
    }

    fn finish_file(&mut self) -> Result<(), Refusal> {
        if let Some((file, path, times)) = self.file.take() {
            rustix::fs::futimens(&file, &times).step(&path)?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<(), Refusal> {
        self.finish_file()?;
        while let Some((path, mode, times)) = self.directories.pop() {
            let here = lossy(&path);
            let dir = open_beneath(self.root, &path, READ_DIR, Mode::empty()).step(&here)?;
            rustix::fs::futimens(&dir, &times).step(&here)?;
            rustix::fs::fchmod(&dir, Mode::from_raw_mode(mode)).step(&here)?;
        }
        Ok(())
    }
}

fn set_times(parent: &OwnedFd, name: &[u8], seconds: i64, nanos: u32) -> rustix::io::Result<()> {
    rustix::fs::utimensat(parent, name, &timestamps(seconds, nanos), AtFlags::SYMLINK_NOFOLLOW)
}

/// Makes an overlay whiteout: the name is deleted, whatever the lower layer has.
fn whiteout(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
}

fn write_at(file: &OwnedFd, mut offset: u64, mut data: &[u8]) -> rustix::io::Result<()> {
    while !data.is_empty() {
        let n = rustix::io::pwrite(file, data, offset)?;
        offset += n as u64;
        data = &data[n..];
    }
    Ok(())
}

/// Parent (empty at the top) and name of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

/// A path for a message.
pub fn lossy(path: &[u8]) -> String {
    if path.is_empty() { ".".to_owned() } else { String::from_utf8_lossy(path).into_owned() }
}

/// Opens a directory of the host to walk it.
pub fn open_host_dir(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}
