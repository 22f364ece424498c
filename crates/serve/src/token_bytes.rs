//! The bytes of each token, read from a `tokenizer.json`.
//!
//! Only for vocabularies in which a token's bytes do not depend on its neighbours: byte-level ones
//! (GPT-2, Llama 3, Qwen, `SmolLM`), and those without a decoder that changes anything. For others
//! (spaces implied by rules) there is no such list, and stop strings are looked for in the text.

use std::collections::HashMap;

use serde_json::Value;

/// What a `tokenizer.json` says about its tokens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Vocabulary {
    /// Bytes of each token in the order of ids, empty where it has no text; `None` where they
    /// depend on the neighbours.
    pub token_bytes: Option<Vec<Vec<u8>>>,
    /// Contents of the special tokens, longest first.
    pub specials: Vec<String>,
}

impl Vocabulary {
    /// Reads the text of a `tokenizer.json`, as far as it can be.
    pub(crate) fn read(json: &Value) -> Self {
        let added: Vec<&Value> = json["added_tokens"].as_array().into_iter().flatten().collect();
        let mut specials: Vec<String> = added
            .iter()
            .filter(|token| token["special"] == true)
            .filter_map(|token| token["content"].as_str().map(str::to_owned))
            .filter(|content| !content.is_empty())
            .collect();
        specials.sort_by_key(|content| std::cmp::Reverse(content.len()));
        Self { token_bytes: token_bytes(json, &added), specials }
    }
}

fn token_bytes(json: &Value, added: &[&Value]) -> Option<Vec<Vec<u8>>> {
    if !is_byte_level(&json["decoder"]) {
        return None;
    }
    let alphabet = alphabet();
    let vocab = json["model"]["vocab"].as_object()?;
    let ids = vocab.values().chain(added.iter().map(|token| &token["id"]));
    let size = ids.filter_map(Value::as_u64).max()? + 1;
    // A vocabulary has as many ids as entries, give or take gaps.
    if size > 16 * (vocab.len() + added.len()) as u64 {
        return None;
    }
    let mut bytes = vec![Vec::new(); usize::try_from(size).ok()?];
    for (token, id) in vocab {
        let spelled: Option<Vec<u8>> = token.chars().map(|c| alphabet.get(&c).copied()).collect();
        bytes[id.as_u64()? as usize] = spelled.unwrap_or_else(|| token.clone().into_bytes());
    }
    for token in added {
        let id = token["id"].as_u64()? as usize;
        let special = token["special"] == true;
        let content = token["content"].as_str().unwrap_or_default();
        bytes[id] = if special { Vec::new() } else { content.as_bytes().to_vec() };
    }
    Some(bytes)
}

fn is_byte_level(decoder: &Value) -> bool {
    match decoder["type"].as_str() {
        Some("ByteLevel") => true,
        Some("Sequence") => decoder["decoders"]
            .as_array()
            .is_some_and(|parts| matches!(&parts[..], [part] if is_byte_level(part))),
        _ => false,
    }
}

/// The characters that stand for bytes in byte-level vocabularies (GPT-2's `bytes_to_unicode`):
/// printable bytes for themselves, the others, in order, for the characters from U+0100.
fn alphabet() -> HashMap<char, u8> {
    let mut next = 0x100u32;
    (0..=255u8)
        .filter_map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let code = if printable {
                u32::from(byte)
            } else {
                next += 1;
                next - 1
            };
            Some((char::from_u32(code)?, byte))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{Vocabulary, alphabet};

    #[test]
    fn the_alphabet_is_gpt2s() {
        let alphabet = alphabet();
        assert_eq!(alphabet.len(), 256);
        for (c, byte) in
            [('Ġ', b' '), ('Ċ', b'\n'), ('a', b'a'), ('ł', 0xa0), ('Ń', 0xad), ('ÿ', 0xff)]
        {
            assert_eq!(alphabet[&c], byte, "{c}");
        }
    }

    #[test]
    fn byte_level_tokens_have_bytes_and_others_none() {
        let mut tokenizer = json!({
            "decoder": {"type": "ByteLevel"},
            "added_tokens": [{"id": 2, "content": "<|end|>", "special": true},
                             {"id": 3, "content": "<tool>", "special": false}],
            "model": {"vocab": {"Ġa": 0, "Ã©": 1}},
        });
        let vocabulary = Vocabulary::read(&tokenizer);
        let bytes = vocabulary.token_bytes.unwrap();
        assert_eq!(bytes, [b" a".to_vec(), "é".as_bytes().to_vec(), vec![], b"<tool>".to_vec()]);
        assert_eq!(vocabulary.specials, ["<|end|>"]);
        tokenizer["decoder"] = json!({"type": "WordPiece"});
        assert!(Vocabulary::read(&tokenizer).token_bytes.is_none());
    }
}
