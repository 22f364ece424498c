//! The operators: what each proposes at a place.

use ruff_python_ast::{self as ast, CmpOp, Expr, ExprContext, Number, Stmt, UnaryOp};
use ruff_text_size::{Ranged, TextRange};

use super::Operator;
use super::finder::{Finder, size};

/// Most other names that are proposed for one variable: the latest in scope.
const MAX_OTHER_NAMES: usize = 4;
/// Most other strings that are proposed for one string.
const MAX_OTHER_STRINGS: usize = 2;
/// Names that are positions by convention: only these are moved by one as plain indices, since
/// another name may be the key of a dictionary.
const POSITION_NAMES: [&str; 16] = [
    "i", "j", "k", "n", "idx", "index", "pos", "position", "left", "right", "lo", "hi", "mid",
    "start", "end", "offset",
];

impl<'a> Finder<'a> {
    /// Proposals for a statement as a whole; its expressions come later.
    pub(super) fn statement_rules(&mut self, stmt: &'a Stmt) {
        match stmt {
            Stmt::If(ast::StmtIf { test, .. }) | Stmt::While(ast::StmtWhile { test, .. }) => {
                self.negate(test);
            }
            Stmt::Return(ast::StmtReturn { value: Some(value), .. }) => self.wrong_return(value),
            Stmt::AugAssign(assign) => {
                let between = TextRange::new(assign.target.end(), assign.value.start());
                let text = format!("{}=", assign.op.as_str());
                if let Some(range) = self.find_tokens(between, &text) {
                    for other in other_operators(assign.op, &assign.value, &assign.value) {
                        self.replace(Operator::OperatorSwapped, range, &format!("{other}="));
                    }
                }
            }
            _ => {}
        }
    }

    /// Proposals for an expression as a whole; its parts come later.
    pub(super) fn expression_rules(&mut self, expr: &'a Expr) {
        match expr {
            Expr::Compare(compare) => self.comparison(compare),
            Expr::BinOp(binary) => self.binary(binary),
            Expr::BoolOp(boolean) => {
                let other = if boolean.op == ast::BoolOp::And { "or" } else { "and" };
                for pair in boolean.values.windows(2) {
                    let op = boolean.op.as_str();
                    if let Some(range) = self.operator_between(&pair[0], &pair[1], op) {
                        self.replace(Operator::OperatorSwapped, range, other);
                    }
                }
            }
            Expr::UnaryOp(unary) => match unary.op {
                UnaryOp::Not => self.negate(expr),
                UnaryOp::USub => {
                    let operand = self.text(TextRange::new(unary.start() + size(1), unary.end()));
                    self.replace(Operator::OperatorSwapped, unary.range, operand.trim_start());
                }
                _ => {}
            },
            Expr::If(ternary) => self.negate(&ternary.test),
            Expr::Call(call) => self.call(call),
            Expr::Subscript(subscript) => self.subscript(&subscript.slice),
            Expr::NumberLiteral(number) => self.number(number),
            Expr::BooleanLiteral(literal) => {
                let other = if literal.value { "False" } else { "True" };
                self.replace(Operator::WrongConstant, literal.range, other);
            }
            Expr::StringLiteral(literal) => self.string(literal),
            Expr::Name(name) if name.ctx == ExprContext::Load => {
                self.other_names(Operator::WrongVariable, name);
            }
            _ => {}
        }
    }

    fn comparison(&mut self, compare: &'a ast::ExprCompare) {
        let mut left: &Expr = &compare.left;
        for (op, right) in compare.ops.iter().zip(&compare.comparators) {
            if let Some(range) = self.operator_between(left, right, op.as_str()) {
                let (flipped, moved) = match op {
                    CmpOp::Eq => ("!=", None),
                    CmpOp::NotEq => ("==", None),
                    CmpOp::Lt => (">", Some("<=")),
                    CmpOp::LtE => (">=", Some("<")),
                    CmpOp::Gt => ("<", Some(">=")),
                    CmpOp::GtE => ("<=", Some(">")),
                    CmpOp::Is => ("is not", None),
                    CmpOp::IsNot => ("is", None),
                    CmpOp::In => ("not in", None),
                    CmpOp::NotIn => ("in", None),
                };
                self.replace(Operator::ComparisonFlipped, range, flipped);
                if let Some(moved) = moved {
                    self.replace(Operator::OffByOne, range, moved);
                }
            }
            left = right;
        }
    }

