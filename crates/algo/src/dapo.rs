//! The RL objective: DAPO's clipped surrogate with a token-level mean.

use patchwright_core::{Objective, TokenLoss, TrainingSample};

/// Ratios are cut to `exp(±20)`, so that a token that became impossible cannot make the loss
/// infinite; far outside of any clip range.
const MAX_LOG_RATIO: f32 = 20.0;

/// DAPO (Yu et al., arXiv 2503.14476, equation 8) as modified in arXiv 2508.03501, section 4.3:
///
/// ```text
/// r_t = exp(trainer_logprob_t - sampler_logprob_t)
/// L   = -1/N  sum over samples, tokens t of
///       mask_t * min(r_t * A_t, clip(r_t, 1 - clip_low, 1 + clip_high) * A_t)
/// ```
///
/// - Shapes: one term a token of a sample, all vectors `[t]`.
/// - Mask: `loss_mask`, 1 on sampled tokens, 0 on the prompt and on observations.
/// - Denominator `N`: the action tokens of the whole optimizer batch, so that each token weighs
///   the same and a longer trajectory weighs more. It is given, because the batch may come to the
///   engine in parts.
/// - The ratio is against the policy that sampled, not against the one before the iteration.
/// - No KL term, no entropy bonus.
///
/// Derivative by the log-probability: `-mask_t * r_t * A_t / N`, and 0 where the clip is active
/// (`A > 0` and `r > 1 + clip_high`, or `A < 0` and `r < 1 - clip_low`).
#[derive(Debug, Clone, Copy)]
pub struct Dapo {
    clip_low: f32,
    clip_high: f32,
    inverse_denominator: f32,
}

impl Dapo {
    /// The objective of one optimizer batch with `num_action_tokens` tokens in the loss. The
    /// clip range is `[1 - clip_low, 1 + clip_high]`.
    pub fn new(clip_low: f32, clip_high: f32, num_action_tokens: usize) -> Self {
        let inverse_denominator = 1.0 / num_action_tokens.max(1) as f32;
        Self { clip_low, clip_high, inverse_denominator }
    }

    /// The objective of an optimizer batch, whole or gathered from parts later.
    pub fn of_batch(clip_low: f32, clip_high: f32, batch: &[TrainingSample]) -> Self {
        let count = batch.iter().map(TrainingSample::num_loss_tokens).sum();
        Self::new(clip_low, clip_high, count)
    }
}

impl Objective for Dapo {
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss {
        let advantage = sample.advantages[t];
        let weight = sample.loss_mask[t] * self.inverse_denominator;
        let log_ratio =
            (trainer_logprob - sample.sampler_logprobs[t]).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO);
        let ratio = log_ratio.exp();
        let bounded = ratio.clamp(1.0 - self.clip_low, 1.0 + self.clip_high);
        let clipped = bounded * advantage < ratio * advantage;
        let surrogate = if clipped { bounded * advantage } else { ratio * advantage };
        let d_logprob = if clipped { 0.0 } else { -weight * ratio * advantage };
        TokenLoss { loss: -weight * surrogate, d_logprob, clipped }
    }
}

#[cfg(test)]
mod tests {
    use patchwright_core::{Objective, TrainingSample};
    use proptest::prelude::*;

    use super::Dapo;

    fn sample(advantage: f32, sampler_logprob: f32) -> TrainingSample {
        TrainingSample {
            tokens: vec![0, 1],
            loss_mask: vec![0.0, 1.0],
            advantages: vec![0.0, advantage],
            sampler_logprobs: vec![0.0, sampler_logprob],
        }
    }

    /// Goldens of this reference (Python):
    /// ```python
    /// def dapo(new, old, a, low, high, n):
    ///     r = math.exp(new - old)
    ///     return -min(r * a, min(max(r, 1 - low), 1 + high) * a) / n
    /// ```
    #[test]
    fn goldens() {
        let objective = Dapo::new(0.2, 0.3, 4);
        // (ratio, advantage, loss, derivative, clipped)
        let cases = [
            (1.0, 2.0, -0.5, -0.5, false),
            (1.25, 2.0, -0.625, -0.625, false),
            (1.5, 2.0, -0.65, 0.0, true),
            (0.5, 2.0, -0.25, -0.25, false),
            (1.0, -2.0, 0.5, 0.5, false),
            (0.5, -2.0, 0.4, 0.0, true),
            (1.5, -2.0, 0.75, 0.75, false),
        ];
        for (ratio, advantage, loss, derivative, clipped) in cases {
            let ratio: f32 = ratio;
            let got = objective.token_loss(&sample(advantage, -1.0), 1, ratio.ln() - 1.0);
            assert!((got.loss - loss).abs() < 1e-6, "{ratio} {advantage}: {got:?}");
            assert!((got.d_logprob - derivative).abs() < 1e-6, "{ratio} {advantage}: {got:?}");
            assert_eq!(got.clipped, clipped, "{ratio} {advantage}");
        }
    }

    /// A batch of a short and a long trajectory: every token weighs 1/3, whichever it is in.
    #[test]
    fn the_mean_is_over_tokens_not_trajectories() {
        let short = sample(1.0, -1.0);
        let long = TrainingSample {
            tokens: vec![0, 1, 2, 3],
            loss_mask: vec![0.0, 1.0, 0.0, 1.0],
            advantages: vec![0.0, 1.0, 0.0, 1.0],
            sampler_logprobs: vec![0.0, -1.0, 0.0, -1.0],
        };
        let objective = Dapo::of_batch(0.2, 0.3, &[short.clone(), long.clone()]);
        for (sample, t) in [(&short, 1), (&long, 1), (&long, 3)] {
            let loss = objective.token_loss(sample, t, -1.0);
            assert!((loss.d_logprob + 1.0 / 3.0).abs() < 1e-6);
        }
    }

    #[test]
    fn an_impossible_token_stays_finite() {
        let loss = Dapo::new(0.2, 0.3, 1).token_loss(&sample(-1.0, -200.0), 1, 0.0);
        assert!(loss.loss.is_finite() && loss.d_logprob.is_finite());
    }

    proptest! {
        #[test]
        fn derivative_is_that_of_the_loss(
            new in -5.0f32..0.0, old in -5.0f32..0.0, advantage in -3.0f32..3.0,
        ) {
            let objective = Dapo::new(0.2, 0.28, 1);
            let sample = sample(advantage, old);
            let loss = |logprob: f32| f64::from(objective.token_loss(&sample, 1, logprob).loss);
            let step = 1e-2f32;
            let ratio = (new - old).exp();
            let edge = [0.8f32, 1.28].iter().any(|e| (ratio / e).ln().abs() < 2.0 * step);
            prop_assume!(!edge);
            let got = f64::from(objective.token_loss(&sample, 1, new).d_logprob);
            let numeric = (loss(new + step) - loss(new - step)) / f64::from(2.0 * step);
            prop_assert!((got - numeric).abs() < 1e-3 * (1.0 + numeric.abs()), "{} {}", got, numeric);
        }

        /// Clipping only ever raises the loss: the surrogate is a lower bound of the objective.
        #[test]
        fn surrogate_is_pessimistic(
            new in -5.0f32..0.0, old in -5.0f32..0.0, advantage in -3.0f32..3.0,
        ) {
            let loss = Dapo::new(0.2, 0.28, 1).token_loss(&sample(advantage, old), 1, new).loss;
            prop_assert!(loss >= -(new - old).exp() * advantage - 1e-5);
        }
    }
}
