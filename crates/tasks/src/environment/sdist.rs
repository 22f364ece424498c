//! Unpacks source distributions from people we do not know.
//!
//! Only directories and regular files are made, only below the target, with modes of our own; what
//! is anything else (links, devices) or has an unusual path is left out and counted. Sizes and
//! numbers are bounded, so that a small archive cannot fill a disk.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::{EnvironmentError, io};

/// Bounds on one archive.
#[derive(Debug, Clone, Copy)]
pub struct SdistLimits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Number of entries.
    pub entries: usize,
}

impl Default for SdistLimits {
    fn default() -> Self {
        Self { bytes: 512 << 20, entries: 50_000 }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Regular files.
    pub num_files: usize,
    /// Entries that were left out.
    pub num_skipped: usize,
}

/// Unpacks a `.tar.gz` into the new directory `target`, without its top directory, whole or not at
/// all.
///
/// # Errors
/// [`EnvironmentError::Sdist`] for another format, a damaged archive, or one past the limits;
/// [`EnvironmentError::Io`].
pub fn unpack_sdist(
    archive: &Path,
    target: &Path,
    limits: SdistLimits,
) -> Result<Unpacked, EnvironmentError> {
    let name = archive.file_name().unwrap_or_default().to_string_lossy().into_owned();
    if name.strip_suffix(".tar.gz").or(name.strip_suffix(".tgz")).is_none() {
        return Err(EnvironmentError::Sdist(format!(
            "{name} is not a .tar.gz; source distributions of other formats are not read"
        )));
    }
    let parent = target.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(parent).map_err(|e| io("making", parent, e))?;
    let part = tempfile::tempdir_in(parent).map_err(|e| io("making a directory in", parent, e))?;
    let file = File::open(archive).map_err(|e| io("opening", archive, e))?;
    // Damage ends the reading; the bound holds for the headers, too.
    let bounded = MultiGzDecoder::new(file).take(limits.bytes + (limits.entries as u64) * 4_096);
    let unpacked = unpack(bounded, part.path(), limits)
        .map_err(|reason| EnvironmentError::Sdist(format!("{name}: {reason}")))?;
    if unpacked.num_files == 0 {
        return Err(EnvironmentError::Sdist(format!("{name}: there is no file in it")));
    }
    let kept = part.keep();
    // Temporary directories are the owner's alone; a sandbox's payload is somebody else.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&kept, mode).map_err(|e| io("opening", &kept, e))?;
    std::fs::rename(&kept, target).or_else(|error| {
        let _ = std::fs::remove_dir_all(&kept);
        // Another worker may have been first.
        if target.is_dir() { Ok(()) } else { Err(io("moving", target, error)) }
    })?;
    Ok(unpacked)
}

fn unpack(stream: impl Read, root: &Path, limits: SdistLimits) -> Result<Unpacked, String> {
    let mut unpacked = Unpacked::default();
    let mut archive = tar::Archive::new(stream);
    let mut left = limits.bytes;
    let damaged = |e: std::io::Error| format!("the archive is damaged: {e}");
    for (number, entry) in archive.entries().map_err(damaged)?.enumerate() {
        let mut entry = entry.map_err(damaged)?;
        if number >= limits.entries {
            return Err(format!("it has more than {} entries", limits.entries));
        }
        let kind = entry.header().entry_type();
        let Some(path) = plain_path(&entry.path_bytes()) else {
            unpacked.num_skipped += 1;
            continue;
        };
        let place = root.join(&path);
        if kind.is_dir() {
            std::fs::create_dir_all(&place).map_err(|e| format!("{}: {e}", path.display()))?;
            continue;
        }
        if !kind.is_file() || path.as_os_str().is_empty() {
            unpacked.num_skipped += usize::from(!path.as_os_str().is_empty());
            continue;
        }
        let size = entry.header().size().map_err(damaged)?;
        left = left
            .checked_sub(size)
            .ok_or_else(|| format!("its files are larger than {} bytes", limits.bytes))?;
        let executable = entry.header().mode().is_ok_and(|mode| mode & 0o111 != 0);
        let modified = entry.header().mtime().unwrap_or(0);
        write(&place, &mut entry, executable, modified)
            .map_err(|e| format!("{}: {e}", path.display()))?;
        unpacked.num_files += 1;
    }
    Ok(unpacked)
}

fn write(
    place: &Path,
    from: &mut impl Read,
    executable: bool,
    modified: u64,
) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if let Some(dir) = place.parent() {
        std::fs::create_dir_all(dir)?;
    }
    // A second entry of the same path replaces the first; links do not exist here.
    let mut file = File::create(place)?;
    std::io::copy(from, &mut file)?;
    file.flush()?;
    // The times tell when the release was made.
    let modified = std::time::Duration::from_secs(modified.min(u64::from(u32::MAX)));
    file.set_modified(std::time::UNIX_EPOCH + modified)?;
    let mode = if executable { 0o755 } else { 0o644 };
    file.set_permissions(std::fs::Permissions::from_mode(mode))
}

