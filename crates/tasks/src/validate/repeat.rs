//! Validation of finished tasks: the gold patch passes, the empty patch fails, every time.
//!
//! Each run of a side is one line of a file in the cache, named by the content of the task and its
//! repository: a call that is interrupted, even by SIGKILL, goes on with the runs that are missing,
//! and more repeats later add to those there are. What runs the tests is the caller's: the same
//! grader that makes rewards.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use patchwright_core::{RepoSource, TaskError, TaskInstance};
use serde::{Deserialize, Serialize};

use super::report::{SCHEMA_VERSION, TaskVerdict, Verdict};
use crate::environment::{Watch, key};
use crate::source::prepare_repo;

/// A patch that changes nothing of the code: it adds an empty file. A grader need not run anything
/// for an empty text, and here the tests must run.
pub const EMPTY_PATCH: &str = "diff --git a/.patchwright-empty b/.patchwright-empty\n\
    new file mode 100644\n--- /dev/null\n+++ b/.patchwright-empty\n@@ -0,0 +1 @@\n+\n";

/// Runs the hidden tests of a task. Called from several threads.
pub trait Grading: Sync {
    /// Whether each test of `FAIL_TO_PASS` and `PASS_TO_PASS` passes with this patch.
    ///
    /// # Errors
    /// Why the tests could not be run, for people. Never for what the patch does.
    fn run(
        &self,
        task: &TaskInstance,
        repo: &RepoSource,
        patch: &str,
    ) -> Result<BTreeMap<String, bool>, String>;

    /// Names everything that the results depend on besides the task: results of another
    /// fingerprint are not used.
    fn fingerprint(&self) -> String;
}

/// How tasks are validated.
#[derive(Debug, Clone)]
pub struct ValidateOptions {
    /// Runs of the gold patch, at least 1; 50 in the reference.
    pub repeats: u32,
    /// Runs at the same time.
    pub jobs: usize,
    /// Checkouts of repositories and finished runs are kept here.
    pub cache_dir: PathBuf,
}

impl ValidateOptions {
    /// Runs of the empty patch: a tenth, at least 1. That a bug is there is seen at once; most
    /// flakiness shows with the gold patch, too.
    pub fn num_empty(&self) -> u32 {
        (self.repeats / 10).max(1)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Side {
    Gold,
    Empty,
}

/// One run of one side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Run {
    side: Side,
    repeat: u32,
    /// The tests that failed; the others passed.
    failed: Vec<String>,
    seconds: f64,
}

/// A task on its way.
struct Work<'a> {
    task: &'a TaskInstance,
    repo: Option<RepoSource>,
    log: PathBuf,
    runs: BTreeMap<(Side, u32), Run>,
    /// Runs that were there already.
    num_cached: usize,
    broken: Option<String>,
}

