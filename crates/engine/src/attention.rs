//! Causal attention with shared key/value heads, in strips of a few query rows.
//!
//! A strip takes the scores of its rows against all keys so far, so memory is the strip's rows
//! times the length: linear. The backward pass computes the scores again, strip by strip, from the
//! saved log-sum-exp (as FlashAttention-2 does, Dao, arXiv 2307.08691).
//!
//! Keys come in blocks of 32 positions that start at multiples of 32. A masked key has probability
//! exactly 0 and so adds nothing, bit for bit: a query's result is the same whether it is computed
//! alone against a cache or in the middle of a training batch.
//!
//! Layouts: `columns` are `[block][head_dim][32]` (a panel per block, for `x · Kᵀ`), `rows` are
//! `[head_dim / 32][position][32]` (a panel per 32 columns, for `p · V`), padded with zeros.

use crate::kernels::gemm::{Into, PANEL, matmul_panels, matmul_tn, padded};
use crate::kernels::math;

/// Most query rows of a strip (the micro-kernel's tile), unless one position has more heads.
const STRIP_ROWS: usize = 12;

/// One key/value head and its queries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadShape {
    pub head_dim: usize,
    /// Query heads that share the key/value head.
    pub group: usize,
}

impl HeadShape {
    fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    fn strip_queries(self) -> usize {
        (STRIP_ROWS / self.group).max(1)
    }

    fn width(self) -> usize {
        self.group * self.head_dim
    }
}

/// The keys and values of one head, wherever they are kept.
pub(crate) trait KeyValues {
    /// `scores[rows][32 · blocks] = q[rows][head_dim] · Kᵀ`.
    fn scores(&self, q: &[f32], rows: usize, blocks: usize, scores: &mut [f32]);

    /// `out[rows][padded head_dim] = probs[rows][32 · blocks] · V`.
    fn mix(&self, probs: &[f32], rows: usize, blocks: usize, out: &mut [f32]);
}

/// Buffers of one strip.
#[derive(Debug, Default)]
pub(crate) struct StripScratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    out: Vec<f32>,
    sums: Vec<f32>,
}

/// The first `len` elements, growing the buffer when needed; the contents are arbitrary.
pub(crate) fn fit(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if buffer.len() < len {
        buffer.resize(len, 0.0);
    }
    &mut buffer[..len]
}

/// Attention of the queries of one key/value head at positions `first..first + count`.
///
/// `q` and `out` hold the group's heads side by side in rows `ldq` and `ldo` apart. `save_lse` is
/// told the log-sum-exp of each (query, head of the group).
pub(crate) fn attend(
    shape: HeadShape,
    kv: &impl KeyValues,
    (q, ldq): (&[f32], usize),
    (first, count): (usize, usize),
    (out, ldo): (&mut [f32], usize),
    mut save_lse: impl FnMut(usize, usize, f32),
    scratch: &mut StripScratch,
) {
    let HeadShape { head_dim, group } = shape;
    let padded_dim = padded(head_dim);
    for start in (0..count).step_by(shape.strip_queries()) {
        let queries = shape.strip_queries().min(count - start);
        let rows = queries * group;
        let blocks = (first + start + queries - 1) / PANEL + 1;
        let ld = blocks * PANEL;
        let q_rows = fit(&mut scratch.q, rows * head_dim);
        gather_scaled(shape, (&q[start * ldq..], ldq), q_rows, shape.scale());
        let scores = fit(&mut scratch.scores, rows * ld);
        kv.scores(q_rows, rows, blocks, scores);
        mask(scores, ld, first + start, group);
        let (maxima, sums) = fit(&mut scratch.sums, 2 * rows).split_at_mut(rows);
        math::exp_rows(scores, ld, maxima, sums);
        for (row, (max, sum)) in maxima.iter().zip(&*sums).enumerate() {
            save_lse(start + row / group, row % group, max + sum.ln());
        }
        let mixed = fit(&mut scratch.out, rows * padded_dim);
        kv.mix(scores, rows, blocks, mixed);
        for (row, (mixed, sum)) in mixed.chunks_exact(padded_dim).zip(&*sums).enumerate() {
            let at = (start + row / group) * ldo + row % group * head_dim;
            let inverse = 1.0 / sum;
            for (to, from) in out[at..at + head_dim].iter_mut().zip(mixed) {
                *to = from * inverse;
            }
        }
    }
}

/// Copies strided rows of a group of heads to one row a head, times `scale`.
fn gather_scaled(shape: HeadShape, (from, ld): (&[f32], usize), to: &mut [f32], scale: f32) {
    for (to, from) in to.chunks_mut(shape.width()).zip(from.chunks(ld)) {
        for (x, y) in to.iter_mut().zip(from) {
            *x = y * scale;
        }
    }
}

/// Hides the keys after each row's own position. Row 0 is at position `first`.
fn mask(scores: &mut [f32], ld: usize, first: usize, group: usize) {
    for (row, scores) in scores.chunks_exact_mut(ld).enumerate() {
        scores[first + row / group + 1..].fill(f32::NEG_INFINITY);
    }
}

