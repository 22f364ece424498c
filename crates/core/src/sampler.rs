//! The seam to whatever generates tokens. Token ids in, token ids out, never text.

use crate::trainer::PolicyVersion;

/// How the next token is drawn. The default is the full distribution at temperature 1: what
/// training assumes.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingParams {
    /// Divides the logits; 0 means the most likely token.
    pub temperature: f32,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { temperature: 1.0 }
    }
}

/// A request for one completion.
///
/// A sequence is forked by asking again with any prefix of its tokens as `context`, under another
/// `session`; an engine that shares prefixes computes nothing twice.
#[derive(Debug, Clone, Default)]
pub struct SampleRequest {
    /// Names the trajectory, so that an engine can keep its cache from turn to turn. Unique among
    /// the live trajectories of a run.
    pub session: u64,
    /// The whole context so far: prompt, and each earlier turn with its observation, exactly as
    /// earlier requests and completions of the session had it, plus the new observation.
    pub context: Vec<u32>,
    /// At most this many new tokens, at least 1.
    pub max_tokens: usize,
    /// Generation ends with the first of these, which is part of the completion.
    pub stop_tokens: Vec<u32>,
    /// Generation ends with the token that completes one of these in the completion's own bytes,
    /// wherever tokens begin and end; that token is part of the completion. None may be empty.
    pub stop_strings: Vec<Vec<u8>>,
    /// Whether [`Completion::prompt_logprobs`] are wanted. They cost the computation of the whole
    /// context, cached or not.
    pub prompt_logprobs: bool,
    /// How many [`Completion::top_logprobs`] are wanted for each new token; an engine may give
    /// fewer, or none at all.
    pub num_top_logprobs: usize,
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// Seed of this completion's own random stream: the result depends on it, the context and the
    /// weights, and on nothing else in the batch.
    pub seed: u64,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token was drawn, or a stop string completed; it is the end of the completion.
    #[default]
    Stop,
    /// `max_tokens` or the engine's context were used up.
    Length,
}

/// What the sampler drew. An engine that does not know the optional vectors leaves them empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Completion {
    /// New tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each new token under the full distribution at temperature 1.
    pub logprobs: Vec<f32>,
    /// Entropy, in nats, of the full distribution at temperature 1 that each new token was drawn
    /// from. As long as `tokens`, or empty.
    pub entropies: Vec<f32>,
    /// Log-probability of each context token under the full distribution at temperature 1, given
    /// those before it; 0 for the first. As long as the context if asked for, else empty.
    pub prompt_logprobs: Vec<f32>,
    /// Tokens of the context that the engine had computed before; 0 where it does not say.
    pub num_cached_tokens: usize,
    /// The most likely tokens of the full distribution at temperature 1 that each new token was
    /// drawn from, with their log-probabilities, most likely first. As long as `tokens`, or empty.
    pub top_logprobs: Vec<Vec<(u32, f32)>>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The weights that drew the first token: the oldest that had a part in it.
    pub policy_version: PolicyVersion,
    /// The weights that drew each token, never decreasing: all equal unless weights were swapped
    /// in flight. As long as `tokens`, or empty.
    pub policy_versions: Vec<PolicyVersion>,
}

/// A token as it is drawn.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DrawnToken {
    /// The token.
    pub token: u32,
    /// Its log-probability under the full distribution at temperature 1.
    pub logprob: f32,
    /// Its entry of [`Completion::top_logprobs`]; empty where there are none.
    pub top: Vec<(u32, f32)>,
}

/// A failure of the engine: infrastructure, never a reward.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The request cannot be served as it stands.
    #[error("bad sample request: {0}")]
    BadRequest(String),
    /// The caller withdrew the request.
    #[error("the sample request was cancelled")]
    Cancelled,
    /// The engine failed or went away.
    #[error("engine: {0}")]
    Engine(String),
}

/// Generates tokens. Called from many threads at once; an engine batches the calls itself.
pub trait Sampler: Send + Sync {
    /// Draws one completion, blocking until it is there.
    ///
    /// # Errors
    /// [`SamplerError`] when the request is not valid or the engine failed.
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError>;

    /// As [`Sampler::sample`], but gives up soon after `is_cancelled` says so. An engine asks it
    /// now and then, from the calling thread; one that cannot end a request early asks once.
    ///
    /// # Errors
    /// [`SamplerError::Cancelled`], and those of [`Sampler::sample`].
    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        if is_cancelled() {
            return Err(SamplerError::Cancelled);
        }
        self.sample(request)
    }

    /// As [`Sampler::sample_cancellable`], and `on_token` hears each token as it is drawn, from
    /// the calling thread. An engine that cannot tell them earlier tells them
    /// all at the end.
    ///
    /// # Errors
    /// Those of [`Sampler::sample_cancellable`].
    fn sample_streaming(
        &self,
        request: &SampleRequest,
        on_token: &mut dyn FnMut(&DrawnToken),
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        let completion = self.sample_cancellable(request, is_cancelled)?;
        for (i, (token, logprob)) in completion.tokens.iter().zip(&completion.logprobs).enumerate()
        {
            let top = completion.top_logprobs.get(i).cloned().unwrap_or_default();
            on_token(&DrawnToken { token: *token, logprob: *logprob, top });
        }
        Ok(completion)
    }

    /// The trajectory is over: its cache may go.
    fn end_session(&self, session: u64);

    /// Number of tokens that the engine can hold of one trajectory.
    fn max_context(&self) -> usize;
}
