//! The result of `asample`.

use prost::Message;
use serde::{Deserialize, Serialize};

use crate::error::WireError;
use crate::limits::{Limits, check_body};
use crate::proto;
use crate::tensor::{read_f32, read_tokens, write_f32, write_tokens};

/// Why a completion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StopReason {
    /// A stop sequence or the end of text.
    Stop,
    /// The allowed number of tokens was used up.
    Length,
}

/// One completion.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledSequence {
    /// Why it ended.
    pub stop_reason: StopReason,
    /// New tokens.
    pub tokens: Vec<u32>,
    /// Log-probability of each new token, if known.
    pub logprobs: Option<Vec<f32>>,
}

/// The most likely tokens at each place of the prompt, as matrices `[length, k]`, row-major; places
/// that are not known hold token 0 with log-probability -99999.
#[derive(Debug, Clone, PartialEq)]
pub struct TopkLogprobs {
    /// Token ids.
    pub token_ids: Vec<u32>,
    /// Their log-probabilities.
    pub logprobs: Vec<f32>,
    /// Columns.
    pub k: u32,
    /// Rows: places of the prompt.
    pub length: u32,
}

/// Result of `asample`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SampleResponse {
    /// As many completions as asked for.
    pub sequences: Vec<SampledSequence>,
    /// Log-probability of each prompt token; NaN where not computed, as for the first.
    pub prompt_logprobs: Option<Vec<f32>>,
    /// The most likely tokens at each place of the prompt, if asked for.
    pub topk_prompt_logprobs: Option<TopkLogprobs>,
    /// Prompt tokens that a prefix cache had.
    pub prompt_cache_hit_tokens: u32,
}

impl SampleResponse {
    /// The protobuf body.
    ///
    /// # Errors
    /// [`WireError::Malformed`] for token ids above 2^31 - 1.
    pub fn encode(&self) -> Result<Vec<u8>, WireError> {
        let sequences = self
            .sequences
            .iter()
            .map(|s| {
                Ok(proto::SampledSequence {
                    stop_reason: i32::from(s.stop_reason == StopReason::Length),
                    tokens: write_tokens("sampled tokens", &s.tokens)?,
                    logprobs: s.logprobs.as_deref().map(write_f32),
                })
            })
            .collect::<Result<Vec<_>, WireError>>()?;
        let topk = match &self.topk_prompt_logprobs {
            Some(topk) => Some(proto::TopkLogprobs {
                token_ids: write_tokens("topk_prompt_logprobs", &topk.token_ids)?,
                logprobs: write_f32(&topk.logprobs),
                k: topk.k,
                length: topk.length,
            }),
            None => None,
        };
        Ok(proto::SampleResponse {
            sequences,
            prompt_logprobs: self.prompt_logprobs.as_deref().map(write_f32),
            topk_prompt_logprobs: topk,
            prompt_cache_hit_tokens: i32::try_from(self.prompt_cache_hit_tokens)
                .unwrap_or(i32::MAX),
        }
        .encode_to_vec())
    }

    /// Reads a protobuf body.
    ///
    /// # Errors
    /// [`WireError::Malformed`], [`WireError::TooLarge`] past `limits`.
    pub fn decode(body: &[u8], limits: &Limits) -> Result<Self, WireError> {
        let what = "sample result";
        check_body(what, body, &proto::SAMPLE_SHAPE, limits)?;
        let message = proto::SampleResponse::decode(body)
            .map_err(|e| WireError::malformed(what, e.to_string()))?;
        let sequences =
            message.sequences.iter().map(read_sequence).collect::<Result<Vec<_>, _>>()?;
        let prompt_logprobs = match &message.prompt_logprobs {
            // The SDK reads an empty field as one that is not there.
            Some(bytes) if !bytes.is_empty() => Some(read_f32("prompt_logprobs", bytes)?),
            _ => None,
        };
        Ok(Self {
            sequences,
            prompt_logprobs,
            topk_prompt_logprobs: message
                .topk_prompt_logprobs
                .as_ref()
                .map(read_topk)
                .transpose()?,
            prompt_cache_hit_tokens: u32::try_from(message.prompt_cache_hit_tokens)
                .map_err(|_| WireError::malformed("prompt_cache_hit_tokens", "it is negative"))?,
        })
    }
}

fn read_sequence(sequence: &proto::SampledSequence) -> Result<SampledSequence, WireError> {
    let stop_reason = match sequence.stop_reason {
        0 => StopReason::Stop,
        1 => StopReason::Length,
        other => {
            return Err(WireError::malformed("stop_reason", format!("unknown value {other}")));
        }
    };
    let tokens = read_tokens("sampled tokens", &sequence.tokens)?;
    let logprobs = match &sequence.logprobs {
        Some(bytes) if !bytes.is_empty() => Some(read_f32("logprobs", bytes)?),
        // Present and empty is what a writer makes of no tokens.
        Some(_) if tokens.is_empty() => Some(Vec::new()),
        _ => None,
    };
    if let Some(logprobs) = &logprobs
        && logprobs.len() != tokens.len()
    {
        return Err(WireError::malformed(
            "logprobs",
            format!("{} of them for {} tokens", logprobs.len(), tokens.len()),
        ));
    }
    Ok(SampledSequence { stop_reason, tokens, logprobs })
}

fn read_topk(topk: &proto::TopkLogprobs) -> Result<TopkLogprobs, WireError> {
    let name = "topk_prompt_logprobs";
    let read = TopkLogprobs {
        token_ids: read_tokens(name, &topk.token_ids)?,
        logprobs: read_f32(name, &topk.logprobs)?,
        k: topk.k,
        length: topk.length,
    };
    let cells = u64::from(read.k) * u64::from(read.length);
    if read.token_ids.len() as u64 != cells || read.logprobs.len() as u64 != cells {
        return Err(WireError::malformed(name, "the matrices do not fit k and length"));
    }
    Ok(read)
}
