//! Products of a few rows with blocks that lie apart: the keys and values of a sequence's pages.
//!
//! Attention of one new token reads every key and value once and does little with it, so it waits
//! for memory. The blocks to come are fetched while one is multiplied. An element is the same chain
//! of operations as in [`matmul`](super::gemm::matmul).

use pulp::{Simd, WithSimd};

use super::arch;
use super::gemm::{Into, PANEL};
use super::tile::{Elsewhere, Operands, TILE_ROWS, row_tile};

/// `C[m][32] = A[m][k] · B` for each of the blocks `B`, `[k][32]`, whose results lie side by side in
/// rows `ldc` apart. `ahead` are the blocks to fetch meanwhile, one for each.
pub(crate) fn multiply_each<'a>(
    (a, m): (&[f32], usize),
    k: usize,
    blocks: impl Iterator<Item = &'a [f32]>,
    ahead: impl Iterator<Item = &'a [f32]>,
    (c, ldc): (&mut [f32], usize),
) {
    let (a, c) = (Rows { data: a, ld: k, step: 0 }, Rows { data: c, ld: ldc, step: PANEL });
    let shape = Shape { m, k, panels: 1 };
    arch().dispatch(ScatteredProduct { shape, a, blocks, ahead, c, into: Into::Set });
}

/// `C[m][32 · panels] (+)= Σ A[m][32] · B` over the blocks `B`, `[panels][32][32]`; the rows of `A`,
/// `lda` apart, have 32 elements for each.
pub(crate) fn multiply_sum<'a>(
    (a, lda, m): (&[f32], usize, usize),
    panels: usize,
    blocks: impl Iterator<Item = &'a [f32]>,
    ahead: impl Iterator<Item = &'a [f32]>,
    c: &mut [f32],
    into: Into,
) {
    let a = Rows { data: a, ld: lda, step: PANEL };
    let c = Rows { data: c, ld: panels * PANEL, step: 0 };
    let shape = Shape { m, k: PANEL, panels };
    arch().dispatch(ScatteredProduct { shape, a, blocks, ahead, c, into });
}

/// Rows of a matrix, and how far each block moves on in them.
struct Rows<D> {
    data: D,
    ld: usize,
    step: usize,
}

#[derive(Clone, Copy)]
struct Shape {
    m: usize,
    k: usize,
    /// Of a block.
    panels: usize,
}

struct ScatteredProduct<'a, 'c, B, N> {
    shape: Shape,
    a: Rows<&'a [f32]>,
    blocks: B,
    ahead: N,
    c: Rows<&'c mut [f32]>,
    /// Of the first block, where results are summed up.
    into: Into,
}

impl<'b, B, N> WithSimd for ScatteredProduct<'_, '_, B, N>
where
    B: Iterator<Item = &'b [f32]>,
    N: Iterator<Item = &'b [f32]>,
{
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { shape: Shape { m, k, panels }, a, blocks, mut ahead, c, into } = self;
        assert!(m > 0 && k > 0 && panels > 0, "a product over nothing");
        for (index, block) in blocks.enumerate() {
            let (from, to) = (index * a.step, index * c.step);
            assert!(from + (m - 1) * a.ld + k <= a.data.len(), "A is too short");
            assert!(block.len() >= panels * k * PANEL, "B is too short");
            assert!(to + (m - 1) * c.ld + panels * PANEL <= c.data.len(), "C is too short");
            let ahead = ahead.next().unwrap_or(block).as_ptr();
            for panel in 0..panels {
                for row in (0..m).step_by(TILE_ROWS) {
                    // SAFETY: the last element of each operand was just shown to be in its slice.
                    unsafe {
                        let operands = Operands {
                            a: a.data.as_ptr().add(from + row * a.ld),
                            row_stride: a.ld,
                            k_stride: 1,
                            b: block.as_ptr().add(panel * k * PANEL),
                            ldb: PANEL,
                            c: c.data.as_mut_ptr().add(to + row * c.ld + panel * PANEL),
                            ldc: c.ld,
                            k,
                            add: into == Into::Add || (c.step == 0 && index > 0),
                            ahead: ahead.wrapping_add(panel * k * PANEL),
                        };
                        row_tile::<S, Elsewhere>(simd, TILE_ROWS.min(m - row), operands);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gemm::tests::values;
    use super::super::gemm::{Precision, matmul};
    use super::*;
    use crate::kernels::gemm::PackedMatrix;

    proptest! {
        #[test]
        fn blocks_that_lie_apart_have_the_bits_of_one_matrix(
            m in 1usize..30, k in 1usize..70, blocks in 1usize..5, seed: u64,
        ) {
            let (a, w) = (values(seed, m * k), values(seed ^ 1, k * blocks * PANEL));
            let n = blocks * PANEL;
            let mut packed = PackedMatrix::new(Precision::F32);
            packed.pack(&w, k, n);
            let mut expected = vec![0.0; m * n];
            matmul(&a, &packed, &mut expected, Into::Set);
            let apart: Vec<Vec<f32>> = (0..blocks)
                .map(|b| w.chunks(n).flat_map(|row| row[b * PANEL..][..PANEL].to_vec()).collect())
                .collect();
            let mut c = vec![7.0; m * n];
            let each = || apart.iter().map(Vec::as_slice);
            multiply_each((&a, m), k, each(), each().skip(1), (&mut c, n));
            prop_assert_eq!(c, expected);
        }

        #[test]
        fn sums_over_blocks_have_the_bits_of_one_matrix(
            m in 1usize..30, panels in 1usize..3, blocks in 1usize..5, add: bool, seed: u64,
        ) {
            let (k, n) = (blocks * PANEL, panels * PANEL);
            let (a, w) = (values(seed, m * k), values(seed ^ 1, k * n));
            let into = if add { Into::Add } else { Into::Set };
            let mut packed = PackedMatrix::new(Precision::F32);
            packed.pack(&w, k, n);
            let mut expected = values(seed ^ 2, m * n);
            let mut c = expected.clone();
            matmul(&a, &packed, &mut expected, into);
            let panel = |b: usize, p: usize| {
                let rows = w[b * PANEL * n..(b + 1) * PANEL * n].chunks(n);
                rows.flat_map(move |row| row[p * PANEL..][..PANEL].to_vec()).collect::<Vec<f32>>()
            };
            let apart: Vec<Vec<f32>> =
                (0..blocks).map(|b| (0..panels).flat_map(|p| panel(b, p)).collect()).collect();
            let each = || apart.iter().map(Vec::as_slice);
            multiply_sum((&a, k, m), panels, each(), each().skip(1), &mut c, into);
            prop_assert_eq!(c, expected);
        }
    }
}
