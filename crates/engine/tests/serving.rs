//! The sampler as a service: limits, publications, eviction, many threads.

mod common;

use common::{CrossEntropy, bits, config, options, random_samples, random_tokens, request, sample};
use patchwright_core::{
    AdamParams, FinishReason, Objective, PolicyVersion, Sampler, SamplerError, TokenLoss, Trainer,
    TrainerError, TrainingSample,
};
use patchwright_engine::{Engine, EngineOptions, ModelType};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

#[test]
fn completions_end_where_they_should() {
    let config = config(ModelType::Llama, true);
    let engine = Engine::new(config.clone(), 1, options(2)).unwrap();
    let sampler = engine.sampler();
    assert_eq!(sampler.max_context(), config.max_position_embeddings);
    let free = sample(&*sampler, &request(1, vec![5; 30], 40, 3));
    assert_eq!((free.tokens.len(), free.finish_reason), (40, FinishReason::Length));
    assert_eq!(free.logprobs.len(), 40);
    // The same draw, stopped at the first of two stop tokens to come.
    let mut stopping = request(2, vec![5; 30], 40, 3);
    stopping.stop_tokens = vec![free.tokens[9], free.tokens[20]];
    let stopped = sample(&*sampler, &stopping);
    let end = free.tokens.iter().position(|t| stopping.stop_tokens.contains(t)).unwrap();
    assert_eq!(stopped.tokens, free.tokens[..=end]);
    assert_eq!(stopped.finish_reason, FinishReason::Stop);
    // The context ends.
    let long = sample(&*sampler, &request(3, vec![5; 195], 40, 3));
    assert_eq!((long.tokens.len(), long.finish_reason), (5, FinishReason::Length));
}

#[test]
fn bad_requests_are_refused_and_the_sampler_goes_on() {
    let engine = Engine::new(config(ModelType::Llama, true), 1, options(1)).unwrap();
    let sampler = engine.sampler();
    let mut cold = request(1, vec![1], 1, 0);
    cold.params.temperature = -1.0;
    let mut nan = request(1, vec![1], 1, 0);
    nan.params.temperature = f32::NAN;
    let mut stop = request(1, vec![1], 1, 0);
    stop.stop_tokens = vec![53];
    let bad = [
        (request(1, vec![], 1, 0), "empty"),
        (request(1, vec![53], 1, 0), "token 53"),
        (request(1, vec![1], 0, 0), "max_tokens"),
        (request(1, vec![1; 200], 1, 0), "200 tokens"),
        (cold, "temperature"),
        (nan, "temperature"),
        (stop, "token 53"),
    ];
    for (request, part) in bad {
        match sampler.sample(&request) {
            Err(SamplerError::BadRequest(text)) => assert!(text.contains(part), "{text}"),
            other => panic!("{part}: {other:?}"),
        }
    }
    assert_eq!(sample(&*sampler, &request(1, vec![1], 3, 0)).tokens.len(), 3);
}

#[test]
fn bad_samples_are_refused() {
    let mut trainer =
        Engine::new(config(ModelType::Llama, true), 1, options(1)).unwrap().into_parts().0;
    let good = TrainingSample::supervised(vec![1; 9], vec![1.0; 9]);
    let change = |f: &dyn Fn(&mut TrainingSample)| {
        let mut sample = good.clone();
        f(&mut sample);
        sample
    };
    let bad = [
        (TrainingSample::default(), "no tokens"),
        (TrainingSample::supervised(vec![1; 201], vec![1.0; 201]), "201 tokens"),
        (change(&|s| s.tokens[3] = 53), "token 53"),
        (change(&|s| s.loss_mask[3] = f32::NAN), "loss_mask"),
        (change(&|s| s.advantages.truncate(2)), "advantages"),
        (change(&|s| s.sampler_logprobs.push(0.0)), "sampler_logprobs"),
    ];
    for (sample, part) in bad {
        let samples = [good.clone(), sample];
        match trainer.forward_backward(&samples, &CrossEntropy) {
            Err(TrainerError::BadInput(text)) => {
                assert!(text.contains(part) && text.contains("sample 1"), "{text}");
            }
            other => panic!("{part}: {other:?}"),
        }
    }
    assert!(trainer.gradients().values().flatten().all(|g| *g == 0.0));
    // Nothing at all is fine, and gives nothing.
    assert_eq!(trainer.forward_backward(&[], &CrossEntropy).unwrap().num_loss_tokens, 0);
}

struct Diverging;

impl Objective for Diverging {
    fn token_loss(&self, _: &TrainingSample, _: usize, _: f32) -> TokenLoss {
        TokenLoss { loss: 1.0, d_logprob: f32::INFINITY, clipped: true }
    }
}

