//! The host's side of `driver.py`: many small jobs in few sandboxes.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, RepoSource, Sandbox, SandboxLimits, SandboxProvider,
    SandboxSpec, TaskError,
};
use serde::{Deserialize, Serialize};

use super::{BuildOptions, BuildWatch, RunLimits};
use crate::issue::Observed;

/// The program that runs inside the sandbox.
pub(super) const DRIVER: &str = include_str!("driver.py");
/// Jobs of one run of the driver, whose reports of at most 120 KiB each must fit [`OUTPUT_BYTES`].
const JOBS_PER_CHUNK: usize = 128;
/// Bytes that a run of the driver may write.
const OUTPUT_BYTES: usize = 16 << 20;
/// Bytes of source in one run of the driver.
const BYTES_PER_CHUNK: usize = 4 << 20;
const WORKDIR: &str = "/testbed";

/// What the driver knows of one repository.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Payload {
    /// Sources and hidden tests.
    pub files: BTreeMap<String, String>,
    /// Names of the test modules.
    pub tests: Vec<String>,
}

/// One variant to run.
#[derive(Debug, Clone, Default)]
pub(super) struct Job {
    /// Index of the [`Payload`].
    pub repo: usize,
    /// Files in place of the repository's.
    pub changed: BTreeMap<String, String>,
    /// Calls to evaluate (module, function, arguments), instead of running the tests.
    pub calls: Option<Vec<[String; 3]>>,
}

/// What became of a [`Job`].
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Outcome {
    /// Ran to its end, and no part of it was cut off by a limit.
    pub finished: bool,
    /// By test id. A test that is missing here has failed.
    pub tests: BTreeMap<String, TestOutcome>,
    /// By index of the call; only those that gave a value whose text evaluates to it.
    pub values: BTreeMap<usize, String>,
    /// Why the calls that gave none did not.
    pub refused: BTreeMap<usize, String>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) struct TestOutcome {
    pub passed: bool,
    /// Of a failed test, where it can be shown.
    pub observed: Option<Observed>,
}

#[derive(Serialize)]
struct BatchMessage<'a> {
    limits: &'a RunLimits,
    repos: Vec<&'a Payload>,
    jobs: Vec<JobMessage<'a>>,
}

#[derive(Serialize)]
struct JobMessage<'a> {
    id: usize,
    repo: usize,
    changed: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    calls: Option<&'a Vec<[String; 3]>>,
}

#[derive(Deserialize)]
struct ResultMessage {
    job: usize,
    test: Option<String>,
    #[serde(default)]
    passed: bool,
    returned: Option<String>,
    raised: Option<String>,
    cut: Option<String>,
    call: Option<usize>,
    value: Option<String>,
    end: Option<String>,
}

/// Runs jobs in the provider's sandboxes.
pub(super) struct Driver<'a> {
    provider: &'a dyn SandboxProvider,
    limits: RunLimits,
    /// Sandboxes at work at the same time; the results do not depend on it.
    parallelism: usize,
    watch: &'a dyn BuildWatch,
    /// Sandboxes between two runs: dropping one destroys it.
    idle: Mutex<Vec<Box<dyn Sandbox>>>,
}

impl<'a> Driver<'a> {
    pub fn new(
        provider: &'a dyn SandboxProvider,
        options: &BuildOptions,
        parallelism: usize,
        watch: &'a dyn BuildWatch,
    ) -> Self {
        let limits = options.limits.clone();
        Self { provider, limits, parallelism, watch, idle: Mutex::default() }
    }

    /// Runs every job under `hash_seed` (Python's `PYTHONHASHSEED`); outcomes in the order of jobs.
    pub fn run(
        &self,
        repos: &[Payload],
        jobs: &[Job],
        hash_seed: u32,
    ) -> Result<Vec<Outcome>, TaskError> {
        let chunks = chunks(repos, jobs);
        let next = AtomicUsize::new(0);
        let results: Mutex<BTreeMap<usize, Result<Vec<Outcome>, TaskError>>> = Mutex::default();
        // A poisoned lock means that another worker panicked; that panic is passed on.
        let work = || {
            let mut sandbox = self.idle.lock().expect("no worker panics").pop();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(chunk) = chunks.get(index) else { break };
                let result = self.run_chunk(&mut sandbox, repos, &jobs[chunk.clone()], hash_seed);
                if result.is_err() {
                    next.store(chunks.len(), Ordering::Relaxed);
                }
                results.lock().expect("no worker panics").insert(index, result);
            }
            self.idle.lock().expect("no worker panics").extend(sandbox);
        };
        std::thread::scope(|scope| {
            for _ in 0..self.parallelism.clamp(1, chunks.len().max(1)) {
                scope.spawn(work);
            }
        });
        let mut outcomes = Vec::with_capacity(jobs.len());
        for result in results.into_inner().expect("no worker panics").into_values() {
            outcomes.extend(result?);
        }
        Ok(outcomes)
    }

    fn run_chunk(
        &self,
        sandbox: &mut Option<Box<dyn Sandbox>>,
        repos: &[Payload],
        jobs: &[Job],
        hash_seed: u32,
    ) -> Result<Vec<Outcome>, TaskError> {
        if self.watch.is_stopped() {
            return Err(failure(&"it was asked to stop"));
        }
        let sandbox = match sandbox {
            Some(sandbox) => sandbox,
            None => sandbox.insert(self.provider.create(&spec()).map_err(|e| failure(&e))?),
        };
        let argv = ["python3", "-S", "-s", "-B", "-c", DRIVER];
        let mut request = ExecRequest::argv(&argv, WORKDIR, self.chunk_time(jobs.len()));
        request.env.insert("PYTHONHASHSEED".to_owned(), hash_seed.to_string());
        request.stdin = message(&self.limits, repos, jobs)?;
        let output = sandbox.exec(&request).map_err(|e| failure(&e))?;
        read_outcomes(&output, jobs.len())
    }

    /// Generous: each job has its own bounds inside.
    fn chunk_time(&self, num_jobs: usize) -> Duration {
        Duration::from_secs(60 + num_jobs as u64 * u64::from(self.limits.wall_seconds))
    }
}

