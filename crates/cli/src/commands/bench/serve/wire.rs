//! The Tinker server beside the engine that it serves: training steps and sampling rounds, asked of
//! the engine itself, and by our client over the loopback. Both begin with the same weights, and what
//! they compute is compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchwright_core::{ForwardBackward, Sampler, Trainer};
use patchwright_engine::bench::{ADAM, CrossEntropy, SampleRow, TrainRow, draw_all, shape};
use patchwright_engine::{Engine, EngineOptions, ExportOptions};
use patchwright_remote::tinker::{self, Reduction, TinkerTrainer};
use patchwright_serve::{ModelText, Server};
use patchwright_train::world::find_checkpoint;
use serde::Serialize;
use tempfile::TempDir;

use super::host;
use crate::commands::serve::embedded::{EmbeddedBackend, load};
use crate::error::CliError;
use crate::output;

/// The model's name at the server.
const NAME: &str = "bench";

/// Longest sequence of a sampling row.
const MAX_TOKENS: usize = 1024;

/// A row, both ways.
#[derive(Debug, Serialize)]
pub struct WireFigures {
    pub name: String,
    /// Best of the engine alone.
    pub engine_tokens_per_second: f64,
    /// Best over the wire.
    pub wire_tokens_per_second: f64,
    /// Median, over the pairs, of what is left of the engine's throughput.
    pub ratio: f64,
    /// Between the log-probabilities of the two.
    pub largest_difference: f32,
}

/// Pairs of times of the same work.
#[derive(Default)]
struct Pairs(Vec<(Duration, Duration)>);

impl Pairs {
    fn figures(&self, name: &str, num_tokens: usize, largest_difference: f32) -> WireFigures {
        let best = |times: &mut dyn Iterator<Item = Duration>| {
            let time = times.min().unwrap_or_default();
            (num_tokens as f64 / time.as_secs_f64()).round()
        };
        let mut ratios: Vec<f64> =
            self.0.iter().map(|(own, wire)| own.as_secs_f64() / wire.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        let median = ratios.get(ratios.len() / 2).copied().unwrap_or(f64::NAN);
        WireFigures {
            name: name.to_owned(),
            engine_tokens_per_second: best(&mut self.0.iter().map(|pair| pair.0)),
            wire_tokens_per_second: best(&mut self.0.iter().map(|pair| pair.1)),
            ratio: (median * 1e3).round() / 1e3,
            largest_difference,
        }
    }
}

/// A checkpoint, served.
struct Served {
    server: Server,
    _store: TempDir,
}

impl Served {
    fn start(dir: &Path, options: &EngineOptions, text: &Arc<ModelText>) -> Result<Self, CliError> {
        let store = tempfile::tempdir().map_err(CliError::failed)?;
        let backend = EmbeddedBackend {
            dir: dir.to_owned(),
            name: NAME.to_owned(),
            text: Arc::clone(text),
            options: options.clone(),
            sampler: load(dir, options, text).map_err(CliError::failed)?.sampler(),
            tell: |said| output::note(said),
        };
        let place = patchwright_serve::tinker::TinkerOptions::new(store.path().to_owned());
        let server = host(|work, metrics| {
            patchwright_serve::tinker::router(Arc::new(backend), place, work, metrics)
                .map_err(CliError::failed)
        })?;
        Ok(Self { server, _store: store })
    }

