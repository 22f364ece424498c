//! vLLM 0.32: `/inference/v1/generate` and `/v1/completions`.

use std::collections::BTreeMap;

use patchwright_core::{FinishReason, SampleRequest};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::contract::Drawn;
use super::dialect::{most_likely, stop_texts, typed};

/// Sampling parameters that both endpoints name alike.
fn params(request: &SampleRequest) -> Map<String, Value> {
    let stop = stop_texts(request);
    let mut params = Map::new();
    let mut set = |name: &str, value: Value| params.insert(name.to_owned(), value);
    set("n", json!(1));
    set("max_tokens", json!(request.max_tokens));
    set("min_tokens", json!(0));
    set("temperature", json!(request.params.temperature));
    set("top_p", json!(1.0));
    set("top_k", json!(-1));
    set("min_p", json!(0.0));
    set("repetition_penalty", json!(1.0));
    set("presence_penalty", json!(0.0));
    set("frequency_penalty", json!(0.0));
    // The server's seed is a signed 64-bit number.
    set("seed", json!(request.seed >> 1));
    set("stop", json!(stop));
    set("stop_token_ids", json!(request.stop_tokens));
    set("include_stop_str_in_output", json!(true));
    // The model's own end is a stop only if it was asked for.
    set("ignore_eos", json!(true));
    set("skip_special_tokens", json!(false));
    set("spaces_between_special_tokens", json!(false));
    // The drawn token stands in the list whatever its rank, and pushes the last one out: one more is
    // asked for than is believed. A list that favours the drawn token would look like a cut.
    let num_asked = if request.num_top_logprobs > 0 { request.num_top_logprobs + 1 } else { 0 };
    set("logprobs", json!(num_asked));
    if request.prompt_logprobs {
        set("prompt_logprobs", json!(0));
    }
    params
}

pub(super) fn generate_body(model: &str, request: &SampleRequest) -> Value {
    let mut params = params(request);
    params.insert("detokenize".to_owned(), json!(!request.stop_strings.is_empty()));
    json!({
        "model": model,
        "token_ids": request.context,
        "sampling_params": params,
        "stream": false,
    })
}

pub(super) fn completions_body(model: &str, request: &SampleRequest) -> Value {
    let mut body = params(request);
    body.insert("model".to_owned(), json!(model));
    body.insert("prompt".to_owned(), json!(request.context));
    body.insert("echo".to_owned(), json!(false));
    body.insert("stream".to_owned(), json!(false));
    body.insert("add_special_tokens".to_owned(), json!(false));
    body.insert("return_token_ids".to_owned(), json!(true));
    body.insert("return_tokens_as_token_ids".to_owned(), json!(true));
    Value::Object(body)
}

/// `{"17": {"logprob": -1.5, …}}` for each token of the prompt, null for the first.
type PromptLogprobs = Option<Vec<Option<BTreeMap<String, LogprobOf>>>>;

#[derive(Deserialize)]
struct LogprobOf {
    logprob: f32,
}

#[derive(Deserialize)]
struct Generated {
    choices: Vec<GeneratedChoice>,
    #[serde(default)]
    prompt_logprobs: PromptLogprobs,
    #[serde(default)]
    prompt_token_ids: Option<Vec<u32>>,
}

#[derive(Deserialize)]
struct GeneratedChoice {
    token_ids: Vec<u32>,
    finish_reason: Option<String>,
    logprobs: Option<GeneratedLogprobs>,
    #[serde(default)]
    weight_versions: Option<Vec<VersionSpan>>,
}

#[derive(Deserialize)]
struct GeneratedLogprobs {
    content: Vec<GeneratedLogprob>,
}

#[derive(Deserialize)]
struct GeneratedLogprob {
    token_id: u32,
    logprob: f32,
    #[serde(default)]
    top_logprobs: Vec<TopLogprob>,
}

#[derive(Deserialize)]
struct TopLogprob {
    token_id: u32,
    logprob: f32,
}

#[derive(Deserialize)]
struct VersionSpan {
    version: String,
}

