//! Two releases as trees of files, and their difference parted into the fix and the tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use patchwright_core::FileChange;
use patchwright_core::patch::{Patch, render};

use crate::environment::{EnvironmentError, io};

/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Path to bytes of a source tree.
pub(crate) type Tree = BTreeMap<String, Vec<u8>>;

/// Reads a tree: regular files, without caches of Python. Links are not followed.
pub(crate) fn read_tree(root: &Path) -> Result<Tree, EnvironmentError> {
    let mut tree = Tree::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).map_err(|e| io("reading", &dir, e))? {
            let path = entry.map_err(|e| io("reading", &dir, e))?.path();
            let metadata = path.symlink_metadata().map_err(|e| io("reading", &path, e))?;
            if metadata.is_dir() {
                if path.file_name().is_some_and(|name| name != "__pycache__") {
                    dirs.push(path);
                }
                continue;
            }
            let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) else { continue };
            let is_cache = path.extension().is_some_and(|e| e == "pyc");
            if metadata.is_file() && metadata.len() <= MAX_FILE_BYTES && !is_cache {
                let bytes = std::fs::read(&path).map_err(|e| io("reading", &path, e))?;
                tree.insert(name.to_owned(), bytes);
            }
        }
    }
    Ok(tree)
}

/// Where the tests of a source tree are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TestPlaces {
    /// Test files and directories, the topmost ones.
    pub targets: Vec<String>,
}

impl TestPlaces {
    /// Directories called `test`, `tests` or `testing` that hold test files, and test files outside
    /// of such.
    pub fn find(tree: &Tree) -> Self {
        let mut targets = BTreeSet::new();
        for path in tree.keys().filter(|path| is_test_file(path)) {
            // Documentation and examples are not the package's suite.
            let top = path.split('/').next().unwrap_or_default();
            if path.contains('/') && OTHER_DIRS.contains(&top) {
                continue;
            }
            targets.insert(topmost_test_dir(path).unwrap_or(path).to_owned());
        }
        Self { targets: targets.into_iter().collect() }
    }

    /// Whether a file belongs to the tests: it is below one of the places, is a test file or
    /// configures pytest.
    pub fn has(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or_default();
        let below = |target: &String| {
            path.strip_prefix(target.as_str()).is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        self.targets.iter().any(below)
            || is_test_file(path)
            || matches!(name, "conftest.py" | "pytest.ini" | ".pytest.ini")
    }
}

/// Top directories that hold neither the package nor its tests.
const OTHER_DIRS: [&str; 10] = [
    "docs",
    "doc",
    "examples",
    "example",
    "benchmarks",
    "bench",
    "scripts",
    "tools",
    "build",
    "dist",
];

fn is_test_file(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let Some(stem) = name.strip_suffix(".py") else { return false };
    stem.starts_with("test_") || stem.ends_with("_test") || stem == "tests" || stem == "test"
}

fn topmost_test_dir(path: &str) -> Option<&str> {
    let mut end = 0;
    for part in path.split('/') {
        if matches!(part, "test" | "tests" | "testing") && end + part.len() < path.len() {
            return Some(&path[..end + part.len()]);
        }
        end += part.len() + 1;
    }
    None
}

/// The difference of two releases.
#[derive(Debug, Clone, Default)]
pub(crate) struct Difference {
    /// Changes of the package's own files: the gold patch.
    pub gold: Vec<FileChange>,
    /// Changes of the tests.
    pub tests: Vec<FileChange>,
    /// Files of either kind that are no text, and so not in a patch.
    pub num_binary: usize,
}

/// Parts the difference of `old` and `new`. What is neither the package nor its tests
/// (documentation, metadata, packaging, configuration) is in neither.
pub(crate) fn difference(old: &Tree, new: &Tree, tests: &TestPlaces) -> Difference {
    let mut found = Difference::default();
    let packages = package_roots(old, new);
    let paths: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for path in paths {
        let (before, after) = (old.get(path), new.get(path));
        if before == after {
            continue;
        }
        let is_test = tests.has(path);
        if !is_test && !is_source(path, &packages) {
            continue;
        }
        let is_text = |bytes: Option<&Vec<u8>>| {
            bytes.is_none_or(|b| !b.contains(&0) && std::str::from_utf8(b).is_ok())
        };
        if !is_text(before) || !is_text(after) {
            found.num_binary += 1;
            continue;
        }
        let (old, new) = (before.cloned(), after.cloned());
        let change = FileChange { path: path.clone(), old, new, executable: false };
        if is_test { found.tests.push(change) } else { found.gold.push(change) }
    }
    found
}

/// The directories of importable packages: `pkg` or `src/pkg`.
pub(crate) fn package_roots(old: &Tree, new: &Tree) -> BTreeSet<String> {
    let mut roots = BTreeSet::new();
    for path in old.keys().chain(new.keys()) {
        let parts: Vec<&str> = path.split('/').collect();
        let inits = match parts.as_slice() {
            ["src", name, "__init__.py"] => Some(format!("src/{name}")),
            [name, "__init__.py"] if *name != "src" => Some((*name).to_owned()),
            _ => None,
        };
        roots.extend(inits);
    }
    roots
}

/// Whether a file is the package's own.
pub(crate) fn is_source(path: &str, packages: &BTreeSet<String>) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    if parts.iter().any(|part| part.ends_with(".egg-info")) {
        return false;
    }
    match parts.as_slice() {
        // A package that is one module.
        [file] | ["src", file] => {
            file.strip_suffix(".py").is_some()
                && !matches!(*file, "setup.py" | "noxfile.py" | "tasks.py" | "fabfile.py")
        }
        ["src", name, ..] => packages.contains(&format!("src/{name}")),
        [name, ..] => packages.contains(*name) && !OTHER_DIRS.contains(name),
        [] => false,
    }
}