fn failure(error: &dyn std::fmt::Display) -> TaskError {
    TaskError::Validation(error.to_string())
}

fn spec() -> SandboxSpec {
    SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo: RepoSource::Files(std::sync::Arc::default()),
        workdir: WORKDIR.to_owned(),
        read_only_mounts: Vec::new(),
        env: BTreeMap::new(),
        limits: SandboxLimits {
            memory_bytes: 1 << 30,
            cpu_seconds: 3_600,
            output_bytes: OUTPUT_BYTES,
            ..SandboxLimits::default()
        },
    }
}

/// Ranges of jobs, bounded by number and by bytes of source.
fn chunks(repos: &[Payload], jobs: &[Job]) -> Vec<std::ops::Range<usize>> {
    let size = |files: &BTreeMap<String, String>| files.values().map(String::len).sum::<usize>();
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (index, job) in jobs.iter().enumerate() {
        let next = size(&job.changed) + size(&repos[job.repo].files);
        if index > start && (index - start == JOBS_PER_CHUNK || bytes + next > BYTES_PER_CHUNK) {
            chunks.push(start..index);
            (start, bytes) = (index, 0);
        }
        bytes += next;
    }
    if start < jobs.len() {
        chunks.push(start..jobs.len());
    }
    chunks
}

fn message(limits: &RunLimits, repos: &[Payload], jobs: &[Job]) -> Result<Vec<u8>, TaskError> {
    let mut used: Vec<usize> = jobs.iter().map(|job| job.repo).collect();
    used.sort_unstable();
    used.dedup();
    let place = |repo: usize| used.binary_search(&repo).unwrap_or_default();
    let batch = BatchMessage {
        limits,
        repos: used.iter().map(|repo| &repos[*repo]).collect(),
        jobs: jobs
            .iter()
            .enumerate()
            .map(|(id, job)| JobMessage {
                id,
                repo: place(job.repo),
                changed: &job.changed,
                calls: job.calls.as_ref(),
            })
            .collect(),
    };
    serde_json::to_vec(&batch).map_err(|e| failure(&e))
}

fn read_outcomes(output: &ExecOutput, num_jobs: usize) -> Result<Vec<Outcome>, TaskError> {
    if output.status != ExecStatus::Exited(0) || output.dropped_bytes > 0 {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("nothing on stderr");
        return Err(TaskError::Validation(format!(
            "the driver did not finish ({:?}): {last}; is there a python3, 3.10 or newer, in the \
             sandbox?",
            output.status
        )));
    }
    let mut outcomes = vec![Outcome { finished: false, ..Outcome::default() }; num_jobs];
    let mut cut = vec![false; num_jobs];
    for line in output.stdout.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let result: ResultMessage = serde_json::from_slice(line)
            .map_err(|e| TaskError::Validation(format!("a line of the driver: {e}")))?;
        let Some(outcome) = outcomes.get_mut(result.job) else {
            return Err(TaskError::Validation(format!("no job has the number {}", result.job)));
        };
        cut[result.job] |= result.cut.is_some();
        if let Some(end) = result.end {
            outcome.finished = end == "ok" && !cut[result.job];
        } else if let Some(call) = result.call {
            if let Some(value) = result.value {
                outcome.values.insert(call, value);
            } else {
                let reason = match (result.raised, result.cut) {
                    (Some(name), _) => format!("raises {name}"),
                    (_, Some(cut)) => cut,
                    _ => "its value cannot be written down".to_owned(),
                };
                outcome.refused.insert(call, reason);
            }
        } else if let Some(test) = result.test {
            let observed = match (result.returned, result.raised) {
                (Some(text), _) => Some(Observed::Returned(text)),
                (_, Some(name)) => Some(Observed::Raised(name)),
                _ => None,
            };
            outcome.tests.insert(test, TestOutcome { passed: result.passed, observed });
        }
    }
    Ok(outcomes)
}
