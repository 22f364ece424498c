//! What `patchwright bench engine` and the bench scripts measure: training steps and sampling rounds of fixed
//! shapes, and what this machine's cores can multiply at most.

mod sample;

use std::time::{Duration, Instant};

use patchwright_core::{AdamParams, Objective, TokenLoss, Trainer, TrainerError, TrainingSample};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::config::{ModelConfig, ModelType};
use crate::engine::{Engine, EngineOptions};
use crate::kernels::gemm::{Into, PackedMatrix, Precision, matmul};

pub use sample::{SampleBench, SampleRow, draw_all};

/// Side of the square products; large enough to amortise everything, small enough for caches.
const SIDE: usize = 768;

/// Floating-point operations per second of square products, in units of 10^9, on `num_threads`
/// threads at once: the best of `rounds`.
pub fn gemm_peak_gflops(precision: Precision, num_threads: usize, rounds: usize) -> f64 {
    let weight: Vec<f32> = (0..SIDE * SIDE).map(|i| (i % 7) as f32 - 3.0).collect();
    let mut packed = PackedMatrix::new(precision);
    packed.pack_transposed(&weight, SIDE, SIDE);
    let mut best = 0.0f64;
    for _ in 0..rounds {
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..num_threads {
                scope.spawn(|| {
                    let mut c = vec![0.0f32; SIDE * SIDE];
                    for _ in 0..8 {
                        matmul(&weight, &packed, &mut c, Into::Set);
                    }
                    std::hint::black_box(&c);
                });
            }
        });
        let operations = (num_threads * 8 * 2 * SIDE * SIDE * SIDE) as f64;
        best = best.max(operations / started.elapsed().as_secs_f64() / 1e9);
    }
    best
}

/// The shape that a bench's row names: `1m` (of the embedded policy), `5.8m`, or `smollm2`.
///
/// # Errors
/// The names that there are.
pub fn shape(name: &str, max_position_embeddings: usize) -> Result<ModelConfig, String> {
    let (hidden, layers, heads, kv_heads, ffn, vocab) = match name {
        "1m" => (128, 5, 4, 2, 384, 806),
        "5.8m" => (256, 6, 4, 2, 768, 4096),
        "smollm2" => (576, 30, 9, 3, 1536, 49_152),
        other => return Err(format!("{other:?} is no shape; 1m, 5.8m and smollm2 are")),
    };
    Ok(ModelConfig {
        model_type: if name == "1m" { ModelType::Qwen2 } else { ModelType::Llama },
        hidden_size: hidden,
        num_hidden_layers: layers,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        intermediate_size: ffn,
        vocab_size: vocab,
        head_dim: hidden / heads,
        max_position_embeddings,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
        attention_bias: false,
        rope_scaling: None,
    })
}

/// A row of the training table, `train-SHAPE-COUNTxLENGTH-PRECISION`: `train-5.8m-8x512-f32`.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainRow {
    /// The model.
    pub config: ModelConfig,
    /// Sequences of a step.
    pub count: usize,
    /// Tokens of a sequence.
    pub length: usize,
    /// Of the products.
    pub precision: Precision,
}

impl TrainRow {
    /// The row of this name.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let wrong = || format!("{name:?} is no training row; try train-5.8m-8x512-f32");
        let parts: Vec<&str> = name.split('-').collect();
        let ["train", model, batch, precision] = parts[..] else { return Err(wrong()) };
        let (count, length) = batch.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().ok().filter(|n: &usize| (1..=1 << 20).contains(n));
        let (count, length) = (number(count).ok_or_else(wrong)?, number(length).ok_or_else(wrong)?);
        let precision = match precision {
            "f32" => Precision::F32,
            "bf16" => Precision::Bf16,
            _ => return Err(wrong()),
        };
        Ok(Self { config: shape(model, length.max(2))?, count, length, precision })
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.count * self.length
    }

    /// The batch of a step: random tokens, the same for every row of this shape.
    pub fn batch(&self) -> Vec<TrainingSample> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let vocab = self.config.vocab_size as u32;
        let weight = 1.0 / self.tokens() as f32;
        (0..self.count)
            .map(|_| {
                let tokens = (0..self.length).map(|_| rng.random_range(0..vocab)).collect();
                TrainingSample::supervised(tokens, vec![weight; self.length])
            })
            .collect()
    }

    /// Floating-point operations of a token: products and attention, forward and backward; of
    /// attention the half that is not masked. Nothing that is computed again counts.
    pub fn operations_per_token(&self) -> f64 {
        let c = &self.config;
        let layer = c.hidden_size * (c.qkv_width() + c.query_width() + 3 * c.intermediate_size);
        let matrices = c.num_hidden_layers * layer + c.vocab_size * c.hidden_size;
        // Two products forward, five backward, of two operations for each half of the keys.
        let attention = c.num_hidden_layers * 7 * self.length * c.query_width();
        (6 * matrices + attention) as f64
    }
}

