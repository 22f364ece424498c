//! From the bare parts of a byte-level BPE tokenizer, as GGUF files have them, to the files that
//! Hugging Face directories have: `tokenizer.json` and `tokenizer_config.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::tokenizer::{Tokenizer, TokenizerError};

/// A byte-level BPE tokenizer (Radford et al. 2019) in its parts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BpeVocabulary {
    /// Name of the pre-tokenizer: `smollm`, `qwen2` or `llama-bpe`.
    pub pre: String,
    /// The tokens by id, bytes written as `GPT-2` does.
    pub tokens: Vec<String>,
    /// Ids of special tokens.
    pub special: Vec<u32>,
    /// Ids of tokens that are cut out of a text before all others and are not special.
    pub added: Vec<u32>,
    /// Pairs of pieces with a space between, the most important first.
    pub merges: Vec<String>,
    /// The token at the beginning of a text.
    pub bos: Option<u32>,
    /// The token that ends a text or turn.
    pub eos: Option<u32>,
    /// The token for what has none.
    pub unk: Option<u32>,
    /// The token that fills rows up.
    pub pad: Option<u32>,
    /// Whether `bos` is put before a text.
    pub add_bos: bool,
    /// The chat template.
    pub chat_template: Option<String>,
    /// Tokens of a text at most.
    pub max_length: usize,
}

/// Contractions, words, single digits (`{digits}`), punctuation, spaces; as the makers of Qwen 2
/// and Llama 3 cut texts.
fn split(digits: &str) -> Value {
    let regex = format!(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    );
    json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": false})
}

/// What a pre-tokenizer's name stands for.
struct PreTokenizer {
    normalizer: Value,
    parts: Vec<Value>,
    /// Whether a word that is a token is not merged.
    ignore_merges: bool,
}

impl PreTokenizer {
    fn named(name: &str) -> Option<Self> {
        let bytes = |use_regex: bool| {
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": use_regex})
        };
        Some(match name {
            "smollm" => Self {
                normalizer: Value::Null,
                parts: vec![json!({"type": "Digits", "individual_digits": true}), bytes(true)],
                ignore_merges: false,
            },
            "qwen2" => Self {
                normalizer: json!({"type": "NFC"}),
                parts: vec![split(r"\p{N}"), bytes(false)],
                ignore_merges: false,
            },
            "llama-bpe" | "llama3" | "llama-v3" => Self {
                normalizer: Value::Null,
                parts: vec![split(r"\p{N}{1,3}"), bytes(false)],
                ignore_merges: true,
            },
            _ => return None,
        })
    }
}

impl BpeVocabulary {
    fn bad(reason: impl Into<String>) -> TokenizerError {
        TokenizerError::Vocabulary(reason.into())
    }

    fn token(&self, id: u32) -> Result<&str, TokenizerError> {
        let token = self.tokens.get(id as usize).map(String::as_str);
        token.ok_or_else(|| Self::bad(format!("id {id} is none of {} tokens", self.tokens.len())))
    }

    /// The bytes of a `tokenizer.json`; they were loaded once, and every id has its token.
    ///
    /// # Errors
    /// [`TokenizerError::Vocabulary`] for a pre-tokenizer that is not known and for tokens and
    /// merges that make no tokenizer.
    pub fn tokenizer_json(&self) -> Result<Vec<u8>, TokenizerError> {
        let pre = PreTokenizer::named(&self.pre).ok_or_else(|| {
            let name = &self.pre;
            Self::bad(format!(
                "pre-tokenizer {name:?} is not supported (smollm, qwen2, llama-bpe are)"
            ))
        })?;
        let mut vocab = BTreeMap::new();
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(first) = vocab.insert(token.as_str(), id) {
                return Err(Self::bad(format!(
                    "ids {first} and {id} are the same token, {token:?}"
                )));
            }
        }
        let merges: Vec<[&str; 2]> = self
            .merges
            .iter()
            .map(|merge| match merge.split_once(' ') {
                Some((a, b)) if !a.is_empty() && !b.is_empty() && !b.contains(' ') => Ok([a, b]),
                _ => Err(Self::bad(format!("merge {merge:?} is no pair"))),
            })
            .collect::<Result<_, _>>()?;
        let mut added: Vec<(u32, bool)> = self.special.iter().map(|id| (*id, true)).collect();
        added.extend(self.added.iter().map(|id| (*id, false)));
        added.sort_unstable();
        let added_tokens = added
            .iter()
            .map(|(id, special)| {
                let content = self.token(*id)?;
                Ok(json!({"id": id, "content": content, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": special}))
            })
            .collect::<Result<Vec<_>, TokenizerError>>()?;
        let file = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added_tokens,
            "normalizer": pre.normalizer,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre.parts},
            "post_processor": self.post_processor()?,
            "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
            "model": {"type": "BPE", "dropout": null, "unk_token": null,
                "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
                "byte_fallback": false, "ignore_merges": pre.ignore_merges,
                "vocab": vocab, "merges": merges},
        });
        let bytes = file.to_string().into_bytes();
        let loaded = Tokenizer::from_bytes(&bytes).map_err(|e| Self::bad(e.to_string()))?;
        let differs = |(id, token): (usize, &String)| loaded.token_id(token) != Some(id as u32);
        match self.tokens.iter().enumerate().find(|entry| differs(*entry)) {
            Some((id, token)) => {
                Err(Self::bad(format!("token {token:?} does not keep its id {id}")))
            }
            None => Ok(bytes),
        }
    }

    fn post_processor(&self) -> Result<Value, TokenizerError> {
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false,
            "use_regex": true});
        let Some(bos) = self.bos.filter(|_| self.add_bos) else { return Ok(bytes) };
        let token = self.token(bos)?;
        let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
        let text = |id: &str, type_id: u32| json!({"Sequence": {"id": id, "type_id": type_id}});
        Ok(json!({"type": "Sequence", "processors": [bytes, {
            "type": "TemplateProcessing",
            "single": [special, text("A", 0)],
            "pair": [special, text("A", 0), special, text("B", 1)],
            "special_tokens": {token: {"id": token, "ids": [bos], "tokens": [token]}},
        }]}))
    }

    /// The text of a `tokenizer_config.json`, chat template included.
    ///
    /// # Errors
    /// [`TokenizerError::Vocabulary`] for an id without a token.
    pub fn tokenizer_config_json(&self) -> Result<String, TokenizerError> {
        let mut config = Map::new();
        // The class that takes everything from tokenizer.json.
        config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
        config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
        config.insert("model_max_length".to_owned(), self.max_length.into());
        let names = ["bos_token", "eos_token", "unk_token", "pad_token"];
        for (name, id) in names.iter().zip([self.bos, self.eos, self.unk, self.pad]) {
            if let Some(id) = id {
                config.insert((*name).to_owned(), self.token(id)?.into());
            }
        }
        if let Some(template) = &self.chat_template {
            config.insert("chat_template".to_owned(), template.as_str().into());
        }
        Ok(format!("{:#}\n", Value::Object(config)))
    }

    /// The text of a `generation_config.json`: which tokens begin and end a text.
    pub fn generation_config_json(&self) -> String {
        let ids =
            [("bos_token_id", self.bos), ("eos_token_id", self.eos), ("pad_token_id", self.pad)];
        let config: Map<String, Value> =
            ids.into_iter().filter_map(|(name, id)| Some((name.to_owned(), id?.into()))).collect();
        format!("{:#}\n", Value::Object(config))
    }
}

