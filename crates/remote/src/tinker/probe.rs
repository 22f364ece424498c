//! What a server does with losses and gradients, found out by trying it on a model that is thrown
//! away.
//!
//! Two facts matter and no message tells them: how token losses become one loss, and whether
//! `grad_clip_norm` has an effect. All passes have the same shape, so that a server that compiles
//! does it once. With one sequence `S`, one of its tokens with weight and advantage 1 and gradient
//! `g`:
//!
//! - A batch `S, S` has the gradient `2 g` as a sum and `g` as any mean.
//! - A second token of the first `S` with weight 1 and advantage 0 adds nothing to a sum, halves the
//!   first half of a mean of means (3/4), and takes a third of a mean over all tokens.
//! - A step whose `eps` is far above the gradient moves the weights by `lr / eps` times the
//!   gradient, and so the token's log-probability by `lr / eps · G² / k` for a gradient `G = k g`
//!   whose norm the server tells: that is `k`. The same step with a clip far below `G` moves next to
//!   nothing if the server clips.

use patchwright_core::AdamParams;
use patchwright_wire::{Datum, LossFn, Tensor};

use super::batch;
use super::client::TinkerClient;
use super::error::TinkerError;
use super::model::{Chunking, Model};

/// How a server makes one loss of token losses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduction {
    /// Their sum (hosted Tinker; `SkyRL` with FSDP or Megatron).
    Sum,
    /// The mean over a sequence by its weights, then over the sequences of the step (`SkyRL` with
    /// JAX).
    MeanOfMeans,
}

/// What a probe found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Findings {
    pub(super) reduction: Reduction,
    pub(super) clips_gradients: bool,
}

/// The sequence `S`. Ids that every vocabulary has.
const TOKENS: [u32; 8] = [3, 11, 7, 5, 13, 2, 17, 6];
/// The token whose gradient is taken, and the one whose weight alone is set.
const TAKEN: usize = 2;
const IDLE: usize = 5;
/// How far the log-probability is moved.
const MOVE: f32 = 0.1;

/// Tries a model out.
pub(super) fn run(
    client: &TinkerClient,
    model: &mut Model,
    chunking: &Chunking,
) -> Result<Findings, TinkerError> {
    let mut scratch = Scratch { client, model, chunking };
    let before = scratch.logprobs()?;
    let spread = scratch.gradient(&before, true)?;
    let plain = scratch.gradient(&before, false)?;
    let moved = scratch.step(&before, plain, 0.0)?;
    let after = scratch.logprobs()?;
    let clipped = scratch.step(&after, moved.norm, plain * 1e-3)?;
    judge(spread / plain, moved.k, clipped.change)
}

/// Names what the numbers mean: the ratio of the gradients' norms with the idle weight and without,
/// the factor of the plain gradient, and how far the clipped step went, of [`MOVE`].
fn judge(ratio: f32, factor: f32, clipped_change: f32) -> Result<Findings, TinkerError> {
    let near = |value: f32, target: f32, by: f32| (value - target).abs() < by;
    let reduction = if near(ratio, 1.0, 0.05) && (1.5..3.0).contains(&factor) {
        Reduction::Sum
    } else if near(ratio, 0.75, 0.03) && (0.6..1.5).contains(&factor) {
        Reduction::MeanOfMeans
    } else {
        return Err(TinkerError::contract(
            "probe of the loss",
            format!(
                "token losses are neither summed nor averaged by sequence (an idle weight changes \
                 the gradient by {ratio:.3}, two sequences have {factor:.2} times one's): gradients \
                 would be wrong by an unknown factor"
            ),
        ));
    };
    Ok(Findings { reduction, clips_gradients: clipped_change < 0.25 * MOVE })
}

struct Scratch<'a> {
    client: &'a TinkerClient,
    model: &'a mut Model,
    chunking: &'a Chunking,
}

struct Moved {
    /// Norm of the gradient.
    norm: f32,
    /// How many times the gradient of one sequence it was.
    k: f32,
    /// Change of the taken token's log-probability.
    change: f32,
}

