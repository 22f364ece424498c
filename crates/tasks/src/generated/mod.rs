//! The generated task set: small Python repositories without end, composed from a grammar.
//!
//! Every name is drawn from a large word list, so that no two repositories are alike and reading
//! the context is the only way to solve a task. Each function carries a comment that states its
//! intent step by step.

mod grammar;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use patchwright_core::{derive_seed, stream};
use rand::Rng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand_chacha::ChaCha8Rng;

use crate::validate::{EmbeddedRepo, Example};
use grammar::{Kind, Operand, Step};
pub use words::WORDS;

/// Words of the intent comments and of the code itself, beside names: what a tokenizer for these
/// repositories should know as single tokens.
pub const LANGUAGE: [&str; 47] = [
    "def", "return", "for", "in", "if", "import", "not", "and", "or", "is", "None", "True",
    "False", "else", "sorted", "sum", "len", "max", "min", "abs", "default", "take", "keep",
    "over", "under", "least", "most", "even", "odd", "each", "plus", "minus", "times", "sort",
    "reverse", "first", "skip", "total", "count", "largest", "smallest", "raise", "limit",
    "distance", "apply", "to", "item",
];

/// The seed of a named stream of repositories. Training and held-out repositories come from
/// different streams.
pub fn stream_seed(seed: u64, name: &str) -> u64 {
    derive_seed(seed, &["generated", name])
}

/// The share of functions of two steps; the others have three.
const SHORT_SHARE: f64 = 0.7;
/// The share of modules' functions that call an earlier one.
const CALL_SHARE: f64 = 0.15;
/// Hidden-test calls for each function.
const EXAMPLES_PER_FUNCTION: usize = 5;

/// The repository number `index` of the stream `seed`. Deterministic; different (seed, index)
/// give different repositories.
pub fn repository(seed: u64, index: u64) -> EmbeddedRepo {
    let mut rng = stream(seed, &["generated", &index.to_string()]);
    let mut names: Vec<&'static str> = WORDS.to_vec();
    names.shuffle(&mut rng);
    let mut builder = Builder { rng, names, functions: Vec::new() };
    let num_modules = [1, 1, 1, 2, 2, 3][builder.rng.random_range(0..6)];
    let mut files = BTreeMap::new();
    for _ in 0..num_modules {
        let module = builder.name();
        let source = builder.module(&module);
        files.insert(format!("{module}.py"), source);
    }
    let examples = builder.examples();
    let first = files.keys().next().map_or("", |f| f.trim_end_matches(".py"));
    EmbeddedRepo { name: format!("{first}-{index:06}-{:08x}", seed as u32), files, examples }
}

/// A random statement (one or several lines, without indentation) over `names`: valid Python of the
/// grammar, without a purpose.
pub fn random_statement(rng: &mut ChaCha8Rng, names: &[String]) -> Vec<String> {
    let [cur, target, element] =
        std::array::from_fn(|_| names.choose(rng).cloned().unwrap_or_else(|| "extra".to_owned()));
    let kind = if rng.random_bool(0.5) { Kind::List } else { Kind::Number };
    let step = Step::draw(rng, kind, names);
    match step.expression(&cur, &element) {
        Some(expression) if rng.random_bool(0.4) => vec![format!("return {expression}")],
        _ => step.assignment(&cur, &target, &element),
    }
}

/// The statement that a random phrase of the intent comment `comment` asks for, put in the place of
/// `line`: assigned to what the line assigns to (or returned, if the line returns), over the value
/// that the line works on. Whether the phrase speaks of that line is left to chance. `None` when
/// the comment has no phrase, or the phrase or the line is not one of the grammar's simple ones.
pub fn restated(rng: &mut ChaCha8Rng, comment: &str, line: &str) -> Option<String> {
    let phrases: Vec<&str> = comment.strip_prefix("# take ")?.split(", ").skip(1).collect();
    let step = Step::from_phrase(phrases.choose(rng)?)?;
    let text = line.trim_start();
    let indent = &line[..line.len() - text.len()];
    let (head, value) = if let Some(value) = text.strip_prefix("return ") {
        ("return ".to_owned(), value)
    } else {
        let (target, value) = text.split_once(" = ")?;
        (format!("{target} = "), value)
    };
    let words: Vec<&str> =
        value.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()).collect();
    let after = |word: &str| words.iter().position(|w| *w == word).and_then(|i| words.get(i + 1));
    let first_name = words.iter().find(|word| WORDS.contains(word));
    let cur = after("in").or(first_name)?;
    let element = after("for").map_or("item", |word| *word);
    Some(format!("{indent}{head}{}", step.expression(cur, element)?))
}

/// A function that stands already: what a later one may call, and what tests call.
struct Function {
    module: String,
    name: String,
    input: Kind,
    output: Kind,
    num_extra: usize,
}

struct Builder {
    rng: ChaCha8Rng,
    /// Names not used yet in this repository.
    names: Vec<&'static str>,
    functions: Vec<Function>,
}

impl Builder {
    fn name(&mut self) -> String {
        // A repository uses some 30 of the words.
        self.names.pop().unwrap_or("extra").to_owned()
    }

    fn module(&mut self, module: &str) -> String {
        let num_functions = [1, 1, 2, 2][self.rng.random_range(0..4)];
        let mut imports = BTreeSet::new();
        let mut body = String::new();
        for n in 0..num_functions {
            if n > 0 {
                body.push_str("\n\n");
            }
            body.push_str(&self.function(module, &mut imports));
        }
        let mut source = String::new();
        for import in &imports {
            let _ = writeln!(source, "import {import}");
        }
        if !imports.is_empty() {
            source.push_str("\n\n");
        }
        source + &body
    }

