//! The supervised objective, for RFT and pretraining, and RFT's samples.

use patchwright_core::{Objective, Rollout, TokenLoss, TrainingSample, TurnOutcome};

/// Weighted cross-entropy with a token-level mean:
///
/// ```text
/// L = -1/W  sum over samples, tokens t of  mask_t * trainer_logprob_t,    W = sum of mask_t
/// ```
///
/// `mask_t` may be a weight (observations 0.2, actions 1). `W` is that of the whole optimizer
/// batch, because the batch may come to the engine in parts.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy {
    inverse_denominator: f32,
}

impl CrossEntropy {
    /// The objective of one optimizer batch whose weights sum to `total_weight`.
    pub fn new(total_weight: f32) -> Self {
        let positive = total_weight > 0.0;
        Self { inverse_denominator: if positive { 1.0 / total_weight } else { 0.0 } }
    }

    /// The objective of an optimizer batch.
    pub fn of_batch(batch: &[TrainingSample]) -> Self {
        let total: f64 = batch
            .iter()
            .flat_map(|sample| sample.loss_mask.iter().skip(1))
            .map(|weight| f64::from(*weight))
            .sum();
        Self::new(total as f32)
    }
}

impl Objective for CrossEntropy {
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss {
        let weight = sample.loss_mask[t] * self.inverse_denominator;
        TokenLoss { loss: -weight * trainer_logprob, d_logprob: -weight, clipped: false }
    }
}

/// RFT's samples of a rollout (arXiv 2508.03501, section 4.2), one of each of its trajectories:
/// none unless it is solved. The mask is 1 on sampled tokens, except, with `mask_format_errors`,
/// those of turns that caused a formatting error; 0 on the prompt and on observations.
pub fn rft_samples(rollout: &Rollout, mask_format_errors: bool) -> Vec<TrainingSample> {
    if !rollout.is_solved() {
        return Vec::new();
    }
    rollout
        .to_samples(1.0, |turn| !(mask_format_errors && turn.outcome == TurnOutcome::FormatError))
}

#[cfg(test)]
mod tests {
    use patchwright_core::{Objective, RolloutStatus, TrainingSample};

    use super::{CrossEntropy, rft_samples};
    use crate::testing::rollout;

    /// Goldens of `(w * nll).sum() / w.sum()` by hand: weights 1 and 0.2, the first token's does
    /// not count.
    #[test]
    fn weighted_mean_by_hand() {
        let sample = TrainingSample::supervised(vec![0, 1, 2], vec![5.0, 1.0, 0.2]);
        let objective = CrossEntropy::of_batch(std::slice::from_ref(&sample));
        let first = objective.token_loss(&sample, 1, -0.6);
        let second = objective.token_loss(&sample, 2, -3.0);
        assert!((first.loss + second.loss - (0.6 + 0.2 * 3.0) / 1.2).abs() < 1e-6);
        assert!((first.d_logprob + 1.0 / 1.2).abs() < 1e-6);
        assert!((second.d_logprob + 0.2 / 1.2).abs() < 1e-6);
    }

    #[test]
    fn an_empty_batch_has_no_gradient() {
        let sample = TrainingSample::supervised(vec![0, 1], vec![0.0, 0.0]);
        let loss = CrossEntropy::of_batch(&[]).token_loss(&sample, 1, -1.0);
        assert!(loss.d_logprob == 0.0 && loss.loss == 0.0);
    }

    #[test]
    fn only_successes_and_well_formed_turns_are_learned_from() {
        let submitted = RolloutStatus::Submitted;
        assert_eq!(rft_samples(&rollout(Some(false), submitted, 2, 0), true), []);
        assert_eq!(rft_samples(&rollout(None, RolloutStatus::Failed, 2, 0), true), []);
        let solved = rollout(Some(true), submitted, 2, 1);
        let masked = rft_samples(&solved, true);
        assert_eq!(masked[0].loss_mask, [0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]);
        let unmasked = rft_samples(&solved, false);
        assert_eq!(unmasked[0].loss_mask, [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        assert_eq!(rft_samples(&rollout(Some(true), submitted, 1, 1), true), []);
    }
}