/// Validates tasks; verdicts in their order. Tasks that were not finished when `watch` said stop
/// have no verdict.
///
/// # Errors
/// [`TaskError::Io`] when the cache cannot be written. What is wrong with a task is its verdict.
pub fn validate_tasks(
    tasks: &[TaskInstance],
    grading: &dyn Grading,
    options: &ValidateOptions,
    watch: &dyn Watch,
) -> Result<Vec<TaskVerdict>, TaskError> {
    let dir = options.cache_dir.join("validation");
    std::fs::create_dir_all(&dir)
        .map_err(|source| TaskError::Io { context: format!("making {}", dir.display()), source })?;
    let fingerprint = grading.fingerprint();
    let plan: Vec<(Side, u32)> = (0..options.num_empty())
        .map(|repeat| (Side::Empty, repeat))
        .chain((0..options.repeats.max(1)).map(|repeat| (Side::Gold, repeat)))
        .collect();
    let works: Vec<Mutex<Option<Work<'_>>>> = tasks.iter().map(|_| Mutex::new(None)).collect();
    let total = tasks.len() * plan.len();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let failure: Mutex<Option<TaskError>> = Mutex::new(None);
    // A poisoned lock means that another worker panicked; that panic is passed on.
    let step = |index: usize| -> Result<(), TaskError> {
        let (task, place) = (&tasks[index / plan.len()], plan[index % plan.len()]);
        let slot = &works[index / plan.len()];
        let (repo, patch) = {
            let mut slot = slot.lock().expect("no worker panics");
            let work = match slot.as_mut() {
                Some(work) => work,
                None => slot.insert(open(task, &dir, &fingerprint, options)?),
            };
            let Some(repo) = &work.repo else { return Ok(()) };
            if work.broken.is_some() || work.runs.contains_key(&place) {
                return Ok(());
            }
            let patch = if place.0 == Side::Gold { &task.patch } else { EMPTY_PATCH };
            (repo.clone(), patch)
        };
        let start = Instant::now();
        let ran = grading.run(task, &repo, patch);
        let seconds = start.elapsed().as_secs_f64();
        let mut slot = slot.lock().expect("no worker panics");
        let Some(work) = slot.as_mut() else { return Ok(()) };
        match ran {
            Err(reason) => work.broken = Some(reason),
            Ok(results) => {
                let failed = results.into_iter().filter(|(_, ok)| !ok).map(|(id, _)| id).collect();
                let run = Run { side: place.0, repeat: place.1, failed, seconds };
                append(&work.log, &run)?;
                work.runs.insert(place, run);
            }
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        for _ in 0..options.jobs.clamp(1, total.max(1)) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= total || watch.is_stopped() {
                        break;
                    }
                    if let Err(error) = step(index) {
                        failure.lock().expect("no worker panics").get_or_insert(error);
                        next.store(total, Ordering::Relaxed);
                    }
                    let finished = done.fetch_add(1, Ordering::Relaxed) + 1;
                    watch.progress(finished, total, &tasks[index / plan.len()].instance_id);
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().expect("no worker panics") {
        return Err(error);
    }
    let works = works.into_iter().filter_map(|work| work.into_inner().expect("no worker panics"));
    Ok(works.filter_map(|work| judge(work, &plan)).collect())
}

fn open<'a>(
    task: &'a TaskInstance,
    dir: &Path,
    fingerprint: &str,
    options: &ValidateOptions,
) -> Result<Work<'a>, TaskError> {
    let (repo, broken) = match prepare_repo(task, &options.cache_dir.join("repos")) {
        Ok(repo) => (Some(repo), None),
        Err(error) => (None, Some(error.to_string())),
    };
    let row = serde_json::to_string(task)
        .map_err(|e| TaskError::Validation(format!("the key of the cache: {e}")))?;
    let tree = match &repo {
        Some(RepoSource::Directory(path)) => listing(path),
        _ => String::new(),
    };
    let log = dir.join(format!("{}.jsonl", key(&["1", fingerprint, &row, &tree])));
    let wanted = |run: &Run| match run.side {
        Side::Gold => run.repeat < options.repeats.max(1),
        Side::Empty => run.repeat < options.num_empty(),
    };
    let runs: BTreeMap<_, _> =
        read(&log).into_iter().filter(wanted).map(|run| ((run.side, run.repeat), run)).collect();
    Ok(Work { task, repo, log, num_cached: runs.len(), runs, broken })
}

/// Paths, sizes and times of a tree: another tree at the same place is another task.
fn listing(root: &Path) -> String {
    let mut lines = Vec::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let Ok(metadata) = path.symlink_metadata() else { continue };
            if metadata.is_dir() {
                dirs.push(path);
            } else {
                let time = metadata.modified().ok();
                lines.push(format!("{} {} {time:?}", path.display(), metadata.len()));
            }
        }
    }
    lines.sort();
    lines.join("\n")
}

/// The finished runs of a log. A line that was cut off by the end of a process is not one.
fn read(log: &Path) -> Vec<Run> {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(log) {
        let _ = file.read_to_end(&mut bytes);
    }
    bytes.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
}