#[test]
fn divergence_leaves_the_weights_alone() {
    let adam = AdamParams {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_clip: 0.0,
    };
    let mut trainer =
        Engine::new(config(ModelType::Qwen3, true), 1, options(1)).unwrap().into_parts().0;
    let before = trainer.parameters();
    let samples = random_samples(1, &[9], 53);
    let result = trainer.forward_backward(&samples, &Diverging).unwrap();
    assert_eq!(result.num_clipped, result.num_loss_tokens);
    assert!(matches!(trainer.optim_step(&adam), Err(TrainerError::Diverged(_))));
    assert!(trainer.parameters() == before);
    // And the bad gradient is gone.
    trainer.forward_backward(&samples, &CrossEntropy).unwrap();
    trainer.optim_step(&adam).unwrap();
    assert!(trainer.parameters() != before);
    assert!(matches!(
        trainer.optim_step(&AdamParams { beta2: 1.0, ..adam }),
        Err(TrainerError::BadInput(_))
    ));
}

#[test]
fn a_publication_never_mixes_weights() {
    let config = config(ModelType::Qwen3, true);
    let vocab = config.vocab_size;
    let mut engine = Engine::new(config, 1, options(2)).unwrap();
    let sampler = engine.sampler();
    let contexts: Vec<Vec<u32>> =
        (0..12).map(|i| random_tokens(&mut ChaCha8Rng::seed_from_u64(i), 20, vocab)).collect();
    let ask = |session: usize| request(session as u64, contexts[session].clone(), 60, 1);
    let adam = AdamParams {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_clip: 1.0,
    };
    let old: Vec<_> = (0..12).map(|s| sample(&*sampler, &ask(s))).collect();
    engine.trainer.forward_backward(&random_samples(1, &[50], vocab), &CrossEntropy).unwrap();
    engine.trainer.optim_step(&adam).unwrap();
    let during = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..12)
            .map(|s| {
                let (sampler, ask) = (&sampler, &ask);
                scope.spawn(move || (0..4).map(|_| sample(&**sampler, &ask(s))).collect::<Vec<_>>())
            })
            .collect();
        assert_eq!(engine.trainer.publish().unwrap(), PolicyVersion(1));
        handles.into_iter().map(|h| h.join().unwrap()).collect::<Vec<_>>()
    });
    let new: Vec<_> = (0..12).map(|s| sample(&*sampler, &ask(s))).collect();
    assert!(new.iter().zip(&old).any(|(n, o)| n.tokens != o.tokens), "the weights moved");
    for (session, completions) in during.iter().enumerate() {
        for completion in completions {
            let expected = match completion.policy_version {
                PolicyVersion(0) => &old[session],
                _ => &new[session],
            };
            assert_eq!(completion.tokens, expected.tokens);
            assert_eq!(bits(&completion.logprobs), bits(&expected.logprobs));
        }
    }
    assert!(new.iter().all(|c| c.policy_version == PolicyVersion(1)));
}

#[test]
fn the_cache_stays_within_its_bound() {
    let config = config(ModelType::Qwen2, true);
    let vocab = config.vocab_size;
    let small = EngineOptions { max_cached_tokens: 512, ..options(2) };
    let engine = Engine::new(config.clone(), 1, small).unwrap();
    let roomy = Engine::new(config, 1, options(2)).unwrap();
    let (sampler, other) = (engine.sampler(), roomy.sampler());
    std::thread::scope(|scope| {
        for session in 0..40u64 {
            let (sampler, other) = (&sampler, &other);
            scope.spawn(move || {
                let mut rng = ChaCha8Rng::seed_from_u64(session);
                let mut context = random_tokens(&mut rng, 60, vocab);
                for turn in 0..3 {
                    let ask = request(session, context.clone(), 20, turn);
                    let completion = sample(&**sampler, &ask);
                    assert_eq!(completion.tokens, sample(&**other, &ask).tokens);
                    context.extend(completion.tokens);
                }
                // Odd ones are forgotten by their agents; the bound must hold nevertheless.
                if session % 2 == 0 {
                    sampler.end_session(session);
                }
            });
        }
    });
    let stats = sampler.stats();
    assert!(stats.cached_tokens_max <= 512, "{stats:?}");
    assert_eq!((stats.num_completions, stats.num_sampled_tokens), (120, 2400));
    assert!(other.stats().cached_tokens_max > 512);
    // One that could never fit is told so.
    let tight = EngineOptions { max_cached_tokens: 64, ..options(1) };
    let engine = Engine::new(common::config(ModelType::Qwen2, true), 1, tight).unwrap();
    let error = engine.sampler().sample(&request(1, vec![1; 60], 20, 0)).unwrap_err();
    assert!(error.to_string().contains("max_cached_tokens"), "{error}");
    assert_eq!(sample(&*engine.sampler(), &request(1, vec![1; 40], 20, 0)).tokens.len(), 20);
}

#[test]
fn options_that_make_no_sense_are_refused() {
    let config = config(ModelType::Qwen3, true);
    for bad in [
        EngineOptions { num_threads: 0, ..options(1) },
        EngineOptions { max_batch_tokens: 0, ..options(1) },
        EngineOptions { max_cached_tokens: 3, ..options(1) },
    ] {
        assert!(matches!(Engine::new(config.clone(), 0, bad), Err(TrainerError::BadInput(_))));
    }
    let odd = patchwright_engine::ModelConfig { head_dim: 7, ..config };
    assert!(matches!(Engine::new(odd, 0, options(1)), Err(TrainerError::BadInput(_))));
}
