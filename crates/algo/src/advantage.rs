//! Group-normalised advantages.

/// Advantages of the siblings of one instance:
///
/// ```text
/// A_i = (R_i - mean(R)) / (std(R) + delta)
/// ```
///
/// GRPO (Shao et al., arXiv 2402.03300) as used in arXiv 2508.03501, section 4.3. `std` is the
/// population's (divided by the group's size). Every action token of rollout `i` gets `A_i`.
/// Equal rewards give exactly 0, rounding of the mean notwithstanding.
///
/// `rewards` are those of the graded siblings, `[g]`; the result has the same order.
pub fn group_normalised(rewards: &[f64], delta: f64) -> Vec<f64> {
    let Some((first, rest)) = rewards.split_first() else {
        return Vec::new();
    };
    if rest.iter().all(|reward| reward.to_bits() == first.to_bits()) {
        return vec![0.0; rewards.len()];
    }
    let count = rewards.len() as f64;
    let mean = rewards.iter().sum::<f64>() / count;
    let variance = rewards.iter().map(|reward| (reward - mean).powi(2)).sum::<f64>() / count;
    let scale = variance.sqrt() + delta;
    rewards.iter().map(|reward| (reward - mean) / scale).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::group_normalised;

    /// One solved of four: mean 1/4, std sqrt(3)/4, so 3/4 over that is sqrt(3).
    #[test]
    fn one_of_four_by_hand() {
        let advantages = group_normalised(&[1.0, 0.0, 0.0, 0.0], 1e-12);
        let root = 3f64.sqrt();
        for (got, expected) in advantages.iter().zip([root, -1.0 / root, -1.0 / root, -1.0 / root])
        {
            assert!((got - expected).abs() < 1e-9, "{advantages:?}");
        }
    }

    #[test]
    fn equal_rewards_give_exactly_zero() {
        assert_eq!(group_normalised(&[0.1; 7], 1e-6), vec![0.0; 7]);
        assert!(group_normalised(&[], 1e-6).is_empty());
    }

    proptest! {
        #[test]
        fn they_sum_to_zero_and_keep_order(rewards in prop::collection::vec(-2.0f64..2.0, 2..20)) {
            let advantages = group_normalised(&rewards, 1e-6);
            prop_assert!(advantages.iter().sum::<f64>().abs() < 1e-6);
            for i in 0..rewards.len() {
                for j in 0..rewards.len() {
                    if rewards[i] < rewards[j] {
                        prop_assert!(advantages[i] <= advantages[j]);
                    }
                }
            }
            let square = advantages.iter().map(|a| a * a).sum::<f64>() / rewards.len() as f64;
            prop_assert!(square <= 1.0 + 1e-9);
        }

        #[test]
        fn a_shift_of_all_rewards_changes_nothing(
            rewards in prop::collection::vec(0.0f64..1.0, 2..12), shift in -3.0f64..3.0,
        ) {
            let shifted: Vec<f64> = rewards.iter().map(|reward| reward + shift).collect();
            for (a, b) in group_normalised(&rewards, 1e-3).iter().zip(group_normalised(&shifted, 1e-3)) {
                prop_assert!((a - b).abs() < 1e-6);
            }
        }
    }
}
