//! The hidden tests of a repository, written from its examples.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::{EmbeddedRepo, Example};

/// Hidden tests and which example each is.
#[derive(Debug, Clone)]
pub(super) struct HiddenTests {
    /// Path to text of the test files.
    pub files: BTreeMap<String, String>,
    /// Test ids, such as `test_amber.TestMaple.test_0`, in the order of the examples.
    pub ids: Vec<String>,
}

impl HiddenTests {
    /// Names of the test modules.
    pub fn modules(&self) -> Vec<String> {
        self.files.keys().map(|path| path.trim_end_matches(".py").to_owned()).collect()
    }
}

/// One file a module, one class a function, one method a call.
pub(super) fn write(repo: &EmbeddedRepo) -> HiddenTests {
    let mut modules: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, example) in repo.examples.iter().enumerate() {
        modules.entry(&example.module).or_default().push(index);
    }
    let mut tests =
        HiddenTests { files: BTreeMap::new(), ids: vec![String::new(); repo.examples.len()] };
    for (module, indices) in modules {
        let mut stem = format!("test_{}", module.replace('.', "_"));
        while repo.files.contains_key(&format!("{stem}.py"))
            || tests.files.contains_key(&format!("{stem}.py"))
        {
            stem.push_str("_hidden");
        }
        let mut text = format!("import unittest\n\nimport {module}\n");
        for (class, members) in classes(&repo.examples, &indices) {
            let _ = writeln!(text, "\n\nclass {class}(unittest.TestCase):");
            for (number, index) in members.into_iter().enumerate() {
                let Example { function, args, expected, .. } = &repo.examples[index];
                let gap = if number > 0 { "\n" } else { "" };
                let _ = write!(
                    text,
                    "{gap}    def test_{number}(self):\n        \
                     self.assertEqual({module}.{function}({args}), {expected})\n"
                );
                tests.ids[index] = format!("{stem}.{class}.test_{number}");
            }
        }
        tests.files.insert(format!("{stem}.py"), text);
    }
    tests
}

/// Class names with the examples of their function, functions in order of appearance.
fn classes(examples: &[Example], indices: &[usize]) -> Vec<(String, Vec<usize>)> {
    let mut functions: Vec<(&str, Vec<usize>)> = Vec::new();
    for index in indices {
        let function = examples[*index].function.as_str();
        match functions.iter_mut().find(|(name, _)| *name == function) {
            Some((_, members)) => members.push(*index),
            None => functions.push((function, vec![*index])),
        }
    }
    let mut taken = BTreeSet::new();
    let mut class_of = |function: &str| {
        let mut class = camel(function);
        while !taken.insert(class.clone()) {
            class.push('X');
        }
        class
    };
    functions.into_iter().map(|(function, members)| (class_of(function), members)).collect()
}

/// `TestParseLine` of `parse_line`.
fn camel(function: &str) -> String {
    let mut name = "Test".to_owned();
    for word in function.split(|c: char| !c.is_alphanumeric()) {
        let mut chars = word.chars();
        name.extend(chars.next().into_iter().flat_map(char::to_uppercase));
        name.push_str(chars.as_str());
    }
    name
}
