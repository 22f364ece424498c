//! Finished work on disk, in files that are there whole or not at all.

use std::io::Write as _;
use std::path::Path;

use patchwright_core::TaskError;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// What an earlier run finished; nothing where there is no file, or none that can be used.
pub(crate) fn read<T: DeserializeOwned>(place: &Path) -> Option<T> {
    serde_json::from_slice(&std::fs::read(place).ok()?).ok()
}

/// Writes a value as JSON.
///
/// # Errors
/// [`TaskError::Io`] when the file cannot be written; then its place is as it was.
pub(crate) fn write(place: &Path, value: &impl Serialize) -> Result<(), TaskError> {
    let bytes = serde_json::to_vec(value).map_err(|e| failure(place, e.into()))?;
    write_bytes(place, &bytes)
}

/// Writes bytes beside their place, on the disk, and moves them there.
///
/// # Errors
/// [`TaskError::Io`] when the file cannot be written; then its place is as it was.
pub(crate) fn write_bytes(place: &Path, bytes: &[u8]) -> Result<(), TaskError> {
    let dir = place.parent().unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(dir)?;
        let mut part = tempfile::NamedTempFile::new_in(dir)?;
        part.write_all(bytes)?;
        part.as_file().sync_all()?;
        part.persist(place)?;
        Ok(())
    };
    write().map_err(|source| failure(place, source))
}

fn failure(place: &Path, source: std::io::Error) -> TaskError {
    TaskError::Io { context: format!("writing {}", place.display()), source }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_was_written_is_read_and_what_is_damaged_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("a/b/c.json");
        assert_eq!(super::read::<Vec<u32>>(&place), None);
        super::write(&place, &vec![1_u32, 2]).unwrap();
        assert_eq!(super::read(&place), Some(vec![1_u32, 2]));
        super::write_bytes(&place, b"[1, 2").unwrap();
        assert_eq!(super::read::<Vec<u32>>(&place), None);
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = super::write(&dir.path().join("file/x.json"), &1).unwrap_err().to_string();
        assert!(error.contains("file/x.json"), "{error}");
    }
}
