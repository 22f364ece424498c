//! Sampling sessions and `asample`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use patchwright_core::{Completion, FinishReason, SampleRequest, SamplingParams, derive_seed};
use patchwright_wire::json::{SampleRequest as Asked, Stop};
use patchwright_wire::{SampleResponse, SampledSequence, StopReason};

use super::samplers::{Samplers, Source};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::text::ModelText;
use crate::work::Work;

/// Completions of one request at most.
const MAX_SAMPLES: u32 = 1024;

/// Names of the engine's sessions: unique in the process, apart from those of other endpoints.
static NUM_SESSIONS: AtomicU64 = AtomicU64::new(1 << 56);

/// A request for completions, understood.
#[derive(Clone)]
pub(super) struct Plan {
    num_samples: usize,
    context: Vec<u32>,
    max_tokens: Option<usize>,
    stop_tokens: Vec<u32>,
    stop_strings: Vec<Vec<u8>>,
    temperature: f32,
    seed: u64,
    prompt_logprobs: bool,
}

impl Plan {
    /// Refuses what is not done here by its name.
    pub(super) fn read(asked: Asked, text: Option<&ModelText>) -> Result<Self, ApiError> {
        let params = &asked.sampling_params;
        let unsupported = [
            ("top_k", params.top_k > 0),
            ("top_p", params.top_p < 1.0),
            ("topk_prompt_logprobs", asked.topk_prompt_logprobs > 0),
            ("topk_sample_logprobs", asked.topk_sample_logprobs > 0),
            ("target_prompt_logprobs", asked.target_prompt_logprobs.is_some()),
            ("prompt_alt_tokens_k", asked.prompt_alt_tokens_k > 0),
            ("prompt_logprobs_last_n", asked.prompt_logprobs_last_n.is_some()),
            ("record_stability_info", asked.record_stability_info == Some(true)),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, is_set)| *is_set) {
            return Err(ApiError::param(name, "is not supported here; leave it at its default"));
        }
        let temperature = params.temperature as f32;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(ApiError::param("temperature", format!("is {temperature}")));
        }
        if !(1..=MAX_SAMPLES).contains(&asked.num_samples) {
            let message = format!("is {}, expected 1 to {MAX_SAMPLES}", asked.num_samples);
            return Err(ApiError::param("num_samples", message));
        }
        let (mut stop_tokens, mut stop_strings) = (Vec::new(), Vec::new());
        match &params.stop {
            None => stop_tokens.extend(text.into_iter().flat_map(ModelText::stop_tokens)),
            Some(Stop::Tokens(tokens)) => stop_tokens.clone_from(tokens),
            Some(Stop::Text(stop)) => stop_strings.push(stop.as_bytes().to_vec()),
            Some(Stop::Texts(stops)) => {
                stop_strings.extend(stops.iter().map(|stop| stop.as_bytes().to_vec()));
            }
        }
        stop_strings.retain(|stop| !stop.is_empty());
        // A special token's name is that token.
        let special = |stop: &Vec<u8>| {
            let id = text?.tokenizer().token_id(std::str::from_utf8(stop).ok()?)?;
            text?.tokenizer().is_special(id).then_some(id)
        };
        stop_tokens.extend(stop_strings.iter().filter_map(special));
        stop_strings.retain(|stop| special(stop).is_none());
        if !stop_strings.is_empty() && text.and_then(ModelText::token_bytes).is_none() {
            let message = "this model's tokens have no bytes of their own; give stop tokens";
            return Err(ApiError::param("stop", message));
        }
        Ok(Self {
            num_samples: asked.num_samples as usize,
            max_tokens: params.max_tokens.map(|max| max as usize),
            stop_tokens,
            stop_strings,
            temperature,
            seed: params.seed.unwrap_or_else(rand::random),
            prompt_logprobs: asked.prompt_logprobs == Some(true),
            context: asked.prompt.into_tokens().map_err(|e| ApiError::param("prompt", e))?,
        })
    }

    fn request(&self, index: usize, max_context: usize) -> Result<SampleRequest, ApiError> {
        let room = max_context.saturating_sub(self.context.len());
        if self.context.is_empty() || room == 0 {
            let message =
                format!("has {} tokens, expected 1 to {}", self.context.len(), max_context - 1);
            return Err(ApiError::param("prompt", message));
        }
        let max_tokens = self.max_tokens.unwrap_or(room).min(room);
        let seed = if index == 0 {
            self.seed
        } else {
            derive_seed(self.seed, &["sample", &index.to_string()])
        };
        Ok(SampleRequest {
            session: NUM_SESSIONS.fetch_add(1, Ordering::Relaxed),
            context: self.context.clone(),
            max_tokens: max_tokens.max(1),
            stop_tokens: self.stop_tokens.clone(),
            stop_strings: self.stop_strings.clone(),
            prompt_logprobs: self.prompt_logprobs && index == 0,
            params: SamplingParams { temperature: self.temperature },
            seed,
            ..SampleRequest::default()
        })
    }

    /// Draws all completions, as many at once as the pool allows.
    pub(super) async fn run(
        self,
        samplers: Arc<Samplers>,
        source: Source,
        work: &Work,
        metrics: &Metrics,
    ) -> Result<Vec<u8>, ApiError> {
        let sampler = work.run(move |_| samplers.get(&source)).await?;
        let calls = (0..self.num_samples).map(|index| {
            let sampler = Arc::clone(&sampler);
            let request = self.request(index, sampler.max_context());
            async move {
                let request = request?;
                work.run(move |gone| {
                    let drawn = sampler.sample_cancellable(&request, &|| gone.is_set());
                    sampler.end_session(request.session);
                    Ok(drawn?)
                })
                .await
            }
        });
        let completions = futures_util::future::try_join_all(calls).await?;
        let drawn = completions.iter().map(|c| c.tokens.len()).sum();
        let cached = completions.first().map_or(0, |c| c.num_cached_tokens);
        metrics.sampled(self.context.len(), cached, drawn);
        self.answer(completions, cached)
    }

    fn answer(&self, completions: Vec<Completion>, cached: usize) -> Result<Vec<u8>, ApiError> {
        let mut prompt_logprobs = None;
        let mut sequences = Vec::with_capacity(completions.len());
        for completion in completions {
            if self.prompt_logprobs && prompt_logprobs.is_none() {
                let mut values = completion.prompt_logprobs;
                // Nothing stands before the first token.
                if let Some(first) = values.first_mut() {
                    *first = f32::NAN;
                }
                prompt_logprobs = Some(values);
            }
            let stop_reason = match completion.finish_reason {
                FinishReason::Stop => StopReason::Stop,
                FinishReason::Length => StopReason::Length,
            };
            let (mut tokens, mut logprobs) = (completion.tokens, completion.logprobs);
            if self.max_tokens == Some(0) {
                (tokens, logprobs) = (Vec::new(), Vec::new());
            }
            sequences.push(SampledSequence { stop_reason, tokens, logprobs: Some(logprobs) });
        }
        let response = SampleResponse {
            sequences,
            prompt_logprobs,
            topk_prompt_logprobs: None,
            prompt_cache_hit_tokens: u32::try_from(cached).unwrap_or(u32::MAX),
        };
        response.encode().map_err(|error| ApiError::internal(error.to_string()))
    }
}
