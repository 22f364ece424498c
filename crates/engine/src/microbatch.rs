//! Forward and backward over one packed micro-batch, on one thread.

use patchwright_core::{Objective, TrainingSample};

use crate::attention::{
    AttentionScratch, AttentionShape, HeadShape, SavedAttention, attend_sequence,
    attend_sequence_backward, fit,
};
use crate::config::ModelConfig;
use crate::forward::{LayerState, embed, final_norm, finish_layer, logits, project_qkv};
use crate::kernels::gemm::{Into, matmul, matmul_tn};
use crate::kernels::{math, vectorized};
use crate::params::LayerRanges;
use crate::weights::{BackwardWeights, Model, Weights};

/// Rows whose logits exist at once: tokens x vocabulary never does.
const LOGIT_ROWS: usize = 96;

impl ModelConfig {
    pub(crate) fn attention_shape(&self) -> AttentionShape {
        AttentionShape {
            head: HeadShape { head_dim: self.head_dim, group: self.group() },
            num_kv_heads: self.num_key_value_heads,
        }
    }
}

/// What a micro-batch gave.
#[derive(Debug, Default)]
pub(crate) struct MicroBatchResult {
    /// `[sample][t]`; index 0 is 0.
    pub logprobs: Vec<Vec<f32>>,
    pub loss: f64,
    pub num_loss_tokens: usize,
    pub num_clipped: usize,
}

/// What to do beyond log-probabilities.
pub(crate) struct Learning<'a> {
    pub objective: &'a dyn Objective,
    pub backward: &'a BackwardWeights,
    /// The gradient is added to it; flat, as the parameters.
    pub gradient: &'a mut [f32],
}

/// Buffers of one thread, kept between micro-batches.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    layers: Vec<LayerState>,
    attention: AttentionScratch,
    positions: Vec<u32>,
    /// The residual stream, and its gradient, `[t][h]`.
    stream: Vec<f32>,
    d_stream: Vec<f32>,
    d_normed: Vec<f32>,
    d_wide: Vec<f32>,
    d_hidden: Vec<f32>,
    d_raw: Vec<f32>,
    normed: Vec<f32>,
    inv_rms: Vec<f32>,
    head: HeadScratch,
    edge: Vec<f32>,
}

/// Buffers of a chunk of logits.
#[derive(Debug, Default)]
struct HeadScratch {
    normed: Vec<f32>,
    d_normed: Vec<f32>,
    logits: Vec<f32>,
}

/// A prediction: the row that makes it, and the sample's token that it is of.
#[derive(Debug, Clone, Copy)]
struct Target {
    row: usize,
    sample: usize,
    t: usize,
}

impl Workspace {
    /// Runs the samples, each at most the context long with valid tokens, packed without padding.
    /// With `learning`, adds the gradient of the objective.
    pub(crate) fn run(
        &mut self,
        weights: &Weights,
        samples: &[&TrainingSample],
        mut learning: Option<Learning>,
    ) -> MicroBatchResult {
        let model = &*weights.model;
        let config = &model.config;
        let rows: usize = samples.iter().map(|s| s.tokens.len()).sum();
        let wide = rows * config.hidden_size;
        self.positions.clear();
        for sample in samples {
            self.positions.extend(0..sample.tokens.len() as u32);
        }
        // Without a backward pass, one layer's state serves all.
        let num_states = if learning.is_some() { config.num_hidden_layers } else { 1 };
        self.layers.resize_with(num_states.max(self.layers.len()), LayerState::default);
        for state in &mut self.layers[..num_states] {
            state.resize(model, rows);
        }
        let tokens = samples.iter().flat_map(|s| s.tokens.iter().copied());
        embed(weights, tokens, fit(&mut self.stream, wide));
        for layer in 0..config.num_hidden_layers {
            let state = &mut self.layers[layer.min(num_states - 1)];
            let stream = &mut self.stream[..wide];
            state.input.copy_from_slice(stream);
            project_qkv(weights, layer, &self.positions, state);
            attend_all(config, samples, state, &mut self.attention);
            finish_layer(weights, layer, state, stream);
        }
        let normed = fit(&mut self.normed, wide);
        final_norm(weights, &self.stream[..wide], normed, fit(&mut self.inv_rms, rows));
        let result = self.predict(weights, samples, learning.as_mut());
        if let Some(learning) = learning {
            self.backward(weights, samples, learning);
        }
        result
    }

