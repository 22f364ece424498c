//! The forward pass of a decoder layer over packed rows, shared by trainer and sampler.
//!
//! A batch is *packed*: the tokens of several sequences are rows of one matrix, without padding.
//! Everything but attention works on rows; attention is told where sequences begin and end.
//! Shape legend: `t` rows, `h` hidden, `q` all query heads, `f` intermediate, `v` vocabulary.

use crate::attention::fit;
use crate::kernels::gemm::{Into, PackedMatrix, Precision};
use crate::kernels::{bf16, math, vectorized};
use crate::rope::Rope;
use crate::weights::{Model, Weights};

/// How products are computed: [`matmul`](crate::kernels::gemm::matmul), or a form of it with the
/// same bits.
pub(crate) type Matmul = fn(&[f32], &PackedMatrix, &mut [f32], Into);

/// What a layer computes of the rows of a sampling step.
#[derive(Debug, Default)]
pub(crate) struct LayerState {
    /// The residual stream before the layer, `[t][h]`.
    pub input: Vec<f32>,
    pub input_inv_rms: Vec<f32>,
    pub normed: Vec<f32>,
    /// `[queries | keys | values]` before norm and rotation; used where there is a norm.
    pub raw: Vec<f32>,
    /// One a head: of the queries `[t][heads]`, of the keys `[t][kv heads]`.
    pub q_inv_rms: Vec<f32>,
    pub k_inv_rms: Vec<f32>,
    /// `[queries | keys | values]` as attention sees them.
    pub qkv: Vec<f32>,
    /// Log-sum-exp of the scores, `[t][heads]`.
    pub lse: Vec<f32>,
    /// What attention gave, `[t][q]`.
    pub attended: Vec<f32>,
    /// The residual stream between attention and the feed-forward part, `[t][h]`.
    pub middle: Vec<f32>,
    pub middle_inv_rms: Vec<f32>,
    pub middle_normed: Vec<f32>,
    /// `[gate | up]`, `[t][2f]`.
    pub gate_up: Vec<f32>,
    /// `silu(gate) * up`, `[t][f]`.
    pub hidden: Vec<f32>,
}

impl LayerState {
    /// Makes all buffers fit `rows` rows. Their contents are arbitrary.
    pub(crate) fn resize(&mut self, model: &Model, rows: usize) {
        let config = &model.config;
        let (h, f) = (config.hidden_size, config.intermediate_size);
        let raw = if model.layout.layers[0].qk_norm.is_some() { config.qkv_width() } else { 0 };
        let widths = [
            (&mut self.input, h),
            (&mut self.input_inv_rms, 1),
            (&mut self.normed, h),
            (&mut self.raw, raw),
            (&mut self.q_inv_rms, config.num_attention_heads),
            (&mut self.k_inv_rms, config.num_key_value_heads),
            (&mut self.qkv, config.qkv_width()),
            (&mut self.lse, config.num_attention_heads),
            (&mut self.attended, config.query_width()),
            (&mut self.middle, h),
            (&mut self.middle_inv_rms, 1),
            (&mut self.middle_normed, h),
            (&mut self.gate_up, 2 * f),
            (&mut self.hidden, f),
        ];
        for (buffer, width) in widths {
            buffer.resize(rows * width, 0.0);
        }
    }
}

/// Looks up the embeddings of `tokens` into `out`, `[t][h]`.
pub(crate) fn embed(weights: &Weights, tokens: impl Iterator<Item = u32>, out: &mut [f32]) {
    let hidden = weights.model.config.hidden_size;
    let table = &weights.params[weights.model.layout.embedding.clone()];
    for (row, token) in out.chunks_exact_mut(hidden).zip(tokens) {
        row.copy_from_slice(&table[token as usize * hidden..][..hidden]);
    }
    if weights.precision == Precision::Bf16 {
        bf16::round_all(out);
    }
}

