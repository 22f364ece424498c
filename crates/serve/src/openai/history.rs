//! What was said before in a conversation, so that no text is tokenized twice: a prompt that
//! begins with the text of an earlier prompt and its completion begins with their tokens.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::text::{ModelText, Rendered};

/// Conversations that are remembered; the oldest is forgotten first.
const MAX_ENTRIES: usize = 256;

/// Earlier prompts of one client with what was sampled after them.
#[derive(Debug, Default)]
pub(crate) struct History {
    entries: Mutex<VecDeque<Rendered>>,
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
