//! Tasks of real bug-fix releases: the fixed release's tests over the buggy release's sources.
//!
//! ```text
//! pair ─ pip ─► two source trees ─► difference: fix │ tests
//!                    │                       └─► suite on buggy+tests, twice ─┐
//!                    └─ metadata ─► environment ─► suite on buggy+fix+tests ──┴─► FAIL_TO_PASS …
//! ```
//! Rules that real packages taught:
//! - a test counts only if it does the same in every run, and its id does not hold the time, a
//!   temporary directory or an address;
//! - `FAIL_TO_PASS` passes in every run on the fixed side and in none on the buggy one; at least
//!   one of them must *fail* there: when collection breaks on the old code all are merely missing;
//! - `PASS_TO_PASS` passes in every run on both sides, and there must be some;
//! - what fails on the fixed release, or passes on the old one only, is in neither;
//! - when the newest pytest breaks an old suite, older ones are tried, and the one under which most
//!   tests pass is kept.
//!
//! The fixed side is the buggy release with the gold patch, so that what is measured is what a
//! grader will see. A pair that makes no task has a written reason, and the others go on.

pub(crate) mod pair;
mod statement;
pub(crate) mod trees;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_core::{SandboxProvider, TaskError, TaskInstance};
use serde::{Deserialize, Serialize};

use crate::environment::{EnvironmentError, Pip, Watch, key};
use crate::finished;
use crate::validate::suite::SuiteLimits;

/// Raised whenever the same pair would give another task.
const VERSION: &str = "1";

/// A buggy release and the one that puts it right. Fields that are not known are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ReleasePair {
    /// The package's name on the index.
    pub package: String,
    /// Version with the bug.
    pub buggy: String,
    /// Version without it.
    pub fixed: String,
    /// Directories and files of the tests; found by their names where there are none.
    #[serde(default)]
    pub tests: Vec<String>,
    /// Requirements of the tests besides what the package declares, such as `pytest<8`.
    #[serde(default)]
    pub requirements: Vec<String>,
}

impl ReleasePair {
    /// Makes sure that names and versions are such: they go to pip's command line.
    ///
    /// # Errors
    /// Which field is wrong.
    pub fn check(&self) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '!');
        let fields = [("package", &self.package), ("buggy", &self.buggy), ("fixed", &self.fixed)];
        for (field, text) in fields {
            if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) || !text.chars().all(plain) {
                return Err(format!("{field}: {text:?} is neither a name nor a version"));
            }
        }
        if let Some(bad) = self.requirements.iter().find(|r| r.trim().starts_with('-')) {
            return Err(format!("requirements: {bad:?} is an option of pip, not a requirement"));
        }
        Ok(())
    }

    /// The name of its task.
    pub fn instance_id(&self) -> String {
        format!("{}-{}", self.package, self.fixed)
    }
}

/// How tasks are made.
#[derive(Debug, Clone)]
pub struct ReleaseOptions {
    /// Source trees, environments and finished pairs are kept here; tasks refer to it.
    pub cache_dir: PathBuf,
    /// Runs of each side, at least 2.
    pub repeats: u32,
    /// Pairs at the same time.
    pub jobs: usize,
    /// Bounds of each run.
    pub limits: SuiteLimits,
}

/// What came of one pair.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PairReport {
    /// The package.
    pub package: String,
    /// Version with the bug.
    pub buggy: String,
    /// Version without it.
    pub fixed: String,
    /// Tests that the fix makes pass.
    pub fail_to_pass: usize,
    /// Those of them that failed before, instead of being missing.
    pub fail_to_pass_explicit: usize,
    /// Tests that pass on both sides.
    pub pass_to_pass: usize,
    /// Tests that fail on the fixed side in some run.
    pub fail_on_fixed: usize,
    /// Tests that pass on the buggy side and not on the fixed one.
    pub pass_to_fail: usize,
    /// Tests left out because of what their ids hold.
    pub volatile: usize,
    /// Tests whose runs differ.
    pub unstable: usize,
    /// Files of the gold patch.
    pub files_changed: usize,
    /// The pytest that the tests run under, such as `pytest==8.4.2`.
    pub pytest: String,
    /// Time from beginning to end.
    pub seconds: f64,
    /// Why there is no task; empty when there is one.
    pub reason: String,
    /// Read from the cache.
    #[serde(default)]
    pub cached: bool,
}

/// A finished pair: its report, and its task if it makes one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PairResult {
    /// What came of it.
    pub report: PairReport,
    /// The task.
    pub task: Option<TaskInstance>,
}

/// Why a pair makes no task.
pub(crate) enum Refusal {
    /// It lies in the releases: it will be so again.
    Lasting(String),
    /// The network or the machine; it is tried again next time.
    Passing(String),
}

