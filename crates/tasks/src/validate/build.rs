//! From repositories to task instances, slice by slice: each worker takes the next slice of the
//! set. Within a slice it goes in waves: each wave runs, over all its repositories at once, about as
//! many candidates as are still missing.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_core::patch::{FileChange, render};
use patchwright_core::{
    InstallConfig, SandboxProvider, TaskError, TaskInstance, derive_seed, stream,
};

use super::driver::{Driver, Job, Outcome, Payload};
use super::hidden_tests::{self, HiddenTests};
use super::{BuildOptions, BuildReport, BuildWatch, CheckedRepos, EmbeddedRepo, check};
use crate::inject::{self, Injection, Mutation};
use crate::issue::{self, FailingExample};

/// A repository on its way through the waves.
struct Work {
    repo: EmbeddedRepo,
    tests: HiddenTests,
    candidates: Vec<Mutation>,
    /// Indices of candidates in the order they are tried; the next one is last.
    queue: Vec<usize>,
    num_tried: usize,
    accepted: Vec<TaskInstance>,
}

/// A candidate of a wave.
struct Try {
    work: usize,
    injection: Injection,
}

/// Repositories of a slice: enough to share the start of an interpreter, few enough that progress
/// shows and that the workers end at about the same time. The instances do not depend on it.
fn slice_size(num_repos: usize, num_workers: usize) -> usize {
    num_repos.div_ceil(4 * num_workers).clamp(8, 64)
}

pub(super) fn build(
    repos: &[EmbeddedRepo],
    provider: &dyn SandboxProvider,
    options: &BuildOptions,
    watch: &dyn BuildWatch,
) -> Result<(Vec<TaskInstance>, BuildReport), TaskError> {
    check::refuse_names(repos)?;
    let num_workers = options.parallelism.max(1);
    let slices: Vec<&[EmbeddedRepo]> = repos.chunks(slice_size(repos.len(), num_workers)).collect();
    let num_wanted = repos.len() * options.bugs_per_repo;
    let (next, num_instances) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let results: Mutex<BTreeMap<usize, Result<_, TaskError>>> = Mutex::default();
    watch.progress(0, num_wanted);
    // A poisoned lock means that another worker panicked; that panic is passed on.
    let work = || {
        let driver = Driver::new(provider, options, 1, watch);
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(slice) = slices.get(index) else { break };
            let built = build_slice(slice.to_vec(), &driver, options);
            match &built {
                Ok((instances, _)) => {
                    let so_far = num_instances.fetch_add(instances.len(), Ordering::Relaxed);
                    watch.progress(so_far + instances.len(), num_wanted);
                }
                Err(_) => next.store(slices.len(), Ordering::Relaxed),
            }
            results.lock().expect("no worker panics").insert(index, built);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..num_workers.min(slices.len()) {
            scope.spawn(work);
        }
    });
    let mut instances = Vec::new();
    let mut report = BuildReport::default();
    for built in results.into_inner().expect("no worker panics").into_values() {
        let (more, part) = built?;
        instances.extend(more);
        report.add(part);
    }
    Ok((instances, report))
}

