//! Log-probabilities as the two kinds of completion show them.

use std::slice::from_ref;

use patchwright_core::DrawnToken;
use serde_json::{Map, Value, json};

use super::fields::Fields;
use super::sampling::Generation;
use crate::error::ApiError;
use crate::text::ModelText;

/// Likely tokens that are given at most beside each that was drawn, as at `OpenAI`'s.
const MAX_TOP: usize = 20;

/// What stands for minus infinity, which JSON cannot say.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

/// Takes out how many likely tokens are wanted; `None` where the field is missing.
pub(crate) fn take_top(fields: &mut Fields, name: &str) -> Result<Option<usize>, ApiError> {
    let count: Option<usize> = fields.take(name)?;
    match count {
        Some(count) if count > MAX_TOP => {
            Err(ApiError::param(name, format!("is {count}, expected 0 to {MAX_TOP}")))
        }
        count => Ok(count),
    }
}

/// Drawn tokens.
#[derive(Clone, Copy)]
pub(crate) struct Scored<'a> {
    pub tokens: &'a [u32],
    pub logprobs: &'a [f32],
    /// Likely ones for each; empty where they are not asked for.
    pub top: &'a [Vec<(u32, f32)>],
}

impl<'a> Scored<'a> {
    pub(crate) fn all(generation: &'a Generation) -> Self {
        let Generation { tokens, logprobs, top_logprobs, .. } = generation;
        Self { tokens, logprobs, top: top_logprobs }
    }

    pub(crate) fn one(drawn: &'a DrawnToken) -> Self {
        let DrawnToken { token, logprob, top } = drawn;
        let top = if top.is_empty() { &[][..] } else { from_ref(top) };
        Self { tokens: from_ref(token), logprobs: from_ref(logprob), top }
    }
}

/// How tokens are named.
#[derive(Clone, Copy)]
pub(crate) struct Names<'a> {
    pub text: &'a ModelText,
    /// `token_id:17` in place of the token's text.
    pub are_ids: bool,
}

impl Names<'_> {
    fn of(self, token: u32) -> String {
        if self.are_ids {
            format!("token_id:{token}")
        } else {
            self.text.tokenizer().decode(&[token])
        }
    }

    /// Of one entry of a chat completion.
    fn entry(self, token: u32, logprob: f32) -> Value {
        let bytes = match self.text.token_bytes().and_then(|bytes| bytes.get(token as usize)) {
            Some(bytes) if !bytes.is_empty() => json!(bytes),
            _ => json!(self.text.tokenizer().decode(&[token]).as_bytes()),
        };
        json!({"token": self.of(token), "logprob": number(logprob), "bytes": bytes})
    }
}

/// Entries of `logprobs.content` of a chat completion.
pub(crate) fn chat(names: Names<'_>, drawn: Scored<'_>) -> Vec<Value> {
    let entry = |(i, (token, logprob)): (usize, (&u32, &f32))| {
        let top = drawn.top.get(i).into_iter().flatten();
        let top: Vec<Value> = top.map(|(token, logprob)| names.entry(*token, *logprob)).collect();
        let mut entry = names.entry(*token, *logprob);
        entry["top_logprobs"] = top.into();
        entry
    };
    drawn.tokens.iter().zip(drawn.logprobs).enumerate().map(entry).collect()
}

/// `logprobs` of a completion; `prompt` are the echoed tokens, whose first has no probability.
pub(crate) fn completion(
    names: Names<'_>,
    prompt: (&[u32], &[f32]),
    drawn: Scored<'_>,
    first_offset: usize,
) -> Value {
    let tokenizer = names.text.tokenizer();
    let (mut said, mut values, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    let mut offset = first_offset;
    let echoed = prompt.0.iter().zip(prompt.1).enumerate();
    let echoed = echoed.map(|(i, (token, logprob))| (*token, (i > 0).then_some(*logprob)));
    let new = drawn.tokens.iter().zip(drawn.logprobs).map(|(t, l)| (*t, Some(*l)));
    for (token, logprob) in echoed.chain(new) {
        values.push(logprob.map(number));
        offsets.push(offset);
        if !tokenizer.is_special(token) {
            offset += tokenizer.decode(&[token]).chars().count();
        }
        said.push(names.of(token));
    }
    let top = (!drawn.top.is_empty()).then(|| {
        let tops = drawn.top.iter().zip(drawn.tokens).zip(drawn.logprobs);
        tops.map(|((top, token), logprob)| named(names, top, (*token, *logprob))).collect()
    });
    json!({
        "tokens": said, "token_logprobs": values, "text_offset": offsets,
        "top_logprobs": top.map_or(Value::Null, Value::Array),
    })
}

/// Likely tokens by their names, and the drawn one, as at `OpenAI`'s. Of tokens with the same text
/// the most likely stands.
fn named(names: Names<'_>, top: &[(u32, f32)], drawn: (u32, f32)) -> Value {
    let mut map = Map::new();
    for (token, logprob) in top.iter().copied().chain([drawn]) {
        map.entry(names.of(token)).or_insert_with(|| json!(number(logprob)));
    }
    Value::Object(map)
}
