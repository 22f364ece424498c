//! From the gradient of the final normed rows back to the embedding.
//!
//! A layer takes four rounds: its feed-forward part over blocks of rows; attention, with the weight
//! gradients that are ready by then; its projection over blocks of rows; the rest of the weight
//! gradients. A weight gradient is shared out by its rows, a key/value head by ranges of its keys.

mod parts;
mod saved;

use std::ops::Range;
use std::sync::{Condvar, Mutex, PoisonError};

use patchwright_core::TrainingSample;

use crate::attention::{BackwardHead, KEY_RANGE};
use crate::config::ModelConfig;
use crate::forward::final_norm_backward;
use crate::kernels::math;
use crate::kernels::outer::{Side, Strips};
use crate::microbatch::{Detail, Kept, Learning, Plan, Workspace, chunks};
use crate::params::LayerRanges;
use crate::team::{RowsMut, Team};
use crate::weights::{PackedLayer, Weights};

use parts::{Part, columns, outer_parts, run_simple};
use saved::Saved;

/// What the gradient is wanted of.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Wanted {
    /// The query, key and value projections.
    pub qkv: bool,
    pub output: bool,
    pub gate_up: bool,
    pub down: bool,
    /// Norms, biases, embedding and head.
    pub others: bool,
}

impl Wanted {
    /// Everything.
    pub(crate) const ALL: Self =
        Self { qkv: true, output: true, gate_up: true, down: true, others: true };
}

/// Operands of the weight gradients of a block of rows: gradient of the output, and the input.
#[derive(Debug, Default)]
struct BlockOperands {
    down: (Strips, Strips),
    gate_up: (Strips, Strips),
    output: (Strips, Strips),
    qkv: (Strips, Strips),
}

/// Buffers of the backward pass.
#[derive(Debug, Default)]
pub(crate) struct BackwardBuffers {
    blocks: Vec<BlockOperands>,
    /// Gradient of the residual stream, `[t][h]`.
    d_stream: Vec<f32>,
    /// Of a norm's output, `[t][h]`.
    d_normed: Vec<f32>,
    /// Of what attention gave, `[t][q]`.
    d_attended: Vec<f32>,
    /// `d_attended · attended` of each head, `[t][heads]`.
    d_sum: Vec<f32>,
    /// Of the queries, `[unit][t][group]` padded heads.
    d_q: Vec<f32>,
    /// `[unit][t][keys | values]`.
    d_kv: Vec<f32>,
    /// Of queries and keys before the rotation, `[t][queries | keys]`; used where there are head
    /// norms.
    d_rotated: Vec<f32>,
}

/// The gradient of a unit's queries, which ranges of keys add to in their order.
struct Turns<'a> {
    state: Mutex<(usize, &'a mut [f32])>,
    added: Condvar,
}

impl Workspace {
    /// Adds the gradients of all layers and of the embedding.
    pub(crate) fn backward(
        &mut self,
        team: &Team,
        weights: &Weights,
        samples: &[&TrainingSample],
        learning: Learning,
    ) {
        let config = &weights.model.config;
        let layout = &weights.model.layout;
        let Learning { backward, gradient, wanted, recompute, .. } = learning;
        let rows = self.plan.rows();
        let num_blocks = self.plan.blocks.len();
        self.back.blocks.resize_with(num_blocks.max(self.back.blocks.len()), Default::default);
        self.back.resize(weights, rows);
        let none = 0..0;
        let final_norm = if wanted.others { &layout.final_norm } else { &none };
        self.final_backward(team, weights, &mut gradient[final_norm.clone()]);
        for layer in (0..config.num_hidden_layers).rev() {
            if recompute {
                self.compute_again(team, weights, layer);
            }
            let packed = &backward.layers[layer];
            self.feed_forward_backward(team, weights, layer, (packed, wanted));
            self.first_gradients(team, weights, layer, (gradient, wanted));
            self.projection_backward(team, weights, layer, (packed, wanted));
            self.second_gradients(team, weights, layer, (gradient, wanted));
        }
        if !wanted.others {
            return;
        }
        let hidden = config.hidden_size;
        let d_embedding = &mut gradient[layout.embedding.clone()];
        let tokens = samples.iter().flat_map(|s| &s.tokens);
        for (token, d_row) in tokens.zip(self.back.d_stream.chunks_exact(hidden)) {
            math::add_assign(&mut d_embedding[*token as usize * hidden..][..hidden], d_row);
        }
    }

