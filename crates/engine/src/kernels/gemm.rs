//! Single-precision matrix products whose rows do not depend on each other, bit for bit.
//!
//! One micro-kernel serves all products. It computes `C[r][j] (+)= sum_k A[r][k] * B[k][j]` for a
//! tile of a few rows and up to 32 columns, each element as one chain of fused multiply-adds in
//! the order of `k`. No element is ever split over `k`, so an element's bits depend on its row of
//! `A`, its column of `B` and nothing else: not on how many rows the call has, nor on where in a
//! tile a row falls. General GEMM crates give no such promise (they switch kernels and block `k`
//! by the shape of the whole product).
//!
//! Weights are packed once per update into panels of 32 columns, `[n / 32][k][32]`, so a call packs
//! nothing: at the few rows of a decode step that is most of what a general GEMM would spend.

use pulp::{Simd, WithSimd};

use super::arch;

/// Columns of a panel. Packed operands and key/value blocks are multiples of this.
pub(crate) const PANEL: usize = 32;

/// Rows of `A` that are kept close while all panels of `B` pass by.
const ROW_BLOCK: usize = 96;

/// Length of `k` that a weight-gradient product works on at a time, to stay in cache.
const K_BLOCK: usize = 256;

/// Rounds up to a whole number of panels.
pub(crate) const fn padded(n: usize) -> usize {
    n.div_ceil(PANEL) * PANEL
}

/// The right operand of [`matmul`], `[k][n]`, packed into panels padded with zeros.
#[derive(Debug, Clone, Default)]
pub(crate) struct PackedMatrix {
    k: usize,
    n: usize,
    panels: Vec<f32>,
}

impl PackedMatrix {
    /// Packs `B[k][j] = weight[j][k]` of a row-major `weight`, `[n][k]`: for `y = x Wᵀ`.
    pub(crate) fn pack_transposed(&mut self, weight: &[f32], n: usize, k: usize) {
        assert_eq!(weight.len(), n * k, "weight is [n][k]");
        self.reshape(k, n);
        for (j, row) in weight.chunks_exact(k).enumerate() {
            let panel = &mut self.panels[(j / PANEL) * k * PANEL..][..k * PANEL];
            for (slot, value) in panel[j % PANEL..].iter_mut().step_by(PANEL).zip(row) {
                *slot = *value;
            }
        }
    }

    /// Packs `B[k][j] = weight[k][j]` of a row-major `weight`, `[k][n]`: for `dx = dy W`.
    pub(crate) fn pack(&mut self, weight: &[f32], k: usize, n: usize) {
        assert_eq!(weight.len(), n * k, "weight is [k][n]");
        self.reshape(k, n);
        for (row_index, row) in weight.chunks_exact(n).enumerate() {
            for (p, part) in row.chunks(PANEL).enumerate() {
                self.panels[(p * k + row_index) * PANEL..][..part.len()].copy_from_slice(part);
            }
        }
    }

