//! Invariant 4: trainer and sampler agree about the same tokens under the same weights.
//!
//! Where a batch was sampled by the very weights that are about to be trained, the first optimizer
//! step's forward pass tells ([`crate::learn::Learned::logprob_difference_max`]). Where it was not
//! (staleness above 0), a probe asks both about a few new tokens.

use serde::{Deserialize, Serialize};

use patchwright_core::{
    SampleRequest, Sampler, SamplingParams, Trainer, TrainingSample, derive_seed,
};

use crate::error::TrainError;
use crate::learn::logprob_difference;
use crate::run::Run;

mod audit;
pub mod truncation;

pub use audit::AuditedSampler;

/// How far trainer and sampler are apart on the sampled tokens of a batch, under the same weights.
/// With `d` = the trainer's minus the sampler's log-probability of a token:
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Agreement {
    /// Tokens compared.
    pub num_tokens: usize,
    /// Mean of `d`: below 0 where the sampler renormalised a cut distribution.
    pub difference_mean: f64,
    /// Mean of `|d|`.
    pub difference_abs_mean: f64,
    /// Estimate of the divergence KL(sampler, trainer): mean of `e^d - 1 - d` (k3 of Schulman,
    /// "Approximating KL divergence", 2020).
    pub kl: f64,
    /// Part of the tokens with `|d|` above [`OUTSIDE`].
    pub fraction_outside: f64,
}

/// `|d|` above this counts as outside: a change of a token's probability by one percent.
pub const OUTSIDE: f32 = 0.01;

impl Agreement {
    /// Of samples with their trainer's log-probabilities.
    pub fn of<'a>(pairs: impl Iterator<Item = (&'a TrainingSample, &'a Vec<f32>)>) -> Self {
        let mut sums = Self::default();
        let mut num_outside = 0_u32;
        for (sample, logprobs) in pairs {
            for (t, logprob) in logprobs.iter().enumerate().skip(1) {
                if sample.loss_mask[t] > 0.0 {
                    let d = f64::from(logprob - sample.sampler_logprobs[t]);
                    sums.num_tokens += 1;
                    sums.difference_mean += d;
                    sums.difference_abs_mean += d.abs();
                    sums.kl += d.exp_m1() - d;
                    num_outside += u32::from(d.abs() > f64::from(OUTSIDE));
                }
            }
        }
        let n = sums.num_tokens.max(1) as f64;
        Self {
            num_tokens: sums.num_tokens,
            difference_mean: sums.difference_mean / n,
            difference_abs_mean: sums.difference_abs_mean / n,
            kl: sums.kl / n,
            fraction_outside: f64::from(num_outside) / n,
        }
    }
}

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

#[cfg(test)]
mod tests {
    use patchwright_core::TrainingSample;

    use super::Agreement;

    #[test]
    fn by_hand() {
        let sample = TrainingSample {
            sampler_logprobs: vec![0.0, -1.0, -2.0, -9.0],
            ..TrainingSample::supervised(vec![1, 2, 3, 4], vec![1.0, 1.0, 1.0, 0.0])
        };
        let trainer = vec![7.0, -1.0, -2.5, 0.0];
        let agreement = Agreement::of(std::iter::once((&sample, &trainer)));
        assert_eq!(agreement.num_tokens, 2, "the first and masked ones have no part");
        assert!((agreement.difference_mean + 0.25).abs() < 1e-9);
        assert!((agreement.difference_abs_mean - 0.25).abs() < 1e-9);
        assert!((agreement.kl - 0.5 * ((-0.5f64).exp() - 0.5)).abs() < 1e-9);
        assert!((agreement.fraction_outside - 0.5).abs() < 1e-9);
        assert_eq!(Agreement::of(std::iter::empty()), Agreement::default());
    }
}
