//! The line between the test runner and the grader.
//!
//! The supervisor keeps the real standard output for itself; the tests run in its children, which
//! do not have it. What it says about tests carries a random nonce, which it reads when every child
//! is dead. A line without the nonce is not a result.

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

/// What the supervisor reported.
#[derive(Debug, PartialEq, Eq, Default)]
pub(super) struct Report {
    /// It was ready to run the repository's code.
    pub ready: bool,
    /// It came to its end.
    pub done: bool,
    /// It cannot run this task, for this reason.
    pub refused: Option<String>,
    /// What the run said of each test, by its index. `None`: nothing.
    pub outcomes: Vec<Option<bool>>,
    /// The second run must be made in a sandbox of its own: the first one left traces.
    pub wants_audit: bool,
    /// Tests whose expectation was changed before the second run, and which must fail in it.
    pub twins: Vec<usize>,
    /// What the second run said of each test.
    pub second_outcomes: Vec<Option<bool>>,
}

impl Report {
    /// Whether each test passed; missing is failed.
    pub(super) fn passed(&self) -> impl Iterator<Item = bool> {
        self.outcomes.iter().map(|outcome| *outcome == Some(true))
    }

    /// Twins that did not fail in the second run of the same supervisor: they pass, or nothing is
    /// said of them.
    pub(super) fn unfailed(&self) -> Vec<usize> {
        self.twins_without_failure(&self.second_outcomes)
    }

    /// The same where the first run was already of the changed tests.
    pub(super) fn unfailed_audit(&self) -> Vec<usize> {
        self.twins_without_failure(&self.outcomes)
    }

    fn twins_without_failure(&self, outcomes: &[Option<bool>]) -> Vec<usize> {
        let twins = self.twins.iter().copied();
        twins.filter(|index| outcomes.get(*index) != Some(&Some(false))).collect()
    }
}

/// Reads `ready` and `refused REASON`, which are said before any code of the repository runs, and
/// with the nonce `t INDEX 0|1` of the first run, `c INDEX 0|1` of the second, `twins INDEX…`,
/// `fresh` and `done`. A test that was ever reported as failed has failed.
pub(super) fn read(nonce: &Nonce, stdout: &[u8], num_tests: usize) -> Report {
    let mut report = Report::default();
    let mut outcomes = [vec![None; num_tests], vec![None; num_tests]];
    for line in String::from_utf8_lossy(stdout).lines() {
        if line == "ready" {
            report.ready = true;
            continue;
        }
        if let (false, Some(reason)) = (report.ready, line.strip_prefix("refused ")) {
            report.refused = Some(reason.to_owned());
            continue;
        }
        let Some(message) = line.strip_prefix(nonce.as_str()).and_then(|l| l.strip_prefix(' '))
        else {
            continue;
        };
        let words: Vec<&str> = message.split_ascii_whitespace().collect();
        match words[..] {
            ["done"] => report.done = true,
            ["fresh"] => report.wants_audit = true,
            ["twins", ref indices @ ..] => {
                let indices = indices.iter().filter_map(|index| index.parse().ok());
                report.twins = indices.filter(|index| *index < num_tests).collect();
            }
            [run @ ("t" | "c"), index, result] => {
                let outcomes = &mut outcomes[usize::from(run == "c")];
                if let Some(held) = index.parse().ok().and_then(|i: usize| outcomes.get_mut(i)) {
                    *held = Some(result == "1" && *held != Some(false));
                }
            }
            _ => {}
        }
    }
    let [outcomes, second_outcomes] = outcomes;
    Report { outcomes, second_outcomes, ..report }
}

#[cfg(test)]
mod tests {
    use super::{Nonce, read};

    #[test]
    fn only_lines_with_the_nonce_count() {
        let nonce = Nonce("abc".to_owned());
        let lines = b"\nready\nt 0 1\nabx t 1 1\nabc t 2 1\nabc t 9 1\nabc t x 1\nfresh\n";
        let report = read(&nonce, lines, 3);
        assert!(report.ready && !report.done && !report.wants_audit);
        assert_eq!(report.outcomes, [None, None, Some(true)]);
        assert_eq!(read(&nonce, b"ready\nrefused x", 1).refused, None);
        assert_eq!(read(&nonce, b"refused x y\n", 1).refused.as_deref(), Some("x y"));
    }

    #[test]
    fn a_failure_is_not_taken_back() {
        let nonce = Nonce("abc".to_owned());
        let lines = b"ready\nabc t 0 1\nabc t 0 0\nabc t 1 0\nabc t 1 1\nabc done";
        let report = read(&nonce, lines, 2);
        assert!(report.done);
        assert_eq!(report.outcomes, [Some(false), Some(false)]);
        assert!(report.passed().all(|passed| !passed));
    }

    #[test]
    fn a_twin_must_be_said_to_fail() {
        let nonce = Nonce("abc".to_owned());
        let lines =
            b"ready\nabc twins 0 2 3 7\nabc t 0 1\nabc c 0 0\nabc c 1 1\nabc c 2 1\nabc done";
        let report = read(&nonce, lines, 4);
        assert_eq!(report.unfailed(), [2, 3]);
        assert_eq!(report.unfailed_audit(), [0, 2, 3]);
    }

    #[test]
    fn nonces_differ() {
        let (a, b) = (Nonce::new().unwrap(), Nonce::new().unwrap());
        assert_eq!(a.as_str().len(), 32);
        assert_ne!(a.as_str(), b.as_str());
    }
}
