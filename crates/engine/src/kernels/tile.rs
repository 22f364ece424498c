//! The single-precision micro-kernel, and the loop over tiles that all micro-kernels share.

use pulp::{Simd, WithSimd};

use super::gemm::{Into, PANEL};

/// Rows of `A` that are kept close while all panels of `B` pass by.
const ROW_BLOCK: usize = 96;

/// Most rows of a tile.
pub(super) const TILE_ROWS: usize = 12;

/// The left operand. An element is a number, or a pair of half-wide ones.
#[derive(Clone, Copy)]
pub(super) struct View<'a, E> {
    pub data: &'a [E],
    pub row_stride: usize,
    pub k_stride: usize,
}

/// The right operand, in panels.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a, E> {
    pub data: &'a [E],
    /// Distance of two `k` within a panel.
    pub ld: usize,
    /// Distance of two panels.
    pub stride: usize,
}

/// `C[m][n] (+)= A · B`; `k` counts elements.
pub(super) struct Product<'a, E> {
    pub a: View<'a, E>,
    pub b: Panels<'a, E>,
    pub c: &'a mut [f32],
    pub ldc: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub into: Into,
}

/// Raw operands of one row tile, already checked.
#[derive(Clone, Copy)]
pub(super) struct Operands<E> {
    pub a: *const E,
    pub row_stride: usize,
    pub k_stride: usize,
    pub b: *const E,
    pub ldb: usize,
    pub c: *mut f32,
    pub ldc: usize,
    pub k: usize,
    pub add: bool,
    /// What [`Ahead`] fetches while the tile is computed, as far apart as `b`.
    pub ahead: *const E,
}

/// Whether a tile fetches [`Operands::ahead`] into the cache.
pub(super) trait Ahead: Copy {
    /// Asks for the cache lines of 32 columns at `at`, whether or not there is anything.
    fn fetch<E>(at: *const E);
}

/// Operands are streams, which the machine fetches by itself.
#[derive(Clone, Copy)]
pub(super) struct Streams;

impl Ahead for Streams {
    #[inline(always)]
    fn fetch<E>(_at: *const E) {}
}

/// What comes next lies elsewhere.
#[derive(Clone, Copy)]
pub(super) struct Elsewhere;

impl Ahead for Elsewhere {
    #[inline(always)]
    fn fetch<E>(at: *const E) {
        #[cfg(target_arch = "x86_64")]
        {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch has no effect that a program could see, whatever the address.
            unsafe {
                _mm_prefetch::<_MM_HINT_T0>(at.cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(64).cast());
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
}

impl<E: Copy> Product<'_, E> {
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

    /// Calls `row_tile` with the number of rows and the operands of every tile of up to 12 rows
    /// and 32 columns, all of them valid to read, and to write in `C`.
    #[inline(always)]
    pub(super) fn for_each_tile(self, mut kernel: impl RowTile<E>) {
        if self.m == 0 || self.n == 0 {
            return;
        }
        assert!(self.k > 0, "a product over nothing");
        self.check();
        let mut tile = [0.0f32; TILE_ROWS * PANEL];
        for block in (0..self.m).step_by(ROW_BLOCK) {
            let block_end = (block + ROW_BLOCK).min(self.m);
            for panel in 0..self.n.div_ceil(PANEL) {
                let columns = PANEL.min(self.n - panel * PANEL);
                let edge = columns < PANEL;
                for row in (block..block_end).step_by(TILE_ROWS) {
                    let rows = (block_end - row).min(TILE_ROWS);
                    let at = row * self.ldc + panel * PANEL;
                    if edge && self.into == Into::Add {
                        for r in 0..rows {
                            tile[r * PANEL..][..columns]
                                .copy_from_slice(&self.c[at + r * self.ldc..][..columns]);
                        }
                    }
                    // SAFETY: `check` proved the last element of each operand to be in its slice;
                    // a tile with fewer than 32 columns goes through `tile`, which is 12 by 32.
                    let operands = unsafe {
                        Operands {
                            a: self.a.data.as_ptr().add(row * self.a.row_stride),
                            row_stride: self.a.row_stride,
                            k_stride: self.a.k_stride,
                            b: self.b.data.as_ptr().add(panel * self.b.stride),
                            ldb: self.b.ld,
                            c: if edge { tile.as_mut_ptr() } else { self.c.as_mut_ptr().add(at) },
                            ldc: if edge { PANEL } else { self.ldc },
                            k: self.k,
                            add: self.into == Into::Add,
                            ahead: std::ptr::null(),
                        }
                    };
                    kernel.run(rows, operands);
                    if edge {
                        for r in 0..rows {
                            self.c[at + r * self.ldc..][..columns]
                                .copy_from_slice(&tile[r * PANEL..][..columns]);
                        }
                    }
                }
            }
        }
    }
}

impl WithSimd for Product<'_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.for_each_tile(SimdTile(simd));
    }
}

