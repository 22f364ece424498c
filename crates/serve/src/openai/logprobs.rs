//! Log-probabilities as the two kinds of completion show them.

use serde_json::{Value, json};

use crate::text::ModelText;

/// What stands for minus infinity, which JSON cannot say.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LEAST }
}

/// Text of a token by itself, and its bytes where they are known.
fn spelled(text: &ModelText, token: u32) -> (String, Value) {
    let said = text.tokenizer().decode(&[token]);
    let bytes = match text.token_bytes().and_then(|bytes| bytes.get(token as usize)) {
        Some(bytes) if !bytes.is_empty() => json!(bytes),
        _ => json!(said.as_bytes()),
    };
    (said, bytes)
}

/// Entries of `logprobs.content` of a chat completion: the sampled tokens.
pub(crate) fn chat(text: &ModelText, tokens: &[u32], logprobs: &[f32]) -> Vec<Value> {
    let entry = |(token, logprob): (&u32, &f32)| {
        let (said, bytes) = spelled(text, *token);
        json!({"token": said, "logprob": number(*logprob), "bytes": bytes, "top_logprobs": []})
    };
    tokens.iter().zip(logprobs).map(entry).collect()
}

/// `logprobs` of a completion; `prompt` are the echoed tokens, whose first has no probability.
pub(crate) fn completion(
    text: &ModelText,
    prompt: (&[u32], &[f32]),
    completion: (&[u32], &[f32]),
    first_offset: usize,
) -> Value {
    let (mut said, mut values, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    let mut offset = first_offset;
    let echoed = prompt.0.iter().zip(prompt.1).enumerate();
    let echoed = echoed.map(|(i, (token, logprob))| (*token, (i > 0).then_some(*logprob)));
    let drawn = completion.0.iter().zip(completion.1);
    for (token, logprob) in echoed.chain(drawn.map(|(t, l)| (*t, Some(*l)))) {
        let spelled = text.tokenizer().decode(&[token]);
        values.push(logprob.map(number));
        offsets.push(offset);
        if !text.tokenizer().is_special(token) {
            offset += spelled.chars().count();
        }
        said.push(spelled);
    }
    json!({
        "tokens": said, "token_logprobs": values, "top_logprobs": null, "text_offset": offsets,
    })
}
