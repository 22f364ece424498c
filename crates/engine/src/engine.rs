//! Puts trainer and sampler together.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use patchwright_core::{PolicyVersion, TrainerError};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Checkpoint};
use crate::config::ModelConfig;
use crate::kernels::gemm::Precision;
use crate::kv_cache::PAGE;
use crate::optim::Moments;
use crate::sampler::EmbeddedSampler;
use crate::trainer::EmbeddedTrainer;
use crate::weights::{Model, Weights};

/// When the sampler takes new weights, if sequences are being drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WeightSwap {
    /// After they are finished with the old weights; meanwhile none is begun. A completion is of
    /// one version.
    #[default]
    Drain,
    /// Before the next token. What is in flight goes on under the new weights, on keys and values
    /// that are computed again; each token knows its version.
    InFlight,
}

/// Whether the backward pass computes the layers again instead of keeping what they computed. No
/// result depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Recompute {
    /// Where keeping it would take more than `max_activation_bytes`.
    #[default]
    Auto,
    /// Always: least memory, about a quarter more time.
    Always,
    /// Never.
    Never,
}

/// Bounds on what the engine uses. No result depends on `num_threads` or `max_cached_tokens`;
/// the gradient's rounding depends on `max_batch_tokens`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineOptions {
    /// Threads of the trainer, and of the sampler.
    pub num_threads: usize,
    /// Tokens of a training micro-batch and of a sampling step. A longer training sequence is a
    /// micro-batch of its own.
    pub max_batch_tokens: usize,
    /// Tokens whose keys and values the sampler keeps, all sequences together.
    pub max_cached_tokens: usize,
    /// When the sampler takes new weights.
    pub weight_swap: WeightSwap,
    /// What matrix products round their operands to, of trainer and sampler alike.
    pub precision: Precision,
    /// Whether the backward pass computes layers again.
    pub recompute: Recompute,
    /// Bytes that the layers of the micro-batches in work may keep for the backward pass before
    /// [`Recompute::Auto`] computes them again.
    pub max_activation_bytes: usize,
}

impl Default for EngineOptions {
    /// As many threads as the machine has cores.
    fn default() -> Self {
        Self {
            num_threads: std::thread::available_parallelism().map_or(1, NonZero::get),
            max_batch_tokens: 2048,
            max_cached_tokens: 1 << 17,
            weight_swap: WeightSwap::default(),
            precision: Precision::F32,
            recompute: Recompute::Auto,
            max_activation_bytes: 2 << 30,
        }
    }
}

impl EngineOptions {
    fn check(&self) -> Result<(), TrainerError> {
        let bad = |reason: String| Err(TrainerError::BadInput(reason));
        if !(1..=1024).contains(&self.num_threads) {
            return bad(format!("num_threads is {}, expected 1 to 1024", self.num_threads));
        }
        if self.max_batch_tokens == 0 {
            return bad("max_batch_tokens is 0, expected at least 1".to_owned());
        }
        if self.max_cached_tokens < PAGE {
            return bad(format!(
                "max_cached_tokens is {}, expected at least {PAGE}",
                self.max_cached_tokens
            ));
        }
        Ok(())
    }
}

/// The embedded policy: a trainer, and the sampler that serves what it publishes.
pub struct Engine {
    /// Updates the weights.
    pub trainer: EmbeddedTrainer,
    sampler: Arc<EmbeddedSampler>,
}

impl Engine {
    /// A new model with weights drawn from `seed`, served as version 0.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] for a shape or option that makes no sense,
    /// [`TrainerError::Engine`] when threads cannot be started.
    pub fn new(
        config: ModelConfig,
        seed: u64,
        options: EngineOptions,
    ) -> Result<Self, TrainerError> {
        config.validate().map_err(TrainerError::BadInput)?;
        let model = Arc::new(Model::new(config));
        let params = model.layout.initial_weights(&model.config, seed);
        let weights = Arc::new(Weights::with_precision(model, params, options.precision));
        Self::with_weights(weights, Moments::default(), PolicyVersion::default(), options)
    }

    /// Loads a checkpoint (Hugging Face layout, F32, F16 or BF16, one file or several; or a GGUF
    /// file) and serves it under its version.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file, and the tensor if it is one;
    /// otherwise as [`Engine::new`].
    pub fn load(dir: &Path, options: EngineOptions) -> Result<Self, TrainerError> {
        let Checkpoint { config, params, moments, version } = checkpoint::load(dir)?;
        let model = Arc::new(Model::new(config));
        let weights = Arc::new(Weights::with_precision(model, params, options.precision));
        Self::with_weights(weights, moments, version, options)
    }

    fn with_weights(
        weights: Arc<Weights>,
        moments: Moments,
        version: PolicyVersion,
        options: EngineOptions,
    ) -> Result<Self, TrainerError> {
        options.check()?;
        let sampler = EmbeddedSampler::new(Arc::clone(&weights), version, &options)
            .map_err(|error| TrainerError::Engine(error.to_string()))?;
        let trainer =
            EmbeddedTrainer::new(weights, moments, version, options, Arc::clone(&sampler))?;
        Ok(Self { trainer, sampler })
    }

    /// The sampler, to be shared by many threads.
    pub fn sampler(&self) -> Arc<EmbeddedSampler> {
        Arc::clone(&self.sampler)
    }

    /// Takes the two apart.
    pub fn into_parts(self) -> (EmbeddedTrainer, Arc<EmbeddedSampler>) {
        (self.trainer, self.sampler)
    }
}