    fn final_backward(&mut self, team: &Team, weights: &Weights, gradient: &mut [f32]) {
        let hidden = weights.model.config.hidden_size;
        let Self { plan, stream, inv_rms, d_normed, back, threads, .. } = self;
        let mut d_stream = RowsMut::new(&mut back.d_stream, hidden);
        let parts = plan.chunks.iter().map(|chunk| (chunk, d_stream.take(chunk.len())));
        team.each(threads, parts.collect(), |_, (chunk, d_stream)| {
            let wide = chunk.start * hidden..chunk.end * hidden;
            d_stream.fill(0.0);
            let (x, inv_rms) = (&stream[wide.clone()], &inv_rms[chunk.clone()]);
            final_norm_backward(weights, x, inv_rms, &d_normed[wide], d_stream);
        });
        let parts = columns(gradient).map(|(first, gradient)| Part::Norm {
            x: stream,
            inv_rms,
            first,
            gradient,
        });
        run_simple(team, threads, parts.collect(), d_normed, hidden);
    }

    /// From the gradient of the layer's result to those of what attention gave and of the stream
    /// before the feed-forward part.
    fn feed_forward_backward(
        &mut self,
        team: &Team,
        weights: &Weights,
        layer: usize,
        (packed, wanted): (&PackedLayer, Wanted),
    ) {
        let config = &weights.model.config;
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, back, threads, .. } = self;
        let BackwardBuffers { blocks, d_stream, d_normed, d_attended, d_sum, .. } = back;
        let mut d_stream = RowsMut::new(d_stream, config.hidden_size);
        let mut d_normed = RowsMut::new(d_normed, config.hidden_size);
        let mut d_attended = RowsMut::new(d_attended, config.query_width());
        let mut d_sum = RowsMut::new(d_sum, config.num_attention_heads);
        let parts = block_parts(plan, blocks, |n| {
            (d_stream.take(n), d_normed.take(n), d_attended.take(n), d_sum.take(n))
        });
        let (kept, detail) = (&all[kept], &details[detail]);
        let saved = Saved { plan, weights, layer, packed, wanted, kept, detail };
        team.each(threads, parts, |scratch, (block, operands, rows)| {
            operands.reshape_first(weights, block.len(), wanted);
            for (chunk, (d_stream, d_normed, d_attended, d_sum)) in rows {
                let at = chunk.start - block.start;
                saved.feed_forward_chunk(&chunk, at, operands, (d_stream, d_normed), scratch);
                saved.output_chunk(&chunk, at, operands, (d_stream, d_attended, d_sum), scratch);
            }
        });
    }

    /// Attention, and the gradients of the output, gate, up and down projections.
    fn first_gradients(
        &mut self,
        team: &Team,
        weights: &Weights,
        layer: usize,
        (gradient, wanted): (&mut [f32], Wanted),
    ) {
        let config = &weights.model.config;
        let LayerRanges { output, output_bias, gate_up, down, post_norm, .. } =
            &weights.model.layout.layers[layer].only(wanted);
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, back, threads, .. } = self;
        let (kept, detail) = (&all[kept], &details[detail]);
        let BackwardBuffers { blocks, d_normed, d_attended, d_sum, d_q, d_kv, .. } = back;
        let blocks = &blocks[..plan.blocks.len()];
        let pairs = |pick: fn(&BlockOperands) -> &(Strips, Strips)| -> Vec<_> {
            blocks.iter().map(pick).map(|(a, b)| (a, b)).collect()
        };
        let (of_down, of_gate_up, of_output) =
            (pairs(|b| &b.down), pairs(|b| &b.gate_up), pairs(|b| &b.output));
        let mut parts = key_parts(config, plan, d_kv);
        let bias = output_bias.as_ref().unwrap_or(&(0..0));
        let [d_output, d_bias, d_post_norm, d_gate_up, d_down] =
            disjoint(gradient, [output, bias, post_norm, gate_up, down]);
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        outer_parts(&of_gate_up, d_gate_up, hidden, &mut parts);
        outer_parts(&of_down, d_down, ffn, &mut parts);
        outer_parts(&of_output, d_output, config.query_width(), &mut parts);
        parts.extend(columns(d_bias).map(|(first, gradient)| Part::Bias {
            operands: &of_output,
            first,
            gradient,
        }));
        let (x, inv_rms) = (&detail.middle[..], &detail.middle_inv_rms[..]);
        parts.extend(columns(d_post_norm).map(|(first, gradient)| Part::Norm {
            x,
            inv_rms,
            first,
            gradient,
        }));
        let mut d_q = RowsMut::new(d_q, config.head_shape().padded_width());
        let turns: Vec<Turns> = plan
            .units
            .iter()
            .map(|unit| Turns {
                state: Mutex::new((0, d_q.take(unit.count))),
                added: Condvar::new(),
            })
            .collect();
        team.each(threads, parts, |scratch, part| match part {
            Part::Keys { unit, range, d_kv } => {
                let head = backward_head(weights, plan, unit, (kept, detail), (d_attended, d_sum));
                turns[unit].add(&range, |d_q| {
                    head.backward(range.clone(), d_q, d_kv, &mut scratch.attention);
                });
            }
            other => other.run(d_normed, hidden),
        });
    }

    /// From the gradient of queries, keys and values to that of the stream before the layer.
    fn projection_backward(
        &mut self,
        team: &Team,
        weights: &Weights,
        layer: usize,
        (packed, wanted): (&PackedLayer, Wanted),
    ) {
        let config = &weights.model.config;
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, back, threads, .. } = self;
        let BackwardBuffers { blocks, d_stream, d_normed, d_q, d_kv, d_rotated, .. } = back;
        let mut d_stream = RowsMut::new(d_stream, config.hidden_size);
        let mut d_normed = RowsMut::new(d_normed, config.hidden_size);
        let mut d_rotated = RowsMut::new(d_rotated, rotated_width(weights));
        let parts =
            block_parts(plan, blocks, |n| (d_stream.take(n), d_normed.take(n), d_rotated.take(n)));
        let (kept, detail) = (&all[kept], &details[detail]);
        let saved = Saved { plan, weights, layer, packed, wanted, kept, detail };
        team.each(threads, parts, |scratch, (block, operands, rows)| {
            operands.reshape_second(weights, block.len(), wanted);
            for (chunk, to) in rows {
                let at = chunk.start - block.start;
                saved.projection_chunk(&chunk, at, operands, (d_q, d_kv), to, scratch);
            }
        });
    }

    /// The gradients of the query, key and value projections and of the first norm.
    fn second_gradients(
        &mut self,
        team: &Team,
        weights: &Weights,
        layer: usize,
        (gradient, wanted): (&mut [f32], Wanted),
    ) {
        let config = &weights.model.config;
        let ranges = &weights.model.layout.layers[layer].only(wanted);
        let (kept, detail) = self.places(layer);
        let Self { plan, kept: all, details, back, threads, .. } = self;
        let (kept, detail) = (&all[kept], &details[detail]);
        let blocks = &back.blocks[..plan.blocks.len()];
        let operands: Vec<_> = blocks.iter().map(|block| (&block.qkv.0, &block.qkv.1)).collect();
        let none = 0..0;
        let bias = ranges.qkv_bias.as_ref().unwrap_or(&none);
        let (q_norm, k_norm) = ranges.qk_norm.as_ref().map_or((&none, &none), |(q, k)| (q, k));
        let [d_norm, d_qkv, d_bias, d_q_norm, d_k_norm] =
            disjoint(gradient, [&ranges.input_norm, &ranges.qkv, bias, q_norm, k_norm]);
        let mut parts = Vec::new();
        outer_parts(&operands, d_qkv, config.hidden_size, &mut parts);
        let (x, inv_rms) = (&kept.input[..], &detail.input_inv_rms[..]);
        parts.extend(columns(d_norm).map(|(first, gradient)| Part::Norm {
            x,
            inv_rms,
            first,
            gradient,
        }));
        if ranges.qk_norm.is_some() {
            let (width, rotated, queries) =
                (config.qkv_width(), rotated_width(weights), config.query_width());
            for (at, inv_rms, gradient) in
                [(0, &detail.q_inv_rms, d_q_norm), (queries, &detail.k_inv_rms, d_k_norm)]
            {
                let (raw, d_out) = ((&detail.raw[at..], width), (&back.d_rotated[at..], rotated));
                parts.push(Part::HeadNorm { raw, inv_rms, d_out, gradient });
            }
        }
        parts.extend(columns(d_bias).map(|(first, gradient)| Part::Bias {
            operands: &operands,
            first,
            gradient,
        }));
        run_simple(team, threads, parts, &back.d_normed, config.hidden_size);
    }
}

