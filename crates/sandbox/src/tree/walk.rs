//! Sends what is in a directory.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::os::fd::OwnedFd;

use rustix::fs::{Dir, FileType, Mode, OFlags, Stat};

use super::{Entry, Found, MAX_DEPTH, Marks, Merged, Skip, lossy, open_beneath};
use crate::wire::{Context, Refusal};

/// Data of a file per frame, in bytes.
const CHUNK: usize = 1 << 20;

/// Walks a directory and sends what is in it, names sorted.
pub struct Walk<'a, W> {
    to: &'a mut W,
    skip: Skip,
    /// Bytes of file data that may still be sent.
    budget: u64,
    /// Whether nothing lies below, so that there is nothing to hide.
    alone: bool,
    /// The only paths to send, where not all are wanted.
    only: Option<&'a BTreeSet<Vec<u8>>>,
    links: HashMap<(u64, u64), Vec<u8>>,
}

impl<'a, W: Write> Walk<'a, W> {
    /// A walk that sends at most `budget` bytes of file data.
    pub fn new(to: &'a mut W, skip: Skip, budget: u64) -> Self {
        Self { to, skip, budget, alone: false, only: None, links: HashMap::new() }
    }

    /// Of the next directories, sends what is in view, or also what hides what lies below them.
    pub fn set_alone(&mut self, alone: bool) {
        self.alone = alone;
    }

    /// Sends nothing but these paths; with each must be those of its parents.
    pub fn set_only(&mut self, paths: &'a BTreeSet<Vec<u8>>) {
        self.only = Some(paths);
    }

    /// Sends a plain directory itself, as `path`, and everything below it.
    pub fn send_whole(&mut self, dir: &OwnedFd, path: &[u8]) -> Result<(), Refusal> {
        let dir = dir.try_clone().step(&lossy(path))?;
        self.send_merged(&Merged::new(vec![dir], Marks::None), path)
    }

    /// Sends a directory of layers itself, as `path`, and everything below it.
    pub fn send_merged(&mut self, dir: &Merged, path: &[u8]) -> Result<(), Refusal> {
        if let Some(top) = dir.top() {
            self.own_entry(top, path, dir.hides())?;
        }
        self.send(dir, path)
    }

    /// Sends the entry of `dir` itself, as `path`.
    pub fn own_entry(&mut self, dir: &OwnedFd, path: &[u8], opaque: bool) -> Result<(), Refusal> {
        let stat = rustix::fs::fstat(dir).step(&lossy(path))?;
        let entry = Entry::Dir {
            path: path.to_vec(),
            mode: stat.st_mode & 0o7777,
            mtime_s: stat.st_mtime,
            mtime_ns: stat.st_mtime_nsec as u32,
            opaque: opaque && !self.alone,
        };
        entry.send(self.to).step("send a tree")
    }

    /// Sends everything below `dir`, whose own path in the tree is `prefix` (empty at the top).
    pub fn send(&mut self, dir: &Merged, prefix: &[u8]) -> Result<(), Refusal> {
        self.directory(dir, prefix, 0)
    }

    fn directory(&mut self, dir: &Merged, prefix: &[u8], depth: usize) -> Result<(), Refusal> {
        if depth > MAX_DEPTH {
            return Err(Refusal::limit(lossy(prefix), "directories are nested too deeply"));
        }
        for (name, layers) in dir.names().step(&lossy(prefix))? {
            if self.skip.skips(&name, depth) {
                continue;
            }
            let mut path = prefix.to_vec();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            if self.only.is_some_and(|only| !only.contains(&path)) {
                continue;
            }
            match dir.look(&name, &layers).step(&lossy(&path))? {
                Found::Dir(child) => {
                    if let Some(top) = child.top() {
                        self.own_entry(top, &path, child.hides())?;
                    }
                    self.directory(&child, &path, depth + 1)?;
                }
                Found::Whiteout if self.alone => {}
                Found::Whiteout => Entry::Whiteout { path }.send(self.to).step("send a tree")?,
                Found::Other(dir, stat) => self.other(dir, &name, path, &stat)?,
                Found::Absent => {}
            }
        }
        Ok(())
    }

    fn other(
        &mut self,
        dir: &OwnedFd,
        name: &[u8],
        path: Vec<u8>,
        stat: &Stat,
    ) -> Result<(), Refusal> {
        let mode = stat.st_mode & 0o7777;
        let (mtime_s, mtime_ns) = (stat.st_mtime, stat.st_mtime_nsec as u32);
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(dir, name, path, stat),
            FileType::Symlink => {
                let here = lossy(&path);
                let target = rustix::fs::readlinkat(dir, name, Vec::new()).step(&here)?;
                let target = target.into_bytes();
                let link = Entry::Symlink { path, target, mtime_s, mtime_ns };
                link.send(self.to).step("send a tree")
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
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
                let link = Entry::Hardlink { path, first: first.clone() };
                return link.send(self.to).step("send a tree");
            }
            self.links.insert((stat.st_dev, stat.st_ino), path.clone());
        }
        let here = lossy(&path);
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
        let file = open_beneath(dir, name, flags, Mode::empty()).step(&here)?;
        let size = stat.st_size as u64;
        let (mtime_s, mtime_ns) = (stat.st_mtime, stat.st_mtime_nsec as u32);
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

/// The names in a directory, sorted, without `.` and `..`.
pub fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
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
