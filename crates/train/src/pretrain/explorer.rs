//! The random explorer: a sampler that acts, validly and arbitrarily, and never looks at outcomes.
//!
//! Its sessions teach the base policy the language of commands: opening files, editing lines,
//! running the reported call, submitting. Which line it edits and what it writes there is drawn
//! from what is visible (lines, names, operators), whatever the issue's cause may be. Nothing is
//! filtered: what fails stays in.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_agent::Tokenizer;
use patchwright_core::{
    Completion, FinishReason, PolicyVersion, SampleRequest, Sampler, SamplerError, TaskInstance,
    stream,
};
use patchwright_tasks::generated::{WORDS, random_statement, restated};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::documents::is_module;

/// How often the explorer does what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplorerRates {
    /// Opens the module that the issue names; else any.
    pub open_named: f64,
    /// Runs the issue's call before the first edit.
    pub run_first: f64,
    /// Runs the issue's call after an edit.
    pub run_after_edit: f64,
    /// Opens the file anew after an edit.
    pub reopen_after_edit: f64,
    /// Edits once more, instead of submitting.
    pub edit_again: f64,
    /// A further edit puts back what the last one replaced.
    pub undo: f64,
    /// A further edit changes the same line as the last one.
    pub same_line: f64,
    /// Edits the function that the issue names; else any line of the file.
    pub edit_named: f64,
    /// Weights of the kinds of edit: one token of the line changed, the line as it is, a random
    /// statement instead of it, a random statement beside it, the line deleted, a statement that a
    /// random phrase of the function's comment asks for instead of it.
    pub edit_weights: [f64; 6],
}

impl Default for ExplorerRates {
    fn default() -> Self {
        Self {
            open_named: 0.97,
            run_first: 0.02,
            run_after_edit: 0.15,
            reopen_after_edit: 0.03,
            edit_again: 0.15,
            undo: 0.3,
            same_line: 0.4,
            edit_named: 0.95,
            edit_weights: [0.36, 0.08, 0.02, 0.03, 0.02, 0.49],
        }
    }
}

/// What the explorer did last.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Did {
    Nothing,
    Opened,
    RanFirst,
    Edited,
    RanAfterEdit,
    Reopened,
}

/// One session: the explorer's own copy of the files, and where it stands.
struct Explorer {
    rng: ChaCha8Rng,
    rates: ExplorerRates,
    files: BTreeMap<String, Vec<String>>,
    /// `module.function` and the whole call of the issue.
    call: Option<IssueCall>,
    open: String,
    last_edit: Option<(usize, Vec<String>, usize)>,
    did: Did,
}

#[derive(Clone)]
struct IssueCall {
    module: String,
    function: String,
    text: String,
}

/// The call at the start of a compact issue: `amber.maple([3, 1], 2) returned …`.
fn issue_call(issue: &str) -> Option<IssueCall> {
    let end = issue.find(") returned").or_else(|| issue.find(") raised"))?;
    let text = &issue[..=end];
    let (module, rest) = text.split_once('.')?;
    let (function, _) = rest.split_once('(')?;
    Some(IssueCall {
        module: module.to_owned(),
        function: function.to_owned(),
        text: text.to_owned(),
    })
}

impl Explorer {
    fn new(task: &TaskInstance, rates: ExplorerRates, seed: u64) -> Self {
        let files = task
            .files
            .iter()
            .filter(|(path, _)| is_module(path))
            .map(|(path, text)| (path.clone(), text.lines().map(str::to_owned).collect()))
            .collect();
        Self {
            rng: stream(seed, &["explorer"]),
            rates,
            files,
            call: issue_call(&task.problem_statement),
            open: String::new(),
            last_edit: None,
            did: Did::Nothing,
        }
    }

    /// The next command.
    fn act(&mut self) -> String {
        match self.did {
            Did::Nothing => self.open_some(),
            Did::Opened if self.rng.random_bool(self.rates.run_first) => self.run(Did::RanFirst),
            Did::Opened | Did::RanFirst => self.edit(),
            Did::Edited if self.rng.random_bool(self.rates.run_after_edit) => {
                self.run(Did::RanAfterEdit)
            }
            Did::Edited if self.rng.random_bool(self.rates.reopen_after_edit) => {
                self.did = Did::Reopened;
                format!("open {}", self.open)
            }
            _ if self.rng.random_bool(self.rates.edit_again) => self.edit(),
            _ => "submit".to_owned(),
        }
    }

    fn open_some(&mut self) -> String {
        let named = self.call.as_ref().map(|call| format!("{}.py", call.module));
        self.open = match named {
            Some(path)
                if self.files.contains_key(&path)
                    && self.rng.random_bool(self.rates.open_named) =>
            {
                path
            }
            _ => {
                let paths: Vec<&String> = self.files.keys().collect();
                paths.choose(&mut self.rng).map(|p| (*p).clone()).unwrap_or_default()
            }
        };
        self.did = Did::Opened;
        format!("open {}", self.open)
    }

