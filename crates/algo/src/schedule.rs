//! Learning-rate schedules.

use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls along a half cosine to 0 at the last step.
    Cosine,
    /// It falls in a straight line to 0 at the last step.
    Linear,
}

/// Learning rate of `step` (from 0) of `num_steps`.
///
/// The warm-up rises in a straight line: step `s < warmup` has `peak * (s + 1) / warmup`, so that
/// no step is taken at 0. With `p = (step - warmup) / (num_steps - warmup)`, cosine is
/// `peak * (1 + cos(pi * p)) / 2` (Loshchilov & Hutter, arXiv 1608.03983, without restarts),
/// linear `peak * (1 - p)`; 0 would be reached at `step = num_steps`, which is not taken.
pub fn learning_rate(
    schedule: Schedule,
    peak: f32,
    step: usize,
    num_steps: usize,
    warmup: usize,
) -> f32 {
    if step < warmup {
        return peak * (step + 1) as f32 / warmup as f32;
    }
    let progress = if num_steps > warmup {
        ((step - warmup) as f32 / (num_steps - warmup) as f32).min(1.0)
    } else {
        0.0
    };
    match schedule {
        Schedule::Constant => peak,
        Schedule::Cosine => peak * 0.5 * (1.0 + (std::f32::consts::PI * progress).cos()),
        Schedule::Linear => peak * (1.0 - progress),
    }
}

#[cfg(test)]
mod tests {
    use super::{Schedule, learning_rate};

    #[test]
    fn by_hand() {
        let rates = |schedule| -> Vec<f32> {
            (0..8).map(|step| learning_rate(schedule, 1.0, step, 8, 4)).collect()
        };
        let near = |got: &[f32], expected: &[f32]| {
            for (a, b) in got.iter().zip(expected) {
                assert!((a - b).abs() < 1e-6, "{got:?} {expected:?}");
            }
        };
        near(&rates(Schedule::Constant), &[0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]);
        near(&rates(Schedule::Linear), &[0.25, 0.5, 0.75, 1.0, 1.0, 0.75, 0.5, 0.25]);
        let cosine = [0.25, 0.5, 0.75, 1.0, 1.0, 0.853_553_4, 0.5, 0.146_446_6];
        near(&rates(Schedule::Cosine), &cosine);
    }

    #[test]
    fn a_stage_shorter_than_its_warmup_is_finite() {
        for step in 0..3 {
            assert!(learning_rate(Schedule::Cosine, 1.0, step, 2, 2).is_finite());
        }
    }
}
