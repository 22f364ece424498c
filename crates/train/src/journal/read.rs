//! Reading a journal: the longest prefix whose chain holds.

use std::path::Path;

use super::{FIRST_HASH, JournalError, Record, SCHEMA_VERSION, chain, io};

/// What a journal holds.
#[derive(Debug, Clone)]
pub struct Journaled {
    /// The records of the valid prefix, in order.
    pub records: Vec<Record>,
    /// Bytes of the valid prefix.
    pub num_bytes: u64,
    /// Bytes after it that do not count.
    pub num_bytes_cut: u64,
    pub(super) last_hash: [u8; 8],
}

/// Reads the longest valid prefix of a journal. Does not change the file.
///
/// # Errors
/// When the file cannot be read, the header is not valid, or a line whose hash holds cannot be
/// understood (a newer program wrote it).
pub fn read_journal(path: &Path) -> Result<Journaled, JournalError> {
    let bytes = std::fs::read(path).map_err(|source| io(path, source))?;
    let mut records = Vec::new();
    let (mut start, mut last_hash) = (0, FIRST_HASH);
    while let Some(length) = bytes[start..].iter().position(|byte| *byte == b'\n') {
        let Some((record, hash)) = verify(&bytes[start..start + length], last_hash) else {
            break;
        };
        let line = records.len() + 1;
        records.push(serde_json::from_slice(record).map_err(|error| JournalError::Record {
            path: path.display().to_string(),
            line,
            reason: error.to_string(),
        })?);
        last_hash = hash;
        start += length + 1;
    }
    check_header(path, records.first())?;
    Ok(Journaled {
        records,
        num_bytes: start as u64,
        num_bytes_cut: (bytes.len() - start) as u64,
        last_hash,
    })
}

/// The record's bytes and its hash, when the line has the right form and continues the chain.
fn verify(line: &[u8], previous: [u8; 8]) -> Option<(&[u8], [u8; 8])> {
    let rest = line.strip_prefix(b"{\"hash\":\"")?;
    let (digits, rest) = rest.split_at_checked(16)?;
    let record = rest.strip_prefix(b"\",\"record\":")?.strip_suffix(b"}")?;
    let hash = chain(previous, record);
    (super::hex(hash).as_bytes() == digits).then_some((record, hash))
}

fn check_header(path: &Path, first: Option<&Record>) -> Result<(), JournalError> {
    let reason = match first {
        Some(Record::Header { schema_version, .. }) if *schema_version == SCHEMA_VERSION => {
            return Ok(());
        }
        Some(Record::Header { schema_version, .. }) => {
            format!("schema version {schema_version}, this program reads {SCHEMA_VERSION}")
        }
        Some(_) => "the first record is no header".to_owned(),
        None => "the first line is missing or damaged: the run cannot be resumed".to_owned(),
    };
    Err(JournalError::Header { path: path.display().to_string(), reason })
}

impl Journaled {
    /// The records that count: without what a later [`Record::Resumed`] made void. `stages` are
    /// the run's stages in order.
    pub fn effective(&self, stages: &[String]) -> Vec<&Record> {
        let index = |name: &str| stages.iter().position(|stage| stage == name);
        let mut kept: Vec<&Record> = Vec::with_capacity(self.records.len());
        for record in &self.records {
            if let Record::Resumed { stage, iteration, .. } = record {
                let from = (index(stage), *iteration);
                kept.retain(|earlier| !is_void(earlier, from, index));
            }
            kept.push(record);
        }
        kept
    }
}

/// Whether a record speaks of work at or after the place that the run went back to.
fn is_void(
    record: &Record,
    (from_stage, from_iteration): (Option<usize>, usize),
    index: impl Fn(&str) -> Option<usize>,
) -> bool {
    let evaluation_stage;
    let (stage, iteration) = match record {
        Record::Evaluation { result, .. } => {
            evaluation_stage = format!("eval-{}", result.policy);
            (evaluation_stage.as_str(), None)
        }
        other => match other.place() {
            Some(place) => place,
            None => return false,
        },
    };
    // Going on behind the last stage, or a record of no stage of the plan: nothing is done again.
    let (Some(stage), Some(from_stage)) = (index(stage), from_stage) else {
        return false;
    };
    if stage != from_stage {
        return stage > from_stage;
    }
    match (record, iteration) {
        // What began stays begun when it goes on in the middle; the rest of a stage does not.
        (Record::StageStarted { .. } | Record::Notice { .. }, _) => from_iteration == 0,
        (_, Some(iteration)) => iteration >= from_iteration,
        (_, None) => true,
    }
}
