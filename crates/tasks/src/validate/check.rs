//! Correct repositories: their expected values are filled in and their tests must pass.

use std::collections::BTreeMap;

use patchwright_core::{SandboxProvider, TaskError};

use super::driver::{Driver, Job, Outcome, Payload};
use super::hidden_tests::{self, HiddenTests};
use super::{BuildOptions, EmbeddedRepo, Unwatched};

/// Repositories that are right, and why the others are not.
#[derive(Debug, Clone, Default)]
pub struct CheckedRepos {
    /// With every expected value filled in.
    pub repos: Vec<EmbeddedRepo>,
    /// Name to reason.
    pub rejected: BTreeMap<String, String>,
    /// Examples without an expected value whose call raises, is cut off by a limit, or has a value
    /// that its `repr` does not give back or that varies.
    pub num_dropped_examples: usize,
}

/// Fills in the expected values that are empty, from the correct code, and runs the hidden tests,
/// [`BuildOptions::repeats`] times each. A repository is rejected when it has no usable example, a
/// test of it fails, or a limit cuts it off.
///
/// # Errors
/// [`TaskError::Validation`] when the sandbox fails; [`TaskError::Instance`] for a name that is
/// empty or comes twice.
pub fn check_repos(
    repos: Vec<EmbeddedRepo>,
    provider: &dyn SandboxProvider,
    options: &BuildOptions,
) -> Result<CheckedRepos, TaskError> {
    refuse_names(&repos)?;
    check(repos, &Driver::new(provider, options, options.parallelism, &Unwatched), options)
}

/// [`check_repos`] of repositories whose names are known to be right.
pub(super) fn check(
    repos: Vec<EmbeddedRepo>,
    driver: &Driver<'_>,
    options: &BuildOptions,
) -> Result<CheckedRepos, TaskError> {
    let mut checked = CheckedRepos { repos, ..CheckedRepos::default() };
    fill_expected(&mut checked, driver, options)?;

    let payloads: Vec<Payload> =
        checked.repos.iter().map(|repo| payload(repo, &hidden_tests::write(repo))).collect();
    let jobs: Vec<Job> = (0..payloads.len()).map(|repo| Job { repo, ..Job::default() }).collect();
    let mut reasons: Vec<Option<String>> = vec![None; jobs.len()];
    for repeat in 0..options.repeats.max(1) {
        let outcomes = driver.run(&payloads, &jobs, repeat)?;
        for ((repo, outcome), reason) in checked.repos.iter().zip(&outcomes).zip(&mut reasons) {
            if reason.is_none() {
                *reason = failing(&hidden_tests::write(repo), outcome);
            }
        }
    }
    let mut reasons = reasons.into_iter();
    let rejected = &mut checked.rejected;
    checked.repos.retain(|repo| match reasons.next().flatten() {
        Some(reason) => {
            rejected.insert(repo.name.clone(), reason);
            false
        }
        None => true,
    });
    Ok(checked)
}

/// What the driver gets of a repository.
pub(super) fn payload(repo: &EmbeddedRepo, tests: &HiddenTests) -> Payload {
    let mut files = repo.files.clone();
    files.extend(tests.files.clone());
    Payload { files, tests: tests.modules() }
}

pub(super) fn refuse_names(repos: &[EmbeddedRepo]) -> Result<(), TaskError> {
    let mut names = std::collections::BTreeSet::new();
    for repo in repos {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let reason = if repo.name.is_empty() || !repo.name.chars().all(valid) {
            "a repository's name is of letters, digits, `-`, `_` and `.`, at least one"
        } else if !names.insert(&repo.name) {
            "two repositories have this name; rename one"
        } else {
            continue;
        };
        let instance_id = repo.name.clone();
        return Err(TaskError::Instance { instance_id, reason: reason.to_owned() });
    }
    Ok(())
}

/// Why the correct repository is not right, if so.
fn failing(tests: &HiddenTests, outcome: &Outcome) -> Option<String> {
    let failed = tests.ids.iter().find(|id| !outcome.tests.get(*id).is_some_and(|t| t.passed));
    match failed {
        Some(id) => {
            let observed = outcome.tests.get(id).and_then(|t| t.observed.as_ref());
            Some(match observed {
                Some(observed) => format!("{id} fails on the correct code: {observed:?}"),
                None => format!("{id} fails on the correct code"),
            })
        }
        None if !outcome.finished => Some("a limit cut the tests off".to_owned()),
        None => None,
    }
}

fn fill_expected(
    checked: &mut CheckedRepos,
    driver: &Driver<'_>,
    options: &BuildOptions,
) -> Result<(), TaskError> {
    let payloads: Vec<Payload> = checked
        .repos
        .iter()
        .map(|repo| Payload { files: repo.files.clone(), tests: Vec::new() })
        .collect();
    let jobs: Vec<Job> = checked
        .repos
        .iter()
        .enumerate()
        .filter(|(_, repo)| repo.examples.iter().any(|e| e.expected.is_empty()))
        .map(|(index, repo)| {
            let call = |e: &super::Example| [e.module.clone(), e.function.clone(), e.args.clone()];
            let calls = Some(repo.examples.iter().map(call).collect());
            Job { repo: index, calls, ..Job::default() }
        })
        .collect();
    let mut runs = Vec::new();
    for repeat in 0..options.repeats.max(1) {
        runs.push(driver.run(&payloads, &jobs, repeat)?);
    }
    let mut empty: BTreeMap<usize, String> = BTreeMap::new();
    for (number, job) in jobs.iter().enumerate() {
        let first = &runs[0][number];
        let repo = &mut checked.repos[job.repo];
        let before = repo.examples.len();
        let mut index = 0..;
        repo.examples.retain_mut(|example| {
            let index = index.next().unwrap_or_default();
            if !example.expected.is_empty() {
                return true;
            }
            let value = first.values.get(&index);
            if let Some(value) = value
                && runs.iter().all(|run| run[number].values.get(&index) == Some(value))
            {
                example.expected.clone_from(value);
            }
            !example.expected.is_empty()
        });
        checked.num_dropped_examples += before - repo.examples.len();
        if repo.examples.is_empty() {
            let why = first.refused.values().next().map_or("it varies", String::as_str);
            empty.insert(job.repo, format!("no example has a usable value: {why}"));
        }
    }
    for (index, repo) in checked.repos.iter().enumerate() {
        if repo.examples.is_empty() {
            let reason = empty.remove(&index).unwrap_or_else(|| "it has no examples".to_owned());
            checked.rejected.insert(repo.name.clone(), reason);
        }
    }
    checked.repos.retain(|repo| !repo.examples.is_empty());
    Ok(())
}
