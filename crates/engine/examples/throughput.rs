//! Prints how many tokens a second the engine trains, prefills and samples on this machine.
//!
//! `cargo run --release -p patchwright-engine --example throughput [hidden layers heads kv_heads ffn vocab]`

use std::sync::Arc;
use std::time::Instant;

use patchwright_core::{SampleRequest, Sampler, SamplingParams, Trainer, TrainingSample};
use patchwright_engine::bench::{ADAM, CrossEntropy, cpu_seconds};
use patchwright_engine::{EmbeddedSampler, Engine, EngineOptions, ModelConfig, ModelType};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<usize> =
        std::env::args().skip(1).map(|x| x.parse()).collect::<Result<_, _>>()?;
    let get = |i: usize, default| numbers.get(i).copied().unwrap_or(default);
    let heads = get(2, 4);
    let config = ModelConfig {
        model_type: ModelType::Qwen3,
        hidden_size: get(0, 128),
        num_hidden_layers: get(1, 5),
        num_attention_heads: heads,
        num_key_value_heads: get(3, 2),
        intermediate_size: get(4, 384),
        vocab_size: get(5, 600),
        head_dim: get(0, 128) / heads,
        max_position_embeddings: 2048,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    };
    let options = EngineOptions::default();
    println!("{} parameters, {} threads", config.num_parameters(), options.num_threads);
    let vocab = config.vocab_size as u32;
    let mut engine = Engine::new(config, 0, options)?;
    if std::env::var_os("SKIP_TRAINING").is_none() {
        train(&mut engine, vocab)?;
    }
    let sampler = engine.sampler();
    for concurrency in [1usize, 16, 128, 512] {
        sample(&sampler, vocab, concurrency);
    }
    Ok(())
}

fn train(engine: &mut Engine, vocab: u32) -> Result<(), Box<dyn std::error::Error>> {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    // As in RL: a third of the tokens is learned from.
    for (name, masked) in [("all tokens", 0.0), ("a third of the tokens", 2.0 / 3.0)] {
        let samples: Vec<TrainingSample> = (0..150)
            .map(|_| {
                let n = rng.random_range(150..250);
                let tokens = (0..n).map(|_| rng.random_range(0..vocab)).collect();
                let mask = (0..n).map(|_| f32::from(u8::from(!rng.random_bool(masked)))).collect();
                TrainingSample::supervised(tokens, mask)
            })
            .collect();
        let tokens: usize = samples.iter().map(|s| s.tokens.len()).sum();
        let mut best = [0.0f64; 4];
        for _ in 0..4 {
            let (started, cpu) = (Instant::now(), cpu_seconds());
            engine.trainer.forward_backward(&samples, &CrossEntropy)?;
            best[3] = best[3].max(tokens as f64 / (cpu_seconds() - cpu));
            let middle = Instant::now();
            engine.trainer.optim_step(&ADAM)?;
            let step = middle.elapsed().as_secs_f64();
            let pass = (middle - started).as_secs_f64();
            let forward = Instant::now();
            engine.trainer.forward(&samples)?;
            let forward = forward.elapsed().as_secs_f64();
            best[0] = best[0].max(tokens as f64 / (pass + step));
            best[1] = best[1].max(tokens as f64 / forward);
            best[2] = best[2].max(1.0 / step);
        }
        println!(
            "train, loss on {name}: {:.0} tokens/s ({:.0} a CPU-second); forward {:.0} tokens/s; \
             optimizer {:.1} ms",
            best[0],
            best[3],
            best[1],
            1e3 / best[2]
        );
    }
    engine.trainer.publish()?;
    Ok(())
}

/// Turns of a few sessions at once: a prompt of 150 tokens that groups of 8 share, 4 turns of 32
/// tokens.
fn sample(sampler: &Arc<EmbeddedSampler>, vocab: u32, concurrency: usize) {
    let rounds = (128 / concurrency).clamp(1, 8);
    let before = sampler.stats();
    let (started, cpu) = (Instant::now(), cpu_seconds());
    std::thread::scope(|scope| {
        for thread in 0..concurrency {
            scope.spawn(move || {
                for round in 0..rounds {
                    let session = (concurrency * 10_000 + round * concurrency + thread) as u64;
                    let mut rng = ChaCha8Rng::seed_from_u64(session / 8);
                    let mut context: Vec<u32> =
                        (0..150).map(|_| rng.random_range(0..vocab)).collect();
                    for turn in 0..4 {
                        let request = SampleRequest {
                            session,
                            context: context.clone(),
                            max_tokens: 32,
                            stop_tokens: Vec::new(),
                            params: SamplingParams::default(),
                            seed: session * 10 + turn,
                            ..SampleRequest::default()
                        };
                        match sampler.sample(&request) {
                            Ok(completion) => context.extend(completion.tokens),
                            Err(error) => println!("{error}"),
                        }
                    }
                    sampler.end_session(session);
                }
            });
        }
    });
    let (seconds, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let after = sampler.stats();
    let sampled = after.num_sampled_tokens - before.num_sampled_tokens;
    let prefill = after.num_prefill_tokens - before.num_prefill_tokens;
    let reused = after.num_reused_tokens - before.num_reused_tokens;
    println!(
        "{concurrency} sequences: {:.0} sampled ({:.0} a CPU-second) and {:.0} prefilled tokens/s \
         ({sampled} sampled, {prefill} prefilled, {reused} reused, busy {:.0} %)",
        sampled as f64 / seconds,
        sampled as f64 / cpu,
        prefill as f64 / seconds,
        after.busy.saturating_sub(before.busy).as_secs_f64() / seconds * 100.0
    );
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let prompts = 64;
    std::thread::scope(|scope| {
        for prompt in 0..prompts {
            scope.spawn(move || {
                let session = u64::MAX - prompt;
                let mut rng = ChaCha8Rng::seed_from_u64(session ^ concurrency as u64);
                let request = SampleRequest {
                    session,
                    context: (0..300).map(|_| rng.random_range(0..vocab)).collect(),
                    max_tokens: 1,
                    stop_tokens: Vec::new(),
                    params: SamplingParams::default(),
                    seed: 0,
                    ..SampleRequest::default()
                };
                if let Err(error) = sampler.sample(&request) {
                    println!("{error}");
                }
                sampler.end_session(session);
            });
        }
    });
    let rate = (prompts * 300) as f64 / started.elapsed().as_secs_f64();
    let per_cpu = (prompts * 300) as f64 / (cpu_seconds() - cpu);
    println!("  prefill alone: {rate:.0} tokens/s ({per_cpu:.0} a CPU-second)");
}