    /// Log-probabilities in chunks of rows; with `learning`, leaves the gradient of the final
    /// normed rows in `d_normed` and adds that of the head.
    fn predict(
        &mut self,
        weights: &Weights,
        samples: &[&TrainingSample],
        mut learning: Option<&mut Learning>,
    ) -> MicroBatchResult {
        let hidden = weights.model.config.hidden_size;
        let mut result = MicroBatchResult {
            logprobs: samples.iter().map(|s| vec![0.0; s.tokens.len()]).collect(),
            ..MicroBatchResult::default()
        };
        let (learned, plain) = targets(samples, learning.is_some());
        if learning.is_some() {
            fit(&mut self.d_normed, self.positions.len() * hidden).fill(0.0);
        }
        for chunk in plain.chunks(LOGIT_ROWS) {
            let logits = chunk_logits(weights, chunk, &self.normed, &mut self.head);
            chunk_logprobs(samples, chunk, logits, &mut result.logprobs, |_, _| {});
        }
        for chunk in learned.chunks(LOGIT_ROWS) {
            let Some(learning) = learning.as_deref_mut() else { break };
            let vocab = weights.model.config.vocab_size;
            let logits = chunk_logits(weights, chunk, &self.normed, &mut self.head);
            chunk_logprobs(samples, chunk, logits, &mut result.logprobs, |target, row| {
                let sample = samples[target.sample];
                let logprob = row.logprob;
                let token = learning.objective.token_loss(sample, target.t, logprob);
                result.loss += f64::from(token.loss);
                result.num_loss_tokens += 1;
                result.num_clipped += usize::from(token.clipped);
                // d logprob / d logits = onehot - softmax.
                let scale = -token.d_logprob / row.sum;
                row.exps.iter_mut().for_each(|x| *x *= scale);
                row.exps[sample.tokens[target.t] as usize] += token.d_logprob;
            });
            let HeadScratch { normed, d_normed, logits } = &mut self.head;
            let (d_logits, count) = (&logits[..chunk.len() * vocab], chunk.len());
            let d_rows = fit(d_normed, count * hidden);
            matmul(d_logits, &learning.backward.head, d_rows, Into::Set);
            for (target, d_row) in chunk.iter().zip(d_rows.chunks_exact(hidden)) {
                self.d_normed[target.row * hidden..][..hidden].copy_from_slice(d_row);
            }
            let d_head = &mut learning.gradient[weights.model.layout.head.clone()];
            matmul_tn(
                (d_logits, vocab),
                (normed, hidden),
                (vocab, hidden, count),
                (d_head, hidden),
                &mut self.edge,
            );
        }
        result
    }

    /// From `d_normed` back to the embedding.
    fn backward(&mut self, weights: &Weights, samples: &[&TrainingSample], learning: Learning) {
        let Model { config, layout, .. } = &*weights.model;
        let Learning { backward, gradient, .. } = learning;
        let (rows, hidden) = (self.positions.len(), config.hidden_size);
        let wide = rows * hidden;
        let d_stream = fit(&mut self.d_stream, wide);
        d_stream.fill(0.0);
        math::rms_norm_backward(
            &self.stream[..wide],
            &weights.params[layout.final_norm.clone()],
            &self.inv_rms[..rows],
            &self.d_normed[..wide],
            d_stream,
            &mut gradient[layout.final_norm.clone()],
        );
        for layer in (0..config.num_hidden_layers).rev() {
            self.feed_forward_backward(weights, backward, layer, gradient);
            self.attention_backward(weights, backward, layer, samples, gradient);
        }
        let d_embedding = &mut gradient[layout.embedding.clone()];
        let tokens = samples.iter().flat_map(|s| &s.tokens);
        for (token, d_row) in tokens.zip(self.d_stream[..wide].chunks_exact(hidden)) {
            math::add_assign(&mut d_embedding[*token as usize * hidden..][..hidden], d_row);
        }
    }