    /// Draws one function, registers it, and returns its source.
    fn function(&mut self, module: &str, imports: &mut BTreeSet<String>) -> String {
        let name = self.name();
        let input = if self.rng.random_bool(0.6) { Kind::List } else { Kind::Number };
        let subject = self.name();
        let num_extra = self.rng.random_range(1..=2);
        let mut params: Vec<String> = (0..num_extra).map(|_| self.name()).collect();
        let steps = self.steps(module, input, &params, imports);

        let phrases = steps.iter().map(Step::phrase).collect::<Vec<_>>().join(", ");
        // A parameter that no step uses would only be noise.
        params.retain(|param| phrases.split([' ', ',']).any(|word| word == param));
        let num_extra = params.len();
        let mut source = format!("# take {subject}, {phrases}\n");
        params.insert(0, subject.clone());
        let _ = writeln!(source, "def {name}({}):", params.join(", "));
        let element = self.name();
        let mut cur = subject;
        let mut kind = input;
        for (n, step) in steps.iter().enumerate() {
            let last = n + 1 == steps.len();
            match step.expression(&cur, &element) {
                Some(expression) if last => {
                    let _ = writeln!(source, "    return {expression}");
                }
                _ => {
                    let target = self.name();
                    for line in step.assignment(&cur, &target, &element) {
                        let _ = writeln!(source, "    {line}");
                    }
                    if last {
                        let _ = writeln!(source, "    return {target}");
                    }
                    cur = target;
                }
            }
            kind = step.output(kind);
        }
        self.functions.push(Function {
            module: module.to_owned(),
            name,
            input,
            output: kind,
            num_extra,
        });
        source
    }

    fn steps(
        &mut self,
        module: &str,
        input: Kind,
        params: &[String],
        imports: &mut BTreeSet<String>,
    ) -> Vec<Step> {
        let num_steps = if self.rng.random_bool(SHORT_SHARE) { 2 } else { 3 };
        let mut steps: Vec<Step> = Vec::with_capacity(num_steps);
        let mut kind = input;
        let mut called = false;
        while steps.len() < num_steps {
            let step = if !called && self.rng.random_bool(CALL_SHARE) {
                called = true;
                match self.call(module, kind, params, imports) {
                    Some((step, output)) => {
                        steps.push(step);
                        kind = output;
                        continue;
                    }
                    None => Step::draw(&mut self.rng, kind, params),
                }
            } else {
                Step::draw(&mut self.rng, kind, params)
            };
            // A step that repeats its predecessor's operation hides mutants (sort of a sort).
            let repeats = steps.last().is_some_and(|previous| {
                std::mem::discriminant(previous) == std::mem::discriminant(&step)
            });
            if repeats {
                continue;
            }
            kind = step.output(kind);
            steps.push(step);
        }
        steps
    }

    /// A call of an earlier function that takes `kind`, if there is one.
    fn call(
        &mut self,
        module: &str,
        kind: Kind,
        params: &[String],
        imports: &mut BTreeSet<String>,
    ) -> Option<(Step, Kind)> {
        let fitting: Vec<usize> =
            (0..self.functions.len()).filter(|i| self.functions[*i].input == kind).collect();
        if fitting.is_empty() {
            return None;
        }
        let callee = &self.functions[fitting[self.rng.random_range(0..fitting.len())]];
        let path = if callee.module == module {
            callee.name.clone()
        } else {
            imports.insert(callee.module.clone());
            format!("{}.{}", callee.module, callee.name)
        };
        let (num_extra, output) = (callee.num_extra, callee.output);
        let extra = (0..num_extra)
            .map(|_| Operand::Name(params[self.rng.random_range(0..params.len())].clone()))
            .collect();
        Some((Step::Call(path, extra), output))
    }

    /// Calls that the hidden tests make; the expected values are computed by running them.
    fn examples(&mut self) -> Vec<Example> {
        let mut examples = Vec::new();
        for function in &self.functions {
            let mut seen = BTreeSet::new();
            while seen.len() < EXAMPLES_PER_FUNCTION {
                let mut args = vec![match function.input {
                    Kind::Number => self.rng.random_range(1..=20).to_string(),
                    Kind::List => {
                        let length = self.rng.random_range(3..=5);
                        let items: Vec<String> = (0..length)
                            .map(|_| self.rng.random_range(0..=12).to_string())
                            .collect();
                        format!("[{}]", items.join(", "))
                    }
                }];
                for _ in 0..function.num_extra {
                    args.push(self.rng.random_range(2..=9).to_string());
                }
                if seen.insert(args.join(", ")) {
                    examples.push(Example {
                        module: function.module.clone(),
                        function: function.name.clone(),
                        args: args.join(", "),
                        expected: String::new(),
                    });
                }
            }
        }
        examples
    }
}

#[cfg(test)]
mod tests {
    use super::repository;

    #[test]
    fn repositories_are_reproducible_and_distinct() {
        let first = repository(1, 0);
        assert_eq!(first.files, repository(1, 0).files);
        for index in 1..50 {
            assert_ne!(first.files, repository(1, index).files);
        }
        assert_ne!(first.files, repository(2, 0).files);
    }
}
