//! Sums over a row of the vocabulary's size, in a fixed order of lanes.

/// Lanes of a reduction. Fixed, so that a sum has the same bits on every instruction set.
const LANES: usize = 32;

vectorized! {
    /// `Σ weights[i] · (logits[i] - max)`; a weight of 0 adds nothing, whatever its logit.
    pub(crate) fn shifted_mean(weights: &[f32], logits: &[f32], max: f32) -> f32 {
        let mut lanes = [0.0f32; LANES];
        let (whole_w, rest_w) = weights.as_chunks::<LANES>();
        let (whole_l, rest_l) = logits.as_chunks::<LANES>();
        for (w, l) in whole_w.iter().zip(whole_l) {
            for i in 0..LANES {
                let shifted = if w[i] > 0.0 { l[i] - max } else { 0.0 };
                lanes[i] = w[i].mul_add(shifted, lanes[i]);
            }
        }
        for ((lane, w), l) in lanes.iter_mut().zip(rest_w).zip(rest_l) {
            let shifted = if *w > 0.0 { l - max } else { 0.0 };
            *lane = w.mul_add(shifted, *lane);
        }
        lanes.iter().sum()
    }
}

vectorized! {
    /// The sum of all weights, in double precision.
    pub(crate) fn sum(weights: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let (whole, rest) = weights.as_chunks::<LANES>();
        for w in whole {
            for i in 0..LANES {
                lanes[i] += f64::from(w[i]);
            }
        }
        for (lane, w) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*w);
        }
        lanes.iter().sum()
    }
}
