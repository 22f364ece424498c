//! Rotary position embedding (Su et al., arXiv 2104.09864), in the half-split convention of the
//! Hugging Face checkpoints: element `i` is rotated with element `i + head_dim / 2`. Longer
//! contexts than a model was trained for come from scaled frequencies ([`RopeScaling`]).

#![expect(clippy::inline_always, reason = "called within functions of an instruction set")]

use std::f64::consts::TAU;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::ModelConfig;

/// How the rotary frequencies are stretched, under the names of `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "rope_type", rename_all = "snake_case")]
pub enum RopeScaling {
    /// Every position divided by `factor` (Chen et al., arXiv 2306.15595).
    Linear {
        /// How many times longer the context becomes.
        factor: f64,
    },
    /// `YaRN` (Peng et al., arXiv 2309.00071): slow frequencies are stretched, fast ones stay,
    /// with a ramp between, and the rotation is scaled by the attention factor.
    Yarn {
        /// How many times longer the context becomes.
        factor: f64,
        /// Context of the training that is stretched; `max_position_embeddings` without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        original_max_position_embeddings: Option<usize>,
        /// Scale of cosines and sines; `0.1 ln(factor) + 1` without it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        attention_factor: Option<f64>,
        /// Rotations over the original context above which a frequency stays.
        #[serde(default = "beta_fast")]
        beta_fast: f64,
        /// Rotations below which a frequency is stretched in full.
        #[serde(default = "beta_slow")]
        beta_slow: f64,
        /// Whether the ramp's ends are rounded outwards to whole dimensions.
        #[serde(default = "truncate")]
        truncate: bool,
    },
    /// As Llama 3.1 has it: wavelengths above `original / low_freq_factor` are stretched, below
    /// `original / high_freq_factor` they stay.
    Llama3 {
        /// How many times longer the context becomes.
        factor: f64,
        /// Where the ramp begins.
        low_freq_factor: f64,
        /// Where the ramp ends.
        high_freq_factor: f64,
        /// Context of the training that is stretched.
        original_max_position_embeddings: usize,
    },
}

fn beta_fast() -> f64 {
    32.0
}

fn beta_slow() -> f64 {
    1.0
}

fn truncate() -> bool {
    true
}

impl RopeScaling {
    /// Reads a `rope_scaling` or `rope_parameters` section. `None`: the plain rotation.
    ///
    /// # Errors
    /// The kind or key that is not known: what would be ignored is refused.
    pub(crate) fn parse(section: &Value) -> Result<Option<Self>, String> {
        let Some(object) = section.as_object() else { return Ok(None) };
        let mut object = object.clone();
        // It has a place of its own, in the config.
        object.remove("rope_theta");
        // The older spelling of the kind; some files have both.
        let older = object.remove("type");
        if let Some(kind) = older {
            object.entry("rope_type").or_insert(kind);
        }
        match object.get("rope_type").and_then(Value::as_str) {
            None if object.is_empty() => return Ok(None),
            Some("default") => return Ok(None),
            _ => {}
        }
        object.retain(|_, value| !value.is_null());
        let given = Value::Object(object.clone());
        let scaling: Self = serde_json::from_value(given).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(scaling).map_err(|error| error.to_string())?;
        if let Some(key) = object.keys().find(|key| known.get(key.as_str()).is_none()) {
            return Err(format!("{key} is not supported"));
        }
        scaling.validate()?;
        Ok(Some(scaling))
    }

    /// The section that `transformers` reads.
    pub(crate) fn to_json(self, theta: f32) -> Value {
        let mut section = serde_json::to_value(self).unwrap_or_default();
        section["rope_theta"] = theta.into();
        section
    }

