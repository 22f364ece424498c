//! Weight gradients, `C += Aᵀ · B`, of operands that are packed where they are made.
//!
//! Both operands are matrices of as many rows as a batch has tokens. The passes that make them
//! write blocks of rows; each is stored in strips of a few columns, `[strip][row][lanes]`, so that
//! the product reads two streams and packs nothing, however many parts it is cut into.

use super::arch;
use super::bf16::stack_rows;
use super::gemm::{Into, PANEL, Precision};
use super::tile::{Panels, Product, TILE_ROWS, View};

/// A block of rows of an operand, in strips.
#[derive(Debug, Default)]
pub(crate) struct Strips {
    rows: usize,
    columns: usize,
    lanes: usize,
    precision: Precision,
    /// `[strip][rows][lanes]`, padded with zeros; empty in [`Precision::Bf16`].
    numbers: Vec<f32>,
    /// `[strip][ceil(rows / 2)][lanes]` pairs of two rows; empty in [`Precision::F32`].
    pairs: Vec<u32>,
}

/// Which side of the product an operand is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// `A`: its columns are rows of the result.
    Left,
    /// `B`.
    Right,
}

impl Strips {
    /// Makes room for a block of `rows` by `columns`, to be filled by [`Strips::write`].
    pub(crate) fn reshape(
        &mut self,
        side: Side,
        rows: usize,
        columns: usize,
        precision: Precision,
    ) {
        let lanes = if side == Side::Left { TILE_ROWS } else { PANEL };
        (self.rows, self.columns, self.lanes, self.precision) = (rows, columns, lanes, precision);
        let strips = columns.div_ceil(lanes);
        // What pads is zero from the start, and stays: the shape of a block seldom changes, and
        // then all is cleared.
        match precision {
            Precision::F32 if self.numbers.len() != strips * rows * lanes => {
                self.numbers.clear();
                self.numbers.resize(strips * rows * lanes, 0.0);
            }
            Precision::Bf16 if self.pairs.len() != strips * rows.div_ceil(2) * lanes => {
                self.pairs.clear();
                self.pairs.resize(strips * rows.div_ceil(2) * lanes, 0);
            }
            _ => {}
        }
    }

    /// Stores rows from `first` on, an even number unless they are the block's last.
    pub(crate) fn write(&mut self, first: usize, rows: &[f32]) {
        let Self { columns, lanes, .. } = *self;
        match self.precision {
            Precision::F32 => {
                let stride = self.rows * lanes;
                write_strips(&mut self.numbers[first * lanes..], stride, lanes, rows, columns);
            }
            Precision::Bf16 => {
                let stride = self.rows.div_ceil(2) * lanes;
                let mut pairs = vec![0; columns];
                for (r, two) in rows.chunks(2 * columns).enumerate() {
                    stack_rows(two, columns, &mut pairs);
                    let at = (first / 2 + r) * lanes;
                    write_strips(&mut self.pairs[at..], stride, lanes, &pairs, columns);
                }
            }
        }
    }

    /// Adds every column's sum to `sums`, row after row, from column `first` on.
    pub(crate) fn add_columns(&self, first: usize, sums: &mut [f32]) {
        for (column, sum) in (first..).zip(sums) {
            let (strip, lane) = (column / self.lanes, column % self.lanes);
            match self.precision {
                Precision::F32 => {
                    let strip = &self.numbers[strip * self.rows * self.lanes..];
                    let column = strip[lane..].iter().step_by(self.lanes).take(self.rows);
                    *sum = column.fold(*sum, |sum, x| sum + x);
                }
                Precision::Bf16 => {
                    let halves = self.rows.div_ceil(2);
                    let strip = &self.pairs[strip * halves * self.lanes..];
                    let column = strip[lane..].iter().step_by(self.lanes).take(halves);
                    *sum = column.fold(*sum, |sum, x| {
                        sum + f32::from_bits(x << 16) + f32::from_bits(x & 0xffff_0000)
                    });
                }
            }
        }
    }
}

/// Lays rows of `columns` out in strips `stride` apart.
fn write_strips<E: Copy>(to: &mut [E], stride: usize, lanes: usize, rows: &[E], columns: usize) {
    // With the number of lanes known, they are moved by vectors.
    match lanes {
        TILE_ROWS => write_lanes::<E, TILE_ROWS>(to, stride, rows, columns),
        _ => write_lanes::<E, PANEL>(to, stride, rows, columns),
    }
}

