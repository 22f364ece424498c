//! Which changes of an agent's patch count.
//!
//! A change that does not count is left out of the graded tree and listed, with its reason, in
//! [`Grade::dropped`](super::Grade::dropped). That is never held against the patch: an honest
//! agent's own tests, `conftest.py`, plots and caches cost it nothing.
//!
//! | left out | because |
//! |---|---|
//! | files that the hidden tests' patch touches, or that hold a test of `FAIL_TO_PASS` or `PASS_TO_PASS` | the tests are what the task says they are |
//! | with pytest: `conftest.py`, `pytest.ini`, `tox.ini`, `setup.cfg`, `pyproject.toml` … | they configure the tests |
//! | new `sitecustomize.py`, `usercustomize.py`, `*.pth`; `entry_points.txt` of new `*.egg-info` or `*.dist-info` | run, or register plugins, when an interpreter or pytest starts |
//! | new modules in the root or `src/` named like the test tool (`unittest`, `pytest`, `pluggy` …) | would stand in its place |
//! | symbolic links, submodules, modes that no file has | a diff of text cannot say them, and they lead elsewhere |
//! | binary files, compiled code (`*.pyc`, `__pycache__`) | their content is not in the patch, or goes unread by people |
//! | files of more than [`MAX_FILE_BYTES`] | no source file is so large |
//! | paths that are absolute, hold `..` or `.git` | lead out of the tree |
//!
//! A patch of more than [`MAX_COUNTED_FILES`] files, or one whose rest does not apply to the pristine
//! tree, is refused: unsolved, with the reason.

use std::collections::BTreeSet;

use patchwright_core::{FileChange, Patch, TaskInstance};

use super::pristine::{Pristine, ReadError};

/// Largest file of a patch that counts, in bytes.
pub const MAX_FILE_BYTES: usize = 4 << 20;
/// Most files of a patch.
pub const MAX_COUNTED_FILES: usize = 5_000;

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

/// Modules that run the tests.
const TEST_TOOLS: [&str; 8] =
    ["unittest", "pytest", "_pytest", "pluggy", "iniconfig", "packaging", "site", "py"];

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
///
/// # Errors
/// The pristine file that could not be read, and why.
pub(super) fn filter(
    task: &TaskInstance,
    pristine: &Pristine,
    tests: &[FileChange],
    test_files: &BTreeSet<String>,
    patch: &str,
) -> Result<Filtered, (String, ReadError)> {
    let mut filtered = Filtered { changes: Vec::new(), dropped: Vec::new(), refused: None };
    let text = readable(patch, &mut filtered.dropped);
    let parsed = match Patch::parse(&text) {
        Ok(patch) => patch,
        Err(error) => {
            filtered.refused = Some(format!("the patch cannot be read: {error}"));
            return Ok(filtered);
        }
    };
    let num_files = parsed.paths().len();
    if num_files > MAX_COUNTED_FILES {
        filtered.refused = Some(format!(
            "the patch touches {num_files} files; at most {MAX_COUNTED_FILES} may be"
        ));
        return Ok(filtered);
    }
    let changes = match pristine.apply(&parsed)? {
        Ok(changes) => changes,
        Err(error) => {
            filtered.refused = Some(format!("the patch does not apply: {error}"));
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
        let reason = if hidden.contains(change.path.as_str()) {
            Some("a file of the hidden tests")
        } else {
            reason_against(&change, pytest)
        };
        match reason {
            Some(reason) => filtered.dropped.push(format!("{}: {reason}", change.path)),
            None => filtered.changes.push(change),
        }
    }
    Ok(filtered)
}

/// Why a change does not count, whatever the hidden tests are.
fn reason_against(change: &FileChange, pytest: bool) -> Option<&'static str> {
    let path = change.path.as_str();
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
    let is_new = change.old.is_none();
    let metadata = [".egg-info", ".dist-info"].iter().any(|end| folder.ends_with(end));
    if pytest && PYTEST_FILES.contains(&name) {
        return Some("configuration of the tests");
    }
    if is_new && (["sitecustomize.py", "usercustomize.py"].contains(&name) || extension == "pth") {
        return Some("is run when an interpreter starts");
    }
    if is_new && metadata && name == "entry_points.txt" {
        return Some("registers plugins");
    }
    let module = path.strip_prefix("src/").unwrap_or(path).split('/').next().unwrap_or_default();
    let module = module.strip_suffix(".py").unwrap_or(module);
    if is_new && TEST_TOOLS.contains(&module) {
        return Some("stands in the place of the tool that runs the tests");
    }
    if ["pyc", "pyo"].contains(&extension) || path.split('/').any(|part| part == "__pycache__") {
        return Some("compiled code");
    }
    let new = change.new.as_deref().unwrap_or_default();
    if new.len() > MAX_FILE_BYTES {
        return Some("too large a file");
    }
    new.contains(&0).then_some("a binary file")
}

