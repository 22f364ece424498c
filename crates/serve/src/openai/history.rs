//! What was said before in a conversation, so that no text is tokenized twice: a prompt that
//! begins with the text of an earlier prompt and its completion begins with their tokens. And its
//! messages, for whoever writes the conversation down.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::Value;
use patchwright_core::{Message, Role};
use serde_json::json;

use crate::text::{ModelText, Rendered};

/// Conversations that are remembered; the oldest is forgotten first.
const MAX_ENTRIES: usize = 256;

/// A prompt that was answered, as messages.
#[derive(Debug)]
pub(crate) struct Asked {
    /// Its tokens' fingerprint, see [`fingerprint`].
    pub prompt: u128,
    pub messages: Vec<Arc<Message>>,
}

/// Earlier prompts of one client with what was sampled after them.
#[derive(Debug, Default)]
pub(crate) struct History {
    entries: Mutex<VecDeque<Rendered>>,
    asked: Mutex<Vec<Asked>>,
    overflowed: AtomicBool,
}

impl History {
    /// A prompt left no room in the context.
    pub(crate) fn note_overflow(&self) {
        self.overflowed.store(true, Ordering::Relaxed);
    }

    /// Whether one did.
    pub(crate) fn has_overflowed(&self) -> bool {
        self.overflowed.load(Ordering::Relaxed)
    }

    /// Notes a completion.
    pub(crate) fn push(&self, text: &ModelText, prompt: &Rendered, sampled: &[u32]) {
        let marked = format!("{}{}", prompt.marked, text.marked_completion(sampled));
        let tokens = [&prompt.tokens[..], sampled].concat();
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if entries.len() == MAX_ENTRIES {
            entries.pop_front();
        }
        entries.push_back(Rendered { marked, tokens });
    }

    /// Notes the messages of a prompt that was answered, where all of them can be written down.
    /// What a conversation has in common with the one before it is held once.
    pub(crate) fn note_messages(&self, prompt: &Rendered, messages: &[Value]) {
        let Some(messages) = messages.iter().map(message).collect::<Option<Vec<_>>>() else {
            return;
        };
        let mut asked = self.asked();
        let known = asked.last().map(|last| &last.messages[..]).unwrap_or_default();
        let shared = messages.into_iter().enumerate().map(|(i, message)| match known.get(i) {
            Some(known) if **known == message => Arc::clone(known),
            _ => Arc::new(message),
        });
        let messages = shared.collect();
        asked.push(Asked { prompt: fingerprint(&prompt.tokens), messages });
    }

    /// The prompts that were noted, in the order of their answers. They are forgotten.
    pub(crate) fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked())
    }

    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A prompt with the tokens of the longest conversation that it goes on with; only what is new
    /// is tokenized.
    pub(crate) fn continued(&self, text: &ModelText, marked: String) -> Rendered {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.iter().filter(|entry| marked.starts_with(&entry.marked));
        let known = known.max_by_key(|entry| entry.marked.len());
        let known = known.map(|entry| (entry.marked.len(), entry.tokens.clone()));
        drop(entries);
        let Some((len, mut tokens)) = known else { return text.tokenized(marked) };
        tokens.extend(text.encode_marked(&marked[len..]));
        Rendered { marked, tokens }
    }
}

/// Tells prompts apart: a hash of their tokens.
pub(crate) fn fingerprint(tokens: &[u32]) -> u128 {
    use sha2::{Digest, Sha256};
    let mut digest = Sha256::new();
    for token in tokens {
        digest.update(token.to_le_bytes());
    }
    let digest = digest.finalize();
    digest.iter().take(16).fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// A message of a request; calls of tools stand in its text as models of the Hermes form write
/// them. `None` for who it is nobody knows.
fn message(message: &Value) -> Option<Message> {
    let get = |name: &str| message.get_attr(name).unwrap_or_default();
    let role = match get("role").as_str()? {
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => Role::Tool,
        _ => return None,
    };
    let mut content = get("content").as_str().unwrap_or_default().to_owned();
    for call in get("tool_calls").try_iter().into_iter().flatten() {
        let function = call.get_attr("function").unwrap_or_default();
        let part = |name: &str| {
            let value = function.get_attr(name).unwrap_or_default();
            serde_json::to_value(value).unwrap_or_default()
        };
        let call = json!({"name": part("name"), "arguments": part("arguments")});
        if !content.is_empty() {
            content.push('\n');
        }
        content.extend(["<tool_call>\n", &call.to_string(), "\n</tool_call>"]);
    }
    Some(Message { role, content })
}

#[cfg(test)]
mod tests {
    use minijinja::Value;
    use patchwright_core::Role;
    use serde_json::json;

    use super::message;

    fn read(message: serde_json::Value) -> Value {
        serde_json::from_value(message).unwrap()
    }

    #[test]
    fn messages_of_requests_are_text() {
        let call = json!({"id": "1", "type": "function",
                          "function": {"name": "bash", "arguments": {"command": "ls"}}});
        let written = "<tool_call>\n{\"arguments\":{\"command\":\"ls\"},\"name\":\"bash\"}\n\
                       </tool_call>";
        for (given, role, content) in [
            (json!({"role": "developer", "content": "rules"}), Role::System, "rules".to_owned()),
            (json!({"role": "tool", "tool_call_id": "1", "content": "a"}), Role::Tool, "a".into()),
            (
                json!({"role": "assistant", "content": "I look.", "tool_calls": [call]}),
                Role::Assistant,
                format!("I look.\n{written}"),
            ),
            (
                json!({"role": "assistant", "content": "", "tool_calls": [call]}),
                Role::Assistant,
                written.to_owned(),
            ),
        ] {
            let read = message(&read(given.clone())).unwrap();
            assert_eq!((read.role, read.content), (role, content), "{given}");
        }
        assert_eq!(message(&read(json!({"role": "ghost", "content": ""}))), None);
    }
}
