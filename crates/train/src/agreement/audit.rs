//! A sampler that is watched for cutting the distribution.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use patchwright_core::{
    Completion, SampleRequest, Sampler, SamplerError, SamplingParams, derive_seed,
};

use super::truncation::{Finding, TruncationTest};

/// One request in so many is asked for the likely tokens as well.
const ONE_IN: u64 = 8;
/// Likely tokens that are asked for.
const NUM_TOP: usize = 20;
/// Honest engines are accused with at most this probability in the life of a process.
pub const FALSE_ALARM_RATE: f64 = 1e-6;
/// Completions of a probe, and tokens of each.
const NUM_PROBES: u64 = 16;
const NUM_PROBE_TOKENS: usize = 32;

/// Passes requests on; a share of them, chosen by their seeds, is tested. Once a cut is proven,
/// every further request fails and says so: nothing more is trained on.
pub struct AuditedSampler {
    inner: Arc<dyn Sampler>,
    test: Mutex<TruncationTest>,
}

impl AuditedSampler {
    /// Watches a sampler.
    pub fn new(inner: Arc<dyn Sampler>) -> Self {
        Self { inner, test: Mutex::new(TruncationTest::new(FALSE_ALARM_RATE)) }
    }

    /// Draws after a known prompt and tests every token.
    ///
    /// # Errors
    /// [`SamplerError::Engine`] when the engine cuts, and those of the engine.
    pub fn probe(&self, prompt: &[u32], seed: u64) -> Result<(), SamplerError> {
        for n in 0..NUM_PROBES {
            let request = SampleRequest {
                context: prompt.to_vec(),
                max_tokens: NUM_PROBE_TOKENS,
                seed: derive_seed(seed, &["truncation-probe", &n.to_string()]),
                num_top_logprobs: NUM_TOP,
                ..SampleRequest::default()
            };
            self.observe(&self.inner.sample(&request)?);
        }
        self.verdict()
    }

    /// Tokens tested so far, and what was found.
    pub fn findings(&self) -> (u64, Option<Finding>) {
        let test = self.lock();
        (test.num_tokens(), test.finding())
    }

    fn lock(&self) -> MutexGuard<'_, TruncationTest> {
        self.test.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe(&self, completion: &Completion) {
        let mut test = self.lock();
        for (token, top) in completion.tokens.iter().zip(&completion.top_logprobs) {
            test.observe(top, *token);
        }
    }

    fn verdict(&self) -> Result<(), SamplerError> {
        let Some(finding) = self.lock().finding() else { return Ok(()) };
        Err(SamplerError::Engine(format!(
            "it does not draw from the distribution that it reports: {} explains its {} tokens \
             (p < {:.0e}). Start it without a generation config (vLLM: --generation-config vllm) \
             and without sampling defaults of its own",
            finding.cut, finding.num_tokens, finding.p_value
        )))
    }
}

impl Sampler for AuditedSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        self.sample_cancellable(request, &|| false)
    }

    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        self.verdict()?;
        let is_tested = request.params == SamplingParams::default()
            && derive_seed(request.seed, &["audit"]).is_multiple_of(ONE_IN);
        if !is_tested {
            return self.inner.sample_cancellable(request, is_cancelled);
        }
        let request = SampleRequest { num_top_logprobs: NUM_TOP, ..request.clone() };
        let completion = self.inner.sample_cancellable(&request, is_cancelled)?;
        self.observe(&completion);
        self.verdict()?;
        Ok(completion)
    }

    fn end_session(&self, session: u64) {
        self.inner.end_session(session);
    }

    fn max_context(&self) -> usize {
        self.inner.max_context()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use patchwright_core::{
        Completion, FinishReason, SampleRequest, Sampler, SamplerError, stream,
    };
    use rand::Rng;

    use super::AuditedSampler;

    /// Says that 40 tokens are as likely as one another, and draws of the first `kept`.
    struct Liar {
        kept: u32,
    }

    impl Sampler for Liar {
        fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
            let mut rng = stream(request.seed, &["liar"]);
            let logprob = -(40f32.ln());
            let top: Vec<(u32, f32)> = (0..request.num_top_logprobs.min(40) as u32)
                .map(|token| (token, logprob))
                .collect();
            let n = request.max_tokens;
            Ok(Completion {
                tokens: (0..n).map(|_| rng.random_range(0..self.kept)).collect(),
                logprobs: vec![logprob; n],
                top_logprobs: if top.is_empty() { Vec::new() } else { vec![top; n] },
                finish_reason: FinishReason::Length,
                ..Completion::default()
            })
        }

        fn end_session(&self, _: u64) {}

        fn max_context(&self) -> usize {
            1000
        }
    }

    #[test]
    fn a_liar_is_found_out_and_serves_no_more() {
        let audited = AuditedSampler::new(Arc::new(Liar { kept: 20 }));
        let error = audited.probe(&[1, 2], 3).unwrap_err().to_string();
        assert!(error.contains("top_k of 20") && error.contains("generation-config"), "{error}");
        let request = SampleRequest { max_tokens: 1, ..SampleRequest::default() };
        assert!(audited.sample(&request).is_err());
        // In training too, by the requests that are tested.
        let audited = AuditedSampler::new(Arc::new(Liar { kept: 15 }));
        let found = (0..400).position(|seed| {
            audited
                .sample(&SampleRequest { seed, max_tokens: 10, ..SampleRequest::default() })
                .is_err()
        });
        assert!(found.is_some_and(|requests| requests > 5), "{found:?}");
    }

    #[test]
    fn an_honest_engine_serves_on() {
        let audited = AuditedSampler::new(Arc::new(Liar { kept: 40 }));
        audited.probe(&[1, 2], 3).unwrap();
        for seed in 0..400 {
            audited
                .sample(&SampleRequest { seed, max_tokens: 10, ..SampleRequest::default() })
                .unwrap();
        }
        let (num_tokens, finding) = audited.findings();
        assert!(num_tokens > 700 && finding.is_none(), "{num_tokens}");
    }
}
