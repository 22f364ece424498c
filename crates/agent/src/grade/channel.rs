//! The line between the test runner and the grader.
//!
//! The runner gets a random nonce on its standard input and reads it before any code of the
//! repository runs. It keeps the real standard output for itself (what tests print goes to
//! standard error) and writes one line a result, each with the nonce. A line without it is not a
//! result.

use std::io;

use rand::TryRngCore;
use rand::rngs::OsRng;

/// A secret of one grade.
pub(super) struct Nonce(String);

impl Nonce {
    pub(super) fn new() -> io::Result<Self> {
        let mut bytes = [0u8; 16];
        OsRng.try_fill_bytes(&mut bytes).map_err(io::Error::other)?;
        let mut text = String::with_capacity(32);
        for byte in bytes {
            use std::fmt::Write as _;
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(Self(text))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

/// What the runner reported.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Report {
    /// It was ready to run the repository's code.
    pub ready: bool,
    /// It came to its end.
    pub done: bool,
    /// It cannot run this task, for this reason.
    pub refused: Option<String>,
    /// Whether each test passed, by its index; missing is failed.
    pub passed: Vec<bool>,
}

/// Reads `NONCE ready`, `NONCE refused REASON`, `NONCE INDEX 0|1` and `NONCE done` lines. A test
/// that was ever reported as failed has failed.
pub(super) fn read(nonce: &Nonce, stdout: &[u8], num_tests: usize) -> Report {
    let mut report =
        Report { ready: false, done: false, refused: None, passed: vec![false; num_tests] };
    let mut failed = vec![false; num_tests];
    for line in String::from_utf8_lossy(stdout).lines() {
        let Some(message) = line.strip_prefix(nonce.as_str()).and_then(|l| l.strip_prefix(' '))
        else {
            continue;
        };
        match message.split_once(' ') {
            None if message == "ready" => report.ready = true,
            None if message == "done" => report.done = true,
            Some(("refused", reason)) if !report.ready => report.refused = Some(reason.to_owned()),
            Some((index, result)) => {
                let Some(index) = index.parse::<usize>().ok().filter(|index| *index < num_tests)
                else {
                    continue;
                };
                match result {
                    "1" => report.passed[index] = true,
                    _ => failed[index] = true,
                }
            }
            None => {}
        }
    }
    for (passed, failed) in report.passed.iter_mut().zip(failed) {
        *passed &= !failed;
    }
    report
}

#[cfg(test)]
mod tests {
    use super::{Nonce, read};

    #[test]
    fn only_lines_with_the_nonce_count() {
        let nonce = Nonce("abc".to_owned());
        let report = read(&nonce, b"\nabc ready\n0 1\nabx 1 1\nabc 2 1\nabc 9 1\nabc x 1\n", 3);
        assert!(report.ready && !report.done);
        assert_eq!(report.passed, [false, false, true]);
    }

    #[test]
    fn a_failure_is_not_taken_back() {
        let nonce = Nonce("abc".to_owned());
        let report = read(&nonce, b"abc ready\nabc 0 1\nabc 0 0\nabc 1 0\nabc 1 1\nabc done", 2);
        assert!(report.done);
        assert_eq!(report.passed, [false, false]);
    }

    #[test]
    fn nonces_differ() {
        let (a, b) = (Nonce::new().unwrap(), Nonce::new().unwrap());
        assert_eq!(a.as_str().len(), 32);
        assert_ne!(a.as_str(), b.as_str());
    }
}