/// The path below the archive's top directory; `None` for one that is absolute, climbs, is not
/// UTF-8, or is git metadata.
fn plain_path(bytes: &[u8]) -> Option<PathBuf> {
    let text = std::str::from_utf8(bytes).ok()?;
    let mut path = PathBuf::new();
    let mut parts = Path::new(text).components().filter(|c| *c != Component::CurDir).peekable();
    match parts.next()? {
        Component::Normal(_) => {}
        _ => return None,
    }
    for part in parts {
        match part {
            Component::Normal(name) if name != ".git" => path.push(name),
            _ => return None,
        }
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{SdistLimits, unpack_sdist};

    fn archive(dir: &Path, build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> std::path::PathBuf {
        let mut tar = tar::Builder::new(Vec::new());
        build(&mut tar);
        let bytes = tar.into_inner().unwrap();
        let path = dir.join("p-1.tar.gz");
        let file = std::fs::File::create(&path).unwrap();
        let mut gz = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        std::io::Write::write_all(&mut gz, &bytes).unwrap();
        gz.finish().unwrap();
        path
    }

    fn entry(tar: &mut tar::Builder<Vec<u8>>, path: &str, kind: tar::EntryType, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o777);
        header.set_mtime(1_700_000_000);
        // Past the builder's own refusal of such paths.
        header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").unwrap();
        }
        header.set_cksum();
        tar.append(&header, data).unwrap();
    }

    #[test]
    fn only_plain_files_below_the_target_are_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = archive(dir.path(), |tar| {
            let file = tar::EntryType::Regular;
            entry(tar, "p-1/pkg/a.py", file, b"x = 1\n");
            entry(tar, "p-1/../../evil", file, b"1");
            entry(tar, "/abs", file, b"1");
            entry(tar, "p-1/.git/hooks/x", file, b"1");
            entry(tar, "p-1/link", tar::EntryType::Symlink, b"");
            entry(tar, "p-1/hard", tar::EntryType::Link, b"");
            entry(tar, "p-1/fifo", tar::EntryType::Fifo, b"");
        });
        let target = dir.path().join("out/tree");
        let unpacked = unpack_sdist(&path, &target, SdistLimits::default()).unwrap();
        assert_eq!((unpacked.num_files, unpacked.num_skipped), (1, 6));
        let modified = target.join("pkg/a.py").metadata().unwrap().modified().unwrap();
        let since = modified.duration_since(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(since.as_secs(), 1_700_000_000);
        assert_eq!(std::fs::read_to_string(target.join("pkg/a.py")).unwrap(), "x = 1\n");
        let names: Vec<_> = std::fs::read_dir(&target).unwrap().collect();
        assert_eq!(names.len(), 1);
        assert_eq!(std::fs::read_dir(dir.path().join("out")).unwrap().count(), 1);
    }

    #[test]
    fn what_is_too_large_or_no_archive_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = archive(dir.path(), |tar| {
            for index in 0..5 {
                let file = tar::EntryType::Regular;
                entry(tar, &format!("p-1/{index}"), file, &[b'x'; 4_000]);
            }
        });
        let target = dir.path().join("out/tree");
        let check = |limits: SdistLimits, expected: &str| {
            let error = unpack_sdist(&path, &target, limits).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert_eq!(std::fs::read_dir(dir.path().join("out")).unwrap().count(), 0);
        };
        check(SdistLimits { bytes: 10_000, entries: 100 }, "larger than 10000 bytes");
        check(SdistLimits { bytes: 1 << 20, entries: 3 }, "more than 3 entries");
        let other = dir.path().join("p-1.zip");
        std::fs::write(&other, "").unwrap();
        let error = unpack_sdist(&other, &target, SdistLimits::default()).unwrap_err();
        assert!(error.to_string().contains("not a .tar.gz"), "{error}");
        std::fs::write(&path, b"not gzip").unwrap();
        let error = unpack_sdist(&path, &target, SdistLimits::default()).unwrap_err();
        assert!(error.to_string().contains("damaged"), "{error}");
    }
}
