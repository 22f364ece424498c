//! A repository as an archive, for an agent that works on a copy of its own.

use std::io::Write;
use std::path::Path;

use patchwright_core::RepoSource;

/// Bytes of the files of one archive at most.
const MAX_BYTES: u64 = 1 << 30;

/// Entries of one archive at most.
const MAX_ENTRIES: usize = 500_000;

/// The repository as a `.tar.gz`: files sorted by path, without times and owners, so that equal
/// repositories are equal archives; as in a sandbox, without `.git`.
///
/// # Errors
/// What is wrong, for people: a repository that cannot be read, is too large, or is in an image.
pub(super) fn archive(repo: &RepoSource) -> Result<Vec<u8>, String> {
    let encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = Archive { tar: tar::Builder::new(encoder), num_bytes: 0, num_entries: 0 };
    match repo {
        RepoSource::Files(files) => {
            for (path, text) in files.iter() {
                archive.file(Path::new(path), text.as_bytes(), false)?;
            }
        }
        RepoSource::Directory(dir) => archive.directory(dir, Path::new(""))?,
        RepoSource::InRoot => {
            return Err("the repository is inside the task's image: ask for a sandbox".to_owned());
        }
    }
    let encoder = archive.tar.into_inner().map_err(|error| error.to_string())?;
    encoder.finish().map_err(|error| error.to_string())
}

struct Archive<W: Write> {
    tar: tar::Builder<W>,
    num_bytes: u64,
    num_entries: usize,
}

impl<W: Write> Archive<W> {
    /// Everything below a directory of the host; links stay links.
    fn directory(&mut self, dir: &Path, inside: &Path) -> Result<(), String> {
        let wrong = |error: std::io::Error| format!("{}: {error}", inside.display());
        let entries: Result<Vec<_>, _> = std::fs::read_dir(dir).map_err(wrong)?.collect();
        let mut names: Vec<_> =
            entries.map_err(wrong)?.into_iter().map(|entry| entry.file_name()).collect();
        names.sort();
        for name in
            names.into_iter().filter(|name| !inside.as_os_str().is_empty() || name != ".git")
        {
            let (path, inside) = (dir.join(&name), inside.join(&name));
            let wrong = |error: std::io::Error| format!("{}: {error}", inside.display());
            let meta = std::fs::symlink_metadata(&path).map_err(wrong)?;
            if meta.is_dir() {
                self.directory(&path, &inside)?;
            } else if meta.is_symlink() {
                let target = std::fs::read_link(&path).map_err(wrong)?;
                let mut header = header(tar::EntryType::Symlink, 0, 0o777);
                self.count(0)?;
                self.tar.append_link(&mut header, &inside, target).map_err(wrong)?;
            } else if meta.is_file() {
                // Before it is read: what is too large is not held in memory.
                self.check(meta.len())?;
                let bytes = std::fs::read(&path).map_err(wrong)?;
                let mode = std::os::unix::fs::PermissionsExt::mode(&meta.permissions());
                self.file(&inside, &bytes, mode & 0o111 != 0)?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, bytes: &[u8], executable: bool) -> Result<(), String> {
        let size = bytes.len() as u64;
        self.count(size)?;
        let mode = if executable { 0o755 } else { 0o644 };
        let mut header = header(tar::EntryType::Regular, size, mode);
        let appended = self.tar.append_data(&mut header, path, bytes);
        appended.map_err(|error| format!("{}: {error}", path.display()))
    }

    fn check(&self, size: u64) -> Result<(), String> {
        if self.num_bytes.saturating_add(size) > MAX_BYTES || self.num_entries >= MAX_ENTRIES {
            return Err(format!(
                "the repository is too large for an archive (at most {MAX_BYTES} bytes in \
                 {MAX_ENTRIES} files): ask for a sandbox"
            ));
        }
        Ok(())
    }

    fn count(&mut self, size: u64) -> Result<(), String> {
        self.check(size)?;
        self.num_bytes += size;
        self.num_entries += 1;
        Ok(())
    }
}

fn header(kind: tar::EntryType, size: u64, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header.set_mtime(0);
    header
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::sync::Arc;

    use patchwright_core::RepoSource;

    use super::archive;

    fn entries(repo: &RepoSource) -> BTreeMap<String, String> {
        let bytes = archive(repo).unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(&*bytes));
        tar.entries()
            .unwrap()
            .map(|entry| {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().display().to_string();
                let mode = entry.header().mode().unwrap();
                let mut text = format!("{mode:o} ");
                if let Some(target) = entry.link_name().unwrap() {
                    text += "-> ";
                    text += &target.display().to_string();
                }
                entry.read_to_string(&mut text).unwrap();
                (path, text)
            })
            .collect()
    }

    #[test]
    fn files_and_directories_are_archives() {
        let files = [("a.py", "x = 1\n"), ("src/b.py", "y\n")];
        let files = files.map(|(path, text)| (path.to_owned(), text.to_owned()));
        let repo = RepoSource::Files(Arc::new(files.into()));
        let found = entries(&repo);
        assert_eq!(
            (found["a.py"].as_str(), found["src/b.py"].as_str()),
            ("644 x = 1\n", "644 y\n")
        );
        assert_eq!(archive(&repo), archive(&repo));

        let dir = tempfile::tempdir().unwrap();
        for (path, text) in [(".git/HEAD", "the fix"), ("src/.git/x", "a file"), ("run.sh", "true")]
        {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(dir.path().join("run.sh"), executable).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
        let found = entries(&RepoSource::Directory(dir.path().to_owned()));
        let found: Vec<(&str, &str)> = found.iter().map(|(a, b)| (&**a, &**b)).collect();
        let expected =
            [("link", "777 -> /etc/passwd"), ("run.sh", "755 true"), ("src/.git/x", "644 a file")];
        assert_eq!(found, expected);
        assert!(archive(&RepoSource::InRoot).unwrap_err().contains("sandbox"));
    }
}
