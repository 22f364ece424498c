//! Where each tensor lies in the one flat buffer of parameters, gradients and moments.
//!
//! Tensors that are multiplied together lie side by side (`q`, `k`, `v`; `gate`, `up`), so that the
//! fused projection is a slice and no copy.

use std::ops::Range;

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::backward::Wanted;
use crate::config::{ModelConfig, ModelType};

/// Initial weights have the standard deviation `INIT_SCALE / sqrt(hidden_size)`: the usual 0.02 at
/// a width of 1,152. At the width of the smallest models 0.02 itself is so small that copying
/// emerges four times as late.
const INIT_SCALE: f64 = 0.68;

/// One tensor with its Hugging Face name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
    pub kind: TensorKind,
}

/// What a tensor is, for initialisation and decay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TensorKind {
    /// A matrix: decays.
    Matrix,
    /// A matrix that writes to the residual stream: starts smaller, decays.
    Residual,
    /// A norm's weight: starts at 1, does not decay.
    Norm,
    /// A bias: starts at 0, does not decay.
    Bias,
}

impl TensorKind {
    pub(crate) fn decays(self) -> bool {
        matches!(self, Self::Matrix | Self::Residual)
    }
}

/// A layer's tensors, fused where they are multiplied together.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct LayerRanges {
    /// `[hidden]`.
    pub input_norm: Range<usize>,
    /// `[queries | keys | values][hidden]`.
    pub qkv: Range<usize>,
    /// `[queries | keys | values]`.
    pub qkv_bias: Option<Range<usize>>,
    /// `[head_dim]` each, of queries and of keys.
    pub qk_norm: Option<(Range<usize>, Range<usize>)>,
    /// `[hidden][queries]`.
    pub output: Range<usize>,
    /// `[hidden]`.
    pub output_bias: Option<Range<usize>>,
    /// `[hidden]`.
    pub post_norm: Range<usize>,
    /// `[gate | up][hidden]`.
    pub gate_up: Range<usize>,
    /// `[hidden][intermediate]`.
    pub down: Range<usize>,
}

/// The places of all tensors.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ParamLayout {
    pub tensors: Vec<TensorSpec>,
    /// `[vocab][hidden]`.
    pub embedding: Range<usize>,
    pub layers: Vec<LayerRanges>,
    /// `[hidden]`.
    pub final_norm: Range<usize>,
    /// `[vocab][hidden]`; the embedding's place where tied.
    pub head: Range<usize>,
    pub total: usize,
}

impl LayerRanges {
    /// The same where a gradient is wanted; the others are empty.
    pub(crate) fn only(&self, wanted: Wanted) -> Self {
        let pick = |range: &Range<usize>, wanted: bool| if wanted { range.clone() } else { 0..0 };
        Self {
            input_norm: pick(&self.input_norm, wanted.others),
            qkv: pick(&self.qkv, wanted.qkv),
            qkv_bias: self.qkv_bias.clone().filter(|_| wanted.others),
            qk_norm: self.qk_norm.clone().filter(|_| wanted.others),
            output: pick(&self.output, wanted.output),
            output_bias: self.output_bias.clone().filter(|_| wanted.others),
            post_norm: pick(&self.post_norm, wanted.others),
            gate_up: pick(&self.gate_up, wanted.gate_up),
            down: pick(&self.down, wanted.down),
        }
    }
}