fn append(log: &Path, run: &Run) -> Result<(), TaskError> {
    // The line feed comes first: a line that was cut off before does not spoil this one.
    let mut line = b"\n".to_vec();
    let write = |line: &mut Vec<u8>| -> std::io::Result<()> {
        serde_json::to_writer(&mut *line, run)?;
        line.push(b'\n');
        OpenOptions::new().create(true).append(true).open(log)?.write_all(line)
    };
    write(&mut line)
        .map_err(|source| TaskError::Io { context: format!("writing {}", log.display()), source })
}

/// The verdict, or `None` for a task that is not finished.
fn judge(work: Work<'_>, plan: &[(Side, u32)]) -> Option<TaskVerdict> {
    let task = work.task;
    let num_gold = plan.iter().filter(|(side, _)| *side == Side::Gold).count();
    let mut verdict = TaskVerdict {
        schema_version: SCHEMA_VERSION,
        instance_id: task.instance_id.clone(),
        verdict: Verdict::Valid,
        flaky_tests: Vec::new(),
        flaky_counts: BTreeMap::new(),
        failing_tests: Vec::new(),
        num_repeats: num_gold as u32,
        num_tests: task.fail_to_pass.len() + task.pass_to_pass.len(),
        seconds: work.runs.values().map(|run| run.seconds).sum(),
        reason: String::new(),
        cached: work.num_cached == plan.len(),
    };
    if let Some(reason) = work.broken {
        return Some(TaskVerdict { verdict: Verdict::Broken, reason, ..verdict });
    }
    if work.runs.len() < plan.len() {
        return None;
    }
    let gold = counts(&work.runs, Side::Gold);
    let empty = counts(&work.runs, Side::Empty);
    let (num_gold, num_empty) = (num_gold as u32, plan.len() as u32 - num_gold as u32);
    let mut flaky: BTreeMap<String, (u32, u32)> = BTreeMap::new();
    for (counts, num) in [(&empty, num_empty), (&gold, num_gold)] {
        let unsteady = counts.iter().filter(|(_, failures)| **failures < num);
        flaky.extend(unsteady.map(|(id, failures)| (id.clone(), (num - failures, num))));
    }
    let always = |counts: &BTreeMap<String, u32>, num: u32| -> BTreeSet<String> {
        counts.iter().filter(|(_, n)| **n == num).map(|(id, _)| id.clone()).collect()
    };
    let (gold_failing, empty_failing) = (always(&gold, num_gold), always(&empty, num_empty));
    let wanted: BTreeSet<String> = task.fail_to_pass.iter().cloned().collect();
    let wrong: Vec<String> = empty_failing.symmetric_difference(&wanted).cloned().collect();
    (verdict.verdict, verdict.reason, verdict.failing_tests) = if !gold_failing.is_empty() {
        let reason = format!("{} of {} tests always fail", gold_failing.len(), verdict.num_tests);
        (Verdict::GoldFails, reason, gold_failing.into_iter().collect())
    } else if empty.is_empty() {
        (Verdict::EmptyPasses, "every test passes without a patch".to_owned(), Vec::new())
    } else if !flaky.is_empty() {
        let reason = format!("{} of {} tests are not steady", flaky.len(), verdict.num_tests);
        (Verdict::Flaky, reason, Vec::new())
    } else if !wrong.is_empty() {
        let reason = format!("without a patch {} tests do not as the row says", wrong.len());
        (Verdict::Mislabelled, reason, wrong)
    } else {
        (Verdict::Valid, String::new(), Vec::new())
    };
    verdict.flaky_tests = flaky.keys().cloned().collect();
    verdict.flaky_counts = flaky;
    Some(verdict)
}

