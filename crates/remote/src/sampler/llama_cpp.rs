//! llama.cpp's native `/completion`.
//!
//! It has no stop tokens of the caller's: it ends at the model's own ends of generation, and else
//! goes on. So what it draws is cut behind the first stop token, and where it ended at a token that
//! is none, it is asked on from there. Its `logprob`s are of the full distribution at temperature 1
//! (`post_sampling_probs` off).

use patchwright_core::{FinishReason, SampleRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::contract::Drawn;
use super::dialect::{Step, most_likely, typed};

pub(super) fn body(request: &SampleRequest) -> Value {
    // Seeds have 32 bits, and the largest means a random one.
    let seed = ((request.seed ^ (request.seed >> 32)) as u32).min(u32::MAX - 1);
    json!({
        "prompt": request.context,
        "n_predict": request.max_tokens,
        "temperature": request.params.temperature,
        "dynatemp_range": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "top_n_sigma": -1.0,
        "typical_p": 1.0,
        "xtc_probability": 0.0,
        "repeat_penalty": 1.0,
        "repeat_last_n": 0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "dry_multiplier": 0.0,
        "mirostat": 0,
        "samplers": ["temperature"],
        "seed": seed,
        "stop": [],
        "ignore_eos": false,
        "logit_bias": [],
        "n_probs": request.num_top_logprobs.max(1),
        "post_sampling_probs": false,
        "return_tokens": true,
        "cache_prompt": true,
        "stream": false,
    })
}

#[derive(Deserialize)]
struct Answer {
    tokens: Vec<u32>,
    stop_type: String,
    completion_probabilities: Vec<Probability>,
    #[serde(default)]
    tokens_evaluated: Option<usize>,
    #[serde(default)]
    truncated: bool,
}

#[derive(Deserialize)]
struct Probability {
    id: u32,
    logprob: f32,
    #[serde(default)]
    top_logprobs: Vec<Top>,
}

#[derive(Deserialize)]
struct Top {
    id: u32,
    logprob: f32,
}

pub(super) fn read(request: &SampleRequest, answer: Value) -> Result<Step, String> {
    let mut answer: Answer = typed(answer)?;
    if answer.truncated || answer.tokens_evaluated.is_some_and(|n| n != request.context.len()) {
        return Err("it cut the prompt; its context is too small".to_owned());
    }
    let of_others =
        answer.completion_probabilities.iter().map(|p| p.id).ne(answer.tokens.iter().copied());
    if of_others {
        return Err("its log-probabilities are of other tokens than it drew".to_owned());
    }
    let stop = answer.tokens.iter().position(|token| request.stop_tokens.contains(token));
    if let Some(stop) = stop {
        answer.tokens.truncate(stop + 1);
        answer.completion_probabilities.truncate(stop + 1);
    }
    let n = request.num_top_logprobs;
    let probabilities = answer.completion_probabilities;
    let tops = probabilities
        .iter()
        .filter(|_| n > 0)
        .map(|p| most_likely(p.top_logprobs.iter().map(|top| (top.id, top.logprob)).collect(), n));
    let is_full = answer.tokens.len() >= request.max_tokens;
    let drawn = Drawn {
        top_logprobs: tops.collect(),
        logprobs: probabilities.iter().map(|p| p.logprob).collect(),
        tokens: answer.tokens,
        finish_reason: if stop.is_some() { FinishReason::Stop } else { FinishReason::Length },
        ..Drawn::default()
    };
    match answer.stop_type.as_str() {
        "eos" if stop.is_none() && !is_full && !drawn.tokens.is_empty() => Ok(Step::GoOn(drawn)),
        "eos" | "limit" => Ok(Step::Done(drawn)),
        other => Err(format!("it ended the request itself: {other}")),
    }
}
