//! Parts of rounds that threads take: attention's ranges of keys, and pieces of gradients.

use std::ops::Range;

use crate::kernels::gemm::PANEL;
use crate::kernels::math;
use crate::kernels::outer::{OUTER_ROWS, Strips, add_outer};
use crate::microbatch::ThreadScratch;
use crate::team::Team;

/// A part of a round of attention and weight gradients.
pub(super) enum Part<'a> {
    /// A range of keys of a unit.
    Keys { unit: usize, range: Range<usize>, d_kv: &'a mut [f32] },
    /// Rows of a weight gradient, from `first` on.
    Outer { operands: &'a [(&'a Strips, &'a Strips)], first: usize, gradient: &'a mut [f32] },
    /// Columns of a norm's gradient, from `first` on.
    Norm { x: &'a [f32], inv_rms: &'a [f32], first: usize, gradient: &'a mut [f32] },
    /// The gradient of a head norm, of `heads` rows a token.
    HeadNorm {
        raw: (&'a [f32], usize),
        inv_rms: &'a [f32],
        d_out: (&'a [f32], usize),
        gradient: &'a mut [f32],
    },
    /// Columns of a bias's gradient, from `first` on.
    Bias { operands: &'a [(&'a Strips, &'a Strips)], first: usize, gradient: &'a mut [f32] },
}

impl Part<'_> {
    /// Whatever is no part of attention. `d_normed` is the gradient of the norm's output, `[t][h]`.
    pub(super) fn run(self, d_normed: &[f32], hidden: usize) {
        match self {
            Part::Keys { .. } => {}
            Part::Outer { operands, first, gradient } => add_outer(operands, first, gradient),
            Part::Norm { x, inv_rms, first, gradient } => {
                math::rms_norm_weight_backward(x, inv_rms, d_normed, hidden, first, gradient);
            }
            Part::HeadNorm { raw: (raw, ldr), inv_rms, d_out: (d_out, ldd), gradient } => {
                let rows = d_out.len().div_ceil(ldd);
                let heads = inv_rms.len() / rows;
                math::head_norm_backward((raw, ldr), inv_rms, (d_out, ldd), heads, gradient);
            }
            Part::Bias { operands, first, gradient } => {
                for (a, _) in operands {
                    a.add_columns(first, gradient);
                }
            }
        }
    }
}

/// A round without attention.
pub(super) fn run_simple(
    team: &Team,
    threads: &mut [ThreadScratch],
    parts: Vec<Part>,
    d_normed: &[f32],
    hidden: usize,
) {
    team.each(threads, parts, |_, part| part.run(d_normed, hidden));
}

/// Parts of a weight gradient, `[rows][columns]`.
pub(super) fn outer_parts<'a>(
    operands: &'a [(&'a Strips, &'a Strips)],
    gradient: &'a mut [f32],
    columns: usize,
    parts: &mut Vec<Part<'a>>,
) {
    let rows = gradient.chunks_mut(OUTER_ROWS * columns).enumerate();
    parts.extend(rows.map(|(i, gradient)| Part::Outer {
        operands,
        first: i * OUTER_ROWS,
        gradient,
    }));
}

/// Parts of a vector's gradient with their places.
pub(super) fn columns(gradient: &mut [f32]) -> impl Iterator<Item = (usize, &mut [f32])> {
    gradient.chunks_mut(4 * PANEL).enumerate().map(|(i, gradient)| (i * 4 * PANEL, gradient))
}
