//! Matrix products whose rows do not depend on each other, bit for bit.
//!
//! One loop over tiles serves all products. It computes `C[r][j] (+)= sum_k A[r][k] * B[k][j]` for
//! a tile of a few rows and up to 32 columns, each element as one chain of fused multiply-adds in
//! the order of `k` (in [`Precision::Bf16`], of `k` in pairs). No element is ever split over `k`,
//! so an element's bits depend on its row of `A`, its column of `B` and nothing else: not on how
//! many rows the call has, nor on where in a tile a row falls. General GEMM crates give no such
//! promise (they switch kernels and block `k` by the shape of the whole product).
//!
//! Weights are packed once per update into panels of 32 columns, `[n / 32][k][32]`, so a call packs
//! nothing: at the few rows of a decode step that is most of what a general GEMM would spend.

use std::cell::RefCell;

use serde::{Deserialize, Serialize};

use super::arch;
use super::bf16::{pair, pair_rows};
use super::tile::{Panels, Product, View};

/// Columns of a panel. Packed operands and key/value blocks are multiples of this.
pub(crate) const PANEL: usize = 32;

/// Rounds up to a whole number of panels.
pub(crate) const fn padded(n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL
}

/// What the operands of matrix products are rounded to. Sums are in single precision always.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision: nothing is rounded.
    #[default]
    F32,
    /// bfloat16. Weights are kept in single precision beside (masters), and so are moments,
    /// gradients, norms and the residual stream.
    Bf16,
}

impl Precision {
    /// A number as an operand of this precision.
    #[cfg(test)]
    #[inline(always)]
    pub(crate) fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::Bf16 => super::bf16::from_bf16(super::bf16::to_bf16(x)),
        }
    }
}

/// The right operand of [`matmul`], `[k][n]`, packed into panels padded with zeros.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedMatrix {
    k: usize,
    n: usize,
    precision: Precision,
    /// `[n / 32][k][32]`; empty in [`Precision::Bf16`].
    panels: Vec<f32>,
    /// `[n / 32][ceil(k / 2)][32]` pairs; empty in [`Precision::F32`].
    pairs: Vec<u32>,
}

impl PackedMatrix {
    /// Nothing yet, to be packed in `precision`.
    pub(crate) fn new(precision: Precision) -> Self {
        Self { precision, ..Self::default() }
    }

    /// Packs `B[k][j] = weight[j][k]` of a row-major `weight`, `[n][k]`: for `y = x Wᵀ`.
    pub(crate) fn pack_transposed(&mut self, weight: &[f32], n: usize, k: usize) {
        assert_eq!(weight.len(), n * k, "weight is [n][k]");
        self.reshape(k, n);
        if self.precision == Precision::Bf16 {
            let panels = self.pairs.chunks_exact_mut(k.div_ceil(2) * PANEL);
            for (panel, rows) in panels.zip(weight.chunks(PANEL * k)) {
                let mut paired = vec![0u32; rows.len() / k * k.div_ceil(2)];
                pair_rows(rows, k, &mut paired);
                transpose(&paired, k.div_ceil(2), panel);
            }
            return;
        }
        for (panel, rows) in self.panels.chunks_exact_mut(k * PANEL).zip(weight.chunks(PANEL * k)) {
            transpose(rows, k, panel);
        }
    }

    /// Packs `B[k][j] = weight[k][j]` of a row-major `weight`, `[k][n]`: for `dx = dy W`.
    pub(crate) fn pack(&mut self, weight: &[f32], k: usize, n: usize) {
        assert_eq!(weight.len(), n * k, "weight is [k][n]");
        self.reshape(k, n);
        if self.precision == Precision::Bf16 {
            let halves = k.div_ceil(2);
            for (i, rows) in weight.chunks(2 * n).enumerate() {
                let (even, odd) = rows.split_at(n);
                for (p, even) in even.chunks(PANEL).enumerate() {
                    let to = &mut self.pairs[(p * halves + i) * PANEL..][..even.len()];
                    // A last row by itself has zeros beside it.
                    let odd = odd.get(p * PANEL..).unwrap_or_default();
                    let odd = odd.iter().copied().chain(std::iter::repeat(0.0));
                    for ((to, even), odd) in to.iter_mut().zip(even).zip(odd) {
                        *to = pair(*even, odd);
                    }
                }
            }
            return;
        }
        for (row_index, row) in weight.chunks_exact(n).enumerate() {
            for (p, part) in row.chunks(PANEL).enumerate() {
                self.panels[(p * k + row_index) * PANEL..][..part.len()].copy_from_slice(part);
            }
        }
    }