/// Places of some rows for what [`project_rows`] computes.
#[derive(Debug)]
pub(crate) struct QkvRows<'a> {
    pub input_inv_rms: &'a mut [f32],
    pub normed: &'a mut [f32],
    pub raw: &'a mut [f32],
    pub q_inv_rms: &'a mut [f32],
    pub k_inv_rms: &'a mut [f32],
    pub qkv: &'a mut [f32],
}

/// From `state.input` to `state.qkv`: norm, projection, bias, head norms, rotation.
pub(crate) fn project_qkv(
    weights: &Weights,
    layer: usize,
    positions: &[u32],
    state: &mut LayerState,
    matmul: Matmul,
) {
    let to = QkvRows {
        input_inv_rms: &mut state.input_inv_rms,
        normed: &mut state.normed,
        raw: &mut state.raw,
        q_inv_rms: &mut state.q_inv_rms,
        k_inv_rms: &mut state.k_inv_rms,
        qkv: &mut state.qkv,
    };
    project_rows(weights, layer, positions, &state.input, to, matmul);
}

/// From rows of the residual stream to queries, keys and values.
pub(crate) fn project_rows(
    weights: &Weights,
    layer: usize,
    positions: &[u32],
    input: &[f32],
    to: QkvRows,
    matmul: Matmul,
) {
    let Model { config, layout, rope } = &*weights.model;
    let ranges = &layout.layers[layer];
    let eps = config.rms_norm_eps;
    let param = |range: &std::ops::Range<usize>| &weights.params[range.clone()];
    let QkvRows { input_inv_rms, normed, raw, q_inv_rms, k_inv_rms, qkv } = to;
    math::rms_norm(input, param(&ranges.input_norm), eps, normed, input_inv_rms);
    let projected = if ranges.qk_norm.is_some() { &mut *raw } else { &mut *qkv };
    matmul(normed, &weights.layers[layer].qkv, projected, Into::Set);
    if let Some(bias) = &ranges.qkv_bias {
        math::add_bias(projected, param(bias));
    }
    let (width, queries, keys) = (config.qkv_width(), config.query_width(), config.kv_width());
    let norms = ranges.qk_norm.as_ref().map(|(q, k)| (param(q), param(k)));
    let heads = HeadRows {
        width,
        queries,
        rotated: queries + keys,
        head_dim: config.head_dim,
        eps,
        rope,
        positions,
    };
    norm_and_rotate(&heads, norms, raw, qkv, q_inv_rms, k_inv_rms);
    if weights.precision == Precision::Bf16 {
        // What attention's backward pass multiplies: so it finds the same probabilities again.
        bf16::round_all(qkv);
    }
}

/// Shape of rows `[queries | keys | values]`, and their positions.
struct HeadRows<'a> {
    width: usize,
    queries: usize,
    /// Queries and keys.
    rotated: usize,
    head_dim: usize,
    eps: f32,
    rope: &'a Rope,
    positions: &'a [u32],
}

vectorized! {
    /// Per-head norms (from `raw` to `qkv`, where there are any) and rotation, row by row.
    fn norm_and_rotate(
        heads: &HeadRows,
        norms: Option<(&[f32], &[f32])>,
        raw: &[f32],
        qkv: &mut [f32],
        q_inv_rms: &mut [f32],
        k_inv_rms: &mut [f32],
    ) {
        let HeadRows { width, queries, rotated, head_dim, eps, rope, positions } = *heads;
        let (num_heads, num_kv_heads) = (queries / head_dim, (rotated - queries) / head_dim);
        for (t, (row, &position)) in qkv.chunks_exact_mut(width).zip(positions).enumerate() {
            if let Some((q_norm, k_norm)) = norms {
                let raw = &raw[t * width..][..width];
                let (q_inv, k_inv) =
                    (&mut q_inv_rms[t * num_heads..], &mut k_inv_rms[t * num_kv_heads..]);
                let (q, rest) = row.split_at_mut(queries);
                let (k, v) = rest.split_at_mut(rotated - queries);
                math::rms_norm_inline(&raw[..queries], q_norm, eps, q, q_inv);
                math::rms_norm_inline(&raw[queries..rotated], k_norm, eps, k, k_inv);
                v.copy_from_slice(&raw[rotated..]);
            }
            for head in row[..rotated].chunks_exact_mut(head_dim) {
                rope.rotate(head, position as usize);
            }
        }
    }
}

