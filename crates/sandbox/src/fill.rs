//! What a fresh sandbox is filled with: the repository, as a tree for its first layer.

use std::collections::BTreeMap;
use std::io::BufWriter;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use patchwright_core::SandboxError;

use crate::provider::{from_refusal, host_error};
use crate::tree::{self, Entry, Skip, Walk};

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

/// Sends the upper layer over a host directory: nothing but what hides its `.git`.
pub fn send_upper(path: &Path, to: &mut BufWriter<&UnixStream>) -> Result<(), SandboxError> {
    let dir = open_repository(path)?;
    Walk::new(to, Skip::Nothing, 0).own_entry(&dir, b"repo", false).map_err(from_refusal)?;
    let git = Entry::Whiteout { path: b"repo/.git".to_vec() };
    git.send(to).map_err(|error| host_error("send the repository", error))
}

/// Opens a directory of the host that is a repository, or a layer of an image.
pub fn open_repository(path: &Path) -> Result<OwnedFd, SandboxError> {
    tree::open_host_dir(path).map_err(|e| host_error(&format!("open {}", path.display()), e.into()))
}
