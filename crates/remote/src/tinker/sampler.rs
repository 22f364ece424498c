//! Completions from the weights that the trainer published last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use patchwright_core::{
    Completion, FinishReason, PolicyVersion, SampleRequest, Sampler, SamplerError,
};
use patchwright_wire::json::{self, ModelInput, SamplingParams, Stop};
use patchwright_wire::{SampleResponse, StopReason, paths};

use super::client::TinkerClient;
use super::error::TinkerError;

/// A sampling session and the version that it serves.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) version: PolicyVersion,
    pub(super) sampling_session_id: String,
    pub(super) next_seq: AtomicU64,
}

/// Draws completions over the Tinker API. Requests go to the version published when they begin and
/// stay with it.
#[derive(Debug)]
pub struct TinkerSampler {
    client: Arc<TinkerClient>,
    served: RwLock<Arc<Served>>,
    max_context: usize,
}

impl TinkerSampler {
    pub(super) fn new(client: Arc<TinkerClient>, served: Served, max_context: usize) -> Self {
        Self { client, served: RwLock::new(Arc::new(served)), max_context }
    }

    pub(super) fn serve(&self, served: Served) {
        *self.served.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(served);
    }

    fn served(&self) -> Arc<Served> {
        Arc::clone(&self.served.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn draw(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, TinkerError> {
        let what = "asample";
        let served = self.served();
        let body = body(request, &served, self.max_context)?;
        let future = self.client.start(what, paths::ASAMPLE, &body, is_cancelled)?;
        let bytes = self.client.wait_proto(what, &future, is_cancelled)?;
        let response = SampleResponse::decode(&bytes, self.client.limits())
            .map_err(|error| TinkerError::contract(what, error.to_string()))?;
        completion(request, response, served.version)
            .map_err(|reason| TinkerError::contract(what, reason))
    }
}

fn body(
    request: &SampleRequest,
    served: &Served,
    max_context: usize,
) -> Result<json::SampleRequest, TinkerError> {
    let setting = |reason: String| Err(TinkerError::Setting(reason));
    let length = request.context.len();
    if length == 0 || request.max_tokens == 0 || length + request.max_tokens > max_context {
        return setting(format!(
            "a context of {length} tokens and {} new ones: both must be at least 1 and together \
             at most {max_context}",
            request.max_tokens
        ));
    }
    let texts = request.stop_strings.iter().map(|bytes| String::from_utf8(bytes.clone()));
    let stop = match (request.stop_tokens.is_empty(), texts.collect::<Result<Vec<_>, _>>()) {
        (true, Ok(texts)) if texts.is_empty() => Stop::Tokens(Vec::new()),
        (true, Ok(texts)) => Stop::Texts(texts),
        (false, Ok(texts)) if texts.is_empty() => Stop::Tokens(request.stop_tokens.clone()),
        (false, Ok(_)) => {
            return setting(
                "the Tinker API takes stop tokens or stop strings, not both".to_owned(),
            );
        }
        (_, Err(_)) => return setting("a stop string is not UTF-8".to_owned()),
    };
    Ok(json::SampleRequest {
        num_samples: 1,
        prompt: ModelInput::from_tokens(request.context.clone()),
        // Every parameter is sent: a server's own defaults must not have a say.
        sampling_params: SamplingParams {
            max_tokens: Some(u32::try_from(request.max_tokens).unwrap_or(u32::MAX)),
            // Servers keep it in 31 bits.
            seed: Some(request.seed & 0x7fff_ffff),
            stop: Some(stop),
            temperature: f64::from(request.params.temperature),
            top_k: -1,
            top_p: 1.0,
        },
        base_model: None,
        model_path: None,
        sampling_session_id: Some(served.sampling_session_id.clone()),
        seq_id: Some(served.next_seq.fetch_add(1, Ordering::Relaxed)),
        prompt_logprobs: Some(request.prompt_logprobs),
        topk_prompt_logprobs: 0,
        topk_sample_logprobs: 0,
        target_prompt_logprobs: None,
        prompt_alt_tokens_k: 0,
        prompt_logprobs_last_n: None,
        record_stability_info: None,
        kind: json::kinds::Sample,
    })
}

/// Checks an answer against what was asked for.
fn completion(
    request: &SampleRequest,
    response: SampleResponse,
    version: PolicyVersion,
) -> Result<Completion, String> {
    let [sequence] = <[_; 1]>::try_from(response.sequences)
        .map_err(|all| format!("{} completions where one was asked for", all.len()))?;
    let logprobs = sequence.logprobs.ok_or("no log-probabilities")?;
    let tokens = sequence.tokens;
    if tokens.is_empty() || tokens.len() > request.max_tokens {
        return Err(format!("{} tokens of 1 to {}", tokens.len(), request.max_tokens));
    }
    if let Some(bad) = logprobs.iter().find(|l| !(l.is_finite() && **l <= 1e-3)) {
        return Err(format!("a log-probability of {bad}"));
    }
    let is_stop = |token: &u32| request.stop_tokens.contains(token);
    let finish_reason = match sequence.stop_reason {
        StopReason::Length => FinishReason::Length,
        StopReason::Stop => {
            if !request.stop_tokens.is_empty() && !tokens.last().is_some_and(is_stop) {
                return Err("a completion ends with a stop token that it leaves out".to_owned());
            }
            FinishReason::Stop
        }
    };
    if tokens[..tokens.len() - 1].iter().any(is_stop) {
        return Err("a completion goes on after a stop token".to_owned());
    }
    let prompt_logprobs = if request.prompt_logprobs {
        prompt_logprobs(request.context.len(), response.prompt_logprobs)?
    } else {
        Vec::new()
    };
    let policy_versions = vec![version; tokens.len()];
    Ok(Completion {
        tokens,
        logprobs,
        entropies: Vec::new(),
        prompt_logprobs,
        num_cached_tokens: response.prompt_cache_hit_tokens as usize,
        top_logprobs: Vec::new(),
        finish_reason,
        policy_version: version,
        policy_versions,
    })
}

/// Some servers leave the first token's entry out, others write NaN.
fn prompt_logprobs(length: usize, told: Option<Vec<f32>>) -> Result<Vec<f32>, String> {
    let mut told = told.ok_or("no log-probabilities of the prompt")?;
    if told.len() + 1 == length {
        told.insert(0, 0.0);
    }
    if told.len() != length {
        return Err(format!("{} log-probabilities of a prompt of {length}", told.len()));
    }
    if let Some(first) = told.first_mut() {
        *first = 0.0;
    }
    if told.iter().any(|l| !l.is_finite()) {
        return Err("a log-probability of the prompt is not finite".to_owned());
    }
    Ok(told)
}

impl Sampler for TinkerSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        Ok(self.draw(request, &|| false)?)
    }

    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        Ok(self.draw(request, is_cancelled)?)
    }

