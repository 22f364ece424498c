//! Forward and backward over one packed micro-batch, on one thread or on several together.
//!
//! Work is shared out in rounds: blocks of rows through everything that works on rows, heads of
//! sequences through attention, parts of weight gradients ([`crate::backward`]). Whoever computes a
//! part, its numbers are the same.

use std::ops::Range;

use patchwright_core::{Objective, TrainingSample};

use crate::attention::{BackwardScratch, HeadShape, PackedKeyValues, StripScratch, attend, fit};
use crate::backward::{BackwardBuffers, Wanted};
use crate::config::ModelConfig;
use crate::forward::{
    FinishRows, QkvRows, embed, final_norm, finish_rows, gate_rows, project_rows,
};
use crate::head::HeadBuffers;
use crate::kernels::gemm::matmul;
use crate::team::{RowsMut, Team};
use crate::weights::{BackwardWeights, Weights};

/// Rows of a chunk.
const CHUNK_ROWS: usize = 96;

/// Most rows of a block, which one thread takes at a time.
const BLOCK_ROWS: usize = 256;

/// Queries of a part of attention.
const QUERY_RANGE: usize = 256;

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
    /// What it is wanted of.
    pub wanted: Wanted,
    /// Whether layers are computed again for the backward pass instead of being kept.
    pub recompute: bool,
}

/// One key/value head of one sequence. What attention gives is kept unit by unit, so that parts own
/// what they write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Unit {
    /// The sequence's rows.
    pub start: usize,
    pub count: usize,
    pub kv_head: usize,
}

/// How a micro-batch is cut.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub positions: Vec<u32>,
    pub units: Vec<Unit>,
    /// Rows that one thread takes in the backward pass, whose operands are stored together.
    pub blocks: Vec<Range<usize>>,
    /// Parts of the blocks that pass through a chain of operations together, to stay in cache.
    pub chunks: Vec<Range<usize>>,
}

impl Plan {
    fn new(config: &ModelConfig, samples: &[&TrainingSample], num_threads: usize) -> Self {
        let mut plan = Self::default();
        for sample in samples {
            let (start, count) = (plan.positions.len(), sample.tokens.len());
            plan.positions.extend(0..count as u32);
            let units =
                (0..config.num_key_value_heads).map(|kv_head| Unit { start, count, kv_head });
            plan.units.extend(units);
        }
        let rows = plan.positions.len();
        // Equal shares for all threads; an even number of rows, which are stored in pairs.
        let num_blocks = rows.div_ceil(BLOCK_ROWS).next_multiple_of(num_threads);
        let len = rows.div_ceil(num_blocks).next_multiple_of(2);
        plan.blocks = (0..rows).step_by(len).map(|start| start..(start + len).min(rows)).collect();
        plan.chunks = plan.blocks.iter().flat_map(chunks).collect();
        plan
    }

    pub(crate) fn rows(&self) -> usize {
        self.positions.len()
    }
}

/// The chunks of a block.
pub(crate) fn chunks(block: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
    let end = block.end;
    block.clone().step_by(CHUNK_ROWS).map(move |start| start..(start + CHUNK_ROWS).min(end))
}

/// What is kept of a layer whether or not it is computed again.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    /// The residual stream before the layer, `[t][h]`.
    pub input: Vec<f32>,
    /// What attention gave, `[unit][t][group]` heads.
    pub attended: Vec<f32>,
    /// Log-sum-exp of the scores, `[unit][t][group]`.
    pub lse: Vec<f32>,
}

/// What else the backward pass needs of a layer.
#[derive(Debug, Default)]
pub(crate) struct Detail {
    pub input_inv_rms: Vec<f32>,
    /// `[queries | keys | values]` before norm and rotation; used where there is a norm.
    pub raw: Vec<f32>,
    /// One a head: of the queries `[t][heads]`, of the keys `[t][kv heads]`.
    pub q_inv_rms: Vec<f32>,
    pub k_inv_rms: Vec<f32>,
    /// `[queries | keys | values]` as attention sees them.
    pub qkv: Vec<f32>,
    /// The residual stream between attention and the feed-forward part, `[t][h]`.
    pub middle: Vec<f32>,
    pub middle_inv_rms: Vec<f32>,
    /// `[gate | up]`, `[t][2f]`.
    pub gate_up: Vec<f32>,
}

/// Floats that a row of [`Kept`] and of [`Detail`] take.
pub(crate) fn row_floats(config: &ModelConfig, has_qk_norm: bool) -> (usize, usize) {
    let (heads, width) = (config.num_attention_heads, config.qkv_width());
    let raw = if has_qk_norm { width } else { 0 };
    let kept = config.hidden_size + config.query_width() + heads;
    let norms = 2 + heads + config.num_key_value_heads;
    (kept, raw + width + norms + config.hidden_size + 2 * config.intermediate_size)
}

