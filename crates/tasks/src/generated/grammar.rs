//! The grammar of everyday operations that functions are composed from.
//!
//! A function takes its first argument (a number or a list of numbers) through a chain of
//! [`Step`]s. Each step has a Python expression (or a few lines) and a phrase of the intent
//! comment, so that the comment says what the code should do, step by step.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// What flows from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A whole number.
    Number,
    /// A list of whole numbers.
    List,
}

/// The other operand of a step: another argument, or a constant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operand {
    /// A parameter by name.
    Name(String),
    /// A literal from 1 to 9.
    Constant(u8),
}

impl std::fmt::Display for Operand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Constant(value) => write!(f, "{value}"),
        }
    }
}

/// One operation, with the phrase that states it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `[e for e in cur if e OP x]`
    Keep(&'static str, Operand),
    /// `[e for e in cur if e % 2 == r]`
    Parity(u8),
    /// `[e OP x for e in cur]`
    Each(&'static str, Operand),
    /// `sorted(cur)`
    Sort,
    /// `cur[::-1]`
    Reverse,
    /// `cur[:x]`
    First(Operand),
    /// `cur[x:]`
    Skip(Operand),
    /// `sum(cur)`, `len(cur)`, `max(cur, default=0)`, `min(cur, default=0)`
    Fold(&'static str),
    /// A loop that sums the elements that compare so with the operand.
    SumIf(&'static str, Operand),
    /// `cur OP x`
    Arithmetic(&'static str, Operand),
    /// `max(cur, x)` and `min(cur, x)`
    Bound(&'static str, Operand),
    /// `abs(cur - x)`
    Distance(Operand),
    /// `if cur OP x:` / `cur = cur OP y`
    Adjust(&'static str, Operand, &'static str, Operand),
    /// A call of an earlier function: (callable as written here, its extra arguments).
    Call(String, Vec<Operand>),
}

const COMPARISONS: [(&str, &str); 4] =
    [(">", "over"), ("<", "under"), (">=", "least"), ("<=", "most")];
const ARITHMETIC: [(&str, &str); 3] = [("+", "plus"), ("-", "minus"), ("*", "times")];

fn phrase_of(table: &[(&'static str, &'static str)], operator: &str) -> &'static str {
    table.iter().find(|(op, _)| *op == operator).map_or("", |(_, phrase)| phrase)
}

fn operator_of(table: &[(&'static str, &'static str)], phrase: &str) -> Option<&'static str> {
    table.iter().find(|(_, word)| *word == phrase).map(|(op, _)| *op)
}

impl Step {
    /// Draws a step that takes `input`; `params` are the names an operand may be.
    pub fn draw(rng: &mut ChaCha8Rng, input: Kind, params: &[String]) -> Self {
        let operand = |rng: &mut ChaCha8Rng| -> Operand {
            if !params.is_empty() && rng.random_bool(0.6) {
                Operand::Name(params[rng.random_range(0..params.len())].clone())
            } else {
                Operand::Constant(rng.random_range(2..=9))
            }
        };
        let comparison = COMPARISONS[rng.random_range(0..COMPARISONS.len())].0;
        let arithmetic = ARITHMETIC[rng.random_range(0..ARITHMETIC.len())].0;
        let small = |rng: &mut ChaCha8Rng| Operand::Constant(rng.random_range(1..=3));
        match input {
            Kind::List => match rng.random_range(0..14) {
                0..=2 => Self::Keep(comparison, operand(rng)),
                3 => Self::Parity(rng.random_range(0..2)),
                4..=6 => Self::Each(arithmetic, operand(rng)),
                7 => Self::Sort,
                8 => Self::Reverse,
                9 => Self::First(small(rng)),
                10 => Self::Skip(small(rng)),
                11 | 12 => Self::Fold(["sum", "len", "max", "min"][rng.random_range(0..4)]),
                _ => Self::SumIf(comparison, operand(rng)),
            },
            Kind::Number => match rng.random_range(0..9) {
                0..=4 => Self::Arithmetic(arithmetic, operand(rng)),
                5 | 6 => Self::Bound(["max", "min"][rng.random_range(0..2)], operand(rng)),
                7 => Self::Distance(operand(rng)),
                _ => Self::Adjust(comparison, operand(rng), arithmetic, operand(rng)),
            },
        }
    }

    /// What the step yields for `input`.
    pub fn output(&self, input: Kind) -> Kind {
        match self {
            Self::Fold(_) | Self::SumIf(..) => Kind::Number,
            _ => input,
        }
    }

    /// The phrase of the intent comment.
    pub fn phrase(&self) -> String {
        match self {
            Self::Keep(op, x) => format!("keep {} {x}", phrase_of(&COMPARISONS, op)),
            Self::Parity(0) => "keep even".to_owned(),
            Self::Parity(_) => "keep odd".to_owned(),
            Self::Each(op, x) => format!("each {} {x}", phrase_of(&ARITHMETIC, op)),
            Self::Sort => "sort".to_owned(),
            Self::Reverse => "reverse".to_owned(),
            Self::First(x) => format!("first {x}"),
            Self::Skip(x) => format!("skip {x}"),
            Self::Fold("sum") => "total".to_owned(),
            Self::Fold("len") => "count".to_owned(),
            Self::Fold("max") => "largest".to_owned(),
            Self::Fold(_) => "smallest".to_owned(),
            Self::SumIf(op, x) => format!("total {} {x}", phrase_of(&COMPARISONS, op)),
            Self::Arithmetic(op, x) => format!("{} {x}", phrase_of(&ARITHMETIC, op)),
            Self::Bound("max", x) => format!("raise to {x}"),
            Self::Bound(_, x) => format!("limit to {x}"),
            Self::Distance(x) => format!("distance to {x}"),
            Self::Adjust(cmp, x, op, y) => format!(
                "if {} {x} {} {y}",
                phrase_of(&COMPARISONS, cmp),
                phrase_of(&ARITHMETIC, op)
            ),
            Self::Call(name, extra) => {
                let mut words = vec![format!("apply {name}")];
                words.extend(extra.iter().map(ToString::to_string));
                words.join(" ")
            }
        }
    }

    /// The step that a phrase of an intent comment states; `None` for text that is not a phrase.
    pub fn from_phrase(phrase: &str) -> Option<Self> {
        let words: Vec<&str> = phrase.split_whitespace().collect();
        let operand = |word: &str| match word.parse() {
            Ok(value) => Operand::Constant(value),
            Err(_) => Operand::Name(word.to_owned()),
        };
        let comparison = |word: &str| operator_of(&COMPARISONS, word);
        let arithmetic = |word: &str| operator_of(&ARITHMETIC, word);
        Some(match words.as_slice() {
            ["keep", "even"] => Self::Parity(0),
            ["keep", "odd"] => Self::Parity(1),
            ["keep", how, x] => Self::Keep(comparison(how)?, operand(x)),
            ["each", how, x] => Self::Each(arithmetic(how)?, operand(x)),
            ["sort"] => Self::Sort,
            ["reverse"] => Self::Reverse,
            ["first", x] => Self::First(operand(x)),
            ["skip", x] => Self::Skip(operand(x)),
            ["total"] => Self::Fold("sum"),
            ["count"] => Self::Fold("len"),
            ["largest"] => Self::Fold("max"),
            ["smallest"] => Self::Fold("min"),
            ["total", how, x] => Self::SumIf(comparison(how)?, operand(x)),
            ["raise", "to", x] => Self::Bound("max", operand(x)),
            ["limit", "to", x] => Self::Bound("min", operand(x)),
            ["distance", "to", x] => Self::Distance(operand(x)),
            ["if", how, x, then, y] => {
                Self::Adjust(comparison(how)?, operand(x), arithmetic(then)?, operand(y))
            }
            ["apply", name, extra @ ..] => {
                Self::Call((*name).to_owned(), extra.iter().map(|x| operand(x)).collect())
            }
            [how, x] => Self::Arithmetic(arithmetic(how)?, operand(x)),
            _ => return None,
        })
    }

    /// The expression over the current value `cur`; `None` for steps of several lines.
    /// `element` names the variable of a comprehension.
    pub fn expression(&self, cur: &str, element: &str) -> Option<String> {
        Some(match self {
            Self::Keep(op, x) => {
                format!("[{element} for {element} in {cur} if {element} {op} {x}]")
            }
            Self::Parity(r) => {
                format!("[{element} for {element} in {cur} if {element} % 2 == {r}]")
            }
            Self::Each(op, x) => format!("[{element} {op} {x} for {element} in {cur}]"),
            Self::Sort => format!("sorted({cur})"),
            Self::Reverse => format!("{cur}[::-1]"),
            Self::First(x) => format!("{cur}[:{x}]"),
            Self::Skip(x) => format!("{cur}[{x}:]"),
            Self::Fold(name @ ("max" | "min")) => format!("{name}({cur}, default=0)"),
            Self::Fold(name) => format!("{name}({cur})"),
            Self::Arithmetic(op, x) => format!("{cur} {op} {x}"),
            Self::Bound(name, x) => format!("{name}({cur}, {x})"),
            Self::Distance(x) => format!("abs({cur} - {x})"),
            Self::Call(name, extra) => {
                let mut args = vec![cur.to_owned()];
                args.extend(extra.iter().map(ToString::to_string));
                format!("{name}({})", args.join(", "))
            }
            Self::SumIf(..) | Self::Adjust(..) => return None,
        })
    }

    /// The lines (without indentation of the function body) that put the step's value for `cur`
    /// into `target`.
    pub fn assignment(&self, cur: &str, target: &str, element: &str) -> Vec<String> {
        match self {
            Self::SumIf(op, x) => vec![
                format!("{target} = 0"),
                format!("for {element} in {cur}:"),
                format!("    if {element} {op} {x}:"),
                format!("        {target} = {target} + {element}"),
            ],
            Self::Adjust(cmp, x, op, y) => vec![
                format!("{target} = {cur}"),
                format!("if {target} {cmp} {x}:"),
                format!("    {target} = {target} {op} {y}"),
            ],
            _ => {
                let expression = self.expression(cur, element).unwrap_or_default();
                vec![format!("{target} = {expression}")]
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Kind, Step};
    use patchwright_core::stream;

    #[test]
    fn a_phrase_states_its_step() {
        let mut rng = stream(0, &["phrases"]);
        let params = vec!["amber".to_owned(), "lemon".to_owned()];
        for n in 0..500 {
            let kind = if n % 2 == 0 { Kind::List } else { Kind::Number };
            let step = Step::draw(&mut rng, kind, &params);
            assert_eq!(Step::from_phrase(&step.phrase()), Some(step));
        }
        assert_eq!(Step::from_phrase("hello world at large"), None);
    }
}
