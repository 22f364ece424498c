//! The repository as it was before the agent came.

use std::io;
use std::path::Path;

use patchwright_core::{FileChange, Patch, PatchError, RepoSource, TaskInstance};

use super::GradeError;

/// Reads a file of the pristine repository. `None`: there is no such regular file, or a part of
/// its path is a symbolic link (a patch must not reach through one).
pub(super) fn read(repo: &RepoSource, path: &str) -> io::Result<Option<Vec<u8>>> {
    match repo {
        RepoSource::Files(files) => Ok(files.get(path).map(|text| text.as_bytes().to_vec())),
        RepoSource::Directory(root) => {
            if !is_file(root, path)? {
                return Ok(None);
            }
            std::fs::read(root.join(path)).map(Some)
        }
        RepoSource::InRoot => Ok(None),
    }
}

/// Whether the pristine repository has this regular file.
pub(super) fn has(repo: &RepoSource, path: &str) -> bool {
    match repo {
        RepoSource::Files(files) => files.contains_key(path),
        RepoSource::Directory(root) => is_file(root, path).unwrap_or(false),
        RepoSource::InRoot => false,
    }
}

fn is_file(root: &Path, path: &str) -> io::Result<bool> {
    let mut whole = root.to_owned();
    let mut parts = path.split('/').peekable();
    while let Some(part) = parts.next() {
        if matches!(part, "" | "." | ".." | ".git") {
            return Ok(false);
        }
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

/// Applies a patch to the pristine tree.
pub(super) fn apply(
    task: &TaskInstance,
    repo: &RepoSource,
    patch: &Patch,
) -> Result<Result<Vec<FileChange>, PatchError>, GradeError> {
    let mut failed = None;
    let applied = patch.apply(&mut |path| match read(repo, path) {
        Ok(bytes) => bytes,
        Err(error) => {
            failed.get_or_insert((path.to_owned(), error));
            None
        }
    });
    match failed {
        None => Ok(applied),
        Some((path, source)) => {
            Err(GradeError::Io { instance_id: task.instance_id.clone(), path, source })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{has, read};
    use patchwright_core::RepoSource;

    #[test]
    fn links_are_not_followed() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        std::fs::create_dir(dir.join("src")).unwrap();
        std::fs::write(dir.join("src/a.py"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", dir.join("link")).unwrap();
        std::os::unix::fs::symlink("src/a.py", dir.join("b.py")).unwrap();
        let repo = RepoSource::Directory(dir.to_owned());
        assert_eq!(read(&repo, "src/a.py").unwrap(), Some(b"x".to_vec()));
        for path in ["link/passwd", "b.py", "src", "src/a.py/x", "none", "../x", "/etc/passwd", ""]
        {
            assert_eq!(read(&repo, path).unwrap(), None, "{path}");
            assert!(!has(&repo, path));
        }
    }
}
