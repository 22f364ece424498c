//! Puts one entry after the other into a layer's directory.

use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::walk::{self, Dir, Missing, OPEN_DIR};
use super::whiteout::{INTERNAL, OPAQUE, PREFIX, Whiteouts};
use super::{LayerInfo, WhiteoutForm, failed};
use crate::error::ImageError;
use crate::tar_entries::{Kind, TarEntry};

/// Bytes copied at a time.
const CHUNK: usize = 128 << 10;

/// A layer in the making.
pub struct Placer {
    root: Rc<OwnedFd>,
    whiteouts: Whiteouts,
    /// The directory of the last entry, by the path that led there: most are in the same one.
    last: Option<(Vec<u8>, Dir)>,
    /// Times of directories, which making files in them changes.
    dir_times: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
    pub info: LayerInfo,
}

impl Placer {
    pub fn new(root: OwnedFd, form: WhiteoutForm) -> Self {
        Self {
            root: Rc::new(root),
            whiteouts: Whiteouts::new(form),
            last: None,
            dir_times: Vec::new(),
            buffer: vec![0; CHUNK],
            info: LayerInfo::default(),
        }
    }

    /// Puts an entry in its place.
    pub fn place(&mut self, entry: &TarEntry, data: &mut impl Read) -> Result<(), ImageError> {
        let names = walk::components(&entry.path)?;
        let Some((name, parents)) = names.split_last() else {
            return match entry.kind {
                Kind::Dir => self.directory_itself(entry, &Rc::clone(&self.root), Vec::new()),
                _ => Err(entry.error("the root of a layer is a directory")),
            };
        };
        if name.starts_with(PREFIX) {
            return self.marker(entry, parents, name);
        }
        if entry.kind == Kind::Special {
            self.info.left_out += 1;
            return Ok(());
        }
        let dir = self.parent(parents, Missing::Make)?;
        match entry.kind {
            Kind::Dir => self.directory(entry, &dir, name),
            Kind::File => self.file(entry, &dir, name, data),
            Kind::Symlink => self.symlink(entry, &dir, name),
            Kind::Hardlink => self.hardlink(entry, &dir, name),
            Kind::Special => Ok(()),
        }
    }

    fn parent(&mut self, names: &[&[u8]], missing: Missing) -> Result<Dir, ImageError> {
        let path = names.join(&b'/');
        if let Some((at, dir)) = &self.last
            && *at == path
        {
            return Ok(dir.clone());
        }
        let whiteouts = &mut self.whiteouts;
        let mut clear = |dir: &Dir, name: &[u8]| {
            if !whiteouts.is(dir, name) {
                return Ok(false);
            }
            walk::remove(&dir.fd, name, &dir.join(name))?;
            whiteouts.forget(dir, name);
            // Gone below, and made anew here.
            whiteouts.make_opaque(dir.join(name));
            Ok(true)
        };
        let dir = walk::open_dir(&self.root, names, missing, &mut clear)?;
        self.last = Some((path, dir.clone()));
        Ok(dir)
    }