    fn binary(&mut self, binary: &'a ast::ExprBinOp) {
        use ast::Operator::{Add, Div, FloorDiv, Mod, Pow, Sub};
        let Some(range) = self.operator_between(&binary.left, &binary.right, binary.op.as_str())
        else {
            return;
        };
        for other in other_operators(binary.op, &binary.left, &binary.right) {
            self.replace(Operator::OperatorSwapped, range, other);
        }
        if matches!(binary.op, Add | Sub) && int_value(&binary.right) == Some(1) {
            // `len(x) - 1` for `len(x)`: up to the operator, which keeps a parenthesis closed.
            let dropped = TextRange::new(binary.left.end(), binary.right.end());
            let between = self.text(TextRange::new(binary.left.end(), range.start()));
            if between.trim().is_empty() {
                let description = format!("`{}` is missing", self.text(dropped).trim());
                self.propose(Operator::OffByOne, dropped, String::new(), description);
            }
        }
        if matches!(binary.op, Sub | Div | FloorDiv | Mod | Pow)
            && is_atom(&binary.left)
            && is_atom(&binary.right)
        {
            self.swap(&binary.left, &binary.right);
        }
    }

    /// Proposes two expressions in each other's place.
    fn swap(&mut self, first: &Expr, second: &Expr) {
        let between = self.text(TextRange::new(first.end(), second.start()));
        let (a, b) = (self.text(first.range()), self.text(second.range()));
        let range = TextRange::new(first.start(), second.end());
        self.replace(Operator::SwappedArguments, range, &format!("{b}{between}{a}"));
    }

    fn call(&mut self, call: &'a ast::ExprCall) {
        let args = &call.arguments.args;
        if let Expr::Name(name) = &*call.func {
            let other = match name.id.as_str() {
                "min" => Some("max"),
                "max" => Some("min"),
                "any" => Some("all"),
                "all" => Some("any"),
                _ => None,
            };
            if let Some(other) = other {
                self.replace(Operator::OperatorSwapped, name.range, other);
            }
            if name.id.as_str() == "range" {
                for bound in args {
                    self.move_by_one(bound);
                }
            }
        }
        for pair in args.windows(2) {
            if !pair.iter().any(Expr::is_starred_expr) {
                self.swap(&pair[0], &pair[1]);
            }
        }
    }

    fn subscript(&mut self, slice: &'a Expr) {
        match slice {
            Expr::Slice(slice) => {
                for bound in slice.lower.iter().chain(&slice.upper) {
                    self.move_by_one(bound);
                }
            }
            Expr::Name(name) if !POSITION_NAMES.contains(&name.id.as_str()) => {}
            Expr::Name(_) | Expr::NumberLiteral(_) | Expr::UnaryOp(_) | Expr::BinOp(_) => {
                self.move_by_one(slice);
            }
            _ => {}
        }
    }

    /// A bound or an index, one further and one shorter.
    fn move_by_one(&mut self, bound: &'a Expr) {
        let range = bound.range();
        if let Some(value) = int_value(bound) {
            for moved in [value.checked_add(1), value.checked_sub(1)].into_iter().flatten() {
                // From 0 to -1, or back, is another place altogether.
                if (moved < 0) == (value < 0) {
                    self.replace(Operator::OffByOne, range, &moved.to_string());
                }
            }
        } else if is_atom(bound) || bound.is_bin_op_expr() {
            let text = self.text(range);
            self.replace(Operator::OffByOne, range, &format!("{text} + 1"));
            self.replace(Operator::OffByOne, range, &format!("{text} - 1"));
        }
    }

    fn number(&mut self, number: &'a ast::ExprNumberLiteral) {
        match &number.value {
            Number::Int(int) => {
                let Some(value) = int.as_i64() else { return };
                for other in [value.checked_add(1), value.checked_sub(1)].into_iter().flatten() {
                    if other >= 0 {
                        self.replace(Operator::WrongConstant, number.range, &other.to_string());
                    }
                }
            }
            Number::Float(value) if (*value + 1.0).is_finite() => {
                self.replace(Operator::WrongConstant, number.range, &format!("{:?}", value + 1.0));
            }
            _ => {}
        }
    }

