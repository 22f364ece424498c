//! What is shared, evicted, computed again, forked or cancelled changes no bit of any result.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::{bits, config, options, random_tokens, request, sample};
use patchwright_core::{Completion, FinishReason, SampleRequest, Sampler, SamplerError, Trainer};
use patchwright_engine::{
    EmbeddedSampler, Engine, EngineOptions, ModelConfig, ModelType, Precision, WeightSwap,
};
use proptest::prelude::*;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn assert_same(a: &Completion, b: &Completion, what: &str) {
    assert_eq!(a.tokens, b.tokens, "{what}");
    for (x, y) in [
        (&a.logprobs, &b.logprobs),
        (&a.entropies, &b.entropies),
        (&a.prompt_logprobs, &b.prompt_logprobs),
    ] {
        assert_eq!(bits(x), bits(y), "{what}");
    }
    assert_eq!(a.finish_reason, b.finish_reason, "{what}");
}

/// A request of the property test: `(shared tokens, own tokens, new tokens, scored, seed)`.
type Ask = (usize, usize, usize, bool, u64);

fn ask(
    session: u64,
    shared: &[u32],
    vocab: usize,
    (common, own, new, scored, seed): Ask,
) -> SampleRequest {
    let mut rng = ChaCha8Rng::seed_from_u64(seed % 3);
    let mut context = shared[..common].to_vec();
    context.extend(random_tokens(&mut rng, own, vocab));
    let mut request = request(session, context, new, seed);
    request.prompt_logprobs = scored;
    request
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// The model of it all: an engine that has never seen another request.
    #[test]
    fn a_completion_depends_on_its_request_only(
        asks in prop::collection::vec((0usize..90, 1usize..50, 1usize..50, prop::bool::weighted(0.2), 0u64..6), 1..14),
        pages in 6usize..16,
        batch in 1usize..200,
        threads in 1usize..4,
        together in 1usize..8,
        bf16: bool,
    ) {
        let precision = if bf16 { Precision::Bf16 } else { Precision::F32 };
        let config = config(ModelType::Qwen3, true);
        let vocab = config.vocab_size;
        let shared = random_tokens(&mut ChaCha8Rng::seed_from_u64(9), 90, vocab);
        let requests: Vec<SampleRequest> =
            asks.iter().enumerate().map(|(i, a)| ask(i as u64, &shared, vocab, *a)).collect();
        let tight = EngineOptions {
            max_cached_tokens: 32 * pages,
            max_batch_tokens: batch,
            precision,
            ..options(threads)
        };
        let alone = EngineOptions { precision, ..options(1) };
        let engine = Engine::new(config.clone(), 4, tight).unwrap();
        let sampler = engine.sampler();
        let next = std::sync::atomic::AtomicUsize::new(0);
        let results: Vec<(usize, Completion)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..together).map(|_| scope.spawn(|| {
                let mut results = Vec::new();
                while next.load(Ordering::SeqCst) < requests.len() {

                    let index = next.fetch_add(1, Ordering::SeqCst);
                    let Some(r) = requests.get(index) else { break };
                    results.push((index, sample(&*sampler, r)));
                    if index.is_multiple_of(2) {
                        sampler.end_session(r.session);
                    }
                }
                results
            })).collect();
            workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        prop_assert_eq!(results.len(), requests.len());
        prop_assert!(sampler.stats().cached_tokens_max <= 32 * pages as u64);
        for (index, completion) in results {
            let alone = Engine::new(config.clone(), 4, alone.clone()).unwrap();
            let expected = sample(&*alone.sampler(), &requests[index]);
            assert_same(&completion, &expected, &format!("request {index}"));
        }
    }
}

/// A model with room for long sequences.
fn long_config() -> ModelConfig {
    ModelConfig { max_position_embeddings: 1 << 20, ..config(ModelType::Llama, true) }
}