    /// `(k, n)`.
    pub(crate) fn shape(&self) -> (usize, usize) {
        (self.k, self.n)
    }

    fn reshape(&mut self, k: usize, n: usize) {
        match self.precision {
            Precision::F32 => self.panels.resize(padded(n) * k, 0.0),
            Precision::Bf16 => self.pairs.resize(padded(n) * k.div_ceil(2), 0),
        }
        (self.k, self.n) = (k, n);
    }
}

/// `to[k][32]` from up to 32 rows `from[32][k]`, in blocks that stay in the first cache.
fn transpose<E: Copy>(from: &[E], k: usize, to: &mut [E]) {
    const BLOCK: usize = 16;
    let rows = from.len() / k;
    for start in (0..k).step_by(BLOCK) {
        let end = (start + BLOCK).min(k);
        for (i, to) in (start..end).zip(to[start * PANEL..].chunks_exact_mut(PANEL)) {
            for (j, slot) in to[..rows].iter_mut().enumerate() {
                *slot = from[j * k + i];
            }
        }
    }
}

/// What a product does with the old contents of `C`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Into {
    /// Overwrites it.
    Set,
    /// Adds to it; the chain of additions starts from the old value.
    Add,
}

/// `C[m][n] (+)= A[m][k] · B`, all rows of `A` and `C` contiguous.
pub(crate) fn matmul(a: &[f32], b: &PackedMatrix, c: &mut [f32], into: Into) {
    let m = a.len().checked_div(b.k).unwrap_or(0);
    assert_eq!(c.len(), m * b.n, "C is [m][n]");
    matmul_part(a, b, 0, c, into);
}

/// As [`matmul`] with some columns of `B`, as many as `C` has for the rows of `A`, beginning with
/// `first`, a multiple of 32.
pub(crate) fn matmul_part(a: &[f32], b: &PackedMatrix, first: usize, c: &mut [f32], into: Into) {
    thread_local! {
        /// `A` in pairs.
        static PAIRS: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
    }
    let m = a.len().checked_div(b.k).unwrap_or(0);
    let n = c.len().checked_div(m).unwrap_or(0);
    assert_eq!(a.len(), m * b.k, "A is [m][k]");
    assert_eq!(c.len(), m * n, "C is [m][n]");
    assert!(first.is_multiple_of(PANEL) && first + n <= b.n, "columns of B, from a panel's first");
    assert!(n.is_multiple_of(PANEL) || first + n == b.n, "whole panels of B");
    let ldc = n;
    if b.precision == Precision::F32 {
        arch().dispatch(Product {
            a: View { data: a, row_stride: b.k, k_stride: 1 },
            b: Panels { data: &b.panels[first * b.k..], ld: PANEL, stride: b.k * PANEL },
            c,
            ldc,
            m,
            n,
            k: b.k,
            into,
        });
        return;
    }
    let k = b.k.div_ceil(2);
    PAIRS.with_borrow_mut(|pairs| {
        pairs.resize(m * k, 0);
        pair_rows(a, b.k, pairs);
        Product {
            a: View { data: pairs, row_stride: k, k_stride: 1 },
            b: Panels { data: &b.pairs[first * k..], ld: PANEL, stride: k * PANEL },
            c,
            ldc,
            m,
            n,
            k,
            into,
        }
        .run();
    });
}

