//! Finished episodes on the disk: kept rollouts, a compressed frame each, so that a file whose
//! last one was cut off by a crash is good up to it.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use patchwright_core::Rollout;

use crate::error::TrainError;

/// Bytes of one rollout at most.
const MAX_ROLLOUT_BYTES: u64 = 1 << 30;

/// A file of rollouts that grows. One process at a time has it.
pub(super) struct Store {
    file: File,
    path: PathBuf,
    /// Bytes of whole frames.
    end: u64,
    /// Where what a crash left of a last rollout is, if there was any.
    pub cut_off: Option<PathBuf>,
}

impl Store {
    /// Opens or makes the file; `each` hears what is there already. What a crash left of a last
    /// rollout is moved to a file beside it, `NAME.cut-BYTE`.
    ///
    /// # Errors
    /// [`TrainError::Io`]; [`TrainError::Setup`] for a file of something else, one that is damaged,
    /// and one that another process has.
    pub fn open(path: &Path, mut each: impl FnMut(Rollout)) -> Result<Self, TrainError> {
        let io = || TrainError::io(path);
        let wrong = |reason: String| TrainError::setup(path.display().to_string(), reason);
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io())?;
        match file.try_lock() {
            // Where the file system knows no locks, the operator has to see to it.
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                return Err(wrong("another gateway writes to it; stop that one first".to_owned()));
            }
        }
        let mut reader = BufReader::new(file);
        let mut end = 0;
        while !reader.fill_buf().map_err(io())?.is_empty() {
            let line = match frame(&mut reader) {
                Ok(line) => line,
                Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                Err(error) if end == 0 => {
                    return Err(wrong(format!("is no file of a gateway's rollouts: {error}")));
                }
                Err(error) => {
                    return Err(wrong(format!(
                        "damaged at byte {end}: {error}; keep a copy, then `truncate -s {end}` \
                         saves the rollouts before it"
                    )));
                }
            };
            let rollout = serde_json::from_slice(&line).map_err(|error| {
                wrong(format!("what begins at byte {end} is no rollout: {error}"))
            })?;
            each(rollout);
            end = reader.stream_position().map_err(io())?;
        }
        let mut file = reader.into_inner();
        let is_cut = file.metadata().map_err(io())?.len() > end;
        let cut_off = is_cut.then(|| put_aside(&mut file, path, end)).transpose()?;
        file.set_len(end).map_err(io())?;
        file.seek(SeekFrom::Start(end)).map_err(io())?;
        Ok(Self { file, path: path.to_owned(), end, cut_off })
    }

    /// Adds a rollout. It is on the disk when this returns; if it cannot be, the file is as it was.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn append(&mut self, rollout: &Rollout) -> Result<(), TrainError> {
        let written = serde_json::to_vec(rollout).map_err(Into::into).and_then(|mut line| {
            line.push(b'\n');
            let mut encoder = zstd::Encoder::new(Vec::new(), 3)?;
            encoder.include_checksum(true)?;
            encoder.write_all(&line)?;
            let frame = encoder.finish()?;
            self.file.write_all(&frame)?;
            self.file.sync_data()?;
            Ok(frame.len() as u64)
        });
        match written {
            Ok(num_bytes) => {
                self.end += num_bytes;
                Ok(())
            }
            Err(error) => {
                // If this fails too, the next one that opens the file cuts it.
                let _ = self.file.set_len(self.end);
                let _ = self.file.seek(SeekFrom::Start(self.end));
                Err(TrainError::io(&self.path)(error))
            }
        }
    }
}

/// Copies what stands behind the whole frames to a file of its own: a damaged file may look like
/// one that was cut off, and then whole rollouts are in there.
fn put_aside(file: &mut File, path: &Path, end: u64) -> Result<PathBuf, TrainError> {
    let mut name = path.to_owned().into_os_string();
    name.push(format!(".cut-{end}"));
    let aside = PathBuf::from(name);
    file.seek(SeekFrom::Start(end)).map_err(TrainError::io(path))?;
    let copied = File::create(&aside).and_then(|mut to| {
        std::io::copy(file, &mut to)?;
        to.sync_data()
    });
    copied.map_err(TrainError::io(&aside))?;
    Ok(aside)
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
            attempt: 0,
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
        drop(store);
        let (mut store, found) = open().unwrap();
        assert_eq!(found, [rollout(0), rollout(1)]);
        let len = std::fs::metadata(&path).unwrap().len() as usize;
        let aside = dir.path().join(format!("rollouts.jsonl.zst.cut-{len}"));
        assert_eq!(std::fs::read(aside).unwrap(), &bytes[len..bytes.len() - 5]);
        store.append(&rollout(7)).unwrap();
        let busy = open().map(|_| ()).unwrap_err().to_string();
        assert!(busy.contains("another gateway"), "{busy}");
        drop(store);
        assert_eq!(open().unwrap().1, [rollout(0), rollout(1), rollout(7)]);
        // As every reader of the format sees it.
        let text = zstd::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(String::from_utf8(text).unwrap().lines().count(), 3);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[len + 20] ^= 0xff;
        std::fs::write(&path, &bytes).unwrap();
        let damaged = open().map(|_| ()).unwrap_err().to_string();
        assert!(damaged.contains(&format!("at byte {len}")), "{damaged}");
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing is lost");
        std::fs::write(&path, "something else entirely").unwrap();
        assert!(open().is_err());
    }
}