impl Scratch<'_> {
    fn logprobs(&mut self) -> Result<Vec<f32>, TinkerError> {
        let data = vec![batch::forward_datum(&TOKENS); 2];
        let output =
            self.model.run(self.client, self.chunking, data, LossFn::CrossEntropy, true)?;
        let mut read = batch::logprobs("probe of the loss", output, &[TOKENS.len() - 1; 2])?;
        Ok(read.swap_remove(0))
    }

    fn accumulate(&mut self, logprobs: &[f32], idle: bool) -> Result<(), TinkerError> {
        let n = TOKENS.len() - 1;
        let one_at = |places: &[usize]| {
            let mut values = vec![0.0; n];
            for place in places {
                values[*place] = 1.0;
            }
            Tensor::f32(values)
        };
        let sequence = |idle: bool| {
            let weights = if idle { one_at(&[TAKEN, IDLE]) } else { one_at(&[TAKEN]) };
            let mut datum: Datum = batch::forward_datum(&TOKENS);
            for (name, tensor) in [
                ("weights", weights),
                ("advantages", one_at(&[TAKEN])),
                ("logprobs", Tensor::f32(logprobs.to_vec())),
            ] {
                datum.loss_fn_inputs.insert(name.to_owned(), tensor);
            }
            datum
        };
        let data = vec![sequence(idle), sequence(false)];
        let loss_fn = LossFn::ImportanceSampling;
        self.model.run(self.client, self.chunking, data, loss_fn, false).map(|_| ())
    }

    /// Norm of a batch's gradient, at a learning rate of 0.
    fn gradient(&mut self, logprobs: &[f32], idle: bool) -> Result<f32, TinkerError> {
        self.accumulate(logprobs, idle)?;
        let norm = self.model.optim_step(self.client, &adam(0.0, 1.0, 0.0))?;
        if norm.is_finite() && norm > 0.0 {
            return Ok(norm);
        }
        Err(TinkerError::contract(
            "probe of the loss",
            format!("optim_step tells no gradient norm to judge the server's losses by ({norm})"),
        ))
    }

    /// A step that moves the taken token's log-probability by about [`MOVE`], if one sequence's
    /// gradient is the whole one and nothing is clipped.
    fn step(&mut self, logprobs: &[f32], norm: f32, grad_clip: f32) -> Result<Moved, TinkerError> {
        self.accumulate(logprobs, false)?;
        let eps = norm * 1e3;
        let lr = MOVE * eps / (norm * norm);
        let told = self.model.optim_step(self.client, &adam(lr, eps, grad_clip))?;
        let change = self.logprobs()?[TAKEN] - logprobs[TAKEN];
        Ok(Moved { norm: told, k: MOVE / change.max(1e-6), change })
    }
}

/// Without memory: the moments are the gradient and its square.
fn adam(lr: f32, eps: f32, grad_clip: f32) -> AdamParams {
    AdamParams { lr, beta1: 0.0, beta2: 0.0, eps, weight_decay: 0.0, grad_clip }
}

#[cfg(test)]
mod tests {
    use super::{MOVE, Reduction, judge};

    #[test]
    fn sums_and_means_of_means_are_told_from_the_rest() {
        let sum = judge(1.0, 2.1, MOVE).expect("a sum");
        assert_eq!((sum.reduction, sum.clips_gradients), (Reduction::Sum, false));
        let mean = judge(0.75, 0.95, MOVE * 1e-3).expect("a mean");
        assert_eq!((mean.reduction, mean.clips_gradients), (Reduction::MeanOfMeans, true));
        for (ratio, factor) in [(2.0 / 3.0, 1.0), (1.0, 1.0), (0.75, 2.0), (f32::NAN, 1.0)] {
            let error = judge(ratio, factor, MOVE).unwrap_err().to_string();
            assert!(error.contains("neither summed nor averaged"), "{error}");
        }
    }
}
