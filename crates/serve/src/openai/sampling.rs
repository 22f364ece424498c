//! What completions and chat completions have in common: how tokens are drawn.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use patchwright_core::{
    Completion, DrawnToken, FinishReason, SampleRequest, SamplingParams, derive_seed,
};
use serde::Deserialize;
use serde_json::json;

use super::fields::Fields;
use super::{Served, Shared};
use crate::error::ApiError;
use crate::text::ModelText;
use crate::work::Gone;

/// Completions of one request at most.
const MAX_COMPLETIONS: usize = 256;

/// Stop strings and stop tokens of one request at most.
const MAX_STOPS: usize = 64;

/// Fields that say who asks and why.
const NOTES: [&str; 6] = [
    "user",
    "metadata",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "request_id",
];

/// One string or several.
#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamOptions {
    #[serde(default)]
    include_usage: bool,
    /// Padding against readers of encrypted traffic; there is none, and none is asked for.
    #[serde(default, rename = "include_obfuscation")]
    _include_obfuscation: Option<bool>,
}

/// How completions are drawn and answered.
#[derive(Debug, Clone)]
pub(crate) struct Sampling {
    pub n: usize,
    /// Tokens at most; `None`: as many as the context has room for.
    pub max_tokens: Option<usize>,
    pub temperature: f32,
    pub seed: u64,
    pub stop: Vec<String>,
    pub stop_tokens: Vec<u32>,
    pub stream: bool,
    pub include_usage: bool,
    pub return_token_ids: bool,
    /// Likely tokens that are given beside each that is drawn.
    pub num_top: usize,
    pub form: TextForm,
}

/// How tokens become text.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TextForm {
    /// They are named by their ids in log-probabilities.
    pub are_ids: bool,
    /// Special tokens are part of the text.
    keep_special: bool,
    /// What ended the text is part of it.
    include_stop: bool,
}

impl Sampling {
    /// Takes the fields out that both kinds of request have, and refuses unsupported values.
    pub(crate) fn take(
        fields: &mut Fields,
        served: &Served,
        max_tokens: Option<usize>,
    ) -> Result<Self, ApiError> {
        let n = fields.take_or("n", 1usize)?;
        if !(1..=MAX_COMPLETIONS).contains(&n) {
            return Err(ApiError::param("n", format!("is {n}, expected 1 to {MAX_COMPLETIONS}")));
        }
        fields.neutral("best_of", &[json!(1), json!(n)])?;
        let temperature = fields.take_or("temperature", 1.0f32)?;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(ApiError::param(
                "temperature",
                format!("is {temperature}, expected 0 or more"),
            ));
        }
        take_neutral(fields)?;
        let stop = match fields.take("stop")? {
            None => Vec::new(),
            Some(OneOrMany::One(stop)) => vec![stop],
            Some(OneOrMany::Many(stops)) => stops,
        };
        if stop.iter().any(String::is_empty) {
            return Err(ApiError::param("stop", "holds an empty string; leave it out"));
        }
        let mut stop_tokens: Vec<u32> = fields.take_or("stop_token_ids", Vec::new())?;
        if stop.len() + stop_tokens.len() > MAX_STOPS {
            return Err(ApiError::param("stop", format!("more than {MAX_STOPS} stops")));
        }
        let ignore_eos = fields.take_or("ignore_eos", false)?;
        if !ignore_eos {
            stop_tokens.extend_from_slice(served.text.stop_tokens());
        }
        let stream = fields.take_or("stream", false)?;
        let options: Option<StreamOptions> = fields.take("stream_options")?;
        if options.is_some() && !stream {
            return Err(ApiError::param("stream_options", "is for stream: true only"));
        }
        let keep_special = !fields.take_or("skip_special_tokens", true)?;
        if keep_special && stream {
            let message = "false is not supported with stream: true";
            return Err(ApiError::param("skip_special_tokens", message));
        }
        let seed = fields.take::<i64>("seed")?;
        fields.notes(&NOTES);
        Ok(Self {
            n,
            max_tokens,
            temperature,
            seed: seed.map_or_else(rand::random, |seed| seed as u64),
            stop,
            stop_tokens,
            stream,
            include_usage: options.is_some_and(|options| options.include_usage),
            return_token_ids: fields.take_or("return_token_ids", false)?,
            num_top: 0,
            form: TextForm {
                are_ids: fields.take_or("return_tokens_as_token_ids", false)?,
                keep_special,
                include_stop: fields.take_or("include_stop_str_in_output", false)?,
            },
        })
    }
}