fn write_lanes<E: Copy, const LANES: usize>(
    to: &mut [E],
    stride: usize,
    rows: &[E],
    columns: usize,
) {
    for (r, row) in rows.chunks_exact(columns).enumerate() {
        let (whole, rest) = row.as_chunks::<LANES>();
        for (strip, part) in whole.iter().enumerate() {
            to[strip * stride + r * LANES..][..LANES].copy_from_slice(part);
        }
        if !rest.is_empty() {
            to[whole.len() * stride + r * LANES..][..rest.len()].copy_from_slice(rest);
        }
    }
}

/// Adds to `C`, rows `first..` (a multiple of [`OUTER_ROWS`]) of `Aᵀ · B`, `[rows][B's columns]`,
/// over blocks in their order: one chain of fused multiply-adds an element.
pub(crate) fn add_outer(blocks: &[(&Strips, &Strips)], first: usize, c: &mut [f32]) {
    for (a, b) in blocks {
        let (m, n) = (c.len() / b.columns, b.columns);
        assert!(a.rows == b.rows && a.precision == b.precision, "operands of one block");
        assert!(first.is_multiple_of(TILE_ROWS) && first + m <= a.columns, "whole strips");
        for row in (0..m).step_by(TILE_ROWS) {
            let rows = TILE_ROWS.min(m - row);
            let c = &mut c[row * n..][..rows * n];
            let strip = (first + row) / TILE_ROWS;
            let shape = (rows, n, strip);
            match a.precision {
                Precision::F32 => {
                    let product = strip_product(&a.numbers, &b.numbers, a.rows, shape, c);
                    arch().dispatch(product);
                }
                Precision::Bf16 => {
                    strip_product(&a.pairs, &b.pairs, a.rows.div_ceil(2), shape, c).run();
                }
            }
        }
    }
}

/// `C[m][n] += Aᵀ · B` for one strip of `A` and all of `B`, of `k` elements each.
fn strip_product<'a, E>(
    a: &'a [E],
    b: &'a [E],
    k: usize,
    (m, n, strip): (usize, usize, usize),
    c: &'a mut [f32],
) -> Product<'a, E> {
    let a = &a[strip * k * TILE_ROWS..];
    Product {
        a: View { data: a, row_stride: 1, k_stride: TILE_ROWS },
        b: Panels { data: b, ld: PANEL, stride: k * PANEL },
        c,
        ldc: n,
        m,
        n,
        k,
        into: Into::Add,
    }
}

/// Parts of a weight gradient start at multiples of this many rows.
pub(crate) const OUTER_ROWS: usize = TILE_ROWS * 8;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kernels::gemm::tests::values;

    proptest! {
        #[test]
        fn sums_of_outer_products(
            m in 1usize..130, n in 1usize..70, cuts in prop::collection::vec(1usize..40, 1..4),
            bf16: bool, seed: u64,
        ) {
            let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
            let k: usize = cuts.iter().sum();
            let (a, b, c0) = (values(seed, k * m), values(seed ^ 1, k * n), values(seed ^ 2, m * n));
            let mut start = 0;
            let blocks: Vec<(Strips, Strips)> = cuts.iter().map(|&rows| {
                let mut block = (Strips::default(), Strips::default());
                block.0.reshape(Side::Left, rows, m, precision);
                block.1.reshape(Side::Right, rows, n, precision);
                // In two writes, as passes over parts of a block do.
                let half = rows / 4 * 2;
                for (first, end) in [(0, half), (half, rows)] {
                    block.0.write(first, &a[(start + first) * m..(start + end) * m]);
                    block.1.write(first, &b[(start + first) * n..(start + end) * n]);
                }
                start += rows;
                block
            }).collect();
            let blocks: Vec<_> = blocks.iter().map(|(a, b)| (a, b)).collect();
            let mut c = c0.clone();
            for (i, c) in c.chunks_mut(OUTER_ROWS * n).enumerate() {
                add_outer(&blocks, i * OUTER_ROWS, c);
            }
            let mut sums = vec![1.0f32; m];
            for (left, _) in &blocks {
                left.add_columns(0, &mut sums);
            }
            let round = |x: f32| f64::from(precision.round(x));
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|x| round(a[x * m + i]) * round(b[x * n + j])).sum();
                    let expected = f64::from(c0[i * n + j]) + sum;
                    prop_assert!((f64::from(c[i * n + j]) - expected).abs() < 1e-5 * (k as f64).sqrt());
                }
                let sum: f64 = 1.0 + (0..k).map(|x| round(a[x * m + i])).sum::<f64>();
                prop_assert!((f64::from(sums[i]) - sum).abs() < 1e-5 * (k as f64).sqrt());
            }
        }
    }
}
