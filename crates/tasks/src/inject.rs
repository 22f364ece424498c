//! The bug injector: small, realistic bugs in correct Python source, over its syntax tree.
//!
//! A [`Mutation`] is one edit by byte range, so formatting, comments and everything else stay as
//! they are; its result parses again. Only the bodies of functions are touched: never docstrings,
//! comments, annotations, decorators, default values, imports, f-strings, or test files.
//! Whether a mutation changes any behaviour is for [`crate::validate`] to find out by running.

pub mod difficulty;
mod finder;
pub mod packages;
mod rules;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rand::Rng;
use ruff_text_size::TextRange;
use serde::{Deserialize, Serialize};

/// The kinds of bugs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    /// `<` for `>`, `==` for `!=`, `in` for `not in`.
    ComparisonFlipped,
    /// `<` for `<=`, an index, slice bound or `range` bound one too far or too short.
    OffByOne,
    /// `+` for `-`, `and` for `or`, `min` for `max`.
    OperatorSwapped,
    /// Another number, boolean or string.
    WrongConstant,
    /// `if not x` for `if x`.
    NegatedCondition,
    /// Two arguments of a call, or two operands, in the wrong order.
    SwappedArguments,
    /// Another name that is in scope.
    WrongVariable,
    /// A statement that is missing.
    DroppedStatement,
    /// A part of what should be returned, or something else in scope.
    WrongReturn,
}

impl Operator {
    /// Every operator, in the order of the type.
    pub const ALL: [Self; 9] = [
        Self::ComparisonFlipped,
        Self::OffByOne,
        Self::OperatorSwapped,
        Self::WrongConstant,
        Self::NegatedCondition,
        Self::SwappedArguments,
        Self::WrongVariable,
        Self::DroppedStatement,
        Self::WrongReturn,
    ];

    /// The name in rows and reports, such as `off_by_one`.
    pub fn name(self) -> &'static str {
        match self {
            Self::ComparisonFlipped => "comparison_flipped",
            Self::OffByOne => "off_by_one",
            Self::OperatorSwapped => "operator_swapped",
            Self::WrongConstant => "wrong_constant",
            Self::NegatedCondition => "negated_condition",
            Self::SwappedArguments => "swapped_arguments",
            Self::WrongVariable => "wrong_variable",
            Self::DroppedStatement => "dropped_statement",
            Self::WrongReturn => "wrong_return",
        }
    }
}

/// One bug in one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mutation {
    /// The file.
    pub path: String,
    /// The kind of bug.
    pub operator: Operator,
    /// Line of the correct source where the edit starts, from 1.
    pub line: usize,
    /// Qualified name of the function, such as `Cart.total` or `outer.inner`.
    pub function: String,
    /// The file's whole text with the bug.
    pub new_source: String,
    /// What was done, for reports; it gives the fix away.
    pub description: String,
}

/// What bugs are looked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InjectOptions {
    /// The operators to use.
    pub operators: Vec<Operator>,
    /// Bound on the candidates of one file; past it, an even selection over the file is kept.
    pub max_per_file: usize,
}

impl Default for InjectOptions {
    fn default() -> Self {
        Self { operators: Operator::ALL.to_vec(), max_per_file: 2_000 }
    }
}

/// A repository with bugs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The changed files only, path to buggy text.
    pub changed: BTreeMap<String, String>,
    /// The bugs, in the order they were made. `line` and `new_source` of each speak of the file as
    /// the earlier ones left it.
    pub mutations: Vec<Mutation>,
}

/// An edit before it is applied.
struct Edit {
    range: TextRange,
    replacement: String,
    operator: Operator,
    function: String,
    description: String,
}

/// Every mutation of every Python source file of `files` (path to text), in a fixed order: by path,
/// place, operator. Two that give the same text are one. Files that do not parse, and test files,
/// give none.
pub fn candidates(files: &BTreeMap<String, String>, options: &InjectOptions) -> Vec<Mutation> {
    files
        .iter()
        .filter(|(path, _)| is_source(path))
        .flat_map(|(path, source)| file_candidates(path, source, options))
        .collect()
}