#[test]
fn who_must_make_room_goes_on_later_with_the_same_bits() {
    let config = config(ModelType::Qwen2, true);
    let vocab = config.vocab_size;
    // Any one of them fits alone; two do not.
    let tight = EngineOptions { max_cached_tokens: 7 * 32, ..options(2) };
    let engine = Engine::new(config.clone(), 4, tight).unwrap();
    let sampler = engine.sampler();
    let requests: Vec<SampleRequest> = (0..64)
        .map(|i| {
            let context = random_tokens(&mut ChaCha8Rng::seed_from_u64(i), 10, vocab);
            let mut r = request(i, context, 180, i);
            r.prompt_logprobs = i % 5 == 0;
            r
        })
        .collect();
    std::thread::scope(|scope| {
        for r in &requests {
            let (sampler, config) = (&sampler, &config);
            scope.spawn(move || {
                let tight = sample(&**sampler, r);
                let alone = Engine::new(config.clone(), 4, options(1)).unwrap();
                assert_same(&tight, &sample(&*alone.sampler(), r), &r.session.to_string());
            });
        }
    });
    let stats = sampler.stats();
    assert!(stats.num_preemptions > 0 && stats.num_recomputed_tokens > 0, "{stats:?}");
    assert!(stats.cached_tokens_max <= 7 * 32, "{stats:?}");
}

#[test]
fn a_sequence_is_forked_at_any_token() {
    let engine = Engine::new(config(ModelType::Qwen3, false), 4, options(1)).unwrap();
    let sampler = engine.sampler();
    let trunk_request = request(0, vec![7; 40], 100, 1);
    let trunk = sample(&*sampler, &trunk_request);
    let whole = [trunk_request.context, trunk.tokens].concat();
    for at in [1, 31, 32, 33, 40, 64, 77, 139] {
        let before = sampler.stats();
        let forked = sample(&*sampler, &request(at as u64, whole[..at].to_vec(), 20, 5));
        let after = sampler.stats();
        // All but the last token, whose logits are needed.
        assert_eq!(after.num_reused_tokens - before.num_reused_tokens, at as u64 - 1);
        assert_eq!(after.num_prefill_tokens - before.num_prefill_tokens, 1);
        let alone = Engine::new(config(ModelType::Qwen3, false), 4, options(1)).unwrap();
        let expected = sample(&*alone.sampler(), &request(9, whole[..at].to_vec(), 20, 5));
        assert_same(&forked, &expected, &format!("fork at {at}"));
    }
    assert!(sampler.stats().hit_rate() > 0.8);
}

#[test]
fn scores_and_entropies_are_those_of_the_trainer() {
    let config = config(ModelType::Qwen2, false);
    let vocab = config.vocab_size as u32;
    let mut engine = Engine::new(config, 4, options(2)).unwrap();
    let context = random_tokens(&mut ChaCha8Rng::seed_from_u64(1), 70, vocab as usize);
    let mut scored = request(1, context.clone(), 3, 2);
    scored.prompt_logprobs = true;
    let sampler = engine.sampler();
    sample(&*sampler, &request(0, context.clone(), 1, 0));
    let completion = sample(&*sampler, &scored);
    let whole = [context.clone(), completion.tokens.clone()].concat();
    let score = |engine: &mut Engine, tokens: Vec<u32>| {
        let ones = vec![1.0; tokens.len()];
        let sample = patchwright_core::TrainingSample::supervised(tokens, ones);
        engine.trainer.forward(&[sample]).unwrap().remove(0)
    };
    let expected = score(&mut engine, whole.clone());
    assert_eq!(bits(&completion.prompt_logprobs), bits(&expected[..70]));
    assert_eq!(bits(&completion.logprobs), bits(&expected[70..]));
    for (i, entropy) in completion.entropies.iter().enumerate() {
        let logprob = |token| {
            let tokens = [&whole[..70 + i], &[token]].concat();
            f64::from(score(&mut engine, tokens)[70 + i])
        };
        let exact: f64 = (0..vocab).map(logprob).map(|l| -l.exp() * l).sum();
        assert!((f64::from(*entropy) - exact).abs() < 1e-4, "{entropy} and {exact}");
    }
    assert!(sample(&*sampler, &request(0, context, 1, 0)).prompt_logprobs.is_empty());
}