impl ParamLayout {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        let mut tensors = Vec::new();
        let mut total = 0;
        let mut place = |name: String, shape: &[usize], kind| {
            let len: usize = shape.iter().product();
            let range = total..total + len;
            total += len;
            tensors.push(TensorSpec { name, shape: shape.to_vec(), range: range.clone(), kind });
            range
        };
        let (hidden, ffn) = (config.hidden_size, config.intermediate_size);
        let (queries, keys) = (config.query_width(), config.kv_width());
        let embedding = place(
            "model.embed_tokens.weight".to_owned(),
            &[config.vocab_size, hidden],
            TensorKind::Matrix,
        );
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                let mut at = |name: &str, shape: &[usize], kind| {
                    place(format!("model.layers.{layer}.{name}"), shape, kind)
                };
                let input_norm = at("input_layernorm.weight", &[hidden], TensorKind::Norm);
                let q = at("self_attn.q_proj.weight", &[queries, hidden], TensorKind::Matrix);
                at("self_attn.k_proj.weight", &[keys, hidden], TensorKind::Matrix);
                let v = at("self_attn.v_proj.weight", &[keys, hidden], TensorKind::Matrix);
                let qkv_bias = config.has_qkv_bias().then(|| {
                    let q = at("self_attn.q_proj.bias", &[queries], TensorKind::Bias);
                    at("self_attn.k_proj.bias", &[keys], TensorKind::Bias);
                    let v = at("self_attn.v_proj.bias", &[keys], TensorKind::Bias);
                    q.start..v.end
                });
                let qk_norm = (config.model_type == ModelType::Qwen3).then(|| {
                    let q = at("self_attn.q_norm.weight", &[config.head_dim], TensorKind::Norm);
                    let k = at("self_attn.k_norm.weight", &[config.head_dim], TensorKind::Norm);
                    (q, k)
                });
                let output =
                    at("self_attn.o_proj.weight", &[hidden, queries], TensorKind::Residual);
                let output_bias = config
                    .attention_bias
                    .then(|| at("self_attn.o_proj.bias", &[hidden], TensorKind::Bias));
                let post_norm = at("post_attention_layernorm.weight", &[hidden], TensorKind::Norm);
                let gate = at("mlp.gate_proj.weight", &[ffn, hidden], TensorKind::Matrix);
                let up = at("mlp.up_proj.weight", &[ffn, hidden], TensorKind::Matrix);
                let down = at("mlp.down_proj.weight", &[hidden, ffn], TensorKind::Residual);
                LayerRanges {
                    input_norm,
                    qkv: q.start..v.end,
                    qkv_bias,
                    qk_norm,
                    output,
                    output_bias,
                    post_norm,
                    gate_up: gate.start..up.end,
                    down,
                }
            })
            .collect();
        let final_norm = place("model.norm.weight".to_owned(), &[hidden], TensorKind::Norm);
        let head = if config.tie_word_embeddings {
            embedding.clone()
        } else {
            place("lm_head.weight".to_owned(), &[config.vocab_size, hidden], TensorKind::Matrix)
        };
        Self { tensors, embedding, layers, final_norm, head, total }
    }

    /// Draws initial weights: normal with a deviation of `INIT_SCALE / sqrt(hidden_size)`, those
    /// that write to the residual stream divided by the root of the number of such writes (Radford
    /// et al. 2019), norms 1. Biases of queries and keys are small, not 0: they let heads attend by
    /// position from the start on, which copying is built from.
    pub(crate) fn initial_weights(&self, config: &ModelConfig, seed: u64) -> Vec<f32> {
        let mut params = vec![0.0f32; self.total];
        let init_std = INIT_SCALE / (config.hidden_size as f64).sqrt();
        let residual_std = init_std / (2.0 * config.num_hidden_layers as f64).sqrt();
        for tensor in &self.tensors {
            let values = &mut params[tensor.range.clone()];
            // A stream per tensor: adding one does not change the others.
            let seed = patchwright_core::derive_seed(seed, &["init", &tensor.name]);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            match tensor.kind {
                TensorKind::Norm => values.fill(1.0),
                TensorKind::Bias => fill_normal(values, init_std / 3.0, &mut rng),
                TensorKind::Matrix => fill_normal(values, init_std, &mut rng),
                TensorKind::Residual => fill_normal(values, residual_std, &mut rng),
            }
        }
        params
    }
}

/// Box-Muller.
fn fill_normal(values: &mut [f32], std: f64, rng: &mut ChaCha8Rng) {
    for pair in values.chunks_mut(2) {
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        pair[0] = (std * radius * cos) as f32;
        if let Some(second) = pair.get_mut(1) {
            *second = (std * radius * sin) as f32;
        }
    }
}
