use std::collections::BTreeMap;

use patchwright_core::stream;
use ruff_python_ast::token::TokenKind;

use super::{InjectOptions, Operator, candidates, draw_order, extend, inject};

fn repo(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
}

/// `line operator: description` of every candidate in the body of `def f(a, b)`.
fn found(body: &str) -> Vec<String> {
    let source = format!("def f(a, b):\n{body}");
    candidates(&repo(&[("m.py", &source)]), &InjectOptions::default())
        .iter()
        .map(|m| format!("{} {}: {}", m.line, m.operator.name(), m.description))
        .collect()
}

fn check(body: &str, operator: Operator, expected: &[&str]) {
    let prefix = format!(" {}: ", operator.name());
    let found = found(body);
    let got: Vec<&str> = found.iter().filter_map(|m| m.split_once(&prefix)).map(|m| m.1).collect();
    assert_eq!(got, expected, "{body}");
}

#[test]
fn every_operator() {
    use Operator as Op;
    check("    return a < b\n", Op::ComparisonFlipped, &["`<` became `>`"]);
    check("    return a not in b\n", Op::ComparisonFlipped, &["`not in` became `in`"]);
    check("    return (a) is  not b\n", Op::ComparisonFlipped, &["`is  not` became `is`"]);
    check("    return a < b\n", Op::OffByOne, &["`<` became `<=`"]);
    check(
        "    return a[1:b]\n",
        Op::OffByOne,
        &["`1` became `2`", "`1` became `0`", "`b` became `b + 1`", "`b` became `b - 1`"],
    );
    check("    return a[-1]\n", Op::OffByOne, &["`-1` became `-2`"]);
    check("    return a[b]\n", Op::OffByOne, &[]);
    check(
        "    return range(len(a) - 1)\n",
        Op::OffByOne,
        &[
            "`len(a) - 1` became `len(a) - 1 + 1`",
            "`len(a) - 1` became `len(a) - 1 - 1`",
            "`- 1` is missing",
        ],
    );
    check(
        "    a += b\n    return a\n",
        Op::OperatorSwapped,
        &["`+=` became `-=`", "`+=` became `*=`"],
    );
    check(
        "    return max(a, b) and a\n",
        Op::OperatorSwapped,
        &["`max` became `min`", "`and` became `or`"],
    );
    check("    return a + 'x'\n", Op::OperatorSwapped, &[]);
    check("    return (a) * (b)  # a * b\n", Op::OperatorSwapped, &["`*` became `+`"]);
    check("    return a * 2\n", Op::WrongConstant, &["`2` became `3`", "`2` became `1`"]);
    check("    a = 0.5\n    return b\n", Op::WrongConstant, &["`0.5` became `1.5`"]);
    check("    return ''.join(a)\n", Op::WrongConstant, &["`''` became `' '`"]);
    check(
        "    return a['x'] or a['y']\n",
        Op::WrongConstant,
        &["`'x'` became `'y'`", "`'y'` became `'x'`"],
    );
    check(
        "    if a and b:\n        return a\n",
        Op::NegatedCondition,
        &["`a and b` became `not (a and b)`"],
    );
    check(
        "    while not (a or b):\n        a = b\n",
        Op::NegatedCondition,
        &["`not (a or b)` became `(a or b)`"],
    );
    check("    return [x for x in a if x < b]\n", Op::NegatedCondition, &["`<` became `>=`"]);
    check("    return f(a, b)\n", Op::SwappedArguments, &["`a, b` became `b, a`"]);
    check("    return a - b\n", Op::SwappedArguments, &["`a - b` became `b - a`"]);
    check("    return f(a, *b)\n", Op::SwappedArguments, &[]);
    check(
        "    c = a\n    return len(c)\n",
        Op::WrongVariable,
        &["`a` became `b`", "`c` became `b`", "`c` became `a`"],
    );
    check(
        "    return sum(x * a for x in b)\n",
        Op::WrongVariable,
        &["`x` became `b`", "`x` became `a`", "`a` became `x`", "`a` became `b`", "`b` became `a`"],
    );
    check(
        "    a = a + b\n    c = a\n    a.append(c)\n    return c\n",
        Op::DroppedStatement,
        &["`a = a + b` is missing", "`a.append(c)` is missing"],
    );
    check(
        "    if not a:\n        return b\n    return a\n",
        Op::DroppedStatement,
        &["`if not a:\n        return b` is missing"],
    );
    check("    return a.strip(b)\n", Op::WrongReturn, &["`a.strip(b)` became `a`"]);
    check("    return a, b\n", Op::WrongReturn, &["`a, b` became `b, a`"]);
    check("    return True\n", Op::WrongReturn, &["`True` became `False`"]);
}

const SAMPLE: &str = r#"# A module's comment: a < b
import os  # never dropped
LIMIT = 10


@decorate(1, 2)
def outer(a: "x < 1", b=3, *rest, key=None) -> 'a + b':
    """Docstring with a < b and 1 + 1."""
    def inner(c):
        # keep c over b
        return [d for d in c if d > b]  # d > b
    if (a  and
            b):  # both
        a += 1
    total = f"{a + b:>{b}}"
    return inner([a - 1, b])[ :-1 ]


class Box:
    size = 1 + 1

    def get(self, at):
        'doc'
        del at
        return self.items[0]