/// How often each test that ever failed on a side did.
fn counts(runs: &BTreeMap<(Side, u32), Run>, side: Side) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for run in runs.values().filter(|run| run.side == side) {
        for id in &run.failed {
            *counts.entry(id.clone()).or_default() += 1;
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU32, Ordering};

    use patchwright_core::{RepoSource, TaskInstance};

    use super::{EMPTY_PATCH, Grading, ValidateOptions, validate_tasks};
    use crate::validate::report::Verdict;

    /// Tests behave as the text of the task says, on its n-th run.
    #[derive(Default)]
    struct Fake {
        num_runs: AtomicU32,
    }

    impl Grading for Fake {
        fn run(
            &self,
            task: &TaskInstance,
            _: &RepoSource,
            patch: &str,
        ) -> Result<BTreeMap<String, bool>, String> {
            let run = self.num_runs.fetch_add(1, Ordering::Relaxed);
            let gold = patch != EMPTY_PATCH;
            let (f, p) = match task.problem_statement.as_str() {
                "valid" => (gold, true),
                "flaky" => (gold, !run.is_multiple_of(3)),
                "gold fails" => (false, true),
                "empty passes" => (true, true),
                "mislabelled" => (gold, gold),
                _ => return Err("no such thing".to_owned()),
            };
            Ok([("f".to_owned(), f), ("p".to_owned(), p)].into())
        }

        fn fingerprint(&self) -> String {
            "fake".to_owned()
        }
    }

    fn task(kind: &str) -> TaskInstance {
        TaskInstance {
            instance_id: kind.to_owned(),
            repo: "r".to_owned(),
            problem_statement: kind.to_owned(),
            fail_to_pass: vec!["f".to_owned()],
            pass_to_pass: vec!["p".to_owned()],
            files: [("a".to_owned(), String::new())].into(),
            ..TaskInstance::default()
        }
    }

    #[test]
    fn verdicts() {
        let dir = tempfile::tempdir().unwrap();
        let options = ValidateOptions { repeats: 6, jobs: 1, cache_dir: dir.path().to_owned() };
        for (kind, verdict) in [
            ("valid", Verdict::Valid),
            ("flaky", Verdict::Flaky),
            ("gold fails", Verdict::GoldFails),
            ("empty passes", Verdict::EmptyPasses),
            ("mislabelled", Verdict::Mislabelled),
            ("unknown", Verdict::Broken),
        ] {
            let found = validate_tasks(&[task(kind)], &Fake::default(), &options, &()).unwrap();
            assert_eq!(found[0].verdict, verdict, "{kind}: {found:?}");
            assert_eq!(found[0].reason.is_empty(), verdict == Verdict::Valid);
            if verdict == Verdict::Flaky {
                assert_eq!(found[0].flaky_tests, ["p"]);
                assert_eq!(found[0].flaky_counts["p"], (4, 6));
            }
        }
    }

    #[test]
    fn runs_are_kept_one_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let mut options = ValidateOptions { repeats: 4, jobs: 2, cache_dir: dir.path().to_owned() };
        let tasks = [task("valid"), task("mislabelled")];
        let validate = |options: &ValidateOptions| {
            let fake = Fake::default();
            let found = validate_tasks(&tasks, &fake, options, &()).unwrap();
            let verdicts: Vec<Verdict> = found.iter().map(|v| v.verdict).collect();
            assert_eq!(verdicts, [Verdict::Valid, Verdict::Mislabelled]);
            (fake.num_runs.load(Ordering::Relaxed), found[0].cached)
        };
        assert_eq!(validate(&options), (10, false));
        assert_eq!(validate(&options), (0, true));
        options.repeats = 6;
        assert_eq!(validate(&options), (4, false));
        // As if the process had been killed while it wrote.
        for entry in std::fs::read_dir(dir.path().join("validation")).unwrap() {
            let path = entry.unwrap().path();
            let text = std::fs::read(&path).unwrap();
            std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        }
        assert_eq!(validate(&options), (2, false));
        assert_eq!(validate(&options), (0, true));
    }
}
