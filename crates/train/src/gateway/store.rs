//! Finished episodes on the disk: kept rollouts, a compressed frame each, so that a file whose
//! last one was cut off by a crash is good up to it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, Write};
use std::path::{Path, PathBuf};

use patchwright_core::Rollout;

use crate::error::TrainError;

/// Bytes of one rollout at most.
const MAX_ROLLOUT_BYTES: u64 = 1 << 30;

/// A file of rollouts that grows.
pub(super) struct Store {
    file: File,
    path: PathBuf,
}

impl Store {
    /// Opens or makes the file; `each` hears what is there already. What a crash left of a last
    /// rollout is cut off.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Setup`] for a file of something else.
    pub fn open(path: &Path, mut each: impl FnMut(Rollout)) -> Result<Self, TrainError> {
        let io = || TrainError::io(path);
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io())?;
        let mut reader = BufReader::new(file);
        let mut end = 0;
        while !reader.fill_buf().map_err(io())?.is_empty() {
            let line = match frame(&mut reader) {
                Ok(line) => line,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(TrainError::io(path)(error)),
            };
            let rollout = serde_json::from_slice(&line).map_err(|error| {
                let reason = format!("what begins at byte {end} is no rollout: {error}");
                TrainError::setup(path.display().to_string(), reason)
            })?;
            each(rollout);
            end = reader.stream_position().map_err(io())?;
        }
        let mut file = reader.into_inner();
        file.set_len(end).map_err(io())?;
        file.seek(std::io::SeekFrom::Start(end)).map_err(io())?;
        Ok(Self { file, path: path.to_owned() })
    }

    /// Adds a rollout. It is on the disk when this returns.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn append(&mut self, rollout: &Rollout) -> Result<(), TrainError> {
        let written = serde_json::to_vec(rollout).map_err(Into::into).and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&zstd::encode_all(&*line, 3)?)?;
            self.file.sync_data()
        });
        written.map_err(TrainError::io(&self.path))
    }
}

/// The next frame, decompressed.
fn frame(reader: &mut BufReader<File>) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let decoder = zstd::Decoder::with_buffer(reader)?.single_frame();
    decoder.take(MAX_ROLLOUT_BYTES).read_to_end(&mut line)?;
    Ok(line)
}

#[cfg(test)]
mod tests {
    use patchwright_core::{PolicyVersion, Rollout, RolloutStatus, Trajectory};

    use super::Store;

    fn rollout(sibling: u32) -> Rollout {
        Rollout {
            instance_id: "a".to_owned(),
            sibling,
            policy_version: PolicyVersion(0),
            status: RolloutStatus::Submitted,
            failure: None,
            failure_detail: None,
            solved: Some(true),
            patch: String::new(),
            trajectory: Trajectory { prompt: "fix it".repeat(100), ..Trajectory::default() },
            branches: vec![Trajectory::default()],
        }
    }

    #[test]
    fn what_a_crash_cut_off_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl.zst");
        let open = || {
            let mut found = Vec::new();
            Store::open(&path, |rollout| found.push(rollout)).map(|store| (store, found))
        };
        let (mut store, found) = open().unwrap();
        assert_eq!(found, []);
        (0..3).for_each(|sibling| store.append(&rollout(sibling)).unwrap());
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let (mut store, found) = open().unwrap();
        assert_eq!(found, [rollout(0), rollout(1)]);
        store.append(&rollout(7)).unwrap();
        assert_eq!(open().unwrap().1, [rollout(0), rollout(1), rollout(7)]);
        // As every reader of the format sees it.
        let text = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(String::from_utf8(text).unwrap().lines().count(), 3);
        std::fs::write(&path, "something else entirely").unwrap();
        assert!(open().is_err());
    }
}