    fn feed_forward_backward(
        &mut self,
        weights: &Weights,
        backward: &BackwardWeights,
        layer: usize,
        gradient: &mut [f32],
    ) {
        let Model { config, layout, .. } = &*weights.model;
        let (ranges, packed) = (&layout.layers[layer], &backward.layers[layer]);
        let state = &self.layers[layer];
        let (rows, h, f) = (self.positions.len(), config.hidden_size, config.intermediate_size);
        let d_stream = &mut self.d_stream[..rows * h];
        let d_hidden = fit(&mut self.d_hidden, rows * f);
        matmul(d_stream, &packed.down, d_hidden, Into::Set);
        let d_down = &mut gradient[ranges.down.clone()];
        matmul_tn((d_stream, h), (&state.hidden, f), (h, f, rows), (d_down, f), &mut self.edge);
        let d_gate_up = fit(&mut self.d_wide, rows * 2 * f);
        math::swiglu_backward(&state.gate_up, f, d_hidden, d_gate_up);
        let d_weight = &mut gradient[ranges.gate_up.clone()];
        matmul_tn(
            (d_gate_up, 2 * f),
            (&state.middle_normed, h),
            (2 * f, h, rows),
            (d_weight, h),
            &mut self.edge,
        );
        let d_normed = fit(&mut self.d_normed, rows * h);
        matmul(d_gate_up, &packed.gate_up, d_normed, Into::Set);
        math::rms_norm_backward(
            &state.middle,
            &weights.params[ranges.post_norm.clone()],
            &state.middle_inv_rms,
            d_normed,
            d_stream,
            &mut gradient[ranges.post_norm.clone()],
        );
    }

    fn attention_backward(
        &mut self,
        weights: &Weights,
        backward: &BackwardWeights,
        layer: usize,
        samples: &[&TrainingSample],
        gradient: &mut [f32],
    ) {
        let Model { config, layout, .. } = &*weights.model;
        let (ranges, packed) = (&layout.layers[layer], &backward.layers[layer]);
        let state = &self.layers[layer];
        let (rows, h) = (self.positions.len(), config.hidden_size);
        let (queries, width) = (config.query_width(), config.qkv_width());
        let d_stream = &mut self.d_stream[..rows * h];
        let d_attended = fit(&mut self.d_hidden, rows * queries);
        matmul(d_stream, &packed.output, d_attended, Into::Set);
        let d_output = &mut gradient[ranges.output.clone()];
        let attended = (&state.attended[..], queries);
        matmul_tn((d_stream, h), attended, (h, queries, rows), (d_output, queries), &mut self.edge);
        let d_qkv = fit(&mut self.d_wide, rows * width);
        let mut start = 0;
        for sample in samples {
            let end = start + sample.tokens.len();
            let heads = config.num_attention_heads;
            let saved = SavedAttention {
                qkv: &state.qkv[start * width..end * width],
                out: &state.attended[start * queries..end * queries],
                lse: &state.lse[start * heads..end * heads],
                d_out: &d_attended[start * queries..end * queries],
            };
            let d_rows = &mut d_qkv[start * width..end * width];
            let shape = config.attention_shape();
            attend_sequence_backward(shape, &saved, d_rows, &mut self.attention);
            start = end;
        }
        let d_raw = fit(&mut self.d_raw, if ranges.qk_norm.is_some() { rows * width } else { 0 });
        unrotate(weights, ranges, &self.positions, state, d_qkv, d_raw, gradient);
        let d_qkv = if ranges.qk_norm.is_some() { d_raw } else { d_qkv };
        if let Some(bias) = &ranges.qkv_bias {
            math::add_rows(d_qkv, &mut gradient[bias.clone()]);
        }
        let d_weight = &mut gradient[ranges.qkv.clone()];
        let normed = (&state.normed[..], h);
        matmul_tn((d_qkv, width), normed, (width, h, rows), (d_weight, h), &mut self.edge);
        let d_normed = fit(&mut self.d_normed, rows * h);
        matmul(d_qkv, &packed.qkv, d_normed, Into::Set);
        math::rms_norm_backward(
            &state.input,
            &weights.params[ranges.input_norm.clone()],
            &state.input_inv_rms,
            d_normed,
            d_stream,
            &mut gradient[ranges.input_norm.clone()],
        );
    }
}

