//! From samples to optimizer steps.

use std::ops::Range;

use patchwright_core::stream;
use rand::seq::SliceRandom;

/// Number of optimizer steps for `num_samples` trajectories: as many as `batch_size` asks for,
/// rounded, within `[min_steps, max_steps]`, and never more than samples. 0 only without samples.
pub fn num_steps(
    num_samples: usize,
    batch_size: usize,
    min_steps: usize,
    max_steps: usize,
) -> usize {
    let batch_size = batch_size.max(1);
    let wanted = (num_samples + batch_size / 2) / batch_size;
    wanted.max(min_steps).min(max_steps.max(1)).max(1).min(num_samples)
}

/// Cuts `0..num_items` into `num_parts` ranges whose lengths differ by at most 1.
pub fn even_parts(num_items: usize, num_parts: usize) -> Vec<Range<usize>> {
    (0..num_parts)
        .map(|part| part * num_items / num_parts..(part + 1) * num_items / num_parts)
        .collect()
}

/// The samples of each optimizer step, by index: a seeded shuffle, cut evenly. Shuffling keeps
/// the siblings of one instance from making up a step of their own.
pub fn optimizer_batches(num_samples: usize, num_steps: usize, seed: u64) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..num_samples).collect();
    order.shuffle(&mut stream(seed, &["optimizer_batches"]));
    even_parts(num_samples, num_steps).into_iter().map(|part| order[part].to_vec()).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{num_steps, optimizer_batches};

    #[test]
    fn steps_by_hand() {
        // (samples, batch, min, max) -> steps; the reference's stage 1 is (_, 128, 2, 8).
        let cases = [
            ((0, 128, 2, 8), 0),
            ((1, 128, 2, 8), 1),
            ((100, 128, 2, 8), 2),
            ((500, 128, 2, 8), 4),
            ((3000, 128, 2, 8), 8),
            ((130, 32, 4, 4), 4),
        ];
        for ((samples, batch, min, max), expected) in cases {
            assert_eq!(num_steps(samples, batch, min, max), expected);
        }
    }

    proptest! {
        #[test]
        fn every_sample_is_in_exactly_one_step(samples in 1usize..200, steps in 1usize..9, seed: u64) {
            let steps = steps.min(samples);
            let batches = optimizer_batches(samples, steps, seed);
            prop_assert_eq!(batches.len(), steps);
            let sizes: Vec<usize> = batches.iter().map(Vec::len).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
            let mut all: Vec<usize> = batches.concat();
            all.sort_unstable();
            prop_assert_eq!(all, (0..samples).collect::<Vec<_>>());
            prop_assert_eq!(optimizer_batches(samples, steps, seed), batches);
        }
    }
}
