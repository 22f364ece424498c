//! What a fresh sandbox is filled with: the repository, as a tree for its first layer.

use std::collections::{BTreeMap, BTreeSet};
use std::io::BufWriter;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_core::SandboxError;
use rustix::fs::{Access, AtFlags, FileType, Mode};

use crate::provider::{from_refusal, host_error};
use crate::tree::{self, Entry, MAX_DEPTH, Skip, Walk};

/// Files of memory have one time of change, so that listings are the same in every sandbox:
/// 2020-01-01 00:00:00 UTC.
const MTIME: i64 = 1_577_836_800;

/// Sends files of memory as the repository.
pub fn send_files(
    files: &BTreeMap<String, String>,
    to: &mut BufWriter<&UnixStream>,
) -> Result<(), SandboxError> {
    let dir = |path: &str| {
        let path = path.as_bytes().to_vec();
        Entry::Dir { path, mode: 0o755, mtime_s: MTIME, mtime_ns: 0, opaque: false }
    };
    let failed = |error| host_error("send the repository", error);
    let mut made = std::collections::BTreeSet::new();
    dir("own/repo").send(to).map_err(failed)?;
    for (name, text) in files {
        if !tree::is_clean(name.as_bytes()) {
            return Err(SandboxError::Path {
                path: name.clone(),
                reason: "is not a relative path of plain names".to_owned(),
            });
        }
        let path = format!("own/repo/{name}");
        for (at, _) in path.match_indices('/').skip(2) {
            if made.insert(path[..at].to_owned()) {
                dir(&path[..at]).send(to).map_err(failed)?;
            }
        }
        let (path, size) = (path.into_bytes(), text.len() as u64);
        Entry::File { path, mode: 0o644, mtime_s: MTIME, mtime_ns: 0, size }
            .send(to)
            .map_err(failed)?;
        for (n, data) in text.as_bytes().chunks(1 << 20).enumerate() {
            let chunk = Entry::Chunk { offset: (n as u64) << 20, data: data.to_vec() };
            chunk.send(to).map_err(failed)?;
        }
    }
    Ok(())
}

/// Sends a host directory as the repository, where it cannot be shared.
pub fn send_directory(
    path: &Path,
    disk_bytes: u64,
    to: &mut BufWriter<&UnixStream>,
) -> Result<(), SandboxError> {
    let dir = open_repository(path)?;
    Walk::new(to, Skip::TopGit, disk_bytes).send_whole(&dir, b"own/repo").map_err(from_refusal)
}

/// Sends the upper layer over a host directory: what hides its `.git`, and copies of what commands
/// could not change in the directory itself, because it is another's.
pub fn send_upper(
    path: &Path,
    maps_owners: bool,
    disk_bytes: u64,
    to: &mut BufWriter<&UnixStream>,
) -> Result<(), SandboxError> {
    let dir = open_repository(path)?;
    let foreign = foreign(path, &dir, maps_owners)
        .map_err(|error| host_error(&format!("read {}", path.display()), error.into()))?;
    let mut walk = Walk::new(to, Skip::TopGit, disk_bytes);
    if foreign.is_empty() {
        walk.own_entry(&dir, b"repo", false).map_err(from_refusal)?;
    } else {
        walk.set_only(&foreign);
        walk.send_whole(&dir, b"repo").map_err(from_refusal)?;
    }
    let git = Entry::Whiteout { path: b"repo/.git".to_vec() };
    git.send(to).map_err(|error| host_error("send the repository", error))
}

/// Directories that were looked through, at most.
const MAX_KNOWN: usize = 1024;
/// A directory: its device, number and time of change.
type DirId = (u64, u64, i64, u64);
/// Paths of a layer.
type Paths = Arc<BTreeSet<Vec<u8>>>;

/// What in a repository is not its owner's (of whom commands appear as, or where nobody can be
/// made to appear, this user's), with its parents, as paths of the layer. Looked for once in a
/// process: pristine files are not expected to change.
fn foreign(path: &Path, dir: &OwnedFd, maps_owners: bool) -> rustix::io::Result<Paths> {
    static KNOWN: Mutex<BTreeMap<(PathBuf, DirId), Paths>> = Mutex::new(BTreeMap::new());
    let stat = rustix::fs::fstat(dir)?;
    let id = (stat.st_dev, stat.st_ino, stat.st_ctime, stat.st_ctime_nsec as u64);
    let key = (path.to_owned(), id);
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(paths) = known().get(&key) {
        return Ok(Arc::clone(paths));
    }
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let owner = if maps_owners { (stat.st_uid, stat.st_gid) } else { own };
    let mut paths = BTreeSet::new();
    find_foreign(dir, b"repo", owner, 0, &mut paths)?;
    let paths = Arc::new(paths);
    let mut known = known();
    if known.len() >= MAX_KNOWN {
        known.clear();
    }
    known.insert(key, Arc::clone(&paths));
    Ok(paths)
}

fn find_foreign(
    dir: &OwnedFd,
    path: &[u8],
    owner: (u32, u32),
    depth: usize,
    found: &mut BTreeSet<Vec<u8>>,
) -> rustix::io::Result<()> {
    for name in tree::names(dir)? {
        if Skip::TopGit.skips(&name, depth) || depth > MAX_DEPTH {
            continue;
        }
        let stat = rustix::fs::statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
        let here = [path, b"/", &name].concat();
        let file_type = FileType::from_raw_mode(stat.st_mode);
        // What this user cannot read is out of the commands' reach too.
        let readable = file_type == FileType::Symlink
            || rustix::fs::accessat(dir, name.as_slice(), Access::READ_OK, AtFlags::EACCESS)
                .is_ok();
        if (stat.st_uid, stat.st_gid) != owner && readable {
            let slashes = here.iter().enumerate().skip(5).filter(|(_, byte)| **byte == b'/');
            found.extend(slashes.map(|(at, _)| here[..at].to_vec()));
            found.insert(here.clone());
        }
        if file_type == FileType::Directory && readable {
            let below = tree::open_beneath(dir, &name, tree::READ_DIR, Mode::empty())?;
            find_foreign(&below, &here, owner, depth + 1, found)?;
        }
    }
    Ok(())
}

/// Opens a directory of the host that is a repository, or a layer of an image.
pub fn open_repository(path: &Path) -> Result<OwnedFd, SandboxError> {
    tree::open_host_dir(path).map_err(|e| host_error(&format!("open {}", path.display()), e.into()))
}
