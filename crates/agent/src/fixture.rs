//! A small tokenizer for tests: lossless on any ASCII text, made in memory.

use serde_json::{Value, json};

/// Special tokens of the fixture, ids from 0: those of both built-in profiles.
pub const SPECIAL_TOKENS: [&str; 6] =
    ["<|unk|>", "<|user|>", "<|assistant|>", "<|end|>", "<|im_start|>", "<|im_end|>"];

/// The text of a `tokenizer.json` in which each of `words` is one token and every other
/// character of ASCII (line breaks too) is one token of its own.
///
/// A word-piece model over pieces cut by a regular expression; decoding joins the tokens as they
/// are, so that every ASCII text survives the round trip.
pub fn tokenizer_json(words: &[&str]) -> String {
    let mut vocab = serde_json::Map::new();
    let mut add = |token: &str| {
        let id = vocab.len();
        vocab.entry(token.to_owned()).or_insert(json!(id));
    };
    for token in SPECIAL_TOKENS.iter().chain(words) {
        add(token);
    }
    let ascii = (b' '..=b'~').map(char::from).chain(['\n', '\t', '\r']);
    for c in ascii {
        add(&c.to_string());
    }
    let added: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    // Longest first: alternatives are tried in order.
    let mut words: Vec<&str> = words.to_vec();
    words.sort_by_key(|word| std::cmp::Reverse(word.len()));
    let pieces = words.join("|");
    let regex =
        if pieces.is_empty() { "[\\s\\S]".to_owned() } else { format!("{pieces}|[\\s\\S]") };
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Replace", "pattern": {"Regex": "\r\n"}, "content": "\n"},
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Removed",
                          "invert": true},
        "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Fuse"},
            {"type": "Replace", "pattern": {"Regex": "\r\n"}, "content": "\n"},
        ]},
        "model": {"type": "WordPiece", "unk_token": SPECIAL_TOKENS[0],
                  "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                  "vocab": vocab},
    })
    .to_string()
}
