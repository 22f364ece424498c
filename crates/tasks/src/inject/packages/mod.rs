//! Bugs in real packages: a whole release with its own tests.
//!
//! ```text
//! PACKAGE ─ pip ─► sources, environment ─► suite ─► which tests run which lines
//!                       └─ inject::candidates on those lines ─► forked children of one warm
//!                              pytest: the tests that reach the bug, then all ─► tasks
//! ```
//! A bug is a task when some test that reaches it fails, when a second run of all tests agrees, when
//! some still pass and at most half fail. A function that already runs while modules are imported is
//! left alone: its bug would have to be there before the tests are collected.
//!
//! The row's repository is the release as it is; `setup` in its `extra` puts the bug in and takes
//! the files of the failing tests out ([`crate::source::prepare_repo`] does so), `test_patch` brings
//! them back. With several bugs, each is known to make tests fail on its own.

mod site;
mod tasks;
mod warm;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_core::{SandboxProvider, TaskError, TaskInstance};
use serde::{Deserialize, Serialize};

use super::InjectOptions;
use crate::environment::{Pip, Watch, key};
use crate::finished;
use crate::validate::suite::SuiteLimits;
pub use warm::Failure;

/// Raised whenever the same options would give other tasks.
const VERSION: &str = "2";

/// A release on the index: `NAME`, its newest one, or `NAME==VERSION`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackageSpec {
    /// The package's name.
    pub name: String,
    /// The release; the newest without one.
    pub version: Option<String>,
}

impl std::str::FromStr for PackageSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, version) = match text.split_once("==") {
            Some((name, version)) => (name, Some(version)),
            None => (text, None),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+' | '!');
        let right = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain)
        };
        if !right(name) || !version.is_none_or(right) {
            return Err(format!("{text:?} is no package: expected NAME or NAME==VERSION"));
        }
        Ok(Self { name: name.to_owned(), version: version.map(str::to_owned) })
    }
}

/// How tasks are made.
#[derive(Debug, Clone)]
pub struct PackageOptions {
    /// Source trees, environments and finished packages are kept here; tasks refer to it.
    pub cache_dir: PathBuf,
    /// Most tasks, of all packages together; each gives about the same number.
    pub num: usize,
    /// Bugs in one task.
    pub num_bugs: usize,
    /// Seed of which bugs are chosen.
    pub seed: u64,
    /// Which bugs are made.
    pub inject: InjectOptions,
    /// Packages at the same time. The tasks do not depend on it.
    pub jobs: usize,
    /// Bounds of one run of a suite.
    pub limits: SuiteLimits,
}

/// The funnel of one package.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PackageReport {
    /// The package.
    pub package: String,
    /// Its release.
    pub version: String,
    /// Tests that pass, every time.
    pub num_tests: usize,
    /// Places for bugs in its sources.
    pub num_candidates: usize,
    /// Those that a test reaches, outside of functions that run at import.
    pub num_reached: usize,
    /// Bugs that were run.
    pub num_tried: usize,
    /// Tasks.
    pub num_instances: usize,
    /// Reason to number of the bugs that were run and are no task.
    pub rejected: BTreeMap<String, usize>,
    /// Operator to number of the tasks.
    pub accepted_by_operator: BTreeMap<String, usize>,
    /// Seconds until bugs could be run: download, environment, suite, lines.
    pub seconds_prepare: f64,
    /// Seconds of running bugs, in one worker.
    pub seconds_run: f64,
    /// Why there is no task; empty when there is one.
    pub reason: String,
    /// Read from the cache.
    #[serde(default)]
    pub cached: bool,
}

