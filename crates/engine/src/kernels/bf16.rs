//! bfloat16: conversion, and products of pairs accumulated in single precision.
//!
//! A *pair* is a word with the element of an even `k` in its low half and that of the next `k` in
//! its high half, as `VDPBF16PS` takes them. An accumulator takes the two products of a pair one
//! after the other, that of the odd `k` first; the portable kernel does the same with fused
//! multiply-adds, whose results equal the instruction's where no number is subnormal (the
//! instruction flushes those to zero).

use super::gemm::{Into, PANEL};
use super::math::exp;
use super::tile::{Operands, Panels, Product, View, with_rows};

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

/// Turns numbers into pairs, sixteen at a time.
trait Convert {
    /// Pairs of neighbours.
    fn along(numbers: &[f32; 2 * LANES]) -> [u32; LANES];

    /// Pairs of an even and an odd element each.
    fn stack(even: &[f32; LANES], odd: &[f32; LANES]) -> [u32; LANES];
}

/// Pairs that are made at a time.
const LANES: usize = 16;

/// By integer operations. The instructions give the same where no number is subnormal.
struct Portable;

impl Convert for Portable {
    #[inline(always)]
    fn along(numbers: &[f32; 2 * LANES]) -> [u32; LANES] {
        std::array::from_fn(|i| pair(numbers[2 * i], numbers[2 * i + 1]))
    }

    #[inline(always)]
    fn stack(even: &[f32; LANES], odd: &[f32; LANES]) -> [u32; LANES] {
        std::array::from_fn(|i| pair(even[i], odd[i]))
    }
}

/// Compiles a function with the conversions of the machine, and once more without.
macro_rules! converting {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$convert:ident>($($arg:ident: $ty:ty),* $(,)?) $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            #[inline(always)]
            fn converted<$convert: Convert>($($arg: $ty),*) $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(
                    enable = "avx512f,avx512bf16,avx512bw,avx512cd,avx512dq,avx512vl,avx2,fma"
                )]
                fn native($($arg: $ty),*) {
                    converted::<x86::Native>($($arg),*);
                }
                if x86::is_available() {
                    // SAFETY: the instructions were detected.
                    return unsafe { native($($arg),*) };
                }
            }
            vectorized! {
                fn portable($($arg: $ty),*) {
                    converted::<Portable>($($arg),*);
                }
            }
            portable($($arg),*);
        }
    };
}

converting! {
    /// Rows of `width` as pairs along the row, `[rows][ceil(width / 2)]`.
    pub(crate) fn pair_rows<C>(rows: &[f32], width: usize, pairs: &mut [u32]) {
        let halves = width.div_ceil(2);
        for (row, to) in rows.chunks_exact(width).zip(pairs.chunks_exact_mut(halves)) {
            let (blocks, rest) = row.as_chunks::<{ 2 * LANES }>();
            let (to_blocks, to_rest) = to.split_at_mut(blocks.len() * LANES);
            for (block, to) in blocks.iter().zip(to_blocks.as_chunks_mut::<LANES>().0) {
                *to = C::along(block);
            }
            for (two, to) in rest.chunks(2).zip(to_rest) {
                *to = pair(two[0], two.get(1).copied().unwrap_or(0.0));
            }
        }
    }
}

converting! {
    /// Rows of `width` as pairs of two rows, `[ceil(rows / 2)][width]`; a last row by itself has
    /// zeros beside it.
    pub(crate) fn stack_rows<C>(rows: &[f32], width: usize, pairs: &mut [u32]) {
        for (two, to) in rows.chunks(2 * width).zip(pairs.chunks_exact_mut(width)) {
            let (even, odd) = two.split_at(width);
            let (blocks, rest) = even.as_chunks::<LANES>();
            let (odd_blocks, odd_rest) = odd.as_chunks::<LANES>();
            let (to_blocks, to_rest) = to.split_at_mut(blocks.len() * LANES);
            let odd_blocks = odd_blocks.iter().chain(std::iter::repeat(&[0.0; LANES]));
            let to_blocks = to_blocks.as_chunks_mut::<LANES>().0;
            for ((even, odd), to) in blocks.iter().zip(odd_blocks).zip(to_blocks) {
                *to = C::stack(even, odd);
            }
            let odd_rest = odd_rest.iter().copied().chain(std::iter::repeat(0.0));
            for ((even, odd), to) in rest.iter().zip(odd_rest).zip(to_rest) {
                *to = pair(*even, odd);
            }
        }
    }
}