    fn validate(self) -> Result<(), String> {
        let positive = |name: &str, x: f64| {
            if x.is_finite() && x > 0.0 {
                Ok(())
            } else {
                Err(format!("{name} is {x}, expected a positive number"))
            }
        };
        match self {
            Self::Linear { factor } => positive("factor", factor),
            Self::Yarn { factor, attention_factor, beta_fast, beta_slow, .. } => {
                positive("factor", factor)?;
                positive("attention_factor", attention_factor.unwrap_or(1.0))?;
                positive("beta_fast", beta_fast)?;
                positive("beta_slow", beta_slow)
            }
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, .. } => {
                positive("factor", factor)?;
                positive("low_freq_factor", low_freq_factor)?;
                positive("high_freq_factor - low_freq_factor", high_freq_factor - low_freq_factor)
            }
        }
    }

    /// Stretches the plain frequencies. Returns the scale of cosines and sines.
    fn apply(self, config: &ModelConfig, frequencies: &mut [f32]) -> f32 {
        match self {
            Self::Linear { factor } => {
                for f in frequencies {
                    *f /= factor as f32;
                }
                1.0
            }
            Self::Yarn {
                factor,
                original_max_position_embeddings,
                attention_factor,
                beta_fast,
                beta_slow,
                truncate,
            } => {
                let context =
                    original_max_position_embeddings.unwrap_or(config.max_position_embeddings);
                let dim = config.head_dim as f64;
                let theta = f64::from(config.rope_theta);
                // The dimension that turns `rotations` times within the original context.
                let dimension_of = |rotations: f64| {
                    dim * (context as f64 / (rotations * TAU)).ln() / (2.0 * theta.ln())
                };
                let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim - 1.0));
                if low >= high {
                    high = low + 0.001;
                }
                for (i, f) in frequencies.iter_mut().enumerate() {
                    let stretched = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    *f *= (stretched / factor + 1.0 - stretched) as f32;
                }
                let by_factor = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                attention_factor.unwrap_or(by_factor) as f32
            }
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings: context,
            } => {
                for f in frequencies {
                    let rotations = context as f64 * f64::from(*f) / TAU;
                    let kept = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    let kept = kept.clamp(0.0, 1.0);
                    *f *= ((1.0 - kept) / factor + kept) as f32;
                }
                1.0
            }
        }
    }

    /// The scaling of Llama 3 that divides the plain frequencies of `config` by `divisors`, which is
    /// how GGUF files tell it; `None` where all are 1. Only the products of its parameters can be
    /// found again: the ramp begins at one rotation over the original context.
    ///
    /// # Errors
    /// When no such scaling has these divisors.
    pub(crate) fn from_divisors(
        config: &ModelConfig,
        divisors: &[f32],
    ) -> Result<Option<Self>, String> {
        let plain = plain_frequencies(config);
        if divisors.len() != plain.len() {
            return Err(format!("has {} divisors, expected {}", divisors.len(), plain.len()));
        }
        let near = |a: f32, b: f32| (a - b).abs() <= NEAR * b;
        if divisors.iter().all(|d| near(*d, 1.0)) {
            return Ok(None);
        }
        let factor = divisors.iter().copied().fold(0.0, f32::max);
        // Rotations for a context of one, and the share of the plain frequency that is kept.
        let points: Vec<(f64, f64)> = plain
            .iter()
            .zip(divisors)
            .map(|(f, d)| {
                let (factor, divisor) = (f64::from(factor), f64::from(*d));
                (f64::from(*f) / TAU, (factor / divisor - 1.0) / (factor - 1.0))
            })
            .collect();
        let fits = |scaling: &Self| {
            let mut found = plain.clone();
            scaling.validate().is_ok() && {
                scaling.apply(config, &mut found);
                found.iter().zip(&plain).zip(divisors).all(|((f, p), d)| near(p / f, *d))
            }
        };
        let usual = Self::Llama3 {
            factor: f64::from(factor),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192,
        };
        let found = [Some(usual), ramp(f64::from(factor), &points)];
        found.into_iter().flatten().find(fits).map(Some).ok_or_else(|| {
            "divides the rotary frequencies as no scaling of Llama 3 does; take the model's Hugging \
             Face directory"
                .to_owned()
        })
    }
}

/// Relative difference of divisors that are taken for the same.
const NEAR: f32 = 1e-4;

