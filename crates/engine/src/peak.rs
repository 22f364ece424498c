//! What this machine's cores can multiply: the yardstick of the benches.

use std::time::Instant;

use crate::kernels::gemm::{Into, PackedMatrix, Precision, matmul};

/// Side of the square products; large enough to amortise everything, small enough for caches.
const SIDE: usize = 768;

/// Floating-point operations per second of square products, in units of 10^9, on `num_threads`
/// threads at once: the best of `rounds`.
pub fn gemm_peak_gflops(precision: Precision, num_threads: usize, rounds: usize) -> f64 {
    let weight: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut packed = PackedMatrix::new(precision);
    packed.pack_transposed(&weight, SIDE, SIDE);
    let mut best = 0.0f64;
    for _ in 0..rounds {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..num_threads {
                scope.spawn(|| {
                    let mut c = vec![0.0f32; SIDE * SIDE];
                    for _ in 0..8 {
                        matmul(&weight, &packed, &mut c, Into::Set);
                    }
                    std::hint::black_box(&c);
                });
            }
        });
        let operations = (num_threads * 8 * 2 * SIDE * SIDE * SIDE) as f64;
        best = best.max(operations / started.elapsed().as_secs_f64() / 1e9);
    }
    best
}