    /// A `.wh.` file.
    fn marker(
        &mut self,
        entry: &TarEntry,
        parents: &[&[u8]],
        name: &[u8],
    ) -> Result<(), ImageError> {
        if name == OPAQUE {
            let dir = self.parent(parents, Missing::Make)?;
            self.whiteouts.make_opaque(dir.path);
            return Ok(());
        }
        if name.starts_with(INTERNAL) {
            return Ok(());
        }
        let hidden = &name[PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(entry.error("a whiteout of no name"));
        }
        let dir = self.parent(parents, Missing::Make)?;
        match rustix::fs::statat(&*dir.fd, hidden, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => self.whiteouts.make(&dir, hidden),
            // A whiteout is about the layers below: what this one has stays, but for what would
            // shine through.
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                self.whiteouts.make_opaque(dir.join(hidden));
                Ok(())
            }
            Ok(_) => Ok(()),
            Err(error) => Err(failed(&entry.path, "look", error)),
        }
    }

    /// Makes a name free. A second entry of a name replaces the first.
    fn replace(&mut self, dir: &Dir, name: &[u8]) -> Result<(), ImageError> {
        let path = dir.join(name);
        walk::remove(&dir.fd, name, &path)?;
        self.whiteouts.forget(dir, name);
        self.whiteouts.forget_below(&path);
        self.last = None;
        Ok(())
    }

    /// Does what makes a name, once more after removing what is there.
    fn make<T>(
        &mut self,
        dir: &Dir,
        name: &[u8],
        doing: &str,
        act: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, ImageError> {
        match act() {
            Err(Errno::EXIST) => {
                self.replace(dir, name)?;
                act()
            }
            other => other,
        }
        .map_err(|error| failed(&dir.join(name), doing, error))
    }

    fn directory(&mut self, entry: &TarEntry, dir: &Dir, name: &[u8]) -> Result<(), ImageError> {
        if dir.depth >= walk::MAX_DEPTH {
            let reason = format!("deeper than {} directories", walk::MAX_DEPTH);
            return Err(entry.error(reason));
        }
        if self.whiteouts.is(dir, name) {
            self.replace(dir, name)?;
            self.whiteouts.make_opaque(dir.join(name));
        }
        let made = match rustix::fs::mkdirat(&*dir.fd, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        };
        made.map_err(|error| failed(&entry.path, "make a directory", error))?;
        let fd = match rustix::fs::openat(&*dir.fd, name, OPEN_DIR, Mode::empty()) {
            Err(Errno::NOTDIR | Errno::LOOP) => {
                self.replace(dir, name)?;
                rustix::fs::mkdirat(&*dir.fd, name, Mode::from_raw_mode(0o755))
                    .and_then(|()| rustix::fs::openat(&*dir.fd, name, OPEN_DIR, Mode::empty()))
            }
            other => other,
        };
        let fd = fd.map_err(|error| failed(&entry.path, "make a directory", error))?;
        self.directory_itself(entry, &fd, dir.join(name))
    }

    fn directory_itself(
        &mut self,
        entry: &TarEntry,
        fd: &OwnedFd,
        path: Vec<u8>,
    ) -> Result<(), ImageError> {
        // The sticky bit stays, set-id bits go.
        self.attributes(entry, fd, entry.mode & 0o1777 | 0o700)?;
        self.dir_times.push((path, entry.mtime));
        Ok(())
    }

    fn file(
        &mut self,
        entry: &TarEntry,
        dir: &Dir,
        name: &[u8],
        data: &mut impl Read,
    ) -> Result<(), ImageError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = Rc::clone(&dir.fd);
        let fd = self.make(dir, name, "make a file", || {
            rustix::fs::openat(&*parent, name, flags, Mode::from_raw_mode(0o600))
        })?;
        let mut left = entry.size;
        while left > 0 {
            let n = match data.read(&mut self.buffer) {
                Ok(0) => return Err(entry.error("the tar is cut off")),
                Ok(n) => n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failed(&entry.path, "read", error)),
            };
            write_all(&fd, &self.buffer[..n]).map_err(|e| failed(&entry.path, "write", e))?;
            left = left.saturating_sub(n as u64);
        }
        self.info.bytes += entry.size;
        self.attributes(entry, &fd, entry.mode & 0o777 | 0o600)?;
        rustix::fs::futimens(&fd, &times(entry.mtime))
            .map_err(|error| failed(&entry.path, "set times", error))
    }

    fn symlink(&mut self, entry: &TarEntry, dir: &Dir, name: &[u8]) -> Result<(), ImageError> {
        if entry.link.is_empty() {
            return Err(entry.error("a link to nothing"));
        }
        let parent = Rc::clone(&dir.fd);
        self.make(dir, name, "make a link", || {
            rustix::fs::symlinkat(entry.link.as_slice(), &*parent, name)
        })?;
        // The way to the last directory may lead elsewhere now.
        self.last = None;
        rustix::fs::utimensat(&*parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| failed(&entry.path, "set times", error))
    }

    fn hardlink(&mut self, entry: &TarEntry, dir: &Dir, name: &[u8]) -> Result<(), ImageError> {
        let names = walk::components(&entry.link)?;
        let Some((target, parents)) = names.split_last() else {
            return Err(entry.error("a link to nothing"));
        };
        let from = self.parent(parents, Missing::Refuse).map_err(|error| match error {
            ImageError::Layer { reason, .. } => entry.error(format!("its link target {reason}")),
            other => other,
        })?;
        self.last = None;
        if from.path == dir.path && *target == name {
            return Ok(());
        }
        let stat = rustix::fs::statat(&*from.fd, *target, AtFlags::SYMLINK_NOFOLLOW);
        let kind = match stat {
            Ok(stat) => FileType::from_raw_mode(stat.st_mode),
            Err(Errno::NOENT) => return Err(entry.error("its link target is not in this layer")),
            Err(error) => return Err(failed(&entry.path, "look", error)),
        };
        let is_file = matches!(kind, FileType::RegularFile | FileType::Symlink);
        if !is_file || self.whiteouts.is(&from, target) {
            return Err(entry.error("its link target is no file"));
        }
        let parent = Rc::clone(&dir.fd);
        self.make(dir, name, "make a hard link", || {
            rustix::fs::linkat(&*from.fd, *target, &*parent, name, AtFlags::empty())
        })
    }

    /// Mode and attributes, past the umask.
    fn attributes(&mut self, entry: &TarEntry, fd: &OwnedFd, mode: u32) -> Result<(), ImageError> {
        if entry.mode & 0o6000 != 0 {
            self.info.stripped += 1;
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode))
            .map_err(|error| failed(&entry.path, "set a mode", error))?;
        for (name, value) in &entry.xattrs {
            // Those of overlayfs would change what the layer means; the others are not a user's to
            // set, or give powers.
            let keep = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
            let set = keep
                && rustix::fs::fsetxattr(fd, name.as_slice(), value, XattrFlags::empty()).is_ok();
            if !set {
                self.info.stripped += 1;
            }
        }
        Ok(())
    }

    /// Marks directories and sets their times.
    pub fn finish(self) -> Result<LayerInfo, ImageError> {
        let open = |path: &[u8]| -> Result<OwnedFd, ImageError> {
            let mut fd = rustix::fs::openat(&*self.root, ".", OPEN_DIR, Mode::empty())
                .map_err(|error| failed(path, "open", error))?;
            for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
                fd = rustix::fs::openat(&fd, name, OPEN_DIR, Mode::empty())
                    .map_err(|error| failed(path, "open", error))?;
            }
            Ok(fd)
        };
        self.whiteouts.finish(&open)?;
        for (path, time) in &self.dir_times {
            // One that was replaced later has another's times.
            if let Ok(fd) = open(path) {
                rustix::fs::futimens(&fd, &times(*time))
                    .map_err(|error| failed(path, "set times", error))?;
            }
        }
        Ok(self.info)
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn times((seconds, nanos): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanos.into() },
    }
}
