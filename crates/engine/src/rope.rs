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
        // In f32 from here on, as the reference has it: models learned with these very angles.
        let mut frequencies: Vec<f32> = (0..half)
            .map(|i| 1.0 / config.rope_theta.powf(2.0 * i as f32 / config.head_dim as f32))
            .collect();
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
