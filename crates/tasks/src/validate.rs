//! Validation by running: which repositories are right, which bugs make tests fail, and the task
//! instances made of them.
//!
//! ```text
//! EmbeddedRepo ─ check ─► hidden tests ─┐
//!       └─ inject::candidates ──────────┴─ driver (one sandbox, a forked child a variant)
//!                                              └─► accepted ─► issue, patches ─► TaskInstance
//! ```
//! A candidate is accepted when some hidden test fails with it (`FAIL_TO_PASS`), some passes
//! (`PASS_TO_PASS`), nothing was cut off by a limit, and repeats under other hash seeds agree. A
//! result that is missing is a failed test. Only the trait [`SandboxProvider`] is known here.

mod build;
mod cache;
mod check;
mod driver;
mod hidden_tests;
pub mod repeat;
pub mod report;
pub mod suite;

use std::collections::BTreeMap;
use std::path::PathBuf;

use patchwright_core::{SandboxProvider, TaskError, TaskInstance};
use serde::{Deserialize, Serialize};

use crate::inject::InjectOptions;
use crate::issue::IssueStyle;
pub use check::{CheckedRepos, check_repos};

/// A correct repository with the calls that its hidden tests make.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EmbeddedRepo {
    /// Unique name in its set, of letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Path to text: sources, and whatever else the agent may see.
    pub files: BTreeMap<String, String>,
    /// The calls; each becomes one hidden test.
    pub examples: Vec<Example>,
}

/// One call of a hidden test: `self.assertEqual(module.function(args), expected)`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Example {
    /// The module as it is imported, such as `amber` or `shop.cart`.
    pub module: String,
    /// The function in it.
    pub function: String,
    /// Python source of the arguments.
    pub args: String,
    /// Python `repr` of the right value; empty: it is computed from the correct code.
    #[serde(default)]
    pub expected: String,
}

/// Bounds on one variant's run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RunLimits {
    /// Lines of the repository's code that one test may run: an endless loop ends at the same
    /// point on every machine.
    pub lines: u64,
    /// CPU time of all tests of one variant.
    pub cpu_seconds: u32,
    /// Wall-clock time of all tests of one variant; only for what waits without computing.
    pub wall_seconds: u32,
    /// Address space of the process that runs a variant.
    pub memory_bytes: u64,
    /// Longest `repr` of a value that an issue or a test may show.
    pub repr_chars: usize,
}

impl Default for RunLimits {
    fn default() -> Self {
        Self {
            lines: 50_000,
            cpu_seconds: 3,
            wall_seconds: 30,
            memory_bytes: 256 << 20,
            repr_chars: 400,
        }
    }
}

/// How a task set is built.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BuildOptions {
    /// The set's name, such as `generated` or `katas`: instances are `<set>__<repo>-<n>`.
    pub set: String,
    /// Most instances of one repository.
    pub bugs_per_repo: usize,
    /// Bugs in one instance, each in another function.
    pub num_bugs: usize,
    /// Seed of which bugs are chosen and of the issues' wording.
    pub seed: u64,
    /// How issues are worded.
    pub issue_style: IssueStyle,
    /// Which bugs are made.
    pub inject: InjectOptions,
    /// Runs of each accepted candidate, each under another hash seed; all must agree. At least 1.
    pub repeats: u32,
    /// Most candidates that are tried of one repository.
    pub max_tries_per_repo: usize,
    /// Bounds on each run.
    pub limits: RunLimits,
    /// Sandboxes at work at the same time; the result does not depend on it.
    #[serde(skip)]
    pub parallelism: usize,
    /// Where finished sets are kept under the hash of all that they depend on.
    #[serde(skip)]
    pub cache_dir: Option<PathBuf>,
}

impl Default for BuildOptions {
    fn default() -> Self {
        Self {
            set: "generated".to_owned(),
            bugs_per_repo: 3,
            num_bugs: 1,
            seed: 0,
            issue_style: IssueStyle::Full,
            inject: InjectOptions::default(),
            repeats: 2,
            max_tries_per_repo: 24,
            limits: RunLimits::default(),
            parallelism: 2,
            cache_dir: None,
        }
    }
}