/// The scaling whose ramp goes through these points, of rotations for a context of one and the share
/// of the plain frequency that is kept.
fn ramp(factor: f64, points: &[(f64, f64)]) -> Option<RopeScaling> {
    let inside = |share: f64| (1e-3..1.0 - 1e-3).contains(&share);
    let on_ramp: Vec<_> = points.iter().filter(|(_, share)| inside(*share)).collect();
    let (context, high_freq_factor) = if let [(x, y), .., (x2, y2)] = on_ramp[..] {
        // share = (context · x - 1) / (high - 1)
        let slope = (y2 - y) / (x2 - x);
        let width = 1.0 / (slope * x - y);
        (slope * width, 1.0 + width)
    } else {
        // The fastest frequency that is stretched in full turns once.
        let stretched = points.iter().filter(|(_, share)| *share < 1e-3).map(|(x, _)| *x);
        let context = 1.0 / stretched.fold(f64::NAN, f64::max);
        let width = on_ramp.first().map_or(3.0, |(x, y)| (context * x - 1.0) / y);
        (context, 1.0 + width)
    };
    (context.is_finite() && context >= 0.5).then(|| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor,
        original_max_position_embeddings: context.round() as usize,
    })
}

/// The frequencies without any scaling, in f32 as the reference has them: models learned with these
/// very angles.
fn plain_frequencies(config: &ModelConfig) -> Vec<f32> {
    let (half, dim) = (config.head_dim / 2, config.head_dim as f32);
    (0..half).map(|i| 1.0 / config.rope_theta.powf(2.0 * i as f32 / dim)).collect()
}

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
        let mut frequencies = plain_frequencies(config);
        let scale =
            config.rope_scaling.map_or(1.0, |scaling| scaling.apply(config, &mut frequencies));
        let angles = (0..config.max_position_embeddings)
            .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f));
        let (sin, cos) = angles
            .map(|angle| {
                let (sin, cos) = angle.sin_cos();
                (sin * scale, cos * scale)
            })
            .unzip();
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

    /// The transpose of [`Rope::rotate`], which is its backward.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelType;

    fn config(head_dim: usize) -> ModelConfig {
        let mut config = crate::bench::shape("1m", 64).unwrap();
        (config.head_dim, config.rope_theta, config.model_type) = (head_dim, 5e5, ModelType::Llama);
        config
    }

    fn divisors(scaling: RopeScaling, config: &ModelConfig) -> Vec<f32> {
        let plain = plain_frequencies(config);
        let mut scaled = plain.clone();
        scaling.apply(config, &mut scaled);
        plain.iter().zip(scaled).map(|(p, s)| p / s).collect()
    }

    #[test]
    fn scalings_are_found_again_from_their_divisors() {
        for (head_dim, factor, low, high, context) in [
            (128, 8.0, 1.0, 4.0, 8192),
            (64, 32.0, 1.0, 4.0, 8192),
            (128, 16.0, 2.0, 3.0, 4096),
            (128, 4.0, 1.0, 16.0, 2048),
            (4, 8.0, 1.0, 4.0, 32),
        ] {
            let config = config(head_dim);
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: context,
            };
            let wanted = divisors(scaling, &config);
            let found = RopeScaling::from_divisors(&config, &wanted).unwrap().unwrap();
            for (a, b) in divisors(found, &config).iter().zip(&wanted) {
                assert!((a - b).abs() <= 1e-4 * b, "{scaling:?}, {found:?}: {a} and {b}");
            }
            if (low, high, context) == (1.0, 4.0, 8192) {
                assert_eq!(found, scaling);
            }
        }
    }

    #[test]
    fn other_divisors_are_refused() {
        let config = config(64);
        assert_eq!(RopeScaling::from_divisors(&config, &[1.0; 32]), Ok(None));
        assert!(
            RopeScaling::from_divisors(&config, &[1.0; 3]).unwrap_err().contains("expected 32")
        );
        for wrong in [0.0, -2.0, f32::NAN, f32::INFINITY, 3.0] {
            let mut divisors = [1.0; 32];
            (divisors[3], divisors[20]) = (wrong, 8.0);
            let found = RopeScaling::from_divisors(&config, &divisors);
            assert!(found.unwrap_err().contains("Llama 3"), "{wrong}");
        }
    }
}
