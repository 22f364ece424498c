//! The repository as it was before the agent came.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_core::patch::MAX_PATCH_BYTES;
use patchwright_core::{FileChange, Patch, PatchError, RepoSource, Sandbox, SandboxError};

/// Where pristine files are read.
pub(super) enum Pristine {
    /// In memory.
    Files(Arc<std::collections::BTreeMap<String, String>>),
    /// In a directory of the host.
    Directory(PathBuf),
    /// In a sandbox in which nothing has run yet, below this directory. `None` once it was taken
    /// to run the tests in.
    Sandbox(Mutex<Option<Box<dyn Sandbox>>>, String),
}

/// A pristine file could not be read, for a reason of the infrastructure.
#[derive(Debug)]
pub(super) enum ReadError {
    /// Of the host.
    Io(io::Error),
    /// Of the sandbox that holds the files.
    Sandbox(SandboxError),
}

impl Pristine {
    /// `sandbox` is asked for where the repository is part of the sandbox's root.
    pub(super) fn new(
        repo: &RepoSource,
        workdir: &str,
        sandbox: impl FnOnce() -> Result<Box<dyn Sandbox>, SandboxError>,
    ) -> Result<Self, SandboxError> {
        Ok(match repo {
            RepoSource::Files(files) => Self::Files(Arc::clone(files)),
            RepoSource::Directory(root) => Self::Directory(root.clone()),
            RepoSource::InRoot => Self::Sandbox(
                Mutex::new(Some(sandbox()?)),
                workdir.trim_end_matches('/').to_owned(),
            ),
        })
    }

    /// The sandbox in which the files were read, for a first and only use.
    pub(super) fn take_sandbox(&self) -> Option<Box<dyn Sandbox>> {
        match self {
            Self::Sandbox(sandbox, _) => {
                sandbox.lock().unwrap_or_else(PoisonError::into_inner).take()
            }
            Self::Files(_) | Self::Directory(_) => None,
        }
    }

    /// Reads a file. `None`: there is no such regular file, or a part of its path is a symbolic
    /// link of the host's (a patch must not reach through one).
    pub(super) fn read(&self, path: &str) -> Result<Option<Vec<u8>>, ReadError> {
        match self {
            Self::Files(files) => Ok(files.get(path).map(|text| text.as_bytes().to_vec())),
            Self::Directory(root) => {
                if !is_file(root, path).map_err(ReadError::Io)? {
                    return Ok(None);
                }
                std::fs::read(root.join(path)).map(Some).map_err(ReadError::Io)
            }
            Self::Sandbox(sandbox, workdir) => {
                if !is_inside(path) {
                    return Ok(None);
                }
                let mut held = sandbox.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(sandbox) = held.as_mut() else {
                    let gone = "the pristine sandbox was used up".to_owned();
                    return Err(ReadError::Sandbox(SandboxError::Died(gone)));
                };
                match sandbox.read(&format!("{workdir}/{path}"), MAX_PATCH_BYTES) {
                    Ok(bytes) => Ok(Some(bytes)),
                    Err(SandboxError::Path { .. }) => Ok(None),
                    Err(error) => Err(ReadError::Sandbox(error)),
                }
            }
        }
    }

    /// Whether the pristine repository has this regular file.
    pub(super) fn has(&self, path: &str) -> bool {
        match self {
            Self::Files(files) => files.contains_key(path),
            Self::Directory(root) => is_file(root, path).unwrap_or(false),
            Self::Sandbox(..) => self.read(path).is_ok_and(|bytes| bytes.is_some()),
        }
    }

    /// Applies a patch to the pristine tree.
    ///
    /// # Errors
    /// The path that could not be read, and why.
    pub(super) fn apply(
        &self,
        patch: &Patch,
    ) -> Result<Result<Vec<FileChange>, PatchError>, (String, ReadError)> {
        let mut failed = None;
        let applied = patch.apply(&mut |path| match self.read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                failed.get_or_insert((path.to_owned(), error));
                None
            }
        });
        failed.map_or(Ok(applied), Err)
    }
}

fn is_inside(path: &str) -> bool {
    path.split('/').all(|part| !matches!(part, "" | "." | ".." | ".git"))
}

fn is_file(root: &Path, path: &str) -> io::Result<bool> {
    if !is_inside(path) {
        return Ok(false);
    }
    let mut whole = root.to_owned();
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        whole.push(part);
        let kind = match whole.symlink_metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound
                        | io::ErrorKind::NotADirectory
                        | io::ErrorKind::InvalidFilename
                ) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let right = if parts.peek().is_some() { kind.is_dir() } else { kind.is_file() };
        if !right {
            return Ok(false);
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::Pristine;

    #[test]
    fn links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        std::fs::create_dir(dir.join("src")).unwrap();
        std::fs::write(dir.join("src/a.py"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("src/a.py", dir.join("b.py")).unwrap();
        let repo = Pristine::Directory(dir.to_owned());
        assert_eq!(repo.read("src/a.py").unwrap(), Some(b"x".to_vec()));
        for path in ["link/passwd", "b.py", "src", "src/a.py/x", "none", "../x", "/etc/passwd", ""]
        {
            assert_eq!(repo.read(path).unwrap(), None, "{path}");
            assert!(!repo.has(path));
        }
    }
}