fn build_slice(
    repos: Vec<EmbeddedRepo>,
    driver: &Driver<'_>,
    options: &BuildOptions,
) -> Result<(Vec<TaskInstance>, BuildReport), TaskError> {
    let num_repos = repos.len();
    let CheckedRepos { repos, rejected, num_dropped_examples } =
        check::check(repos, driver, options)?;
    let mut report = BuildReport {
        num_repos,
        rejected_repos: rejected,
        num_dropped_examples,
        ..BuildReport::default()
    };
    let mut works: Vec<Work> = repos.into_iter().map(|repo| prepare(repo, options)).collect();
    report.num_candidates = works.iter().map(|work| work.candidates.len()).sum();
    let payloads: Vec<_> =
        works.iter().map(|work| check::payload(&work.repo, &work.tests)).collect();
    loop {
        let tries = next_wave(&mut works, options);
        if tries.is_empty() {
            break;
        }
        report.num_tried += tries.len();
        let standing = run_wave(&tries, &works, &payloads, driver, options, &mut report)?;
        for (index, runs) in standing {
            let attempt = &tries[index];
            let work = &mut works[attempt.work];
            if work.accepted.len() >= options.bugs_per_repo {
                *report.rejected.entry("not needed".to_owned()).or_default() += 1;
                continue;
            }
            match instance(work, &attempt.injection, &runs, options) {
                Ok(instance) => {
                    let operator = attempt.injection.mutations[0].operator.name();
                    *report.accepted_by_operator.entry(operator.to_owned()).or_default() += 1;
                    work.accepted.push(instance);
                }
                Err(reason) => *report.rejected.entry(reason.to_owned()).or_default() += 1,
            }
        }
    }
    let instances: Vec<TaskInstance> = works.into_iter().flat_map(|work| work.accepted).collect();
    report.num_instances = instances.len();
    Ok((instances, report))
}

/// Runs the tries; those that the first run leaves standing are repeated. Index of a try to its
/// runs.
fn run_wave(
    tries: &[Try],
    works: &[Work],
    payloads: &[Payload],
    driver: &Driver<'_>,
    options: &BuildOptions,
    report: &mut BuildReport,
) -> Result<BTreeMap<usize, Vec<Outcome>>, TaskError> {
    let jobs: Vec<Job> = tries
        .iter()
        .map(|t| Job { repo: t.work, changed: t.injection.changed.clone(), calls: None })
        .collect();
    let mut standing: BTreeMap<usize, Vec<Outcome>> = BTreeMap::new();
    for (index, outcome) in driver.run(payloads, &jobs, 0)?.into_iter().enumerate() {
        match verdict(&works[tries[index].work].tests, &outcome) {
            Ok(()) => _ = standing.insert(index, vec![outcome]),
            Err(reason) => *report.rejected.entry(reason.to_owned()).or_default() += 1,
        }
    }
    let again: Vec<Job> = standing.keys().map(|index| jobs[*index].clone()).collect();
    for repeat in 1..options.repeats.max(1) {
        for (runs, outcome) in standing.values_mut().zip(driver.run(payloads, &again, repeat)?) {
            runs.push(outcome);
        }
    }
    Ok(standing)
}

fn prepare(repo: EmbeddedRepo, options: &BuildOptions) -> Work {
    let candidates = inject::candidates(&repo.files, &options.inject);
    let mut rng = stream(options.seed, &["bugs", &options.set, &repo.name]);
    let mut queue = inject::draw_order(&candidates, &mut rng);
    queue.reverse();
    let tests = hidden_tests::write(&repo);
    Work { repo, tests, candidates, queue, num_tried: 0, accepted: Vec::new() }
}

fn next_wave(works: &mut [Work], options: &BuildOptions) -> Vec<Try> {
    let mut tries = Vec::new();
    for (index, work) in works.iter_mut().enumerate() {
        let missing = options.bugs_per_repo.saturating_sub(work.accepted.len());
        if missing == 0 {
            continue;
        }
        // About two of three candidates are accepted; one wave is mostly enough.
        let wanted = missing + missing.div_ceil(2);
        let left = options.max_tries_per_repo.saturating_sub(work.num_tried);
        for _ in 0..wanted.min(left) {
            let Some(candidate) = work.queue.pop() else { break };
            work.num_tried += 1;
            let name = candidate.to_string();
            let mut rng = stream(options.seed, &["extend", &options.set, &work.repo.name, &name]);
            let first = work.candidates[candidate].clone();
            let files = &work.repo.files;
            if let Some(injection) =
                inject::extend(files, first, &options.inject, &mut rng, options.num_bugs.max(1))
            {
                tries.push(Try { work: index, injection });
            }
        }
    }
    tries
}

/// Whether one run of a candidate is acceptable, else why not.
fn verdict(tests: &HiddenTests, outcome: &Outcome) -> Result<(), &'static str> {
    if !outcome.finished {
        return Err("cut off by a limit");
    }
    let num_passed = tests.ids.iter().filter(|id| passed(outcome, id)).count();
    if num_passed == tests.ids.len() {
        Err("no test fails")
    } else if num_passed == 0 {
        Err("no test passes")
    } else {
        Ok(())
    }
}

