//! Causal attention with shared key/value heads, in strips of a few query rows.
//!
//! A strip takes the scores of its rows against a block of 1,024 keys at a time, keeping a running
//! maximum and sum (online softmax, Milakov & Gimelshein, arXiv 1805.02867), so memory is linear in
//! the length and a block of keys and values stays in cache while all strips pass by. The backward
//! pass computes the scores again from the saved log-sum-exp (as FlashAttention-2 does, Dao, arXiv
//! 2307.08691), for a range of keys at a time.
//!
//! Keys come in panels of 32 positions that start at multiples of 32. A masked key has probability
//! exactly 0 and so adds nothing, bit for bit: a query's result is the same whether it is computed
//! alone against a cache or in the middle of a training batch.
//!
//! Layouts: `columns` are `[panel][head_dim][32]` (for `x · Kᵀ`), `rows` are
//! `[head_dim / 32][position][32]` (for `p · V`), padded with zeros.

use std::ops::Range;

use crate::kernels::gemm::{Into, PANEL, matmul_panels, matmul_tn, padded};
use crate::kernels::math;

/// Most query rows of a strip (the micro-kernel's tile), unless one position has more heads.
const STRIP_ROWS: usize = 12;

/// As `STRIP_ROWS`, for the backward pass, whose products sum over a strip's rows.
const BACKWARD_ROWS: usize = 48;

/// Keys whose scores exist at once. The places where the running softmax is rescaled depend on it,
/// and so do the bits of longer sequences.
const KEY_BLOCK: usize = 1024;

/// Keys that one part of the backward pass takes.
pub(crate) const KEY_RANGE: usize = 256;

/// One key/value head and its queries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadShape {
    pub head_dim: usize,
    /// Query heads that share the key/value head.
    pub group: usize,
}

impl HeadShape {
    /// What scores are multiplied by.
    pub(crate) fn scale(self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }

    /// Width of a row of the group's queries.
    pub(crate) fn width(self) -> usize {
        self.group * self.head_dim
    }

    /// The same, each head padded to whole panels.
    pub(crate) fn padded_width(self) -> usize {
        self.group * padded(self.head_dim)
    }
}

/// The keys and values of one head, wherever they are kept. `panels` counts in panels of 32
/// positions.
pub(crate) trait KeyValues {
    /// `scores[rows][32 · panels] = q[rows][head_dim] · Kᵀ`.
    fn scores(&self, q: &[f32], rows: usize, panels: Range<usize>, scores: &mut [f32]);

    /// `out[rows][padded head_dim] (+)= probs[rows][32 · panels] · V`.
    fn mix(&self, probs: &[f32], rows: usize, panels: Range<usize>, out: &mut [f32], into: Into);
}

/// Buffers of one thread.
#[derive(Debug, Default)]
pub(crate) struct StripScratch {
    q: Vec<f32>,
    scores: Vec<f32>,
    /// `p · V` of all rows, not yet divided by their sums.
    mixed: Vec<f32>,
    maxima: Vec<f32>,
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
    fit(&mut scratch.mixed, count * group * padded_dim);
    fit(&mut scratch.maxima, count * group);
    fit(&mut scratch.sums, count * group);
    let strip = (STRIP_ROWS / group).max(1);
    for keys in (0..first + count).step_by(KEY_BLOCK) {
        // Strips that end before these keys have nothing to see here.
        let unseeing = keys.saturating_sub(first) / strip * strip;
        for start in (unseeing..count).step_by(strip) {
            let queries = strip.min(count - start);
            let q = (&q[start * ldq..], ldq);
            attend_strip(shape, kv, q, (first, start, queries), keys, scratch);
        }
    }
    let rows = scratch.mixed.chunks_exact(padded_dim).zip(scratch.maxima.iter().zip(&scratch.sums));
    for (row, (mixed, (max, sum))) in rows.take(count * group).enumerate() {
        let (query, head) = (row / group, row % group);
        save_lse(query, head, max + sum.ln());
        let inverse = 1.0 / sum;
        let to = &mut out[query * ldo + head * head_dim..][..head_dim];
        for (to, from) in to.iter_mut().zip(mixed) {
            *to = from * inverse;
        }
    }
}

