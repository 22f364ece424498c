//! Writes the issue of an injected bug from what fails: calls, observed and expected values.
//!
//! Never the fix, the operator or the line of the bug: it says no more than a user could see.

use patchwright_core::stream;
use rand::seq::IndexedRandom;
use serde::{Deserialize, Serialize};

/// Most failing calls in one issue.
pub const MAX_EXAMPLES: usize = 2;

/// What a call did instead of what it should.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Observed {
    /// It returned a value with this `repr`.
    Returned(String),
    /// It raised this exception (name of its class).
    Raised(String),
}

/// A call that shows the bug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailingExample {
    /// The module, as it is imported.
    pub module: String,
    /// The function in it.
    pub function: String,
    /// Python source of the arguments.
    pub args: String,
    /// What happened.
    pub observed: Observed,
    /// Python `repr` of what should have been returned.
    pub expected: String,
}

impl FailingExample {
    /// The call as Python source.
    pub fn call(&self) -> String {
        format!("{}.{}({})", self.module, self.function, self.args)
    }
}

/// How an issue is worded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IssueStyle {
    /// A title, steps to reproduce, observed and expected values, in one of several wordings.
    #[default]
    Full,
    /// One line a call, for the smallest models:
    /// `amber.maple([3, 1, 4], 2) returned [3, 4], expected [6, 8]`.
    Compact,
}

/// The issue's text, from at most [`MAX_EXAMPLES`] of the examples. The wording is drawn from
/// `seed`; the same arguments give the same text.
pub fn write(style: IssueStyle, examples: &[FailingExample], seed: u64) -> String {
    let examples = &examples[..examples.len().min(MAX_EXAMPLES)];
    match style {
        IssueStyle::Compact => examples.iter().map(compact).collect::<Vec<_>>().join("\n"),
        IssueStyle::Full => full(examples, seed),
    }
}

fn compact(example: &FailingExample) -> String {
    let call = example.call();
    let expected = &example.expected;
    match &example.observed {
        Observed::Returned(value) => format!("{call} returned {value}, expected {expected}"),
        Observed::Raised(name) => format!("{call} raised {name}, expected {expected}"),
    }
}

const OPENINGS: [&str; 5] = [
    "I ran into this while using `{module}`.",
    "This came up after the latest update of our code that calls `{function}`.",
    "`{function}` does not do what its description says.",
    "Found this when I checked some results by hand.",
    "Not sure since when, but `{module}.{function}` gives me something I did not expect.",
];
const STEPS: [&str; 4] = ["Steps to reproduce:", "To reproduce:", "Minimal example:", "Run this:"];
const OBSERVED: [&str; 4] = ["Actual result:", "What happens:", "Observed:", "I get:"];
const EXPECTED: [&str; 4] =
    ["Expected result:", "What should happen:", "Expected:", "It should be:"];
const TITLES_VALUE: [&str; 4] = [
    "`{function}` returns a wrong result",
    "Wrong result from `{module}.{function}`",
    "Unexpected value from `{function}()`",
    "{module}: `{function}` is off for some inputs",
];
const TITLES_ERROR: [&str; 3] = [
    "`{function}` raises {error}",
    "{error} in `{module}.{function}`",
    "Unexpected {error} when calling `{function}()`",
];

fn full(examples: &[FailingExample], seed: u64) -> String {
    let Some(first) = examples.first() else { return String::new() };
    let mut rng = stream(seed, &["issue"]);
    let mut draw = |choices: &[&'static str]| choices.choose(&mut rng).copied().unwrap_or_default();
    let (title, error) = match &first.observed {
        Observed::Returned(_) => (draw(&TITLES_VALUE), ""),
        Observed::Raised(name) => (draw(&TITLES_ERROR), name.as_str()),
    };
    let fill = |template: &str| {
        template
            .replace("{module}", &first.module)
            .replace("{function}", &first.function)
            .replace("{error}", error)
    };
    let mut modules: Vec<&str> = examples.iter().map(|e| e.module.as_str()).collect();
    modules.dedup();
    let imports: Vec<String> = modules.iter().map(|module| format!("import {module}\n")).collect();
    let calls: Vec<String> = examples.iter().map(|e| format!("print({})\n", e.call())).collect();
    let observed: Vec<String> = examples.iter().map(|e| shown(&e.observed)).collect();
    let expected: Vec<String> = examples.iter().map(|e| format!("{}\n", e.expected)).collect();
    format!(
        "{}\n\n{}\n\n{}\n\n```python\n{}\n{}```\n\n{}\n\n```\n{}```\n\n{}\n\n```\n{}```\n",
        fill(title),
        fill(draw(&OPENINGS)),
        draw(&STEPS),
        imports.concat(),
        calls.concat(),
        draw(&OBSERVED),
        observed.concat(),
        draw(&EXPECTED),
        expected.concat(),
    )
}

fn shown(observed: &Observed) -> String {
    match observed {
        Observed::Returned(value) => format!("{value}\n"),
        Observed::Raised(name) => format!("{name} is raised\n"),
    }
}

/// A check of a package's own that fails: what it does, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailingCheck {
    /// The statement that fails, as Python source; may be empty.
    pub statement: String,
    /// Exception and message.
    pub message: String,
}

/// Lines of one message that an issue shows, and the longest line.
const MAX_MESSAGE_LINES: usize = 8;
const MAX_LINE_CHARS: usize = 200;