#[cfg(test)]
mod tests {
    use super::BpeVocabulary;
    use crate::tokenizer::Tokenizer;

    fn vocabulary(pre: &str) -> BpeVocabulary {
        let tokens = "<|end|> <think> Ġ a b 1 2 3 Ġa ab 12 123 . , Ċ e Ì ģ Ã © Ã©";
        BpeVocabulary {
            pre: pre.to_owned(),
            tokens: tokens.split(' ').map(str::to_owned).collect(),
            special: vec![0],
            added: vec![1],
            merges: ["Ġ a", "a b", "1 2", "12 3", "Ã ©"].map(str::to_owned).to_vec(),
            bos: Some(0),
            eos: Some(0),
            max_length: 64,
            ..BpeVocabulary::default()
        }
    }

    fn ids(pre: &str, text: &str) -> Vec<u32> {
        let json = vocabulary(pre).tokenizer_json().unwrap();
        Tokenizer::from_bytes(&json).unwrap().encode(text)
    }

    #[test]
    fn pre_tokenizers_cut_as_their_makers_do() {
        // SmolLM and Qwen take digits one by one, Llama 3 up to three of them.
        assert_eq!(ids("smollm", " a123"), [8, 5, 6, 7]);
        assert_eq!(ids("qwen2", " a123"), [8, 5, 6, 7]);
        assert_eq!(ids("llama-bpe", " a123"), [8, 11]);
        // Qwen alone composes characters.
        assert_eq!(ids("qwen2", "e\u{301}"), [20]);
        assert_eq!(ids("smollm", "e\u{301}"), [15, 16, 17]);
        assert_eq!(ids("smollm", "ab<|end|><think>"), [9, 0, 1]);
    }

    #[test]
    fn what_makes_no_tokenizer_is_refused() {
        let refused = |change: &dyn Fn(&mut BpeVocabulary)| {
            let mut vocabulary = vocabulary("smollm");
            change(&mut vocabulary);
            vocabulary.tokenizer_json().unwrap_err().to_string()
        };
        for (said, expected) in [
            (refused(&|v| v.pre = "deepseek".to_owned()), "deepseek"),
            (refused(&|v| v.tokens[3] = "b".to_owned()), "the same token"),
            (refused(&|v| v.merges.push("a".to_owned())), "is no pair"),
            (refused(&|v| v.merges.push("a 3".to_owned())), "a3"),
            (refused(&|v| v.special = vec![99]), "id 99"),
        ] {
            assert!(said.contains(expected), "{said:?} does not say {expected:?}");
        }
    }

    #[test]
    fn the_other_files_name_the_tokens() {
        let mut vocabulary = vocabulary("smollm");
        vocabulary.chat_template = Some("{{ messages }}".to_owned());
        let config: serde_json::Value =
            serde_json::from_str(&vocabulary.tokenizer_config_json().unwrap()).unwrap();
        assert_eq!(config["eos_token"], "<|end|>");
        assert_eq!(config["chat_template"], "{{ messages }}");
        assert!(config.get("pad_token").is_none());
        assert_eq!(
            vocabulary.generation_config_json(),
            "{\n  \"bos_token_id\": 0,\n  \"eos_token_id\": 0\n}\n"
        );
    }
}
