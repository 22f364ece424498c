//! Products of few rows with a large matrix: its columns are shared out to all threads.
//!
//! A step of a few sequences reads every weight once and does little with it, so it is bound by
//! memory, and both the bandwidth and the caches of all cores are wanted. An element is the same
//! chain of operations wherever it is computed, so the bits are those of [`matmul`].

use super::gemm::{Into, PANEL, PackedMatrix, matmul, matmul_part};

/// Parts that each thread gets, so that one that is held up does not hold up the others.
const PARTS_PER_THREAD: usize = 3;

/// Least number of weights in a part: reading them takes some microseconds, as waking a thread.
const MIN_PART_WEIGHTS: usize = 1 << 16;

/// As [`matmul`], on all threads of the rayon pool that the caller belongs to.
pub(crate) fn matmul_wide(a: &[f32], b: &PackedMatrix, c: &mut [f32], into: Into) {
    let (k, n) = b.shape();
    let num_panels = n.div_ceil(PANEL);
    let most = (k * n / MIN_PART_WEIGHTS).min(rayon::current_num_threads() * PARTS_PER_THREAD);
    if rayon::current_num_threads() < 2 || most < 2 {
        matmul(a, b, c, into);
        return;
    }
    let per_part = num_panels.div_ceil(most);
    let rows = c.len() / n;
    if rows == 1 {
        // One row: its columns are neighbours.
        rayon::scope(|scope| {
            for (part, c) in c.chunks_mut(per_part * PANEL).enumerate() {
                scope.spawn(move |_| matmul_part(a, b, part * per_part * PANEL, c, into));
            }
        });
        return;
    }
    let mut parts: Vec<Vec<f32>> = Vec::new();
    let columns = |part: usize| part * per_part * PANEL..((part + 1) * per_part * PANEL).min(n);
    for part in 0..num_panels.div_ceil(per_part) {
        let columns = columns(part);
        let mut own = vec![0.0; rows * columns.len()];
        if into == Into::Add {
            for (own, row) in own.chunks_exact_mut(columns.len()).zip(c.chunks_exact(n)) {
                own.copy_from_slice(&row[columns.clone()]);
            }
        }
        parts.push(own);
    }
    rayon::scope(|scope| {
        for (part, own) in parts.iter_mut().enumerate() {
            let start = columns(part).start;
            scope.spawn(move |_| matmul_part(a, b, start, own, into));
        }
    });
    for (part, own) in parts.iter().enumerate() {
        let columns = columns(part);
        for (own, row) in own.chunks_exact(columns.len()).zip(c.chunks_exact_mut(n)) {
            row[columns.clone()].copy_from_slice(own);
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng};

    use super::super::gemm::Precision;
    use super::*;

    #[test]
    fn shared_columns_have_the_same_bits() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
        for (rows, k, n) in [(1, 200, 2000), (3, 333, 1001), (40, 512, 513), (2, 8, 16)] {
            let mut values =
                |len| -> Vec<f32> { (0..len).map(|_| rng.random_range(-1.0f32..1.0)).collect() };
            let (a, w, old) = (values(rows * k), values(k * n), values(rows * n));
            for (precision, into) in [
                (Precision::F32, Into::Set),
                (Precision::F32, Into::Add),
                (Precision::Bf16, Into::Set),
                (Precision::Bf16, Into::Add),
            ] {
                let mut b = PackedMatrix::new(precision);
                b.pack_transposed(&w, n, k);
                let (mut alone, mut shared) = (old.clone(), old.clone());
                matmul(&a, &b, &mut alone, into);
                pool.install(|| matmul_wide(&a, &b, &mut shared, into));
                assert!(alone.iter().zip(&shared).all(|(x, y)| x.to_bits() == y.to_bits()));
            }
        }
    }
}
