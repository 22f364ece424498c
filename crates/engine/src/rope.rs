//! Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split convention of the
//! Hugging Face checkpoints: element `i` is rotated with element `i + head_dim / 2`.

#![expect(clippy::inline_always, reason = "called within functions of an instruction set")]

use crate::config::ModelConfig;

/// Cosines and sines of every position.
#[derive(Debug)]
pub(crate) struct Rope {
    half: usize,
    /// `[position][head_dim / 2]`.
    cos: Vec<f32>,
    /// `[position][head_dim / 2]`.
    sin: Vec<f32>,
}

impl Rope {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let half = config.head_dim / 2;
        let frequencies: Vec<f32> = (0..half)
            .map(|i| 1.0 / config.rope_theta.powf(2.0 * i as f32 / config.head_dim as f32))
            .collect();
        let angles = (0..config.max_position_embeddings)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (sin, cos) = angles.map(f32::sin_cos).unzip();
        Self { half, cos, sin }
    }

    /// Rotates a head in place by its position.
    #[inline(always)]
    pub(crate) fn rotate(&self, head: &mut [f32], position: usize) {
        let (cos, sin) = self.at(position);
        let (first, second) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] - b * sin[i];
            second[i] = b * cos[i] + a * sin[i];
        }
    }

    /// The inverse of [`Rope::rotate`], which is also its backward.
    #[inline(always)]
    pub(crate) fn rotate_back(&self, head: &mut [f32], position: usize) {
        let (cos, sin) = self.at(position);
        let (first, second) = head.split_at_mut(self.half);
        for i in 0..self.half {
            let (a, b) = (first[i], second[i]);
            first[i] = a * cos[i] + b * sin[i];
            second[i] = b * cos[i] - a * sin[i];
        }
    }

    #[inline(always)]
    fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half..(position + 1) * self.half;
        (&self.cos[range.clone()], &self.sin[range])
    }
}
