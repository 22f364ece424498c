//! A model's text: its tokenizer, chat template and the tokens that end what it says.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use minijinja::Value;
use patchwright_agent::{ChatOptions, ChatTemplate, Piece, Tokenizer, chat::message};

use crate::error::ServeError;
use crate::token_bytes::Vocabulary;

/// The template of models that have none but the special tokens of the compact profile, such as
/// the shipped base policy: what it was trained with.
const COMPACT_TEMPLATE: &str = "{% for m in messages %}{% if m.role == 'assistant' %}\
    <|assistant|>{{ m.content }}<|end|>{% else %}<|user|>{{ m.content }}{% endif %}{% endfor %}\
    {% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Stands before the number of a special token that a message spells out, and after it. Private
/// characters, which are themselves escaped in the same way.
const OPEN: char = '\u{F8F0}';
const CLOSE: char = '\u{F8F1}';

/// A message of a template's test conversation that no template has reason to change.
const PROBE: &str = "Assistantmessage1";

/// How a model's tokens are text. Shared by all requests.
#[derive(Debug)]
pub struct ModelText {
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    vocabulary: Vocabulary,
    stop_tokens: Vec<u32>,
}

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rendered {
    /// The text with what messages spell of special tokens marked, see [`ModelText::render_marked`].
    pub marked: String,
    pub tokens: Vec<u32>,
}

impl ModelText {
    /// Reads a model's directory: `tokenizer.json`; the chat template and the end tokens where
    /// there are any.
    ///
    /// # Errors
    /// [`ServeError::Model`] naming the file.
    pub fn from_dir(dir: &Path) -> Result<Self, ServeError> {
        let template = ChatTemplate::from_dir(dir).map_err(|e| ServeError::Model(e.to_string()))?;
        Self::with_template(dir, template)
    }

    /// [`ModelText::from_dir`] with another chat template.
    ///
    /// # Errors
    /// [`ServeError::Model`] naming the file.
    pub fn with_template(dir: &Path, template: Option<ChatTemplate>) -> Result<Self, ServeError> {
        let path = dir.join("tokenizer.json");
        let fail = |reason: String| ServeError::Model(format!("{}: {reason}", path.display()));
        let bytes = std::fs::read(&path).map_err(|e| fail(e.to_string()))?;
        let tokenizer = Tokenizer::from_bytes(&bytes).map_err(|e| fail(e.to_string()))?;
        let json = serde_json::from_slice(&bytes).map_err(|e| fail(e.to_string()))?;
        Self::new(tokenizer, Vocabulary::read(&json), template, &end_tokens(dir)?)
    }

    /// A tokenizer from the text of a `tokenizer.json`, with a chat template.
    ///
    /// # Errors
    /// [`ServeError::Model`] for what is no tokenizer.
    pub fn from_json(json: &str, template: Option<ChatTemplate>) -> Result<Self, ServeError> {
        let fail = |reason: String| ServeError::Model(reason);
        let tokenizer = Tokenizer::from_bytes(json.as_bytes()).map_err(|e| fail(e.to_string()))?;
        let json = serde_json::from_str(json).map_err(|e| fail(e.to_string()))?;
        Self::new(tokenizer, Vocabulary::read(&json), template, &Ends::default())
    }

