//! Messages about sampling.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kinds;
use crate::error::WireError;

/// Body of `create_sampling_session`: over `model_path`, else over `base_model`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateSamplingSession {
    /// The session.
    pub session_id: String,
    /// Place among the session's sampling sessions.
    pub sampling_session_seq_id: u32,
    /// A base model of the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// What `save_weights_for_sampler` returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<String>,
    /// `create_sampling_session`.
    #[serde(default, rename = "type")]
    pub kind: kinds::CreateSamplingSession,
}

/// Answer of `create_sampling_session`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SamplingSessionCreated {
    /// `create_sampling_session`.
    #[serde(default, rename = "type")]
    pub kind: kinds::CreateSamplingSession,
    /// Names the sampling session from now on.
    pub sampling_session_id: String,
}

/// A sequence of chunks that the model reads.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelInput {
    /// The chunks, in order.
    pub chunks: Vec<Chunk>,
}

/// Part of a [`ModelInput`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Chunk {
    /// Tokens.
    EncodedText {
        /// Token ids.
        tokens: Vec<u32>,
    },
    /// An image, audio, or what else there may be; not read.
    #[serde(other)]
    Other,
}

impl ModelInput {
    /// One chunk of tokens.
    pub fn from_tokens(tokens: Vec<u32>) -> Self {
        Self { chunks: vec![Chunk::EncodedText { tokens }] }
    }

    /// The tokens of all chunks.
    ///
    /// # Errors
    /// [`WireError::Unsupported`] when there is a chunk that is no text.
    pub fn into_tokens(self) -> Result<Vec<u32>, WireError> {
        let mut all = Vec::new();
        for chunk in self.chunks {
            match chunk {
                Chunk::EncodedText { tokens } if all.is_empty() => all = tokens,
                Chunk::EncodedText { tokens } => all.extend(tokens),
                Chunk::Other => {
                    return Err(WireError::Unsupported(
                        "the prompt has an image or audio; only text tokens are taken".to_owned(),
                    ));
                }
            }
        }
        Ok(all)
    }
}

/// What ends a completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Stop {
    /// Any of these tokens; none of them, not even the end of text, when empty.
    Tokens(Vec<u32>),
    /// This text.
    Text(String),
    /// Any of these texts.
    Texts(Vec<String>),
}

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamplingParams {
    /// New tokens at most; left out, as many as the context holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
    /// Seed of the draw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What ends the completion; left out, the model's end of text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Stop>,
    /// Divides the logits.
    pub temperature: f64,
    /// Only the most likely tokens; -1 means all.
    pub top_k: i64,
    /// Only the most likely tokens of this mass; 1 means all.
    pub top_p: f64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self { max_tokens: None, seed: None, stop: None, temperature: 1.0, top_k: -1, top_p: 1.0 }
    }
}

/// Body of `asample`: from a sampling session, else from `model_path`, else from `base_model`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SampleRequest {
    /// Completions wanted.
    #[serde(default = "one")]
    pub num_samples: u32,
    /// The context.
    pub prompt: ModelInput,
    /// How tokens are drawn.
    #[serde(default)]
    pub sampling_params: SamplingParams,
    /// A base model of the server's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// What `save_weights_for_sampler` returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_path: Option<String>,
    /// The sampling session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_id: Option<String>,
    /// Place among the sampling session's requests; the same number is the same request sent again.
    /// With 0.25 and later, clones of a client count from `clone * 1_000_000_000`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<u64>,
    /// Whether the prompt's log-probabilities are wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<bool>,
    /// Most likely tokens wanted at each place of the prompt.
    #[serde(default)]
    pub topk_prompt_logprobs: u32,
    /// SDK 0.38: most likely tokens wanted at each new token.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub topk_sample_logprobs: u32,
    /// SDK 0.38: log-probabilities of given tokens at each place of the prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_prompt_logprobs: Option<Value>,
    /// SDK 0.38: draws wanted at each place of the prompt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub prompt_alt_tokens_k: u32,
    /// SDK 0.38: log-probabilities of only the prompt's last tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs_last_n: Option<u64>,
    /// SDK 0.38: what a loss of its own needs to know of the draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record_stability_info: Option<bool>,
    /// `sample`.
    #[serde(default, rename = "type")]
    pub kind: kinds::Sample,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes fields by reference")]
fn is_zero(n: &u32) -> bool {
    *n == 0
}
