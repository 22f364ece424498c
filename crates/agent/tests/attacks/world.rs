//! What the suite shares: a table of patches, graded side by side.

use std::sync::Mutex;
use std::time::Duration;

use patchwright_agent::grade::Defences;
use patchwright_agent::{Grade, Grader, GraderOptions};
use patchwright_core::{FileChange, RepoSource, TaskInstance, patch};

use crate::common::{BUGGY, change, provider, task};

/// The repository's module with its bug mended.
pub fn fixed() -> String {
    BUGGY.replace("result = 1", "result = 0")
}

/// The task with its gold patch.
pub fn world() -> (TaskInstance, RepoSource) {
    let (mut task, repo) = task();
    task.patch = patch::render(&[change("sums.py", Some(BUGGY), Some(&fixed()))]);
    (task, repo)
}

pub fn grader(defences: Defences) -> Grader {
    grader_within(defences, 60)
}

/// With a bound on the tests, for patches that never end.
pub fn grader_within(defences: Defences, seconds: u64) -> Grader {
    let options =
        GraderOptions { timeout: Duration::from_secs(seconds), ..GraderOptions::default() };
    Grader::new(provider(), options).with_defences(defences)
}

/// The patch that makes `sums.py` this text, and adds files.
pub fn patch_to(text: &str, more: &[(&str, &str)]) -> String {
    let mut changes: Vec<FileChange> =
        more.iter().map(|(path, text)| change(path, None, Some(text))).collect();
    if text != BUGGY {
        changes.push(change("sums.py", Some(BUGGY), Some(text)));
    }
    patch::render(&changes)
}

/// One row of a table: a name, and a patch.
pub struct Row {
    pub name: String,
    pub patch: String,
}

pub fn row(name: &str, patch: String) -> Row {
    Row { name: name.to_owned(), patch }
}

/// Grades rows, a few at a time, in the order of the table.
pub fn grade_all(
    grader: &Grader,
    task: &TaskInstance,
    repo: &RepoSource,
    rows: &[Row],
) -> Vec<Grade> {
    let next = Mutex::new(0..rows.len());
    let grades = Mutex::new(vec![None; rows.len()]);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Some(at) = next.lock().unwrap().next() else { return };
                    let Row { name, patch } = &rows[at];
                    let grade = grader.grade(task, repo, patch);
                    grades.lock().unwrap()[at] =
                        Some(grade.unwrap_or_else(|error| panic!("{name}: {error}")));
                }
            });
        }
    });
    grades.into_inner().unwrap().into_iter().map(|grade| grade.expect("every row")).collect()
}

/// No row may be solved. Gives the names of those that were reported as cheats.
pub fn none_is_solved(task: &TaskInstance, repo: &RepoSource, rows: &[Row]) -> Vec<String> {
    let grades = grade_all(&grader(Defences::default()), task, repo, rows);
    let solved = rows.iter().zip(&grades).filter(|(_, grade)| grade.solved);
    let solved: Vec<&str> = solved.map(|(row, _)| row.name.as_str()).collect();
    assert!(solved.is_empty(), "solved by a cheat: {solved:?}");
    let cheats = rows.iter().zip(&grades).filter(|(_, grade)| grade.cheated.is_some());
    cheats.map(|(row, _)| row.name.clone()).collect()
}

/// Every row must be solved, and none reported.
pub fn all_are_solved(task: &TaskInstance, repo: &RepoSource, rows: &[Row]) -> Vec<Grade> {
    let grades = grade_all(&grader(Defences::default()), task, repo, rows);
    let bad: Vec<String> = rows
        .iter()
        .zip(&grades)
        .filter(|(_, grade)| !grade.solved || grade.cheated.is_some())
        .map(|(row, grade)| format!("{}: {} {:?}", row.name, grade.detail, grade.dropped))
        .collect();
    assert!(bad.is_empty(), "honest patches that lost their reward:\n{}", bad.join("\n"));
    grades
}
