//! Row-wise functions, written so that they vectorise, with sums in a fixed order of lanes.

/// Lanes of a reduction. Fixed, so that a sum has the same bits on every instruction set.
const LANES: usize = 32;

/// `exp(x)` within 2e-7 relative, exactly 0 below -87, for `x` at most 88.
///
/// Range reduction by powers of two and a polynomial of degree 6 (as in Cephes' `expf`), without
/// branches, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// Adding this rounds to an integer, which then lies in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = x.clamp(-87.0, 88.0);
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_199_9e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 0.166_666_65);
    p = p.mul_add(r, 0.5);
    p = (r * r).mul_add(p, r + 1.0);
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    if x < -87.0 { 0.0 } else { scaled }
}

/// Adds the lanes up in pairs.
#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn dot_lanes(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    for (x, y) in whole_a.iter().zip(whole_b) {
        for i in 0..LANES {
            lanes[i] = x[i].mul_add(y[i], lanes[i]);
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(rest_a).zip(rest_b) {
        *lane = x.mul_add(*y, *lane);
    }
    sum_lanes(lanes)
}

#[inline(always)]
fn max_lanes(row: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = row.as_chunks::<LANES>();
    for x in whole {
        for i in 0..LANES {
            lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
        }
    }
    let mut max = rest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for lane in lanes {
        max = if lane > max { lane } else { max };
    }
    max
}

/// Replaces `row` by `exp(row - max)` and gives the sum.
#[inline(always)]
fn exp_sum(row: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (whole, rest) = row.as_chunks_mut::<LANES>();
    for x in whole {
        for i in 0..LANES {
            x[i] = exp(x[i] - max);
            lanes[i] += x[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = exp(*x - max);
        *lane += *x;
    }
    sum_lanes(lanes)
}

vectorized! {
    /// Sum of products of two rows.
    pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_lanes(a, b)
    }
}

vectorized! {
    /// Replaces each row of `width` by `exp(row - max)` and gives the maxima and sums.
    pub(crate) fn exp_rows(rows: &mut [f32], width: usize, maxima: &mut [f32], sums: &mut [f32]) {
        let rows = rows.chunks_exact_mut(width);
        for ((row, max), sum) in rows.zip(maxima).zip(sums) {
            *max = max_lanes(row);
            *sum = exp_sum(row, *max);
        }
    }
}

vectorized! {
    /// [`exp_rows`] that goes on from the maxima and sums of what came before: rescales the sums,
    /// and the rows of `mixed`, to the new maxima.
    pub(crate) fn exp_rows_onward(
        rows: &mut [f32],
        width: usize,
        maxima: &mut [f32],
        sums: &mut [f32],
        mixed: &mut [f32],
        mixed_width: usize,
    ) {
        let rows = rows.chunks_exact_mut(width).zip(mixed.chunks_exact_mut(mixed_width));
        for (((row, mixed), max), sum) in rows.zip(maxima).zip(sums) {
            let found = max_lanes(row);
            let new = if found > *max { found } else { *max };
            let scale = exp(*max - new);
            *sum = sum.mul_add(scale, exp_sum(row, new));
            *max = new;
            for x in mixed {
                *x *= scale;
            }
        }
    }
}

vectorized! {
    /// Replaces a row by `exp(row - max)`; gives the maximum and the sum.
    pub(crate) fn exp_row(row: &mut [f32]) -> (f32, f32) {
        let max = max_lanes(row);
        (max, exp_sum(row, max))
    }
}

/// Log-probability of a logit, given [`exp_row`] of its row. The one place where it is defined,
/// for trainer and sampler alike.
pub(crate) fn logprob(logit: f32, max: f32, sum: f32) -> f32 {
    logit - max - sum.ln()
}

vectorized! {
    /// Replaces each row of `width` by `exp(row - shift[r])`: probabilities from scores and their
    /// log-sum-exp.
    pub(crate) fn exp_shifted_rows(rows: &mut [f32], width: usize, shift: &[f32]) {
        for (row, shift) in rows.chunks_exact_mut(width).zip(shift) {
            for x in row {
                *x = exp(*x - shift);
            }
        }
    }
}

vectorized! {
    /// `d_scores = probs * (d_probs - d_sum[r])` for rows of `width`, into `d_probs`.
    pub(crate) fn softmax_backward_rows(
        probs: &[f32],
        d_probs: &mut [f32],
        width: usize,
        d_sum: &[f32],
    ) {
        let rows = probs.chunks_exact(width).zip(d_probs.chunks_exact_mut(width));
        for ((p, dp), sum) in rows.zip(d_sum) {
            for (dp, p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - sum);
            }
        }
    }
}

