//! `AdamW`. Learning-rate schedules are `algo`'s: each step is told its rate.

use patchwright_core::AdamParams;

use crate::kernels::vectorized;
use crate::params::ParamLayout;

/// Elements whose squares are summed together; fixed, so that the norm has the same bits on any
/// number of threads.
const NORM_CHUNK: usize = 1 << 14;

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