    /// A model at the server, all of whose weights are trained, and a sampler of it.
    fn open(&self) -> Result<(TinkerTrainer, Arc<tinker::TinkerSampler>), CliError> {
        let url = format!("http://{}", self.server.address());
        let options = tinker::TinkerOptions {
            lora_rank: 0,
            reduction: Some(Reduction::Sum),
            clips_gradients: Some(true),
            ..tinker::TinkerOptions::new(url, NAME)
        };
        tinker::open(options).map_err(CliError::failed)
    }
}

fn base_text() -> Result<(PathBuf, Arc<ModelText>), CliError> {
    let dir = find_checkpoint("base").map_err(CliError::failed)?;
    let text = ModelText::from_dir(&dir).map_err(CliError::failed)?;
    Ok((dir, Arc::new(text)))
}

/// Training steps: forward, backward, optimizer.
pub fn train(
    name: &str,
    row: &TrainRow,
    options: &EngineOptions,
    steps: usize,
) -> Result<WireFigures, CliError> {
    let options = EngineOptions { precision: row.precision, ..options.clone() };
    let scratch = tempfile::tempdir().map_err(CliError::failed)?;
    let dir = scratch.path().join("model");
    let mut engine =
        Engine::new(row.config.clone(), 0, options.clone()).map_err(CliError::failed)?;
    engine.trainer.export(&dir, &ExportOptions::default()).map_err(CliError::failed)?;
    let (_, text) = base_text()?;
    let served = Served::start(&dir, &options, &text)?;
    let (mut remote, _) = served.open()?;
    let samples = row.batch();
    let mut own_step = || {
        let start = Instant::now();
        let done = engine.trainer.forward_backward(&samples, &CrossEntropy);
        let done = done.and_then(|done| engine.trainer.optim_step(&ADAM).map(|_| done));
        done.map(|done| (start.elapsed(), done)).map_err(CliError::failed)
    };
    let mut wire_step = || {
        let start = Instant::now();
        let done = remote.cross_entropy(&samples);
        let done = done.and_then(|done| remote.optim_step(&ADAM).map(|_| done));
        done.map(|done| (start.elapsed(), done)).map_err(CliError::failed)
    };
    let (mut pairs, mut largest) = (Pairs::default(), 0.0f32);
    for step in 0..=steps {
        let ((own_time, own), (wire_time, wire)) = if step % 2 == 0 {
            (own_step()?, wire_step()?)
        } else {
            let wire = wire_step()?;
            (own_step()?, wire)
        };
        largest = largest.max(difference(&own, &wire));
        // The first warms up.
        if step > 0 {
            pairs.0.push((own_time, wire_time));
        }
    }
    Ok(pairs.figures(name, row.tokens(), largest))
}

fn difference(own: &ForwardBackward, wire: &ForwardBackward) -> f32 {
    let pairs = own.logprobs.iter().flatten().zip(wire.logprobs.iter().flatten());
    pairs.fold(0.0, |most, (a, b)| if (a - b).abs() <= most { most } else { (a - b).abs() })
}

/// Sampling rounds: all sequences at once, from their prompts to their ends, none of it cached.
pub fn sample(
    name: &str,
    row: &SampleRow,
    options: &EngineOptions,
    rounds: usize,
) -> Result<WireFigures, CliError> {
    let options = EngineOptions { precision: row.precision, ..options.clone() };
    let scratch = tempfile::tempdir().map_err(CliError::failed)?;
    let (base, text) = base_text()?;
    let dir = if row.shape == "1m" {
        base
    } else {
        let dir = scratch.path().join("model");
        let config = shape(row.shape, MAX_TOKENS).map_err(CliError::failed)?;
        let engine = Engine::new(config, 0, options.clone()).map_err(CliError::failed)?;
        engine.trainer.export(&dir, &ExportOptions::default()).map_err(CliError::failed)?;
        dir
    };
    let engine = load(&dir, &options, &text).map_err(CliError::failed)?;
    let (own, vocab) = (engine.sampler(), engine.trainer.config().vocab_size);
    let served = Served::start(&dir, &options, &text)?;
    let (_remote, wire) = served.open()?;
    let (mut pairs, mut largest) = (Pairs::default(), 0.0f32);
    for number in 0..=rounds {
        let requests = row.requests(number as u64, vocab as u32);
        let round = |sampler: &dyn Sampler| draw_all(sampler, &requests).map_err(CliError::failed);
        let ((own_time, drawn), (wire_time, told)) = if number % 2 == 0 {
            (round(&*own)?, round(&*wire)?)
        } else {
            let wire = round(&*wire)?;
            (round(&*own)?, wire)
        };
        for (drawn, told) in drawn.iter().zip(&told) {
            if drawn.tokens != told.tokens {
                return Err(CliError::failed("the server draws other tokens than its engine"));
            }
            let pairs = drawn.logprobs.iter().zip(&told.logprobs);
            largest = pairs.fold(largest, |most, (a, b)| most.max((a - b).abs()));
        }
        if number > 0 {
            pairs.0.push((own_time, wire_time));
        }
    }
    Ok(pairs.figures(name, row.count * row.new, largest))
}
