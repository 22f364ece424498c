//! What the tests share.
#![allow(dead_code, clippy::allow_attributes, reason = "each test binary uses a part")]

use patchwright_core::{
    Completion, Objective, SampleRequest, Sampler, SamplingParams, TokenLoss, TrainingSample,
};
use patchwright_engine::{EngineOptions, ModelConfig, ModelType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub const VARIANTS: [ModelType; 3] = [ModelType::Qwen3, ModelType::Qwen2, ModelType::Llama];

/// A small model whose sizes are no multiples of anything.
pub fn config(model_type: ModelType, tied: bool) -> ModelConfig {
    ModelConfig {
        model_type,
        vocab_size: 53,
        hidden_size: 24,
        intermediate_size: 40,
        num_hidden_layers: 2,
        num_attention_heads: 6,
        num_key_value_heads: 2,
        head_dim: 10,
        max_position_embeddings: 200,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: tied,
        attention_bias: false,
        rope_scaling: None,
    }
}

pub fn options(num_threads: usize) -> EngineOptions {
    EngineOptions {
        num_threads,
        max_batch_tokens: 512,
        max_cached_tokens: 1 << 15,
        ..EngineOptions::default()
    }
}

/// Weighted cross-entropy.
pub struct CrossEntropy;

impl Objective for CrossEntropy {
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss {
        let weight = sample.loss_mask[t];
        TokenLoss { loss: -weight * trainer_logprob, d_logprob: -weight, clipped: false }
    }
}

pub fn random_tokens(rng: &mut ChaCha8Rng, n: usize, vocab: usize) -> Vec<u32> {
    (0..n).map(|_| rng.random_range(0..vocab as u32)).collect()
}

pub fn random_samples(seed: u64, lengths: &[usize], vocab: usize) -> Vec<TrainingSample> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    lengths
        .iter()
        .map(|&n| {
            let tokens = random_tokens(&mut rng, n, vocab);
            let mask = (0..n)
                .map(|_| if rng.random_bool(0.7) { rng.random_range(0.2..1.0) } else { 0.0 })
                .collect();
            TrainingSample::supervised(tokens, mask)
        })
        .collect()
}

pub fn request(session: u64, context: Vec<u32>, max_tokens: usize, seed: u64) -> SampleRequest {
    SampleRequest {
        session,
        context,
        max_tokens,
        stop_tokens: Vec::new(),
        params: SamplingParams::default(),
        seed,
        ..SampleRequest::default()
    }
}

pub fn sample(sampler: &dyn Sampler, request: &SampleRequest) -> Completion {
    sampler.sample(request).expect("a valid request")
}

/// Bits, so that equality means equality.
pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}
