//! Invariant 4: trainer and sampler agree about the same tokens under the same weights.
//!
//! Where a batch was sampled by the very weights that are about to be trained, the first optimizer
//! step's forward pass tells ([`crate::learn::Learned::logprob_difference_max`]). Where it was not
//! (staleness above 0), a probe asks both about a few new tokens.

use patchwright_core::{
    SampleRequest, Sampler, SamplingParams, Trainer, TrainingSample, derive_seed,
};

use crate::error::TrainError;
use crate::learn::logprob_difference;
use crate::run::Run;

/// Tokens that a probe samples.
const NUM_PROBE_TOKENS: usize = 16;

/// A session that no rollout has.
const PROBE_SESSION: u64 = 0;

/// Samples a few tokens after the prompt of `sample` and gives the largest difference to the
/// trainer's log-probabilities of them.
///
/// # Errors
/// When sampler or trainer fail.
pub fn probe(
    sampler: &dyn Sampler,
    trainer: &mut dyn Trainer,
    sample: &TrainingSample,
    seed: u64,
) -> Result<Option<f32>, TrainError> {
    let prompt_end =
        sample.loss_mask.iter().position(|mask| *mask > 0.0).unwrap_or(sample.tokens.len());
    let room = sampler.max_context().saturating_sub(prompt_end);
    if prompt_end == 0 || room == 0 {
        return Ok(None);
    }
    let request = SampleRequest {
        session: PROBE_SESSION,
        context: sample.tokens[..prompt_end].to_vec(),
        max_tokens: NUM_PROBE_TOKENS.min(room),
        stop_tokens: Vec::new(),
        params: SamplingParams::default(),
        seed: derive_seed(seed, &["probe"]),
        ..SampleRequest::default()
    };
    let completion = sampler.sample(&request);
    sampler.end_session(PROBE_SESSION);
    let completion = completion
        .map_err(|error| TrainError::setup("log-probability probe", error.to_string()))?;
    if completion.policy_version != trainer.policy_version() {
        return Ok(Some(f32::INFINITY));
    }
    let zeros = vec![0.0; prompt_end];
    let ones = vec![1.0; completion.tokens.len()];
    let loss_mask = [zeros.clone(), ones].concat();
    let probe = TrainingSample {
        tokens: [request.context, completion.tokens].concat(),
        advantages: loss_mask.clone(),
        loss_mask,
        sampler_logprobs: [zeros, completion.logprobs].concat(),
    };
    let logprobs = trainer.forward(std::slice::from_ref(&probe))?;
    Ok(logprob_difference(std::iter::once(&probe).zip(&logprobs)))
}

/// Stops the run when the difference is past the recipe's bound.
///
/// # Errors
/// [`TrainError::LogprobMismatch`].
pub fn check(
    run: &Run,
    stage: &str,
    iteration: usize,
    difference: Option<f32>,
) -> Result<(), TrainError> {
    let bound = run.recipe.infrastructure.max_logprob_difference;
    match difference {
        Some(difference) if difference > bound => Err(TrainError::LogprobMismatch {
            stage: stage.to_owned(),
            iteration,
            policy_version: run.world.trainer.policy_version(),
            difference,
            bound,
        }),
        _ => Ok(()),
    }
}
