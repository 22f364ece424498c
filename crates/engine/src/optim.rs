//! `AdamW` and learning-rate schedules.

use patchwright_core::AdamParams;
use serde::{Deserialize, Serialize};

use crate::kernels::vectorized;
use crate::params::ParamLayout;

/// Elements whose squares are summed together; fixed, so that the norm has the same bits on any
/// number of threads.
const NORM_CHUNK: usize = 1 << 14;

/// How the learning rate goes over a run of `total_steps` optimizer steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum LrSchedule {
    /// Linear warm-up over `warmup_steps`, then constant.
    Constant {
        /// Steps until the full rate.
        warmup_steps: u64,
    },
    /// Linear warm-up over `warmup_steps`, then half a cosine down to 0 at `total_steps`
    /// (Loshchilov & Hutter, arXiv 1608.03983, without restarts).
    Cosine {
        /// Steps until the full rate.
        warmup_steps: u64,
        /// Steps until 0.
        total_steps: u64,
    },
}

impl LrSchedule {
    /// Factor on the peak rate for step `step`, counted from 0; the first step already moves.
    pub fn factor(self, step: u64) -> f32 {
        let (Self::Constant { warmup_steps } | Self::Cosine { warmup_steps, .. }) = self;
        if step < warmup_steps {
            return (step + 1) as f32 / warmup_steps as f32;
        }
        match self {
            Self::Constant { .. } => 1.0,
            Self::Cosine { total_steps, .. } => {
                let length = total_steps.saturating_sub(warmup_steps).max(1);
                let progress = ((step - warmup_steps) as f64 / length as f64).min(1.0);
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())) as f32
            }
        }
    }
}

/// Moments and step count, in the places of the parameters. Empty until the first step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
    pub step: u64,
}

/// L2 norm of a gradient.
pub(crate) fn norm(gradient: &[f32]) -> f64 {
    gradient.chunks(NORM_CHUNK).map(sum_of_squares).sum::<f64>().sqrt()
}

vectorized! {
    fn sum_of_squares(values: &[f32]) -> f64 {
        let mut lanes = [0.0f64; 8];
        let (whole, rest) = values.as_chunks::<8>();
        for part in whole {
            for (lane, x) in lanes.iter_mut().zip(part) {
                *lane += f64::from(*x) * f64::from(*x);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane += f64::from(*x) * f64::from(*x);
        }
        lanes.iter().sum()
    }
}

/// One step of `AdamW` (arXiv 1711.05101, with `PyTorch`'s order of operations) on all tensors, the
/// gradient being multiplied by `scale` first.
pub(crate) fn adamw(
    layout: &ParamLayout,
    params: &mut [f32],
    gradient: &[f32],
    scale: f32,
    moments: &mut Moments,
    adam: &AdamParams,
) {
    moments.first.resize(params.len(), 0.0);
    moments.second.resize(params.len(), 0.0);
    moments.step += 1;
    let step = moments.step as f64;
    let correction = |beta: f32| 1.0 - f64::from(beta).powf(step);
    let step = Step {
        scale,
        beta1: adam.beta1,
        beta2: adam.beta2,
        size: (f64::from(adam.lr) / correction(adam.beta1)) as f32,
        inverse_root: (1.0 / correction(adam.beta2).sqrt()) as f32,
        eps: adam.eps,
    };
    for tensor in &layout.tensors {
        let keep = if tensor.kind.decays() { 1.0 - adam.lr * adam.weight_decay } else { 1.0 };
        let range = tensor.range.clone();
        let (p, g) = (&mut params[range.clone()], &gradient[range.clone()]);
        let (m, v) = (&mut moments.first[range.clone()], &mut moments.second[range]);
        adamw_tensor(p, g, m, v, keep, step);
    }
}

/// The numbers of a step that all elements share.
#[derive(Clone, Copy)]
struct Step {
    scale: f32,
    beta1: f32,
    beta2: f32,
    /// Learning rate over the first moment's bias correction.
    size: f32,
    /// One over the root of the second moment's bias correction.
    inverse_root: f32,
    eps: f32,
}

vectorized! {
    fn adamw_tensor(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], keep: f32, step: Step) {
        for (((p, g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * step.scale;
            *m += (1.0 - step.beta1) * (g - *m);
            *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
            *p = *p * keep - step.size * *m / (v.sqrt() * step.inverse_root + step.eps);
        }
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are meant")]
mod tests {
    use super::LrSchedule;

    #[test]
    fn schedules() {
        let cosine = LrSchedule::Cosine { warmup_steps: 4, total_steps: 104 };
        assert!((cosine.factor(0) - 0.25).abs() < 1e-6);
        assert!((cosine.factor(3) - 1.0).abs() < 1e-6);
        assert!((cosine.factor(54) - 0.5).abs() < 1e-6);
        assert!(cosine.factor(104) == 0.0 && cosine.factor(1000) == 0.0);
        let rates: Vec<f32> = (4..=104).map(|s| cosine.factor(s)).collect();
        assert!(rates.windows(2).all(|w| w[0] > w[1]));
        let constant = LrSchedule::Constant { warmup_steps: 0 };
        assert!(constant.factor(0) == 1.0 && constant.factor(9) == 1.0);
        // No division by zero when all of the run is warm-up.
        assert!(LrSchedule::Cosine { warmup_steps: 5, total_steps: 5 }.factor(5).is_finite());
    }
}