/// A patch's text, checked: it gives the same changes again when it is applied to `old`.
pub(crate) fn checked_patch(changes: &[FileChange], old: &Tree) -> Result<String, String> {
    let text = render(changes);
    let applied = Patch::parse(&text)
        .and_then(|patch| patch.apply(&mut |path| old.get(path).cloned()))
        .map_err(|e| format!("its difference cannot be said as a patch: {e}"))?;
    let same = applied.len() == changes.len()
        && applied.iter().zip(changes).all(|(a, b)| a.path == b.path && a.new == b.new);
    if same { Ok(text) } else { Err("its difference cannot be said as a patch".to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::{TestPlaces, Tree, checked_patch, difference};

    fn tree(files: &[(&str, &str)]) -> Tree {
        files.iter().map(|(path, text)| (path.to_string(), text.as_bytes().to_vec())).collect()
    }

    #[test]
    fn tests_are_found_wherever_they_are() {
        let find = |paths: &[&str]| {
            let files: Vec<_> = paths.iter().map(|path| (*path, "")).collect();
            TestPlaces::find(&tree(&files)).targets
        };
        assert_eq!(find(&["tests/test_a.py", "tests/b/test_c.py", "a.py"]), ["tests"]);
        assert_eq!(find(&["src/x/tests/test_a.py"]), ["src/x/tests"]);
        assert_eq!(find(&["x/test_tools.py", "test/test_a.py"]), ["test", "x/test_tools.py"]);
        assert_eq!(find(&["docs/test_a.py", "x/testing.py", "tests/data.txt"]), [""; 0]);
    }

    #[test]
    fn a_difference_is_parted_into_fix_and_tests() {
        let old = tree(&[
            ("p/__init__.py", "x = 1\n"),
            ("p/data.txt", "one"),
            ("setup.py", "1\n"),
            ("docs/conf.py", "1\n"),
            ("tests/test_a.py", "1\n"),
            ("tests/gone.ics", "1\r\n"),
            ("p.egg-info/PKG-INFO", "1\n"),
            ("CHANGES", "1\n"),
        ]);
        let mut new = tree(&[
            ("p/__init__.py", "x = 2\n"),
            ("p/data.txt", "two"),
            ("setup.py", "2\n"),
            ("docs/conf.py", "2\n"),
            ("tests/test_a.py", "2\n"),
            ("conftest.py", "2\n"),
            ("p.egg-info/PKG-INFO", "2\n"),
            ("CHANGES", "2\n"),
        ]);
        new.insert("tests/picture.png".to_owned(), vec![0, 255]);
        let found = difference(&old, &new, &TestPlaces::find(&new));
        let paths = |changes: &[patchwright_core::FileChange]| {
            changes.iter().map(|change| change.path.clone()).collect::<Vec<_>>()
        };
        assert_eq!(paths(&found.gold), ["p/__init__.py", "p/data.txt"]);
        assert_eq!(paths(&found.tests), ["conftest.py", "tests/gone.ics", "tests/test_a.py"]);
        assert_eq!(found.num_binary, 1);
        for changes in [&found.gold, &found.tests] {
            assert!(checked_patch(changes, &old).unwrap().contains("diff --git"));
        }
    }
}