/// The funnel from repositories to instances.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BuildReport {
    /// Repositories that came in.
    pub num_repos: usize,
    /// Name to reason of the repositories that are not right themselves.
    pub rejected_repos: BTreeMap<String, String>,
    /// Examples that were left out because their call raises or has no stable value.
    pub num_dropped_examples: usize,
    /// Places for bugs in the repositories.
    pub num_candidates: usize,
    /// Candidates that were run.
    pub num_tried: usize,
    /// Reason to number of the candidates that were run and not accepted.
    pub rejected: BTreeMap<String, usize>,
    /// Operator to number of the instances.
    pub accepted_by_operator: BTreeMap<String, usize>,
    /// Instances that came out.
    pub num_instances: usize,
    /// Read from the cache instead of built.
    #[serde(skip)]
    pub cached: bool,
}

impl BuildReport {
    /// Adds the funnel of other repositories.
    fn add(&mut self, other: Self) {
        self.num_repos += other.num_repos;
        self.rejected_repos.extend(other.rejected_repos);
        self.num_dropped_examples += other.num_dropped_examples;
        self.num_candidates += other.num_candidates;
        self.num_tried += other.num_tried;
        for (reason, number) in other.rejected {
            *self.rejected.entry(reason).or_default() += number;
        }
        for (operator, number) in other.accepted_by_operator {
            *self.accepted_by_operator.entry(operator).or_default() += number;
        }
        self.num_instances += other.num_instances;
    }
}

/// Hears how far a build is, and may stop it. Called from worker threads, so that it must be quick.
pub trait BuildWatch: Sync {
    /// So many instances are accepted, of at most so many. Calls may overtake one another.
    fn progress(&self, num_instances: usize, num_wanted: usize);

    /// Whether the build is to stop: it fails within about a second then, and nothing is kept.
    fn is_stopped(&self) -> bool;
}

/// Watches nothing and stops nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unwatched;

impl BuildWatch for Unwatched {
    fn progress(&self, _: usize, _: usize) {}

    fn is_stopped(&self) -> bool {
        false
    }
}

/// Makes the task instances of a set of repositories. The same repositories and options give the
/// same instances in the same order.
///
/// Each instance carries its buggy sources in `files`, the fix as the gold `patch`, the hidden
/// tests as `test_patch`, and what is known of the bug under `bug` in `extra` (never shown to an
/// agent).
///
/// # Errors
/// [`TaskError::Validation`] when the sandbox fails, [`TaskError::Instance`] for repositories
/// without or with the same name, [`TaskError::Io`] when the cache cannot be written.
pub fn build_task_set(
    repos: &[EmbeddedRepo],
    provider: &dyn SandboxProvider,
    options: &BuildOptions,
) -> Result<(Vec<TaskInstance>, BuildReport), TaskError> {
    build_task_set_watched(repos, provider, options, &Unwatched)
}

/// [`build_task_set`], watched. A set of the cache is there at once, without progress.
///
/// # Errors
/// As [`build_task_set`]; [`TaskError::Validation`] when it was stopped.
pub fn build_task_set_watched(
    repos: &[EmbeddedRepo],
    provider: &dyn SandboxProvider,
    options: &BuildOptions,
    watch: &dyn BuildWatch,
) -> Result<(Vec<TaskInstance>, BuildReport), TaskError> {
    let Some(dir) = &options.cache_dir else {
        return build::build(repos, provider, options, watch);
    };
    let entry = cache::Entry::new(dir, repos, options)?;
    if let Some(found) = entry.read() {
        return Ok(found);
    }
    let (instances, report) = build::build(repos, provider, options, watch)?;
    entry.write(&instances, &report)?;
    Ok((instances, report))
}

/// [`build_task_set`] of one repository.
///
/// # Errors
/// As [`build_task_set`].
pub fn build_instances(
    correct_repo: &EmbeddedRepo,
    provider: &dyn SandboxProvider,
    options: &BuildOptions,
) -> Result<Vec<TaskInstance>, TaskError> {
    build_task_set(std::slice::from_ref(correct_repo), provider, options)
        .map(|(instances, _)| instances)
}

#[cfg(test)]
mod tests;
