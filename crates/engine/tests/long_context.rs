//! Memory grows linearly with length. Alone in its binary: it measures the process.

mod common;

use common::{CrossEntropy, options, random_samples, request, sample};
use patchwright_core::Trainer;
use patchwright_engine::{Engine, EngineOptions, ModelConfig, ModelType};

/// Most memory this process ever had, in bytes.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).expect("VmHWM");
    let kib: usize = line.split_whitespace().nth(1).and_then(|x| x.parse().ok()).expect("a number");
    kib << 10
}

#[test]
fn eight_thousand_tokens_need_neither_length_squared_nor_length_times_vocabulary() {
    let length = 8192;
    let config = ModelConfig {
        model_type: ModelType::Qwen3,
        vocab_size: 4096,
        hidden_size: 16,
        intermediate_size: 32,
        num_hidden_layers: 1,
        num_attention_heads: 1,
        num_key_value_heads: 1,
        head_dim: 8,
        max_position_embeddings: length,
        rope_theta: 1e6,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    };
    let samples = random_samples(1, &[length], config.vocab_size);
    let options = EngineOptions { max_cached_tokens: length, ..options(1) };
    let mut engine = Engine::new(config, 0, options).unwrap();
    let before = peak_bytes();
    engine.trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    let sampler = engine.sampler();
    let context = samples[0].tokens[..length - 8].to_vec();
    let completion = sample(&*sampler, &request(1, context, 100, 0));
    assert_eq!(completion.tokens.len(), 8);
    let grown = peak_bytes() - before;
    // The squared length would be 256 MiB, tokens times vocabulary 128 MiB.
    assert!(grown < 48 << 20, "grew by {} MiB", grown >> 20);
}
