//! bfloat16: conversion, and products of pairs accumulated in single precision.
//!
//! A *pair* is a word with the element of an even `k` in its low half and that of the next `k` in
//! its high half, as `VDPBF16PS` takes them. An accumulator takes the two products of a pair one
//! after the other, that of the odd `k` first; the portable kernel does the same with fused
//! multiply-adds, whose results equal the instruction's where no number is subnormal (the
//! instruction flushes those to zero).

use super::gemm::PANEL;
use super::tile::{Operands, Product, with_rows};

/// Rounds to the nearest bfloat16, ties to even; gives its bits.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN stays one: rounding could carry its mantissa into the exponent.
    let quiet = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded }) as u16
}

/// The number that these bits are.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Two elements as one word.
#[inline(always)]
pub(crate) fn pair(even: f32, odd: f32) -> u32 {
    u32::from(to_bf16(even)) | u32::from(to_bf16(odd)) << 16
}

vectorized! {
    /// Rows of `width` as pairs along the row, `[rows][ceil(width / 2)]`.
    pub(crate) fn pair_rows(rows: &[f32], width: usize, pairs: &mut [u32]) {
        let halves = width.div_ceil(2);
        for (row, to) in rows.chunks_exact(width).zip(pairs.chunks_exact_mut(halves)) {
            let (whole, rest) = row.as_chunks::<2>();
            for (to, [even, odd]) in to.iter_mut().zip(whole) {
                *to = pair(*even, *odd);
            }
            if let ([last], Some(to)) = (rest, to.last_mut()) {
                *to = pair(*last, 0.0);
            }
        }
    }
}

vectorized! {
    /// Rounds every number to the nearest bfloat16.
    pub(crate) fn round_all(values: &mut [f32]) {
        for x in values {
            *x = from_bf16(to_bf16(*x));
        }
    }
}

impl Product<'_, u32> {
    /// Runs the product with the best kernel of this machine.
    pub(super) fn run(self) {
        #[cfg(target_arch = "x86_64")]
        if x86::is_available() {
            // SAFETY: the instructions were detected.
            return unsafe { x86::product(self) };
        }
        portable(self);
    }
}

vectorized! {
    fn portable(product: Product<'_, u32>) {
        // SAFETY: `for_each_tile` gives valid operands.
        product.for_each_tile(|rows, operands| unsafe {
            for row in 0..rows {
                portable_row(row, operands);
            }
        });
    }
}