/// `C[m][32·p] (+)= A[m][k] · B` for `p` panels of `B` that lie `panel_stride` apart, each
/// `[k][32]`. `lda` and `ldc` are row strides. Reads and writes whole panels.
#[expect(clippy::too_many_arguments, reason = "a strided product has this many dimensions")]
pub(crate) fn matmul_panels(
    a: &[f32],
    lda: usize,
    (m, k, num_panels): (usize, usize, usize),
    b: &[f32],
    panel_stride: usize,
    c: &mut [f32],
    ldc: usize,
    into: Into,
) {
    arch().dispatch(Product {
        a: View { data: a, row_stride: lda, k_stride: 1 },
        b: Panels { data: b, ld: PANEL, stride: panel_stride },
        c,
        ldc,
        m,
        n: num_panels * PANEL,
        k,
        into,
    });
}

/// `C[m][n] += Aᵀ · B` for row-major `A`, `[k][m]` at row stride `lda`, and `B`, `[k][n]` at row
/// stride `ldb`; `n` is a whole number of panels. For few rows `k`: they are not packed.
pub(crate) fn matmul_tn(
    (a, lda): (&[f32], usize),
    (b, ldb): (&[f32], usize),
    (m, n, k): (usize, usize, usize),
    (c, ldc): (&mut [f32], usize),
) {
    assert_eq!(n % PANEL, 0, "whole panels");
    arch().dispatch(Product {
        a: View { data: a, row_stride: 1, k_stride: lda },
        b: Panels { data: b, ld: ldb, stride: PANEL },
        c,
        ldc,
        m,
        n,
        k,
        into: Into::Add,
    });
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn values(seed: u64, n: usize) -> Vec<f32> {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
    }

    proptest! {
        #[test]
        fn products_match_the_definition(
            m in 1usize..40, n in 1usize..70, k in 1usize..300, bf16: bool, seed: u64,
        ) {
            let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
            let (a, w, c0) = (values(seed, m * k), values(seed ^ 1, n * k), values(seed ^ 2, m * n));
            let mut b = PackedMatrix::new(precision);
            b.pack_transposed(&w, n, k);
            let mut c = c0.clone();
            matmul(&a, &b, &mut c, Into::Add);
            // The same product through the other packing.
            let wt: Vec<f32> = (0..k * n).map(|i| w[(i % n) * k + i / n]).collect();
            let mut b2 = PackedMatrix::new(precision);
            b2.pack(&wt, k, n);
            let mut c2 = vec![7.0; m * n];
            matmul(&a, &b2, &mut c2, Into::Set);
            let round = |x: f32| f64::from(precision.round(x));
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|x| round(a[i * k + x]) * round(w[j * k + x])).sum();
                    let bound = 1e-5 * (k as f64).sqrt();
                    let with_old = f64::from(c0[i * n + j]) + sum;
                    prop_assert!((f64::from(c[i * n + j]) - with_old).abs() < bound);
                    prop_assert!((f64::from(c2[i * n + j]) - sum).abs() < bound);
                }
            }
        }

        #[test]
        fn few_rows_need_no_packing(m in 1usize..40, panels in 1usize..3, k in 1usize..30, seed: u64) {
            let n = panels * PANEL;
            let (a, b, c0) = (values(seed, k * m), values(seed ^ 1, k * n), values(seed ^ 2, m * n));
            let mut c = c0.clone();
            matmul_tn((&a, m), (&b, n), (m, n, k), (&mut c, n));
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|x| f64::from(a[x * m + i]) * f64::from(b[x * n + j])).sum();
                    let expected = f64::from(c0[i * n + j]) + sum;
                    prop_assert!((f64::from(c[i * n + j]) - expected).abs() < 1e-5 * (k as f64).sqrt());
                }
            }
        }

        #[test]
        fn a_row_does_not_depend_on_the_others(
            m in 2usize..60, n in 1usize..70, k in 1usize..200, bf16: bool, seed: u64,
        ) {
            let (a, w) = (values(seed, m * k), values(seed ^ 1, n * k));
            let mut b = PackedMatrix::new(if bf16 { Precision::Bf16 } else { Precision::F32 });
            b.pack_transposed(&w, n, k);
            let mut all = vec![0.0; m * n];
            matmul(&a, &b, &mut all, Into::Set);
            for row in 0..m {
                let mut alone = vec![0.0; n];
                matmul(&a[row * k..][..k], &b, &mut alone, Into::Set);
                prop_assert_eq!(&all[row * n..][..n], &alone[..]);
            }
        }
    }
}
