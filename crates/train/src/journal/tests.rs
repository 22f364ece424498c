use std::fs;

use patchwright_core::PolicyVersion;

use super::{Journal, JournalError, Record, SCHEMA_VERSION, read_journal};
use crate::metrics::IterationMetrics;

fn header() -> Record {
    Record::Header {
        schema_version: SCHEMA_VERSION,
        program_version: "0".into(),
        recipe: "smoke".into(),
        seed: 7,
    }
}

fn notice(text: &str) -> Record {
    Record::Notice { stage: "rl-1".into(), text: text.into() }
}

fn iteration(stage: &str, iteration: usize) -> Record {
    let metrics = IterationMetrics { stage: stage.into(), iteration, ..Default::default() };
    Record::Iteration { metrics, checkpoint: true, num_sandboxes: 3 }
}

/// A journal with lines of different lengths, one with characters of several bytes.
fn written(path: &std::path::Path) -> Vec<Record> {
    let records = vec![header(), notice("a"), iteration("rl-1", 0), notice("zwölf ☂ \"}\n")];
    let mut journal = Journal::create(path, &records[0]).unwrap();
    for record in &records[1..] {
        journal.append(record).unwrap();
    }
    journal.sync().unwrap();
    records
}

/// Whole lines.
fn num_lines(bytes: &[u8]) -> usize {
    bytes.split(|byte| *byte == b'\n').count() - 1
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let records = written(&path);
    let read = read_journal(&path).unwrap();
    assert_eq!(read.records, records);
    assert_eq!(read.num_bytes_cut, 0);
    assert!(matches!(Journal::create(&path, &header()), Err(JournalError::Io { .. })));
}

/// Cut at every byte: the longest prefix of whole lines, and appending goes on from it.
#[test]
fn torn_at_every_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let records = written(&path);
    let whole = fs::read(&path).unwrap();
    for length in 0..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let lines = num_lines(&whole[..length]);
        if lines == 0 {
            assert!(matches!(read_journal(&path), Err(JournalError::Header { .. })), "{length}");
            continue;
        }
        let (mut journal, read) = Journal::resume(&path).unwrap();
        assert_eq!(read.records, records[..lines], "{length}");
        journal.append(&notice("after")).unwrap();
        journal.sync().unwrap();
        let again = read_journal(&path).unwrap();
        assert_eq!(again.num_bytes_cut, 0, "{length}");
        assert_eq!(again.records.len(), lines + 1, "{length}");
        assert_eq!(again.records[lines], notice("after"));
    }
}

/// Every single flipped bit is noticed, and everything before its line is kept.
#[test]
fn every_flipped_bit_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let records = written(&path);
    let whole = fs::read(&path).unwrap();
    for position in 0..whole.len() {
        let lines_before = num_lines(&whole[..position]);
        for bit in 0..8 {
            let mut bytes = whole.clone();
            bytes[position] ^= 1 << bit;
            fs::write(&path, &bytes).unwrap();
            match read_journal(&path) {
                Ok(read) => {
                    assert_eq!(read.records, records[..lines_before], "{position}.{bit}");
                    assert!(read.num_bytes_cut > 0);
                }
                Err(JournalError::Header { .. }) => assert_eq!(lines_before, 0),
                Err(error) => panic!("{position}.{bit}: {error}"),
            }
        }
    }
}

/// A line that was lost, repeated or moved breaks the chain.
#[test]
fn lines_cannot_be_lost_repeated_or_moved() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    written(&path);
    let whole = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = whole.split_inclusive('\n').collect();
    for (order, valid) in [(vec![0, 2, 3], 1), (vec![0, 1, 1, 2], 2), (vec![0, 2, 1, 3], 1)] {
        fs::write(&path, order.iter().map(|i| lines[*i]).collect::<String>()).unwrap();
        assert_eq!(read_journal(&path).unwrap().records.len(), valid, "{order:?}");
    }
}

#[test]
fn a_cut_tail_is_kept_beside() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    written(&path);
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend(b"{\"hash\":\"torn");
    fs::write(&path, bytes).unwrap();
    let (_, read) = Journal::resume(&path).unwrap();
    assert_eq!(read.num_bytes_cut, 13);
    assert_eq!(fs::read(dir.path().join("journal.jsonl.cut")).unwrap(), b"{\"hash\":\"torn");
}

#[test]
fn another_schema_version_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let header = Record::Header {
        schema_version: SCHEMA_VERSION + 1,
        program_version: String::new(),
        recipe: String::new(),
        seed: 0,
    };
    Journal::create(&path, &header).unwrap();
    let error = read_journal(&path).unwrap_err().to_string();
    assert!(error.contains("schema version 2, this program reads 1"), "{error}");
}

/// A disk that is full: the error is typed, later appends fail too, the prefix stays.
#[test]
fn a_full_disk_is_an_error_and_stays_one() {
    let full = std::path::Path::new("/dev/full");
    if !full.exists() {
        return;
    }
    let file = fs::OpenOptions::new().write(true).open(full).unwrap();
    let mut journal =
        Journal { file, path: full.to_owned(), last: super::FIRST_HASH, broken: false };
    let first = journal.append(&notice("x")).unwrap_err().to_string();
    assert!(first.contains("--resume"), "{first}");
    assert!(journal.append(&notice("x")).unwrap_err().to_string().contains("earlier write"));
}

/// What is done again after a resume replaces what was done before it.
#[test]
fn a_resume_voids_what_is_done_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("journal.jsonl");
    let stages: Vec<String> = ["rft", "rl-1", "eval-rl-1"].map(String::from).into();
    let resumed = |stage: &str, iteration| Record::Resumed {
        stage: stage.into(),
        iteration,
        policy_version: PolicyVersion(0),
    };
    let started = |stage: &str| Record::StageStarted { stage: stage.into(), num_tasks: 1 };
    let records = [
        header(),
        started("rft"),
        iteration("rft", 0),
        started("rl-1"),
        iteration("rl-1", 0),
        iteration("rl-1", 1),
        iteration("rl-1", 2),
        started("eval-rl-1"),
        resumed("rl-1", 1),
        iteration("rl-1", 1),
    ];
    let mut journal = Journal::create(&path, &records[0]).unwrap();
    for record in &records[1..] {
        journal.append(record).unwrap();
    }
    let read = read_journal(&path).unwrap();
    let kept: Vec<Record> = read.effective(&stages).into_iter().cloned().collect();
    let expected: Vec<Record> =
        [0, 1, 2, 3, 4, 8, 9].map(|index| records[index].clone()).into_iter().collect();
    assert_eq!(kept, expected);
}