/// One row by 32 columns.
///
/// # Safety
/// That row, and 32 columns, of the operands must be valid.
#[inline(always)]
unsafe fn portable_row(row: usize, o: Operands<u32>) {
    let mut acc = [0.0f32; PANEL];
    unsafe {
        let c = o.c.add(row * o.ldc).cast::<[f32; PANEL]>();
        if o.add {
            acc = c.read_unaligned();
        }
        for k in 0..o.k {
            let x = *o.a.add(row * o.row_stride + k * o.k_stride);
            let (even, odd) = (f32::from_bits(x << 16), f32::from_bits(x & 0xffff_0000));
            let columns = o.b.add(k * o.ldb).cast::<[u32; PANEL]>().read_unaligned();
            for (slot, y) in acc.iter_mut().zip(columns) {
                *slot = odd.mul_add(f32::from_bits(y & 0xffff_0000), *slot);
                *slot = even.mul_add(f32::from_bits(y << 16), *slot);
            }
        }
        c.write_unaligned(acc);
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m512, __m512bh, __m512i, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_loadu_si512,
        _mm512_set1_epi32, _mm512_setzero_ps, _mm512_storeu_ps,
    };

    use super::{Operands, Product, with_rows};

    /// Lanes of a vector.
    const LANES: usize = 16;

    pub(super) fn is_available() -> bool {
        is_x86_feature_detected!("avx512bf16") && is_x86_feature_detected!("avx512f")
    }

    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq")]
    pub(super) fn product(product: Product<'_, u32>) {
        // SAFETY: `for_each_tile` gives valid operands.
        product.for_each_tile(|rows, operands| unsafe {
            with_rows!(rows, tile, operands);
        });
    }

    /// `MR` rows by 32 columns, accumulated in registers.
    ///
    /// # Safety
    /// `MR` rows and 32 columns of the operands must be valid.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16,avx512bw,avx512vl,avx512dq")]
    unsafe fn tile<const MR: usize>(o: Operands<u32>) {
        unsafe {
            let mut acc: [[__m512; 2]; MR] = [[_mm512_setzero_ps(); 2]; MR];
            if o.add {
                for (r, row) in acc.iter_mut().enumerate() {
                    for (v, slot) in row.iter_mut().enumerate() {
                        *slot = _mm512_loadu_ps(o.c.add(r * o.ldc + v * LANES));
                    }
                }
            }
            let (mut a, mut b) = (o.a, o.b);
            for _ in 0..o.k {
                let columns =
                    [_mm512_loadu_si512(b.cast()), _mm512_loadu_si512(b.add(LANES).cast())];
                for (r, row) in acc.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32((*a.add(r * o.row_stride)).cast_signed());
                    for (slot, column) in row.iter_mut().zip(columns) {
                        *slot = _mm512_dpbf16_ps(*slot, halves(x), halves(column));
                    }
                }
                a = a.wrapping_add(o.k_stride);
                b = b.wrapping_add(o.ldb);
            }
            for (r, row) in acc.iter().enumerate() {
                for (v, value) in row.iter().enumerate() {
                    _mm512_storeu_ps(o.c.add(r * o.ldc + v * LANES), *value);
                }
            }
        }
    }

    /// The same bits, named as halves.
    #[inline(always)]
    fn halves(x: __m512i) -> __m512bh {
        // SAFETY: both are 64 bytes without invalid values.
        unsafe { std::mem::transmute(x) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::gemm::Into;
    use super::super::tile::{Panels, View};
    use super::*;

    #[test]
    #[expect(clippy::float_cmp, reason = "exact values are meant")]
    fn rounding_is_to_nearest_even() {
        assert_eq!(from_bf16(to_bf16(1.0)), 1.0);
        // Halfway between 1 and 1 + 2^-7, and between 1 + 2^-7 and 1 + 2^-6.
        assert_eq!(from_bf16(to_bf16(1.0 + 2f32.powi(-8))), 1.0);
        assert_eq!(from_bf16(to_bf16(1.0 + 3.0 * 2f32.powi(-8))), 1.0 + 2f32.powi(-6));
        assert_eq!(from_bf16(to_bf16(f32::INFINITY)), f32::INFINITY);
        assert_eq!(from_bf16(to_bf16(f32::MAX)), f32::INFINITY);
        assert!(from_bf16(to_bf16(f32::from_bits(0x7f80_0001))).is_nan());
    }

    fn best(product: Product<'_, u32>) {
        product.run();
    }

    proptest! {
        #[test]
        fn the_instruction_and_the_portable_kernel_agree(
            m in 1usize..30, k in 1usize..40, add: bool, seed: u64,
        ) {
            use rand::{Rng, SeedableRng};
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut words = |n: usize| -> Vec<u32> {
                (0..n).map(|_| pair(rng.random_range(-2.0..2.0), rng.random_range(-2.0..2.0))).collect()
            };
            let (a, b) = (words(m * k), words(k * PANEL));
            let run = |product: fn(Product<'_, u32>)| {
                let mut c: Vec<f32> = (0..m * PANEL).map(|i| (i as f32).sin()).collect();
                product(Product {
                    a: View { data: &a, row_stride: k, k_stride: 1 },
                    b: Panels { data: &b, ld: PANEL, stride: 0 },
                    c: &mut c,
                    ldc: PANEL,
                    m,
                    n: PANEL,
                    k,
                    into: if add { Into::Add } else { Into::Set },
                });
                c.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            };
            prop_assert_eq!(run(best), run(portable));
        }
    }
}
