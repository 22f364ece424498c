//! Prints how many tokens a second the embedded sampler draws, for `bench/engine_sample_peers.py`.
//!
//! `cargo run --release -p patchwright-engine --example sample_bench -- DIR [options]`
//!
//! ```text
//! DIR                 a checkpoint directory, or `smollm2` for its shape with random weights
//! --sequences N       sequences at once, each with a prompt of its own (default 1)
//! --prompt N          tokens of a prompt (default 32)
//! --new N             tokens drawn for each sequence (default 64)
//! --rounds N          measurements; the best and the median are printed (default 3)
//! --threads N         threads (default: the machine's)
//! --precision P       f32 or bf16 (default f32)
//! --serve             wait for a line on the standard input before each measurement, without end
//! --json              one JSON object for each measurement
//! ```

use std::io::BufRead;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use patchwright_core::{SampleRequest, Sampler};
use patchwright_engine::{
    EmbeddedSampler, Engine, EngineOptions, ModelConfig, ModelType, Precision,
};

struct Arguments {
    model: String,
    sequences: u64,
    prompt: usize,
    new: usize,
    rounds: usize,
    threads: usize,
    precision: Precision,
    serve: bool,
    json: bool,
}

fn arguments() -> Result<Arguments, Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let threads = EngineOptions::default().num_threads;
    let mut parsed = Arguments {
        model: String::new(),
        sequences: 1,
        prompt: 32,
        new: 64,
        rounds: 3,
        threads,
        precision: Precision::F32,
        serve: false,
        json: false,
    };
    while let Some(name) = arguments.next() {
        let mut number = || -> Result<usize, Box<dyn std::error::Error>> {
            Ok(arguments.next().ok_or(format!("{name} needs a number"))?.parse()?)
        };
        match name.as_str() {
            "--sequences" => parsed.sequences = number()? as u64,
            "--prompt" => parsed.prompt = number()?,
            "--new" => parsed.new = number()?,
            "--rounds" => parsed.rounds = number()?,
            "--threads" => parsed.threads = number()?,
            "--precision" => {
                parsed.precision = match arguments.next().as_deref() {
                    Some("f32") => Precision::F32,
                    Some("bf16") => Precision::Bf16,
                    _ => return Err("--precision takes f32 or bf16".into()),
                };
            }
            "--serve" => parsed.serve = true,
            "--json" => parsed.json = true,
            model if !model.starts_with("--") => model.clone_into(&mut parsed.model),
            other => return Err(format!("unknown option {other}").into()),
        }
    }
    if parsed.model.is_empty() {
        return Err("name a checkpoint directory, or smollm2".into());
    }
    Ok(parsed)
}

/// The shape of SmolLM2-135M.
fn smollm2() -> ModelConfig {
    ModelConfig {
        model_type: ModelType::Llama,
        vocab_size: 49_152,
        hidden_size: 576,
        intermediate_size: 1536,
        num_hidden_layers: 30,
        num_attention_heads: 9,
        num_key_value_heads: 3,
        head_dim: 64,
        max_position_embeddings: 8192,
        rope_theta: 100_000.0,
        rms_norm_eps: 1e-5,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments = arguments()?;
    let options = EngineOptions {
        num_threads: arguments.threads,
        precision: arguments.precision,
        ..EngineOptions::default()
    };
    let engine = match arguments.model.as_str() {
        "smollm2" => Engine::new(smollm2(), 0, options)?,
        dir => Engine::load(Path::new(dir), options)?,
    };
    let sampler = engine.sampler();
    let vocab = engine.trainer.config().vocab_size as u32;
    let mut rates = Vec::new();
    let mut lines = std::io::stdin().lock().lines();
    for round in 0.. {
        if arguments.serve {
            println!("ready");
            if lines.next().transpose()?.is_none() {
                break;
            }
        } else if round == arguments.rounds {
            break;
        }
        let (seconds, tokens) = measure(&sampler, &arguments, round as u64, vocab)?;
        let rate = tokens as f64 / seconds;
        if arguments.json {
            println!(
                "{{\"tokens\": {tokens}, \"seconds\": {seconds}, \"tokens_per_second\": {rate}}}"
            );
        } else {
            println!("{tokens} tokens in {seconds:.3} s: {rate:.1} tokens/s");
        }
        rates.push(rate);
    }
    rates.sort_by(f64::total_cmp);
    if let Some(best) = rates.last().filter(|_| !arguments.json) {
        println!("best {best:.1}, median {:.1} tokens/s", rates[rates.len() / 2]);
    }
    Ok(())
}

/// Wall-clock seconds, prompts included, and tokens drawn. No prompt is in the cache.
fn measure(
    sampler: &Arc<EmbeddedSampler>,
    arguments: &Arguments,
    round: u64,
    vocab: u32,
) -> Result<(f64, usize), Box<dyn std::error::Error>> {
    let started = Instant::now();
    let tokens = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..arguments.sequences)
            .map(|index| {
                let session = round * arguments.sequences + index;
                let word = |i: usize| (session as u32 * 7919 + i as u32 * 104_729) % vocab;
                let request = SampleRequest {
                    session,
                    context: (0..arguments.prompt).map(word).collect(),
                    max_tokens: arguments.new,
                    seed: session,
                    ..SampleRequest::default()
                };
                scope.spawn(move || sampler.sample(&request).map(|done| done.tokens.len()))
            })
            .collect();
        let join = |worker: std::thread::ScopedJoinHandle<_>| worker.join();
        workers.into_iter().map(join).collect::<Result<Result<Vec<usize>, _>, _>>()
    });
    let seconds = started.elapsed().as_secs_f64();
    let tokens = tokens.map_err(|_| "a caller panicked")??;
    for index in 0..arguments.sequences {
        sampler.end_session(round * arguments.sequences + index);
    }
    Ok((seconds, tokens.iter().sum()))
}