/// Trains on random tokens, a step at a time.
pub struct TrainBench {
    engine: Engine,
    samples: Vec<TrainingSample>,
}

/// Cross-entropy by the weights of the loss mask: the objective of the rows.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy;

/// The optimizer of the rows.
pub const ADAM: AdamParams =
    AdamParams { lr: 1e-3, beta1: 0.9, beta2: 0.99, eps: 1e-8, weight_decay: 0.1, grad_clip: 1.0 };

impl Objective for CrossEntropy {
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss {
        let weight = sample.loss_mask[t];
        TokenLoss { loss: -weight * trainer_logprob, d_logprob: -weight, clipped: false }
    }
}

impl TrainBench {
    /// A new model and a batch. The row's own shape and precision replace those of `options`.
    ///
    /// # Errors
    /// As [`Engine::new`].
    pub fn new(row: &TrainRow, options: &EngineOptions) -> Result<Self, TrainerError> {
        let options = EngineOptions { precision: row.precision, ..options.clone() };
        let engine = Engine::new(row.config.clone(), 0, options)?;
        Ok(Self { engine, samples: row.batch() })
    }

    /// Forward, backward and optimizer.
    ///
    /// # Errors
    /// As [`Trainer`].
    pub fn step(&mut self) -> Result<Duration, TrainerError> {
        let started = Instant::now();
        self.engine.trainer.forward_backward(&self.samples, &CrossEntropy)?;
        self.engine.trainer.optim_step(&ADAM)?;
        Ok(started.elapsed())
    }

    /// Of the weights' bits (FNV-1a), to see whether two builds compute the same.
    pub fn checksum(&self) -> u64 {
        let parameters = self.engine.trainer.parameters();
        parameters.values().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, x| {
            (hash ^ u64::from(x.to_bits())).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// Makes the present memory of this process its peak so far, where the system can.
pub fn reset_peak_bytes() {
    // Where it cannot be written, the peak is that of the whole process: a bound still.
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// CPU time of this process, in seconds: the measure that other programs disturb least.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks =
        after_name.split_whitespace().skip(11).take(2).filter_map(|x| x.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}

/// Most memory this process ever had, in bytes, since [`reset_peak_bytes`]; 0 where the system does
/// not say.
pub fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|x| x.parse::<u64>().ok()).unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_by_their_parts() {
        let row = TrainRow::parse("train-5.8m-8x512-bf16").unwrap();
        assert_eq!((row.tokens(), row.precision), (4096, Precision::Bf16));
        assert_eq!(row.config.num_parameters(), 5_770_496);
        let matrices = 5_770_496 - 13 * 256;
        assert!(
            (row.operations_per_token() - (6 * matrices + 6 * 7 * 512 * 256) as f64).abs() < 1.0
        );
        for wrong in [
            "train",
            "train-5.8m-8-f32",
            "train-5.8m-0x4-f32",
            "train-9m-1x4-f32",
            "train-1m-1x4-f16",
        ] {
            assert!(TrainRow::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_step_trains() {
        let mut bench = TrainBench::new(
            &TrainRow::parse("train-1m-2x8-f32").unwrap(),
            &EngineOptions::default(),
        )
        .unwrap();
        let before = bench.checksum();
        assert!(bench.step().unwrap() > Duration::ZERO);
        assert_ne!(bench.checksum(), before);
    }
}
