//! Messages about models, optimizer steps and weights.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kinds;

/// Which matrices get low-rank adapters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoraConfig {
    /// Rank of the adapters; 0 asks for full fine-tuning where a server has it.
    pub rank: u32,
    /// Seed of their start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Adapters on the output embedding.
    #[serde(default = "yes")]
    pub train_unembed: bool,
    /// Adapters on the feed-forward matrices.
    #[serde(default = "yes")]
    pub train_mlp: bool,
    /// Adapters on the attention's matrices.
    #[serde(default = "yes")]
    pub train_attn: bool,
}

fn yes() -> bool {
    true
}

/// Body of `create_model`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateModel {
    /// The session.
    pub session_id: String,
    /// Place among the session's models; the same number is the same request sent again.
    pub model_seq_id: u32,
    /// What to start from, one of the server's names.
    pub base_model: String,
    /// Anything of the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_metadata: Option<BTreeMap<String, Value>>,
    /// Adapters; left out, the server chooses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_config: Option<LoraConfig>,
    /// SDK 0.38: `{"type": "adamw"}` or another optimizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optimizer_config: Option<Value>,
    /// `create_model`.
    #[serde(default, rename = "type")]
    pub kind: kinds::CreateModel,
}

/// Result of `create_model`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelCreated {
    /// Names the model from now on.
    pub model_id: String,
    /// `create_model`.
    #[serde(default, rename = "type")]
    pub kind: kinds::CreateModel,
}

/// Body of `get_info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GetInfo {
    /// The model.
    pub model_id: String,
    /// `get_info`.
    #[serde(default, rename = "type")]
    pub kind: kinds::GetInfo,
}

/// Answer of `get_info`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelInfo {
    /// `get_info`.
    #[serde(default, rename = "type")]
    pub kind: kinds::GetInfo,
    /// What the model is.
    pub model_data: ModelData,
    /// The model.
    pub model_id: String,
    /// Whether it has adapters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_lora: Option<bool>,
    /// Their rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u32>,
    /// Name of the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
}

/// What a model is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelData {
    /// Architecture, such as `qwen3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<String>,
    /// Name of the base model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Where a client finds the tokenizer: a name of the Hugging Face hub, or a directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_id: Option<String>,
}

/// Body of `unload_model`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnloadModel {
    /// The model.
    pub model_id: String,
    /// `unload_model`.
    #[serde(default, rename = "type")]
    pub kind: kinds::UnloadModel,
}

/// Result of `unload_model`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelUnloaded {
    /// The model.
    pub model_id: String,
    /// `unload_model`.
    #[serde(default, rename = "type")]
    pub kind: kinds::UnloadModel,
}

/// `AdamW`'s settings for one step; the defaults are the API's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdamParams {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 turns the clip off. Servers that do not know the field
    /// refuse it or pass it over.
    pub grad_clip_norm: f64,
}

impl Default for AdamParams {
    fn default() -> Self {
        Self {
            learning_rate: 1e-4,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-12,
            weight_decay: 0.0,
            grad_clip_norm: 0.0,
        }
    }
}

/// Body of `optim_step`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OptimStep {
    /// Settings.
    pub adam_params: AdamParams,
    /// The model.
    pub model_id: String,
    /// Place among the model's requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<u32>,
    /// `optim_step`.
    #[serde(default, rename = "type")]
    pub kind: kinds::OptimStep,
}

/// Result of `optim_step`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct OptimStepDone {
    /// Numbers by name, such as the gradient's norm.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<BTreeMap<String, f64>>,
}

/// Body of `save_weights`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveWeights {
    /// The model.
    pub model_id: String,
    /// Name of the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Place among the model's requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<u32>,
    /// Seconds after which it may be thrown away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// Replaces a checkpoint of the same name.
    #[serde(default)]
    pub overwrite: bool,
    /// `save_weights`.
    #[serde(default, rename = "type")]
    pub kind: kinds::SaveWeights,
}

/// Result of `save_weights`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsSaved {
    /// `tinker://RUN/weights/NAME`.
    pub path: String,
    /// `save_weights`.
    #[serde(default, rename = "type")]
    pub kind: kinds::SaveWeights,
}

/// Body of `load_weights`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadWeights {
    /// The model that takes the weights up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// Place among the model's requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<u32>,
    /// Instead of `model_id`: the session in which a model is made of the checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// With `session_id`: place among the session's models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_seq_id: Option<u32>,
    /// With `session_id`: another base model that fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// What `save_weights` returned.
    pub path: String,
    /// Whether the optimizer's state is taken up as well.
    pub optimizer: bool,
    /// Key to somebody else's checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights_access_token: Option<String>,
    /// `load_weights`.
    #[serde(default, rename = "type")]
    pub kind: kinds::LoadWeights,
}

/// Result of `load_weights`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsLoaded {
    /// The checkpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The model that has the weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
    /// `load_weights`.
    #[serde(default, rename = "type")]
    pub kind: kinds::LoadWeights,
}

/// Body of `save_weights_for_sampler`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaveWeightsForSampler {
    /// The model.
    pub model_id: String,
    /// Name of the checkpoint; left out, the weights serve a sampling session only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Place among the session's sampling sessions: one is made of the weights at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_seq_id: Option<u32>,
    /// Place among the model's requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq_id: Option<u32>,
    /// Seconds after which it may be thrown away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
    /// SDK 0.38: `snapshot` (as without it) or `inflight`, one sampler that follows the weights.
    #[serde(default, rename = "kind", skip_serializing_if = "Option::is_none")]
    pub client_kind: Option<String>,
    /// `save_weights_for_sampler`.
    #[serde(default, rename = "type")]
    pub kind: kinds::SaveWeightsForSampler,
}

/// Result of `save_weights_for_sampler`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsSavedForSampler {
    /// `tinker://RUN/sampler_weights/NAME`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The sampling session, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling_session_id: Option<String>,
    /// `save_weights_for_sampler`.
    #[serde(default, rename = "type")]
    pub kind: kinds::SaveWeightsForSampler,
}

/// Body of `weights_info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsInfoRequest {
    /// A `tinker://` path.
    pub tinker_path: String,
}

/// Answer of `weights_info`: what a model must be created with to take the weights up.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WeightsInfo {
    /// Base model.
    pub base_model: String,
    /// Whether it has adapters.
    pub is_lora: bool,
    /// Their rank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_rank: Option<u32>,
    /// As [`LoraConfig::train_unembed`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_unembed: Option<bool>,
    /// As [`LoraConfig::train_mlp`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_mlp: Option<bool>,
    /// As [`LoraConfig::train_attn`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_attn: Option<bool>,
}
