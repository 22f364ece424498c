//! Removing what is left on the host: directory trees with whatever modes, mounts, cgroups.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Dir, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

const OPEN: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Directories within directories, at most: deeper trees are refused rather than recursed into.
const MAX_DEPTH: usize = 4096;
/// Levels of the cgroup hierarchy that are searched.
const CGROUP_DEPTH: usize = 16;

/// Removes a directory with all in it, or a file, without following any link and whatever the
/// modes: an overlay leaves directories of mode 0. `false` when there was nothing.
pub fn tree(path: &Path) -> io::Result<bool> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = match rustix::fs::openat(CWD, parent, OPEN, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match remove_at(&parent, name.as_bytes()) {
        Ok(()) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Depth-first with an explicit stack of open directories, so that depth costs no stack.
fn remove_at(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<()> {
    let mut levels: Vec<(OwnedFd, Vec<u8>, Vec<Vec<u8>>)> = Vec::new();
    let mut next = Some(name.to_vec());
    loop {
        if let Some(name) = next.take() {
            let at = levels.last().map_or(parent, |(dir, _, _)| dir);
            if let Some(dir) = unlink_or_open(at, &name)? {
                if levels.len() >= MAX_DEPTH {
                    return Err(Errno::NAMETOOLONG);
                }
                let names = names(&dir)?;
                levels.push((dir, name, names));
            }
        }
        let Some((_, _, rest)) = levels.last_mut() else { return Ok(()) };
        if let Some(name) = rest.pop() {
            next = Some(name);
            continue;
        }
        if let Some((_, name, _)) = levels.pop() {
            let at = levels.last().map_or(parent, |(dir, _, _)| dir);
            rustix::fs::unlinkat(at, name.as_slice(), AtFlags::REMOVEDIR)?;
        }
    }
}

/// Unlinks what is no directory; opens what is one.
fn unlink_or_open(at: &OwnedFd, name: &[u8]) -> rustix::io::Result<Option<OwnedFd>> {
    match rustix::fs::unlinkat(at, name, AtFlags::empty()) {
        Ok(()) => return Ok(None),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error),
    }
    let opened = rustix::fs::openat(at, name, OPEN, Mode::empty());
    let dir = match opened {
        Err(Errno::ACCESS) => {
            // A directory, as unlink said; fchmodat follows links, but only this user's own can
            // have come in between.
            rustix::fs::chmodat(at, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(at, name, OPEN, Mode::empty())?
        }
        other => other?,
    };
    let _ = rustix::fs::fchmod(&dir, Mode::RWXU);
    Ok(Some(dir))
}

fn names(dir: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Mounts at or below `path`, the deepest first.
pub fn mounts_below(path: &Path) -> Vec<PathBuf> {
    let text = fs::read("/proc/self/mountinfo").unwrap_or_default();
    mounts_in(&text, path)
}

fn mounts_in(mountinfo: &[u8], path: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = mountinfo
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|at| PathBuf::from(std::ffi::OsString::from_vec(unescape(at))))
        .filter(|at| at.starts_with(path))
        .collect();
    // Those that were mounted later come later, and may lie over earlier ones.
    found.reverse();
    found.sort_by_key(|at| std::cmp::Reverse(at.components().count()));
    found
}

/// Octal escapes of blanks, line breaks and backslashes.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let code = text
            .get(at + 1..at + 4)
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match (text[at], code) {
            (b'\\', Some(code)) => {
                out.push(code);
                at += 4;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

/// Takes a mount out of view, whoever still uses it.
pub fn unmount(path: &Path) -> io::Result<()> {
    let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
    rustix::mount::unmount(path, flags).map_err(Into::into)
}

/// Cgroups whose last name is one of `names`, on every hierarchy.
pub fn cgroups(names: &[String]) -> Vec<PathBuf> {
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut todo: Vec<(PathBuf, usize)> = mountinfo
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let kind = right.split(' ').next()?;
            let at = left.split(' ').nth(4)?;
            matches!(kind, "cgroup" | "cgroup2").then(|| (PathBuf::from(at), 0))
        })
        .collect();
    let mut found = Vec::new();
    while let Some((at, depth)) = todo.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_str().is_some_and(|name| names.iter().any(|n| n == name)) {
                found.push(entry.path());
            } else if depth < CGROUP_DEPTH {
                todo.push((entry.path(), depth + 1));
            }
        }
    }
    found.sort();
    found.dedup();
    found
}

/// Removes a cgroup with those below it. The kernel refuses while a process is in one; those that
/// were killed a moment ago are waited for.
pub fn cgroup(path: &Path) -> io::Result<()> {
    let mut tries = 0;
    loop {
        match cgroup_once(path, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && tries < 200 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => return other,
        }
    }
}

fn cgroup_once(path: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(path)?.flatten() {
        if depth < CGROUP_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match cgroup_once(&entry.path(), depth + 1) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::{mounts_in, tree};
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::{Path, PathBuf};

    #[test]
    fn a_tree_goes_whatever_its_modes_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("f"), "x").unwrap();
        let top = dir.path().join("top");
        fs::create_dir_all(top.join("a/work/work")).unwrap();
        fs::write(top.join("a/f"), "y").unwrap();
        symlink(&kept, top.join("a/link")).unwrap();
        fs::set_permissions(top.join("a/work/work"), fs::Permissions::from_mode(0o000)).unwrap();
        fs::set_permissions(top.join("a"), fs::Permissions::from_mode(0o500)).unwrap();
        assert!(tree(&top).unwrap());
        assert!(!top.exists());
        assert!(kept.join("f").exists());
        assert!(!tree(&top).unwrap(), "nothing is left to remove");
        symlink(&kept, &top).unwrap();
        assert!(tree(&top).unwrap(), "the link itself goes");
        assert!(kept.join("f").exists());
    }

    #[test]
    fn a_deep_tree_goes() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("t");
        let deep = (0..300).fold(top.clone(), |path, _| path.join("d"));
        fs::create_dir_all(&deep).unwrap();
        assert!(tree(&top).unwrap());
        assert!(!top.exists());
    }

    #[test]
    fn mounts_are_found_deepest_first_and_unescaped() {
        let text = b"1 0 0:1 / / rw - ext4 a rw\n\
            2 1 0:2 / /t/x rw - tmpfs a rw\n\
            3 2 0:3 / /t/x/a\\040b rw - tmpfs a rw\n\
            4 1 0:4 / /t/xy rw - tmpfs a rw\n";
        let expected = [PathBuf::from("/t/x/a b"), PathBuf::from("/t/x")];
        assert_eq!(mounts_in(text, Path::new("/t/x")), expected);
    }
}
