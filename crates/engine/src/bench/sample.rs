//! Sampling rounds of fixed shapes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwright_core::{Completion, SampleRequest, Sampler, SamplerError, TrainerError};

use super::shape;
use crate::engine::{Engine, EngineOptions};
use crate::kernels::gemm::Precision;
use crate::sampler::EmbeddedSampler;

/// Longest sequence of a row.
const MAX_TOKENS: usize = 1024;

/// A row of the sampling table: `sample-embedded-64`, or `sample-smollm2-COUNT-PRECISION`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SampleRow {
    /// `1m` (the embedded policy's) or `smollm2`.
    pub shape: &'static str,
    /// Sequences at once.
    pub count: usize,
    /// Of the products.
    pub precision: Precision,
    /// Tokens of a prompt; each sequence has its own.
    pub prompt: usize,
    /// Tokens drawn for each sequence.
    pub new: usize,
}

impl SampleRow {
    /// The row of this name.
    ///
    /// # Errors
    /// What is wrong with the name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let wrong = || format!("{name:?} is no sampling row; try sample-smollm2-1-f32");
        let parts: Vec<&str> = name.split('-').collect();
        let (shape, count, precision, new) = match parts[..] {
            ["sample", "embedded", count] => ("1m", count, Precision::F32, 128),
            ["sample", "embedded", count, "bf16"] => ("1m", count, Precision::Bf16, 128),
            ["sample", "smollm2", count, "f32"] => ("smollm2", count, Precision::F32, 32),
            ["sample", "smollm2", count, "bf16"] => ("smollm2", count, Precision::Bf16, 32),
            _ => return Err(wrong()),
        };
        let count = count.parse().ok().filter(|n| (1..=4096).contains(n)).ok_or_else(wrong)?;
        Ok(Self { shape, count, precision, prompt: 32, new })
    }

    /// The requests of a round, from 0: prompts of random tokens below `vocab_size`.
    pub fn requests(&self, round: u64, vocab_size: u32) -> Vec<SampleRequest> {
        let first = round * self.count as u64;
        let request = |session: u64| {
            let word = |i: usize| (session as u32).wrapping_mul(7919) ^ (i as u32 * 104_729);
            SampleRequest {
                session,
                context: (0..self.prompt).map(|i| word(i) % vocab_size).collect(),
                max_tokens: self.new,
                seed: session,
                ..SampleRequest::default()
            }
        };
        (first..first + self.count as u64).map(request).collect()
    }
}

/// Asks for all at once, each from a thread of its own, and then ends their sessions: the time until
/// the last answer, and the answers in order.
///
/// # Errors
/// As [`Sampler::sample`].
pub fn draw_all(
    sampler: &dyn Sampler,
    requests: &[SampleRequest],
) -> Result<(Duration, Vec<Completion>), SamplerError> {
    let started = Instant::now();
    let drawn: Result<Vec<_>, _> = std::thread::scope(|scope| {
        let callers: Vec<_> =
            requests.iter().map(|request| scope.spawn(|| sampler.sample(request))).collect();
        let panicked = || Err(SamplerError::Engine("a caller panicked".to_owned()));
        callers.into_iter().map(|caller| caller.join().unwrap_or_else(|_| panicked())).collect()
    });
    let elapsed = started.elapsed();
    for request in requests {
        sampler.end_session(request.session);
    }
    Ok((elapsed, drawn?))
}

/// Draws from prompts of random tokens, a round at a time.
pub struct SampleBench {
    row: SampleRow,
    sampler: Arc<EmbeddedSampler>,
    vocab_size: u32,
    rounds: u64,
}

impl SampleBench {
    /// The checkpoint in `dir`, or random weights of the row's shape. The row's precision replaces
    /// that of `options`.
    ///
    /// # Errors
    /// As [`Engine::new`] and [`Engine::load`].
    pub fn new(
        row: &SampleRow,
        dir: Option<&Path>,
        options: &EngineOptions,
    ) -> Result<Self, TrainerError> {
        let options = EngineOptions { precision: row.precision, ..options.clone() };
        let engine = if let Some(dir) = dir {
            Engine::load(dir, options)?
        } else {
            let config = shape(row.shape, MAX_TOKENS).map_err(TrainerError::BadInput)?;
            Engine::new(config, 0, options)?
        };
        let vocab_size = engine.trainer.config().vocab_size as u32;
        Ok(Self { row: row.clone(), sampler: engine.sampler(), vocab_size, rounds: 0 })
    }

    /// All sequences from their prompts to their ends, none of it cached: the time, and the number
    /// of tokens drawn.
    ///
    /// # Errors
    /// As [`Sampler::sample`].
    pub fn round(&mut self) -> Result<(Duration, usize), SamplerError> {
        let requests = self.row.requests(self.rounds, self.vocab_size);
        self.rounds += 1;
        let (elapsed, drawn) = draw_all(&*self.sampler, &requests)?;
        Ok((elapsed, drawn.iter().map(|completion| completion.tokens.len()).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_draw_what_the_row_says() {
        let row = SampleRow { new: 3, ..SampleRow::parse("sample-embedded-2").unwrap() };
        let mut bench = SampleBench::new(&row, None, &EngineOptions::default()).unwrap();
        assert_eq!(bench.round().unwrap().1, 6);
        assert_eq!(bench.round().unwrap().1, 6);
        let row = SampleRow::parse("sample-smollm2-16-bf16").unwrap();
        assert_eq!((row.count, row.precision), (16, Precision::Bf16));
        for wrong in ["sample", "sample-smollm2-1", "sample-embedded-0", "sample-embedded-1-f32"] {
            assert!(SampleRow::parse(wrong).is_err(), "{wrong}");
        }
    }
}