/// An order to try candidates in: at each step an operator is drawn evenly from those that are
/// left, then one of its candidates, so that frequent operators do not crowd out rare ones.
pub fn draw_order(candidates: &[Mutation], rng: &mut impl Rng) -> Vec<usize> {
    let mut by_operator: BTreeMap<Operator, Vec<usize>> = BTreeMap::new();
    for (index, candidate) in candidates.iter().enumerate() {
        by_operator.entry(candidate.operator).or_default().push(index);
    }
    let mut groups: Vec<Vec<usize>> = by_operator.into_values().collect();
    let mut order = Vec::with_capacity(candidates.len());
    while !groups.is_empty() {
        let group = rng.random_range(0..groups.len());
        let member = rng.random_range(0..groups[group].len());
        order.push(groups[group].swap_remove(member));
        if groups[group].is_empty() {
            groups.remove(group);
        }
    }
    order
}

/// Makes `num_bugs` bugs in different functions; `None` when there are not as many places.
pub fn inject(
    files: &BTreeMap<String, String>,
    options: &InjectOptions,
    rng: &mut impl Rng,
    num_bugs: usize,
) -> Option<Injection> {
    let candidates = candidates(files, options);
    let first = *draw_order(&candidates, rng).first()?;
    extend(files, candidates.into_iter().nth(first)?, options, rng, num_bugs)
}

/// Adds bugs in other functions to a first one, up to `num_bugs` in all.
pub fn extend(
    files: &BTreeMap<String, String>,
    first: Mutation,
    options: &InjectOptions,
    rng: &mut impl Rng,
    num_bugs: usize,
) -> Option<Injection> {
    let mut touched = BTreeSet::new();
    let mut changed = BTreeMap::new();
    let mut mutations = Vec::new();
    let mut next = Some(first);
    while let Some(mutation) = next.take() {
        touched.insert((mutation.path.clone(), mutation.function.clone()));
        changed.insert(mutation.path.clone(), mutation.new_source.clone());
        mutations.push(mutation);
        if mutations.len() >= num_bugs {
            return Some(Injection { changed, mutations });
        }
        let mut now = files.clone();
        now.extend(changed.iter().map(|(path, text)| (path.clone(), text.clone())));
        let rest: Vec<Mutation> = candidates(&now, options)
            .into_iter()
            .filter(|m| !touched.contains(&(m.path.clone(), m.function.clone())))
            .collect();
        let chosen = draw_order(&rest, rng).first().copied();
        next = chosen.and_then(|index| rest.into_iter().nth(index));
    }
    None
}

/// Python that is not a test.
fn is_source(path: &str) -> bool {
    let mut parts = path.rsplit('/');
    let file = parts.next().unwrap_or_default();
    let Some(stem) = file.strip_suffix(".py") else { return false };
    let is_test = stem.starts_with("test_")
        || stem.ends_with("_test")
        || matches!(stem, "test" | "tests" | "conftest" | "setup");
    !is_test && !parts.any(|dir| matches!(dir, "test" | "tests" | "testing"))
}

fn file_candidates(path: &str, source: &str, options: &InjectOptions) -> Vec<Mutation> {
    let mut edits = finder::find(source);
    edits.retain(|edit| options.operators.contains(&edit.operator));
    // A stable sort: at one place the first rule that spoke wins over a later one with the same
    // result.
    edits.sort_by_key(|edit| (edit.range.start(), edit.range.end()));
    let step = edits.len().div_ceil(options.max_per_file.max(1)).max(1);
    let mut seen = HashSet::from([hash(source)]);
    let mut mutations = Vec::new();
    for edit in edits.into_iter().step_by(step) {
        let (start, end) = (edit.range.start().to_usize(), edit.range.end().to_usize());
        let (Some(before), Some(after)) = (source.get(..start), source.get(end..)) else {
            continue;
        };
        let new_source = [before, &edit.replacement, after].concat();
        if !seen.insert(hash(&new_source)) || ruff_python_parser::parse_module(&new_source).is_err()
        {
            continue;
        }
        mutations.push(Mutation {
            path: path.to_owned(),
            operator: edit.operator,
            line: before.bytes().filter(|b| *b == b'\n').count() + 1,
            function: edit.function,
            new_source,
            description: edit.description,
        });
    }
    mutations
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