/// Rows of scores, and of the gradients of their probabilities.
#[derive(Clone, Copy)]
pub(crate) struct SoftmaxRows<'a> {
    /// `[rows][width]`, before the scale.
    pub scores: &'a [f32],
    pub d_probs: &'a [f32],
    /// A whole number of panels.
    pub width: usize,
    pub scale: f32,
    /// Log-sum-exp of each row's scores.
    pub lse: &'a [f32],
    /// Sum of each row's probabilities times their gradients.
    pub sums: &'a [f32],
}

/// What [`softmax_backward_pairs`] writes.
pub(crate) struct SoftmaxPairs<'a> {
    /// Probabilities as pairs of two rows, `[ceil(rows / 2)][width]`.
    pub probs: &'a mut [u32],
    /// Gradients of the scores as pairs of two rows.
    pub stacked: &'a mut [u32],
    /// The same as pairs along the rows, `[rows][width / 2]`.
    pub along: &'a mut [u32],
}

converting! {
    /// Probabilities `p = exp(scale · score - lse)`, and the gradients of the scores,
    /// `p · (d_p - sum)`.
    pub(crate) fn softmax_backward_pairs<C>(from: SoftmaxRows, to: SoftmaxPairs) {
        let SoftmaxRows { scores, d_probs, width, scale, lse, sums } = from;
        let SoftmaxPairs { probs, stacked, along } = to;
        for (half, (lse, sums)) in lse.chunks(2).zip(sums.chunks(2)).enumerate() {
            for at in (0..width).step_by(2 * LANES) {
                let mut p = [[0.0f32; 2 * LANES]; 2];
                let mut d = [[0.0f32; 2 * LANES]; 2];
                for (r, (lse, sum)) in lse.iter().zip(sums).enumerate() {
                    let from = (2 * half + r) * width + at;
                    let (s, dp) = (&scores[from..][..2 * LANES], &d_probs[from..][..2 * LANES]);
                    for i in 0..2 * LANES {
                        p[r][i] = exp(s[i].mul_add(scale, -lse));
                        d[r][i] = p[r][i] * (dp[i] - sum);
                    }
                    along[from / 2..][..LANES].copy_from_slice(&C::along(&d[r]));
                }
                for (from, to) in [(&p, &mut *probs), (&d, &mut *stacked)] {
                    let to = &mut to[half * width + at..][..2 * LANES];
                    let (even, odd) = (from[0].as_chunks::<LANES>().0, from[1].as_chunks().0);
                    for ((to, even), odd) in to.chunks_exact_mut(LANES).zip(even).zip(odd) {
                        to.copy_from_slice(&C::stack(even, odd));
                    }
                }
            }
        }
    }
}

/// A left operand of pairs.
#[derive(Clone, Copy)]
pub(crate) struct PairsView<'a> {
    pub data: &'a [u32],
    /// Distance of two rows.
    pub row_stride: usize,
    /// Distance of two pairs of a row.
    pub k_stride: usize,
}