/// Keys and values of one head of one packed sequence, with what the backward pass needs.
#[derive(Debug, Default)]
pub(crate) struct PackedKeyValues {
    head_dim: usize,
    /// Positions, padded.
    len: usize,
    key_columns: Vec<f32>,
    key_rows: Vec<f32>,
    value_columns: Vec<f32>,
    value_rows: Vec<f32>,
}

impl PackedKeyValues {
    /// Packs keys and values of `count` positions, in rows `ld` apart.
    fn pack(&mut self, head_dim: usize, keys: &[f32], values: &[f32], ld: usize, count: usize) {
        (self.head_dim, self.len) = (head_dim, padded(count));
        pack_columns(&mut self.key_columns, head_dim, keys, ld, count);
        pack_rows(&mut self.value_rows, head_dim, values, ld, count);
    }

    /// Packs the other form of each, for the backward pass.
    fn pack_backward(
        &mut self,
        head_dim: usize,
        keys: &[f32],
        values: &[f32],
        ld: usize,
        count: usize,
    ) {
        self.pack(head_dim, keys, values, ld, count);
        pack_rows(&mut self.key_rows, head_dim, keys, ld, count);
        pack_columns(&mut self.value_columns, head_dim, values, ld, count);
    }

    /// `out[rows][32 · blocks] = x[rows][head_dim] · columns`.
    fn by_columns(&self, columns: &[f32], x: &[f32], rows: usize, blocks: usize, out: &mut [f32]) {
        let (dim, stride) = (self.head_dim, self.head_dim * PANEL);
        let shape = (rows, dim, blocks);
        matmul_panels(x, dim, shape, columns, stride, out, blocks * PANEL, Into::Set);
    }

    /// `out[rows][padded head_dim] = x[rows][32 · blocks] · panels`.
    fn by_rows(&self, panels: &[f32], x: &[f32], rows: usize, blocks: usize, out: &mut [f32]) {
        let (width, ld) = (padded(self.head_dim), blocks * PANEL);
        let shape = (rows, ld, width / PANEL);
        matmul_panels(x, ld, shape, panels, self.len * PANEL, out, width, Into::Set);
    }
}

impl KeyValues for PackedKeyValues {
    fn scores(&self, q: &[f32], rows: usize, blocks: usize, scores: &mut [f32]) {
        self.by_columns(&self.key_columns, q, rows, blocks, scores);
    }

    fn mix(&self, probs: &[f32], rows: usize, blocks: usize, out: &mut [f32]) {
        self.by_rows(&self.value_rows, probs, rows, blocks, out);
    }
}

fn pack_columns(to: &mut Vec<f32>, dim: usize, from: &[f32], ld: usize, count: usize) {
    let to = fit(to, padded(count) * dim);
    to[count / PANEL * PANEL * dim..].fill(0.0);
    for (position, row) in from.chunks(ld).take(count).enumerate() {
        write_column(&mut to[position / PANEL * PANEL * dim..], position % PANEL, &row[..dim]);
    }
}

/// Writes one position into a block of columns, `[head_dim][32]`.
pub(crate) fn write_column(block: &mut [f32], column: usize, row: &[f32]) {
    for (slot, value) in block[column..].iter_mut().step_by(PANEL).zip(row) {
        *slot = *value;
    }
}

fn pack_rows(to: &mut Vec<f32>, dim: usize, from: &[f32], ld: usize, count: usize) {
    let len = padded(count);
    let to = fit(to, len * padded(dim));
    for (panel, to) in to.chunks_exact_mut(len * PANEL).enumerate() {
        let columns = panel * PANEL..dim.min((panel + 1) * PANEL);
        if columns.len() < PANEL {
            to.fill(0.0);
        }
        to[count * PANEL..].fill(0.0);
        for (to, row) in to.chunks_exact_mut(PANEL).zip(from.chunks(ld)).take(count) {
            to[..columns.len()].copy_from_slice(&row[columns.clone()]);
        }
    }
}

/// Buffers of attention over packed sequences.
#[derive(Debug, Default)]
pub(crate) struct AttentionScratch {
    kv: PackedKeyValues,
    strip: StripScratch,
    d_out: Vec<f32>,
    d_scores: Vec<f32>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
    edge: Vec<f32>,
}

/// Shape of attention over rows `[queries | keys | values]`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub head: HeadShape,
    pub num_kv_heads: usize,
}

impl AttentionShape {
    fn num_heads(self) -> usize {
        self.num_kv_heads * self.head.group
    }

    fn query_width(self) -> usize {
        self.num_kv_heads * self.head.width()
    }

    fn qkv_width(self) -> usize {
        self.query_width() + 2 * self.num_kv_heads * self.head.head_dim
    }

    /// Where the keys and the values of a head start in a row.
    fn kv_at(self, kv_head: usize) -> (usize, usize) {
        let keys = self.query_width() + kv_head * self.head.head_dim;
        (keys, keys + self.num_kv_heads * self.head.head_dim)
    }
}

