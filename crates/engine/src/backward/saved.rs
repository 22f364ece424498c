//! The gradients of a layer's parts, chunk of rows by chunk, from what the forward pass left.

use std::ops::Range;

use super::{BlockOperands, Wanted};
use crate::attention::fit;
use crate::kernels::gemm::{Into, matmul};
use crate::kernels::{math, vectorized};
use crate::microbatch::{Detail, Kept, Plan, ThreadScratch};
use crate::params::LayerRanges;
use crate::weights::{PackedLayer, Weights};

/// What the forward pass left of a layer.
pub(super) struct Saved<'a> {
    pub(super) plan: &'a Plan,
    pub(super) weights: &'a Weights,
    pub(super) layer: usize,
    pub(super) packed: &'a PackedLayer,
    pub(super) wanted: Wanted,
    pub(super) kept: &'a Kept,
    pub(super) detail: &'a Detail,
}

impl Saved<'_> {
    pub(super) fn ranges(&self) -> &LayerRanges {
        &self.weights.model.layout.layers[self.layer]
    }

    pub(super) fn param(&self, range: &Range<usize>) -> &[f32] {
        &self.weights.params[range.clone()]
    }

    /// Through down projection, `SwiGLU`, gate and up projections and norm. `at` is the chunk's place
    /// in its block.
    pub(super) fn feed_forward_chunk(
        &self,
        chunk: &Range<usize>,
        at: usize,
        operands: &mut BlockOperands,
        (d_stream, d_normed): (&mut [f32], &mut [f32]),
        scratch: &mut ThreadScratch,
    ) {
        let config = &self.weights.model.config;
        let (rows, h, f) = (chunk.len(), config.hidden_size, config.intermediate_size);
        let wanted = self.wanted;
        if wanted.down {
            operands.down.0.write(at, d_stream);
        }
        let d_hidden = fit(&mut scratch.a, rows * f);
        matmul(d_stream, &self.packed.down, d_hidden, Into::Set);
        let d_gate_up = fit(&mut scratch.b, rows * 2 * f);
        let gate_up = &self.detail.gate_up[chunk.start * 2 * f..chunk.end * 2 * f];
        math::swiglu_backward(gate_up, f, d_hidden, d_gate_up);
        // It holds what was put into the down projection now.
        if wanted.down {
            operands.down.1.write(at, d_hidden);
        }
        matmul(d_gate_up, &self.packed.gate_up, d_normed, Into::Set);
        let norm = self.param(&self.ranges().post_norm);
        let middle = &self.detail.middle[chunk.start * h..chunk.end * h];
        let inv_rms = &self.detail.middle_inv_rms[chunk.clone()];
        if wanted.gate_up {
            let normed = fit(&mut scratch.a, rows * h);
            math::rms_norm_again(middle, norm, inv_rms, normed);
            operands.gate_up.0.write(at, d_gate_up);
            operands.gate_up.1.write(at, normed);
        }
        math::rms_norm_backward(middle, norm, inv_rms, d_normed, d_stream);
    }

    /// Through the output projection.
    pub(super) fn output_chunk(
        &self,
        chunk: &Range<usize>,
        at: usize,
        operands: &mut BlockOperands,
        (d_stream, d_attended, d_sum): (&[f32], &mut [f32], &mut [f32]),
        scratch: &mut ThreadScratch,
    ) {
        let config = &self.weights.model.config;
        matmul(d_stream, &self.packed.output, d_attended, Into::Set);
        let attended = fit(&mut scratch.a, d_attended.len());
        self.plan.gather_attended(config, &self.kept.attended, chunk, attended);
        if self.wanted.output || self.wanted.others {
            operands.output.0.write(at, d_stream);
            operands.output.1.write(at, attended);
        }
        let dim = config.head_dim;
        let heads = d_attended.chunks_exact(dim).zip(attended.chunks_exact(dim));
        for (sum, (d_out, out)) in d_sum.iter_mut().zip(heads) {
            *sum = math::dot(d_out, out);
        }
    }

    /// Through rotation, head norms, projection and norm.
    pub(super) fn projection_chunk(
        &self,
        chunk: &Range<usize>,
        at: usize,
        operands: &mut BlockOperands,
        d_heads: (&[f32], &[f32]),
        (d_stream, d_normed, d_rotated): (&mut [f32], &mut [f32], &mut [f32]),
        scratch: &mut ThreadScratch,
    ) {
        let config = &self.weights.model.config;
        let (rows, h, width) = (chunk.len(), config.hidden_size, config.qkv_width());
        let ranges = self.ranges();
        let d_qkv = fit(&mut scratch.a, rows * width);
        self.plan.gather_d_qkv(config, d_heads, chunk, d_qkv);
        let d_raw = fit(&mut scratch.b, if ranges.qk_norm.is_some() { rows * width } else { 0 });
        unrotate(self, chunk, d_qkv, d_raw, d_rotated);
        let d_qkv = if ranges.qk_norm.is_some() { d_raw } else { d_qkv };
        if self.wanted.qkv || self.wanted.others {
            operands.qkv.0.write(at, d_qkv);
        }
        matmul(d_qkv, &self.packed.qkv, d_normed, Into::Set);
        let norm = self.param(&ranges.input_norm);
        let input = &self.kept.input[chunk.start * h..chunk.end * h];
        let inv_rms = &self.detail.input_inv_rms[chunk.clone()];
        if self.wanted.qkv {
            let normed = fit(&mut scratch.c, rows * h);
            math::rms_norm_again(input, norm, inv_rms, normed);
            operands.qkv.1.write(at, normed);
        }
        math::rms_norm_backward(input, norm, inv_rms, d_normed, d_stream);
    }
}

vectorized! {
    /// Backward of rotation (in place, and into `d_rotated` where there are head norms) and of the
    /// head norms (into `d_raw`) for a chunk's rows.
    pub(super) fn unrotate(
        saved: &Saved,
        chunk: &Range<usize>,
        d_qkv: &mut [f32],
        d_raw: &mut [f32],
        d_rotated: &mut [f32],
    ) {
        let config = &saved.weights.model.config;
        let (width, dim) = (config.qkv_width(), config.head_dim);
        let rotated = config.query_width() + config.kv_width();
        let (heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        d_raw.fill(0.0);
        let positions = &saved.plan.positions[chunk.clone()];
        for (i, (d_row, &position)) in d_qkv.chunks_exact_mut(width).zip(positions).enumerate() {
            for head in d_row[..rotated].chunks_exact_mut(dim) {
                saved.weights.model.rope.rotate_back(head, position as usize);
            }
            let Some((q_norm, k_norm)) = &saved.ranges().qk_norm else { continue };
            d_rotated[i * rotated..][..rotated].copy_from_slice(&d_row[..rotated]);
            let t = chunk.start + i;
            let raw = &saved.detail.raw[t * width..][..width];
            let d_raw = &mut d_raw[i * width..][..width];
            for head in 0..heads + kv_heads {
                let (norm, inv) = if head < heads {
                    (q_norm, saved.detail.q_inv_rms[t * heads + head])
                } else {
                    (k_norm, saved.detail.k_inv_rms[t * kv_heads + head - heads])
                };
                let at = head * dim..(head + 1) * dim;
                let (raw, d_out) = (&raw[at.clone()], &d_row[at.clone()]);
                math::rms_norm_row_backward(raw, saved.param(norm), inv, d_out, &mut d_raw[at]);
            }
            d_raw[rotated..].copy_from_slice(&d_row[rotated..]);
        }
    }
}