    fn reshape(&mut self, k: usize, n: usize) {
        let len = padded(n) * k;
        if self.panels.len() != len {
            self.panels = vec![0.0; len];
        }
        (self.k, self.n) = (k, n);
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
    assert_eq!(a.len(), m * b.k, "A is [m][k]");
    assert_eq!(c.len(), m * b.n, "C is [m][n]");
    arch().dispatch(Product {
        a: View { data: a, row_stride: b.k, k_stride: 1 },
        b: Panels { data: &b.panels, ld: PANEL, stride: b.k * PANEL },
        c,
        ldc: b.n,
        m,
        n: b.n,
        k: b.k,
        into,
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
/// stride `ldb`: the gradient of a weight from the rows of a batch.
pub(crate) fn matmul_tn(
    (a, lda): (&[f32], usize),
    (b, ldb): (&[f32], usize),
    (m, n, k): (usize, usize, usize),
    (c, ldc): (&mut [f32], usize),
    scratch: &mut Vec<f32>,
) {
    let whole = n / PANEL * PANEL;
    for start in (0..k).step_by(K_BLOCK) {
        let len = K_BLOCK.min(k - start);
        let a_view = View { data: &a[start * lda..], row_stride: 1, k_stride: lda };
        let b_rows = &b[start * ldb..];
        if whole > 0 {
            arch().dispatch(Product {
                a: a_view,
                b: Panels { data: b_rows, ld: ldb, stride: PANEL },
                c,
                ldc,
                m,
                n: whole,
                k: len,
                into: Into::Add,
            });
        }
        if whole < n {
            scratch.clear();
            scratch.resize(len * PANEL, 0.0);
            for (to, from) in scratch.chunks_exact_mut(PANEL).zip(b_rows.chunks(ldb)) {
                to[..n - whole].copy_from_slice(&from[whole..n]);
            }
            arch().dispatch(Product {
                a: a_view,
                b: Panels { data: scratch, ld: PANEL, stride: 0 },
                c: &mut c[whole..],
                ldc,
                m,
                n: n - whole,
                k: len,
                into: Into::Add,
            });
        }
    }
}

#[derive(Clone, Copy)]
struct View<'a> {
    data: &'a [f32],
    row_stride: usize,
    k_stride: usize,
}

#[derive(Clone, Copy)]
struct Panels<'a> {
    data: &'a [f32],
    /// Distance of two `k` within a panel.
    ld: usize,
    /// Distance of two panels.
    stride: usize,
}

struct Product<'a> {
    a: View<'a>,
    b: Panels<'a>,
    c: &'a mut [f32],
    ldc: usize,
    m: usize,
    n: usize,
    k: usize,
    into: Into,
}

impl Product<'_> {
    /// Every address the micro-kernels touch lies in its slice; all of them rely on this.
    fn check(&self) {
        let Self { a, b, c, ldc, m, n, k, .. } = self;
        let last_a = (m - 1) * a.row_stride + (k - 1) * a.k_stride;
        let last_b = (n.div_ceil(PANEL) - 1) * b.stride + (k - 1) * b.ld + PANEL - 1;
        let last_c = (m - 1) * ldc + n - 1;
        assert!(last_a < a.data.len(), "A is too short");
        assert!(last_b < b.data.len(), "B is too short");
        assert!(last_c < c.len() && (*m == 1 || *n <= *ldc), "C is too short");
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        assert!(self.k > 0, "a product over nothing");
        self.check();
        let mut tile = [0.0f32; 12 * PANEL];
        for block in (0..self.m).step_by(ROW_BLOCK) {
            let block_end = (block + ROW_BLOCK).min(self.m);
            for panel in 0..self.n.div_ceil(PANEL) {
                let columns = PANEL.min(self.n - panel * PANEL);
                let mut row = block;
                while row < block_end {
                    let rows = (block_end - row).min(12);
                    let at = row * self.ldc + panel * PANEL;
                    // SAFETY: `check` proved the last element of each operand to be in its slice;
                    // a tile with fewer than 32 columns goes through `tile`, which is 12 by 32.
                    unsafe {
                        let a = self.a.data.as_ptr().add(row * self.a.row_stride);
                        let b = self.b.data.as_ptr().add(panel * self.b.stride);
                        let edge = columns < PANEL;
                        if edge && self.into == Into::Add {
                            for r in 0..rows {
                                tile[r * PANEL..][..columns]
                                    .copy_from_slice(&self.c[at + r * self.ldc..][..columns]);
                            }
                        }
                        let (c, ldc) = if edge {
                            (tile.as_mut_ptr(), PANEL)
                        } else {
                            (self.c.as_mut_ptr().add(at), self.ldc)
                        };
                        let operands = Operands {
                            a,
                            row_stride: self.a.row_stride,
                            k_stride: self.a.k_stride,
                            b,
                            ldb: self.b.ld,
                            c,
                            ldc,
                            k: self.k,
                            add: self.into == Into::Add,
                        };
                        row_tile(simd, rows, operands);
                        if edge {
                            for r in 0..rows {
                                self.c[at + r * self.ldc..][..columns]
                                    .copy_from_slice(&tile[r * PANEL..][..columns]);
                            }
                        }
                    }
                    row += rows;
                }
            }
        }
    }
}

/// Raw operands of one row tile, already checked.
#[derive(Clone, Copy)]
struct Operands {
    a: *const f32,
    row_stride: usize,
    k_stride: usize,
    b: *const f32,
    ldb: usize,
    c: *mut f32,
    ldc: usize,
    k: usize,
    add: bool,
}

impl Operands {
    /// Moves on by rows of `A` and `C`, and columns of `B` and `C`.
    ///
    /// # Safety
    /// The tile that starts there must lie in the operands.
    #[inline(always)]
    unsafe fn offset(self, rows: usize, columns: usize) -> Self {
        unsafe {
            Self {
                a: self.a.add(rows * self.row_stride),
                b: self.b.add(columns),
                c: self.c.add(rows * self.ldc + columns),
                ..self
            }
        }
    }
}

