//! The same numbers as `PyTorch`: `goldens/make_goldens.py` made the fixtures.

mod common;

use std::collections::BTreeMap;
use std::path::PathBuf;

use common::{CrossEntropy, options, request, sample};
use patchwright_core::{AdamParams, SampleRequest, SamplingParams, Trainer, TrainingSample};
use patchwright_engine::Engine;
use safetensors::SafeTensors;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(name)
}

struct Golden(Vec<u8>);

impl Golden {
    fn read(name: &str, file: &str) -> Self {
        Self(std::fs::read(fixture(name).join(file)).unwrap())
    }

    fn words(&self, name: &str) -> Vec<[u8; 4]> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        file.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.words(name).into_iter().map(f32::from_le_bytes).collect()
    }

    fn tokens(&self, name: &str) -> Vec<u32> {
        self.words(name).into_iter().map(u32::from_le_bytes).collect()
    }

    fn samples(&self) -> Vec<TrainingSample> {
        (0..2)
            .map(|i| {
                TrainingSample::supervised(
                    self.tokens(&format!("tokens.{i}")),
                    self.floats(&format!("weights.{i}")),
                )
            })
            .collect()
    }
}

/// Largest difference, relative to the largest expected value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
    let differences = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f32::max) / scale
}

fn compare(golden: &Golden, prefix: &str, found: &BTreeMap<String, Vec<f32>>, bound: f32) {
    for (name, values) in found {
        let difference = difference(values, &golden.floats(&format!("{prefix}.{name}")));
        assert!(difference < bound, "{prefix} of {name} is off by {difference}");
    }
}

/// The most likely continuation is the same, and so is every log-probability of every position:
/// what is left of logits when the engine is asked through its seams.
fn check_greedy(name: &str) {
    let golden = Golden::read(name, "greedy.safetensors");
    let (prompt, tokens) = (golden.tokens("prompt"), golden.tokens("tokens"));
    let mut engine = Engine::load(&fixture(name), options(2)).unwrap();
    let request = SampleRequest {
        params: SamplingParams { temperature: 0.0 },
        ..request(1, prompt.clone(), tokens.len() - prompt.len(), 0)
    };
    assert_eq!(sample(&*engine.sampler(), &request).tokens, tokens[prompt.len()..], "{name}");

    let logits = golden.floats("logits");
    let vocab = engine.trainer.config().vocab_size;
    let samples: Vec<TrainingSample> = (0..tokens.len())
        .flat_map(|t| (0..vocab as u32).map(move |next| (t, next)))
        .map(|(t, next)| {
            let tokens = [&tokens[..=t], &[next][..]].concat();
            let mask = vec![0.0; tokens.len()];
            TrainingSample::supervised(tokens, mask)
        })
        .collect();
    let found = engine.trainer.forward(&samples).unwrap();
    for (t, (row, found)) in logits.chunks(vocab).zip(found.chunks(vocab)).enumerate() {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from(x - max).exp()).sum();
        let log_sum = f64::from(max) + sum.ln();
        for (logit, found) in row.iter().zip(found) {
            let (expected, found) = (f64::from(*logit) - log_sum, found.last().copied().unwrap());
            assert!((expected - f64::from(found)).abs() < 1e-4, "{name} {t}: {found}, {expected}");
        }
    }
}

fn check(name: &str) {
    check_greedy(name);
    let golden = Golden::read(name, "golden.safetensors");
    let samples = golden.samples();
    let mut trainer = Engine::load(&fixture(name), options(2)).unwrap().into_parts().0;
    let result = trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    for (i, logprobs) in result.logprobs.iter().enumerate() {
        let expected = golden.floats(&format!("logprobs.{i}"));
        for (t, (a, b)) in logprobs[1..].iter().zip(&expected).enumerate() {
            assert!((a - b).abs() < 1e-4, "{name}: log-probability {t} is {a}, not {b}");
        }
    }
    let loss = f64::from(golden.floats("loss")[0]);
    assert!((result.loss / loss - 1.0).abs() < 1e-5, "{name}: loss {} vs {loss}", result.loss);
    compare(&golden, "gradient", &trainer.gradients(), 1e-4);
    let adam = AdamParams {
        lr: 1e-2,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-4,
        weight_decay: 0.1,
        grad_clip: 0.5,
    };
    let norm = trainer.optim_step(&adam).unwrap().grad_norm;
    let expected = golden.floats("grad_norm")[0];
    assert!((norm / expected - 1.0).abs() < 1e-4, "{name}: gradient norm {norm} vs {expected}");
    assert!(expected > 0.5, "the clip has to act");
    trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    trainer.optim_step(&adam).unwrap();
    compare(&golden, "stepped", &trainer.parameters(), 1e-4);
}

#[test]
fn qwen3() {
    check("qwen3");
}

#[test]
fn qwen2() {
    check("qwen2");
}

#[test]
fn llama() {
    check("llama");
}

#[test]
fn yarn() {
    check("qwen2-yarn");
}

#[test]
fn linear_rope() {
    check("llama-linear");
}

#[test]
fn llama3_rope() {
    check("llama-llama3");
}

#[test]
fn llama_with_biases_agrees_with_pytorch() {
    check("llama-bias");
}
