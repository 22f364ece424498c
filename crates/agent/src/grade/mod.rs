//! Grading: the agent's patch against the hidden tests, in a sandbox of its own.
//!
//! A grade depends on the pristine repository, the files of the agent's patch that pass the
//! filter ([`filter`]), and the hidden tests, which are written on top and win. A test whose
//! result is missing has failed, whatever the reason: an import error, a crash, `os._exit(0)`, a
//! skip, no such test.
//!
//! What goes wrong because of the patch is a grade (unsolved); [`GradeError`] is for the
//! infrastructure and for rows that cannot be graded, and never becomes a reward.
//!
//! # What keeps a patch from grading itself
//!
//! The tested code runs where its tests run, with all the powers of that process. So no single
//! layer is trusted with everything:
//!
//! | layer | keeps out |
//! |---|---|
//! | a fresh sandbox from the pristine repository | daemons, stale `__pycache__`, replaced programs, changed clocks and caches: whatever is no file of the patch |
//! | the [`filter`] | edited tests, configuration and plugins of the tests, start-up files, links, binaries |
//! | an isolated interpreter (`-s -S`, the test tool loaded before the repository is on the path) | `.pth` and `sitecustomize`, a `unittest.py` or `pytest.py` of the repository's |
//! | a supervisor process (`supervisor.py`) that imports nothing of the repository, holds the channel and reads its nonce when all children are dead; its memory and descriptors are closed to them (`PR_SET_DUMPABLE`) | writing to the channel, finding the nonce in frames or memory, ending the run early |
//! | twins (`audit.py`): if every test passes, the tests run once more with one expectation of each changed so that it contradicts the first (`0` becomes `7`, `assertIn` becomes `assertNotIn`); a test that does not fail then is forged | replaced assertions and hooks, reports forged inside the process, objects that are equal to everything, values read from the caller's frame or from the test's own source |
//!
//! A twin that does not fail is an accusation. Before it counts, it must stand a second time, and
//! the gold patch is tried on the same twins: what does not fail there either (an expectation that
//! was never looked at) is no forgery. A patch
//! that is found out has [`Grade::cheated`] and is unsolved. A patch that changes what the gold patch
//! changes is not run twice.
//!
//! The second run must not be told from the first. It is forked from the same supervisor, whose
//! memory never holds the tests' sources, with a pid that says nothing, and only if the first run
//! left no trace: no file, directory or time stamp changed, no process and no object of the kernel
//! left, no time lost. Otherwise it is made in a second fresh sandbox.
//!
//! # What cannot be given
//!
//! A patch that cheats by lot, in some runs and not in others, is found out with a probability only:
//! at best it passes one time in four. A patch that computes right answers only for the inputs that the tests happen to use passes: it
//! is for the tests to be good. A patch that could tell the twins from the tests by meaning (this
//! expectation is absurd) and act on it within one process would pass; so might one that finds a
//! trace of the first run which is not looked for, such as a message queue of the kernel, or a
//! timing of a few milliseconds. Tests in which nothing can be contradicted have a twin that merely
//! fails at its start. Python before 3.8 has no twins. And all of it rests on the kernel that the
//! sandboxes share.

mod cache;
mod channel;
pub mod filter;
mod pristine;
mod run;
mod runner;
mod verdict;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use patchwright_core::{
    FileChange, Patch, RepoSource, RootFs, SandboxError, SandboxLimits, SandboxProvider,
    TaskInstance,
};
use serde::{Deserialize, Serialize};

pub use cache::GradeCache;

use crate::environment::{TaskRoot, TaskRoots, sandbox_spec_on};
use filter::Filtered;
use pristine::{Pristine, ReadError};
use runner::{Compiled, Runner};

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
    /// The patch was found to forge results, in this way. It is then not solved.
    #[serde(default)]
    pub cheated: Option<String>,
    /// How many tests were run a second time with a contradictory expectation. 0 where a test
    /// failed anyway, or where there was nothing to contradict.
    #[serde(default)]
    pub num_twins: usize,
}

/// Layers of defence that a test of the grader may switch off. No recipe and no command reaches
/// them.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Defences {
    /// Drop what the filter drops; otherwise all of the patch is written, after the tests.
    pub filter: bool,
    /// Run the tests in a child of the process that holds the channel.
    pub supervisor: bool,
    /// Run the twins.
    pub twins: bool,
}

impl Default for Defences {
    fn default() -> Self {
        Self { filter: true, supervisor: true, twins: true }
    }
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
    roots: Option<Arc<TaskRoots>>,
    defences: Defences,
    /// The programs of unittest and of pytest for the host's interpreter, once compiled.
    compiled: Mutex<[Option<Arc<Compiled>>; 2]>,
}