impl PackageReport {
    /// Tasks a minute of one worker, without the preparation; 0 when nothing was run.
    pub fn per_minute(&self) -> f64 {
        if self.seconds_run > 0.0 {
            self.num_instances as f64 * 60.0 / self.seconds_run
        } else {
            0.0
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Finished {
    report: PackageReport,
    tasks: Vec<TaskInstance>,
}

/// Makes tasks of packages; tasks and reports in the order of the packages. A finished package is
/// kept in the cache.
///
/// # Errors
/// [`TaskError::Validation`] when there is no pip, or when it was stopped;
/// [`TaskError::Io`] when the cache cannot be written. What goes wrong with one package is its
/// report's reason.
pub fn inject_packages(
    specs: &[PackageSpec],
    provider: &dyn SandboxProvider,
    options: &PackageOptions,
    watch: &dyn Watch,
) -> Result<(Vec<TaskInstance>, Vec<PackageReport>), TaskError> {
    let pip = Pip::find(&options.cache_dir.join("scratch"))
        .map_err(|e| TaskError::Validation(e.to_string()))?;
    let quota = options.num.div_ceil(specs.len().max(1));
    let (next, num_done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<Vec<Option<Result<Finished, TaskError>>>> =
        Mutex::new(specs.iter().map(|_| None).collect());
    // A poisoned lock means that another worker panicked; that panic is passed on.
    let work = || {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(spec) = specs.get(index).filter(|_| !watch.is_stopped()) else { break };
            let maker = site::Maker { pip: &pip, provider, options, watch, num_done: &num_done };
            let made = one(spec, quota, &maker);
            if let Ok(Finished { report, .. }) = &made {
                watch.say(&line(report));
            }
            results.lock().expect("no worker panics")[index] = Some(made);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, specs.len().max(1)) {
            scope.spawn(work);
        }
    });
    let (mut tasks, mut reports) = (Vec::new(), Vec::new());
    for result in results.into_inner().expect("no worker panics") {
        let Some(result) = result else {
            return Err(TaskError::Validation("it was asked to stop".to_owned()));
        };
        let finished = result?;
        tasks.extend(finished.tasks);
        reports.push(finished.report);
    }
    tasks.truncate(options.num);
    Ok((tasks, reports))
}

fn line(report: &PackageReport) -> String {
    let name = format!("{} {}", report.package, report.version);
    if report.reason.is_empty() {
        format!(
            "{name}: {} tasks of {} bugs, {} tests, {:.0} a minute{}",
            report.num_instances,
            report.num_tried,
            report.num_tests,
            report.per_minute(),
            if report.cached { " (cached)" } else { "" }
        )
    } else {
        format!("{}: no task: {}", name.trim_end(), report.reason)
    }
}

fn one(spec: &PackageSpec, quota: usize, maker: &site::Maker<'_>) -> Result<Finished, TaskError> {
    let mut report = PackageReport { package: spec.name.clone(), ..PackageReport::default() };
    let refused = |report: PackageReport, reason: String| {
        Ok(Finished { report: PackageReport { reason, ..report }, tasks: Vec::new() })
    };
    let started = std::time::Instant::now();
    let release = match maker.fetch(spec) {
        Ok(release) => release,
        Err(error) => return refused(report, error.to_string()),
    };
    report.version.clone_from(&release.metadata.version);
    let options = maker.options;
    let made_of = serde_json::to_string(&(&options.inject, quota, options.num_bugs, options.seed))
        .map_err(|e| TaskError::Validation(format!("the key of the cache: {e}")))?;
    let name = release.dir.display().to_string();
    let parts = [VERSION, warm::WARM, &maker.pip.python_version, &name, &made_of];
    let place = options.cache_dir.join("injected").join(format!("{}.json", key(&parts)));
    if let Some(mut found) = finished::read::<Finished>(&place) {
        found.report.cached = true;
        return Ok(found);
    }
    let mut site = match maker.prepare(&release, &mut report) {
        Ok(site) => site,
        Err(reason) => return refused(report, reason),
    };
    report.seconds_prepare = started.elapsed().as_secs_f64();
    let started = std::time::Instant::now();
    let tasks = site.make(quota, &mut report)?;
    report.seconds_run = started.elapsed().as_secs_f64();
    report.num_instances = tasks.len();
    if tasks.is_empty() {
        "no bug makes a test fail".clone_into(&mut report.reason);
    }
    let finished = Finished { report, tasks };
    finished::write(&place, &finished)?;
    Ok(finished)
}

#[cfg(test)]
mod tests {
    use super::PackageSpec;

    #[test]
    fn packages_are_names_with_or_without_a_version() {
        let spec: PackageSpec = "more-itertools==10.3.0".parse().unwrap();
        assert_eq!(
            (spec.name.as_str(), spec.version.as_deref()),
            ("more-itertools", Some("10.3.0"))
        );
        assert_eq!("parse".parse::<PackageSpec>().unwrap().version, None);
        for bad in ["", "--index-url=x", "a b", "a==", "a==-1", "../a", "a>=1"] {
            assert!(bad.parse::<PackageSpec>().is_err(), "{bad}");
        }
    }
}