if __name__ == "__main__":
    print(outer(1, 2))
"#;

#[test]
fn only_bodies_are_touched_and_formatting_is_kept() {
    let found = candidates(&repo(&[("m.py", SAMPLE)]), &InjectOptions::default());
    let places: Vec<(usize, &str)> = found.iter().map(|m| (m.line, m.function.as_str())).collect();
    assert!(places.contains(&(11, "outer.inner")), "{places:?}");
    assert!(places.contains(&(14, "outer")), "{places:?}");
    assert!(places.contains(&(25, "Box.get")), "{places:?}");
    for mutation in &found {
        assert!(matches!(mutation.line, 11..=14 | 16 | 24 | 25), "{mutation:?}");
        assert_ne!(mutation.new_source, SAMPLE);
        assert_eq!(comments(&mutation.new_source), comments(SAMPLE), "{mutation:?}");
        assert!(
            mutation.new_source.contains("return [") || mutation.operator == Operator::WrongReturn
        );
    }
    let mut texts: Vec<&str> = found.iter().map(|m| m.new_source.as_str()).collect();
    texts.sort_unstable();
    texts.dedup();
    assert_eq!(texts.len(), found.len(), "each text comes once");
    assert_eq!(found, candidates(&repo(&[("m.py", SAMPLE)]), &InjectOptions::default()));
}

fn comments(source: &str) -> Vec<String> {
    let parsed = ruff_python_parser::parse_module(source).unwrap();
    let is_comment = |kind| kind == TokenKind::Comment;
    parsed
        .tokens()
        .iter()
        .map(ruff_python_ast::token::Token::as_tuple)
        .filter(|(kind, _)| is_comment(*kind))
        .map(|(_, range)| source[range].to_owned())
        .collect()
}

#[test]
fn tests_broken_files_and_other_files_give_nothing() {
    let source = "def f(a):\n    return a + 1\n";
    let options = InjectOptions::default();
    for path in ["test_m.py", "m_test.py", "tests/m.py", "a/test/m.py", "conftest.py", "m.txt"] {
        assert!(candidates(&repo(&[(path, source)]), &options).is_empty(), "{path}");
    }
    assert!(candidates(&repo(&[("m.py", "def f(:\n")]), &options).is_empty());
    assert!(!candidates(&repo(&[("src/m.py", source)]), &options).is_empty());
}

#[test]
fn options_bound_the_search() {
    let body = (0..100).map(|n| format!("    a += {n}\n")).collect::<Vec<_>>().concat();
    let source = format!("def f(a):\n{body}    return a\n");
    let files = repo(&[("m.py", &source)]);
    let mut options = InjectOptions { max_per_file: 20, ..InjectOptions::default() };
    let few = candidates(&files, &options);
    assert!((10..=20).contains(&few.len()), "{}", few.len());
    assert!(few.last().unwrap().line > 80, "the selection covers the whole file");
    options.operators = vec![Operator::DroppedStatement];
    assert!(candidates(&files, &options).iter().all(|m| m.operator == Operator::DroppedStatement));
}

#[test]
fn deep_nesting_is_survived() {
    let deep = format!("def f(a):\n    return {}a{}\n", "-(".repeat(400), ")".repeat(400));
    candidates(&repo(&[("m.py", &deep)]), &InjectOptions::default());
    let long = format!("def f(a):\n    return {}\n", vec!["a"; 4000].join(" + "));
    let options = InjectOptions { max_per_file: 10, ..InjectOptions::default() };
    candidates(&repo(&[("m.py", &long)]), &options);
}

#[test]
fn draws_are_even_over_operators_and_reproducible() {
    let source = "def f(a, b):\n    c = a + b\n    d = c * a\n    if d < 0:\n        return a\n    return d\n";
    let found = candidates(&repo(&[("m.py", source)]), &InjectOptions::default());
    let mut counts: BTreeMap<Operator, usize> = BTreeMap::new();
    for seed in 0..400 {
        let order = draw_order(&found, &mut stream(seed, &["order"]));
        *counts.entry(found[order[0]].operator).or_default() += 1;
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..found.len()));
        assert_eq!(order, draw_order(&found, &mut stream(seed, &["order"])));
    }
    let expected = 400 / counts.len();
    assert!(counts.values().all(|c| c.abs_diff(expected) < expected / 2), "{counts:?}");
}

#[test]
fn several_bugs_are_in_several_functions() {
    let source = "def f(a):\n    return a + 1\n\n\ndef g(a):\n    return a * 2\n";
    let files = repo(&[("m.py", source), ("n.py", source)]);
    let options = InjectOptions::default();
    let two = inject(&files, &options, &mut stream(1, &["bugs"]), 2).unwrap();
    assert_eq!(two, inject(&files, &options, &mut stream(1, &["bugs"]), 2).unwrap());
    assert_ne!(two.mutations[0].function, two.mutations[1].function);
    let four = inject(&files, &options, &mut stream(1, &["bugs"]), 4).unwrap();
    assert_eq!(four.changed.len(), 2);
    assert!(inject(&files, &options, &mut stream(1, &["bugs"]), 5).is_none());
    let first = candidates(&files, &options).remove(0);
    let one = extend(&files, first.clone(), &options, &mut stream(1, &[]), 1).unwrap();
    assert_eq!(one.changed[&first.path], first.new_source);
}
