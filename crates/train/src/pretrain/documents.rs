//! Documents of pretraining that are not sessions: source text, and listings re-shown.
//!
//! A re-shown listing repeats lines of a shown file in random order, by their labels: copying a
//! line that a number names is what every later edit needs, and it emerges from nothing else as
//! fast.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use patchwright_agent::Tokenizer;
use patchwright_core::TrainingSample;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

use super::LossWeights;

/// Ids of the tokens that frame documents.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Opens an observation or a prompt.
    pub user: u32,
    /// Opens a turn.
    pub assistant: u32,
    /// Ends a turn.
    pub end: u32,
    /// Opens a plain document.
    pub doc: u32,
}

/// Tokens with their weights, as they are gathered.
#[derive(Default)]
struct Draft {
    tokens: Vec<u32>,
    loss_mask: Vec<f32>,
}

impl Draft {
    fn push(&mut self, tokens: &[u32], weight: f32) {
        self.tokens.extend_from_slice(tokens);
        self.loss_mask.extend(std::iter::repeat_n(weight, tokens.len()));
    }

    fn finish(self) -> TrainingSample {
        TrainingSample::supervised(self.tokens, self.loss_mask)
    }
}

/// The text of one module.
pub fn source(
    tokenizer: &Tokenizer,
    frame: Frame,
    text: &str,
    weights: &LossWeights,
) -> TrainingSample {
    let mut draft = Draft::default();
    draft.push(&[frame.doc], 0.0);
    draft.push(&tokenizer.encode_text(text), weights.source);
    draft.push(&[frame.end], weights.source);
    draft.finish()
}

/// Share of the re-shown listings that show one function instead of a whole module.
const FUNCTION_SHARE: f64 = 0.6;
/// Largest label that a listing of one function starts with.
const MAX_FIRST_LABEL: usize = 30;

/// A listing (of a module, or of one of its functions somewhere in a file), then some of its lines
/// again in random order: half of the time as labelled lines, half of the time as edits that leave
/// the line as it is.
pub fn reshow(
    tokenizer: &Tokenizer,
    frame: Frame,
    text: &str,
    weights: &LossWeights,
    rng: &mut ChaCha8Rng,
) -> TrainingSample {
    let functions: Vec<&str> = text.split("\n\n\n").collect();
    let (text, first) = match functions.choose(rng) {
        Some(function) if rng.random_bool(FUNCTION_SHARE) => {
            (*function, rng.random_range(1..=MAX_FIRST_LABEL))
        }
        _ => (text, 1),
    };
    let lines: Vec<&str> = text.lines().collect();
    let shown: Vec<usize> = (0..lines.len()).filter(|i| !lines[*i].is_empty()).collect();
    let num_again = rng.random_range(4..=8);
    let order: Vec<usize> = (0..num_again).filter_map(|_| shown.choose(rng).copied()).collect();
    let mut draft = Draft::default();
    draft.push(&[frame.user], 0.0);
    draft.push(&tokenizer.encode_text(&listing(&lines, first)), weights.observation);
    draft.push(&[frame.assistant], 0.0);
    if rng.random_bool(0.5) {
        let again: Vec<String> =
            order.iter().map(|i| format!("{}:{}", first + i, lines[*i])).collect();
        draft.push(&tokenizer.encode_text(&again.join("\n")), weights.action);
        draft.push(&[frame.end], weights.action);
        return draft.finish();
    }
    for (n, &i) in order.iter().enumerate() {
        if n > 0 {
            draft.push(&[frame.assistant], 0.0);
        }
        let (number, line) = (first + i, lines[i]);
        let edit = format!("edit {number}:{number} <<'EOF'\n{line}\nEOF");
        draft.push(&tokenizer.encode_text(&edit), weights.action);
        draft.push(&[frame.end], weights.action);
        draft.push(&[frame.user], 0.0);
        draft.push(&tokenizer.encode_text(&format!("{number}:{line}")), weights.observation);
    }
    draft.finish()
}

fn listing(lines: &[&str], first: usize) -> String {
    let mut text = String::new();
    for (n, line) in lines.iter().enumerate() {
        let _ = writeln!(text, "{}:{line}", first + n);
    }
    text.truncate(text.trim_end_matches('\n').len());
    text
}

/// A random Python module of a repository.
pub fn random_module<'a>(
    files: &'a BTreeMap<String, String>,
    rng: &mut ChaCha8Rng,
) -> Option<&'a str> {
    let modules: Vec<&String> =
        files.iter().filter(|(path, _)| is_module(path)).map(|(_, text)| text).collect();
    modules.choose(rng).map(|text| text.as_str())
}

/// Whether a path is that of a Python module.
pub fn is_module(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "py")
}
