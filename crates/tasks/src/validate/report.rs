//! What validation says of each task, as JSON lines: the file that `tasks validate --report` writes
//! and that the flaky rule of `tasks filter` reads.
//!
//! One [`TaskVerdict`] a line, such as
//!
//! ```json
//! {"schema_version":1,"instance_id":"a-1","verdict":"flaky","flaky_tests":["t.py::test_x"],
//!  "failing_tests":[],"num_repeats":50,"num_tests":12,"seconds":31.5,"reason":"1 of 12 …"}
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use patchwright_core::TaskError;
use serde::{Deserialize, Serialize};

use crate::rows::RowWriter;

/// Version of [`TaskVerdict`] on disk.
pub const SCHEMA_VERSION: u32 = 1;

/// How a task came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The gold patch passes every repeat, and the empty patch fails every one in the same way.
    Valid,
    /// Some test passes in one repeat and fails in another, on one of the two sides.
    Flaky,
    /// The gold patch fails in every repeat.
    GoldFails,
    /// The empty patch passes: there is nothing to solve.
    EmptyPasses,
    /// On the empty patch a test of `FAIL_TO_PASS` passes, or one of `PASS_TO_PASS` fails, always.
    Mislabelled,
    /// It could not be run: the row, its repository or the sandbox.
    Broken,
}

impl Verdict {
    /// Every verdict.
    pub const ALL: [Self; 6] = [
        Self::Valid,
        Self::Flaky,
        Self::GoldFails,
        Self::EmptyPasses,
        Self::Mislabelled,
        Self::Broken,
    ];

    /// The name in reports, such as `gold_fails`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Valid => "valid",
            Self::Flaky => "flaky",
            Self::GoldFails => "gold_fails",
            Self::EmptyPasses => "empty_passes",
            Self::Mislabelled => "mislabelled",
            Self::Broken => "broken",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TaskVerdict {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The task.
    pub instance_id: String,
    /// How it came out.
    pub verdict: Verdict,
    /// Tests that passed in one repeat and failed in another of the same side, sorted.
    #[serde(default)]
    pub flaky_tests: Vec<String>,
    /// Of each of them, how many runs of how many passed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub flaky_counts: BTreeMap<String, (u32, u32)>,
    /// Tests that are always wrong: failed with the gold patch, or, for
    /// [`Verdict::Mislabelled`], did without a patch what the row says they do not. Sorted.
    #[serde(default)]
    pub failing_tests: Vec<String>,
    /// Runs of each side.
    pub num_repeats: u32,
    /// Tests of `FAIL_TO_PASS` and `PASS_TO_PASS`.
    pub num_tests: usize,
    /// Time of all runs together, in seconds.
    pub seconds: f64,
    /// For people: why it is not valid; empty when it is.
    #[serde(default)]
    pub reason: String,
    /// Whether it was read from the cache instead of run.
    #[serde(default)]
    pub cached: bool,
}

/// Reads a report. Blank lines are skipped; fields that are not known are, too.
///
/// # Errors
/// [`TaskError::Io`] when there is no such file, [`TaskError::Row`] for a line that is no verdict
/// or has another schema version.
pub fn read_report(path: &Path) -> Result<Vec<TaskVerdict>, TaskError> {
    let io = |source| TaskError::Io { context: format!("reading {}", path.display()), source };
    let file = BufReader::new(File::open(path).map_err(io)?);
    let mut verdicts = Vec::new();
    for (index, line) in file.lines().enumerate() {
        let line = line.map_err(io)?;
        if line.trim().is_empty() {
            continue;
        }
        let row = |reason: String| TaskError::Row {
            path: path.display().to_string(),
            line: index + 1,
            reason,
        };
        let verdict: TaskVerdict = serde_json::from_str(&line)
            .map_err(|e| row(format!("no line of a validation report: {e}")))?;
        if verdict.schema_version != SCHEMA_VERSION {
            return Err(row(format!(
                "schema_version is {}; this program reads {SCHEMA_VERSION}: validate the tasks \
                 again",
                verdict.schema_version
            )));
        }
        verdicts.push(verdict);
    }
    Ok(verdicts)
}

/// Writes a report, whole or not at all.
///
/// # Errors
/// [`TaskError::Io`].
pub fn write_report(path: &Path, verdicts: &[TaskVerdict]) -> Result<(), TaskError> {
    let mut writer = RowWriter::create(path)?;
    verdicts.iter().try_for_each(|verdict| writer.write(verdict))?;
    writer.finish().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::{SCHEMA_VERSION, TaskVerdict, Verdict, read_report, write_report};

    #[test]
    fn reports_survive_writing_and_reading() {
        let verdict = |verdict: Verdict| TaskVerdict {
            schema_version: SCHEMA_VERSION,
            instance_id: verdict.name().to_owned(),
            verdict,
            flaky_tests: vec!["t.py::test_x".to_owned()],
            flaky_counts: [("t.py::test_x".to_owned(), (49, 50))].into(),
            failing_tests: Vec::new(),
            num_repeats: 50,
            num_tests: 3,
            seconds: 1.5,
            reason: "a reason".to_owned(),
            cached: false,
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("report.jsonl");
        let verdicts: Vec<_> = Verdict::ALL.into_iter().map(verdict).collect();
        write_report(&path, &verdicts).unwrap();
        assert_eq!(read_report(&path).unwrap(), verdicts);
        for verdict in Verdict::ALL {
            let json = serde_json::to_string(&verdict).unwrap();
            assert_eq!(json, format!("\"{}\"", verdict.name()));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"schema_version\":1", "\"schema_version\":2"))
            .unwrap();
        let error = read_report(&path).unwrap_err().to_string();
        assert!(error.contains("report.jsonl:1: schema_version is 2"), "{error}");
    }
}
