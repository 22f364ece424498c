//! The linear penalty on long trajectories.

/// The length penalty of Golubev et al. (arXiv 2508.03501, section 4.3):
///
/// ```text
/// R_len(tau) = 0                                   if |tau| < L_thr
///              (L_thr - |tau|) / (T_max - L_thr)   otherwise
/// ```
///
/// `num_turns` is |tau|, the number of steps; `length_threshold` is `L_thr`, `max_turns` is
/// `T_max`. The result is 0 below and at the threshold and falls to -1 at `max_turns`. A threshold
/// that is not below `max_turns` turns the penalty off (the equation would divide by zero).
pub fn length_penalty(num_turns: usize, length_threshold: usize, max_turns: usize) -> f64 {
    if num_turns < length_threshold || length_threshold >= max_turns {
        return 0.0;
    }
    -((num_turns - length_threshold) as f64) / (max_turns - length_threshold) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::length_penalty;

    /// By hand, with the reference's stage 1: `L_thr` 10, `T_max` 40.
    #[test]
    fn stage_1_of_the_reference() {
        for (turns, expected) in
            [(0, 0.0), (9, 0.0), (10, 0.0), (11, -1.0 / 30.0), (25, -0.5), (40, -1.0)]
        {
            assert!((length_penalty(turns, 10, 40) - expected).abs() < 1e-12, "{turns}");
        }
    }

    #[test]
    fn a_threshold_at_the_limit_turns_it_off() {
        assert_eq!(length_penalty(16, 16, 16).to_bits(), 0.0f64.to_bits());
    }

    proptest! {
        #[test]
        fn it_never_rises_with_length(threshold in 0usize..50, extra in 1usize..50, turns in 0usize..99) {
            let max = threshold + extra;
            let turns = turns.min(max - 1);
            let (now, next) =
                (length_penalty(turns, threshold, max), length_penalty(turns + 1, threshold, max));
            prop_assert!(next <= now);
            prop_assert!((-1.0..=0.0).contains(&next));
        }
    }
}
