//! `SGLang`'s native `/generate`. Its log-probabilities are those of the distribution that was drawn
//! from, after the temperature: training needs temperature 1 anyway.

use patchwright_core::{FinishReason, SampleRequest};
use serde::Deserialize;
use serde_json::{Value, json};

use super::contract::Drawn;
use super::dialect::{most_likely, stop_texts, typed};

pub(super) fn body(request: &SampleRequest) -> Value {
    json!({
        "input_ids": request.context,
        "sampling_params": {
            "n": 1,
            "max_new_tokens": request.max_tokens,
            "min_new_tokens": 0,
            "temperature": request.params.temperature,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "sampling_seed": request.seed >> 1,
            "stop": stop_texts(request),
            "stop_token_ids": request.stop_tokens,
            "no_stop_trim": true,
            "ignore_eos": true,
            "skip_special_tokens": false,
            "spaces_between_special_tokens": false,
        },
        "return_logprob": true,
        "logprob_start_len": if request.prompt_logprobs { 0 } else { -1 },
        "top_logprobs_num": request.num_top_logprobs,
        "return_text_in_logprobs": false,
        "stream": false,
    })
}

#[derive(Deserialize)]
struct Answer {
    output_ids: Vec<u32>,
    meta_info: Meta,
}

/// `[logprob, token, text]`.
type TokenLogprob = (Option<f32>, u32, Value);

#[derive(Deserialize)]
struct Meta {
    finish_reason: Finish,
    #[serde(default)]
    weight_version: Option<String>,
    #[serde(default)]
    prompt_tokens: Option<usize>,
    output_token_logprobs: Vec<TokenLogprob>,
    #[serde(default)]
    output_top_logprobs: Option<Vec<Option<Vec<TokenLogprob>>>>,
    #[serde(default)]
    input_token_logprobs: Option<Vec<TokenLogprob>>,
}

#[derive(Deserialize)]
struct Finish {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    message: Option<String>,
}

pub(super) fn read(request: &SampleRequest, answer: Value) -> Result<Drawn, String> {
    let Answer { output_ids, meta_info: meta } = typed(answer)?;
    if meta.prompt_tokens.is_some_and(|n| n != request.context.len()) {
        let (seen, asked) = (meta.prompt_tokens.unwrap_or_default(), request.context.len());
        return Err(format!("it saw another prompt than was asked: {seen} tokens for {asked}"));
    }
    if meta.output_token_logprobs.iter().map(|(_, token, _)| *token).ne(output_ids.iter().copied())
    {
        return Err("its log-probabilities are of other tokens than it drew".to_owned());
    }
    let prompt = meta.input_token_logprobs.filter(|_| request.prompt_logprobs);
    let n = request.num_top_logprobs;
    let tops = meta.output_top_logprobs.unwrap_or_default().into_iter().filter(|_| n > 0);
    let logprob = |logprob: Option<f32>| logprob.unwrap_or(f32::NAN);
    let tops = tops.map(|top| {
        let top = top.unwrap_or_default();
        most_likely(top.into_iter().map(|(l, token, _)| (token, logprob(l))).collect(), n)
    });
    Ok(Drawn {
        prompt: prompt.as_ref().map(|of| of.iter().map(|(_, token, _)| *token).collect()),
        // The first has no log-probability.
        prompt_logprobs: prompt
            .unwrap_or_default()
            .into_iter()
            .enumerate()
            .map(|(at, (l, ..))| if at == 0 { 0.0 } else { logprob(l) })
            .collect(),
        logprobs: meta.output_token_logprobs.iter().map(|(l, ..)| logprob(*l)).collect(),
        top_logprobs: tops.collect(),
        tokens: output_ids,
        finish_reason: match meta.finish_reason.kind.as_str() {
            "stop" => FinishReason::Stop,
            "length" => FinishReason::Length,
            other => {
                let message = meta.finish_reason.message.unwrap_or_default();
                return Err(format!("it ended the request itself: {other} {message}"));
            }
        },
        versions: meta.weight_version.into_iter().collect(),
    })
}
