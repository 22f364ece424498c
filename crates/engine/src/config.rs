//! The architecture: what a Hugging Face `config.json` says of a Qwen or Llama decoder.

use std::path::Path;

use patchwright_core::TrainerError;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checkpoint::{WeightDtype, read_bounded};
use crate::rope::RopeScaling;

/// Bytes of a `config.json` at most.
const MAX_BYTES: u64 = 16 << 20;
/// Parameters at most: far above what fits a machine, far below an overflow.
const MAX_PARAMETERS: u128 = 1 << 40;
/// Elements of a table with an angle for each position and pair of dimensions at most.
const MAX_ANGLES: usize = 1 << 30;
/// Layers at most.
const MAX_LAYERS: usize = 1 << 12;

/// The family members this engine knows. They differ in biases and norms only; Qwen 3 and Llama may
/// have [biases](ModelConfig::attention_bias) too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelType {
    /// Per-head `RMSNorm` of queries and keys, no bias.
    Qwen3,
    /// Bias on the query, key and value projections.
    Qwen2,
    /// Neither.
    Llama,
}

impl ModelType {
    fn architecture(self) -> &'static str {
        match self {
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Llama => "LlamaForCausalLM",
        }
    }
}

/// Shape of a decoder-only transformer. Field names are those of `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelConfig {
    /// Which variant.
    pub model_type: ModelType,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the `SwiGLU` layer.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Longest sequence.
    pub max_position_embeddings: usize,
    /// Base of the rotary frequencies.
    pub rope_theta: f32,
    /// Added to the mean square in every `RMSNorm`.
    pub rms_norm_eps: f32,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Whether all four projections of attention have biases. Qwen 2 has those of queries, keys and
    /// values always, and never this.
    #[serde(default)]
    pub attention_bias: bool,
    /// How the rotary frequencies are stretched; `None` leaves them plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
}

/// `config.json` as it may be found: older and newer spellings, options we must not ignore.
#[derive(Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "the fields of a file that others define")]
struct RawConfig {
    model_type: String,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rope_theta: Option<f32>,
    rope_parameters: Option<Value>,
    rope_scaling: Option<Value>,
    rms_norm_eps: f32,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    layer_types: Vec<String>,
}

/// The shortest decimal number that is `x` in f32: 1e-5, not 9.999999747378752e-6.
fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

fn silu() -> String {
    "silu".to_owned()
}

impl ModelConfig {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and the field that is missing, unknown or not
    /// supported.
    pub fn read(path: &Path) -> Result<Self, TrainerError> {
        let fail =
            |reason: String| TrainerError::Checkpoint { path: path.display().to_string(), reason };
        let text = String::from_utf8(read_bounded(path, MAX_BYTES)?)
            .map_err(|error| fail(format!("is not text: {error}")))?;
        Self::parse(&text).map_err(fail)
    }