/// A strip of `queries` from `start` on, against the block of keys that begins at `keys`.
fn attend_strip(
    shape: HeadShape,
    kv: &impl KeyValues,
    (q, ldq): (&[f32], usize),
    (first, start, queries): (usize, usize, usize),
    keys: usize,
    scratch: &mut StripScratch,
) {
    let HeadShape { head_dim, group } = shape;
    let (padded_dim, rows) = (padded(head_dim), queries * group);
    let last = first + start + queries - 1;
    let panels = keys / PANEL..(last / PANEL + 1).min((keys + KEY_BLOCK) / PANEL);
    let ld = panels.len() * PANEL;
    let q_rows = fit(&mut scratch.q, rows * head_dim);
    gather_scaled(shape, (q, ldq), q_rows, shape.scale());
    let scores = fit(&mut scratch.scores, rows * ld);
    kv.scores(q_rows, rows, panels.clone(), scores);
    mask(scores, ld, (first + start, keys), group);
    let own = start * group..start * group + rows;
    let (maxima, sums) = (&mut scratch.maxima[own.clone()], &mut scratch.sums[own]);
    let mixed = &mut scratch.mixed[start * group * padded_dim..][..rows * padded_dim];
    if keys == 0 {
        math::exp_rows(scores, ld, maxima, sums);
        kv.mix(scores, rows, panels, mixed, Into::Set);
    } else {
        math::exp_rows_onward(scores, ld, maxima, sums, mixed, padded_dim);
        kv.mix(scores, rows, panels, mixed, Into::Add);
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

/// [`gather_scaled`], each head's row padded with zeros to whole panels.
fn gather_padded(shape: HeadShape, (from, ld): (&[f32], usize), to: &mut [f32], scale: f32) {
    let (dim, width) = (shape.head_dim, padded(shape.head_dim));
    for (to, from) in to.chunks_mut(shape.padded_width()).zip(from.chunks(ld)) {
        for (to, from) in to.chunks_mut(width).zip(from.chunks(dim)) {
            for (x, y) in to.iter_mut().zip(from) {
                *x = y * scale;
            }
            to[dim..].fill(0.0);
        }
    }
}

/// Hides the keys after each row's own position. Row 0 is at position `first`, column 0 at `keys`.
fn mask(scores: &mut [f32], ld: usize, (first, keys): (usize, usize), group: usize) {
    for (row, scores) in scores.chunks_exact_mut(ld).enumerate() {
        let seen = (first + row / group + 1).saturating_sub(keys);
        scores[seen.min(ld)..].fill(f32::NEG_INFINITY);
    }
}

/// Keys and values of one head of one packed sequence.
#[derive(Debug, Default)]
pub(crate) struct PackedKeyValues {
    head_dim: usize,
    /// Positions, padded.
    len: usize,
    key_columns: Vec<f32>,
    value_rows: Vec<f32>,
}

impl PackedKeyValues {
    /// Packs keys and values of `count` positions, in rows `ld` apart.
    pub(crate) fn pack(
        &mut self,
        head_dim: usize,
        keys: &[f32],
        values: &[f32],
        ld: usize,
        count: usize,
    ) {
        (self.head_dim, self.len) = (head_dim, padded(count));
        pack_columns(&mut self.key_columns, head_dim, keys, ld, count);
        pack_rows(&mut self.value_rows, head_dim, values, ld, count);
    }
}

impl KeyValues for PackedKeyValues {
    fn scores(&self, q: &[f32], rows: usize, panels: Range<usize>, scores: &mut [f32]) {
        let (dim, stride, count) = (self.head_dim, self.head_dim * PANEL, panels.len());
        let columns = &self.key_columns[panels.start * stride..];
        let (shape, ld) = ((rows, dim, count), count * PANEL);
        matmul_panels(q, dim, shape, columns, stride, scores, ld, Into::Set);
    }

    fn mix(&self, probs: &[f32], rows: usize, panels: Range<usize>, out: &mut [f32], into: Into) {
        let (width, ld) = (padded(self.head_dim), panels.len() * PANEL);
        let values = &self.value_rows[panels.start * PANEL * PANEL..];
        let shape = (rows, ld, width / PANEL);
        matmul_panels(probs, ld, shape, values, self.len * PANEL, out, width, into);
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

/// One key/value head of one sequence, for the backward pass.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BackwardHead<'a> {
    pub shape: HeadShape,
    /// Rows `[queries | keys | values]` of the sequence, `[t][ld]`.
    pub qkv: &'a [f32],
    pub ld: usize,
    /// Where the group's queries, the keys and the values start in a row.
    pub at: (usize, usize, usize),
    /// Log-sum-exp of the scores, `[t][group]`.
    pub lse: &'a [f32],
    /// Gradient of the output, in rows `ldo` apart, of which the group's start at `out_at`.
    pub d_out: &'a [f32],
    pub ldo: usize,
    pub out_at: usize,
    /// `d_out · out` of each head, in rows `heads` apart, of which the group's start at `head_at`.
    pub d_sum: &'a [f32],
    pub heads: usize,
    pub head_at: usize,
}

/// Buffers of the backward pass of one thread.
#[derive(Debug, Default)]
pub(crate) struct BackwardScratch {
    key_columns: Vec<f32>,
    key_rows: Vec<f32>,
    value_columns: Vec<f32>,
    q: Vec<f32>,
    d_out: Vec<f32>,
    probs: Vec<f32>,
    d_scores: Vec<f32>,
    row_lse: Vec<f32>,
    row_sum: Vec<f32>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
}

impl BackwardHead<'_> {
    /// Backward of [`attend`] for the keys of `range`, which starts at a multiple of 32: adds to
    /// `d_q`, `[t][group][padded head_dim]`, before the scale, and writes `d_kv`,
    /// `[range][keys | values]`. Ranges come in order, from 0 on: the first one sets `d_q`.
    pub(crate) fn backward(
        &self,
        range: Range<usize>,
        d_q: &mut [f32],
        d_kv: &mut [f32],
        scratch: &mut BackwardScratch,
    ) {
        let dim = self.shape.head_dim;
        let (width, count) = (padded(dim), self.qkv.len() / self.ld);
        let rows = &self.qkv[range.start * self.ld..];
        let (keys, values) = (&rows[self.at.1..], &rows[self.at.2..]);
        pack_columns(&mut scratch.key_columns, dim, keys, self.ld, range.len());
        pack_rows(&mut scratch.key_rows, dim, keys, self.ld, range.len());
        pack_columns(&mut scratch.value_columns, dim, values, self.ld, range.len());
        fit(&mut scratch.d_keys, padded(range.len()) * width).fill(0.0);
        fit(&mut scratch.d_values, padded(range.len()) * width).fill(0.0);
        let strip = (BACKWARD_ROWS / self.shape.group).max(1);
        for start in (range.start..count).step_by(strip) {
            self.strip(&range, (start, strip.min(count - start)), d_q, scratch);
        }
        let found = scratch.d_keys.chunks_exact(width).zip(scratch.d_values.chunks_exact(width));
        for (row, (d_key, d_value)) in d_kv.chunks_exact_mut(2 * dim).zip(found) {
            row[..dim].copy_from_slice(&d_key[..dim]);
            row[dim..].copy_from_slice(&d_value[..dim]);
        }
    }

    /// A strip of `queries` from `start` on.
    fn strip(
        &self,
        range: &Range<usize>,
        (start, queries): (usize, usize),
        d_q: &mut [f32],
        scratch: &mut BackwardScratch,
    ) {
        let HeadShape { head_dim: dim, group } = self.shape;
        let (width, rows) = (padded(dim), queries * group);
        let seen = range.end.min(start + queries) - range.start;
        let panels = seen.div_ceil(PANEL);
        let (len, stride) = (panels * PANEL, dim * PANEL);

        let q = fit(&mut scratch.q, rows * width);
        let from = (&self.qkv[start * self.ld + self.at.0..], self.ld);
        gather_padded(self.shape, from, q, self.shape.scale());
        let d_out = fit(&mut scratch.d_out, rows * width);
        let from = (&self.d_out[start * self.ldo + self.out_at..], self.ldo);
        gather_padded(self.shape, from, d_out, 1.0);
        let row_lse = fit(&mut scratch.row_lse, rows);
        row_lse.copy_from_slice(&self.lse[start * group..][..rows]);
        let row_sum = fit(&mut scratch.row_sum, rows);
        for (to, from) in row_sum.chunks_mut(group).zip(self.d_sum.chunks(self.heads).skip(start)) {
            to.copy_from_slice(&from[self.head_at..][..group]);
        }

        let probs = fit(&mut scratch.probs, rows * len);
        let (columns, shape) = (&scratch.key_columns, (rows, dim, panels));
        matmul_panels(q, width, shape, columns, stride, probs, len, Into::Set);
        mask(probs, len, (start, range.start), group);
        math::exp_shifted_rows(probs, len, row_lse);
        let d_scores = fit(&mut scratch.d_scores, rows * len);
        let columns = &scratch.value_columns;
        matmul_panels(d_out, width, shape, columns, stride, d_scores, len, Into::Set);
        math::softmax_backward_rows(probs, d_scores, len, row_sum);

        let (d_values, d_keys) = (&mut scratch.d_values, &mut scratch.d_keys);
        let product = (len, width, rows);
        matmul_tn((probs, len), (d_out, width), product, (d_values, width));
        matmul_tn((d_scores, len), (q, width), product, (d_keys, width));
        let into = if range.start == 0 { Into::Set } else { Into::Add };
        let d_q = &mut d_q[start * group * width..][..rows * width];
        let shape = (rows, len, width / PANEL);
        let stride = padded(range.len()) * PANEL;
        matmul_panels(d_scores, len, shape, &scratch.key_rows, stride, d_q, width, into);
    }
}