impl Kept {
    fn resize(&mut self, config: &ModelConfig, rows: usize) {
        self.input.resize(rows * config.hidden_size, 0.0);
        self.attended.resize(rows * config.query_width(), 0.0);
        self.lse.resize(rows * config.num_attention_heads, 0.0);
    }
}

/// Rows of a [`Detail`].
struct DetailRows<'a> {
    input_inv_rms: &'a mut [f32],
    raw: &'a mut [f32],
    q_inv_rms: &'a mut [f32],
    k_inv_rms: &'a mut [f32],
    qkv: &'a mut [f32],
    middle: &'a mut [f32],
    middle_inv_rms: &'a mut [f32],
    gate_up: &'a mut [f32],
}

impl Detail {
    fn resize(&mut self, weights: &Weights, rows: usize) {
        for (buffer, width) in self.buffers(weights) {
            buffer.resize(rows * width, 0.0);
        }
    }

    fn buffers(&mut self, weights: &Weights) -> [(&mut Vec<f32>, usize); 8] {
        let config = &weights.model.config;
        let has_norm = weights.model.layout.layers[0].qk_norm.is_some();
        [
            (&mut self.input_inv_rms, 1),
            (&mut self.raw, if has_norm { config.qkv_width() } else { 0 }),
            (&mut self.q_inv_rms, config.num_attention_heads),
            (&mut self.k_inv_rms, config.num_key_value_heads),
            (&mut self.qkv, config.qkv_width()),
            (&mut self.middle, config.hidden_size),
            (&mut self.middle_inv_rms, 1),
            (&mut self.gate_up, 2 * config.intermediate_size),
        ]
    }

    /// The rows of each chunk.
    fn split(&mut self, weights: &Weights, chunks: &[Range<usize>]) -> Vec<DetailRows<'_>> {
        let mut cut = self.buffers(weights).map(|(buffer, width)| RowsMut::new(buffer, width));
        let rows = chunks.iter().map(|chunk| {
            let [input_inv_rms, raw, q_inv_rms, k_inv_rms, qkv, middle, middle_inv_rms, gate_up] =
                cut.each_mut().map(|rows| rows.take(chunk.len()));
            DetailRows {
                input_inv_rms,
                raw,
                q_inv_rms,
                k_inv_rms,
                qkv,
                middle,
                middle_inv_rms,
                gate_up,
            }
        });
        rows.collect()
    }
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct ThreadScratch {
    pub strip: StripScratch,
    pub attention: BackwardScratch,
    pub a: Vec<f32>,
    pub b: Vec<f32>,
    pub c: Vec<f32>,
}

/// Buffers of a micro-batch, kept for the next.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    pub(crate) plan: Plan,
    pub(crate) kept: Vec<Kept>,
    pub(crate) details: Vec<Detail>,
    /// The residual stream, `[t][h]`.
    pub(crate) stream: Vec<f32>,
    pub(crate) normed: Vec<f32>,
    pub(crate) inv_rms: Vec<f32>,
    pub(crate) d_normed: Vec<f32>,
    key_values: Vec<PackedKeyValues>,
    pub(crate) head: HeadBuffers,
    pub(crate) back: BackwardBuffers,
    pub(crate) threads: Vec<ThreadScratch>,
}

impl Workspace {
    /// Runs the samples, each at most the context long with valid tokens, packed without padding.
    /// With `learning`, adds the gradient of the objective.
    pub(crate) fn run(
        &mut self,
        team: &Team,
        weights: &Weights,
        samples: &[&TrainingSample],
        mut learning: Option<Learning>,
    ) -> MicroBatchResult {
        let config = &weights.model.config;
        self.plan = Plan::new(config, samples, team.size());
        self.threads.resize_with(team.size().max(self.threads.len()), ThreadScratch::default);
        let (rows, num_layers) = (self.plan.rows(), config.num_hidden_layers);
        let num_kept = if learning.is_some() { num_layers } else { 1 };
        let recompute = learning.as_ref().is_none_or(|learning| learning.recompute);
        let num_details = if recompute { 1 } else { num_layers };
        self.kept.resize_with(num_kept, Kept::default);
        self.details.resize_with(num_details, Detail::default);
        self.kept.iter_mut().for_each(|kept| kept.resize(config, rows));
        self.details.iter_mut().for_each(|detail| detail.resize(weights, rows));
        self.stream.resize(rows * config.hidden_size, 0.0);
        let tokens = samples.iter().flat_map(|s| s.tokens.iter().copied());
        embed(weights, tokens, &mut self.stream);
        for layer in 0..num_layers {
            let kept = layer.min(num_kept - 1);
            std::mem::swap(&mut self.stream, &mut self.kept[kept].input);
            self.project(team, weights, layer);
            self.attend(team, weights, layer);
            self.after_attention(team, weights, layer, false);
        }
        self.normalise(team, weights);
        let result = self.predict(team, weights, samples, learning.as_mut());
        if let Some(learning) = learning {
            self.backward(team, weights, samples, learning);
        }
        result
    }

