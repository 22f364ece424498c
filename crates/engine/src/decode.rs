//! One step of sampling for a shard of sequences, on one thread: a ragged batch of token runs
//! (a chunk of a new context, or one token) in one forward pass.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;

use crate::attention::{StripScratch, attend, fit};
use crate::config::ModelConfig;
use crate::draw::{Drawn, draw, most_likely, score};
use crate::forward::{LayerState, Matmul, embed, final_norm, finish_layer, logits, project_qkv};
use crate::kernels::gemm::matmul;
use crate::kernels::skinny::matmul_wide;
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
    /// How many of the most likely tokens are wanted with a drawn one.
    pub num_top_logprobs: usize,
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
    /// The most likely tokens that it was drawn from, as many as are wanted.
    pub top: Vec<(u32, f32)>,
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
    /// One for each thread that shares a step.
    scratch: Vec<StripScratch>,
}

impl DecodeWorkspace {
    /// Computes every run's `count` tokens; a run that reaches the end of its tokens draws the
    /// next. The results are in the order of the runs. On one thread, or `wide`: on all threads of
    /// the caller's rayon pool.
    pub(crate) fn step(
        &mut self,
        weights: &Weights,
        runs: &mut [&mut Run],
        wide: bool,
    ) -> Vec<StepResult> {
        let (matmul, num_shares): (Matmul, _) =
            if wide { (matmul_wide, rayon::current_num_threads()) } else { (matmul, 1) };
        self.scratch.resize_with(num_shares.max(self.scratch.len()), StripScratch::default);
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
            project_qkv(weights, layer, &self.positions, state, matmul);
            let mut row = 0;
            for run in runs.iter_mut() {
                let first = run.cache.tokens.len();
                let new = &state.qkv[row * width..(row + run.count) * width];
                for (i, token_row) in new.chunks_exact(width).enumerate() {
                    let (k, v) = token_row[queries..].split_at(keys);
                    run.cache.write(shape, layer, first + i, k, v);
                }
                row += run.count;
            }
            let mut parts = attention_parts(config, runs, &state.qkv, &mut state.attended);
            attend_parts(config, layer, &mut parts, &mut self.scratch[..num_shares]);
            finish_layer(weights, layer, state, stream, matmul);
        }
        self.finish(weights, runs, rows, matmul)
    }

    /// Norms the rows whose logits are needed and turns them into results, a block at a time.
    fn finish(
        &mut self,
        weights: &Weights,
        runs: &mut [&mut Run],
        rows: usize,
        matmul: Matmul,
    ) -> Vec<StepResult> {
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
            let logits = logits(weights, normed, &mut self.logits, matmul);
            for ((index, token), row) in wanted.iter().zip(logits.chunks_exact(config.vocab_size)) {
                let (run, result) = (&mut runs[*index], &mut results[*index]);
                if let Some(token) = token {
                    result.prompt_logprobs.push(score(row, *token, &mut self.weights));
                } else {
                    let drawn = draw(row, run.temperature, &mut run.rng, &mut self.weights);
                    if run.num_top_logprobs > 0 {
                        result.top = most_likely(row, run.num_top_logprobs, &mut self.weights);
                    }
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

/// Most queries of a part of attention.
const PART_QUERIES: usize = 32;

/// Least work, in query positions times key positions, that is worth another thread.
const MIN_SHARE_WORK: usize = 512;

/// Some neighbouring queries of one run, and where their results go.
struct AttentionPart<'a> {
    cache: &'a CachedSequence,
    /// Position of the first query.
    first: usize,
    count: usize,
    qkv: &'a [f32],
    out: &'a mut [f32],
}

impl AttentionPart<'_> {
    fn work(&self) -> usize {
        self.count * (self.first + self.count)
    }
}

/// Cuts the attention of all runs into parts. Their keys and values are written.
fn attention_parts<'a>(
    config: &ModelConfig,
    runs: &'a [&mut Run],
    mut qkv: &'a [f32],
    mut out: &'a mut [f32],
) -> Vec<AttentionPart<'a>> {
    let (width, queries) = (config.qkv_width(), config.query_width());
    let mut parts = Vec::new();
    for run in runs {
        let start = run.cache.tokens.len();
        for offset in (0..run.count).step_by(PART_QUERIES) {
            let count = PART_QUERIES.min(run.count - offset);
            let (part_qkv, rest_qkv) = qkv.split_at(count * width);
            let (part_out, rest_out) = out.split_at_mut(count * queries);
            (qkv, out) = (rest_qkv, rest_out);
            let first = start + offset;
            parts.push(AttentionPart {
                cache: &run.cache,
                first,
                count,
                qkv: part_qkv,
                out: part_out,
            });
        }
    }
    parts
}

/// Computes all parts, in shares of about equal work, one for each scratch at most.
fn attend_parts(
    config: &ModelConfig,
    layer: usize,
    parts: &mut [AttentionPart],
    scratch: &mut [StripScratch],
) {
    let total: usize = parts.iter().map(AttentionPart::work).sum();
    let num_shares = (total / MIN_SHARE_WORK).clamp(1, scratch.len());
    let mut rest = parts;
    rayon::in_place_scope(|scope| {
        for (share, scratch) in scratch[..num_shares].iter_mut().enumerate() {
            let mut work = 0;
            let is_last = share + 1 == num_shares;
            let end = rest.iter().position(|part| {
                let full = work >= total.div_ceil(num_shares);
                work += part.work();
                full
            });
            let len = end.filter(|_| !is_last).unwrap_or(rest.len());
            let (own, others) = std::mem::take(&mut rest).split_at_mut(len);
            rest = others;
            let mut job = move || {
                let mut own = own.iter_mut().peekable();
                while let Some(part) = own.next() {
                    let next = own.peek().map(|part| part.cache);
                    attend_part(config, layer, part, next, scratch);
                }
            };
            if is_last {
                job();
            } else {
                scope.spawn(move |_| job());
            }
        }
    });
}

/// Attention of all heads; `next` is the sequence of the part to come, whose keys are fetched.
fn attend_part(
    config: &ModelConfig,
    layer: usize,
    part: &mut AttentionPart,
    next: Option<&CachedSequence>,
    scratch: &mut StripScratch,
) {
    let (width, queries) = (config.qkv_width(), config.query_width());
    let (shape, head) = (PageShape::new(config), config.head_shape());
    for kv_head in 0..config.num_key_value_heads {
        let at = kv_head * head.width();
        let following = if kv_head + 1 < config.num_key_value_heads {
            Some(part.cache.head(shape, layer, kv_head + 1))
        } else {
            next.map(|next| next.head(shape, layer, 0))
        };
        attend(
            head,
            &part.cache.head(shape, layer, kv_head).before(following),
            (&part.qkv[at..], width),
            (part.first, part.count),
            (&mut part.out[at..], queries),
            |_, _, _| {},
            scratch,
        );
    }
}