impl BackwardBuffers {
    fn resize(&mut self, weights: &Weights, rows: usize) {
        let config = &weights.model.config;
        let (hidden, shape) = (config.hidden_size, config.head_shape());
        let units = config.num_key_value_heads;
        let widths = [
            (&mut self.d_stream, hidden),
            (&mut self.d_normed, hidden),
            (&mut self.d_attended, config.query_width()),
            (&mut self.d_sum, config.num_attention_heads),
            (&mut self.d_q, units * shape.padded_width()),
            (&mut self.d_kv, units * 2 * config.head_dim),
            (&mut self.d_rotated, rotated_width(weights)),
        ];
        for (buffer, width) in widths {
            buffer.resize(rows * width, 0.0);
        }
    }
}

/// Width of a row of queries and keys where they have norms, else 0.
fn rotated_width(weights: &Weights) -> usize {
    let config = &weights.model.config;
    let has_norms = weights.model.layout.layers[0].qk_norm.is_some();
    if has_norms { config.query_width() + config.kv_width() } else { 0 }
}

impl BlockOperands {
    fn reshape_first(&mut self, weights: &Weights, rows: usize, wanted: Wanted) {
        let config = &weights.model.config;
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let pairs = [
            (&mut self.down, hidden, ffn, wanted.down),
            (&mut self.gate_up, 2 * ffn, hidden, wanted.gate_up),
            (&mut self.output, hidden, config.query_width(), wanted.output || wanted.others),
        ];
        for ((left, right), m, n, _) in pairs.into_iter().filter(|(.., wanted)| *wanted) {
            left.reshape(Side::Left, rows, m, weights.precision);
            right.reshape(Side::Right, rows, n, weights.precision);
        }
    }