fn passed(outcome: &Outcome, id: &str) -> bool {
    outcome.tests.get(id).is_some_and(|test| test.passed)
}

fn instance(
    work: &Work,
    injection: &Injection,
    runs: &[Outcome],
    options: &BuildOptions,
) -> Result<TaskInstance, &'static str> {
    let tests = &work.tests;
    let first = &runs[0];
    for run in &runs[1..] {
        let agrees = tests.ids.iter().all(|id| passed(run, id) == passed(first, id));
        if !run.finished || !agrees {
            return Err("repeats differ");
        }
    }
    let (pass_to_pass, fail_to_pass): (Vec<String>, Vec<String>) =
        tests.ids.iter().cloned().partition(|id| passed(first, id));
    let examples = failing_examples(work, runs);
    if examples.is_empty() {
        return Err("no failing call can be shown");
    }
    let repo = &work.repo;
    let instance_id = format!("{}__{}-{}", options.set, repo.name, work.accepted.len() + 1);
    let mut files = repo.files.clone();
    files.extend(injection.changed.clone());
    let gold: Vec<FileChange> = injection
        .changed
        .iter()
        .map(|(path, buggy)| change(path, Some(buggy), repo.files.get(path)))
        .collect();
    let hidden: Vec<FileChange> =
        tests.files.iter().map(|(path, text)| change(path, None, Some(text))).collect();
    let seed = derive_seed(options.seed, &["issue", &instance_id]);
    let bugs: Vec<serde_json::Value> = injection.mutations.iter().map(bug).collect();
    Ok(TaskInstance {
        repo: format!("{}/{}", options.set, repo.name),
        patch: render(&gold),
        test_patch: render(&hidden),
        problem_statement: issue::write(options.issue_style, &examples, seed),
        fail_to_pass,
        pass_to_pass,
        install_config: InstallConfig {
            test_cmd: "python3 -m unittest".to_owned(),
            log_parser: "unittest".to_owned(),
            ..InstallConfig::default()
        },
        files,
        extra: BTreeMap::from([("bug".to_owned(), serde_json::Value::Array(bugs))]),
        instance_id,
        ..TaskInstance::default()
    })
}

/// The failing calls that an issue can show, those of different functions first.
fn failing_examples(work: &Work, runs: &[Outcome]) -> Vec<FailingExample> {
    let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut found: Vec<(usize, FailingExample)> = Vec::new();
    for (example, id) in work.repo.examples.iter().zip(&work.tests.ids) {
        let observed = |run: &Outcome| {
            run.tests.get(id).filter(|test| !test.passed).and_then(|test| test.observed.clone())
        };
        let Some(first) = observed(&runs[0]) else { continue };
        let stable = runs.iter().all(|run| observed(run).as_ref() == Some(&first));
        // Equal texts of unequal values would read as if nothing were wrong.
        if !stable || first == issue::Observed::Returned(example.expected.clone()) {
            continue;
        }
        let rank = seen.entry((&example.module, &example.function)).or_default();
        found.push((
            *rank,
            FailingExample {
                module: example.module.clone(),
                function: example.function.clone(),
                args: example.args.clone(),
                observed: first,
                expected: example.expected.clone(),
            },
        ));
        *rank += 1;
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, example)| example).collect()
}

fn change(path: &str, old: Option<&String>, new: Option<&String>) -> FileChange {
    let bytes = |text: Option<&String>| text.map(|t| t.as_bytes().to_vec());
    FileChange { path: path.to_owned(), old: bytes(old), new: bytes(new), executable: false }
}

fn bug(mutation: &Mutation) -> serde_json::Value {
    serde_json::json!({
        "operator": mutation.operator,
        "path": mutation.path,
        "line": mutation.line,
        "function": mutation.function,
        "description": mutation.description,
    })
}
