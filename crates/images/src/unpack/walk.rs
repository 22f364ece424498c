//! Walks a layer's directories without ever leaving it.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::failed;
use crate::error::ImageError;
use crate::tar_entries::layer_error;

/// Directories that lie within each other, at most.
pub const MAX_DEPTH: usize = 256;
/// Links on one path at most, as in the kernel.
const MAX_LINKS: usize = 40;
/// Bytes of a path at most, as in the kernel.
const MAX_PATH: usize = 4096;

/// An open directory of the layer.
#[derive(Clone)]
pub struct Dir {
    pub fd: Rc<OwnedFd>,
    /// Where it really is, links resolved: names joined by `/`, empty for the root.
    pub path: Vec<u8>,
    /// Directories above it.
    pub depth: usize,
}

impl Dir {
    /// The path of a name in it.
    pub fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }
}

/// The components of an entry's path.
///
/// # Errors
/// [`ImageError::Layer`] for `..` and for what is too long or too deep.
pub fn components(path: &[u8]) -> Result<Vec<&[u8]>, ImageError> {
    if path.len() > MAX_PATH {
        return Err(layer_error(path, format!("a path of more than {MAX_PATH} bytes")));
    }
    let names: Vec<&[u8]> =
        path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".").collect();
    if names.iter().any(|name| *name == b"..") {
        return Err(layer_error(path, "a path with `..`"));
    }
    Ok(names)
}

/// What to do about a component that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Make a directory.
    Make,
    /// Refuse.
    Refuse,
}

/// Flags that open a directory itself, never what a link points at.
pub const OPEN_DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Takes away what is in the way of a directory, by its parent and name; whether it did.
pub type Clear<'a> = dyn FnMut(&Dir, &[u8]) -> Result<bool, ImageError> + 'a;

/// Opens a directory of the layer by its components. Links are resolved with the layer as root.
/// `clear` is asked to take away what is in the way of a directory (a whiteout), by its parent and
/// name; it says whether it did.
///
/// # Errors
/// [`ImageError::Layer`] where the way leads through a file, too many links or too deep.
pub fn open_dir(
    root: &Rc<OwnedFd>,
    names: &[&[u8]],
    missing: Missing,
    clear: &mut Clear<'_>,
) -> Result<Dir, ImageError> {
    let whole = names.join(&b'/');
    let mut pending: VecDeque<Vec<u8>> = names.iter().map(|name| name.to_vec()).collect();
    let mut stack = vec![Dir { fd: Rc::clone(root), path: Vec::new(), depth: 0 }];
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        match name.as_slice() {
            b"" | b"." => continue,
            b".." => {
                // Above the root is the root.
                if stack.len() > 1 {
                    stack.pop();
                }
                continue;
            }
            _ => {}
        }
        if stack.len() > MAX_DEPTH {
            return Err(layer_error(&whole, format!("deeper than {MAX_DEPTH} directories")));
        }
        let Some(here) = stack.last().cloned() else { break };
        match step(&here, &name, missing, &whole, clear)? {
            Step::Into(fd) => {
                let path = here.join(&name);
                stack.push(Dir { fd: Rc::new(fd), path, depth: here.depth + 1 });
            }
            Step::Link(target) => {
                links += 1;
                if links > MAX_LINKS {
                    return Err(layer_error(&whole, "too many links on the way"));
                }
                if target.starts_with(b"/") {
                    stack.truncate(1);
                }
                for part in target.split(|b| *b == b'/').rev() {
                    pending.push_front(part.to_vec());
                }
            }
        }
    }
    stack.pop().ok_or_else(|| layer_error(&whole, "no directory"))
}

enum Step {
    Into(OwnedFd),
    Link(Vec<u8>),
}

fn step(
    here: &Dir,
    name: &[u8],
    missing: Missing,
    whole: &[u8],
    clear: &mut Clear<'_>,
) -> Result<Step, ImageError> {
    match rustix::fs::openat(&*here.fd, name, OPEN_DIR, Mode::empty()) {
        Ok(fd) => return Ok(Step::Into(fd)),
        Err(Errno::NOENT) if missing == Missing::Make => {}
        Err(Errno::NOENT) => return Err(layer_error(whole, "leads to nothing in this layer")),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            let stat = rustix::fs::statat(&*here.fd, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| failed(whole, "look", error))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                let target = rustix::fs::readlinkat(&*here.fd, name, Vec::new())
                    .map_err(|error| failed(whole, "read a link", error))?;
                return Ok(Step::Link(target.into_bytes()));
            }
            if missing == Missing::Refuse || !clear(here, name)? {
                return Err(layer_error(whole, "leads through a file"));
            }
        }
        Err(error) => return Err(failed(whole, "open a directory", error)),
    }
    rustix::fs::mkdirat(&*here.fd, name, Mode::from_raw_mode(0o755))
        .map_err(|error| failed(whole, "make a directory", error))?;
    let fd = rustix::fs::openat(&*here.fd, name, OPEN_DIR, Mode::empty())
        .map_err(|error| failed(whole, "open a directory", error))?;
    // Past the umask.
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))
        .map_err(|error| failed(whole, "set a mode", error))?;
    Ok(Step::Into(fd))
}

/// Removes whatever is at a name, without following anything.
pub fn remove(dir: &OwnedFd, name: &[u8], path: &[u8]) -> Result<(), ImageError> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(failed(path, "replace", error)),
    }
    let inner = rustix::fs::openat(dir, name, OPEN_DIR, Mode::empty())
        .map_err(|error| failed(path, "replace", error))?;
    let entries =
        rustix::fs::Dir::read_from(&inner).map_err(|error| failed(path, "replace", error))?;
    for entry in entries {
        let entry = entry.map_err(|error| failed(path, "replace", error))?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            // No deeper than what was made, which is bounded.
            remove(&inner, child, path)?;
        }
    }
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
        .map_err(|error| failed(path, "replace", error))
}