const CHECK_TITLES_ERROR: [&str; 3] = [
    "{package}: unexpected {error}",
    "{error} since the last change",
    "{package} {version} raises {error} where it should not",
];
const CHECK_TITLES_VALUE: [&str; 3] = [
    "{package} gives a wrong result",
    "{package} {version}: result is not what it should be",
    "Wrong behaviour of {package} {version}",
];
const CHECK_OPENINGS: [&str; 3] = [
    "This used to work, and does not with the sources as they are now.",
    "I see this with the current sources of {package} {version}.",
    "Something in {package} broke; I have not found out where.",
];

/// The issue of a package whose checks fail, from at most [`MAX_EXAMPLES`] different ones. It names
/// no test; the wording is drawn from `seed`.
pub fn write_checks(package: &str, version: &str, checks: &[FailingCheck], seed: u64) -> String {
    let mut rng = stream(seed, &["issue"]);
    let mut draw = |choices: &[&'static str]| choices.choose(&mut rng).copied().unwrap_or_default();
    let mut shown: Vec<&FailingCheck> = Vec::new();
    for check in checks {
        if !check.message.is_empty() && !shown.contains(&check) && shown.len() < MAX_EXAMPLES {
            shown.push(check);
        }
    }
    let error = shown.first().map(|check| exception(&check.message)).unwrap_or_default();
    let title = match error {
        "" | "AssertionError" | "assert" => draw(&CHECK_TITLES_VALUE),
        _ => draw(&CHECK_TITLES_ERROR),
    };
    let fill = |template: &str| {
        template
            .replace("{package}", package)
            .replace("{version}", version)
            .replace("{error}", error)
    };
    let mut text = format!("{}\n\n{}\n", fill(title), fill(draw(&CHECK_OPENINGS)));
    for check in shown {
        if !check.statement.is_empty() {
            text.push_str(&["\nThis fails:\n\n```python\n", &check.statement, "\n```\n"].concat());
        }
        let lines: Vec<String> = check
            .message
            .lines()
            .filter(|line| !line.trim().is_empty())
            .take(MAX_MESSAGE_LINES)
            .map(|line| line.chars().take(MAX_LINE_CHARS).collect())
            .collect();
        text.push_str(&["\nwith\n\n```\n", &lines.join("\n"), "\n```\n"].concat());
    }
    text
}

/// The name of the exception that a message starts with, if it does.
fn exception(message: &str) -> &str {
    let first = message.lines().next().unwrap_or_default();
    let name = first.split([':', ' ']).next().unwrap_or_default();
    let name = name.rsplit('.').next().unwrap_or_default();
    let plain = name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if plain && name.starts_with(char::is_uppercase) { name } else { "" }
}

#[cfg(test)]
mod tests {
    use super::{FailingCheck, write_checks};
    use super::{FailingExample, IssueStyle, Observed, write};

    fn example(observed: Observed) -> FailingExample {
        FailingExample {
            module: "amber".to_owned(),
            function: "maple".to_owned(),
            args: "[3, 1, 4], 2".to_owned(),
            observed,
            expected: "[6, 8]".to_owned(),
        }
    }

    #[test]
    fn compact_is_one_line_a_call() {
        let wrong = example(Observed::Returned("[3, 4]".to_owned()));
        let raises = example(Observed::Raised("ZeroDivisionError".to_owned()));
        assert_eq!(
            write(IssueStyle::Compact, &[wrong.clone(), raises, wrong], 0),
            "amber.maple([3, 1, 4], 2) returned [3, 4], expected [6, 8]\n\
             amber.maple([3, 1, 4], 2) raised ZeroDivisionError, expected [6, 8]"
        );
    }

    #[test]
    fn full_has_a_title_and_a_block_to_run() {
        let wrong = example(Observed::Returned("[3, 4]".to_owned()));
        let mut texts = std::collections::BTreeSet::new();
        for seed in 0..40 {
            let text = write(IssueStyle::Full, std::slice::from_ref(&wrong), seed);
            assert_eq!(text, write(IssueStyle::Full, std::slice::from_ref(&wrong), seed));
            assert!(
                text.contains("```python\nimport amber\n\nprint(amber.maple([3, 1, 4], 2))\n```")
            );
            assert!(text.contains("[3, 4]\n") && text.contains("[6, 8]\n"), "{text}");
            assert!(!text.contains('{'), "a placeholder is left: {text}");
            assert!(text.lines().next().unwrap().contains("maple"), "{text}");
            texts.insert(text);
        }
        assert!(texts.len() > 20, "wordings vary: {}", texts.len());
        let raises = example(Observed::Raised("ZeroDivisionError".to_owned()));
        let text = write(IssueStyle::Full, &[raises, wrong], 3);
        assert!(text.lines().next().unwrap().contains("ZeroDivisionError"), "{text}");
        assert_eq!(text.matches("import amber").count(), 1);
    }

    #[test]
    fn checks_are_shown_without_their_tests() {
        let check = |statement: &str, message: &str| FailingCheck {
            statement: statement.to_owned(),
            message: message.to_owned(),
        };
        let wrong = check("assert f(1) == 2", "assert 3 == 2\n +  where 3 = f(1)");
        let raises = check("", "p.errors.ParseError: at 3");
        for seed in 0..10 {
            let text =
                write_checks("p", "1.0", &[wrong.clone(), wrong.clone(), raises.clone()], seed);
            assert!(
                text.contains("```python\nassert f(1) == 2\n```\n\nwith\n\n```\nassert 3 == 2")
            );
            assert_eq!(text.matches("assert f(1) == 2").count(), 1, "{text}");
            assert!(text.contains("p.errors.ParseError: at 3") && !text.contains('{'), "{text}");
            let text = write_checks("p", "1.0", std::slice::from_ref(&raises), seed);
            assert!(text.lines().next().unwrap().contains("ParseError"), "{text}");
        }
    }
}