impl Sampling {
    /// What tokens say, stop strings included.
    fn text(&self, text: &ModelText, tokens: &[u32]) -> String {
        if !self.form.keep_special {
            return text.visible(tokens);
        }
        let said = match tokens.split_last() {
            Some((last, said)) if !self.form.include_stop && self.stop_tokens.contains(last) => {
                said
            }
            _ => tokens,
        };
        text.tokenizer().decode(said)
    }
}

/// Knobs that this engine does not have: accepted where they are said to be off.
fn take_neutral(fields: &mut Fields) -> Result<(), ApiError> {
    let (zero, one, yes, no) = (json!(0), json!(1), json!(true), json!(false));
    for (name, accepted) in [
        ("top_p", vec![one.clone()]),
        ("top_k", vec![zero.clone(), json!(-1)]),
        ("min_p", vec![zero.clone()]),
        ("typical_p", vec![one.clone()]),
        ("presence_penalty", vec![zero.clone()]),
        ("frequency_penalty", vec![zero.clone()]),
        ("repetition_penalty", vec![one]),
        ("length_penalty", vec![json!(1)]),
        ("min_tokens", vec![zero]),
        ("logit_bias", vec![json!({})]),
        ("use_beam_search", vec![no.clone()]),
        ("spaces_between_special_tokens", vec![yes, no.clone()]),
        ("truncate_prompt_tokens", vec![]),
        ("prompt_logprobs", vec![]),
        ("add_special_tokens", vec![no.clone()]),
        ("service_tier", vec![json!("auto"), json!("default")]),
        ("store", vec![no]),
    ] {
        fields.neutral(name, &accepted)?;
    }
    Ok(())
}

/// One completion, finished.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    pub tokens: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub prompt_logprobs: Vec<f32>,
    /// One entry a token if asked for, else empty.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// What the tokens say; without special tokens, and up to what ended it, unless asked for.
    pub text: String,
    pub finish: FinishReason,
    pub cached: usize,
}

/// Hears the tokens of a completion as they are drawn.
pub(crate) type OnToken<'a> = &'a mut dyn FnMut(&DrawnToken);

/// Names of sessions: unique in the process.
static NUM_SESSIONS: AtomicU64 = AtomicU64::new(1 << 48);

/// One completion to be drawn.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub prompt: &'a [u32],
    pub sampling: &'a Sampling,
    /// Its number among the request's.
    pub index: usize,
    pub prompt_logprobs: bool,
}

