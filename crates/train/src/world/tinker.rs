//! A policy whose weights live at a server of the Tinker API.

use std::path::Path;
use std::time::Duration;

use patchwright_core::derive_seed;
use patchwright_remote::http::Interrupt;
use patchwright_remote::tinker::{ApiKey, TinkerOptions, TinkerTrainer, open};

use super::policy::Policy;
use crate::error::TrainError;
use crate::events::Observer;
use crate::recipe::Recipe;

/// Opens the server's model. `checkpoint` is a directory with the same model's tokenizer, and its
/// `config.json` where the server does not tell the model's context.
pub(super) fn policy(
    recipe: &Recipe,
    checkpoint: &Path,
    observer: &dyn Observer,
    interrupt: Interrupt,
) -> Result<Policy, TrainError> {
    let listener = super::servers::listener(observer);
    let options = TinkerOptions { interrupt, listener, ..options(recipe, checkpoint)? };
    let (trainer, sampler) = open(options)
        .map_err(|error| TrainError::setup("trainer = \"tinker\"", error.to_string()))?;
    check_clips(recipe, &trainer)?;
    Ok(Policy { trainer: Box::new(trainer), sampler })
}

fn options(recipe: &Recipe, checkpoint: &Path) -> Result<TinkerOptions, TrainError> {
    let tinker = &recipe.tinker;
    let key = std::env::var(&tinker.api_key_env).ok().filter(|key| !key.trim().is_empty());
    let lora_rank = u32::try_from(tinker.lora_rank)
        .map_err(|_| TrainError::setup("tinker.lora_rank", "is too large"))?;
    let retries = u32::try_from(tinker.num_retries).unwrap_or(u32::MAX);
    Ok(TinkerOptions {
        api_key: key.map(|key| ApiKey::new(&key)),
        lora_rank,
        seed: derive_seed(recipe.run.seed, &["lora"]),
        max_context: max_context(checkpoint)?,
        request_timeout: Duration::from_secs(tinker.request_timeout_seconds),
        max_retries: retries,
        ..TinkerOptions::new(&tinker.url, &tinker.base_model)
    })
}

/// What the model's `config.json` says, if there is one.
fn max_context(checkpoint: &Path) -> Result<Option<usize>, TrainError> {
    let path = checkpoint.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(&path).map_err(TrainError::io(&path))?;
    let config: serde_json::Value = serde_json::from_slice(&text)
        .map_err(|error| TrainError::setup(path.display().to_string(), error.to_string()))?;
    Ok(config["max_position_embeddings"].as_u64().and_then(|n| usize::try_from(n).ok()))
}

/// No knob is silent: a clip that the server would pass over is refused before anything is sampled.
fn check_clips(recipe: &Recipe, trainer: &TinkerTrainer) -> Result<(), TrainError> {
    if trainer.clips_gradients() {
        return Ok(());
    }
    let rft =
        (recipe.rft.enabled && recipe.rft.grad_clip > 0.0).then(|| "rft.grad_clip".to_owned());
    let mut stages = recipe.rl.iter().enumerate();
    let rl = || stages.find(|(_, s)| s.grad_clip > 0.0).map(|(i, _)| format!("rl.{i}.grad_clip"));
    match rft.or_else(rl) {
        None => Ok(()),
        Some(key) => Err(TrainError::setup(
            key.clone(),
            format!(
                "is above 0, and {} does not clip gradients: set it to 0 (and the clip at the \
                 server, where it has one)",
                recipe.tinker.url
            ),
        )),
    }
}
