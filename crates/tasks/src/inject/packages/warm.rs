//! Speaks to `warm.py`, which runs bugs against a package's tests inside a sandbox.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, Sandbox, SandboxLimits, SandboxProvider, TaskError,
};
use serde::{Deserialize, Serialize};

use crate::environment::Environment;
use crate::validate::suite::{SITE_PACKAGES, WORKDIR, sandbox_spec, tail};

/// The program that runs inside.
pub(super) const WARM: &str = include_str!("warm.py");
/// Failures that are told of one bug.
const SHOWN: usize = 6;

/// A bug to run.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Bug {
    pub id: usize,
    /// Path to text.
    pub changed: BTreeMap<String, String>,
    /// The tests that reach it.
    pub tests: Vec<String>,
    /// How long they take without it.
    pub seconds: f64,
}

/// What a test says of a bug.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Failure {
    /// The test's id.
    pub test: String,
    /// Exception and message.
    pub message: String,
    /// The test's statement that failed.
    pub statement: String,
    /// `path:line` of the traceback, innermost last.
    pub places: Vec<String>,
}

/// One run of some tests with a bug.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Phase {
    pub failed: BTreeSet<String>,
    /// Tests that were run.
    pub num: usize,
}

/// What came of a bug.
#[derive(Debug, Clone, Default)]
pub(super) struct Outcome {
    /// `passes`, `fails`, or what stopped it; empty when it was not run.
    pub end: String,
    /// Runs of the tests that reach it, and of all; `None` when it did not come to its end.
    pub phases: [Option<Phase>; 2],
    pub failures: Vec<Failure>,
}

/// Which tests run which lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Coverage {
    /// Seconds of each test that passed.
    pub seconds: BTreeMap<String, f64>,
    /// Tests by path and line.
    pub tests: BTreeMap<(String, usize), BTreeSet<String>>,
    /// Lines that run before the first test.
    pub import: BTreeSet<(String, usize)>,
}

#[derive(Serialize)]
struct Message<'a> {
    workdir: &'a str,
    site_packages: &'a str,
    options: &'a [String],
    targets: &'a [String],
    mode: &'a str,
    sources: &'a [String],
    stable: &'a [String],
    seconds: f64,
    limits: Limits,
    bugs: &'a [Bug],
}

#[derive(Serialize)]
struct Limits {
    memory_bytes: u64,
    output_bytes: usize,
    shown: usize,
}

#[derive(Deserialize)]
struct Line {
    test: Option<String>,
    #[serde(default)]
    passed: bool,
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    lines: BTreeMap<usize, Vec<usize>>,
    import: Option<BTreeMap<usize, Vec<usize>>>,
    bug: Option<usize>,
    phase: Option<usize>,
    #[serde(default)]
    failed: BTreeSet<String>,
    #[serde(default)]
    num: usize,
    end: Option<String>,
    message: Option<String>,
    #[serde(default)]
    statement: String,
    #[serde(default)]
    places: Vec<String>,
    refused: Option<String>,
    done: Option<bool>,
}

/// A package's tests, ready to run bugs.
pub(super) struct Warm<'a> {
    pub provider: &'a dyn SandboxProvider,
    pub repo: &'a RepoSource,
    pub environment: &'a Environment,
    pub options: &'a [String],
    pub targets: &'a [String],
    /// Files that bugs are in.
    pub sources: &'a [String],
    pub limits: &'a SandboxLimits,
    /// Kept from one call to the next.
    pub sandbox: Option<Box<dyn Sandbox>>,
}

