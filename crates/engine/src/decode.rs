//! One step of sampling for a shard of sequences, on one thread: a ragged batch of token runs
//! (a chunk of a new context, or one token) in one forward pass.

use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::attention::{StripScratch, attend, fit};
use crate::forward::{LayerState, embed, final_norm, finish_layer, logits, project_qkv};
use crate::kernels::math;
use crate::kv_cache::{CachedSequence, PageShape};
use crate::weights::Weights;

/// A sequence's part in a step.
#[derive(Debug)]
pub(crate) struct Run {
    pub cache: CachedSequence,
    /// Context and drawn tokens; the cache knows the first `cache.tokens.len()` of them.
    pub tokens: Vec<u32>,
    /// Tokens to compute in this step. Pages for them are reserved.
    pub count: usize,
    pub temperature: f32,
    /// The completion's own random stream: one number a token.
    pub rng: ChaCha8Rng,
}

/// A drawn token and its log-probability under the full distribution at temperature 1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Drawn {
    pub token: u32,
    pub logprob: f32,
}

/// Buffers of one thread, kept between steps.
#[derive(Debug, Default)]
pub(crate) struct DecodeWorkspace {
    state: LayerState,
    positions: Vec<u32>,
    stream: Vec<f32>,
    gathered: Vec<f32>,
    normed: Vec<f32>,
    inv_rms: Vec<f32>,
    logits: Vec<f32>,
    /// Weights of one row of logits.
    weights: Vec<f32>,
    scratch: StripScratch,
}

impl DecodeWorkspace {
    /// Computes every run's `count` tokens; a run that reaches the end of its tokens draws the
    /// next. The results are in the order of the runs.
    pub(crate) fn step(&mut self, weights: &Weights, runs: &mut [&mut Run]) -> Vec<Option<Drawn>> {
        let model = &*weights.model;
        let config = &model.config;
        let shape = PageShape::new(config);
        let hidden = config.hidden_size;
        let rows: usize = runs.iter().map(|run| run.count).sum();
        let (width, queries, keys) = (config.qkv_width(), config.query_width(), config.kv_width());
        self.positions.clear();
        for run in &*runs {
            let start = run.cache.tokens.len();
            self.positions.extend(start as u32..(start + run.count) as u32);
        }
        self.state.resize(model, rows);
        let stream = fit(&mut self.stream, rows * hidden);
        let new_tokens = runs.iter().flat_map(|run| {
            let start = run.cache.tokens.len();
            run.tokens[start..start + run.count].iter().copied()
        });
        embed(weights, new_tokens, stream);
        for layer in 0..config.num_hidden_layers {
            let state = &mut self.state;
            state.input.copy_from_slice(stream);
            project_qkv(weights, layer, &self.positions, state);
            let mut row = 0;
            for run in runs.iter_mut() {
                let first = run.cache.tokens.len();
                let qkv = &state.qkv[row * width..(row + run.count) * width];
                for (i, token_row) in qkv.chunks_exact(width).enumerate() {
                    let (k, v) = token_row[queries..].split_at(keys);
                    run.cache.write(shape, layer, first + i, k, v);
                }
                let out = &mut state.attended[row * queries..(row + run.count) * queries];
                let heads = config.attention_shape();
                for kv_head in 0..config.num_key_value_heads {
                    let at = kv_head * heads.head.group * config.head_dim;
                    attend(
                        heads.head,
                        &run.cache.head(shape, layer, kv_head),
                        (&qkv[at..], width),
                        (first, run.count),
                        (&mut out[at..], queries),
                        |_, _, _| {},
                        &mut self.scratch,
                    );
                }
                row += run.count;
            }
            finish_layer(weights, layer, state, stream);
        }
        self.draw(weights, runs, rows)
    }

    fn draw(
        &mut self,
        weights: &Weights,
        runs: &mut [&mut Run],
        rows: usize,
    ) -> Vec<Option<Drawn>> {
        let config = &weights.model.config;
        let hidden = config.hidden_size;
        let finished = |run: &Run| run.cache.tokens.len() + run.count == run.tokens.len();
        let num_drawn = runs.iter().filter(|run| finished(run)).count();
        let gathered = fit(&mut self.gathered, num_drawn * hidden);
        let stream = &self.stream[..rows * hidden];
        let (mut row, mut at) = (0, 0);
        for run in &*runs {
            row += run.count;
            if finished(run) {
                gathered[at * hidden..(at + 1) * hidden]
                    .copy_from_slice(&stream[(row - 1) * hidden..row * hidden]);
                at += 1;
            }
        }
        let normed = fit(&mut self.normed, num_drawn * hidden);
        final_norm(weights, gathered, normed, fit(&mut self.inv_rms, num_drawn));
        let logits = logits(weights, normed, &mut self.logits);
        let mut rows = logits.chunks_exact(config.vocab_size);
        let mut results = Vec::with_capacity(runs.len());
        for run in runs.iter_mut() {
            let start = run.cache.tokens.len();
            let drawn = finished(run)
                .then(|| rows.next())
                .flatten()
                .map(|row| draw(row, run.temperature, &mut run.rng, &mut self.weights));
            results.push(drawn);
            let new = start..start + run.count;
            run.cache.tokens.extend_from_slice(&run.tokens[new]);
        }
        results
    }
}

/// Draws a token from a row of logits. `weights` is scratch.
fn draw(logits: &[f32], temperature: f32, rng: &mut ChaCha8Rng, weights: &mut Vec<f32>) -> Drawn {
    // One number a token, whatever the temperature.
    let uniform: f64 = rng.random();
    let weights = fit(weights, logits.len());
    weights.copy_from_slice(logits);
    let (max, sum) = math::exp_row(weights);
    let token = if temperature == 0.0 {
        first_max(logits)
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
    Drawn { token: token as u32, logprob: math::logprob(logits[token], max, sum) }
}

/// The index of the largest element, the first of several.
fn first_max(row: &[f32]) -> usize {
    let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
    (0..row.len()).fold(0, better)
}

/// The index at which the running sum of `weights` passes `uniform` (in 0..1) of their total.
fn inverse_cdf(weights: &[f32], uniform: f64) -> usize {
    let total: f64 = weights.iter().map(|w| f64::from(*w)).sum();
    let threshold = uniform * total;
    let mut running = 0.0;
    for (i, weight) in weights.iter().enumerate() {
        running += f64::from(*weight);
        // A weight of 0 never passes: `running` did not grow.
        if running > threshold {
            return i;
        }
    }
    // Not reached: the last sum is `total`, and `uniform` is below 1. NaN weights end here.
    weights.len() - 1
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
    fn temperature_zero_takes_the_first_maximum_and_reports_the_full_distribution() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let drawn = draw(&[0.0, 1.0, 1.0], 0.0, &mut rng, &mut Vec::new());
        assert_eq!(drawn.token, 1);
        let expected = 1.0 - (1.0 + 2.0 * 1f32.exp()).ln();
        assert!((drawn.logprob - expected).abs() < 1e-6);
    }
}