    fn run(&mut self, did: Did) -> String {
        self.did = did;
        match &self.call {
            Some(call) => {
                format!("python3 <<'EOF'\nimport {}\nprint({})\nEOF", call.module, call.text)
            }
            None => format!("open {}", self.open),
        }
    }

    fn edit(&mut self) -> String {
        self.did = Did::Edited;
        let rates = self.rates.clone();
        if let Some((line, before, after)) = self.last_edit.clone()
            && self.rng.random_bool(rates.undo)
        {
            return self.write_lines(line, line + after - 1, &before);
        }
        let Some(line) = self.pick_line() else {
            return "submit".to_owned();
        };
        let old = self.files[&self.open][line].clone();
        let body = self.new_lines(line, &old);
        self.write_lines(line, line, &body)
    }

    /// A line of a function's body (from 0); mostly of the function that the issue names.
    fn pick_line(&mut self) -> Option<usize> {
        if let Some((line, _, _)) = self.last_edit
            && self.rng.random_bool(self.rates.same_line)
            && line < self.files[&self.open].len()
        {
            return Some(line);
        }
        let lines = self.files.get(&self.open)?;
        let all: Vec<usize> = (0..lines.len()).filter(|i| lines[*i].starts_with("    ")).collect();
        let named: Vec<usize> =
            self.call.as_ref().map(|call| body_of(lines, &call.function)).unwrap_or_default();
        if !named.is_empty() && self.rng.random_bool(self.rates.edit_named) {
            named.choose(&mut self.rng).copied()
        } else {
            all.choose(&mut self.rng).copied()
        }
    }

    fn new_lines(&mut self, line: usize, old: &str) -> Vec<String> {
        let names = visible_names(&self.files[&self.open], line);
        let indent = old.len() - old.trim_start().len();
        let mut statement = || {
            let pad = " ".repeat(indent);
            random_statement(&mut self.rng, &names)
                .into_iter()
                .map(|text| format!("{pad}{text}"))
                .collect::<Vec<_>>()
        };
        let weights = &self.rates.edit_weights;
        let kind = {
            let fresh = statement();
            let mut draw = self.rng.random_range(0.0..weights.iter().sum());
            let index = weights
                .iter()
                .position(|w| {
                    draw -= w;
                    draw < 0.0
                })
                .unwrap_or(0);
            (index, fresh)
        };
        match kind {
            (0, _) => vec![perturb(&mut self.rng, old, &names)],
            (2, fresh) => fresh,
            (3, fresh) => {
                let old = vec![old.to_owned()];
                if self.rng.random_bool(0.5) {
                    [old, fresh].concat()
                } else {
                    [fresh, old].concat()
                }
            }
            (4, _) => Vec::new(),
            (5, _) => {
                let comment = comment_above(&self.files[&self.open], line);
                let restated = comment.and_then(|c| restated(&mut self.rng, c, old));
                vec![restated.unwrap_or_else(|| perturb(&mut self.rng, old, &names))]
            }
            _ => vec![old.to_owned()],
        }
    }

    /// Replaces lines `first..=last` (from 0) in the own copy, and says so.
    fn write_lines(&mut self, first: usize, last: usize, body: &[String]) -> String {
        let lines = self.files.entry(self.open.clone()).or_default();
        let last = last.min(lines.len().saturating_sub(1));
        let before: Vec<String> = lines.splice(first..=last, body.iter().cloned()).collect();
        self.last_edit = if body.is_empty() { None } else { Some((first, before, body.len())) };
        let mut text = format!("edit {}:{} <<'EOF'\n", first + 1, last + 1);
        for line in body {
            text.push_str(line);
            text.push('\n');
        }
        text + "EOF"
    }
}

/// Indices of the indented lines below `def NAME(`.
fn body_of(lines: &[String], name: &str) -> Vec<usize> {
    let head = format!("def {name}(");
    let Some(def) = lines.iter().position(|line| line.starts_with(&head)) else {
        return Vec::new();
    };
    (def + 1..lines.len()).take_while(|i| lines[*i].starts_with("    ")).collect()
}

/// The comment above the function around `line`.
fn comment_above(lines: &[String], line: usize) -> Option<&str> {
    let def = (0..=line.min(lines.len().checked_sub(1)?))
        .rev()
        .find(|i| lines[*i].starts_with("def "))?;
    lines.get(def.checked_sub(1)?).map(String::as_str).filter(|text| text.starts_with('#'))
}

/// Names of the word list in the function around `line`.
fn visible_names(lines: &[String], line: usize) -> Vec<String> {
    let start = (0..=line.min(lines.len().saturating_sub(1)))
        .rev()
        .find(|i| lines[*i].starts_with("def "))
        .unwrap_or(0);
    let end =
        (start + 1..lines.len()).find(|i| !lines[*i].starts_with("    ")).unwrap_or(lines.len());
    let text = lines[start..end].join("\n");
    // The function's own name is visible, but no value.
    let names: BTreeSet<&str> =
        pieces(&text).into_iter().skip(4).filter(|piece| WORDS.contains(piece)).collect();
    names.into_iter().map(str::to_owned).collect()
}

