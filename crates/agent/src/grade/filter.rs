//! Which changes of an agent's patch count.
//!
//! Dropped, and listed in [`Grade::dropped`](super::Grade::dropped), are:
//! 1. files that the hidden tests' patch touches, and files that hold a test of `FAIL_TO_PASS` or
//!    `PASS_TO_PASS`: the tests are what the task says they are;
//! 2. with `pytest`, files that configure it (`conftest.py`, `pytest.ini`, `tox.ini`, `setup.cfg`,
//!    `pyproject.toml` …): an agent's own are no part of the answer, and cost it nothing;
//! 3. changes that a unified diff cannot say or that lead out of the tree: binary files, symbolic
//!    links, submodules, absolute paths, `..`, `.git`.
//!
//! The rest must apply to the pristine tree, or the patch is unsolved.

use std::collections::BTreeSet;

use patchwright_core::{FileChange, Patch, RepoSource, TaskInstance};

use super::{GradeError, pristine};

/// Files from which pytest takes configuration or plugins.
const PYTEST_FILES: [&str; 8] = [
    "conftest.py",
    "pytest.ini",
    ".pytest.ini",
    "pytest.toml",
    ".pytest.toml",
    "tox.ini",
    "setup.cfg",
    "pyproject.toml",
];

/// A patch after the filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filtered {
    /// What counts, applied to the pristine tree, sorted by path.
    pub changes: Vec<FileChange>,
    /// What does not, as `path: reason`.
    pub dropped: Vec<String>,
    /// Why the patch cannot be applied at all.
    pub refused: Option<String>,
}

/// Filters a patch. `tests` are the hidden tests' changes, `test_files` hold the listed tests.
pub(super) fn filter(
    task: &TaskInstance,
    repo: &RepoSource,
    tests: &[FileChange],
    test_files: &BTreeSet<String>,
    patch: &str,
) -> Result<Filtered, GradeError> {
    let mut filtered = Filtered { changes: Vec::new(), dropped: Vec::new(), refused: None };
    let text = readable(patch, &mut filtered.dropped);
    let changes = match Patch::parse(&text) {
        Ok(patch) => match pristine::apply(task, repo, &patch)? {
            Ok(changes) => changes,
            Err(error) => {
                filtered.refused = Some(format!("the patch does not apply: {error}"));
                return Ok(filtered);
            }
        },
        Err(error) => {
            filtered.refused = Some(format!("the patch cannot be read: {error}"));
            return Ok(filtered);
        }
    };
    let hidden: BTreeSet<&str> = tests
        .iter()
        .map(|change| change.path.as_str())
        .chain(test_files.iter().map(String::as_str))
        .collect();
    let pytest = task.install_config.log_parser == "pytest";
    for change in changes {
        let name = change.path.rsplit('/').next().unwrap_or_default();
        let reason = if hidden.contains(change.path.as_str()) {
            Some("a file of the hidden tests")
        } else if pytest && PYTEST_FILES.contains(&name) {
            Some("configuration of the tests")
        } else {
            None
        };
        match reason {
            Some(reason) => filtered.dropped.push(format!("{}: {reason}", change.path)),
            None => filtered.changes.push(change),
        }
    }
    Ok(filtered)
}

/// The patch without the files that cannot be said in a diff or may not be touched. Each file of
/// a git diff starts with a `diff --git` line, which no line of a hunk can be.
fn readable(patch: &str, dropped: &mut Vec<String>) -> String {
    let mut sections: Vec<String> = vec![String::new()];
    for line in patch.split_inclusive('\n') {
        if line.starts_with("diff --git ") {
            sections.push(String::new());
        }
        if let Some(section) = sections.last_mut() {
            section.push_str(line);
        }
    }
    let num_sections = sections.len();
    let mut text = String::new();
    for section in sections {
        let git = section.starts_with("diff --git ");
        let reason = if !git || num_sections == 1 {
            None
        } else if section
            .lines()
            .any(|line| line.starts_with("Binary files ") || line.starts_with("GIT binary patch"))
        {
            Some("a binary file".to_owned())
        } else {
            // A mode that is not a file's, or a path that leads out of the tree.
            Patch::parse(&section).err().map(|error| error.to_string())
        };
        match reason {
            None => text.push_str(&section),
            Some(reason) => {
                let head = section.lines().next().unwrap_or_default();
                let name = head.strip_prefix("diff --git ").unwrap_or(head);
                dropped.push(format!("{name}: {reason}"));
            }
        }
    }
    text
}