    /// Places of a layer among those kept.
    pub(crate) fn places(&self, layer: usize) -> (usize, usize) {
        (layer.min(self.kept.len() - 1), layer.min(self.details.len() - 1))
    }

    /// From the stream to queries, keys and values.
    pub(crate) fn project(&mut self, team: &Team, weights: &Weights, layer: usize) {
        let hidden = weights.model.config.hidden_size;
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, threads, .. } = self;
        let input = &all[kept].input;
        let rows = details[detail].split(weights, &plan.chunks);
        let parts = plan.chunks.iter().zip(rows).collect();
        team.each(threads, parts, |scratch, (chunk, rows)| {
            let to = QkvRows {
                input_inv_rms: rows.input_inv_rms,
                normed: fit(&mut scratch.a, chunk.len() * hidden),
                raw: rows.raw,
                q_inv_rms: rows.q_inv_rms,
                k_inv_rms: rows.k_inv_rms,
                qkv: rows.qkv,
            };
            let input = &input[chunk.start * hidden..chunk.end * hidden];
            project_rows(weights, layer, &plan.positions[chunk.clone()], input, to, matmul);
        });
    }

    /// Attention over each sequence.
    fn attend(&mut self, team: &Team, weights: &Weights, layer: usize) {
        let config = &weights.model.config;
        let (ld, shape) = (config.qkv_width(), config.head_shape());
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, threads, key_values, .. } = self;
        let qkv = &details[detail].qkv;
        key_values.resize_with(plan.units.len().max(key_values.len()), PackedKeyValues::default);
        let parts = plan.units.iter().zip(key_values.iter_mut()).collect();
        team.each(threads, parts, |_, (unit, to): (&Unit, &mut PackedKeyValues)| {
            let (_, keys, values) = config.head_at(unit.kv_head);
            let rows = &qkv[unit.start * ld..];
            to.pack(config.head_dim, &rows[keys..], &rows[values..], ld, unit.count);
        });
        let kept = &mut all[kept];
        let mut out = RowsMut::new(&mut kept.attended, shape.width());
        let mut lse = RowsMut::new(&mut kept.lse, shape.group);
        let mut parts = Vec::new();
        for (unit, key_values) in plan.units.iter().zip(&*key_values) {
            for first in (0..unit.count).step_by(QUERY_RANGE) {
                let count = QUERY_RANGE.min(unit.count - first);
                parts.push((unit, key_values, first, out.take(count), lse.take(count)));
            }
        }
        // Late queries see most keys: they come first, so that threads end together.
        parts.sort_by_key(|(_, _, first, ..)| std::cmp::Reverse(*first));
        team.each(threads, parts, |scratch, (unit, key_values, first, out, lse)| {
            let (queries, ..) = config.head_at(unit.kv_head);
            let count = lse.len() / shape.group;
            attend(
                shape,
                key_values,
                (&qkv[(unit.start + first) * ld + queries..], ld),
                (first, count),
                (out, shape.width()),
                |t, head, value| lse[t * shape.group + head] = value,
                &mut scratch.strip,
            );
        });
    }

    /// Computes a layer's [`Detail`] again, from what is kept of it.
    pub(crate) fn compute_again(&mut self, team: &Team, weights: &Weights, layer: usize) {
        self.project(team, weights, layer);
        self.after_attention(team, weights, layer, true);
    }

    /// From what attention gave to the stream after the layer, or, `again`, to the layer's
    /// [`Detail`] only.
    fn after_attention(&mut self, team: &Team, weights: &Weights, layer: usize, again: bool) {
        let config = &weights.model.config;
        let (hidden, ffn, queries) =
            (config.hidden_size, config.intermediate_size, config.query_width());
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, threads, stream, .. } = self;
        let kept = &all[kept];
        let mut stream = RowsMut::new(stream, if again { 0 } else { hidden });
        let rows = details[detail].split(weights, &plan.chunks);
        let parts = plan
            .chunks
            .iter()
            .zip(rows)
            .map(|(chunk, rows)| (chunk, rows, stream.take(chunk.len())));
        team.each(threads, parts.collect(), |scratch, (chunk, rows, out)| {
            let attended = fit(&mut scratch.a, chunk.len() * queries);
            plan.gather_attended(config, &kept.attended, chunk, attended);
            let mut to = FinishRows {
                middle: rows.middle,
                middle_inv_rms: rows.middle_inv_rms,
                middle_normed: fit(&mut scratch.b, chunk.len() * hidden),
                gate_up: rows.gate_up,
                hidden: fit(&mut scratch.c, chunk.len() * ffn),
            };
            let input = &kept.input[chunk.start * hidden..chunk.end * hidden];
            if again {
                gate_rows(weights, layer, input, attended, &mut to, matmul);
            } else {
                finish_rows(weights, layer, input, attended, &mut to, out, matmul);
            }
        });
    }

    /// The final norm of the whole stream.
    fn normalise(&mut self, team: &Team, weights: &Weights) {
        let hidden = weights.model.config.hidden_size;
        let Self { plan, stream, normed, inv_rms, threads, .. } = self;
        normed.resize(stream.len(), 0.0);
        inv_rms.resize(plan.rows(), 0.0);
        let (mut normed, mut inv_rms) = (RowsMut::new(normed, hidden), RowsMut::new(inv_rms, 1));
        let parts = plan.chunks.iter().map(|chunk| {
            let x = &stream[chunk.start * hidden..chunk.end * hidden];
            (x, normed.take(chunk.len()), inv_rms.take(chunk.len()))
        });
        team.each(threads, parts.collect(), |_, (x, normed, inv_rms)| {
            final_norm(weights, x, normed, inv_rms);
        });
    }
}