/// Attention of one whole sequence: `qkv` rows in, `out[t][queries]` and `lse[t][heads]` out.
pub(crate) fn attend_sequence(
    shape: AttentionShape,
    qkv: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let (ld, ldo, heads) = (shape.qkv_width(), shape.query_width(), shape.num_heads());
    let count = qkv.len() / ld;
    for kv_head in 0..shape.num_kv_heads {
        let (keys, values) = shape.kv_at(kv_head);
        scratch.kv.pack(shape.head.head_dim, &qkv[keys..], &qkv[values..], ld, count);
        let at = kv_head * shape.head.width();
        attend(
            shape.head,
            &scratch.kv,
            (&qkv[at..], ld),
            (0, count),
            (&mut out[at..], ldo),
            |t, head, value| lse[t * heads + kv_head * shape.head.group + head] = value,
            &mut scratch.strip,
        );
    }
}

/// What [`attend_sequence`] left, and the gradient of its output.
pub(crate) struct SavedAttention<'a> {
    pub qkv: &'a [f32],
    pub out: &'a [f32],
    pub lse: &'a [f32],
    pub d_out: &'a [f32],
}

/// Backward of [`attend_sequence`]: writes the gradient of the `qkv` rows.
pub(crate) fn attend_sequence_backward(
    shape: AttentionShape,
    saved: &SavedAttention,
    d_qkv: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let ld = shape.qkv_width();
    let count = saved.qkv.len() / ld;
    let dim = shape.head.head_dim;
    let width = padded(dim);
    for kv_head in 0..shape.num_kv_heads {
        let (keys, values) = shape.kv_at(kv_head);
        let (key_rows, value_rows) = (&saved.qkv[keys..], &saved.qkv[values..]);
        scratch.kv.pack_backward(dim, key_rows, value_rows, ld, count);
        fit(&mut scratch.d_keys, padded(count) * width).fill(0.0);
        fit(&mut scratch.d_values, padded(count) * width).fill(0.0);
        for start in (0..count).step_by(shape.head.strip_queries()) {
            strip_backward(shape, kv_head, start, count, saved, d_qkv, scratch);
        }
        let gradients =
            scratch.d_keys.chunks_exact(width).zip(scratch.d_values.chunks_exact(width));
        for (row, (d_key, d_value)) in d_qkv.chunks_exact_mut(ld).zip(gradients) {
            row[keys..keys + dim].copy_from_slice(&d_key[..dim]);
            row[values..values + dim].copy_from_slice(&d_value[..dim]);
        }
    }
}

/// One strip of queries: writes their gradient, adds to those of keys and values.
fn strip_backward(
    shape: AttentionShape,
    kv_head: usize,
    start: usize,
    count: usize,
    saved: &SavedAttention,
    d_qkv: &mut [f32],
    scratch: &mut AttentionScratch,
) {
    let AttentionScratch { kv, strip, d_out, d_scores, d_keys, d_values, edge } = scratch;
    let HeadShape { head_dim: dim, group } = shape.head;
    let (ld, ldo, width) = (shape.qkv_width(), shape.query_width(), padded(dim));
    let queries = shape.head.strip_queries().min(count - start);
    let (rows, blocks) = (queries * group, (start + queries - 1) / PANEL + 1);
    let len = blocks * PANEL;
    let at = kv_head * shape.head.width();

    let q = fit(&mut strip.q, rows * dim);
    gather_scaled(shape.head, (&saved.qkv[start * ld + at..], ld), q, shape.head.scale());
    let d_out = fit(d_out, rows * dim);
    gather_scaled(shape.head, (&saved.d_out[start * ldo + at..], ldo), d_out, 1.0);

    let probs = fit(&mut strip.scores, rows * len);
    kv.by_columns(&kv.key_columns, q, rows, blocks, probs);
    mask(probs, len, start, group);
    let row_lse = fit(&mut strip.sums, rows);
    for (row, lse) in row_lse.iter_mut().enumerate() {
        let heads = &saved.lse[(start + row / group) * shape.num_heads()..];
        *lse = heads[kv_head * group + row % group];
    }
    math::exp_shifted_rows(probs, len, row_lse);

    let d_scores = fit(d_scores, rows * len);
    kv.by_columns(&kv.value_columns, d_out, rows, blocks, d_scores);
    // The sums p · dp of each row, which equal d_out · out.
    for (row, sum) in row_lse.iter_mut().enumerate() {
        let out = &saved.out[(start + row / group) * ldo + at + row % group * dim..][..dim];
        *sum = math::dot(&d_out[row * dim..][..dim], out);
    }
    math::softmax_backward_rows(probs, d_scores, len, row_lse);

    matmul_tn((probs, len), (d_out, dim), (len, dim, rows), (d_values, width), edge);
    matmul_tn((d_scores, len), (q, dim), (len, dim, rows), (d_keys, width), edge);
    let d_q = fit(&mut strip.out, rows * width);
    kv.by_rows(&kv.key_rows, d_scores, rows, blocks, d_q);
    let scale = shape.head.scale();
    for (row, d_q) in d_q.chunks_exact(width).enumerate() {
        let to = &mut d_qkv[(start + row / group) * ld + at + row % group * dim..][..dim];
        for (to, from) in to.iter_mut().zip(d_q) {
            *to = from * scale;
        }
    }
}
