//! From samples to new weights: the optimizer steps that RFT and RL share.

use patchwright_algo::batch::optimizer_batches;
use patchwright_core::{
    AdamParams, ForwardBackward, Objective, PolicyVersion, Trainer, TrainerError, TrainingSample,
    derive_seed,
};

use crate::agreement::Agreement;
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RunEvent};

/// A training sample and the weights that sampled it.
#[derive(Debug, Clone, PartialEq)]
pub struct VersionedSample {
    /// The sample.
    pub sample: TrainingSample,
    /// The weights.
    pub policy_version: PolicyVersion,
}

/// How samples are learned from.
pub struct LearnPlan<'a> {
    /// The stage, for events and seeds.
    pub stage: &'a str,
    /// The iteration, for events and seeds.
    pub iteration: usize,
    /// Optimizer steps of each epoch.
    pub steps_per_epoch: usize,
    /// Passes over the samples.
    pub epochs: usize,
    /// Seed of the run.
    pub seed: u64,
    /// The objective of an optimizer batch.
    pub objective: &'a dyn Fn(&[TrainingSample]) -> Box<dyn Objective>,
    /// Optimizer parameters of step `s`, counted over all epochs.
    pub adam: &'a dyn Fn(usize) -> AdamParams,
    /// Told of each step.
    pub observer: &'a dyn Observer,
    /// Set when the run is to stop; looked at before each step.
    pub cancel: &'a CancelToken,
}

/// What learning did.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Learned {
    /// Optimizer steps taken.
    pub num_steps: usize,
    /// Loss per token, mean over steps.
    pub loss: f64,
    /// Norm of the gradient before the clip, mean over steps.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Part of action tokens whose gradient a clip cut.
    pub clipped_fraction: f64,
    /// Tokens of all samples, prompts and observations included, once per epoch.
    pub num_tokens: usize,
    /// Largest difference of a token's log-probability between trainer and sampler, over the
    /// samples of the first step whose weights were the trainer's; `None` when there were none.
    pub logprob_difference_max: Option<f32>,
    /// The same tokens' agreement on the whole.
    pub agreement: Agreement,
}

/// Takes the optimizer steps of a plan. The weights are not published.
///
/// # Errors
/// [`TrainError::Trainer`], or [`TrainError::Cancelled`]; the trainer's weights are then in the
/// middle of an iteration and must be loaded anew.
pub fn learn(
    trainer: &mut dyn Trainer,
    samples: &[VersionedSample],
    plan: &LearnPlan,
) -> Result<Learned, TrainError> {
    let mut learned = Learned::default();
    let (mut num_action_tokens, mut num_clipped) = (0, 0);
    let num_steps = plan.steps_per_epoch * plan.epochs;
    for epoch in 0..plan.epochs {
        let names = [plan.stage, &plan.iteration.to_string(), &epoch.to_string()];
        let seed = derive_seed(plan.seed, &["learn", names[0], names[1], names[2]]);
        for indices in optimizer_batches(samples.len(), plan.steps_per_epoch, seed) {
            if plan.cancel.is_cancelled() {
                return Err(TrainError::Cancelled);
            }
            let batch: Vec<TrainingSample> =
                indices.iter().map(|index| samples[*index].sample.clone()).collect();
            let step = one_step(trainer, &batch, plan, learned.num_steps)?;
            if learned.num_steps == 0 {
                let version = trainer.policy_version();
                let pairs = || {
                    indices.iter().zip(&step.result.logprobs).filter_map(|(index, logprobs)| {
                        let sample = &samples[*index];
                        (sample.policy_version == version).then_some((&sample.sample, logprobs))
                    })
                };
                learned.logprob_difference_max = logprob_difference(pairs());
                learned.agreement = Agreement::of(pairs());
            }
            let num_tokens = batch.iter().map(|sample| sample.tokens.len()).sum();
            plan.observer.event(&RunEvent::OptimizerStep {
                stage: plan.stage.to_owned(),
                iteration: plan.iteration,
                step: learned.num_steps,
                num_steps,
                num_tokens,
            });
            learned.num_steps += 1;
            learned.num_tokens += num_tokens;
            learned.loss += step.result.loss / num_steps as f64;
            learned.grad_norm += f64::from(step.grad_norm) / num_steps as f64;
            learned.lr = f64::from(step.lr);
            num_action_tokens += step.result.num_loss_tokens;
            num_clipped += step.result.num_clipped;
        }
    }
    learned.clipped_fraction = num_clipped as f64 / (num_action_tokens.max(1)) as f64;
    Ok(learned)
}

/// What one optimizer step saw.
struct Step {
    result: ForwardBackward,
    grad_norm: f32,
    lr: f32,
}

fn one_step(
    trainer: &mut dyn Trainer,
    batch: &[TrainingSample],
    plan: &LearnPlan,
    step: usize,
) -> Result<Step, TrainError> {
    let objective = (plan.objective)(batch);
    let adam = (plan.adam)(step);
    let result = trainer.forward_backward(batch, objective.as_ref())?;
    if !result.loss.is_finite() {
        return Err(TrainerError::Diverged(format!("the loss is {}", result.loss)).into());
    }
    let grad_norm = trainer.optim_step(&adam)?.grad_norm;
    Ok(Step { result, grad_norm, lr: adam.lr })
}

/// Largest `|trainer_logprob - sampler_logprob|` over the action tokens of samples with their
/// trainer's log-probabilities; `None` without any. NaN counts as infinite.
pub fn logprob_difference<'a>(
    pairs: impl Iterator<Item = (&'a TrainingSample, &'a Vec<f32>)>,
) -> Option<f32> {
    let mut largest: Option<f32> = None;
    for (sample, logprobs) in pairs {
        for (t, logprob) in logprobs.iter().enumerate().skip(1) {
            if sample.loss_mask[t] > 0.0 {
                let difference = (logprob - sample.sampler_logprobs[t]).abs();
                let difference = if difference.is_nan() { f32::INFINITY } else { difference };
                largest = Some(largest.map_or(difference, |known| known.max(difference)));
            }
        }
    }
    largest
}