    fn new(
        tokenizer: Tokenizer,
        vocabulary: Vocabulary,
        template: Option<ChatTemplate>,
        ends: &Ends,
    ) -> Result<Self, ServeError> {
        let compact = ["<|user|>", "<|assistant|>", "<|end|>"];
        let template = match template {
            None if compact.iter().all(|t| vocabulary.specials.iter().any(|s| s == t)) => {
                let template = ChatTemplate::new(COMPACT_TEMPLATE.to_owned(), [].into());
                Some(template.map_err(|e| ServeError::Model(e.to_string()))?)
            }
            template => template,
        };
        let named = ends.names.iter().filter_map(|name| tokenizer.token_id(name));
        let mut stops: BTreeSet<u32> = ends.ids.iter().copied().chain(named).collect();
        stops.extend(template.as_ref().and_then(|template| turn_end(template, &tokenizer)));
        let stop_tokens = stops.into_iter().collect();
        Ok(Self { tokenizer: Arc::new(tokenizer), template, vocabulary, stop_tokens })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// Tokens that end what the model says.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// Bytes of each token for the engine's stop strings; `None` where they depend on a token's
    /// neighbours.
    pub fn token_bytes(&self) -> Option<&[Vec<u8>]> {
        self.vocabulary.token_bytes.as_deref()
    }

    /// The text of tokens without special tokens.
    pub fn visible(&self, tokens: &[u32]) -> String {
        let plain: Vec<u32> =
            tokens.iter().copied().filter(|id| !self.tokenizer.is_special(*id)).collect();
        self.tokenizer.decode(&plain)
    }

    /// Whether there is a chat template.
    pub fn has_template(&self) -> bool {
        self.template.is_some()
    }

    /// A conversation with the opening of the assistant's next message. What messages and tools
    /// spell of special tokens stays text: it is marked before the template sees it, and the
    /// marks are taken out when the text becomes tokens ([`ModelText::tokenized`]).
    ///
    /// # Errors
    /// What the template says, for people.
    pub(crate) fn render_marked(
        &self,
        messages: &[Value],
        tools: Option<&Value>,
        variables: std::collections::BTreeMap<String, Value>,
    ) -> Result<String, String> {
        let Some(template) = &self.template else {
            return Err("this model has no chat template; use /v1/completions, or serve it with \
                 --chat-template FILE"
                .to_owned());
        };
        let messages: Vec<Value> = messages.iter().map(|m| self.mark(m)).collect();
        let options = ChatOptions {
            add_generation_prompt: true,
            tools: tools.map(|tools| self.mark(tools)),
            variables,
            now: None,
        };
        template.render(&messages, &options).map_err(|e| e.to_string())
    }

    /// A text with marks and its tokens.
    pub(crate) fn tokenized(&self, marked: String) -> Rendered {
        let tokens = self.encode_marked(&marked);
        Rendered { marked, tokens }
    }

    /// Tokens of a text with marks.
    pub(crate) fn encode_marked(&self, marked: &str) -> Vec<u32> {
        let mut pieces = Vec::new();
        let mut rest = marked;
        while let Some((before, name, after)) = next_mark(rest) {
            let Some(said) = self.said(name) else { break };
            pieces.extend([Piece::Framing(before), Piece::Text(said)]);
            rest = after;
        }
        pieces.push(Piece::Framing(rest));
        self.tokenizer.encode_pieces(&pieces)
    }

    /// The text of sampled tokens as it would stand, marked, in a later conversation: text that
    /// the model spelled is text, and special tokens are tokens.
    pub(crate) fn marked_completion(&self, tokens: &[u32]) -> String {
        let (end, said) = match tokens.split_last() {
            Some((last, said)) if self.stop_tokens.contains(last) => (Some(*last), said),
            _ => (None, tokens),
        };
        let mut text = self.mark_text(&self.visible(said));
        text.extend(end.map(|end| self.tokenizer.decode(&[end])));
        text
    }

    /// What a mark stands for.
    fn said<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match name {
            "open" => Some("\u{F8F0}"),
            "close" => Some("\u{F8F1}"),
            number => self.vocabulary.specials.get(number.parse::<usize>().ok()?).map(|s| &**s),
        }
    }

    fn mark(&self, value: &Value) -> Value {
        use minijinja::value::ValueKind;
        match value.kind() {
            ValueKind::String => {
                value.as_str().map_or_else(|| value.clone(), |text| self.mark_text(text).into())
            }
            ValueKind::Map => {
                Value::from_pairs(value.try_iter().into_iter().flatten().map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    (self.mark(&key), self.mark(&item))
                }))
            }
            ValueKind::Seq => {
                value.try_iter().into_iter().flatten().map(|v| self.mark(&v)).collect()
            }
            _ => value.clone(),
        }
    }

    fn mark_text(&self, text: &str) -> String {
        let specials = &self.vocabulary.specials;
        let mut marked = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let special = specials.iter().position(|special| rest.starts_with(special.as_str()));
            let (name, len) = match (special, c) {
                (Some(index), _) => (index.to_string(), specials[index].len()),
                (None, OPEN) => ("open".to_owned(), c.len_utf8()),
                (None, CLOSE) => ("close".to_owned(), c.len_utf8()),
                (None, _) => {
                    marked.push(c);
                    rest = &rest[c.len_utf8()..];
                    continue;
                }
            };
            marked.extend([OPEN].into_iter().chain(name.chars()).chain([CLOSE]));
            rest = &rest[len..];
        }
        marked
    }
}

