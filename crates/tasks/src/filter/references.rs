//! Names that hidden tests need and that an agent cannot know.
//!
//! A name is unknowable when all of this holds:
//! - the gold patch makes it: a `def`, `class` or assignment in an added line, or a new module;
//! - it was not there before, as far as the patches show: no removed or unchanged line of either
//!   patch has the word;
//! - an added line of the test patch imports it or reaches for it as an attribute, and the test
//!   patch does not make it itself;
//! - the issue (and, for SWE-rebench V2, the field `interface`, which is shown with the issue) does
//!   not have the word.

use std::collections::BTreeSet;

use patchwright_core::TaskInstance;
use serde_json::Value;

use super::diff::{Change, FileDiff, files};

/// The unknowable names, sorted.
pub(super) fn unknowable(instance: &TaskInstance) -> Vec<String> {
    let (patch, tests) = (files(&instance.patch), files(&instance.test_patch));
    let mut made = names_made(&patch);
    if made.is_empty() {
        return Vec::new();
    }
    for name in names_made(&tests) {
        made.remove(name);
    }
    let before = patch.iter().chain(&tests).flat_map(|file| &file.lines);
    for (change, line) in before {
        if *change != Change::Added {
            for word in words(line) {
                made.remove(word);
            }
        }
    }
    let used = names_used(&tests);
    let interface = instance.extra.get("interface").and_then(Value::as_str).unwrap_or_default();
    let told: BTreeSet<&str> = words(&instance.problem_statement).chain(words(interface)).collect();
    made.into_iter()
        .filter(|name| used.contains(name) && !told.contains(name))
        .map(str::to_owned)
        .collect()
}

fn python(path: &str) -> bool {
    std::path::Path::new(path).extension().is_some_and(|extension| extension == "py")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|word| !word.is_empty())
}

/// The identifier that a text begins with.
fn identifier(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let name = &text[..end];
    (!name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit())).then_some(name)
}

fn names_made<'a>(files: &[FileDiff<'a>]) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for file in files.iter().filter(|file| python(file.path)) {
        if file.new {
            let stem = std::path::Path::new(file.path).file_stem();
            names.extend(stem.and_then(|stem| stem.to_str()).filter(|stem| *stem != "__init__"));
        }
        let mut in_class = false;
        for (change, line) in file.lines.iter().filter(|(change, _)| *change != Change::Removed) {
            if !line.starts_with([' ', '\t']) && !line.is_empty() {
                in_class = line.starts_with("class ");
            }
            if *change == Change::Added {
                names.extend(name_made(line, in_class));
            }
        }
    }
    names
}

/// The name that a line makes for others: of a function, a class, an attribute, or, in a module
/// or a class, a variable.
fn name_made(line: &str, in_class: bool) -> Option<&str> {
    let code = line.trim_start();
    let code = code.strip_prefix("async ").unwrap_or(code);
    for keyword in ["def ", "class "] {
        if let Some(rest) = code.strip_prefix(keyword) {
            return identifier(rest.trim_start());
        }
    }
    let target = code.strip_prefix("self.").unwrap_or(code);
    let name = identifier(target)?;
    let rest = target[name.len()..].trim_start();
    let assigned = rest.starts_with('=') && !rest.starts_with("==");
    // A local variable is no one's to import.
    let indent = line.len() - line.trim_start().len();
    let visible = target.len() != code.len() || indent == 0 || (in_class && indent <= 4);
    (assigned && visible).then_some(name)
}

fn names_used<'a>(files: &[FileDiff<'a>]) -> BTreeSet<&'a str> {
    let mut names = BTreeSet::new();
    for file in files.iter().filter(|file| python(file.path)) {
        let mut in_import = false;
        for (change, line) in &file.lines {
            let code = line.trim_start();
            let begins = code.starts_with("from ") || code.starts_with("import ");
            if begins || in_import {
                if *change == Change::Added {
                    names.extend(words(code));
                }
                in_import = (in_import || code.contains('(')) && !code.contains(')');
            } else if *change == Change::Added {
                names.extend(code.split('.').skip(1).filter_map(identifier));
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use patchwright_core::TaskInstance;

    use super::unknowable;

    fn task(patch: &str, tests: &str, issue: &str) -> TaskInstance {
        let diff = |path: &str, lines: &str| {
            let count = |sign: char| lines.lines().filter(|line| !line.starts_with(sign)).count();
            let (old, new) = (count('+'), count('-'));
            format!("--- a/{path}\n+++ b/{path}\n@@ -1,{old} +1,{new} @@\n{lines}")
        };
        TaskInstance {
            patch: diff("pkg/mod.py", patch),
            test_patch: diff("tests/test_mod.py", tests),
            problem_statement: issue.to_owned(),
            ..TaskInstance::default()
        }
    }

    #[test]
    fn names_of_the_gold_patch_alone_are_unknowable() {
        let patch = "+def brand_new(x):\n+    local = 1\n+class Fresh:\n+    self.slot = 2\n";
        let names = |tests: &str, issue: &str| unknowable(&task(patch, tests, issue));
        assert_eq!(names("+from pkg.mod import brand_new\n", "It fails."), ["brand_new"]);
        assert_eq!(names("+from pkg.mod import (\n+    Fresh,\n+)\n", ""), ["Fresh"]);
        assert_eq!(names("+    assert thing.slot == 2\n", ""), ["slot"]);
        assert!(names("+from pkg.mod import brand_new\n", "add `brand_new()`").is_empty());
        assert!(names("+    assert old_name(3) == 1\n", "").is_empty());
        assert!(names("+    assert x.local\n", "").is_empty());
        assert!(names("+def brand_new():\n+    m.brand_new()\n", "").is_empty());
    }

    #[test]
    fn names_that_were_there_are_known() {
        let patch = "-def changed(a):\n+def changed(a, b):\n";
        assert!(unknowable(&task(patch, "+from pkg.mod import changed\n", "")).is_empty());
        let patch = "+def seen(a):\n";
        assert!(unknowable(&task(patch, " x = m.seen(1)\n+y = m.seen(2)\n", "")).is_empty());
    }

    #[test]
    fn the_interface_is_told() {
        let mut row = task("+def brand_new(x):\n", "+from pkg.mod import brand_new\n", "");
        assert_eq!(unknowable(&row).len(), 1);
        row.extra.insert("interface".into(), "def brand_new(x: int)".into());
        assert!(unknowable(&row).is_empty());
    }

    #[test]
    fn new_modules_count() {
        let row = TaskInstance {
            patch: "--- /dev/null\n+++ b/pkg/extra.py\n@@ -0,0 +1 @@\n+X = 1\n".into(),
            test_patch: "--- a/t.py\n+++ b/t.py\n@@ -0,0 +1 @@\n+import pkg.extra\n".into(),
            ..TaskInstance::default()
        };
        assert_eq!(unknowable(&row), ["extra"]);
    }
}
