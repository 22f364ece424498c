//! Runs a package's whole test suite in a sandbox and says what every test did.
//!
//! Passing means what it means for the grader: all phases of the test are a plain pass. The code
//! under test is a package's own, not an agent's, so that the report needs no secret channel.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use patchwright_core::{
    ExecRequest, ExecStatus, FileChange, RepoSource, Sandbox, SandboxError, SandboxLimits,
    SandboxProvider, SandboxSpec,
};
use serde::Deserialize;

pub(crate) const RUNNER: &str = include_str!("suite.py");
/// Where the repository is inside.
pub const WORKDIR: &str = "/testbed";
/// Where installed packages are inside.
pub const SITE_PACKAGES: &str = "/opt/site-packages";

/// What is run.
#[derive(Debug, Clone)]
pub struct Suite<'a> {
    /// The repository.
    pub repo: &'a RepoSource,
    /// Installed packages of the host, with pytest among them.
    pub site_packages: &'a Path,
    /// Files that differ from the repository.
    pub changes: &'a [FileChange],
    /// Options for pytest.
    pub options: &'a [String],
    /// Test files and directories, from the repository's root.
    pub targets: &'a [String],
    /// `PYTHONHASHSEED`.
    pub hash_seed: u32,
}

/// Bounds on one run of a suite.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteLimits {
    /// Wall-clock bound.
    pub timeout: Duration,
    /// Bounds of the sandbox.
    pub sandbox: SandboxLimits,
}

impl Default for SuiteLimits {
    fn default() -> Self {
        Self {
            timeout: Duration::from_mins(5),
            sandbox: SandboxLimits {
                memory_bytes: 1 << 30,
                cpu_seconds: 300,
                output_bytes: 16 << 20,
                disk_bytes: 256 << 20,
                ..SandboxLimits::default()
            },
        }
    }
}

/// What one test did.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TestRecord {
    /// All its phases passed.
    pub passed: bool,
    /// It failed, in some phase; neither passed nor failed is skipped.
    pub failed: bool,
    /// What the failure says: exception and message.
    pub message: String,
    /// `path:line` of the traceback, innermost last.
    pub places: Vec<String>,
    /// Duration of all phases.
    pub seconds: f64,
}

/// What one run of a suite said.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SuiteRun {
    /// The tests by id.
    pub tests: BTreeMap<String, TestRecord>,
    /// Files that cannot be collected, with the reason.
    pub collect_errors: BTreeMap<String, String>,
    /// pytest came to its end, with this exit code.
    pub exit_code: Option<i32>,
    /// How the process ended, and the end of what it printed.
    pub printed: String,
    /// Wall-clock time.
    pub seconds: f64,
}

impl SuiteRun {
    /// Ids of the tests that passed.
    pub fn passing(&self) -> BTreeSet<String> {
        self.tests.iter().filter(|(_, test)| test.passed).map(|(id, _)| id.clone()).collect()
    }

    /// Number of tests that failed.
    pub fn num_failed(&self) -> usize {
        self.tests.values().filter(|test| test.failed).count()
    }
}

#[derive(Deserialize)]
struct Line {
    refused: Option<String>,
    test: Option<String>,
    outcome: Option<String>,
    #[serde(default)]
    message: String,
    #[serde(default, rename = "where")]
    places: Vec<String>,
    #[serde(default)]
    seconds: f64,
    collect: Option<String>,
    done: Option<i32>,
}

/// The sandbox of a suite, before its changes are written.
pub(crate) fn sandbox_spec(
    repo: &RepoSource,
    site_packages: &Path,
    limits: &SandboxLimits,
) -> SandboxSpec {
    SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo: repo.clone(),
        workdir: WORKDIR.to_owned(),
        read_only_mounts: vec![(site_packages.to_owned(), SITE_PACKAGES.to_owned())],
        env: BTreeMap::new(),
        limits: limits.clone(),
    }
}

/// Writes changed files into a sandbox's tree.
pub(crate) fn put(sandbox: &mut dyn Sandbox, changes: &[FileChange]) -> Result<(), SandboxError> {
    let inside = |change: &FileChange| format!("{WORKDIR}/{}", change.path);
    let gone: Vec<String> = changes.iter().filter(|c| c.new.is_none()).map(inside).collect();
    // A command line has a bound.
    for names in gone.chunks(500) {
        let mut request = ExecRequest::argv(&["rm", "-f", "--"], WORKDIR, Duration::from_mins(1));
        request.argv.extend(names.iter().cloned());
        sandbox.exec(&request)?;
    }
    for change in changes {
        if let Some(bytes) = &change.new {
            sandbox.write(&inside(change), bytes)?;
        }
    }
    Ok(())
}

/// Runs a suite in a fresh sandbox.
///
/// # Errors
/// Only when the sandbox failed; a suite that breaks is a [`SuiteRun`] that says so.
pub fn run_suite(
    suite: &Suite<'_>,
    provider: &dyn SandboxProvider,
    limits: &SuiteLimits,
) -> Result<SuiteRun, SandboxError> {
    let spec = sandbox_spec(suite.repo, suite.site_packages, &limits.sandbox);
    let mut sandbox = provider.create(&spec)?;
    put(sandbox.as_mut(), suite.changes)?;
    let num_options = suite.options.len().to_string();
    let mut fields = vec![WORKDIR, SITE_PACKAGES, &num_options];
    fields.extend(suite.options.iter().chain(suite.targets).map(String::as_str));
    let argv = ["python3", "-s", "-S", "-B", "-c", RUNNER];
    let mut request = ExecRequest::argv(&argv, WORKDIR, limits.timeout);
    request.env = BTreeMap::from([
        ("PYTHONHASHSEED".to_owned(), suite.hash_seed.to_string()),
        ("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()),
    ]);
    request.stdin = fields.join("\0").into_bytes();
    let start = std::time::Instant::now();
    let output = sandbox.exec(&request)?;
    let seconds = start.elapsed().as_secs_f64();
    sandbox.destroy()?;
    let mut run = read(&output.stdout);
    let how = match output.status {
        ExecStatus::Exited(0) => String::new(),
        ExecStatus::Exited(code) => format!("exit code {code}: "),
        ExecStatus::Signaled(signal) => format!("signal {signal}: "),
        ExecStatus::TimedOut => format!("stopped after {} s: ", limits.timeout.as_secs()),
    };
    let printed = String::from_utf8_lossy(&output.stderr);
    run.printed = format!("{how}{}{}", run.printed, tail(printed.trim_end(), 2_000));
    run.seconds = seconds;
    Ok(run)
}

fn read(stdout: &[u8]) -> SuiteRun {
    let mut run = SuiteRun::default();
    let lines = stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    // A line that was cut off is no result.
    for line in lines.filter_map(|line| serde_json::from_slice::<Line>(line).ok()) {
        if let Some(test) = line.test {
            let passed = line.outcome.as_deref() == Some("passed");
            let failed = line.outcome.as_deref() == Some("failed");
            let (message, places, seconds) = (line.message, line.places, line.seconds);
            run.tests.insert(test, TestRecord { passed, failed, message, places, seconds });
        } else if let Some(file) = line.collect {
            run.collect_errors.insert(file, line.message);
        } else if let Some(code) = line.done {
            run.exit_code = Some(code);
        } else if let Some(reason) = line.refused {
            run.printed = reason;
        }
    }
    run
}

/// The last `num_chars` characters.
pub(crate) fn tail(text: &str, num_chars: usize) -> &str {
    let skip = text.chars().count().saturating_sub(num_chars);
    text.char_indices().nth(skip).map_or("", |(at, _)| &text[at..])
}