/// Attention over each sequence of the batch.
fn attend_all(
    config: &ModelConfig,
    samples: &[&TrainingSample],
    state: &mut LayerState,
    scratch: &mut AttentionScratch,
) {
    let (width, queries) = (config.qkv_width(), config.query_width());
    let heads = config.num_attention_heads;
    let mut start = 0;
    for sample in samples {
        let end = start + sample.tokens.len();
        attend_sequence(
            config.attention_shape(),
            &state.qkv[start * width..end * width],
            &mut state.attended[start * queries..end * queries],
            &mut state.lse[start * heads..end * heads],
            scratch,
        );
        start = end;
    }
}

vectorized! {
    /// Backward of rotation (in place) and of the head norms (into `d_raw`).
    fn unrotate(
        weights: &Weights,
        ranges: &LayerRanges,
        positions: &[u32],
        state: &LayerState,
        d_qkv: &mut [f32],
        d_raw: &mut [f32],
        gradient: &mut [f32],
    ) {
        let Model { config, rope, .. } = &*weights.model;
        let (width, dim) = (config.qkv_width(), config.head_dim);
        let rotated = config.query_width() + config.kv_width();
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        d_raw.fill(0.0);
        for (t, (d_row, &position)) in d_qkv.chunks_exact_mut(width).zip(positions).enumerate() {
            for head in d_row[..rotated].chunks_exact_mut(dim) {
                rope.rotate_back(head, position as usize);
            }
            let Some((q_norm, k_norm)) = &ranges.qk_norm else { continue };
            let (raw, d_raw) = (&state.raw[t * width..][..width], &mut d_raw[t * width..][..width]);
            for head in 0..heads + kv_heads {
                let (norm, inv) = if head < heads {
                    (q_norm, state.q_inv_rms[t * heads + head])
                } else {
                    (k_norm, state.k_inv_rms[t * kv_heads + head - heads])
                };
                let at = head * dim..(head + 1) * dim;
                math::rms_norm_row_backward(
                    &raw[at.clone()],
                    &weights.params[norm.clone()],
                    inv,
                    &d_row[at.clone()],
                    &mut d_raw[at],
                    &mut gradient[norm.clone()],
                );
            }
            d_raw[rotated..].copy_from_slice(&d_row[rotated..]);
        }
    }
}

/// The batch's predictions: those that are learned from, and the rest.
fn targets(samples: &[&TrainingSample], learning: bool) -> (Vec<Target>, Vec<Target>) {
    let (mut learned, mut plain) = (Vec::new(), Vec::new());
    let mut first_row = 0;
    for (index, sample) in samples.iter().enumerate() {
        for t in 1..sample.tokens.len() {
            let target = Target { row: first_row + t - 1, sample: index, t };
            let wanted = learning && sample.loss_mask[t] != 0.0;
            if wanted { &mut learned } else { &mut plain }.push(target);
        }
        first_row += sample.tokens.len();
    }
    (learned, plain)
}

/// Logits of the chunk's rows; leaves the gathered rows in `scratch.normed`.
fn chunk_logits<'a>(
    weights: &Weights,
    chunk: &[Target],
    normed: &[f32],
    scratch: &'a mut HeadScratch,
) -> &'a mut [f32] {
    let hidden = weights.model.config.hidden_size;
    let gathered = fit(&mut scratch.normed, chunk.len() * hidden);
    for (row, target) in gathered.chunks_exact_mut(hidden).zip(chunk) {
        row.copy_from_slice(&normed[target.row * hidden..][..hidden]);
    }
    logits(weights, gathered, &mut scratch.logits)
}

/// A row of logits after its log-softmax.
struct PredictedRow<'a> {
    logprob: f32,
    /// `exp(logit - max)`.
    exps: &'a mut [f32],
    /// The sum of `exps`.
    sum: f32,
}

/// Log-probabilities of the chunk's targets. Replaces logits by what `each` makes of them.
fn chunk_logprobs(
    samples: &[&TrainingSample],
    chunk: &[Target],
    logits: &mut [f32],
    logprobs: &mut [Vec<f32>],
    mut each: impl FnMut(Target, PredictedRow),
) {
    let vocab = logits.len() / chunk.len();
    for (target, row) in chunk.iter().zip(logits.chunks_exact_mut(vocab)) {
        let token = samples[target.sample].tokens[target.t] as usize;
        let logit = row[token];
        let (max, sum) = math::exp_row(row);
        let logprob = math::logprob(logit, max, sum);
        logprobs[target.sample][target.t] = logprob;
        each(*target, PredictedRow { logprob, exps: row, sum });
    }
}
