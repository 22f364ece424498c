//! Grading: the agent's patch against the hidden tests, in a sandbox of its own.
//!
//! A grade depends on the pristine repository, the files of the agent's patch that pass the
//! filter ([`filter`]), and the hidden tests, which are written on top and win. A test whose
//! result is missing has failed, whatever the reason: an import error, a crash, `os._exit(0)`, a
//! skip, no such test. Results come over a channel that what the tests print does not reach
//! (module `channel`).
//!
//! What goes wrong because of the patch is a grade (unsolved); [`GradeError`] is for the
//! infrastructure and for rows that cannot be graded, and never becomes a reward.

mod cache;
mod channel;
pub mod filter;
mod pristine;
mod runner;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, FileChange, Patch, RepoSource, Sandbox, SandboxError,
    SandboxLimits, SandboxProvider, TaskInstance,
};
use serde::{Deserialize, Serialize};

pub use cache::GradeCache;

use crate::environment::sandbox_spec;
use channel::Nonce;
use filter::Filtered;
use runner::Runner;

/// Bounds of a grader.
#[derive(Debug, Clone, PartialEq)]
pub struct GraderOptions {
    /// Wall-clock bound of the test run.
    pub timeout: Duration,
    /// Bounds of the sandbox.
    pub limits: SandboxLimits,
    /// Where the repository is inside the sandbox.
    pub workdir: String,
    /// At most this many characters of the tests' output are kept in [`Grade::detail`].
    pub detail_chars: usize,
}

impl Default for GraderOptions {
    fn default() -> Self {
        Self {
            timeout: Duration::from_mins(1),
            limits: SandboxLimits::default(),
            workdir: "/testbed".to_owned(),
            detail_chars: 2_000,
        }
    }
}

/// What the hidden tests say about a patch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grade {
    /// Every test of `FAIL_TO_PASS` and `PASS_TO_PASS` passes.
    pub solved: bool,
    /// Whether each of those tests passed. Where the tests were not run, because the patch
    /// changes nothing or cannot be applied, those that fail before have failed and those that
    /// pass before have passed.
    pub results: BTreeMap<String, bool>,
    /// Changes of the patch that do not count, each as `path: reason`.
    pub dropped: Vec<String>,
    /// For people: why it is not solved, and the end of what the tests printed.
    pub detail: String,
}

/// A grade that could not be made. Never a reward.
#[derive(Debug, thiserror::Error)]
pub enum GradeError {
    /// The row cannot be graded as it stands.
    #[error("{instance_id} cannot be graded: {reason}")]
    Task {
        /// The instance.
        instance_id: String,
        /// Which field, and what is wrong with it.
        reason: String,
    },
    /// The sandbox failed.
    #[error("{instance_id}: grading: {source}")]
    Sandbox {
        /// The instance.
        instance_id: String,
        /// The cause.
        source: SandboxError,
    },
    /// The test runner did not start.
    #[error("{instance_id}: the test runner did not start ({how}): {detail}")]
    Runner {
        /// The instance.
        instance_id: String,
        /// How the process ended.
        how: String,
        /// What it printed.
        detail: String,
    },
    /// A file of the host's repository cannot be read.
    #[error("{instance_id}: {path}: {source}")]
    Io {
        /// The instance.
        instance_id: String,
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
}

/// Grades patches. Shared by threads; each grade has a sandbox of its own.
pub struct Grader {
    provider: Arc<dyn SandboxProvider>,
    options: GraderOptions,
}

/// A task made ready for grading: what does not depend on the patch.
struct Prepared<'a> {
    task: &'a TaskInstance,
    repo: &'a RepoSource,
    runner: Runner,
    /// Hidden tests, as changes of the pristine tree.
    tests: Vec<FileChange>,
}

/// How one candidate came out before its tests could run.
enum Early {
    /// It is unsolved, for this reason.
    Unsolved(String),
    /// The sandbox failed.
    Failed(SandboxError),
}

