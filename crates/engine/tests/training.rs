//! Ways of training that must not matter: threads, recomputation, accumulation; and bf16.

mod common;

use common::{CrossEntropy, bits, config, options, random_samples, request, sample};
use patchwright_core::{AdamParams, Trainer, TrainerError, TrainingSample};
use patchwright_engine::{Engine, EngineOptions, ModelConfig, ModelType, Precision, Recompute};

const ADAM: AdamParams =
    AdamParams { lr: 0.01, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

/// Log-probabilities and weights after two steps.
fn run(
    config: &ModelConfig,
    samples: &[TrainingSample],
    options: EngineOptions,
) -> (Vec<u32>, Vec<u32>) {
    let mut trainer = Engine::new(config.clone(), 1, options).unwrap().into_parts().0;
    let mut logprobs = Vec::new();
    for _ in 0..2 {
        logprobs
            .extend(trainer.forward_backward(samples, &CrossEntropy).unwrap().logprobs.concat());
        trainer.optim_step(&ADAM).unwrap();
    }
    let flat: Vec<f32> = trainer.parameters().into_values().flatten().collect();
    (bits(&logprobs), bits(&flat))
}

#[test]
fn neither_threads_nor_recomputation_change_a_bit() {
    for (model_type, precision) in [
        (ModelType::Qwen3, Precision::F32),
        (ModelType::Qwen2, Precision::F32),
        (ModelType::Qwen3, Precision::Bf16),
        (ModelType::Llama, Precision::Bf16),
    ] {
        // Long enough for several blocks of keys, rows and queries; more than one micro-batch.
        let config = ModelConfig {
            max_position_embeddings: 700,
            ..config(model_type, model_type != ModelType::Llama)
        };
        let samples = random_samples(3, &[601, 40, 7, 300], config.vocab_size);
        let with = |num_threads, recompute| {
            let options = EngineOptions { recompute, precision, ..options(num_threads) };
            run(&config, &samples, options)
        };
        let one = with(1, Recompute::Never);
        for (threads, recompute) in
            [(2, Recompute::Never), (3, Recompute::Always), (1, Recompute::Always)]
        {
            assert!(with(threads, recompute) == one, "{model_type:?} {precision:?} {threads}");
        }
    }
}

#[test]
fn accumulated_gradients_are_those_of_one_batch() {
    for precision in [Precision::F32, Precision::Bf16] {
        let config = config(ModelType::Qwen3, true);
        let samples = random_samples(3, &[150, 80, 33, 120, 9, 199], config.vocab_size);
        let gradients = |parts: usize, max_batch_tokens: usize| {
            let options = EngineOptions { max_batch_tokens, precision, ..options(2) };
            let mut trainer = Engine::new(config.clone(), 1, options).unwrap().into_parts().0;
            for part in samples.chunks(samples.len() / parts) {
                trainer.forward_backward(part, &CrossEntropy).unwrap();
            }
            trainer.gradients()
        };
        let whole = gradients(1, 1 << 20);
        for other in [gradients(3, 1 << 20), gradients(6, 1 << 20), gradients(1, 64)] {
            for (name, values) in &other {
                let expected = &whole[name];
                let scale = expected.iter().fold(0.0f32, |max, x| max.max(x.abs()));
                let pairs = values.iter().zip(expected);
                let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
                assert!(off <= 2e-6 * scale, "{name}: {off} of {scale}");
            }
        }
    }
}

#[test]
fn the_sampler_agrees_in_bf16_and_over_long_contexts() {
    for precision in [Precision::F32, Precision::Bf16] {
        let config =
            ModelConfig { max_position_embeddings: 2200, ..config(ModelType::Qwen2, true) };
        let vocab = config.vocab_size;
        let options = EngineOptions { precision, ..options(2) };
        let mut engine = Engine::new(config, 4, options).unwrap();
        engine
            .trainer
            .forward_backward(&random_samples(1, &[60; 4], vocab), &CrossEntropy)
            .unwrap();
        engine.trainer.optim_step(&ADAM).unwrap();
        engine.trainer.publish().unwrap();
        // Across the border of a block of keys.
        for length in [30, 1015, 2040] {
            let mut tokens = random_samples(2, &[length], vocab).remove(0).tokens;
            let ask = request(length as u64, tokens.clone(), 20, 5);
            let completion = sample(&*engine.sampler(), &ask);
            tokens.extend(&completion.tokens);
            let weights = vec![1.0; tokens.len()];
            let whole = TrainingSample::supervised(tokens, weights);
            let logprobs = engine.trainer.forward(&[whole]).unwrap();
            assert_eq!(bits(&logprobs[0][length..]), bits(&completion.logprobs), "{length}");
        }
    }
}

#[test]
fn bf16_is_near_f32() {
    let config = config(ModelType::Qwen3, true);
    let samples = random_samples(3, &[150, 80, 33], config.vocab_size);
    let run = |precision| {
        let options = EngineOptions { precision, ..options(2) };
        let mut trainer = Engine::new(config.clone(), 1, options).unwrap().into_parts().0;
        let result = trainer.forward_backward(&samples, &CrossEntropy).unwrap();
        (result.loss, trainer.gradients())
    };
    let ((loss, exact), (rounded_loss, rounded)) = (run(Precision::F32), run(Precision::Bf16));
    assert!((rounded_loss / loss - 1.0).abs() < 3e-3, "{rounded_loss} and {loss}");
    assert!(rounded_loss.to_bits() != loss.to_bits(), "products are rounded");
    for (name, values) in &rounded {
        let norm =
            |x: &mut dyn Iterator<Item = f32>| x.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let off = norm(&mut values.iter().zip(&exact[name]).map(|(a, b)| a - b));
        let size = norm(&mut exact[name].iter().copied());
        assert!(off < 0.05 * size, "{name}: off by {off} of {size}");
    }
}

#[test]
fn what_is_longer_than_the_context_is_refused_not_cut() {
    let config = config(ModelType::Qwen3, true);
    let longest = config.max_position_embeddings;
    let mut engine = Engine::new(config, 1, options(1)).unwrap();
    let before = engine.trainer.parameters();
    let samples = random_samples(3, &[20, longest + 1], 53);
    for result in [
        engine.trainer.forward_backward(&samples, &CrossEntropy).map(|_| ()),
        engine.trainer.forward(&samples).map(|_| ()),
    ] {
        let Err(TrainerError::BadInput(text)) = result else { panic!("{result:?}") };
        assert_eq!(text, "sample 1 has 201 tokens, the model takes 200");
    }
    engine.trainer.optim_step(&AdamParams { weight_decay: 0.0, ..ADAM }).unwrap();
    assert!(engine.trainer.parameters() == before, "nothing of the batch was learned");
    assert!(engine.trainer.forward(&random_samples(3, &[longest], 53)).is_ok());
}
