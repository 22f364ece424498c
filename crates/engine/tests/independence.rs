//! Nothing depends on neighbours, chunks, caches or threads: results are equal bit for bit.

mod common;

use common::{
    CrossEntropy, VARIANTS, bits, config, options, random_samples, random_tokens, request, sample,
};
use patchwright_core::{AdamParams, SampleRequest, Sampler, Trainer, TrainingSample};
use patchwright_engine::{Engine, EngineOptions, ModelType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[test]
fn a_completion_does_not_depend_on_the_batch() {
    for model_type in VARIANTS {
        let config = config(model_type, true);
        let vocab = config.vocab_size;
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let prompt = random_tokens(&mut rng, 45, vocab);
        // Sixty-five requests; a part of them shares prompts wholly or partly.
        let requests: Vec<SampleRequest> = (0..65)
            .map(|session| {
                let mut context = prompt[..rng.random_range(0..=prompt.len())].to_vec();
                let extra = rng.random_range(1..60);
                context.extend(random_tokens(&mut rng, extra, vocab));
                let mut r = request(session, context, rng.random_range(1..40), session * 7);
                r.params.temperature = [1.0, 0.7, 0.0][session as usize % 3];
                r
            })
            .collect();
        let alone: Vec<_> = requests
            .iter()
            .map(|r| {
                let engine = Engine::new(config.clone(), 4, options(1)).unwrap();
                sample(&*engine.sampler(), r)
            })
            .collect();
        for (threads, batch) in [(2, 512), (3, 7)] {
            let options = EngineOptions { max_batch_tokens: batch, ..options(threads) };
            let engine = Engine::new(config.clone(), 4, options).unwrap();
            let sampler = engine.sampler();
            std::thread::scope(|scope| {
                for (r, alone) in requests.iter().zip(&alone) {
                    let sampler = &sampler;
                    scope.spawn(move || {
                        let together = sample(&**sampler, r);
                        assert_eq!(together.tokens, alone.tokens, "session {}", r.session);
                        assert_eq!(bits(&together.logprobs), bits(&alone.logprobs));
                    });
                }
            });
            assert!(sampler.stats().num_reused_tokens > 0, "prompts are shared");
        }
    }
}

/// Plays sessions of several turns whose prompts agree and returns the samples that come of it.
fn play(sampler: &dyn Sampler, vocab: usize, sessions: u64) -> Vec<TrainingSample> {
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    let prompt = random_tokens(&mut rng, 50, vocab);
    let one = |session: u64| {
        let mut rng = ChaCha8Rng::seed_from_u64(session);
        let (mut tokens, mut logprobs) = (prompt.clone(), vec![0.0; prompt.len()]);
        for turn in 0..4 {
            let completion = sample(sampler, &request(session, tokens.clone(), 9, session + turn));
            tokens.extend(&completion.tokens);
            logprobs.extend(&completion.logprobs);
            let observation = random_tokens(&mut rng, 5 + session as usize, vocab);
            logprobs.resize(logprobs.len() + observation.len(), 0.0);
            tokens.extend(observation);
        }
        sampler.end_session(session);
        let mask = logprobs.iter().map(|l| if *l == 0.0 { 0.0 } else { 1.0 }).collect();
        let mut sample = TrainingSample::supervised(tokens, mask);
        sample.sampler_logprobs = logprobs;
        sample
    };
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..sessions).map(|s| scope.spawn(move || one(s))).collect();
        handles.into_iter().map(|h| h.join().unwrap()).collect()
    })
}

#[test]
fn trainer_and_sampler_agree_over_turns_and_siblings() {
    for model_type in VARIANTS {
        let config = config(model_type, model_type != ModelType::Llama);
        let vocab = config.vocab_size;
        let mut engine = Engine::new(config, 4, options(2)).unwrap();
        // Away from the initial weights, whose distribution is nearly flat.
        let warmup = random_samples(1, &[60; 4], vocab);
        for _ in 0..3 {
            engine.trainer.forward_backward(&warmup, &CrossEntropy).unwrap();
            engine.trainer.optim_step(&adam(0.05)).unwrap();
        }
        engine.trainer.publish().unwrap();
        let samples = play(&*engine.sampler(), vocab, 10);
        let stats = engine.sampler().stats();
        // Nine siblings share the prompt; each of three later turns reuses what was there.
        assert!(stats.num_reused_tokens > 9 * 45 + 10 * 3 * 50, "{stats:?}");
        let logprobs = engine.trainer.forward(&samples).unwrap();
        let learned = engine.trainer.forward_backward(&samples, &CrossEntropy).unwrap();
        let mut compared = 0;
        for (i, sample) in samples.iter().enumerate() {
            for t in (1..sample.tokens.len()).filter(|t| sample.loss_mask[*t] != 0.0) {
                let sampled = sample.sampler_logprobs[t];
                assert_eq!(sampled.to_bits(), logprobs[i][t].to_bits(), "sample {i} token {t}");
                assert_eq!(sampled.to_bits(), learned.logprobs[i][t].to_bits());
                compared += 1;
            }
        }
        assert_eq!(compared, 10 * 4 * 9);
    }
}

fn adam(lr: f32) -> AdamParams {
    AdamParams { lr, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 }
}

#[test]
fn training_has_the_same_bits_on_any_number_of_threads() {
    let config = config(ModelType::Qwen3, true);
    let lengths: Vec<usize> = (0..60).map(|i| 10 + i * 7 % 90).collect();
    let samples = random_samples(3, &lengths, config.vocab_size);
    let run = |threads: usize| {
        let mut trainer = Engine::new(config.clone(), 1, options(threads)).unwrap().into_parts().0;
        let mut logprobs = Vec::new();
        for _ in 0..3 {
            let result = trainer.forward_backward(&samples, &CrossEntropy).unwrap();
            logprobs.extend(result.logprobs.concat());
            trainer.optim_step(&adam(0.01)).unwrap();
        }
        let flat: Vec<f32> = trainer.parameters().into_values().flatten().collect();
        (bits(&logprobs), bits(&flat))
    };
    let one = run(1);
    for threads in [1, 2, 5] {
        assert!(run(threads) == one, "{threads} threads");
    }
}

#[test]
fn log_probabilities_do_not_depend_on_the_packing() {
    let config = config(ModelType::Qwen2, false);
    let samples = random_samples(3, &[90, 3, 1, 64, 65, 32, 33, 31], config.vocab_size);
    let mut trainer = Engine::new(config, 1, options(2)).unwrap().into_parts().0;
    let together = trainer.forward(&samples).unwrap();
    for (sample, together) in samples.iter().zip(together) {
        let alone = trainer.forward(std::slice::from_ref(sample)).unwrap();
        assert_eq!(bits(&alone[0]), bits(&together));
    }
}
