//! From a bug that makes tests fail to a task's row.

use std::collections::{BTreeMap, BTreeSet};

use patchwright_core::patch::render;
use patchwright_core::{FileChange, TaskInstance, derive_seed};
use serde_json::json;

use super::warm::{Coverage, Failure};
use crate::environment::Pip;
use crate::inject::{Mutation, difficulty};
use crate::issue::{self, FailingCheck};
use crate::releases::pair::{Bench, Release, install_config};

/// Bugs that make a task.
pub(super) struct Found {
    pub mutations: Vec<Mutation>,
    /// Path to buggy text.
    pub changed: BTreeMap<String, String>,
    pub failing: Vec<String>,
    pub failures: Vec<Failure>,
}

/// Writes rows of one package.
pub(super) struct TaskMaker<'a> {
    release: &'a Release,
    bench: &'a Bench,
    python_version: &'a str,
    /// Number of lines that each test runs.
    num_lines: BTreeMap<&'a str, usize>,
}

impl<'a> TaskMaker<'a> {
    pub fn new(
        release: &'a Release,
        bench: &'a Bench,
        coverage: &'a Coverage,
        pip: &'a Pip,
    ) -> Self {
        let mut num_lines: BTreeMap<&str, usize> = BTreeMap::new();
        for tests in coverage.tests.values() {
            for id in tests {
                *num_lines.entry(id).or_default() += 1;
            }
        }
        Self { release, bench, python_version: &pip.python_version, num_lines }
    }

    /// The row; the error is a reason for the funnel.
    pub fn task(
        &self,
        instance_id: &str,
        found: &Found,
        seed: u64,
        stable: &[String],
    ) -> Result<TaskInstance, String> {
        let release = self.release;
        let text = |path: &str| {
            let bytes = release.tree.get(path)?;
            std::str::from_utf8(bytes).ok()
        };
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        let (mut bug, mut gold) = (Vec::new(), Vec::new());
        for (path, buggy) in &found.changed {
            let correct = text(path).ok_or("its source is no text")?;
            let change = |old: &str, new: &str| FileChange {
                path: path.clone(),
                old: bytes(old),
                new: bytes(new),
                executable: false,
            };
            bug.push(change(correct, buggy));
            gold.push(change(buggy, correct));
        }
        let files: BTreeSet<&str> =
            found.failing.iter().filter_map(|id| id.split("::").next()).collect();
        let mut hidden = Vec::new();
        for path in &files {
            let text = text(path).ok_or("a file of its tests is no text")?;
            let (path, new) = ((*path).to_owned(), bytes(text));
            hidden.push(FileChange { path, old: None, new, executable: false });
        }
        let failing: BTreeSet<&String> = found.failing.iter().collect();
        let pass_to_pass: Vec<String> =
            stable.iter().filter(|id| !failing.contains(id)).cloned().collect();
        let places: Vec<difficulty::Place<'_>> =
            found.mutations.iter().map(|m| (m.path.as_str(), m.line)).collect();
        let traces: Vec<Vec<String>> = found.failures.iter().map(|f| f.places.clone()).collect();
        let narrowest = found.failing.iter().filter_map(|id| self.num_lines.get(id.as_str())).min();
        let difficulty = difficulty::estimate(
            &places,
            found.changed.len(),
            found.failing.len(),
            &traces,
            narrowest.copied().unwrap_or(1),
        );
        let bugs: Vec<serde_json::Value> = found.mutations.iter().map(describe).collect();
        let package = &release.metadata.name;
        let checks: Vec<FailingCheck> = found.failures.iter().map(check).collect();
        let seed = derive_seed(seed, &["issue", instance_id]);
        let extra = [
            ("setup", json!({"patch": render(&bug), "remove": files})),
            ("bug", json!(bugs)),
            ("difficulty", json!(difficulty)),
            ("requirements", self.bench.environment.locked.join("\n").into()),
            ("source", format!("bug injected into {package} {}", release.metadata.version).into()),
        ];
        Ok(TaskInstance {
            instance_id: instance_id.to_owned(),
            repo: release.dir.display().to_string(),
            patch: render(&gold),
            test_patch: render(&hidden),
            problem_statement: issue::write_checks(
                package,
                &release.metadata.version,
                &checks,
                seed,
            ),
            version: release.metadata.version.clone(),
            fail_to_pass: found.failing.clone(),
            pass_to_pass,
            install_config: install_config(self.bench, self.python_version),
            extra: extra.map(|(name, value)| (name.to_owned(), value)).into(),
            ..TaskInstance::default()
        })
    }
}

fn check(failure: &Failure) -> FailingCheck {
    FailingCheck { statement: failure.statement.clone(), message: failure.message.clone() }
}

fn describe(mutation: &Mutation) -> serde_json::Value {
    json!({
        "operator": mutation.operator,
        "path": mutation.path,
        "line": mutation.line,
        "function": mutation.function,
        "description": mutation.description,
    })
}
