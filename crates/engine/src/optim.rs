//! `AdamW`. Learning-rate schedules are `algo`'s: each step is told its rate.

use patchwright_core::AdamParams;

use crate::kernels::vectorized;
use crate::params::TensorSpec;
use crate::team::{RowsMut, Team};

/// Elements whose squares are summed together; fixed, so that the norm has the same bits on any
/// number of threads.
const NORM_CHUNK: usize = 1 << 14;

/// Elements that one thread steps at a time.
const STEP_CHUNK: usize = 1 << 15;

/// Moments and step count, in the places of the parameters. Empty until the first step.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
    pub step: u64,
}

/// L2 norm of a gradient.
pub(crate) fn norm(gradient: &[f32], team: &Team) -> f64 {
    let mut sums = vec![0.0f64; gradient.len().div_ceil(NORM_CHUNK)];
    let parts = gradient.chunks(NORM_CHUNK).zip(&mut sums).collect();
    team.each(&mut vec![(); team.size()], parts, |(), (values, sum)| *sum = sum_of_squares(values));
    sums.iter().sum::<f64>().sqrt()
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
/// gradient being multiplied by `scale` first, and cleared.
pub(crate) fn adamw(
    tensors: &[TensorSpec],
    params: &mut [f32],
    gradient: &mut [f32],
    scale: f32,
    moments: &mut Moments,
    adam: &AdamParams,
    team: &Team,
) {
    moments.first.resize(params.len(), 0.0);
    moments.second.resize(params.len(), 0.0);
    let step = moments.begin(adam, scale);
    let (mut params, mut gradient) = (RowsMut::new(params, 1), RowsMut::new(gradient, 1));
    let mut first = RowsMut::new(&mut moments.first, 1);
    let mut second = RowsMut::new(&mut moments.second, 1);
    let mut parts = Vec::new();
    // The tensors follow each other without gaps.
    for tensor in tensors {
        let keep = if tensor.kind.decays() { 1.0 - adam.lr * adam.weight_decay } else { 1.0 };
        for start in (0..tensor.range.len()).step_by(STEP_CHUNK) {
            let n = STEP_CHUNK.min(tensor.range.len() - start);
            parts.push((keep, params.take(n), gradient.take(n), first.take(n), second.take(n)));
        }
    }
    team.each(&mut vec![(); team.size()], parts, |(), (keep, p, g, m, v)| {
        adamw_tensor(p, g, m, v, keep, step);
    });
}

impl Moments {
    /// Counts a step.
    fn begin(&mut self, adam: &AdamParams, scale: f32) -> Step {
        self.step += 1;
        let step = self.step as f64;
        let correction = |beta: f32| 1.0 - f64::from(beta).powf(step);
        Step {
            scale,
            beta1: adam.beta1,
            beta2: adam.beta2,
            size: (f64::from(adam.lr) / correction(adam.beta1)) as f32,
            inverse_root: (1.0 / correction(adam.beta2).sqrt()) as f32,
            eps: adam.eps,
        }
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
    fn adamw_tensor(
        p: &mut [f32],
        g: &mut [f32],
        m: &mut [f32],
        v: &mut [f32],
        keep: f32,
        step: Step,
    ) {
        for (((p, gradient), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = *gradient * step.scale;
            *gradient = 0.0;
            *m += (1.0 - step.beta1) * (g - *m);
            *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
            *p = *p * keep - step.size * *m / (v.sqrt() * step.inverse_root + step.eps);
        }
    }
}
