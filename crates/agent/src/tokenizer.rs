//! Text to token ids and back: the only place where it happens.
//!
//! A text that comes from outside (an issue, a file, a command's output) must never become a
//! special token, or a repository could end the observation and speak as the assistant. So there
//! are two ways in: [`Tokenizer::encode_text`] for text from outside, which yields ordinary
//! tokens only, and [`Tokenizer::encode`] for strings of a profile, where `<|end|>` means the
//! token.

use std::path::Path;

use tokenizers::Tokenizer as Inner;

/// A tokenizer that cannot be loaded or used.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("tokenizer {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The bytes are not a `tokenizer.json`.
    #[error("tokenizer {path} is not a valid tokenizer.json: {reason}")]
    Format {
        /// The file, or a name for bytes.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Tokens and merges that make no tokenizer.
    #[error("vocabulary: {0}")]
    Vocabulary(String),
}

/// A piece of a prompt, with the trust that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Written by the profile: special tokens in it are special tokens.
    Framing(&'a str),
    /// From outside: nothing in it is a special token.
    Text(&'a str),
}

/// A HF `tokenizer.json`, loaded.
#[derive(Clone)]
pub struct Tokenizer {
    /// Set up so that special tokens in a text are encoded as ordinary text.
    inner: Inner,
    /// Special tokens by content, longest first.
    specials: Vec<(String, u32)>,
    /// Their ids, ascending.
    special_ids: Vec<u32>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Loads a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Io`] and [`TokenizerError::Format`].
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path)
            .map_err(|source| TokenizerError::Io { path: name.clone(), source })?;
        Self::load(&bytes, &name)
    }

    /// Loads the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// [`TokenizerError::Format`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        Self::load(bytes, "(in memory)")
    }

    fn load(bytes: &[u8], name: &str) -> Result<Self, TokenizerError> {
        let format = |error: tokenizers::Error| TokenizerError::Format {
            path: name.to_owned(),
            reason: error.to_string(),
        };
        let mut inner = Inner::from_bytes(bytes).map_err(format)?;
        // A tokenizer.json may ask for cutting or padding; a trajectory has neither.
        inner.with_truncation(None).map_err(format)?;
        inner.with_padding(None);
        inner.set_encode_special_tokens(true);
        let mut specials: Vec<(String, u32)> = inner
            .get_added_tokens_decoder()
            .iter()
            .filter(|(_, token)| token.special && !token.content.is_empty())
            .map(|(id, token)| (token.content.clone(), *id))
            .collect();
        specials.sort_by(|a, b| (b.0.len(), &a.0).cmp(&(a.0.len(), &b.0)));
        let mut special_ids: Vec<u32> = specials.iter().map(|(_, id)| *id).collect();
        special_ids.sort_unstable();
        Ok(Self { inner, specials, special_ids })
    }

    /// Number of ids, special tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token by its content.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Encodes a string of a profile: special tokens in it become their ids. Adds none.
    pub fn encode(&self, framing: &str) -> Vec<u32> {
        self.encode_pieces(&[Piece::Framing(framing)])
    }

    /// Encodes text from outside: the result holds no special token, whatever the text says
    /// (except the unknown token, in a vocabulary that calls it special).
    pub fn encode_text(&self, text: &str) -> Vec<u32> {
        self.encode_pieces(&[Piece::Text(text)])
    }

    /// Encodes pieces as one string: ordinary text that meets across two pieces is tokenized
    /// together, as a chat template rendered to one string would be.
    pub fn encode_pieces(&self, pieces: &[Piece<'_>]) -> Vec<u32> {
        let mut tokens = Vec::new();
        let mut plain = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => plain.push_str(text),
                Piece::Framing(framing) => {
                    let mut rest = *framing;
                    while let Some((at, special, id)) = self.first_special(rest) {
                        plain.push_str(&rest[..at]);
                        self.encode_plain(&plain, &mut tokens);
                        plain.clear();
                        tokens.push(id);
                        rest = &rest[at + special.len()..];
                    }
                    plain.push_str(rest);
                }
            }
        }
        self.encode_plain(&plain, &mut tokens);
        tokens
    }

    /// The leftmost special token of `text` (the longest of those that start there).
    fn first_special(&self, text: &str) -> Option<(usize, &str, u32)> {
        self.specials
            .iter()
            .filter_map(|(special, id)| text.find(special.as_str()).map(|at| (at, special, *id)))
            .min_by_key(|(at, special, _)| (*at, std::cmp::Reverse(special.len())))
            .map(|(at, special, id)| (at, special.as_str(), id))
    }

    fn encode_plain(&self, text: &str, tokens: &mut Vec<u32>) {
        let start = tokens.len();
        self.encode_inner(text, tokens);
        if !tokens[start..].iter().any(|id| self.is_special(*id)) {
            return;
        }
        // A vocabulary may hold its special tokens as ordinary entries too, so that the model
        // finds them by itself. Cutting each after its first character hides it.
        tokens.truncate(start);
        let mut rest = text;
        let mut part = String::new();
        while let Some((at, _, _)) = self.first_special(rest) {
            let first = rest[at..].chars().next().map_or(1, char::len_utf8);
            part.push_str(&rest[..at + first]);
            self.encode_inner(&part, tokens);
            part.clear();
            rest = &rest[at + first..];
        }
        part.push_str(rest);
        self.encode_inner(&part, tokens);
    }

    fn encode_inner(&self, text: &str, tokens: &mut Vec<u32>) {
        if text.is_empty() {
            return;
        }
        if let Ok(encoding) = self.inner.encode_fast(text, false) {
            tokens.extend_from_slice(encoding.get_ids());
            return;
        }
        // A model without an unknown token refuses the whole text for one character; then the
        // characters that it can spell are all that can be said.
        for (at, c) in text.char_indices() {
            if let Ok(encoding) = self.inner.encode_fast(&text[at..at + c.len_utf8()], false) {
                tokens.extend_from_slice(encoding.get_ids());
            }
        }
    }

    /// Whether an id is a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.binary_search(&id).is_ok()
    }

    /// The text of tokens; special tokens show as their content, ids out of the vocabulary not
    /// at all.
    pub fn decode(&self, tokens: &[u32]) -> String {
        self.inner.decode(tokens, false).unwrap_or_else(|_| {
            // The decoder's rules failed: the bare tokens say more than nothing.
            tokens.iter().filter_map(|id| self.inner.id_to_token(*id)).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{Piece, Tokenizer};
    use crate::fixture::tokenizer_json;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_bytes(tokenizer_json(&["open", "submit", "return"]).as_bytes()).unwrap()
    }

    #[test]
    fn framing_makes_special_tokens_and_text_never_does() {
        let tokenizer = tokenizer();
        let end = tokenizer.token_id("<|end|>").unwrap();
        let user = tokenizer.token_id("<|user|>").unwrap();
        assert_eq!(tokenizer.encode("<|user|><|end|>"), [user, end]);
        for text in ["<|end|>", "a<|end|>b", "<|user|><|end|>", "<<|end|>|end|>", "<|end|"] {
            let tokens = tokenizer.encode_text(text);
            assert!(!tokens.iter().any(|id| tokenizer.is_special(*id)), "{text}: {tokens:?}");
            assert!(!tokens.is_empty());
        }
    }

    #[test]
    fn special_tokens_in_the_models_own_vocabulary_are_hidden_too() {
        // Whole-line words, so that `<|end|>` reaches the model in one piece.
        let json = r#"{"version":"1.0","added_tokens":[{"id":1,"content":"<|end|>",
            "single_word":false,"lstrip":false,"rstrip":false,"normalized":false,"special":true}],
            "normalizer":null,"pre_tokenizer":null,"post_processor":null,"decoder":null,
            "truncation":null,"padding":null,
            "model":{"type":"WordPiece","unk_token":"?","continuing_subword_prefix":"",
            "max_input_chars_per_word":100,
            "vocab":{"?":0,"<|end|>":1,"<":2,"|end|>":3,"a":4}}}"#;
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).unwrap();
        assert_eq!(tokenizer.encode("a<|end|>"), [4, 1]);
        assert_eq!(tokenizer.encode_text("a<|end|>"), [4, 2, 3]);
        assert_eq!(tokenizer.encode_text("<|end|><|end|>"), [2, 3, 2, 3]);
    }

    #[test]
    fn plain_text_meets_across_pieces() {
        let tokenizer = tokenizer();
        let together = tokenizer.encode_text("return");
        assert_eq!(together.len(), 1);
        let pieces = [Piece::Framing("<|user|>re"), Piece::Text("turn"), Piece::Framing("<|end|>")];
        assert_eq!(tokenizer.encode_pieces(&pieces)[1..2], together);
    }

    #[test]
    fn commands_survive_the_round_trip() {
        let tokenizer = tokenizer();
        let text = "edit 2:3 <<'EOF'\n    return a + 1\nEOF";
        assert_eq!(tokenizer.decode(&tokenizer.encode_text(text)), text);
    }

    #[test]
    fn what_is_not_a_tokenizer_is_refused() {
        let error = Tokenizer::from_bytes(b"{}").unwrap_err().to_string();
        assert!(error.contains("not a valid tokenizer.json"), "{error}");
    }
}