    fn string(&mut self, literal: &'a ast::ExprStringLiteral) {
        let text = self.text(literal.range);
        if literal.value.is_implicit_concatenated() {
            return;
        }
        let others: Vec<&str> =
            self.strings.iter().copied().filter(|s| *s != text).take(MAX_OTHER_STRINGS).collect();
        for other in others {
            self.replace(Operator::WrongConstant, literal.range, other);
        }
        match text {
            "''" => self.replace(Operator::WrongConstant, literal.range, "' '"),
            "\"\"" => self.replace(Operator::WrongConstant, literal.range, "\" \""),
            "' '" => self.replace(Operator::WrongConstant, literal.range, "''"),
            "\" \"" => self.replace(Operator::WrongConstant, literal.range, "\"\""),
            _ => {}
        }
    }

    fn other_names(&mut self, operator: Operator, name: &'a ast::ExprName) {
        let here = name.id.as_str();
        // A name that is not in scope is a builtin, a module or a global: not a variable.
        if !self.scope.contains(&here) {
            return;
        }
        let others: Vec<&str> = self
            .scope
            .iter()
            .rev()
            .copied()
            .filter(|other| *other != here && *other != "_")
            .take(MAX_OTHER_NAMES)
            .collect();
        for other in others {
            self.replace(operator, name.range, other);
        }
    }

    /// The condition's opposite.
    pub(super) fn negate(&mut self, test: &'a Expr) {
        let range = test.range();
        let text = self.text(range);
        match test {
            Expr::UnaryOp(unary) if unary.op == UnaryOp::Not => {
                let operand = text.strip_prefix("not").unwrap_or(text).trim_start();
                self.replace(Operator::NegatedCondition, range, operand);
            }
            Expr::Compare(compare) if compare.ops.len() == 1 => {
                let (op, right) = (compare.ops[0], &compare.comparators[0]);
                if let Some(range) = self.operator_between(&compare.left, right, op.as_str()) {
                    self.replace(Operator::NegatedCondition, range, op.negate().as_str());
                }
            }
            _ if is_atom(test) => {
                self.replace(Operator::NegatedCondition, range, &format!("not {text}"));
            }
            _ => self.replace(Operator::NegatedCondition, range, &format!("not ({text})")),
        }
    }

    fn wrong_return(&mut self, value: &'a Expr) {
        let range = value.range();
        let part = match value {
            Expr::BinOp(binary) => Some(binary.left.range()),
            Expr::Call(call) => match (&*call.func, call.arguments.args.first()) {
                (Expr::Attribute(method), _) if !is_module(&method.value, &self.scope) => {
                    Some(method.value.range())
                }
                (_, Some(first)) if !first.is_starred_expr() && !first.is_generator_expr() => {
                    Some(first.range())
                }
                _ => None,
            },
            Expr::Subscript(subscript) => Some(subscript.value.range()),
            Expr::If(ternary) => Some(ternary.body.range()),
            Expr::ListComp(comprehension) => {
                comprehension.generators.first().map(|generator| generator.iter.range())
            }
            _ => None,
        };
        if let Some(part) = part {
            self.replace(Operator::WrongReturn, range, self.text(part));
        }
        match value {
            Expr::Tuple(tuple) if tuple.elts.len() == 2 => {
                let (a, b) = (tuple.elts[0].range(), tuple.elts[1].range());
                let inner = TextRange::new(a.start(), b.end());
                let between = self.text(TextRange::new(a.end(), b.start()));
                let swapped = format!("{}{between}{}", self.text(b), self.text(a));
                self.replace(Operator::WrongReturn, inner, &swapped);
            }
            Expr::Name(name) => self.other_names(Operator::WrongReturn, name),
            Expr::BooleanLiteral(literal) => {
                let other = if literal.value { "False" } else { "True" };
                self.replace(Operator::WrongReturn, range, other);
            }
            _ => {}
        }
    }