/// Cuts text into words, numbers, operators, and white space; joined, they are the text again.
fn pieces(text: &str) -> Vec<&str> {
    let class = |c: char| match c {
        c if c.is_alphanumeric() || c == '_' => 0,
        ' ' => 1,
        '<' | '>' | '=' | '!' | '/' | '*' => 2,
        _ => 3,
    };
    let mut out = Vec::new();
    let mut start = 0;
    let mut previous = None;
    for (i, c) in text.char_indices() {
        let this = class(c);
        if i > start && (previous != Some(this) || this == 3) {
            out.push(&text[start..i]);
            start = i;
        }
        previous = Some(this);
    }
    if start < text.len() {
        out.push(&text[start..]);
    }
    out
}

const COMPARISONS: [&str; 4] = [">", "<", ">=", "<="];
const ARITHMETIC: [&str; 3] = ["+", "-", "*"];
const FOLDS: [&str; 4] = ["sum", "len", "max", "min"];

/// What a piece may be changed into.
fn alternatives(piece: &str, names: &[String]) -> Vec<String> {
    for class in [&COMPARISONS[..], &ARITHMETIC[..], &FOLDS[..]] {
        if class.contains(&piece) {
            return class.iter().filter(|p| **p != piece).map(|p| (*p).to_owned()).collect();
        }
    }
    if let Ok(number) = piece.parse::<i64>() {
        return vec![(number - 1).max(0).to_string(), (number + 1).to_string()];
    }
    if WORDS.contains(&piece) {
        return names.iter().filter(|n| *n != piece).cloned().collect();
    }
    match piece {
        "if" => vec!["if not".to_owned()],
        "not" => vec![String::new()],
        _ => Vec::new(),
    }
}

/// The line with one of its pieces changed.
fn perturb(rng: &mut ChaCha8Rng, line: &str, names: &[String]) -> String {
    let parts = pieces(line);
    // What stands before `=` is where a value goes: changing it is possible, but dull.
    let start = parts.iter().position(|p| *p == "=").map_or(0, |i| i + 1);
    let open: Vec<usize> =
        (start..parts.len()).filter(|i| !alternatives(parts[*i], names).is_empty()).collect();
    let Some(&at) = open.choose(rng) else {
        return line.to_owned();
    };
    let choices = alternatives(parts[at], names);
    let choice = choices.choose(rng).cloned().unwrap_or_default();
    let mut out: Vec<&str> = parts.clone();
    out[at] = &choice;
    out.concat().replace("  if", " if").replace("if  ", "if ")
}

/// Serves explorer sessions through the sampler's seam, so that they run in the same agent loop
/// and sandboxes as a policy's.
pub struct ExplorerSampler {
    tokenizer: Arc<Tokenizer>,
    end: u32,
    rates: ExplorerRates,
    sessions: Mutex<HashMap<u64, Explorer>>,
}

impl ExplorerSampler {
    /// `end` is the token that ends a turn.
    pub fn new(tokenizer: Arc<Tokenizer>, end: u32, rates: ExplorerRates) -> Self {
        Self { tokenizer, end, rates, sessions: Mutex::new(HashMap::new()) }
    }

    /// Starts the session that will work on `task`.
    pub fn begin(&self, session: u64, task: &TaskInstance, seed: u64) {
        let explorer = Explorer::new(task, self.rates.clone(), seed);
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).insert(session, explorer);
    }
}

impl Sampler for ExplorerSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let explorer = sessions.get_mut(&request.session).ok_or_else(|| {
            SamplerError::BadRequest(format!("no explorer began session {}", request.session))
        })?;
        let mut tokens = self.tokenizer.encode_text(&explorer.act());
        tokens.truncate(request.max_tokens.saturating_sub(1));
        tokens.push(self.end);
        Ok(Completion {
            logprobs: vec![0.0; tokens.len()],
            tokens,
            finish_reason: FinishReason::Stop,
            policy_version: PolicyVersion(0),
            ..Completion::default()
        })
    }

    fn end_session(&self, session: u64) {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }

    fn max_context(&self) -> usize {
        usize::MAX
    }
}

#[cfg(test)]
mod tests {
    use super::{perturb, pieces};
    use patchwright_core::stream;
    use proptest::prelude::*;

    #[test]
    fn a_perturbed_line_differs_in_one_place() {
        let mut rng = stream(0, &["test"]);
        let names = vec!["amber".to_owned(), "lemon".to_owned()];
        for _ in 0..100 {
            let line = perturb(&mut rng, "    amber = lemon + 3", &names);
            assert!(
                ["amber + 3", "lemon - 3", "lemon * 3", "lemon + 2", "lemon + 4"]
                    .iter()
                    .any(|right| line == format!("    amber = {right}")),
                "{line}"
            );
        }
    }

    proptest! {
        #[test]
        fn pieces_join_to_the_text(text in "[a-z0-9 =<>!*/+\\[\\]():,-]{0,60}") {
            prop_assert_eq!(pieces(&text).concat(), text);
        }
    }
}
