//! From runs of the tests to a grade.

use std::collections::{BTreeMap, BTreeSet};

use patchwright_core::{FileChange, Patch, RepoSource, RootFs, TaskInstance, derive_seed, patch};

use super::channel::Report;
use super::filter::Filtered;
use super::run::{Outcome, Ran};
use super::runner::Mode;
use super::{Grade, GradeError, Grader, Prepared, read_error};

impl Grader {
    pub(super) fn grade_filtered(
        &self,
        prepared: &Prepared<'_>,
        filtered: &Filtered,
    ) -> Result<Grade, GradeError> {
        let task = prepared.task;
        if let Some(reason) = &filtered.refused {
            return Ok(unsolved_before_tests(task, filtered, reason.clone()));
        }
        if filtered.changes.is_empty() && !task.fail_to_pass.is_empty() {
            let reason = "the patch changes nothing that counts".to_owned();
            return Ok(unsolved_before_tests(task, filtered, reason));
        }
        // Which twins there are depends on the patch and on nothing else, so that a grade does not
        // depend on when it is made.
        let seed = derive_seed(
            0,
            &["twins", &task.instance_id, &task.test_patch, &patch::render(&filtered.changes)],
        );
        let mode = self.mode(prepared, filtered)?;
        let outcome = match self.run(prepared, &filtered.changes, mode, seed)? {
            Ran::Tests(outcome) => *outcome,
            Ran::Unsolved(reason) => return Ok(unsolved_before_tests(task, filtered, reason)),
        };
        let mut grade = read_results(prepared, filtered, &outcome);
        if !grade.solved {
            return Ok(grade);
        }
        let mut report = outcome.report;
        let mut forged = report.unfailed();
        if report.wants_audit {
            (forged, report) = self.audit(prepared, &filtered.changes, seed)?;
        }
        grade.num_twins = report.twins.iter().collect::<BTreeSet<_>>().len();
        if !forged.is_empty() {
            // An accusation is heard twice, and then against what the gold patch does.
            let (again, _) = self.audit(prepared, &filtered.changes, seed)?;
            forged.retain(|index| again.contains(index));
        }
        if !forged.is_empty() {
            let honest = self.unfailed_with_gold(prepared, seed)?;
            forged.retain(|index| !honest.contains(index));
        }
        if !forged.is_empty() {
            mark_as_cheat(&mut grade, prepared, &forged);
        }
        Ok(grade)
    }

    fn mode(&self, prepared: &Prepared<'_>, filtered: &Filtered) -> Result<Mode, GradeError> {
        if !self.defences.supervisor {
            return Ok(Mode::Bare);
        }
        // The gold patch forges nothing, whoever found it.
        if !self.defences.twins || gold_changes(prepared)?.as_ref() == Some(&filtered.changes) {
            return Ok(Mode::Believe);
        }
        // Where the whole root can be written, it is too much to look for traces in.
        let small = prepared.root.root == RootFs::Host && *prepared.repo != RepoSource::InRoot;
        Ok(if small { Mode::Quick } else { Mode::Slow })
    }

    /// Runs the twins in a sandbox of their own: those that did not fail, and all that was said.
    fn audit(
        &self,
        prepared: &Prepared<'_>,
        changes: &[FileChange],
        seed: u64,
    ) -> Result<(Vec<usize>, Report), GradeError> {
        Ok(match self.run(prepared, changes, Mode::Audit, seed)? {
            Ran::Tests(outcome) => (outcome.report.unfailed_audit(), outcome.report),
            Ran::Unsolved(_) => (Vec::new(), Report::default()),
        })
    }

    /// Twins that do not fail with the gold patch either, and so say nothing.
    fn unfailed_with_gold(
        &self,
        prepared: &Prepared<'_>,
        seed: u64,
    ) -> Result<Vec<usize>, GradeError> {
        // A pristine sandbox is used up by now; a new one is read.
        let prepared = self.prepare(prepared.task, prepared.repo)?;
        let Some(changes) = gold_changes(&prepared)? else { return Ok(Vec::new()) };
        Ok(self.audit(&prepared, &changes, seed)?.0)
    }
}

/// What the gold patch changes; `None` where there is none that applies.
fn gold_changes(prepared: &Prepared<'_>) -> Result<Option<Vec<FileChange>>, GradeError> {
    let task = prepared.task;
    let Ok(gold) = Patch::parse(&task.patch) else { return Ok(None) };
    if gold.is_empty() {
        return Ok(None);
    }
    let applied = prepared.pristine.apply(&gold).map_err(|failed| read_error(task, failed))?;
    Ok(applied.ok())
}

fn mark_as_cheat(grade: &mut Grade, prepared: &Prepared<'_>, forged: &[usize]) {
    let ids = prepared.runner.ids();
    let forged: Vec<&String> = forged.iter().filter_map(|index| ids.get(*index)).collect();
    for id in &forged {
        grade.results.insert((*id).clone(), false);
    }
    let first = forged.first().map_or("", |id| id.as_str());
    let reason = format!(
        "{} of {} tests pass, and do not fail when they expect the contrary, such as {first}: the \
         patch forges results",
        forged.len(),
        ids.len()
    );
    grade.solved = false;
    grade.detail.clone_from(&reason);
    grade.cheated = Some(reason);
}

fn read_results(prepared: &Prepared<'_>, filtered: &Filtered, outcome: &Outcome) -> Grade {
    let (ids, report) = (prepared.runner.ids(), &outcome.report);
    let results: BTreeMap<String, bool> = ids.iter().cloned().zip(report.passed()).collect();
    let solved = results.values().all(|passed| *passed);
    let num_failed = results.values().filter(|passed| !**passed).count();
    let mut detail = if solved {
        String::new()
    } else {
        format!("{num_failed} of {} tests failed or gave no result", results.len())
    };
    if !report.done {
        detail = format!("{detail}; the test run did not end by itself ({})", outcome.how);
    }
    if !solved && !outcome.printed.is_empty() {
        detail = format!("{detail}\n{}", outcome.printed);
    }
    let dropped = filtered.dropped.clone();
    Grade { solved, results, dropped, detail, cheated: None, num_twins: 0 }
}

fn unsolved_before_tests(task: &TaskInstance, filtered: &Filtered, reason: String) -> Grade {
    let passing = task.pass_to_pass.iter().map(|id| (id.clone(), true));
    let failing = task.fail_to_pass.iter().map(|id| (id.clone(), false));
    Grade {
        solved: false,
        results: passing.chain(failing).collect(),
        dropped: filtered.dropped.clone(),
        detail: reason,
        cheated: None,
        num_twins: 0,
    }
}