    /// Parses the text of a `config.json`.
    ///
    /// # Errors
    /// The field that is missing, unknown or not supported.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawConfig =
            serde_json::from_str(text).map_err(|error| format!("not a model config: {error}"))?;
        let model_type = match raw.model_type.as_str() {
            "qwen3" => ModelType::Qwen3,
            "qwen2" => ModelType::Qwen2,
            "llama" => ModelType::Llama,
            other => {
                return Err(format!(
                    "model_type {other:?} is not supported (qwen3, qwen2 and llama are)"
                ));
            }
        };
        if raw.hidden_act != "silu" {
            return Err(format!("hidden_act {:?} is not supported (silu is)", raw.hidden_act));
        }
        let unsupported = [
            ("mlp_bias", raw.mlp_bias),
            ("use_sliding_window", raw.use_sliding_window),
            ("layer_types", raw.layer_types.iter().any(|kind| kind != "full_attention")),
        ];
        if let Some((name, _)) = unsupported.iter().find(|(_, present)| *present) {
            return Err(format!("{name} is set in a way that is not supported"));
        }
        let scaling = |name: &str, section: &Option<Value>| {
            let parsed = section.as_ref().map(RopeScaling::parse).transpose();
            parsed.map(Option::flatten).map_err(|error| format!("{name}: {error}"))
        };
        // The newer spelling says what the older one does.
        let rope_scaling = scaling("rope_parameters", &raw.rope_parameters)?
            .or(scaling("rope_scaling", &raw.rope_scaling)?);
        let nested_theta = raw.rope_parameters.as_ref().and_then(|p| p["rope_theta"].as_f64());
        let config = Self {
            model_type,
            vocab_size: raw.vocab_size,
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw
                .head_dim
                .or(raw.hidden_size.checked_div(raw.num_attention_heads))
                .unwrap_or(0),
            max_position_embeddings: raw.max_position_embeddings,
            rope_theta: raw.rope_theta.or(nested_theta.map(|t| t as f32)).unwrap_or(10_000.0),
            rms_norm_eps: raw.rms_norm_eps,
            tie_word_embeddings: raw.tie_word_embeddings,
            // Qwen 2 always has its biases and no field for them.
            attention_bias: raw.attention_bias && model_type != ModelType::Qwen2,
            rope_scaling,
        };
        config.validate()?;
        Ok(config)
    }

    /// Checks that the numbers make a model.
    ///
    /// # Errors
    /// Which number does not, and why.
    pub fn validate(&self) -> Result<(), String> {
        if self.attention_bias && self.model_type == ModelType::Qwen2 {
            return Err("attention_bias is not for Qwen 2, which has its own biases".to_owned());
        }
        let counts = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        for (name, count) in counts {
            // Keeps every size computation far from overflow.
            if count == 0 || count > 1 << 24 {
                return Err(format!("{name} is {count}, expected 1 to {}", 1 << 24));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_attention_heads ({}) is not a multiple of num_key_value_heads ({})",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim ({}) is odd; rotation needs pairs", self.head_dim));
        }
        self.check_size()?;
        for (name, x) in [("rope_theta", self.rope_theta), ("rms_norm_eps", self.rms_norm_eps)] {
            if !(x.is_finite() && x > 0.0) {
                return Err(format!("{name} is {x}, expected a positive number"));
            }
        }
        Ok(())
    }

    /// Refuses numbers that are each possible and together are not.
    fn check_size(&self) -> Result<(), String> {
        if self.num_hidden_layers > MAX_LAYERS {
            let layers = self.num_hidden_layers;
            return Err(format!("num_hidden_layers is {layers}, expected at most {MAX_LAYERS}"));
        }
        let angles = self.max_position_embeddings * self.head_dim;
        if angles > MAX_ANGLES {
            return Err(format!(
                "max_position_embeddings ({}) times head_dim ({}) is more than {MAX_ANGLES}",
                self.max_position_embeddings, self.head_dim
            ));
        }
        let [hidden, ffn, vocab, layers, head_dim] = [
            self.hidden_size,
            self.intermediate_size,
            self.vocab_size,
            self.num_hidden_layers,
            self.head_dim,
        ]
        .map(|count| count as u128);
        let heads = (2 * self.num_attention_heads + 2 * self.num_key_value_heads) as u128;
        let total = 2 * vocab * hidden + layers * hidden * (heads * head_dim + 3 * ffn);
        if total > MAX_PARAMETERS {
            return Err(format!("the sizes make a model of {total} parameters: too large"));
        }
        Ok(())
    }

    /// The text of a `config.json` that `transformers` reads, for weights in f32.
    pub fn to_json(&self) -> String {
        self.to_json_as(WeightDtype::F32)
    }

    /// The text of a `config.json` that `transformers` reads, for weights in `dtype`.
    pub fn to_json_as(&self, dtype: WeightDtype) -> String {
        let mut json = serde_json::json!({
            "architectures": [self.model_type.architecture()],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            // The older and the newer spelling.
            "rope_theta": shortest(self.rope_theta),
            "rope_parameters": match self.rope_scaling {
                Some(scaling) => scaling.to_json(self.rope_theta),
                None => serde_json::json!({"rope_type": "default", "rope_theta": shortest(self.rope_theta)}),
            },
            "rms_norm_eps": shortest(self.rms_norm_eps),
            "tie_word_embeddings": self.tie_word_embeddings,
            "hidden_act": "silu",
            "torch_dtype": dtype.torch_name(),
        });
        if self.model_type != ModelType::Qwen2 {
            json["attention_bias"] = self.attention_bias.into();
        }
        let mut text = format!("{json:#}");
        text.push('\n');
        text
    }

    /// Whether queries, keys and values have biases.
    pub(crate) fn has_qkv_bias(&self) -> bool {
        self.model_type == ModelType::Qwen2 || self.attention_bias
    }

    /// Width of all query heads together.
    pub(crate) fn query_width(&self) -> usize {
        self.num_attention_heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub(crate) fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_dim
    }

    /// Width of a row `[queries | keys | values]`.
    pub(crate) fn qkv_width(&self) -> usize {
        self.query_width() + 2 * self.kv_width()
    }

    /// Query heads that share a key and value head.
    pub(crate) fn group(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Number of weights.
    pub fn num_parameters(&self) -> usize {
        crate::params::ParamLayout::new(self).total
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are meant")]
mod tests {
    use super::*;

    pub(crate) fn tiny() -> ModelConfig {
        ModelConfig {
            model_type: ModelType::Qwen3,
            vocab_size: 50,
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 8,
            max_position_embeddings: 128,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: false,
            rope_scaling: None,
        }
    }

    #[test]
    fn json_round_trip() {
        for model_type in [ModelType::Qwen3, ModelType::Qwen2, ModelType::Llama] {
            let attention_bias = model_type == ModelType::Llama;
            let config = ModelConfig { model_type, attention_bias, ..tiny() };
            assert_eq!(ModelConfig::parse(&config.to_json()).unwrap(), config);
            assert!(config.to_json().contains("\"rms_norm_eps\": 1e-6,"), "{}", config.to_json());
        }
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        let edit = |key: &str, value: Value| {
            let mut json: Value = serde_json::from_str(&tiny().to_json()).unwrap();
            json[key] = value;
            ModelConfig::parse(&json.to_string()).unwrap_err()
        };
        assert!(edit("model_type", "gpt2".into()).contains("gpt2"));
        assert!(edit("hidden_act", "gelu".into()).contains("gelu"));
        assert!(edit("mlp_bias", true.into()).contains("mlp_bias"));
        let dynamic = serde_json::json!({"rope_type": "dynamic", "factor": 4.0});
        assert!(edit("rope_scaling", dynamic.clone()).contains("rope_scaling: unknown variant"));
        assert!(edit("rope_parameters", dynamic).contains("rope_parameters"));
        let mscale = serde_json::json!({"rope_type": "yarn", "factor": 4.0, "mscale": 0.7});
        assert!(edit("rope_scaling", mscale).contains("mscale is not supported"));
        let negative = serde_json::json!({"type": "linear", "factor": -1.0});
        assert!(edit("rope_scaling", negative).contains("positive"));
        assert!(edit("num_key_value_heads", 3.into()).contains("multiple"));
        assert!(edit("head_dim", 7.into()).contains("odd"));
        assert!(edit("vocab_size", 0.into()).contains("vocab_size"));
        assert!(edit("hidden_size", "x".into()).contains("not a model config"));
    }

    #[test]
    fn scaled_ropes_round_trip() {
        let older = serde_json::json!({"type": "yarn", "factor": 4.0,
            "original_max_position_embeddings": 32});
        let mut json: Value = serde_json::from_str(&tiny().to_json()).unwrap();
        json["rope_scaling"] = older;
        let yarn = ModelConfig::parse(&json.to_string()).unwrap();
        assert!(matches!(
            yarn.rope_scaling,
            Some(RopeScaling::Yarn {
                factor: 4.0,
                original_max_position_embeddings: Some(32),
                attention_factor: None,
                beta_fast: 32.0,
                beta_slow: 1.0,
                truncate: true
            })
        ));
        assert_eq!(ModelConfig::parse(&yarn.to_json()).unwrap(), yarn);
        let linear =
            ModelConfig { rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }), ..tiny() };
        assert_eq!(ModelConfig::parse(&linear.to_json()).unwrap(), linear);
    }

    #[test]
    fn newer_rope_spelling() {
        let mut json: Value = serde_json::from_str(&tiny().to_json()).unwrap();
        json["rope_theta"] = Value::Null;
        json["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": 5e5});
        assert_eq!(ModelConfig::parse(&json.to_string()).unwrap().rope_theta, 5e5);
    }
}