    /// The server's cache is its own.
    fn end_session(&self, _: u64) {}

    fn max_context(&self) -> usize {
        self.max_context
    }
}

#[cfg(test)]
mod tests {
    use patchwright_core::{FinishReason, PolicyVersion, SampleRequest};
    use patchwright_wire::{SampleResponse, SampledSequence, StopReason};

    use super::{completion, prompt_logprobs};

    fn response(tokens: &[u32], stop_reason: StopReason, logprob: f32) -> SampleResponse {
        SampleResponse {
            sequences: vec![SampledSequence {
                stop_reason,
                tokens: tokens.to_vec(),
                logprobs: Some(vec![logprob; tokens.len()]),
            }],
            ..SampleResponse::default()
        }
    }

    #[test]
    fn answers_are_held_against_the_request() {
        let request = SampleRequest {
            context: vec![1],
            max_tokens: 3,
            stop_tokens: vec![9],
            ..SampleRequest::default()
        };
        let judge = |response| completion(&request, response, PolicyVersion(2));
        let good = judge(response(&[4, 9], StopReason::Stop, -0.5)).unwrap();
        assert_eq!(good.finish_reason, FinishReason::Stop);
        assert_eq!(good.policy_versions, [PolicyVersion(2); 2]);
        assert!(judge(response(&[4, 5, 6], StopReason::Length, -0.5)).is_ok());
        let two = SampleResponse {
            sequences: [good.tokens.clone(), good.tokens]
                .map(|tokens| SampledSequence {
                    stop_reason: StopReason::Stop,
                    tokens,
                    logprobs: None,
                })
                .to_vec(),
            ..SampleResponse::default()
        };
        for (bad, why) in [
            (response(&[4, 5], StopReason::Stop, -0.5), "leaves out"),
            (response(&[9, 4], StopReason::Length, -0.5), "goes on"),
            (response(&[4, 5, 6, 7], StopReason::Length, -0.5), "4 tokens"),
            (response(&[], StopReason::Length, -0.5), "0 tokens"),
            (response(&[4], StopReason::Length, 0.5), "log-probability of 0.5"),
            (response(&[4], StopReason::Length, f32::NAN), "NaN"),
            (two, "2 completions"),
        ] {
            let error = judge(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn prompts_with_and_without_a_first_entry() {
        assert_eq!(prompt_logprobs(3, Some(vec![-1.0, -2.0])).unwrap(), [0.0, -1.0, -2.0]);
        let nan = Some(vec![f32::NAN, -1.0, -2.0]);
        assert_eq!(prompt_logprobs(3, nan).unwrap(), [0.0, -1.0, -2.0]);
        assert!(prompt_logprobs(3, Some(vec![-1.0])).is_err());
        assert!(prompt_logprobs(3, None).is_err());
    }
}
