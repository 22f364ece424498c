//! The walk over the syntax tree: where a bug may be, and which names are in scope there.

use ruff_python_ast::token::{TokenKind, Tokens};
use ruff_python_ast::visitor::{self, Visitor};
use ruff_python_ast::{self as ast, Expr, ExprContext, Stmt};
use ruff_text_size::{Ranged, TextRange, TextSize};

use super::{Edit, Operator};

/// Nesting past this is not descended into: the walk must not overflow the stack on any input.
const MAX_DEPTH: usize = 150;

/// Every edit that a rule proposes, roughly in source order. None for text that does not parse.
pub(super) fn find(source: &str) -> Vec<Edit> {
    let Ok(parsed) = ruff_python_parser::parse_module(source) else { return Vec::new() };
    let mut finder = Finder {
        source,
        tokens: parsed.tokens(),
        path: Vec::new(),
        in_function: false,
        scope: Vec::new(),
        strings: Vec::new(),
        depth: 0,
        edits: Vec::new(),
    };
    finder.visit_body(parsed.suite());
    finder.edits
}

pub(super) struct Finder<'a> {
    pub(super) source: &'a str,
    tokens: &'a Tokens,
    /// Names of the classes and functions around the place.
    path: Vec<&'a str>,
    /// Directly in a function's body, not in a class's or the module's.
    in_function: bool,
    /// Parameters and names assigned so far, in order.
    pub(super) scope: Vec<&'a str>,
    /// The string literals of the function, as written.
    pub(super) strings: Vec<&'a str>,
    depth: usize,
    edits: Vec<Edit>,
}

impl<'a> Finder<'a> {
    pub(super) fn text(&self, range: TextRange) -> &'a str {
        &self.source[range]
    }

    /// Proposes an edit, unless it would touch a comment.
    pub(super) fn propose(
        &mut self,
        operator: Operator,
        range: TextRange,
        replacement: String,
        description: String,
    ) {
        let has_comment = self.tokens_in(range).any(|(kind, _)| kind == TokenKind::Comment);
        if !has_comment {
            let function = self.path.join(".");
            self.edits.push(Edit { range, replacement, operator, function, description });
        }
    }

    /// Proposes to replace what stands in `range`, described as such.
    pub(super) fn replace(&mut self, operator: Operator, range: TextRange, replacement: &str) {
        let old = self.text(range);
        if old != replacement {
            let description = format!("`{old}` became `{replacement}`");
            self.propose(operator, range, replacement.to_owned(), description);
        }
    }

    fn tokens_in(&self, range: TextRange) -> impl Iterator<Item = (TokenKind, TextRange)> + '_ {
        let first = self.tokens.partition_point(|token| token.start() < range.start());
        self.tokens[first..]
            .iter()
            .take_while(move |token| token.end() <= range.end())
            .map(|token| (token.kind(), token.range()))
    }

    /// The operator between two operands (behind closing and before opening parentheses).
    pub(super) fn operator_between(
        &self,
        left: &Expr,
        right: &Expr,
        text: &str,
    ) -> Option<TextRange> {
        self.find_tokens(TextRange::new(left.end(), right.start()), text)
    }

    /// The first token, or pair of tokens such as `is not`, with this text.
    pub(super) fn find_tokens(&self, within: TextRange, text: &str) -> Option<TextRange> {
        let words: Vec<&str> = text.split(' ').collect();
        let tokens: Vec<TextRange> = self.tokens_in(within).map(|(_, range)| range).collect();
        tokens
            .windows(words.len())
            .find(|window| {
                window.iter().zip(&words).all(|(range, word)| self.text(*range) == *word)
            })
            .map(|window| TextRange::new(window[0].start(), window[words.len() - 1].end()))
    }

    /// The whole lines of a statement, if nothing else stands on them.
    pub(super) fn whole_lines(&self, range: TextRange) -> Option<TextRange> {
        let (start, end) = (range.start().to_usize(), range.end().to_usize());
        let line_start = self.source[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.source[end..].find('\n').map_or(self.source.len(), |at| end + at + 1);
        let alone = self.source[line_start..start].trim().is_empty()
            && self.source[end..line_end].trim().is_empty();
        alone.then(|| TextRange::new(size(line_start), size(line_end)))
    }

    fn assign(&mut self, name: &'a str) {
        if !self.scope.contains(&name) {
            self.scope.push(name);
        }
    }

    fn visit_function(&mut self, function: &'a ast::StmtFunctionDef) {
        let mut strings = Strings { source: self.source, found: Vec::new(), depth: 0 };
        strings.visit_body(&function.body);
        let outer_strings = std::mem::replace(&mut self.strings, strings.found);
        let outer_scope = self.scope.len();
        let outer = std::mem::replace(&mut self.in_function, true);
        self.path.push(function.name.as_str());
        self.bind_parameters(&function.parameters);
        self.visit_body(&function.body);
        self.path.pop();
        self.in_function = outer;
        self.scope.truncate(outer_scope);
        self.strings = outer_strings;
    }

    fn bind_parameters(&mut self, parameters: &'a ast::Parameters) {
        for parameter in parameters {
            let name = parameter.name().as_str();
            if !matches!(name, "self" | "cls") {
                self.assign(name);
            }
        }
    }
}