    fn reshape_second(&mut self, weights: &Weights, rows: usize, wanted: Wanted) {
        if !(wanted.qkv || wanted.others) {
            return;
        }
        let config = &weights.model.config;
        self.qkv.0.reshape(Side::Left, rows, config.qkv_width(), weights.precision);
        self.qkv.1.reshape(Side::Right, rows, config.hidden_size, weights.precision);
    }
}

impl Turns<'_> {
    /// Waits until all keys before `range` were added, and adds those of `range`.
    fn add(&self, range: &Range<usize>, add: impl FnOnce(&mut [f32])) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 != range.start {
            state = self.added.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        add(state.1);
        state.0 = range.end;
        self.added.notify_all();
    }
}

/// A block, room for its operands, and its chunks with what they own.
type BlockPart<'a, R> = (&'a Range<usize>, &'a mut BlockOperands, Vec<(Range<usize>, R)>);

/// The blocks, as parts of a round; `take` gives the next so many rows.
fn block_parts<'a, R>(
    plan: &'a Plan,
    blocks: &'a mut [BlockOperands],
    mut take: impl FnMut(usize) -> R,
) -> Vec<BlockPart<'a, R>> {
    let with_chunks = |(block, operands): (&'a Range<usize>, _)| {
        let rows = chunks(block).map(|chunk| {
            let rows = take(chunk.len());
            (chunk, rows)
        });
        (block, operands, rows.collect())
    };
    plan.blocks.iter().zip(blocks).map(with_chunks).collect()
}

/// Ranges of keys of all units. Those that wait for others come later.
fn key_parts<'a>(config: &ModelConfig, plan: &Plan, d_kv: &'a mut [f32]) -> Vec<Part<'a>> {
    let mut rows = RowsMut::new(d_kv, 2 * config.head_dim);
    let mut parts = Vec::new();
    for (index, unit) in plan.units.iter().enumerate() {
        for start in (0..unit.count).step_by(KEY_RANGE) {
            let range = start..(start + KEY_RANGE).min(unit.count);
            let d_kv = rows.take(range.len());
            parts.push((start, Part::Keys { unit: index, range, d_kv }));
        }
    }
    parts.sort_by_key(|(start, _)| *start);
    parts.into_iter().map(|(_, part)| part).collect()
}

fn backward_head<'a>(
    weights: &Weights,
    plan: &Plan,
    unit: usize,
    (kept, detail): (&'a Kept, &'a Detail),
    (d_attended, d_sum): (&'a [f32], &'a [f32]),
) -> BackwardHead<'a> {
    let (config, unit) = (&weights.model.config, plan.units[unit]);
    let (shape, ld, ldo) = (config.head_shape(), config.qkv_width(), config.query_width());
    let heads = config.num_attention_heads;
    let at = unit.start * config.num_key_value_heads + unit.kv_head * unit.count;
    BackwardHead {
        shape,
        qkv: &detail.qkv[unit.start * ld..(unit.start + unit.count) * ld],
        ld,
        at: config.head_at(unit.kv_head),
        lse: &kept.lse[at * shape.group..],
        d_out: &d_attended[unit.start * ldo..],
        ldo,
        out_at: unit.kv_head * shape.width(),
        d_sum: &d_sum[unit.start * heads..],
        heads,
        head_at: unit.kv_head * shape.group,
        precision: weights.precision,
    }
}

/// Places of several tensors in the gradient.
fn disjoint<'a, const N: usize>(
    gradient: &'a mut [f32],
    ranges: [&Range<usize>; N],
) -> [&'a mut [f32]; N] {
    match gradient.get_disjoint_mut(ranges.map(Range::clone)) {
        Ok(slices) => slices,
        Err(error) => unreachable!("tensors do not overlap: {error}"),
    }
}
