//! The kinds of engines, and what differs between them.

use patchwright_core::SampleRequest;
use serde_json::Value;

use super::contract::Drawn;
use super::{llama_cpp, sglang, vllm};

/// How an engine is asked for tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// vLLM's `POST /inference/v1/generate`: token ids in and out, each span with the version of its
    /// weights. The server needs `--enable-scale-out`.
    VllmGenerate,
    /// vLLM's `POST /v1/completions` with `return_token_ids`; also what other servers with the same
    /// extension speak. It does not say which weights answered.
    VllmCompletions,
    /// `SGLang`'s `POST /generate`.
    Sglang,
    /// llama.cpp's own `POST /completion`.
    LlamaCpp,
}

/// One step of an answer: some engines end where they were not asked to, and are asked on.
pub(super) enum Step {
    /// The whole answer.
    Done(Drawn),
    /// These tokens, then the engine stopped at one that is no stop token: ask for the rest.
    GoOn(Drawn),
}

impl Dialect {
    /// Where requests are sent.
    pub fn path(self) -> &'static str {
        match self {
            Self::VllmGenerate => "/inference/v1/generate",
            Self::VllmCompletions => "/v1/completions",
            Self::Sglang => "/generate",
            Self::LlamaCpp => "/completion",
        }
    }

    /// Most likely tokens that the engine gives at most with its default settings (vLLM: 20, of
    /// which one may be the drawn one instead).
    pub(super) fn max_top_logprobs(self) -> usize {
        match self {
            Self::VllmGenerate | Self::VllmCompletions => 19,
            Self::Sglang | Self::LlamaCpp => 256,
        }
    }

    /// Refuses what the engine cannot do.
    pub(super) fn check(self, request: &SampleRequest) -> Result<(), String> {
        if request.context.is_empty() || request.max_tokens == 0 {
            return Err("a context of at least one token and max_tokens of at least 1".to_owned());
        }
        if request.stop_strings.iter().any(|stop| stop.is_empty() || str::from_utf8(stop).is_err())
        {
            return Err("stop strings that are texts; this engine takes no others".to_owned());
        }
        if self == Self::LlamaCpp && (request.prompt_logprobs || !request.stop_strings.is_empty()) {
            return Err(
                "neither stop strings nor log-probabilities of the prompt from llama.cpp's \
                 /completion"
                    .to_owned(),
            );
        }
        if !(request.params.temperature.is_finite() && request.params.temperature >= 0.0) {
            return Err("a temperature of 0 or more".to_owned());
        }
        Ok(())
    }

    /// The request's body, every decoding parameter said.
    pub(super) fn body(self, model: &str, request: &SampleRequest) -> Value {
        match self {
            Self::VllmGenerate => vllm::generate_body(model, request),
            Self::VllmCompletions => vllm::completions_body(model, request),
            Self::Sglang => sglang::body(request),
            Self::LlamaCpp => llama_cpp::body(request),
        }
    }

    /// Reads the answer.
    pub(super) fn read(self, request: &SampleRequest, answer: Value) -> Result<Step, String> {
        match self {
            Self::VllmGenerate => vllm::read_generate(request, answer).map(Step::Done),
            Self::VllmCompletions => vllm::read_completions(request, answer).map(Step::Done),
            Self::Sglang => sglang::read(request, answer).map(Step::Done),
            Self::LlamaCpp => llama_cpp::read(request, answer),
        }
    }
}

/// Reads a value of a known shape.
pub(super) fn typed<T: serde::de::DeserializeOwned>(answer: Value) -> Result<T, String> {
    serde_json::from_value(answer)
        .map_err(|error| format!("the answer is not what was agreed on: {error}"))
}

/// Stop strings as texts; [`Dialect::check`] has refused others.
pub(super) fn stop_texts(request: &SampleRequest) -> Vec<String> {
    request.stop_strings.iter().map(|stop| String::from_utf8_lossy(stop).into_owned()).collect()
}

/// The `n` most likely of some tokens, most likely first; ties by id.
pub(super) fn most_likely(mut tokens: Vec<(u32, f32)>, n: usize) -> Vec<(u32, f32)> {
    tokens.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    tokens.dedup_by_key(|token| token.0);
    tokens.truncate(n);
    tokens
}