/// A byte offset; the parser has refused anything past 4 GiB.
pub(super) fn size(offset: usize) -> TextSize {
    TextSize::new(u32::try_from(offset).unwrap_or(u32::MAX))
}

impl<'a> Visitor<'a> for Finder<'a> {
    fn visit_body(&mut self, body: &'a [Stmt]) {
        for stmt in body {
            if self.in_function {
                self.drop_rule(stmt, body.len());
            }
            self.visit_stmt(stmt);
        }
    }

    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        if self.depth >= MAX_DEPTH {
            return;
        }
        self.depth += 1;
        match stmt {
            Stmt::FunctionDef(function) => self.visit_function(function),
            Stmt::ClassDef(class) => {
                let outer = std::mem::replace(&mut self.in_function, false);
                self.path.push(class.name.as_str());
                self.visit_body(&class.body);
                self.path.pop();
                self.in_function = outer;
            }
            Stmt::Import(_) | Stmt::ImportFrom(_) | Stmt::Global(_) | Stmt::Nonlocal(_) => {}
            Stmt::Expr(expr) if expr.value.is_string_literal_expr() => {}
            _ => {
                if self.in_function {
                    self.statement_rules(stmt);
                }
                visitor::walk_stmt(self, stmt);
            }
        }
        self.depth -= 1;
    }

    fn visit_elif_else_clause(&mut self, clause: &'a ast::ElifElseClause) {
        if let (Some(test), true) = (&clause.test, self.in_function) {
            self.negate(test);
        }
        visitor::walk_elif_else_clause(self, clause);
    }

    fn visit_comprehension(&mut self, comprehension: &'a ast::Comprehension) {
        for test in &comprehension.ifs {
            self.negate(test);
        }
        visitor::walk_comprehension(self, comprehension);
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        if !self.in_function || self.depth >= MAX_DEPTH {
            return;
        }
        self.depth += 1;
        match expr {
            Expr::Name(name) if name.ctx == ExprContext::Store => self.assign(name.id.as_str()),
            Expr::FString(_) | Expr::TString(_) => {}
            Expr::ListComp(_) | Expr::SetComp(_) | Expr::DictComp(_) | Expr::Generator(_) => {
                let outer_scope = self.scope.len();
                visitor::walk_expr(self, expr);
                self.scope.truncate(outer_scope);
            }
            Expr::Lambda(lambda) => {
                let outer_scope = self.scope.len();
                if let Some(parameters) = &lambda.parameters {
                    self.bind_parameters(parameters);
                }
                self.visit_expr(&lambda.body);
                self.scope.truncate(outer_scope);
            }
            Expr::Call(call) => {
                self.expression_rules(expr);
                // Another name in place of the callee is not a bug that anybody writes.
                if !call.func.is_name_expr() {
                    self.visit_expr(&call.func);
                }
                self.visit_arguments(&call.arguments);
            }
            _ => {
                self.expression_rules(expr);
                visitor::walk_expr(self, expr);
            }
        }
        self.depth -= 1;
    }

    fn visit_annotation(&mut self, _: &'a Expr) {}
    fn visit_decorator(&mut self, _: &'a ast::Decorator) {}
    fn visit_parameters(&mut self, _: &'a ast::Parameters) {}
    fn visit_type_params(&mut self, _: &'a ast::TypeParams) {}
    fn visit_pattern(&mut self, _: &'a ast::Pattern) {}
}

/// Collects the plain string literals of a body, docstrings left out.
struct Strings<'a> {
    source: &'a str,
    found: Vec<&'a str>,
    depth: usize,
}

impl<'a> Visitor<'a> for Strings<'a> {
    fn visit_stmt(&mut self, stmt: &'a Stmt) {
        let docstring = matches!(stmt, Stmt::Expr(expr) if expr.value.is_string_literal_expr());
        if self.depth < MAX_DEPTH && !docstring {
            self.depth += 1;
            visitor::walk_stmt(self, stmt);
            self.depth -= 1;
        }
    }

    fn visit_expr(&mut self, expr: &'a Expr) {
        if self.depth >= MAX_DEPTH {
            return;
        }
        self.depth += 1;
        match expr {
            Expr::StringLiteral(literal) => {
                let text = &self.source[literal.range];
                if !literal.value.is_implicit_concatenated() && !self.found.contains(&text) {
                    self.found.push(text);
                }
            }
            Expr::FString(_) | Expr::TString(_) => {}
            _ => visitor::walk_expr(self, expr),
        }
        self.depth -= 1;
    }

    fn visit_annotation(&mut self, _: &'a Expr) {}
    fn visit_decorator(&mut self, _: &'a ast::Decorator) {}
    fn visit_parameters(&mut self, _: &'a ast::Parameters) {}
}