/// `C[m][32·p] (+)= A · B` for `k` pairs and `p` panels; `B` has rows of 32 `ldb` apart, and panels
/// `stride` apart. Reads and writes whole panels.
pub(crate) fn matmul_pairs(
    a: PairsView,
    (m, k, num_panels): (usize, usize, usize),
    (b, ldb, stride): (&[u32], usize, usize),
    (c, ldc): (&mut [f32], usize),
    into: Into,
) {
    Product {
        a: View { data: a.data, row_stride: a.row_stride, k_stride: a.k_stride },
        b: Panels { data: b, ld: ldb, stride },
        c,
        ldc,
        m,
        n: num_panels * PANEL,
        k,
        into,
    }
    .run();
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
        __m512, __m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_loadu_ps,
        _mm512_loadu_si512, _mm512_permutexvar_epi16, _mm512_set1_epi32, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use super::{Convert, LANES, Operands, Product, with_rows};

    /// By the instructions; only where they were detected.
    pub(super) struct Native;

    /// Halves of a word: those of an even element, which are in the lower vector, and of an odd one.
    const INTERLEAVED: [u16; 2 * LANES] = {
        let mut places = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            (places[2 * i], places[2 * i + 1]) = (i as u16, (LANES + i) as u16);
            i += 1;
        }
        places
    };

    impl Convert for Native {
        #[inline(always)]
        fn along(numbers: &[f32; 2 * LANES]) -> [u32; LANES] {
            let (low, high) = numbers.split_at(LANES);
            // SAFETY: each half has 16 numbers, and a result 64 bytes without invalid values.
            unsafe {
                let (low, high) = (_mm512_loadu_ps(low.as_ptr()), _mm512_loadu_ps(high.as_ptr()));
                std::mem::transmute(_mm512_cvtne2ps_pbh(high, low))
            }
        }

        #[inline(always)]
        fn stack(even: &[f32; LANES], odd: &[f32; LANES]) -> [u32; LANES] {
            // SAFETY: as above.
            unsafe {
                let (even, odd) = (_mm512_loadu_ps(even.as_ptr()), _mm512_loadu_ps(odd.as_ptr()));
                let halves: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(odd, even));
                let places = _mm512_loadu_si512(INTERLEAVED.as_ptr().cast());
                std::mem::transmute(_mm512_permutexvar_epi16(places, halves))
            }
        }
    }

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

    proptest! {
        #[test]
        fn conversions_give_pairs(rows in 1usize..6, width in 1usize..80, seed: u64) {
            let x = super::super::gemm::tests::values(seed, rows * width);
            let at = |r: usize, c: usize| if r < rows && c < width { x[r * width + c] } else { 0.0 };
            let half = width.div_ceil(2);
            let mut along = vec![7; rows * half];
            pair_rows(&x, width, &mut along);
            let mut stacked = vec![7; rows.div_ceil(2) * width];
            stack_rows(&x, width, &mut stacked);
            for (i, found) in along.iter().enumerate() {
                let (r, c) = (i / half, i % half * 2);
                prop_assert_eq!(*found, pair(at(r, c), at(r, c + 1)));
            }
            for (i, found) in stacked.iter().enumerate() {
                let (r, c) = (i / width * 2, i % width);
                prop_assert_eq!(*found, pair(at(r, c), at(r + 1, c)));
            }
        }

        #[test]
        fn softmax_goes_back_in_pairs(rows in 1usize..5, panels in 1usize..3, seed: u64) {
            let width = panels * PANEL;
            let random = super::super::gemm::tests::values;
            let (scores, d_probs) = (random(seed, rows * width), random(seed ^ 1, rows * width));
            let (lse, sums) = (random(seed ^ 2, rows), random(seed ^ 3, rows));
            let halves = rows.div_ceil(2);
            let (mut probs, mut stacked) = (vec![7; halves * width], vec![7; halves * width]);
            let mut along = vec![7; rows * width / 2];
            softmax_backward_pairs(
                SoftmaxRows {
                    scores: &scores, d_probs: &d_probs, width, scale: 0.5, lse: &lse, sums: &sums,
                },
                SoftmaxPairs { probs: &mut probs, stacked: &mut stacked, along: &mut along },
            );
            let half = |word: u32, odd: usize| from_bf16((word >> (16 * odd)) as u16);
            for i in 0..rows * width {
                let (r, c) = (i / width, i % width);
                let p = (0.5 * scores[i] - lse[r]).exp();
                let d = p * (d_probs[i] - sums[r]);
                let close = |found: f32, x: f32| (found - x).abs() <= x.abs() / 128.0 + 1e-6;
                prop_assert!(close(half(probs[r / 2 * width + c], r % 2), p));
                prop_assert!(close(half(stacked[r / 2 * width + c], r % 2), d));
                prop_assert!(close(half(along[i / 2], c % 2), d));
            }
            if rows % 2 == 1 {
                prop_assert!(probs[(halves - 1) * width..].iter().all(|word| word >> 16 == 0));
            }
        }
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
