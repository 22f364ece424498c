//! Opens the policy that a recipe names: the one place that knows which engines there are.

use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use patchwright_core::{Sampler, Trainer, derive_seed};
use patchwright_engine::{Engine, EngineOptions, LoraConfig};
use patchwright_remote::http::Interrupt;

use super::servers;
use crate::error::TrainError;
use crate::events::{CancelToken, Observer};
use crate::recipe::{EngineRecipe, Recipe, SamplerKind, TrainerKind};

/// Weights that are served and trained.
pub struct Policy {
    /// Updates the weights.
    pub trainer: Box<dyn Trainer>,
    /// Serves what the trainer publishes.
    pub sampler: Arc<dyn Sampler>,
}

impl Policy {
    /// Opens trainer and sampler. `checkpoint` is the model's directory. `observer` hears what
    /// engines there are. Requests to servers end when `cancel` is set.
    ///
    /// # Errors
    /// [`TrainError`] naming what is missing and how to mend it.
    pub fn open(
        recipe: &Recipe,
        checkpoint: &Path,
        observer: &dyn Observer,
        cancel: &CancelToken,
    ) -> Result<Self, TrainError> {
        let interrupt = Interrupt::new();
        cancel.on_cancel(interrupt.switch());
        match (recipe.trainer, recipe.sampler) {
            (TrainerKind::Embedded, SamplerKind::Trainer) => embedded(recipe, checkpoint),
            (TrainerKind::Embedded, _) if recipe.trains() => {
                let (trainer, _) = engine(recipe, checkpoint)?.into_parts();
                servers::trained(recipe, trainer, observer, interrupt)
            }
            (TrainerKind::Embedded, _) => {
                servers::evaluated(recipe, checkpoint, observer, interrupt)
            }
            (TrainerKind::Tinker, _) => {
                super::tinker::policy(recipe, checkpoint, observer, interrupt)
            }
        }
    }
}

fn embedded(recipe: &Recipe, checkpoint: &Path) -> Result<Policy, TrainError> {
    let (trainer, sampler) = engine(recipe, checkpoint)?.into_parts();
    Ok(Policy { trainer: Box::new(trainer), sampler })
}

fn engine(recipe: &Recipe, checkpoint: &Path) -> Result<Engine, TrainError> {
    let mut engine = Engine::load(checkpoint, engine_options(&recipe.engine))?;
    attach_text_files(&mut engine, checkpoint)?;
    let lora = &recipe.engine.lora;
    if lora.rank > 0 && recipe.trains() {
        let config = LoraConfig {
            rank: lora.rank,
            lora_alpha: lora.alpha,
            target_modules: lora.target_modules.clone(),
        };
        engine.trainer.add_adapter(config, derive_seed(recipe.run.seed, &["lora"]))?;
    }
    Ok(engine)
}

fn engine_options(engine: &EngineRecipe) -> EngineOptions {
    let num_threads = match engine.num_threads {
        0 => std::thread::available_parallelism().map_or(1, NonZero::get),
        num_threads => num_threads,
    };
    EngineOptions {
        num_threads,
        max_batch_tokens: engine.max_batch_tokens,
        max_cached_tokens: engine.max_cached_tokens,
        precision: engine.precision,
        recompute: engine.recompute,
        max_activation_bytes: engine.max_activation_mib << 20,
        ..EngineOptions::default()
    }
}

/// What a model's directory says of its text; later checkpoints keep it.
const TEXT_FILES: [&str; 5] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
    "special_tokens_map.json",
];

fn attach_text_files(engine: &mut Engine, checkpoint: &Path) -> Result<(), TrainError> {
    for name in TEXT_FILES {
        let path = checkpoint.join(name);
        if path.is_file() {
            let bytes = std::fs::read(&path).map_err(TrainError::io(&path))?;
            engine.trainer.attach_file(name, bytes)?;
        }
    }
    Ok(())
}