vectorized! {
    /// `RMSNorm` (Zhang & Sennrich, arXiv 1910.07467) of rows of `weight.len()`:
    /// `out = x * inv_rms * weight`, `inv_rms = (mean(x²) + eps)^-1/2`.
    pub(crate) fn rms_norm(
        x: &[f32],
        weight: &[f32],
        eps: f32,
        out: &mut [f32],
        inv_rms: &mut [f32],
    ) {
        rms_norm_inline(x, weight, eps, out, inv_rms);
    }
}

/// [`rms_norm`] for callers already inside a dispatch.
#[inline(always)]
pub(crate) fn rms_norm_inline(
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
    inv_rms: &mut [f32],
) {
    let width = weight.len();
    let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
    for ((x, out), inv) in rows.zip(inv_rms.iter_mut()) {
        let scale = 1.0 / (dot_lanes(x, x) / width as f32 + eps).sqrt();
        *inv = scale;
        for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
            *out = x * scale * w;
        }
    }
}

vectorized! {
    /// Applies what [`rms_norm`] did, given its `inv_rms`.
    pub(crate) fn rms_norm_again(x: &[f32], weight: &[f32], inv_rms: &[f32], out: &mut [f32]) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), scale) in rows.zip(inv_rms) {
            for ((out, x), w) in out.iter_mut().zip(x).zip(weight) {
                *out = x * scale * w;
            }
        }
    }
}

vectorized! {
    /// Backward of [`rms_norm`]: adds to `d_x`.
    pub(crate) fn rms_norm_backward(
        x: &[f32],
        weight: &[f32],
        inv_rms: &[f32],
        d_out: &[f32],
        d_x: &mut [f32],
    ) {
        let width = weight.len();
        let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width));
        for (((x, d_out), d_x), &inv) in rows.zip(d_x.chunks_exact_mut(width)).zip(inv_rms) {
            rms_norm_row_backward(x, weight, inv, d_out, d_x);
        }
    }
}

/// One row of [`rms_norm_backward`], for callers already inside a dispatch.
#[inline(always)]
pub(crate) fn rms_norm_row_backward(
    x: &[f32],
    weight: &[f32],
    inv: f32,
    d_out: &[f32],
    d_x: &mut [f32],
) {
    let width = weight.len();
    let (x, d_out, d_x) = (&x[..width], &d_out[..width], &mut d_x[..width]);
    let mut lanes = [0.0f32; LANES];
    for start in (0..width).step_by(LANES) {
        let end = (start + LANES).min(width);
        for i in start..end {
            lanes[i - start] = (d_out[i] * weight[i]).mul_add(x[i], lanes[i - start]);
        }
    }
    let coefficient = sum_lanes(lanes) * inv * inv * inv / width as f32;
    for i in 0..width {
        d_x[i] += (d_out[i] * weight[i]).mul_add(inv, -(coefficient * x[i]));
    }
}

vectorized! {
    /// The other half of the backward of [`rms_norm`]: adds to the gradient of the weights from
    /// column `first` on, row after row. Rows are `width` wide.
    pub(crate) fn rms_norm_weight_backward(
        x: &[f32],
        inv_rms: &[f32],
        d_out: &[f32],
        width: usize,
        first: usize,
        d_weight: &mut [f32],
    ) {
        let rows = x.chunks_exact(width).zip(d_out.chunks_exact(width));
        for ((x, d_out), &inv) in rows.zip(inv_rms) {
            add_scaled_products(&x[first..], inv, &d_out[first..], d_weight);
        }
    }
}

