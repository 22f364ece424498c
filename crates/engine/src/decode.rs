//! One step of sampling for a shard of sequences, on one thread: a ragged batch of token runs
//! (a chunk of a new context, or one token) in one forward pass.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;

use crate::attention::{StripScratch, attend, fit};
use crate::draw::{Drawn, draw, score};
use crate::forward::{LayerState, embed, final_norm, finish_layer, logits, project_qkv};
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
    /// Places of the tokens whose log-probabilities are wanted.
    pub scored: Range<usize>,
    pub temperature: f32,
    /// The completion's own random stream: one number a token.
    pub rng: ChaCha8Rng,
}

impl Run {
    /// Whether this step reaches the end of the tokens, so that the next is drawn.
    fn draws(&self) -> bool {
        self.cache.tokens.len() + self.count == self.tokens.len()
    }

    /// The rows of this step, counted from its first, whose logits are needed: each before a
    /// token to be scored, with that token, and the last if it draws.
    fn logit_rows(&self) -> impl Iterator<Item = (usize, Option<u32>)> + '_ {
        let computed = self.cache.tokens.len() + 1..self.cache.tokens.len() + 1 + self.count;
        let scored = self.scored.start.max(computed.start)..self.scored.end.min(computed.end);
        let scored = scored.map(move |t| (t - computed.start, Some(self.tokens[t])));
        scored.chain(self.draws().then_some((self.count.saturating_sub(1), None)))
    }
}

/// What a step gave a run.
#[derive(Debug, Default)]
pub(crate) struct StepResult {
    /// Log-probabilities of the next context tokens, as far as they are wanted.
    pub prompt_logprobs: Vec<f32>,
    /// The token that follows, if the step reached the end.
    pub drawn: Option<Drawn>,
}

/// Logits that are held at once.
const MAX_LOGITS: usize = 1 << 22;

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
    pub(crate) fn step(&mut self, weights: &Weights, runs: &mut [&mut Run]) -> Vec<StepResult> {
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
                let shape_of_head = config.head_shape();
                for kv_head in 0..config.num_key_value_heads {
                    let at = kv_head * shape_of_head.width();
                    attend(
                        shape_of_head,
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
        self.finish(weights, runs, rows)
    }

    /// Norms the rows whose logits are needed and turns them into results, a block at a time.
    fn finish(&mut self, weights: &Weights, runs: &mut [&mut Run], rows: usize) -> Vec<StepResult> {
        let config = &weights.model.config;
        let hidden = config.hidden_size;
        let stream = &self.stream[..rows * hidden];
        // Who wants each row, and the token to be scored there; none is drawn.
        let mut wanted: Vec<(usize, Option<u32>)> = Vec::with_capacity(runs.len());
        self.gathered.clear();
        let mut first = 0;
        for (index, run) in runs.iter().enumerate() {
            for (row, token) in run.logit_rows() {
                self.gathered.extend_from_slice(&stream[(first + row) * hidden..][..hidden]);
                wanted.push((index, token));
            }
            first += run.count;
        }
        let num_logit_rows = wanted.len();
        let normed = fit(&mut self.normed, num_logit_rows * hidden);
        final_norm(weights, &self.gathered, normed, fit(&mut self.inv_rms, num_logit_rows));
        let mut results: Vec<StepResult> = runs.iter().map(|_| StepResult::default()).collect();
        let block = (MAX_LOGITS / config.vocab_size).max(1);
        for (wanted, normed) in wanted.chunks(block).zip(normed.chunks(block * hidden)) {
            let logits = logits(weights, normed, &mut self.logits);
            for ((index, token), row) in wanted.iter().zip(logits.chunks_exact(config.vocab_size)) {
                let (run, result) = (&mut runs[*index], &mut results[*index]);
                if let Some(token) = token {
                    result.prompt_logprobs.push(score(row, *token, &mut self.weights));
                } else {
                    let drawn = draw(row, run.temperature, &mut run.rng, &mut self.weights);
                    result.drawn = Some(drawn);
                }
            }
        }
        for run in runs.iter_mut() {
            let start = run.cache.tokens.len();
            run.cache.tokens.extend_from_slice(&run.tokens[start..start + run.count]);
        }
        results
    }
}