/// Up to 12 rows by 32 columns, with the tile shape that fits the registers.
///
/// # Safety
/// `rows` rows and 32 columns of the operands must be valid.
#[inline(always)]
unsafe fn row_tile<S: Simd>(simd: S, rows: usize, o: Operands) {
    unsafe {
        if S::F32_LANES >= 16 {
            match rows {
                12 => tile::<S, 12, 2>(simd, o),
                11 => tile::<S, 11, 2>(simd, o),
                10 => tile::<S, 10, 2>(simd, o),
                9 => tile::<S, 9, 2>(simd, o),
                8 => tile::<S, 8, 2>(simd, o),
                7 => tile::<S, 7, 2>(simd, o),
                6 => tile::<S, 6, 2>(simd, o),
                5 => tile::<S, 5, 2>(simd, o),
                4 => tile::<S, 4, 2>(simd, o),
                3 => tile::<S, 3, 2>(simd, o),
                2 => tile::<S, 2, 2>(simd, o),
                _ => tile::<S, 1, 2>(simd, o),
            }
        } else {
            for column in (0..PANEL).step_by(2 * S::F32_LANES) {
                let mut row = 0;
                while row < rows {
                    let part = o.offset(row, column);
                    match rows - row {
                        1 => tile::<S, 1, 2>(simd, part),
                        2 => tile::<S, 2, 2>(simd, part),
                        3 => tile::<S, 3, 2>(simd, part),
                        4 | 5 => tile::<S, 4, 2>(simd, part),
                        _ => tile::<S, 6, 2>(simd, part),
                    }
                    row += match rows - row {
                        r @ 1..=3 => r,
                        4 | 5 => 4,
                        _ => 6,
                    };
                }
            }
        }
    }
}

/// The micro-kernel: `MR` rows by `NV` vectors, accumulated in registers.
///
/// # Safety
/// `MR` rows and `NV` vectors of columns of the operands must be valid.
#[inline(always)]
unsafe fn tile<S: Simd, const MR: usize, const NV: usize>(simd: S, o: Operands) {
    unsafe {
        let mut acc = [[simd.splat_f32s(0.0); NV]; MR];
        if o.add {
            for (r, row) in acc.iter_mut().enumerate() {
                for (v, slot) in row.iter_mut().enumerate() {
                    *slot = load::<S>(o.c.add(r * o.ldc + v * S::F32_LANES));
                }
            }
        }
        let (mut a, mut b) = (o.a, o.b);
        for _ in 0..o.k {
            let mut columns = [simd.splat_f32s(0.0); NV];
            for (v, slot) in columns.iter_mut().enumerate() {
                *slot = load::<S>(b.add(v * S::F32_LANES));
            }
            for (r, row) in acc.iter_mut().enumerate() {
                let x = simd.splat_f32s(*a.add(r * o.row_stride));
                for (slot, column) in row.iter_mut().zip(columns) {
                    *slot = simd.mul_add_f32s(x, column, *slot);
                }
            }
            a = a.wrapping_add(o.k_stride);
            b = b.wrapping_add(o.ldb);
        }
        for (r, row) in acc.iter().enumerate() {
            for (v, value) in row.iter().enumerate() {
                o.c.add(r * o.ldc + v * S::F32_LANES).cast::<S::f32s>().write_unaligned(*value);
            }
        }
    }
}

/// # Safety
/// One vector must be readable at `from`; no alignment is needed.
#[inline(always)]
unsafe fn load<S: Simd>(from: *const f32) -> S::f32s {
    unsafe { from.cast::<S::f32s>().read_unaligned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Into, PackedMatrix, matmul, matmul_tn};

    fn values(seed: u64, n: usize) -> Vec<f32> {
        use rand::{Rng, SeedableRng};
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect()
    }

    proptest! {
        #[test]
        fn products_match_the_definition(m in 1usize..40, n in 1usize..70, k in 1usize..300, seed: u64) {
            let (a, w, c0) = (values(seed, m * k), values(seed ^ 1, n * k), values(seed ^ 2, m * n));
            let mut b = PackedMatrix::default();
            b.pack_transposed(&w, n, k);
            let mut c = c0.clone();
            matmul(&a, &b, &mut c, Into::Add);
            // The same product through the other packing and the other kernel.
            let wt: Vec<f32> = (0..k * n).map(|i| w[(i % n) * k + i / n]).collect();
            let mut b2 = PackedMatrix::default();
            b2.pack(&wt, k, n);
            let mut c2 = vec![7.0; m * n];
            matmul(&a, &b2, &mut c2, Into::Set);
            let at: Vec<f32> = (0..k * m).map(|i| a[(i % m) * k + i / m]).collect();
            let mut c3 = c0.clone();
            matmul_tn((&at, m), (&wt, n), (m, n, k), (&mut c3, n), &mut Vec::new());
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|x| f64::from(a[i * k + x]) * f64::from(w[j * k + x])).sum();
                    let bound = 1e-5 * (k as f64).sqrt();
                    let with_old = f64::from(c0[i * n + j]) + sum;
                    prop_assert!((f64::from(c[i * n + j]) - with_old).abs() < bound);
                    prop_assert!((f64::from(c2[i * n + j]) - sum).abs() < bound);
                    prop_assert!((f64::from(c3[i * n + j]) - with_old).abs() < bound);
                }
            }
        }

        #[test]
        fn a_row_does_not_depend_on_the_others(m in 2usize..60, n in 1usize..70, k in 1usize..200, seed: u64) {
            let (a, w) = (values(seed, m * k), values(seed ^ 1, n * k));
            let mut b = PackedMatrix::default();
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