impl From<EnvironmentError> for Refusal {
    fn from(error: EnvironmentError) -> Self {
        match error {
            EnvironmentError::Sdist(reason) => Self::Lasting(reason),
            other => Self::Passing(other.to_string()),
        }
    }
}

impl From<patchwright_core::SandboxError> for Refusal {
    fn from(error: patchwright_core::SandboxError) -> Self {
        Self::Passing(format!("sandbox: {error}"))
    }
}

/// Makes tasks of pairs, several at a time; results in the order of the pairs. Finished pairs are
/// kept in the cache, so that an interrupted call goes on where it stopped. When `watch` says stop,
/// pairs that are not finished have the reason `stopped`.
///
/// # Errors
/// [`TaskError::Validation`] when there is no pip; [`TaskError::Io`] when the cache cannot be
/// written. What goes wrong with one pair is its report's reason.
pub fn build_pairs(
    pairs: &[ReleasePair],
    provider: &dyn SandboxProvider,
    options: &ReleaseOptions,
    watch: &dyn Watch,
) -> Result<Vec<PairResult>, TaskError> {
    let pip = Pip::find(&options.cache_dir.join("scratch"))
        .map_err(|e| TaskError::Validation(e.to_string()))?;
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<Vec<Option<Result<PairResult, TaskError>>>> =
        Mutex::new(pairs.iter().map(|_| None).collect());
    // A poisoned lock means that another worker panicked; that panic is passed on.
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(pair) = pairs.get(index) else { break };
            watch.progress(done.load(Ordering::Relaxed), pairs.len(), &pair.instance_id());
            let result = one(pair, &pip, provider, options, watch);
            let finished = done.fetch_add(1, Ordering::Relaxed) + 1;
            watch.progress(finished, pairs.len(), "");
            if let Ok(result) = &result {
                watch.say(&line(&result.report));
            }
            results.lock().expect("no worker panics")[index] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, pairs.len().max(1)) {
            scope.spawn(work);
        }
    });
    results.into_inner().expect("no worker panics").into_iter().flatten().collect()
}

/// One line for people.
fn line(report: &PairReport) -> String {
    let name = format!("{} {} -> {}", report.package, report.buggy, report.fixed);
    if report.reason.is_empty() {
        format!(
            "{name}: FAIL_TO_PASS {}, PASS_TO_PASS {}, {:.0} s{}",
            report.fail_to_pass,
            report.pass_to_pass,
            report.seconds,
            if report.cached { " (cached)" } else { "" }
        )
    } else {
        format!("{name}: no task: {}", report.reason)
    }
}

fn one(
    pair: &ReleasePair,
    pip: &Pip,
    provider: &dyn SandboxProvider,
    options: &ReleaseOptions,
    watch: &dyn Watch,
) -> Result<PairResult, TaskError> {
    let started = std::time::Instant::now();
    let text = serde_json::to_string(pair)
        .map_err(|e| TaskError::Validation(format!("the key of the cache: {e}")))?;
    let repeats = options.repeats.max(2).to_string();
    let name =
        key(&[VERSION, crate::validate::suite::RUNNER, &pip.python_version, &repeats, &text]);
    let place = options.cache_dir.join("pairs").join(format!("{name}.json"));
    if let Some(found) = finished::read::<PairResult>(&place).filter(is_there) {
        let report = PairReport { cached: true, ..found.report };
        return Ok(PairResult { report, ..found });
    }
    let mut report = PairReport {
        package: pair.package.clone(),
        buggy: pair.buggy.clone(),
        fixed: pair.fixed.clone(),
        ..PairReport::default()
    };
    let built = if watch.is_stopped() {
        Err(Refusal::Passing("stopped".to_owned()))
    } else {
        pair::PairWork { releases: pair, pip, provider, options, watch }.build(&mut report)
    };
    report.seconds = started.elapsed().as_secs_f64();
    let (task, lasting) = match built {
        Ok(task) => (Some(task), true),
        Err(Refusal::Lasting(reason)) => {
            report.reason = reason;
            (None, true)
        }
        Err(Refusal::Passing(reason)) => {
            report.reason = if watch.is_stopped() { "stopped".to_owned() } else { reason };
            (None, false)
        }
    };
    let result = PairResult { report, task };
    if lasting {
        finished::write(&place, &result)?;
    }
    Ok(result)
}

/// Whether what a cached task refers to still exists.
fn is_there(result: &PairResult) -> bool {
    result.task.as_ref().is_none_or(|task| {
        let packages = task.install_config.site_packages.as_deref();
        std::path::Path::new(&task.repo).is_dir() && packages.is_none_or(std::path::Path::is_dir)
    })
}
