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

mod backward;

use std::ops::Range;

use crate::kernels::gemm::{Into, PANEL, matmul_panels, padded};
use crate::kernels::{math, vectorized};

pub(crate) use backward::{BackwardHead, BackwardScratch};

/// Most query rows of a strip (the micro-kernel's tile), unless one position has more heads.
const STRIP_ROWS: usize = 12;

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
pub(crate) fn fit<E: Copy + Default>(buffer: &mut Vec<E>, len: usize) -> &mut [E] {
    if buffer.len() < len {
        buffer.resize(len, E::default());
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
    gather(shape, q, ldq, q_rows, head_dim, shape.scale());
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

vectorized! {
    /// Copies rows of a group of heads, `ld` apart, to one row of `width` a head, times `scale`,
    /// padded with zeros.
    fn gather(
        shape: HeadShape,
        from: &[f32],
        ld: usize,
        to: &mut [f32],
        width: usize,
        scale: f32,
    ) {
        let dim = shape.head_dim;
        for (to, from) in to.chunks_mut(shape.group * width).zip(from.chunks(ld)) {
            for (to, from) in to.chunks_exact_mut(width).zip(from.chunks_exact(dim)) {
                for (x, y) in to[..dim].iter_mut().zip(from) {
                    *x = y * scale;
                }
                to[dim..].fill(0.0);
            }
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
pub(crate) fn write_column<E: Copy>(block: &mut [E], column: usize, row: &[E]) {
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