/// Places of some rows for what [`finish_rows`] computes on the way.
#[derive(Debug)]
pub(crate) struct FinishRows<'a> {
    pub middle: &'a mut [f32],
    pub middle_inv_rms: &'a mut [f32],
    pub middle_normed: &'a mut [f32],
    pub gate_up: &'a mut [f32],
    pub hidden: &'a mut [f32],
}

/// From `state.attended` to the residual stream after the layer, `out`.
pub(crate) fn finish_layer(
    weights: &Weights,
    layer: usize,
    state: &mut LayerState,
    out: &mut [f32],
    matmul: Matmul,
) {
    let mut to = FinishRows {
        middle: &mut state.middle,
        middle_inv_rms: &mut state.middle_inv_rms,
        middle_normed: &mut state.middle_normed,
        gate_up: &mut state.gate_up,
        hidden: &mut state.hidden,
    };
    finish_rows(weights, layer, &state.input, &state.attended, &mut to, out, matmul);
}

/// From rows of the residual stream and what attention made of them to the stream after the layer.
pub(crate) fn finish_rows(
    weights: &Weights,
    layer: usize,
    input: &[f32],
    attended: &[f32],
    to: &mut FinishRows,
    out: &mut [f32],
    matmul: Matmul,
) {
    gate_rows(weights, layer, input, attended, to, matmul);
    math::swiglu(to.gate_up, weights.model.config.intermediate_size, to.hidden);
    out.copy_from_slice(to.middle);
    matmul(to.hidden, &weights.layers[layer].down, out, Into::Add);
}

/// The first part of [`finish_rows`]: all but `hidden` and the result.
pub(crate) fn gate_rows(
    weights: &Weights,
    layer: usize,
    input: &[f32],
    attended: &[f32],
    to: &mut FinishRows,
    matmul: Matmul,
) {
    let Model { config, layout, .. } = &*weights.model;
    let packed = &weights.layers[layer];
    let ranges = &layout.layers[layer];
    let norm = &weights.params[ranges.post_norm.clone()];
    to.middle.copy_from_slice(input);
    matmul(attended, &packed.output, to.middle, Into::Add);
    if let Some(bias) = &ranges.output_bias {
        math::add_bias(to.middle, &weights.params[bias.clone()]);
    }
    math::rms_norm(to.middle, norm, config.rms_norm_eps, to.middle_normed, to.middle_inv_rms);
    matmul(to.middle_normed, &packed.gate_up, to.gate_up, Into::Set);
}

/// Final norm of some rows of the residual stream.
pub(crate) fn final_norm(weights: &Weights, x: &[f32], out: &mut [f32], inv_rms: &mut [f32]) {
    let Model { config, layout, .. } = &*weights.model;
    let norm = &weights.params[layout.final_norm.clone()];
    math::rms_norm(x, norm, config.rms_norm_eps, out, inv_rms);
}

/// Logits of normed rows, `[t][v]`.
pub(crate) fn logits<'a>(
    weights: &Weights,
    normed: &[f32],
    buffer: &'a mut Vec<f32>,
    matmul: Matmul,
) -> &'a mut [f32] {
    let config = &weights.model.config;
    let rows = normed.len() / config.hidden_size;
    let logits = fit(buffer, rows * config.vocab_size);
    matmul(normed, &weights.head, logits, Into::Set);
    logits
}

/// Backward of [`final_norm`]: adds to `d_x`.
pub(crate) fn final_norm_backward(
    weights: &Weights,
    x: &[f32],
    inv_rms: &[f32],
    d_out: &[f32],
    d_x: &mut [f32],
) {
    let norm = &weights.params[weights.model.layout.final_norm.clone()];
    math::rms_norm_backward(x, norm, inv_rms, d_out, d_x);
}