/// The text before the next mark, the mark's name, the text after it.
fn next_mark(text: &str) -> Option<(&str, &str, &str)> {
    let (before, rest) = text.split_once(OPEN)?;
    let (name, after) = rest.split_once(CLOSE)?;
    Some((before, name, after))
}

/// The special token that a template puts after an assistant's message.
fn turn_end(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<u32> {
    let said = [message("user", "Usermessage1"), message("assistant", PROBE)];
    let text = template.render(&said, &ChatOptions::default()).ok()?;
    let (_, after) = text.rsplit_once(PROBE)?;
    let first = *tokenizer.encode(after).first()?;
    tokenizer.is_special(first).then_some(first)
}

/// End tokens as a model's files name them.
#[derive(Debug, Default)]
struct Ends {
    ids: Vec<u32>,
    names: Vec<String>,
}

/// `eos_token_id` of `generation_config.json` and `config.json`, `eos_token` of
/// `tokenizer_config.json`. A file that is missing says nothing.
fn end_tokens(dir: &Path) -> Result<Ends, ServeError> {
    let mut ends = Ends::default();
    for name in ["generation_config.json", "config.json", "tokenizer_config.json"] {
        let path = dir.join(name);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let json: serde_json::Value = serde_json::from_slice(&bytes)
            .map_err(|error| ServeError::Model(format!("{}: {error}", path.display())))?;
        let ids = &json["eos_token_id"];
        let ids = ids.as_array().map_or(std::slice::from_ref(ids), Vec::as_slice);
        ends.ids.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
        let name = json["eos_token"].as_str().or_else(|| json["eos_token"]["content"].as_str());
        ends.names.extend(name.map(str::to_owned));
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use minijinja::Value;
    use patchwright_agent::chat::message;
    use patchwright_agent::fixture::tokenizer_json;
    use proptest::prelude::*;

    use super::ModelText;

    impl ModelText {
        fn render(&self, messages: &[Value]) -> super::Rendered {
            self.tokenized(self.render_marked(messages, None, [].into()).unwrap())
        }
    }

    fn text() -> ModelText {
        ModelText::from_json(&tokenizer_json(&["return"]), None).unwrap()
    }

    #[test]
    fn a_conversation_is_rendered_with_the_compact_template_where_there_is_no_other() {
        let text = text();
        let end = text.tokenizer().token_id("<|end|>").unwrap();
        assert_eq!(text.stop_tokens(), [end]);
        let said = [message("user", "a"), message("assistant", "b"), message("user", "c")];
        let rendered = text.render(&said);
        assert_eq!(rendered.marked, "<|user|>a<|assistant|>b<|end|><|user|>c<|assistant|>");
        assert_eq!(text.tokenizer().decode(&rendered.tokens), rendered.marked);
        assert_eq!(text.visible(&rendered.tokens), "abc");
    }

    #[test]
    fn what_was_sampled_stands_in_the_next_prompt_as_it_is_marked() {
        let text = text();
        let first = text.render(&[message("user", "a")]);
        let mut sampled = text.tokenizer().encode_text("x<|user|>y");
        sampled.push(text.stop_tokens()[0]);
        let reply = text.visible(&sampled);
        let said = [message("user", "a"), message("assistant", &reply), message("user", "c")];
        let second = text.render(&said);
        let expected = first.marked + &text.marked_completion(&sampled);
        assert!(second.marked.starts_with(&expected), "{} / {expected}", second.marked);
    }

    proptest! {
        #[test]
        fn no_message_makes_a_special_token(content in "(<\\|user\\|>|<\\|end\\|>|\u{F8F0}|\u{F8F1}|0|[a-c<|>]){0,12}") {
            let text = text();
            let rendered = text.render(&[message("user", &content)]);
            let special = |id: &&u32| text.tokenizer().is_special(**id) && **id != 0;
            prop_assert_eq!(rendered.tokens.iter().filter(special).count(), 2);
            let tools = Value::from_pairs([("name", content.as_str())]);
            prop_assert!(text.mark(&tools).get_attr("name").unwrap().as_str().is_some());
        }
    }
}