/// A task made ready for grading: what does not depend on the patch.
struct Prepared<'a> {
    task: &'a TaskInstance,
    repo: &'a RepoSource,
    root: TaskRoot,
    pristine: Pristine,
    runner: Runner,
    /// Hidden tests, as changes of the pristine tree.
    tests: Vec<FileChange>,
}

impl Grader {
    /// A grader over a provider of sandboxes.
    pub fn new(provider: Arc<dyn SandboxProvider>, options: GraderOptions) -> Self {
        Self {
            provider,
            options,
            roots: None,
            defences: Defences::default(),
            compiled: Mutex::default(),
        }
    }

    /// Tasks stand on the roots that `roots` finds (such as their images) instead of the host's
    /// system. Required for [`RepoSource::InRoot`].
    #[must_use]
    pub fn with_roots(self, roots: Arc<TaskRoots>) -> Self {
        Self { roots: Some(roots), ..self }
    }

    /// With some layers of defence off, to show that an attack is one.
    #[doc(hidden)]
    #[must_use]
    pub fn with_defences(self, defences: Defences) -> Self {
        Self { defences, ..self }
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
        let prepared = self.prepare(task, repo)?;
        let filtered = self.filter(&prepared, patch)?;
        self.grade_filtered(&prepared, &filtered)
    }

    fn prepare<'a>(
        &self,
        task: &'a TaskInstance,
        repo: &'a RepoSource,
    ) -> Result<Prepared<'a>, GradeError> {
        let refuse =
            |reason: String| GradeError::Task { instance_id: task.instance_id.clone(), reason };
        if task.fail_to_pass.is_empty() && task.pass_to_pass.is_empty() {
            return Err(refuse("FAIL_TO_PASS and PASS_TO_PASS are both empty".to_owned()));
        }
        let root = match &self.roots {
            Some(roots) => roots(task).map_err(refuse)?,
            None => TaskRoot::default(),
        };
        if *repo == RepoSource::InRoot && root.root == RootFs::Host {
            return Err(refuse("its repository is in an image, and no image was given".to_owned()));
        }
        let pristine = Pristine::new(repo, &self.options.workdir, || {
            self.provider.create(&self.spec(&root, task, repo, 0))
        })
        .map_err(|source| sandbox_error(task, source))?;
        let patch = Patch::parse(&task.test_patch)
            .map_err(|error| refuse(format!("test_patch: {error}")))?;
        let tests = pristine
            .apply(&patch)
            .map_err(|failed| read_error(task, failed))?
            .map_err(|error| refuse(format!("test_patch does not apply: {error}")))?;
        let runner = Runner::new(task, &pristine, &tests).map_err(refuse)?;
        Ok(Prepared { task, repo, root, pristine, runner, tests })
    }

    /// The sandbox of a grade; its channel carries two short lines a test.
    fn spec(
        &self,
        root: &TaskRoot,
        task: &TaskInstance,
        repo: &RepoSource,
        num_tests: usize,
    ) -> patchwright_core::SandboxSpec {
        let mut limits = self.options.limits.clone();
        limits.output_bytes = limits.output_bytes.max(128 * num_tests + (64 << 10));
        let mut spec = sandbox_spec_on(root.clone(), task, repo, &self.options.workdir, limits);
        spec.env.clone_from(&root.env);
        spec
    }

    fn filter(&self, prepared: &Prepared<'_>, patch: &str) -> Result<Filtered, GradeError> {
        let task = prepared.task;
        if !self.defences.filter {
            let changes = Patch::parse(patch).ok().map(|patch| prepared.pristine.apply(&patch));
            let changes = changes.transpose().map_err(|failed| read_error(task, failed))?;
            let changes = changes.and_then(Result::ok).unwrap_or_default();
            return Ok(Filtered { changes, dropped: Vec::new(), refused: None });
        }
        let files = prepared.runner.test_files();
        filter::filter(task, &prepared.pristine, &prepared.tests, files, patch)
            .map_err(|failed| read_error(task, failed))
    }
}

fn sandbox_error(task: &TaskInstance, source: SandboxError) -> GradeError {
    GradeError::Sandbox { instance_id: task.instance_id.clone(), source }
}

fn read_error(task: &TaskInstance, (path, error): (String, ReadError)) -> GradeError {
    match error {
        ReadError::Io(source) => {
            GradeError::Io { instance_id: task.instance_id.clone(), path, source }
        }
        ReadError::Sandbox(source) => sandbox_error(task, source),
    }
}
