//! Measures training, one row of the table at a time, in steps that another program may ask for.
//!
//! ```text
//! cargo run --release -p patchwright-engine --example train_bench -- train-5.8m-8x512-f32 --steps 5
//! ```
//! Without `--steps` it reads lines from its input: `step` trains one step and prints its seconds,
//! `end` prints the peak memory and stops; `bench/engine_train_peers.py` alternates it so with
//! `PyTorch`.

use std::io::BufRead;
use std::time::Instant;

use patchwright_core::{AdamParams, Objective, TokenLoss, Trainer, TrainingSample};
use patchwright_engine::{Engine, EngineOptions, ModelConfig, ModelType, Precision, gemm_peak_gflops};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

struct CrossEntropy;

impl Objective for CrossEntropy {
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss {
        let weight = sample.loss_mask[t];
        TokenLoss { loss: -weight * trainer_logprob, d_logprob: -weight, clipped: false }
    }
}

fn shape(name: &str, length: usize) -> Option<ModelConfig> {
    let (hidden, layers, heads, kv_heads, ffn, vocab) = match name {
        "5.8m" => (256, 6, 4, 2, 768, 4096),
        "1m" => (128, 5, 4, 2, 384, 600),
        "smollm2" => (576, 30, 9, 3, 1536, 49_152),
        _ => return None,
    };
    Some(ModelConfig {
        model_type: if name == "1m" { ModelType::Qwen2 } else { ModelType::Llama },
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        intermediate_size: ffn,
        vocab_size: vocab,
        head_dim: hidden / heads,
        max_position_embeddings: length,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        rope_scaling: None,
    })
}

/// Most memory this process ever had, in bytes.
fn peak_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|x| x.parse::<usize>().ok()).unwrap_or(0) << 10
}

/// CPU time of this process, in seconds: the measure that other programs disturb least.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        after_name.split_whitespace().skip(11).take(2).filter_map(|x| x.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

struct Bench {
    precision: Precision,
    engine: Engine,
    samples: Vec<TrainingSample>,
}

impl Bench {
    /// `train-SHAPE-COUNTxLENGTH-PRECISION`.
    fn new(row: &str) -> Result<Self, Box<dyn std::error::Error>> {
        let wrong = || format!("{row} is no row; try train-5.8m-8x512-f32");
        let parts: Vec<&str> = row.split('-').collect();
        let ["train", model, batch, precision] = parts[..] else { return Err(wrong().into()) };
        let precision = match precision {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            _ => return Err(wrong().into()),
        };
        let (count, length) = batch.split_once('x').ok_or_else(wrong)?;
        let (count, length): (usize, usize) = (count.parse()?, length.parse()?);
        let config = shape(model, length).ok_or_else(wrong)?;
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let vocab = config.vocab_size as u32;
        let samples = (0..count)
            .map(|_| {
                let tokens = (0..length).map(|_| rng.random_range(0..vocab)).collect();
                TrainingSample::supervised(tokens, vec![1.0 / (count * length) as f32; length])
            })
            .collect();
        let options = EngineOptions { num_threads: 2, precision, ..EngineOptions::default() };
        Ok(Self { precision, engine: Engine::new(config, 0, options)?, samples })
    }

    fn step(&mut self) -> Result<f64, Box<dyn std::error::Error>> {
        let adam = AdamParams {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
            grad_clip: 1.0,
        };
        let started = Instant::now();
        self.engine.trainer.forward_backward(&self.samples, &CrossEntropy)?;
        self.engine.trainer.optim_step(&adam)?;
        Ok(started.elapsed().as_secs_f64())
    }

    /// Of the weights' bits (FNV-1a), to see whether two builds compute the same.
    fn checksum(&self) -> u64 {
        let parameters = self.engine.trainer.parameters();
        parameters.values().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, x| {
            (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let row = arguments.first().map_or("train-5.8m-8x512-f32", String::as_str);
    if row == "gemm" {
        for precision in [Precision::F32, Precision::Bf16] {
            let cpu = cpu_seconds();
            let best = gemm_peak_gflops(precision, 2, 20);
            let operations = 20.0 * 16.0 * 2.0 * 768f64.powi(3) / 1e9;
            let per_cpu = operations / (cpu_seconds() - cpu);
            println!("{precision:?}: {best:.1} GFLOP/s ({per_cpu:.1} a CPU-second)");
        }
        return Ok(());
    }
    let mut bench = Bench::new(row)?;
    let tokens: usize = bench.samples.iter().map(|s| s.tokens.len()).sum();
    if let Some(at) = arguments.iter().position(|a| a == "--steps") {
        let steps: usize = arguments.get(at + 1).ok_or("--steps takes a number")?.parse()?;
        let (mut best, mut least) = (f64::INFINITY, f64::INFINITY);
        for _ in 0..steps {
            let cpu = cpu_seconds();
            best = best.min(bench.step()?);
            least = least.min(cpu_seconds() - cpu);
        }
        println!(
            "{row}: {:.0} tokens/s ({:.0} a CPU-second), peak {} MiB, weights {:016x}",
            tokens as f64 / best,
            tokens as f64 / least,
            peak_bytes() >> 20,
            bench.checksum()
        );
        return Ok(());
    }
    println!("ready {tokens}");
    for line in std::io::stdin().lock().lines() {
        match line?.as_str() {
            "step" => {
                let cpu = cpu_seconds();
                println!("{} {}", bench.step()?, cpu_seconds() - cpu);
            }
            "gemm" => println!("{}", gemm_peak_gflops(bench.precision, 2, 3)),
            _ => break,
        }
    }
    println!("{}", peak_bytes());
    Ok(())
}
