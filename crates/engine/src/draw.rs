//! From a row of logits to a token: one pass over the vocabulary for each thing that is wanted.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::attention::fit;
use crate::kernels::math;
use crate::kernels::vocabulary::{shifted_mean, sum};

/// A drawn token, with its log-probability under the full distribution at temperature 1 and that
/// distribution's entropy in nats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    pub token: u32,
    pub logprob: f32,
    pub entropy: f32,
}

/// Draws a token from a row of logits. `weights` is scratch.
pub(crate) fn draw(
    logits: &[f32],
    temperature: f32,
    rng: &mut ChaCha8Rng,
    weights: &mut Vec<f32>,
) -> Drawn {
    // One number a token, whatever the temperature.
    let uniform: f64 = rng.random();
    let weights = fit(weights, logits.len());
    weights.copy_from_slice(logits);
    let (max, sum) = math::exp_row(weights);
    let entropy = (sum.ln() - shifted_mean(weights, logits, max) / sum).max(0.0);
    let token = if temperature == 0.0 {
        first_max(logits, max)
    } else {
        // `weights` are those of temperature 1 already.
        if temperature.to_bits() != 1f32.to_bits() {
            for (weight, logit) in weights.iter_mut().zip(logits) {
                *weight = (logit - max) / temperature;
            }
            math::exp_row(weights);
        }
        inverse_cdf(weights, uniform)
    };
    Drawn { token: token as u32, logprob: math::logprob(logits[token], max, sum), entropy }
}

/// Log-probability of `token` under a row of logits. `weights` is scratch.
pub(crate) fn score(logits: &[f32], token: u32, weights: &mut Vec<f32>) -> f32 {
    let weights = fit(weights, logits.len());
    weights.copy_from_slice(logits);
    let (max, sum) = math::exp_row(weights);
    math::logprob(logits[token as usize], max, sum)
}

/// The `count` most likely tokens of a row of logits with their log-probabilities, most likely
/// first, ties by id. `weights` is scratch.
pub(crate) fn most_likely(logits: &[f32], count: usize, weights: &mut Vec<f32>) -> Vec<(u32, f32)> {
    let weights = fit(weights, logits.len());
    weights.copy_from_slice(logits);
    let (max, sum) = math::exp_row(weights);
    let mut best: Vec<(u32, f32)> = Vec::with_capacity(count + 1);
    for (token, logit) in logits.iter().enumerate() {
        // What is no number is not likely; equal ones stay behind those that came before.
        let enters = best.len() < count || best.last().is_some_and(|last| *logit > last.1);
        if enters && !logit.is_nan() {
            let place = best.partition_point(|other| other.1 >= *logit);
            best.insert(place, (token as u32, *logit));
            best.truncate(count);
        }
    }
    best.into_iter().map(|(token, logit)| (token, math::logprob(logit, max, sum))).collect()
}

/// The first index of the largest element; 0 where nothing compares.
fn first_max(row: &[f32], max: f32) -> usize {
    row.iter().position(|x| *x >= max).unwrap_or(0)
}

/// Weights that are summed up one after the other; above, by vectors.
const BLOCK: usize = 4096;

/// The index at which the running sum of `weights` passes `uniform` (in 0..1) of their total.
fn inverse_cdf(weights: &[f32], uniform: f64) -> usize {
    if weights.len() <= BLOCK {
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        // Always passed: the last sum is `total`, and `uniform` is below 1. NaN weights are not.
        return passes(weights, uniform * total).unwrap_or(weights.len() - 1);
    }
    let sums: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut threshold = uniform * sums.iter().sum::<f64>();
    for (index, (block, sum)) in weights.chunks(BLOCK).zip(&sums).enumerate() {
        // A block whose sum passes but whose elements, added in order, do not by a rounding is
        // passed at its last element.
        if *sum > threshold {
            let last = || block.iter().rposition(|w| *w > 0.0).unwrap_or(0);
            return index * BLOCK + passes(block, threshold).unwrap_or_else(last);
        }
        threshold -= sum;
    }
    // The rounding of `threshold` ate the last of the total, or the weights are not numbers.
    weights.iter().rposition(|w| *w > 0.0).unwrap_or(weights.len() - 1)
}