fn with_bytes(engine: &Engine) -> Arc<EmbeddedSampler> {
    let sampler = engine.sampler();
    // One to three letters each; the last two have none.
    let bytes = (0..51u8).map(|i| vec![b'a' + i % 5; 1 + usize::from(i) % 3]).collect();
    sampler.set_token_bytes(bytes).unwrap();
    sampler
}

#[test]
fn stop_strings_end_where_they_are_complete_across_tokens() {
    let engine = Engine::new(config(ModelType::Llama, true), 4, options(1)).unwrap();
    let mut ask = request(0, vec![3; 20], 150, 1);
    ask.stop_strings = vec![b"x".to_vec()];
    let error = engine.sampler().sample(&ask).unwrap_err();
    assert!(error.to_string().contains("set_token_bytes"), "{error}");
    let sampler = with_bytes(&engine);
    let free = sample(&*sampler, &ask);
    assert_eq!((free.tokens.len(), free.finish_reason), (150, FinishReason::Length));
    let bytes = |token: u32| match token {
        0..51 => vec![b'a' + token as u8 % 5; 1 + token as usize % 3],
        _ => vec![],
    };
    let text: Vec<u8> = free.tokens.iter().flat_map(|t| bytes(*t)).collect();
    // Every piece of the text ends the completion at the token in which it is first complete.
    for (start, len) in [(0, 1), (5, 4), (11, 9), (60, 20), (100, 33), (31, 2)] {
        let piece = &text[start..start + len];
        let end = text.windows(len).position(|w| w == piece).unwrap() + len;
        let mut seen = 0;
        let num_tokens = free
            .tokens
            .iter()
            .position(|t| {
                seen += bytes(*t).len();
                seen >= end
            })
            .unwrap()
            + 1;
        ask.stop_strings = vec![b"nowhere".to_vec(), piece.to_vec()];
        let stopped = sample(&*sampler, &ask);
        assert_eq!(stopped.tokens, free.tokens[..num_tokens]);
        assert_eq!(stopped.finish_reason, FinishReason::Stop);
    }
    ask.stop_strings = vec![vec![]];
    assert!(matches!(sampler.sample(&ask), Err(SamplerError::BadRequest(_))));
    assert!(matches!(sampler.set_token_bytes(vec![]), Err(SamplerError::BadRequest(_))));
    let many = vec![vec![0]; 54];
    assert!(matches!(sampler.set_token_bytes(many), Err(SamplerError::BadRequest(_))));
}

#[test]
fn a_request_is_cancelled_while_it_runs_or_waits() {
    let room = EngineOptions { max_cached_tokens: 1 << 20, ..options(1) };
    let engine = Engine::new(long_config(), 4, room).unwrap();
    let sampler = engine.sampler();
    assert!(matches!(
        sampler.sample_cancellable(&request(0, vec![1], 1, 0), &|| true),
        Err(SamplerError::Cancelled)
    ));
    // Hours of work, which take all the room there is.
    let endless = |session| request(session, vec![1; 10], 1 << 19, session);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|session| {
                let (sampler, stop) = (&sampler, &stop);
                scope.spawn(move || {
                    let cancelled = || stop.load(Ordering::SeqCst);
                    sampler.sample_cancellable(&endless(session), &cancelled)
                })
            })
            .collect();
        while sampler.stats().num_steps < 20 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::SeqCst);
        for worker in workers {
            assert!(matches!(worker.join().unwrap(), Err(SamplerError::Cancelled)));
        }
    });
    assert_eq!(sample(&*sampler, &request(1, vec![1], 3, 0)).tokens.len(), 3);
    assert_eq!(sampler.stats().num_completions, 1);
}

