//! The backward pass of attention, for a range of keys of one head at a time.
//!
//! In [`Precision::Bf16`] its five products take operands rounded to bfloat16. Queries, keys and
//! values were rounded before the forward pass saw them, so the probabilities it had come out again;
//! probabilities and gradients are rounded here.

use std::ops::Range;

use super::{HeadShape, fit, gather, mask, pack_columns, pack_rows, write_column};
use crate::kernels::bf16::{
    PairsView, SoftmaxPairs, SoftmaxRows, matmul_pairs, pair_rows, softmax_backward_pairs,
    stack_rows,
};
use crate::kernels::gemm::{Into, PANEL, Precision, matmul_panels, matmul_tn, padded};
use crate::kernels::math;

/// Most query rows of a strip, whose products sum over its rows; even.
const BACKWARD_ROWS: usize = 48;

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
    /// Of the products.
    pub precision: Precision,
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
    pairs: PairScratch,
}

/// Operands in pairs, for [`Precision::Bf16`].
#[derive(Debug, Default)]
struct PairScratch {
    /// `[panel][head_dim / 2][32]`.
    key_columns: Vec<u32>,
    value_columns: Vec<u32>,
    /// `[head_dim / 32][positions / 2][32]`.
    key_rows: Vec<u32>,
    /// Pairs along the rows of a strip, `[rows][padded head_dim / 2]`.
    q: Vec<u32>,
    d_out: Vec<u32>,
    /// Pairs of two rows, `[rows / 2][padded head_dim]`.
    q_stacked: Vec<u32>,
    d_out_stacked: Vec<u32>,
    /// Pairs of two rows, `[rows / 2][keys]`.
    probs: Vec<u32>,
    d_scores_stacked: Vec<u32>,
    /// Pairs along the rows, `[rows][keys / 2]`.
    d_scores: Vec<u32>,
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
        pack_rows(&mut scratch.key_rows, dim, keys, self.ld, range.len());
        for (from, to, pairs) in [
            (keys, &mut scratch.key_columns, &mut scratch.pairs.key_columns),
            (values, &mut scratch.value_columns, &mut scratch.pairs.value_columns),
        ] {
            match self.precision {
                Precision::F32 => pack_columns(to, dim, from, self.ld, range.len()),
                Precision::Bf16 => pack_pair_columns(pairs, dim, from, self.ld, range.len()),
            }
        }
        if self.precision == Precision::Bf16 {
            let rows = &scratch.key_rows[..padded(range.len()) * width];
            stack_rows(rows, PANEL, fit(&mut scratch.pairs.key_rows, rows.len() / 2));
        }
        fit(&mut scratch.d_keys, padded(range.len()) * width).fill(0.0);
        fit(&mut scratch.d_values, padded(range.len()) * width).fill(0.0);
        let strip = (BACKWARD_ROWS / self.shape.group).max(1);
        for start in (range.start..count).step_by(strip) {
            self.strip(&range, (start, strip.min(count - start)), d_q, scratch);
        }
        let found = scratch.d_keys.chunks_exact(width).zip(scratch.d_values.chunks_exact(width));
        // The queries of a strip have the scale in single precision only.
        let scale = if self.precision == Precision::Bf16 { self.shape.scale() } else { 1.0 };
        for (row, (d_key, d_value)) in d_kv.chunks_exact_mut(2 * dim).zip(found) {
            for (to, from) in row[..dim].iter_mut().zip(d_key) {
                *to = from * scale;
            }
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
        let q = fit(&mut scratch.q, rows * width);
        let from = &self.qkv[start * self.ld + self.at.0..];
        let is_single = self.precision == Precision::F32;
        let scale = if is_single { self.shape.scale() } else { 1.0 };
        gather(self.shape, from, self.ld, q, width, scale);
        let d_out = fit(&mut scratch.d_out, rows * width);
        let from = &self.d_out[start * self.ldo + self.out_at..];
        gather(self.shape, from, self.ldo, d_out, width, 1.0);
        let row_lse = fit(&mut scratch.row_lse, rows);
        row_lse.copy_from_slice(&self.lse[start * group..][..rows]);
        let row_sum = fit(&mut scratch.row_sum, rows);
        for (to, from) in row_sum.chunks_mut(group).zip(self.d_sum.chunks(self.heads).skip(start)) {
            to.copy_from_slice(&from[self.head_at..][..group]);
        }
        let strip = Strip {
            shape: self.shape,
            rows,
            panels: seen.div_ceil(PANEL),
            range_len: padded(range.len()),
            first: (start, range.start),
            into: if range.start == 0 { Into::Set } else { Into::Add },
        };
        let d_q = &mut d_q[start * group * width..][..rows * width];
        match self.precision {
            Precision::F32 => strip.products(d_q, scratch),
            Precision::Bf16 => strip.products_of_pairs(d_q, scratch),
        }
    }
}

/// The products of a strip, whose operands are gathered.
struct Strip {
    shape: HeadShape,
    rows: usize,
    /// Of keys that some row sees.
    panels: usize,
    /// Positions of the range of keys, padded.
    range_len: usize,
    /// Position of the first query and of the first key.
    first: (usize, usize),
    /// What becomes of the queries' gradient.
    into: Into,
}

