//! The tokenizer of the base policy, as a Hugging Face `tokenizer.json`.
//!
//! Its idea is that spacing is implied: a name is the same token wherever it stands, single spaces
//! are not tokens, and the decoder puts them back by rules that follow Python's style guide. Line
//! labels of a listing (`12:`) are single tokens, and swallow the line break before them. Words
//! that are not in the vocabulary are spelled in letters, so that any ASCII text can be read.

use std::collections::BTreeSet;

use patchwright_tasks::generated::{LANGUAGE, WORDS};
use serde_json::{Value, json};

/// Special tokens, in the order of their ids from 0.
pub const SPECIAL_TOKENS: [&str; 5] =
    ["<|unk|>", "<|user|>", "<|assistant|>", "<|end|>", "<|doc|>"];

/// Words of commands, observations and issues.
const COMMAND_WORDS: [&str; 23] = [
    "open",
    "edit",
    "submit",
    "create",
    "goto",
    "scroll_up",
    "scroll_down",
    "search_file",
    "search_dir",
    "find_file",
    "replace",
    "python3",
    "print",
    "returned",
    "expected",
    "raised",
    "deleted",
    "Error",
    "line",
    "File",
    "file",
    "Traceback",
    "module",
];

const PUNCTUATION: &str = "()[]{},:=+-*/%<>.#!\"'`@&|^~;\\?$_";

/// Tokens of several characters that are not words.
const COMPOUNDS: [&str; 18] = [
    "==",
    "!=",
    "<=",
    ">=",
    "+=",
    "-=",
    "*=",
    "//",
    "**",
    "->",
    "[::-1]",
    ".py",
    "\n",
    "\nEOF",
    "<<'EOF'\n",
    "<<'EOF'",
    "'EOF'",
    "EOF",
];

/// How text is cut into pieces: heredoc marks, line breaks (unless a label follows), labels,
/// numbers, words, runs of spaces, operators, and any other single character.
const PIECES: &str = concat!(
    r"<<'EOF'\n?|\nEOF|\n(?!\d+:)|\[::-1\]|\.py\b|(?<![^\n])\d+:|\d+:(?=\d)|\d+|python3|",
    r"[A-Za-z_]\w*| {2,}|==|!=|<=|>=|\+=|-=|\*=|//|\*\*|->|[^\s\w]",
);

/// Spaces that the decoder takes out again, from text in which one stands between any two tokens.
const NO_SPACE: [&str; 3] = [
    r" (?=\n)|(?<=\n) ",
    concat!(
        r"(?<=\n    ) (?=\S)|(?<=\n        ) (?=\S)|",
        r"(?<=\n            ) (?=\S)|(?<=\n                ) (?=\S)",
    ),
    concat!(
        r" (?=[)\]},:.])|(?<=[(\[{.]) |(?<=\d:) (?=\d)|(?<=\[ :) |(?<=[(\[,=] -) (?=\d)|",
        r"(?<=[\w)\]])(?<!\breturn)(?<!\bin)(?<!\bif)(?<!\band)(?<!\bor)(?<!\bnot) (?=[(\[])",
    ),
];

/// Numbers below this, and labels up to it, are single tokens.
const NUM_NUMBERS: usize = 100;
/// Deepest indentation that is a single token, in steps of four spaces.
const MAX_INDENT: usize = 4;

/// All tokens, in the order of their ids.
pub fn vocabulary() -> Vec<String> {
    let mut tokens: Vec<String> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut push = |token: String| {
        if seen.insert(token.clone()) {
            tokens.push(token);
        }
    };
    for token in SPECIAL_TOKENS.iter().chain(&COMPOUNDS) {
        push((*token).to_owned());
    }
    for depth in 1..=MAX_INDENT {
        push(" ".repeat(4 * depth));
    }
    for number in 0..NUM_NUMBERS {
        push(number.to_string());
    }
    for label in 1..=NUM_NUMBERS {
        push(format!("{label}:"));
    }
    for character in PUNCTUATION.chars() {
        push(character.to_string());
    }
    for word in LANGUAGE.iter().chain(&COMMAND_WORDS).chain(&WORDS) {
        push((*word).to_owned());
    }
    let letters = || ('a'..='z').chain('A'..='Z');
    for letter in letters() {
        push(letter.to_string());
    }
    for rest in letters().chain('0'..='9').chain("_: \n.'EOF".chars()) {
        push(format!("##{rest}"));
    }
    push(" ".to_owned());
    tokens
}

/// The whole `tokenizer.json`.
pub fn tokenizer_json() -> Value {
    let vocabulary = vocabulary();
    let vocab: serde_json::Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let mut decoders = vec![
        json!({"type": "WordPiece", "prefix": "##", "cleanup": false}),
        json!({"type": "Fuse"}),
    ];
    decoders.extend(
        NO_SPACE
            .iter()
            .map(|regex| json!({"type": "Replace", "pattern": {"Regex": regex}, "content": ""})),
    );
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": PIECES},
                          "behavior": "Removed", "invert": true},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "WordPiece", "unk_token": SPECIAL_TOKENS[0],
                  "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": vocab},
    })
}

#[cfg(test)]
mod tests {
    use super::tokenizer_json;
    use patchwright_agent::Tokenizer;

    /// What the model writes must come out as it stands in a file: indentation, calls, slices.
    #[test]
    fn commands_and_statements_survive_the_implied_spaces() {
        let json = serde_json::to_vec(&tokenizer_json()).unwrap();
        let tokenizer = Tokenizer::from_bytes(&json).unwrap();
        for text in [
            "open amber.py",
            "edit 12:12 <<'EOF'\n    river = [stone for stone in cedar if stone > lemon]\nEOF",
            "edit 3:3 <<'EOF'\n        if river >= 3:\n            river = river + lemon\nEOF",
            "python3 <<'EOF'\nimport amber\nprint(amber.maple([3, 1, 4], -2))\nEOF",
            "return cedar[:3] + sorted(lemon)",
        ] {
            assert_eq!(tokenizer.decode(&tokenizer.encode_text(text)), text);
        }
    }

    #[test]
    fn the_shipped_tokenizer_is_this_one() {
        let shipped: serde_json::Value =
            serde_json::from_str(include_str!("../../../../models/base/tokenizer.json")).unwrap();
        assert_eq!(shipped, tokenizer_json());
    }
}