impl From<SandboxError> for Early {
    fn from(error: SandboxError) -> Self {
        match error {
            // The host only writes what the patch and the tests say, so what does not fit is
            // the patch's doing: a file where a directory must be, too much data.
            SandboxError::Path { .. } | SandboxError::Limit(_) => Self::Unsolved(error.to_string()),
            error => Self::Failed(error),
        }
    }
}

impl Grader {
    /// A grader over a provider of sandboxes.
    pub fn new(provider: Arc<dyn SandboxProvider>, options: GraderOptions) -> Self {
        Self { provider, options }
    }

    /// Runs the hidden tests on the pristine repository with `patch`.
    ///
    /// # Errors
    /// [`GradeError`]; never for what the patch does.
    pub fn grade(
        &self,
        task: &TaskInstance,
        repo: &RepoSource,
        patch: &str,
    ) -> Result<Grade, GradeError> {
        let prepared = Self::prepare(task, repo)?;
        let filtered = prepared.filter(patch)?;
        self.grade_filtered(&prepared, &filtered)
    }

    fn prepare<'a>(
        task: &'a TaskInstance,
        repo: &'a RepoSource,
    ) -> Result<Prepared<'a>, GradeError> {
        let refuse =
            |reason: String| GradeError::Task { instance_id: task.instance_id.clone(), reason };
        if task.fail_to_pass.is_empty() && task.pass_to_pass.is_empty() {
            return Err(refuse("FAIL_TO_PASS and PASS_TO_PASS are both empty".to_owned()));
        }
        let patch = Patch::parse(&task.test_patch)
            .map_err(|error| refuse(format!("test_patch: {error}")))?;
        let tests = pristine::apply(task, repo, &patch)?
            .map_err(|error| refuse(format!("test_patch does not apply: {error}")))?;
        let runner = Runner::new(task, repo, &tests).map_err(refuse)?;
        Ok(Prepared { task, repo, runner, tests })
    }

    fn grade_filtered(
        &self,
        prepared: &Prepared<'_>,
        filtered: &Filtered,
    ) -> Result<Grade, GradeError> {
        let task = prepared.task;
        if let Some(reason) = &filtered.refused {
            return Ok(unsolved_before_tests(task, filtered, reason.clone()));
        }
        if filtered.changes.is_empty() && !task.fail_to_pass.is_empty() {
            let reason = "the patch changes nothing that counts".to_owned();
            return Ok(unsolved_before_tests(task, filtered, reason));
        }
        let sandbox_error =
            |source| GradeError::Sandbox { instance_id: task.instance_id.clone(), source };
        let nonce = Nonce::new().map_err(|source| GradeError::Io {
            instance_id: task.instance_id.clone(),
            path: "random source of the host".to_owned(),
            source,
        })?;
        let mut limits = self.options.limits.clone();
        // The channel carries one short line a test.
        let num_tests = prepared.runner.ids().len();
        limits.output_bytes = limits.output_bytes.max(64 * num_tests + (64 << 10));
        let mut spec = sandbox_spec(task, prepared.repo, &self.options.workdir, limits);
        spec.env = BTreeMap::new();
        let mut sandbox = self.provider.create(&spec).map_err(sandbox_error)?;
        let ran = self.run_tests(prepared, filtered, sandbox.as_mut(), &nonce);
        sandbox.destroy().map_err(sandbox_error)?;
        match ran {
            Ok(output) => self.read_results(prepared, filtered, &nonce, &output),
            Err(Early::Unsolved(reason)) => Ok(unsolved_before_tests(task, filtered, reason)),
            Err(Early::Failed(error)) => Err(sandbox_error(error)),
        }
    }

    fn run_tests(
        &self,
        prepared: &Prepared<'_>,
        filtered: &Filtered,
        sandbox: &mut dyn Sandbox,
        nonce: &Nonce,
    ) -> Result<ExecOutput, Early> {
        self.put(sandbox, &filtered.changes)?;
        self.put(sandbox, &prepared.tests)?;
        let workdir = &self.options.workdir;
        let (argv, stdin) = prepared.runner.command(workdir, nonce);
        let request = ExecRequest {
            argv,
            cwd: workdir.clone(),
            env: runner::environment(),
            stdin,
            timeout: self.options.timeout,
        };
        // By now a failure is not a misplaced file's.
        sandbox.exec(&request).map_err(Early::Failed)
    }

    /// Writes changed files into the tree of the sandbox.
    fn put(&self, sandbox: &mut dyn Sandbox, changes: &[FileChange]) -> Result<(), Early> {
        let inside = |change: &FileChange| format!("{}/{}", self.options.workdir, change.path);
        let gone = changes.iter().filter(|change| change.new.is_none());
        self.host_command(sandbox, &["rm", "-f", "--"], gone.map(inside).collect())?;
        for change in changes {
            if let Some(bytes) = &change.new {
                sandbox.write(&inside(change), bytes)?;
            }
        }
        let executable = changes.iter().filter(|change| change.executable);
        self.host_command(sandbox, &["chmod", "+x", "--"], executable.map(inside).collect())
    }

    /// Runs one of the grader's own commands over paths, if there are any.
    fn host_command(
        &self,
        sandbox: &mut dyn Sandbox,
        program: &[&str],
        paths: Vec<String>,
    ) -> Result<(), Early> {
        if paths.is_empty() {
            return Ok(());
        }
        let mut request = ExecRequest::argv(program, &self.options.workdir, self.options.timeout);
        request.argv.extend(paths);
        let output = sandbox.exec(&request)?;
        if output.status == ExecStatus::Exited(0) {
            return Ok(());
        }
        let printed = String::from_utf8_lossy(&output.stderr);
        Err(Early::Unsolved(format!("{} failed: {}", program.join(" "), printed.trim_end())))
    }

    fn read_results(
        &self,
        prepared: &Prepared<'_>,
        filtered: &Filtered,
        nonce: &Nonce,
        output: &ExecOutput,
    ) -> Result<Grade, GradeError> {
        let task = prepared.task;
        let ids = prepared.runner.ids();
        let report = channel::read(nonce, &output.stdout, ids.len());
        let printed = tail(&String::from_utf8_lossy(&output.stderr), self.options.detail_chars);
        let how = match output.status {
            ExecStatus::Exited(code) => format!("exit code {code}"),
            ExecStatus::Signaled(signal) => format!("signal {signal}"),
            ExecStatus::TimedOut => {
                format!("stopped after {} s", self.options.timeout.as_secs())
            }
        };
        if let Some(reason) = report.refused {
            return Err(GradeError::Task { instance_id: task.instance_id.clone(), reason });
        }
        if !report.ready {
            let instance_id = task.instance_id.clone();
            return Err(GradeError::Runner { instance_id, how, detail: printed });
        }
        let results: BTreeMap<String, bool> =
            ids.iter().cloned().zip(report.passed.iter().copied()).collect();
        let solved = results.values().all(|passed| *passed);
        let num_failed = results.values().filter(|passed| !**passed).count();
        let mut detail = if solved {
            String::new()
        } else {
            format!("{num_failed} of {} tests failed or gave no result", results.len())
        };
        if !report.done {
            detail = format!("{detail}; the test run did not end by itself ({how})");
        }
        if !solved && !printed.is_empty() {
            detail = format!("{detail}\n{printed}");
        }
        Ok(Grade { solved, results, dropped: filtered.dropped.clone(), detail })
    }
}

impl Prepared<'_> {
    fn filter(&self, patch: &str) -> Result<Filtered, GradeError> {
        filter::filter(self.task, self.repo, &self.tests, self.runner.test_files(), patch)
    }
}

fn unsolved_before_tests(task: &TaskInstance, filtered: &Filtered, reason: String) -> Grade {
    let passing = task.pass_to_pass.iter().map(|id| (id.clone(), true));
    let failing = task.fail_to_pass.iter().map(|id| (id.clone(), false));
    Grade {
        solved: false,
        results: passing.chain(failing).collect(),
        dropped: filtered.dropped.clone(),
        detail: reason,
    }
}

/// The last `num_chars` characters.
fn tail(text: &str, num_chars: usize) -> String {
    let text = text.trim_end();
    let skip = text.chars().count().saturating_sub(num_chars);
    text.chars().skip(skip).collect()
}
