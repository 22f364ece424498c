//! Gathers the documents of pretraining: explorer sessions in real sandboxes, source text, and
//! re-shown listings, all from training repositories.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use patchwright_agent::{AgentConfig, Renderer, run_agent};
use patchwright_core::{
    RepoSource, SandboxProvider, SandboxSpec, TaskInstance, TrainingSample, derive_seed, stream,
};
use patchwright_tasks::validate::EmbeddedRepo;
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use super::explorer::ExplorerSampler;
use super::{PretrainConfig, PretrainError, documents};

/// Runs `config.num_sessions` explorer sessions over `tasks`, on all cores. The result is in the
/// order of the sessions' numbers, whichever ends first. `ended` is told of each session and may
/// stop the rest with its error.
pub fn sessions(
    config: &PretrainConfig,
    tasks: &[TaskInstance],
    renderer: &Renderer,
    sampler: &ExplorerSampler,
    provider: &dyn SandboxProvider,
    ended: &(dyn Fn(usize) -> Result<(), PretrainError> + Sync),
) -> Result<Vec<TrainingSample>, PretrainError> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<TrainingSample>>> = Mutex::new(vec![None; config.num_sessions]);
    let failure: Mutex<Option<PretrainError>> = Mutex::new(None);
    let num_workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    std::thread::scope(|scope| {
        for _ in 0..num_workers {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= config.num_sessions {
                        return;
                    }
                    let task = &tasks[n % tasks.len()];
                    let sample = session(config, n, task, renderer, sampler, provider)
                        .and_then(|sample| ended(n).map(|()| sample));
                    match sample {
                        Ok(sample) => {
                            results.lock().unwrap_or_else(PoisonError::into_inner)[n] =
                                Some(sample);
                        }
                        Err(error) => {
                            *failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                            next.store(config.num_sessions, Ordering::Relaxed);
                            return;
                        }
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(results.into_iter().flatten().collect())
}

fn session(
    config: &PretrainConfig,
    n: usize,
    task: &TaskInstance,
    renderer: &Renderer,
    sampler: &ExplorerSampler,
    provider: &dyn SandboxProvider,
) -> Result<TrainingSample, PretrainError> {
    let seed = derive_seed(config.seed, &["session", &n.to_string()]);
    let agent = AgentConfig { max_turns: config.max_turns, ..config.agent() };
    let mut sandbox = provider.create(&SandboxSpec {
        root: patchwright_core::RootFs::Host,
        repo: RepoSource::Files(std::sync::Arc::new(task.files.clone())),
        workdir: agent.workdir.clone(),
        read_only_mounts: Vec::new(),
        env: std::collections::BTreeMap::new(),
        limits: patchwright_core::SandboxLimits::default(),
    })?;
    sampler.begin(n as u64, task, seed);
    let run = run_agent(task, sandbox.as_mut(), sampler, renderer, &agent, n as u64, seed);
    sandbox.destroy()?;
    let weights = &config.weights;
    let mut sample = run.trajectory.to_sample(1.0, |_| true);
    for weight in &mut sample.loss_mask {
        *weight = if *weight > 0.0 { weights.action } else { weights.observation };
    }
    sample.advantages.fill(1.0);
    sample.sampler_logprobs.fill(0.0);
    Ok(sample)
}

/// Documents made of the sources of `repos`.
pub struct Texts<'a> {
    /// Seed and weights.
    pub config: &'a PretrainConfig,
    /// Where the sources are from; not empty.
    pub repos: &'a [EmbeddedRepo],
    /// Turns text into tokens.
    pub renderer: &'a Renderer,
    /// The framing tokens.
    pub frame: documents::Frame,
}

impl Texts<'_> {
    /// Plain source text, `config.num_sources` times.
    pub fn sources(&self) -> Vec<TrainingSample> {
        let tokenizer = self.renderer.tokenizer();
        self.documents("source", self.config.num_sources, |text, _| {
            documents::source(tokenizer, self.frame, text, &self.config.weights)
        })
    }

    /// Listings of which lines are shown again; `name` tells one lot from another.
    pub fn reshown(&self, name: &str, count: usize) -> Vec<TrainingSample> {
        let tokenizer = self.renderer.tokenizer();
        self.documents(name, count, |text, rng| {
            documents::reshow(tokenizer, self.frame, text, &self.config.weights, rng)
        })
    }

    fn documents(
        &self,
        name: &str,
        count: usize,
        make: impl Fn(&str, &mut ChaCha8Rng) -> TrainingSample,
    ) -> Vec<TrainingSample> {
        let document = |n: usize| {
            let mut rng = stream(self.config.seed, &["text", name, &n.to_string()]);
            let repo = &self.repos[rng.random_range(0..self.repos.len())];
            Some(make(documents::random_module(&repo.files, &mut rng)?, &mut rng))
        };
        (0..count).filter_map(document).collect()
    }
}
