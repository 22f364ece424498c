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
#[derive(Debug, Clone)]
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
    /// How tokens are drawn.
    pub params: SamplingParams,
    /// Seed of this completion's own random stream: the result depends on it, the context and the
    /// weights, and on nothing else in the batch.
    pub seed: u64,
}

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// A stop token was drawn (and is the last token).
    Stop,
    /// `max_tokens` or the engine's context were used up.
    Length,
}

/// What the sampler drew.
#[derive(Debug, Clone)]
pub struct Completion {
    /// New tokens, the stop token included.
    pub tokens: Vec<u32>,
    /// Log-probability of each new token under the full distribution at temperature 1.
    pub logprobs: Vec<f32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
    /// The weights that drew it.
    pub policy_version: PolicyVersion,
}

/// A failure of the engine: infrastructure, never a reward.
#[derive(Debug, thiserror::Error)]
pub enum SamplerError {
    /// The request cannot be served as it stands.
    #[error("bad sample request: {0}")]
    BadRequest(String),
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

    /// The trajectory is over: its cache may go.
    fn end_session(&self, session: u64);

    /// Number of tokens that the engine can hold of one trajectory.
    fn max_context(&self) -> usize;
}