impl Plan {
    /// Calls `each` with the pieces of units that make up the rows of `chunk`: the unit, where its
    /// rows begin among those of all units (in rows of one head's group), and the piece's rows.
    fn pieces(
        &self,
        num_kv_heads: usize,
        chunk: &Range<usize>,
        mut each: impl FnMut(Unit, usize, Range<usize>),
    ) {
        let first = self.units.partition_point(|unit| unit.start + unit.count <= chunk.start);
        for unit in &self.units[first..] {
            if unit.start >= chunk.end {
                break;
            }
            let rows = chunk.start.max(unit.start)..chunk.end.min(unit.start + unit.count);
            let at =
                unit.start * num_kv_heads + unit.kv_head * unit.count + rows.start - unit.start;
            each(*unit, at, rows);
        }
    }

    /// Rows `[t][heads]` of a chunk from what is kept unit by unit.
    pub(crate) fn gather_attended(
        &self,
        config: &ModelConfig,
        attended: &[f32],
        chunk: &Range<usize>,
        to: &mut [f32],
    ) {
        let (width, ld) = (config.head_shape().width(), config.query_width());
        self.pieces(config.num_key_value_heads, chunk, |unit, at, rows| {
            let from = attended[at * width..].chunks_exact(width);
            let to = &mut to[(rows.start - chunk.start) * ld + unit.kv_head * width..];
            for (to, from) in to.chunks_mut(ld).zip(from).take(rows.len()) {
                to[..width].copy_from_slice(from);
            }
        });
    }

    /// Rows `[queries | keys | values]` of a chunk from gradients kept unit by unit: of queries,
    /// `[t][group]` padded heads, to be multiplied by the scale, and of `[keys | values]`.
    pub(crate) fn gather_d_qkv(
        &self,
        config: &ModelConfig,
        (d_q, d_kv): (&[f32], &[f32]),
        chunk: &Range<usize>,
        to: &mut [f32],
    ) {
        let (shape, dim, ld) = (config.head_shape(), config.head_dim, config.qkv_width());
        let (wide, scale) = (shape.padded_width(), shape.scale());
        self.pieces(config.num_key_value_heads, chunk, |unit, at, rows| {
            let (queries, keys, values) = config.head_at(unit.kv_head);
            let from =
                d_q[at * wide..].chunks_exact(wide).zip(d_kv[at * 2 * dim..].chunks_exact(2 * dim));
            let to = to[(rows.start - chunk.start) * ld..].chunks_exact_mut(ld);
            for (to, (d_q, d_kv)) in to.zip(from).take(rows.len()) {
                let heads = to[queries..queries + shape.width()].chunks_exact_mut(dim);
                for (to, from) in heads.zip(d_q.chunks_exact(wide / shape.group)) {
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = from * scale;
                    }
                }
                to[keys..keys + dim].copy_from_slice(&d_kv[..dim]);
                to[values..values + dim].copy_from_slice(&d_kv[dim..]);
            }
        });
    }
}

impl ModelConfig {
    /// One key/value head and its queries.
    pub(crate) fn head_shape(&self) -> HeadShape {
        HeadShape { head_dim: self.head_dim, group: self.group() }
    }

    /// Where a group's queries, its keys and its values start in a row.
    pub(crate) fn head_at(&self, kv_head: usize) -> (usize, usize, usize) {
        let keys = self.query_width() + kv_head * self.head_dim;
        (kv_head * self.group() * self.head_dim, keys, keys + self.kv_width())
    }
}