impl Strip {
    fn products(&self, d_q: &mut [f32], scratch: &mut BackwardScratch) {
        let (rows, panels, HeadShape { head_dim: dim, group }) =
            (self.rows, self.panels, self.shape);
        let (width, len, stride) = (padded(dim), panels * PANEL, dim * PANEL);
        let (q, d_out) = (&scratch.q[..rows * width], &scratch.d_out[..rows * width]);
        let probs = fit(&mut scratch.probs, rows * len);
        let (columns, shape) = (&scratch.key_columns, (rows, dim, panels));
        matmul_panels(q, width, shape, columns, stride, probs, len, Into::Set);
        mask(probs, len, self.first, group);
        math::exp_shifted_rows(probs, len, &scratch.row_lse);
        let d_scores = fit(&mut scratch.d_scores, rows * len);
        let columns = &scratch.value_columns;
        matmul_panels(d_out, width, shape, columns, stride, d_scores, len, Into::Set);
        math::softmax_backward_rows(probs, d_scores, len, &scratch.row_sum);

        let (d_values, d_keys) = (&mut scratch.d_values, &mut scratch.d_keys);
        let product = (len, width, rows);
        matmul_tn((probs, len), (d_out, width), product, (d_values, width));
        matmul_tn((d_scores, len), (q, width), product, (d_keys, width));
        let shape = (rows, len, width / PANEL);
        let stride = self.range_len * PANEL;
        matmul_panels(d_scores, len, shape, &scratch.key_rows, stride, d_q, width, self.into);
    }

    /// [`Strip::products`] of operands rounded to bfloat16. The queries come without the scale.
    fn products_of_pairs(&self, d_q: &mut [f32], scratch: &mut BackwardScratch) {
        let (rows, panels, HeadShape { head_dim: dim, group }) =
            (self.rows, self.panels, self.shape);
        let (width, len, halves) = (padded(dim), panels * PANEL, rows.div_ceil(2));
        let pairs = &mut scratch.pairs;
        let (q, d_out) = (&scratch.q[..rows * width], &scratch.d_out[..rows * width]);
        for (from, along, stacked) in [
            (q, &mut pairs.q, &mut pairs.q_stacked),
            (d_out, &mut pairs.d_out, &mut pairs.d_out_stacked),
        ] {
            pair_rows(from, width, fit(along, rows * width / 2));
            stack_rows(from, width, fit(stacked, halves * width));
        }
        let scores = fit(&mut scratch.probs, rows * len);
        let d_probs = fit(&mut scratch.d_scores, rows * len);
        let (along, k) = (width / 2, dim.div_ceil(2));
        for (a, columns, to) in [
            (&pairs.q, &pairs.key_columns, &mut *scores),
            (&pairs.d_out, &pairs.value_columns, &mut *d_probs),
        ] {
            let a = PairsView { data: a, row_stride: along, k_stride: 1 };
            matmul_pairs(a, (rows, k, panels), (columns, PANEL, k * PANEL), (to, len), Into::Set);
        }
        mask(scores, len, self.first, group);
        let probs = fit(&mut pairs.probs, halves * len);
        let stacked = fit(&mut pairs.d_scores_stacked, halves * len);
        let d_scores = fit(&mut pairs.d_scores, rows * len / 2);
        let from = SoftmaxRows {
            scores,
            d_probs,
            width: len,
            scale: self.shape.scale(),
            lse: &scratch.row_lse[..rows],
            sums: &scratch.row_sum[..rows],
        };
        let to = SoftmaxPairs { probs: &mut *probs, stacked: &mut *stacked, along: &mut *d_scores };
        softmax_backward_pairs(from, to);

        for (a, b, to) in [
            (&*probs, &pairs.d_out_stacked, &mut scratch.d_values),
            (&*stacked, &pairs.q_stacked, &mut scratch.d_keys),
        ] {
            let a = PairsView { data: a, row_stride: 1, k_stride: len };
            let shape = (len, halves, width / PANEL);
            matmul_pairs(a, shape, (b, width, PANEL), (to, width), Into::Add);
        }
        let a = PairsView { data: d_scores, row_stride: len / 2, k_stride: 1 };
        let b = (&pairs.key_rows[..], PANEL, self.range_len / 2 * PANEL);
        matmul_pairs(a, (rows, len / 2, width / PANEL), b, (d_q, width), self.into);
    }
}

/// [`pack_columns`] of pairs along the rows, `[panel][head_dim / 2][32]`.
fn pack_pair_columns(to: &mut Vec<u32>, dim: usize, from: &[f32], ld: usize, count: usize) {
    let half = dim.div_ceil(2);
    let to = fit(to, padded(count) * half);
    to[count / PANEL * PANEL * half..].fill(0);
    let mut pairs = vec![0; half];
    for (position, row) in from.chunks(ld).take(count).enumerate() {
        pair_rows(&row[..dim], dim, &mut pairs);
        write_column(&mut to[position / PANEL * PANEL * half..], position % PANEL, &pairs);
    }
}
