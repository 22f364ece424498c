//! Measuring: Pass@k without bias, mean and standard error over runs.

/// Unbiased estimate of the probability that at least one of `k` rollouts solves a task, from
/// `num_solved` of `num_rollouts` (Chen et al., "Evaluating Large Language Models Trained on
/// Code", arXiv 2107.03374, equation 1):
///
/// ```text
/// pass@k = 1 - C(n - c, k) / C(n, k) = 1 - prod over i = n - c + 1 ..= n of (1 - k / i)
/// ```
///
/// The product form never forms the binomials. `None` when `k` is 0 or above `num_rollouts`, or
/// more are solved than were run: no estimate exists.
pub fn pass_at_k(num_rollouts: usize, num_solved: usize, k: usize) -> Option<f64> {
    if k == 0 || k > num_rollouts || num_solved > num_rollouts {
        return None;
    }
    let num_failed = num_rollouts - num_solved;
    if num_failed < k {
        return Some(1.0);
    }
    let miss: f64 = (num_failed + 1..=num_rollouts).map(|i| 1.0 - k as f64 / i as f64).product();
    Some(1.0 - miss)
}

/// Mean and its standard error, `s / sqrt(n)` with the sample deviation `s` (divided by `n - 1`).
/// The error is 0 for fewer than two values, the mean 0 for none.
pub fn mean_and_sem(values: &[f64]) -> (f64, f64) {
    if values.is_empty() {
        return (0.0, 0.0);
    }
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return (mean, 0.0);
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    (mean, (variance / count).sqrt())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{mean_and_sem, pass_at_k};

    #[test]
    fn by_hand() {
        let near = |got: Option<f64>, expected: f64| {
            assert!((got.unwrap() - expected).abs() < 1e-12, "{got:?} {expected}");
        };
        near(pass_at_k(10, 1, 1), 0.1);
        near(pass_at_k(10, 1, 10), 1.0);
        near(pass_at_k(10, 0, 10), 0.0);
        // 1 - C(3,2)/C(5,2) = 1 - 3/10
        near(pass_at_k(5, 2, 2), 0.7);
        // 1 - C(8,5)/C(10,5) = 1 - 56/252
        near(pass_at_k(10, 2, 5), 1.0 - 56.0 / 252.0);
        for (n, c, k) in [(10, 1, 0), (10, 1, 11), (3, 4, 1)] {
            assert_eq!(pass_at_k(n, c, k), None);
        }
    }

    #[test]
    fn sem_by_hand() {
        let (mean, sem) = mean_and_sem(&[1.0, 2.0, 3.0, 4.0]);
        assert!((mean - 2.5).abs() < 1e-12);
        // variance 5/3, over 4, root
        assert!((sem - (5.0f64 / 12.0).sqrt()).abs() < 1e-12);
        assert_eq!(mean_and_sem(&[3.0]), (3.0, 0.0));
        assert_eq!(mean_and_sem(&[]), (0.0, 0.0));
    }

    proptest! {
        /// Averaging "is there a solved one" over every subset of k is the definition.
        #[test]
        fn equals_the_average_over_subsets(n in 1usize..11, c in 0usize..11, k in 1usize..11) {
            let (c, k) = (c.min(n), k.min(n));
            let (mut hits, mut total) = (0u32, 0u32);
            for subset in 0u32..1 << n {
                if subset.count_ones() as usize == k {
                    total += 1;
                    hits += u32::from(subset & ((1 << c) - 1) != 0);
                }
            }
            let expected = f64::from(hits) / f64::from(total);
            prop_assert!((pass_at_k(n, c, k).unwrap() - expected).abs() < 1e-9);
        }

        #[test]
        fn it_rises_with_k_and_with_solved(n in 2usize..50, c in 0usize..49, k in 1usize..49) {
            let (c, k) = (c.min(n - 1), k.min(n - 1));
            let here = pass_at_k(n, c, k).unwrap();
            prop_assert!(pass_at_k(n, c, k + 1).unwrap() >= here - 1e-12);
            prop_assert!(pass_at_k(n, c + 1, k).unwrap() >= here - 1e-12);
        }
    }
}
