//! Makes what arrives.

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags};

use super::{Entry, OPAQUE, READ_DIR, lossy, open_beneath};
use crate::wire::{Context, Refusal, malformed};

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