    /// A statement that may be forgotten without leaving a name undefined. `num_siblings` counts
    /// the statements of its block: the only one becomes `pass`.
    pub(super) fn drop_rule(&mut self, stmt: &'a Stmt, num_siblings: usize) {
        let may_drop = match stmt {
            Stmt::AugAssign(_) | Stmt::Continue(_) | Stmt::Break(_) | Stmt::Delete(_) => true,
            Stmt::Expr(expr) => expr.value.is_call_expr(),
            Stmt::Assign(assign) => assign.targets.iter().all(|target| match target {
                Expr::Name(name) => self.scope.contains(&name.id.as_str()),
                Expr::Subscript(_) => true,
                _ => false,
            }),
            // A guard: `if …: return …`.
            Stmt::If(guard) => {
                guard.elif_else_clauses.is_empty()
                    && matches!(
                        &guard.body[..],
                        [Stmt::Return(_)
                            | Stmt::Raise(_)
                            | Stmt::Continue(_)
                            | Stmt::Break(_)
                            | Stmt::Assign(_)
                            | Stmt::AugAssign(_)]
                    )
                    && self.drops_no_name(&guard.body)
            }
            _ => false,
        };
        let Some(lines) = self.whole_lines(stmt.range()).filter(|_| may_drop) else { return };
        let text = self.text(stmt.range());
        let description = format!("`{text}` is missing");
        if num_siblings == 1 {
            self.propose(Operator::DroppedStatement, stmt.range(), "pass".to_owned(), description);
        } else {
            self.propose(Operator::DroppedStatement, lines, String::new(), description);
        }
    }

    fn drops_no_name(&self, body: &[Stmt]) -> bool {
        body.iter().all(|stmt| match stmt {
            Stmt::Assign(assign) => assign
                .targets
                .iter()
                .all(|t| matches!(t, Expr::Name(name) if self.scope.contains(&name.id.as_str()))),
            _ => true,
        })
    }
}

/// What an arithmetic or bit operator may be confused with. Where an operand shows that it is no
/// number, the other operator would fail on every call, which is no realistic bug.
fn other_operators(op: ast::Operator, left: &Expr, right: &Expr) -> &'static [&'static str] {
    use ast::Operator as Op;
    let sequence = |e: &Expr| {
        matches!(
            e,
            Expr::StringLiteral(_)
                | Expr::BytesLiteral(_)
                | Expr::FString(_)
                | Expr::List(_)
                | Expr::ListComp(_)
                | Expr::Tuple(_)
        )
    };
    if sequence(left) || sequence(right) {
        return &[];
    }
    match op {
        Op::Add => &["-", "*"],
        Op::Sub | Op::Mult => &["+"],
        Op::Div | Op::Pow | Op::MatMult => &["*"],
        Op::FloorDiv => &["/", "%"],
        Op::Mod => &["//"],
        Op::LShift => &[">>"],
        Op::RShift => &["<<"],
        Op::BitOr | Op::BitXor => &["&"],
        Op::BitAnd => &["|"],
    }
}

/// Needs no parentheses next to any operator.
fn is_atom(expr: &Expr) -> bool {
    matches!(
        expr,
        Expr::Name(_)
            | Expr::Attribute(_)
            | Expr::Subscript(_)
            | Expr::Call(_)
            | Expr::NumberLiteral(_)
            | Expr::BooleanLiteral(_)
            | Expr::List(_)
    )
}

/// The value of an integer literal, with its sign.
fn int_value(expr: &Expr) -> Option<i64> {
    match expr {
        Expr::NumberLiteral(ast::ExprNumberLiteral { value: Number::Int(int), .. }) => int.as_i64(),
        Expr::UnaryOp(unary)
            if unary.op == UnaryOp::USub && unary.operand.is_number_literal_expr() =>
        {
            int_value(&unary.operand).map(|value| -value)
        }
        _ => None,
    }
}

/// `math` in `math.sqrt(x)`, or `self`: a name that is no variable.
fn is_module(expr: &Expr, scope: &[&str]) -> bool {
    matches!(expr, Expr::Name(name) if !scope.contains(&name.id.as_str()))
}