/// Draws a completion, on the thread that calls.
pub(crate) fn generate(
    served: &Served,
    shared: &Shared,
    ask: Ask<'_>,
    on_token: Option<OnToken<'_>>,
    gone: &Gone,
) -> Result<Generation, ApiError> {
    let Ask { prompt, sampling, index, prompt_logprobs } = ask;
    let session = served.session.unwrap_or_else(|| NUM_SESSIONS.fetch_add(1, Ordering::Relaxed));
    let max_context = served.sampler.max_context();
    let room = max_context.saturating_sub(prompt.len());
    if room == 0 {
        if let Some(history) = &served.history {
            history.note_overflow();
        }
        // Clients tell this failure by OpenAI's own words.
        return Err(ApiError {
            code: "context_length_exceeded",
            ..ApiError::bad(format!(
                "This model's maximum context length is {max_context} tokens. However, the prompt \
                 has {} tokens.",
                prompt.len()
            ))
        });
    }
    let in_engine = served.text.token_bytes().is_some();
    let stops = sampling.stop.iter().filter(|_| in_engine);
    let wanted = sampling.max_tokens.unwrap_or(room).min(room);
    let request = SampleRequest {
        session,
        context: prompt.to_vec(),
        // An engine draws at least one; whoever only wants the prompt scored is not shown it.
        max_tokens: wanted.max(1),
        stop_tokens: sampling.stop_tokens.clone(),
        stop_strings: stops.map(|stop| stop.as_bytes().to_vec()).collect(),
        prompt_logprobs,
        num_top_logprobs: sampling.num_top,
        params: SamplingParams { temperature: sampling.temperature },
        seed: if index == 0 {
            sampling.seed
        } else {
            derive_seed(sampling.seed, &["choice", &index.to_string()])
        },
    };
    let is_gone = || gone.is_set();
    let drawn = match on_token {
        Some(on_token) => served.sampler.sample_streaming(&request, on_token, &is_gone),
        None => served.sampler.sample_cancellable(&request, &is_gone),
    };
    if served.session.is_none() {
        served.sampler.end_session(session);
    }
    let mut completion = drawn?;
    if wanted == 0 {
        completion.tokens.clear();
        completion.logprobs.clear();
        completion.top_logprobs.clear();
        completion.finish_reason = FinishReason::Length;
    }
    let cached = completion.num_cached_tokens;
    shared.metrics.sampled(prompt.len(), cached, completion.tokens.len());
    finish(served, completion, sampling)
}

/// Text of a completion, cut at its stop.
fn finish(
    served: &Served,
    mut completion: Completion,
    sampling: &Sampling,
) -> Result<Generation, ApiError> {
    let num_tokens = completion.tokens.len();
    if completion.logprobs.len() != num_tokens {
        return Err(ApiError::internal("the engine gave tokens without log-probabilities"));
    }
    if sampling.num_top == 0 {
        completion.top_logprobs.clear();
    } else if completion.top_logprobs.len() != num_tokens {
        let message = "this engine gives no likely tokens beside those it draws";
        return Err(ApiError::param("top_logprobs", message));
    }
    let mut finish = completion.finish_reason;
    let mut text = sampling.text(&served.text, &completion.tokens);
    let find = |text: &str| {
        let places = sampling.stop.iter().filter_map(|stop| Some((text.find(&**stop)?, stop)));
        places.map(|(at, stop)| (at, at + stop.len())).min()
    };
    if let Some((at, end)) = find(&text) {
        // An engine that cannot see stop strings goes on behind them.
        let tokens = &completion.tokens;
        let has_stop = |len: usize| find(&sampling.text(&served.text, &tokens[..len])).is_some();
        let mut keep = num_tokens;
        while keep > 1 && has_stop(keep - 1) {
            keep -= 1;
        }
        completion.tokens.truncate(keep);
        completion.logprobs.truncate(keep);
        completion.top_logprobs.truncate(keep);
        text.truncate(if sampling.form.include_stop { end } else { at });
        finish = FinishReason::Stop;
    }
    Ok(Generation {
        tokens: completion.tokens,
        logprobs: completion.logprobs,
        prompt_logprobs: completion.prompt_logprobs,
        top_logprobs: completion.top_logprobs,
        text,
        finish,
        cached: completion.num_cached_tokens,
    })
}

/// Draws all completions of `prompts`, `n` of each, as many at once as the pool allows; in order.
pub(crate) async fn generate_all(
    served: &Served,
    shared: &Arc<Shared>,
    prompts: &[Arc<[u32]>],
    sampling: &Sampling,
    prompt_logprobs: bool,
) -> Result<Vec<Generation>, ApiError> {
    let jobs = prompts.iter().flat_map(|prompt| (0..sampling.n).map(move |_| prompt)).enumerate();
    let calls = jobs.map(|(index, prompt)| {
        let (served, shared, prompt) = (served.clone(), Arc::clone(shared), Arc::clone(prompt));
        let (sampling, work) = (sampling.clone(), shared.work.clone());
        async move {
            work.run(move |gone| {
                let (prompt, sampling) = (&prompt[..], &sampling);
                let ask = Ask { prompt, sampling, index, prompt_logprobs };
                generate(&served, &shared, ask, None, gone)
            })
            .await
        }
    });
    futures_util::future::try_join_all(calls).await
}
