//! The journal: everything that happens in a run, append-only, as JSON lines.
//!
//! Each line is `{"hash":"<16 hex digits>","record":<record>}`. The hash covers the record's bytes
//! and the hash of the line before, so that a torn, changed, missing or repeated line is known:
//! what counts is the longest prefix whose chain holds. The first record is
//! [`Record::Header`] with the schema version. Reports, resume and the pool's solve history read
//! the journal, and nothing else.

mod read;
mod record;

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub use read::{Journaled, read_journal};
pub use record::{GroupRecord, Record, RolloutRecord, SCHEMA_VERSION, TurnText};

/// A journal that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file cannot be opened, written or synced; what was acknowledged before stays valid.
    #[error("journal {path}: {source}; free disk space or mend the disk, then go on with --resume")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The first line is missing or damaged: there is nothing to start from.
    #[error("journal {path}: {reason}")]
    Header {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A line whose hash is right but whose record this program cannot read.
    #[error("journal {path}, line {line}: {reason}; it was written by another version")]
    Record {
        /// The file.
        path: String,
        /// Line number from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
}

/// The hash that the chain starts from.
const FIRST_HASH: [u8; 8] = [0; 8];

/// The next link of the chain.
fn chain(previous: [u8; 8], record: &[u8]) -> [u8; 8] {
    let mut hash = Sha256::new();
    hash.update(previous);
    hash.update(record);
    let digest = hash.finalize();
    let mut link = [0; 8];
    link.copy_from_slice(&digest[..8]);
    link
}

fn hex(hash: [u8; 8]) -> String {
    format!("{:016x}", u64::from_be_bytes(hash))
}

/// Appends to a journal. After a failed write it takes no more: the file may end in a torn line,
/// which the next reader cuts off.
#[derive(Debug)]
pub struct Journal {
    file: File,
    path: PathBuf,
    last: [u8; 8],
    broken: bool,
}

impl Journal {
    /// Starts a journal in a new file.
    ///
    /// # Errors
    /// When there is a file already, or it cannot be written.
    pub fn create(path: &Path, header: &Record) -> Result<Self, JournalError> {
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|source| io(path, source))?;
        let mut journal = Self { file, path: path.to_owned(), last: FIRST_HASH, broken: false };
        journal.append(header)?;
        journal.sync()?;
        Ok(journal)
    }

    /// Opens a journal to go on: reads its longest valid prefix, moves what follows to
    /// `<path>.cut` (nothing is thrown away) and gives the records.
    ///
    /// # Errors
    /// When the header is not valid or a valid line cannot be understood.
    pub fn resume(path: &Path) -> Result<(Self, Journaled), JournalError> {
        let journaled = read_journal(path)?;
        let mut file =
            OpenOptions::new().read(true).write(true).open(path).map_err(|e| io(path, e))?;
        if journaled.num_bytes_cut > 0 {
            keep_cut_tail(path, journaled.num_bytes)?;
            file.set_len(journaled.num_bytes).map_err(|e| io(path, e))?;
            file.sync_all().map_err(|e| io(path, e))?;
        }
        file.seek(SeekFrom::End(0)).map_err(|e| io(path, e))?;
        let journal =
            Self { file, path: path.to_owned(), last: journaled.last_hash, broken: false };
        Ok((journal, journaled))
    }

    /// Appends one record. It is acknowledged only by [`Journal::sync`].
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn append(&mut self, record: &Record) -> Result<(), JournalError> {
        if self.broken {
            let source = std::io::Error::other("an earlier write failed");
            return Err(io(&self.path, source));
        }
        let text = serde_json::to_string(record)
            .map_err(|error| io(&self.path, std::io::Error::other(error)))?;
        let hash = chain(self.last, text.as_bytes());
        let line = format!("{{\"hash\":\"{}\",\"record\":{text}}}\n", hex(hash));
        self.file.write_all(line.as_bytes()).map_err(|source| {
            self.broken = true;
            io(&self.path, source)
        })?;
        self.last = hash;
        Ok(())
    }

    /// Makes all that was appended survive a crash.
    ///
    /// # Errors
    /// When the file cannot be synced; the journal then takes no more, because what the kernel
    /// kept is not known.
    pub fn sync(&mut self) -> Result<(), JournalError> {
        self.file.sync_data().map_err(|source| {
            self.broken = true;
            io(&self.path, source)
        })
    }
}

fn io(path: &Path, source: std::io::Error) -> JournalError {
    JournalError::Io { path: path.display().to_string(), source }
}

fn keep_cut_tail(path: &Path, num_bytes: u64) -> Result<(), JournalError> {
    let mut cut = path.as_os_str().to_owned();
    cut.push(".cut");
    let cut = PathBuf::from(cut);
    let mut source = File::open(path).map_err(|e| io(path, e))?;
    source.seek(SeekFrom::Start(num_bytes)).map_err(|e| io(path, e))?;
    let mut target =
        OpenOptions::new().append(true).create(true).open(&cut).map_err(|e| io(&cut, e))?;
    std::io::copy(&mut source, &mut target).map_err(|e| io(&cut, e))?;
    target.sync_all().map_err(|e| io(&cut, e))
}

#[cfg(test)]
mod tests;