vectorized! {
    /// [`rms_norm_weight_backward`] of a norm over each of `heads` heads side by side in rows of `x`
    /// and `d_out`, which lie the given strides apart; `inv_rms` is `[t][heads]`.
    pub(crate) fn head_norm_backward(
        x: (&[f32], usize),
        inv_rms: &[f32],
        d_out: (&[f32], usize),
        heads: usize,
        d_weight: &mut [f32],
    ) {
        let ((x, ldx), (d_out, ldd)) = (x, d_out);
        let dim = d_weight.len();
        let rows = x.chunks(ldx).zip(d_out.chunks(ldd));
        for ((x, d_out), inv_rms) in rows.zip(inv_rms.chunks_exact(heads)) {
            let per_head = x.chunks_exact(dim).zip(d_out.chunks_exact(dim));
            for ((x, d_out), &inv) in per_head.zip(inv_rms) {
                add_scaled_products(x, inv, d_out, d_weight);
            }
        }
    }
}

/// `sums += x * inv * d_out`, for callers already inside a dispatch.
#[inline(always)]
pub(crate) fn add_scaled_products(x: &[f32], inv: f32, d_out: &[f32], sums: &mut [f32]) {
    for ((sum, x), dy) in sums.iter_mut().zip(x).zip(d_out) {
        *sum = (x * inv).mul_add(*dy, *sum);
    }
}

vectorized! {
    /// `SwiGLU` (Shazeer, arXiv 2002.05202): rows of `gate_up` are `[gate | up]`, each half as wide as a
    /// row of `out`; `out = silu(gate) * up`.
    pub(crate) fn swiglu(gate_up: &[f32], width: usize, out: &mut [f32]) {
        for (gu, out) in gate_up.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
            let (gate, up) = gu.split_at(width);
            for ((out, g), u) in out.iter_mut().zip(gate).zip(up) {
                *out = g / (1.0 + exp(-g)) * u;
            }
        }
    }
}

vectorized! {
    /// Backward of [`swiglu`]: writes the gradient of `[gate | up]` rows, and replaces `d_out` by
    /// what [`swiglu`] gave.
    pub(crate) fn swiglu_backward(
        gate_up: &[f32],
        width: usize,
        d_out: &mut [f32],
        d_gate_up: &mut [f32],
    ) {
        let rows = gate_up.chunks_exact(2 * width).zip(d_out.chunks_exact_mut(width));
        for ((gu, d_out), d_gu) in rows.zip(d_gate_up.chunks_exact_mut(2 * width)) {
            let (gate, up) = gu.split_at(width);
            let (d_gate, d_up) = d_gu.split_at_mut(width);
            for i in 0..width {
                let denominator = 1.0 + exp(-gate[i]);
                let sigmoid = 1.0 / denominator;
                let silu = gate[i] * sigmoid;
                d_up[i] = d_out[i] * silu;
                d_gate[i] = d_out[i] * up[i] * sigmoid.mul_add(gate[i] - silu, sigmoid);
                // In the order of operations of the forward pass.
                d_out[i] = gate[i] / denominator * up[i];
            }
        }
    }
}

/// Adds `bias` to every row.
pub(crate) fn add_bias(rows: &mut [f32], bias: &[f32]) {
    for row in rows.chunks_exact_mut(bias.len()) {
        for (x, b) in row.iter_mut().zip(bias) {
            *x += b;
        }
    }
}

/// `to += from`.
pub(crate) fn add_assign(to: &mut [f32], from: &[f32]) {
    for (x, y) in to.iter_mut().zip(from) {
        *x += y;
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are meant")]
mod tests {
    use super::*;

    #[test]
    fn exp_is_accurate_and_vanishes() {
        let mut x = -87.0f32;
        while x < 88.0 {
            let exact = f64::from(x).exp();
            assert!((f64::from(exp(x)) / exact - 1.0).abs() < 3e-7, "exp({x})");
            x += 0.0137;
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
    }

    #[test]
    fn a_wider_row_of_nothing_changes_no_bits() {
        let row: Vec<f32> = (0..64).map(|i| (i as f32 * 0.37).sin()).collect();
        let mut wide = row.clone();
        wide.resize(160, f32::NEG_INFINITY);
        let (mut a, mut b) = (row.clone(), wide);
        assert_eq!(exp_row(&mut a), exp_row(&mut b));
        assert_eq!(a[..], b[..64]);
        assert!(b[64..].iter().all(|x| *x == 0.0));
    }

    #[test]
    fn dot_takes_every_element_once() {
        for n in [1usize, 5, 31, 32, 33, 100] {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let expected: f32 = a.iter().map(|x| x * x).sum();
            assert_eq!(dot(&a, &a), expected);
        }
    }
}