/// What [`Product::for_each_tile`] calls, with valid operands.
pub(super) trait RowTile<E> {
    /// Computes a tile of so many rows.
    fn run(&mut self, rows: usize, operands: Operands<E>);
}

impl<E, F: FnMut(usize, Operands<E>)> RowTile<E> for F {
    #[inline(always)]
    fn run(&mut self, rows: usize, operands: Operands<E>) {
        self(rows, operands);
    }
}

/// [`row_tile`]. Not a closure: those are inlined at the compiler's will, and one that is not loses
/// the instruction set (ten times slower, in debug builds).
struct SimdTile<S>(S);

impl<S: Simd> RowTile<f32> for SimdTile<S> {
    #[inline(always)]
    fn run(&mut self, rows: usize, operands: Operands<f32>) {
        // SAFETY: `for_each_tile` gives valid operands.
        unsafe { row_tile::<S, Streams>(self.0, rows, operands) }
    }
}

impl<E> Operands<E> {
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

/// Calls `$tile` with the number of rows, 1 to 12, as a constant.
macro_rules! with_rows {
    ($rows:expr, $tile:ident $(::<$($generic:ty),+>)?, $($arg:expr),+) => {
        match $rows {
            12 => $tile::<$($($generic,)+)? 12>($($arg),+),
            11 => $tile::<$($($generic,)+)? 11>($($arg),+),
            10 => $tile::<$($($generic,)+)? 10>($($arg),+),
            9 => $tile::<$($($generic,)+)? 9>($($arg),+),
            8 => $tile::<$($($generic,)+)? 8>($($arg),+),
            7 => $tile::<$($($generic,)+)? 7>($($arg),+),
            6 => $tile::<$($($generic,)+)? 6>($($arg),+),
            5 => $tile::<$($($generic,)+)? 5>($($arg),+),
            4 => $tile::<$($($generic,)+)? 4>($($arg),+),
            3 => $tile::<$($($generic,)+)? 3>($($arg),+),
            2 => $tile::<$($($generic,)+)? 2>($($arg),+),
            _ => $tile::<$($($generic,)+)? 1>($($arg),+),
        }
    };
}
pub(super) use with_rows;

/// Up to 12 rows by 32 columns, with the tile shape that fits the registers.
///
/// # Safety
/// `rows` rows and 32 columns of the operands must be valid.
#[inline(always)]
pub(super) unsafe fn row_tile<S: Simd, A: Ahead>(simd: S, rows: usize, o: Operands<f32>) {
    unsafe {
        if S::F32_LANES >= 16 {
            with_rows!(rows, tile::<S, A>, simd, o);
            return;
        }
        for column in (0..PANEL).step_by(2 * S::F32_LANES) {
            let mut row = 0;
            while row < rows {
                let part = o.offset(row, column);
                match rows - row {
                    1 => tile::<S, A, 1>(simd, part),
                    2 => tile::<S, A, 2>(simd, part),
                    3 => tile::<S, A, 3>(simd, part),
                    4 | 5 => tile::<S, A, 4>(simd, part),
                    _ => tile::<S, A, 6>(simd, part),
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

/// The micro-kernel: `MR` rows by 2 vectors, accumulated in registers.
///
/// # Safety
/// `MR` rows and 2 vectors of columns of the operands must be valid.
#[inline(always)]
unsafe fn tile<S: Simd, A: Ahead, const MR: usize>(simd: S, o: Operands<f32>) {
    unsafe {
        let mut acc = [[simd.splat_f32s(0.0); 2]; MR];
        if o.add {
            for (r, row) in acc.iter_mut().enumerate() {
                for (v, slot) in row.iter_mut().enumerate() {
                    *slot = load::<S>(o.c.add(r * o.ldc + v * S::F32_LANES));
                }
            }
        }
        let (mut a, mut b, mut ahead) = (o.a, o.b, o.ahead);
        for _ in 0..o.k {
            A::fetch(ahead);
            let columns = [load::<S>(b), load::<S>(b.add(S::F32_LANES))];
            for (r, row) in acc.iter_mut().enumerate() {
                let x = simd.splat_f32s(*a.add(r * o.row_stride));
                for (slot, column) in row.iter_mut().zip(columns) {
                    *slot = simd.mul_add_f32s(x, column, *slot);
                }
            }
            a = a.wrapping_add(o.k_stride);
            b = b.wrapping_add(o.ldb);
            ahead = ahead.wrapping_add(o.ldb);
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