/// The patch without the files that cannot be said in a diff or may not be touched. Each file of
/// a git diff starts with a `diff --git` line, which no line of a hunk can be.
fn readable(patch: &str, dropped: &mut Vec<String>) -> String {
    let mut text = String::with_capacity(patch.len());
    for section in sections(patch) {
        match section.starts_with("diff --git ").then(|| unreadable(section)).flatten() {
            None => text.push_str(section),
            Some(reason) => {
                let head = section.lines().next().unwrap_or_default();
                let name = head.strip_prefix("diff --git ").unwrap_or(head);
                dropped.push(format!("{name}: {reason}"));
            }
        }
    }
    text
}

/// The patch cut before each `diff --git` line.
fn sections(patch: &str) -> Vec<&str> {
    let mut starts = vec![0];
    let mut at = 0;
    for line in patch.split_inclusive('\n') {
        if at > 0 && line.starts_with("diff --git ") {
            starts.push(at);
        }
        at += line.len();
    }
    starts.push(patch.len());
    starts.windows(2).map(|pair| &patch[pair[0]..pair[1]]).collect()
}

/// Why one file's section cannot be used.
fn unreadable(section: &str) -> Option<String> {
    for line in section.lines().take_while(|line| !line.starts_with("@@ ")) {
        if line.starts_with("Binary files ") || line.starts_with("GIT binary patch") {
            return Some("a binary file".to_owned());
        }
        let mode = ["new file mode ", "new mode ", "old mode ", "deleted file mode "]
            .iter()
            .find_map(|head| line.strip_prefix(head))
            .or_else(|| line.strip_prefix("index ")?.split_once(' ').map(|(_, mode)| mode));
        match mode.map(str::trim) {
            Some("120000") => return Some("a symbolic link".to_owned()),
            Some("160000") => return Some("a submodule".to_owned()),
            _ => {}
        }
    }
    // A mode that is not a file's, or a path that leads out of the tree.
    Patch::parse(section).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::{reason_against, sections, unreadable};
    use patchwright_core::FileChange;

    fn reason(path: &str, old: Option<&str>, pytest: bool) -> Option<&'static str> {
        let bytes = |text: &str| text.as_bytes().to_vec();
        let path = path.to_owned();
        let change =
            FileChange { path, old: old.map(bytes), new: Some(bytes("x\n")), executable: false };
        reason_against(&change, pytest)
    }

    #[test]
    fn what_configures_tests_is_left_out_and_what_looks_like_it_is_not() {
        for path in ["conftest.py", "a/conftest.py", "tox.ini", "setup.cfg", "pyproject.toml"] {
            assert!(reason(path, Some("y"), true).is_some(), "{path}");
            assert!(reason(path, None, false).is_none(), "{path}");
        }
        for path in [
            "sitecustomize.py",
            "src/usercustomize.py",
            "x.pth",
            "x.egg-info/entry_points.txt",
            "pytest.py",
            "unittest/__init__.py",
            "src/_pytest/x.py",
            "a/__pycache__/b.py",
            "b.pyc",
        ] {
            assert!(reason(path, None, false).is_some(), "{path}");
        }
        for path in ["my_conftest.py", "a/pytest_helper.py", "lib/unittest.py", "pth", "site.txt"] {
            assert!(reason(path, None, true).is_none(), "{path}");
        }
        assert!(reason("sitecustomize.py", Some("the project's own"), false).is_none());
    }

    #[test]
    fn sections_are_whole_and_their_faults_are_named() {
        let text = "mail\ndiff --git a/x b/x\n@@ -1 +1 @@\n-diff --git \n+y\ndiff --git a/y b/y\n";
        let parts = sections(text);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.concat(), text);
        let head = |lines: &str| unreadable(&format!("diff --git a/x b/x\n{lines}"));
        assert_eq!(head("new file mode 120000\n").as_deref(), Some("a symbolic link"));
        assert_eq!(head("index 1..2 160000\n").as_deref(), Some("a submodule"));
        assert_eq!(head("Binary files a/x and b/x differ\n").as_deref(), Some("a binary file"));
        assert_eq!(head("old mode 100644\nnew mode 100755\n"), None);
    }
}