#[test]
fn weights_are_swapped_in_flight_and_each_token_knows_its_own() {
    let make = |seed, swap| {
        let options = EngineOptions { weight_swap: swap, ..options(2) };
        Engine::new(ModelConfig { max_position_embeddings: 2000, ..long_config() }, seed, options)
            .unwrap()
    };
    let mut references = [make(1, WeightSwap::Drain), make(2, WeightSwap::Drain)];
    let parameters = [0, 1].map(|i: usize| references[i].trainer.parameters());
    let mut engine = make(1, WeightSwap::InFlight);
    let sampler = engine.sampler();
    let (mixed, requests) = (AtomicBool::new(false), 4);
    let completions: Vec<(SampleRequest, Completion)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..requests)
            .map(|session: u64| {
                let (sampler, mixed) = (&sampler, &mixed);
                scope.spawn(move || {
                    let mut done = Vec::new();
                    // Until the swap has hit one; each lasts for many steps.
                    while !mixed.load(Ordering::SeqCst) && done.len() < 50 {
                        let seed = session * 1000 + done.len() as u64;
                        let mut ask = request(session, vec![session as u32; 40], 200, seed);
                        ask.prompt_logprobs = session == 0;
                        let completion = sample(&**sampler, &ask);
                        let versions = &completion.policy_versions;
                        if versions.first() != versions.last() {
                            mixed.store(true, Ordering::SeqCst);
                        }
                        done.push((ask, completion));
                    }
                    done
                })
            })
            .collect();
        for version in 1.. {
            for (name, values) in &parameters[version % 2] {
                engine.trainer.set_parameter(name, values).unwrap();
            }
            engine.trainer.publish().unwrap();
            if mixed.load(Ordering::SeqCst) {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    assert!(mixed.load(Ordering::SeqCst), "a swap in flight");
    // A mixed one, and a few of the others.
    let is_mixed = |c: &Completion| c.policy_versions.first() != c.policy_versions.last();
    let (first, rest): (Vec<_>, Vec<_>) = completions.iter().partition(|(_, c)| is_mixed(c));
    for (request, completion) in first.iter().take(2).chain(rest.iter().take(2)) {
        assert_eq!(completion.policy_versions.len(), completion.tokens.len());
        assert_eq!(completion.policy_version, completion.policy_versions[0]);
        assert!(completion.policy_versions.is_sorted());
        let whole = [request.context.clone(), completion.tokens.clone()].concat();
        let ones = vec![1.0; whole.len()];
        let sample = [patchwright_core::TrainingSample::supervised(whole, ones)];
        let expected = [0, 1].map(|i| references[i].trainer.forward(&sample).unwrap().remove(0));
        for (i, version) in completion.policy_versions.iter().enumerate() {
            let expected = expected[version.0 as usize % 2][request.context.len() + i];
            assert_eq!(completion.logprobs[i].to_bits(), expected.to_bits(), "token {i}");
        }
    }
}

#[test]
fn a_large_model_has_the_same_bits_on_any_number_of_threads() {
    // Large enough that threads share out columns rather than sequences.
    let large = ModelConfig {
        hidden_size: 256,
        intermediate_size: 3000,
        num_hidden_layers: 4,
        num_attention_heads: 4,
        head_dim: 40,
        ..config(ModelType::Qwen3, true)
    };
    assert!(large.num_parameters() > 1 << 23);
    let requests: Vec<SampleRequest> = (0..4)
        .map(|i| {
            let len = 3 + 17 * i as usize;
            request(i, random_tokens(&mut ChaCha8Rng::seed_from_u64(i), len, 53), 6, i)
        })
        .collect();
    for (threads, precision) in [(3, Precision::F32), (2, Precision::Bf16)] {
        let options = EngineOptions { precision, ..options(threads) };
        let alone = EngineOptions { num_threads: 1, ..options.clone() };
        let mut reference = Engine::new(large.clone(), 4, alone).unwrap();
        let engine = Engine::new(large.clone(), 4, options).unwrap();
        let sampler = engine.sampler();
        let completions: Vec<Completion> = std::thread::scope(|scope| {
            let workers: Vec<_> =
                requests.iter().map(|r| scope.spawn(|| sample(&*sampler, r))).collect();
            workers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        for (request, completion) in requests.iter().zip(&completions) {
            let whole = [request.context.clone(), completion.tokens.clone()].concat();
            let ones = vec![1.0; whole.len()];
            let sample = patchwright_core::TrainingSample::supervised(whole, ones);
            let expected = reference.trainer.forward(&[sample]).unwrap().remove(0);
            assert_eq!(bits(&completion.logprobs), bits(&expected[request.context.len()..]));
        }
    }
}