impl Warm<'_> {
    /// Runs every test once, watching lines.
    pub fn map(&mut self, timeout: Duration) -> Result<Coverage, TaskError> {
        let mut coverage = Coverage::default();
        let path = |index: usize| self.sources.get(index).cloned().unwrap_or_default();
        for line in self.run("map", &[], &[], 0.0, timeout)? {
            let places = |lines: &BTreeMap<usize, Vec<usize>>| {
                let each = |(index, lines): (&usize, &Vec<usize>)| {
                    let path = path(*index);
                    let runs = lines.chunks_exact(2).flat_map(|run| run[0]..=run[1]);
                    runs.map(|line| (path.clone(), line)).collect::<Vec<_>>()
                };
                lines.iter().flat_map(each).collect::<Vec<_>>()
            };
            if let Some(lines) = &line.import {
                coverage.import.extend(places(lines));
            }
            let Some(test) = &line.test else { continue };
            if line.passed {
                coverage.seconds.insert(test.clone(), line.seconds);
                for place in places(&line.lines) {
                    coverage.tests.entry(place).or_default().insert(test.clone());
                }
            }
        }
        Ok(coverage)
    }

    /// Runs bugs one after the other; outcomes in their order. `stable` are the tests that pass
    /// without a bug, which take `seconds`.
    pub fn bugs(
        &mut self,
        bugs: &[Bug],
        stable: &[String],
        seconds: f64,
    ) -> Result<Vec<Outcome>, TaskError> {
        let all = bugs.iter().map(|bug| bug.seconds + seconds).sum::<f64>();
        // Generous: each bug has its own bounds inside.
        let timeout = Duration::from_secs_f64(120.0 + 20.0 * all + 60.0 * bugs.len() as f64);
        let mut outcomes = vec![Outcome::default(); bugs.len()];
        for line in self.run("bugs", bugs, stable, seconds, timeout)? {
            let Some(at) = line.bug.and_then(|id| bugs.iter().position(|bug| bug.id == id)) else {
                continue;
            };
            let outcome = &mut outcomes[at];
            if let Some(end) = line.end {
                outcome.end = end;
            } else if let Some(phase) = line.phase {
                let place = &mut outcome.phases[phase.clamp(1, 2) - 1];
                *place = Some(Phase { failed: line.failed, num: line.num });
            } else if let (Some(test), Some(message)) = (line.test, line.message) {
                let (statement, places) = (line.statement, line.places);
                outcome.failures.push(Failure { test, message, statement, places });
            }
        }
        Ok(outcomes)
    }

    fn run(
        &mut self,
        mode: &str,
        bugs: &[Bug],
        stable: &[String],
        seconds: f64,
        timeout: Duration,
    ) -> Result<Vec<Line>, TaskError> {
        let failure = |e: &dyn std::fmt::Display| TaskError::Validation(e.to_string());
        let message = Message {
            workdir: WORKDIR,
            site_packages: SITE_PACKAGES,
            options: self.options,
            targets: self.targets,
            mode,
            sources: self.sources,
            stable,
            seconds,
            limits: Limits {
                memory_bytes: self.limits.memory_bytes,
                output_bytes: 16 << 20,
                shown: SHOWN,
            },
            bugs,
        };
        let mut sandbox = if let Some(sandbox) = self.sandbox.take() {
            sandbox
        } else {
            let packages = &self.environment.site_packages;
            let spec = sandbox_spec(self.repo, packages, self.limits);
            self.provider.create(&spec).map_err(|e| failure(&e))?
        };
        let argv = ["python3", "-s", "-S", "-B", "-c", WARM];
        let mut request = ExecRequest::argv(&argv, WORKDIR, timeout);
        request.env = BTreeMap::from([
            ("PYTHONHASHSEED".to_owned(), "0".to_owned()),
            ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
        ]);
        request.stdin = serde_json::to_vec(&message).map_err(|e| failure(&e))?;
        let output = sandbox.exec(&request).map_err(|e| failure(&e))?;
        let mut lines = Vec::new();
        let mut done = false;
        for line in output.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
            // A line that was cut off is no result.
            let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
            if let Some(reason) = line.refused {
                return Err(TaskError::Validation(format!("pytest ended: {reason}")));
            }
            done |= line.done == Some(true);
            lines.push(line);
        }
        if output.status == ExecStatus::Exited(0) && done {
            // What failed to restore its files may not be used again.
            self.sandbox = Some(sandbox);
        } else if lines.is_empty() {
            let printed = String::from_utf8_lossy(&output.stderr);
            let printed = tail(printed.trim_end(), 300);
            let status = output.status;
            return Err(TaskError::Validation(format!(
                "the tests did not run ({status:?}): {printed}"
            )));
        }
        Ok(lines)
    }
}