pub(super) fn read_generate(request: &SampleRequest, answer: Value) -> Result<Drawn, String> {
    let answer: Generated = typed(answer)?;
    let [choice] = <[GeneratedChoice; 1]>::try_from(answer.choices)
        .map_err(|choices| format!("{} choices where 1 was asked for", choices.len()))?;
    let content = choice.logprobs.map(|logprobs| logprobs.content).unwrap_or_default();
    if content.iter().map(|c| c.token_id).ne(choice.token_ids.iter().copied()) {
        return Err("its log-probabilities are of other tokens than it drew".to_owned());
    }
    let n = request.num_top_logprobs;
    let tops = content.iter().filter(|_| n > 0).map(|c| {
        most_likely(c.top_logprobs.iter().map(|top| (top.token_id, top.logprob)).collect(), n)
    });
    Ok(Drawn {
        prompt: answer.prompt_token_ids,
        top_logprobs: tops.collect(),
        logprobs: content.iter().map(|c| c.logprob).collect(),
        tokens: choice.token_ids,
        prompt_logprobs: prompt_logprobs(request, answer.prompt_logprobs)?,
        finish_reason: finish(choice.finish_reason.as_deref())?,
        versions: choice
            .weight_versions
            .unwrap_or_default()
            .into_iter()
            .map(|s| s.version)
            .collect(),
    })
}

#[derive(Deserialize)]
struct Completed {
    choices: Vec<CompletedChoice>,
}

#[derive(Deserialize)]
struct CompletedChoice {
    #[serde(default)]
    token_ids: Option<Vec<u32>>,
    #[serde(default)]
    prompt_token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    logprobs: Option<CompletedLogprobs>,
    #[serde(default)]
    prompt_logprobs: PromptLogprobs,
}

#[derive(Deserialize)]
struct CompletedLogprobs {
    token_logprobs: Vec<Option<f32>>,
    #[serde(default)]
    tokens: Vec<String>,
    #[serde(default)]
    top_logprobs: Option<Vec<Option<BTreeMap<String, f32>>>>,
}

pub(super) fn read_completions(request: &SampleRequest, answer: Value) -> Result<Drawn, String> {
    let answer: Completed = typed(answer)?;
    let [choice] = <[CompletedChoice; 1]>::try_from(answer.choices)
        .map_err(|choices| format!("{} choices where 1 was asked for", choices.len()))?;
    let (Some(tokens), Some(prompt)) = (choice.token_ids, choice.prompt_token_ids) else {
        return Err("no token ids: this server does not know return_token_ids; it can be \
                    evaluated by chat, not trained with"
            .to_owned());
    };
    let logprobs = choice.logprobs.ok_or("no log-probabilities")?;
    let said: Vec<Option<u32>> = logprobs.tokens.iter().map(|token| token_id(token)).collect();
    if said.iter().all(Option::is_some) && said.iter().flatten().ne(&tokens) && !said.is_empty() {
        return Err("its log-probabilities are of other tokens than it drew".to_owned());
    }
    let n = request.num_top_logprobs;
    let tops = logprobs.top_logprobs.unwrap_or_default().into_iter().filter(|_| n > 0);
    let tops = tops.map(|top| {
        let top = top.unwrap_or_default();
        let ids: Option<Vec<(u32, f32)>> =
            top.into_iter().map(|(token, logprob)| Some((token_id(&token)?, logprob))).collect();
        most_likely(ids.unwrap_or_default(), n)
    });
    Ok(Drawn {
        prompt: Some(prompt),
        tokens,
        top_logprobs: tops.collect(),
        logprobs: logprobs.token_logprobs.into_iter().map(|l| l.unwrap_or(f32::NAN)).collect(),
        prompt_logprobs: prompt_logprobs(request, choice.prompt_logprobs)?,
        finish_reason: finish(choice.finish_reason.as_deref())?,
        versions: Vec::new(),
    })
}

/// `token_id:17`, as `return_tokens_as_token_ids` writes it.
fn token_id(text: &str) -> Option<u32> {
    text.strip_prefix("token_id:")?.parse().ok()
}

fn prompt_logprobs(request: &SampleRequest, given: PromptLogprobs) -> Result<Vec<f32>, String> {
    if !request.prompt_logprobs {
        return Ok(Vec::new());
    }
    let given = given.ok_or("no log-probabilities of the prompt")?;
    if given.len() != request.context.len() {
        return Err(format!(
            "{} log-probabilities of a prompt of {}",
            given.len(),
            request.context.len()
        ));
    }
    let mut logprobs = Vec::with_capacity(given.len());
    for (token, of_token) in request.context.iter().zip(&given) {
        logprobs.push(match of_token {
            None => 0.0,
            Some(of_token) => {
                let known = of_token.get(&token.to_string());
                known
                    .ok_or_else(|| format!("no log-probability of token {token} of the prompt"))?
                    .logprob
            }
        });
    }
    Ok(logprobs)
}

fn finish(reason: Option<&str>) -> Result<FinishReason, String> {
    match reason {
        Some("stop") => Ok(FinishReason::Stop),
        Some("length") => Ok(FinishReason::Length),
        Some(other) => Err(format!("it ended the request itself: {other}")),
        None => Err("no finish reason".to_owned()),
    }
}