/// The first index at which the sum of `weights` so far is more than `threshold`.
fn passes(weights: &[f32], threshold: f64) -> Option<usize> {
    let mut running = 0.0;
    // A weight of 0 never passes: `running` did not grow.
    weights.iter().position(|weight| {
        running += f64::from(*weight);
        running > threshold
    })
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn frequencies_follow_the_distribution() {
        let logits = [0.0f32, 1.0, f32::NEG_INFINITY, 2.0];
        for temperature in [1.0, 0.5] {
            let mut rng = ChaCha8Rng::seed_from_u64(3);
            let mut counts = [0usize; 4];
            let n = 40_000;
            for _ in 0..n {
                let drawn = draw(&logits, temperature, &mut rng, &mut Vec::new());
                counts[drawn.token as usize] += 1;
            }
            let weight = |i: usize| f64::from(logits[i] / temperature).exp();
            let total: f64 = (0..4).map(weight).sum();
            for (i, count) in counts.iter().enumerate() {
                let p = weight(i) / total;
                let sigma = (p * (1.0 - p) / f64::from(n)).sqrt();
                let share = *count as f64 / f64::from(n);
                assert!((share - p).abs() <= 4.5 * sigma, "token {i}: {share} vs {p}");
            }
        }
    }

    #[test]
    fn a_large_vocabulary_is_drawn_from_in_blocks() {
        let weights: Vec<f32> = (0..10_000u32).map(|i| (i % 7) as f32 * 0.125).collect();
        let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
        // Multiples of 1/8: every sum is exact.
        for i in 0..1000 {
            let uniform = f64::from(i) / 1000.0;
            assert_eq!(Some(inverse_cdf(&weights, uniform)), passes(&weights, uniform * total));
        }
        assert_eq!(inverse_cdf(&weights, 1.0 - f64::EPSILON / 2.0), 9_999);
        let mut one = vec![0.0; 10_000];
        one[5000] = 1e-30;
        for uniform in [0.0, 0.3, 1.0 - f64::EPSILON / 2.0] {
            assert_eq!(inverse_cdf(&one, uniform), 5000);
        }
    }

    #[test]
    fn entropy_is_that_of_the_full_distribution() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let logits: Vec<f32> = (0..5000).map(|_| rng.random_range(-9.0..9.0)).collect();
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        let term = |l: &f32| {
            let p = f64::from(*l).exp() / total;
            -p * p.ln()
        };
        let expected: f64 = logits.iter().map(term).sum();
        for temperature in [0.0, 0.5, 1.0] {
            let drawn = draw(&logits, temperature, &mut rng, &mut Vec::new());
            assert!((f64::from(drawn.entropy) - expected).abs() < 1e-4 * expected);
        }
        let flat = draw(&[0.5; 64], 1.0, &mut rng, &mut Vec::new());
        assert!((flat.entropy - 64f32.ln()).abs() < 1e-6);
        let sure = draw(&[0.0, f32::NEG_INFINITY], 1.0, &mut rng, &mut Vec::new());
        assert_eq!((sure.token, sure.entropy), (0, 0.0));
    }

    #[test]
    fn likely_tokens_come_in_order_and_are_scored_as_drawn_ones() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        // Few different values: many ties.
        let logits: Vec<f32> = (0..3000).map(|_| rng.random_range(0..40) as f32 * 0.25).collect();
        let mut scratch = Vec::new();
        let mut expected: Vec<u32> = (0..3000).collect();
        expected.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b)));
        let top = most_likely(&logits, 200, &mut scratch);
        assert_eq!(top.iter().map(|t| t.0).collect::<Vec<_>>(), expected[..200]);
        for (token, logprob) in top {
            assert_eq!(logprob.to_bits(), score(&logits, token, &mut scratch).to_bits());
        }
        assert_eq!(most_likely(&logits, 4000, &mut scratch).len(), 3000);
        assert_eq!(most_likely(&[f32::NAN, 1.0], 2, &mut scratch).len(), 1);
    }

    #[test]
    fn temperature_zero_takes_the_first_maximum_and_reports_the_full_distribution() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let drawn = draw(&[0.0, 1.0, 1.0], 0.0, &mut rng, &mut Vec::new());
        assert_eq!(drawn.token, 1);
        let expected = 1.0 - (1.0 + 2.0 * 1f32.exp()).ln();
        assert!((drawn.logprob - expected).abs() < 1e-6);
    }
}
