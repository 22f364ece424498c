//! Runs a batch of rollouts on a bounded number of threads.
//!
//! ```text
//! jobs [j] ──► workers (num_workers threads) ──► environment.rollout ──► results [j]
//!                 ▲ next index, cancel, breaker        │ siblings' requests are batched by the engine
//!                 ╰────── retry, once or as told ◄─────╯ a failure of the infrastructure
//! ```
//!
//! Results come in the order of the jobs, whatever order they finish in, and each rollout draws
//! from a stream named by its place (stage, iteration, instance, sibling): timing has no say.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_core::{PolicyVersion, Rollout, derive_seed};

use crate::environment::{Environment, RolloutSpec, Task};
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RolloutFinished, RunEvent};
use crate::kept;
use crate::recipe::InfrastructureRecipe;

/// Names the live rollouts of the process.
static NEXT_SESSION: AtomicU64 = AtomicU64::new(1);

/// How the rollouts of a batch are run.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSpec {
    /// The stage; part of each rollout's seed.
    pub stage: String,
    /// The iteration, from 0; part of each rollout's seed.
    pub iteration: usize,
    /// A further name for the seed, where one iteration has several batches; empty otherwise.
    pub part: String,
    /// The weights that serve it.
    pub policy_version: PolicyVersion,
    /// Turns of each rollout at most.
    pub max_turns: usize,
    /// Tokens of each trajectory at most.
    pub context_tokens: usize,
    /// Sampling temperature.
    pub temperature: f32,
    /// Whether the prompt shows a solved example.
    pub demonstration: bool,
}

/// One rollout to run.
#[derive(Debug, Clone)]
pub struct Job {
    /// The task.
    pub task: Arc<Task>,
    /// Which sibling; in evaluations the run.
    pub sibling: u32,
}

/// Runs batches of rollouts.
pub struct RolloutEngine<'a> {
    /// What a rollout is made of.
    pub environment: &'a dyn Environment,
    /// Number of threads, retries and the breaker.
    pub limits: &'a InfrastructureRecipe,
    /// Seed of the run.
    pub seed: u64,
    /// Told of each finished rollout.
    pub observer: &'a dyn Observer,
    /// Set when the run is to stop.
    pub cancel: &'a CancelToken,
    /// Where finished batches are kept whole, if they are.
    pub keep: Option<PathBuf>,
}

/// What the workers of one batch share.
struct Shared {
    next: AtomicUsize,
    results: Mutex<Vec<Option<Rollout>>>,
    num_failed: AtomicUsize,
    tripped: AtomicBool,
}

impl RolloutEngine<'_> {
    /// Runs all jobs; the results are in the jobs' order. All threads have ended when it returns.
    ///
    /// # Errors
    /// [`TrainError::Infrastructure`] when more than `max_failed_fraction` of the jobs failed in
    /// the infrastructure after their retries (the rest is not started then);
    /// [`TrainError::Cancelled`] when the run was cancelled; [`TrainError::Io`] when the batch
    /// cannot be kept.
    pub fn run(&self, spec: &BatchSpec, jobs: &[Job]) -> Result<Vec<Rollout>, TrainError> {
        let shared = Shared {
            next: AtomicUsize::new(0),
            results: Mutex::new(vec![None; jobs.len()]),
            num_failed: AtomicUsize::new(0),
            tripped: AtomicBool::new(false),
        };
        std::thread::scope(|scope| {
            for _ in 0..self.limits.num_workers.min(jobs.len()) {
                scope.spawn(|| self.work(spec, jobs, &shared));
            }
        });
        if self.cancel.is_cancelled() {
            return Err(TrainError::Cancelled);
        }
        let results = shared.results.into_inner().unwrap_or_else(PoisonError::into_inner);
        if shared.tripped.into_inner() {
            let detail = results.iter().flatten().find_map(|r| r.failure_detail.clone());
            return Err(TrainError::Infrastructure {
                stage: spec.stage.clone(),
                iteration: spec.iteration,
                num_failed: shared.num_failed.into_inner(),
                num_rollouts: jobs.len(),
                detail: detail.unwrap_or_default(),
            });
        }
        let rollouts: Vec<Rollout> = results.into_iter().flatten().collect();
        if let Some(dir) = &self.keep {
            kept::write(dir, spec, &rollouts)?;
        }
        Ok(rollouts)
    }

    fn work(&self, spec: &BatchSpec, jobs: &[Job], shared: &Shared) {
        while !self.cancel.is_cancelled() && !shared.tripped.load(Ordering::Relaxed) {
            let index = shared.next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else {
                return;
            };
            let rollout = self.attempt(spec, job);
            if self.cancel.is_cancelled() {
                return;
            }
            if rollout.failure.is_some_and(patchwright_core::FailureClass::is_infrastructure) {
                let num_failed = shared.num_failed.fetch_add(1, Ordering::Relaxed) + 1;
                if num_failed as f64 > self.limits.max_failed_fraction * jobs.len() as f64 {
                    shared.tripped.store(true, Ordering::Relaxed);
                }
            }
            let told = RolloutFinished::of(&spec.stage, spec.iteration, &rollout);
            self.observer.event(&RunEvent::RolloutFinished(told));
            shared.results.lock().unwrap_or_else(PoisonError::into_inner)[index] = Some(rollout);
        }
    }

    /// Runs one job, again after a failure of the infrastructure. A retry draws the same numbers:
    /// a run that met a fault goes on like one that did not.
    fn attempt(&self, spec: &BatchSpec, job: &Job) -> Rollout {
        let mut retries = self.limits.num_retries;
        loop {
            let rollout = self.environment.rollout(
                &job.task,
                &RolloutSpec {
                    sibling: job.sibling,
                    session: NEXT_SESSION.fetch_add(1, Ordering::Relaxed),
                    seed: self.rollout_seed(spec, job),
                    policy_version: spec.policy_version,
                    max_turns: spec.max_turns,
                    context_tokens: spec.context_tokens,
                    temperature: spec.temperature,
                    demonstration: spec.demonstration,
                },
                self.cancel,
            );
            let failed =
                rollout.failure.is_some_and(patchwright_core::FailureClass::is_infrastructure);
            if !failed || retries == 0 || self.cancel.is_cancelled() {
                return rollout;
            }
            retries -= 1;
        }
    }

    fn rollout_seed(&self, spec: &BatchSpec, job: &Job) -> u64 {
        derive_seed(
            self.seed,
            &[
                "rollout",
                &spec.stage,
                &spec.iteration.to_string(),
                &spec.part,
                &job.task.instance.instance_id,
                &job.sibling.to_string(),
            ],
        )
    }
}
