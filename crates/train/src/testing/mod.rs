//! A world without an engine, sandboxes or Python, for tests: a policy of one number that learns.
//!
//! The fake policy has one weight `w`; a rollout is solved with probability `sigmoid(w)`. Each
//! rollout samples one token a turn: 1 (good) with that probability, else 2; it is solved when the
//! last token is 1. So the objective's derivative moves `w` the right way, every path of the
//! programs is real, and the weight's bits tell whether a resumed run did the same.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use patchwright_core::{
    AdamParams, Completion, FailureClass, FinishReason, ForwardBackward, Objective, OptimStats,
    PolicyVersion, RepoSource, Rollout, RolloutStatus, SampleRequest, Sampler, SamplerError,
    TaskInstance, TokenSpan, Trainer, TrainerError, TrainingSample, Trajectory, Turn, TurnOutcome,
    stream,
};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::environment::{
    Environment, EnvironmentStats, GuardedSampler, RolloutSpec, Task, failed_rollout,
};
use crate::events::{CancelToken, Observer, RunEvent};
use crate::recipe::Recipe;
use crate::run::World;

/// Tasks `<prefix>-0` …, each of a repository of its own.
pub fn tasks(prefix: &str, count: usize) -> Vec<Arc<Task>> {
    (0..count)
        .map(|index| {
            let instance = TaskInstance {
                instance_id: format!("{prefix}-{index}"),
                repo: format!("{prefix}/{index}"),
                fail_to_pass: vec!["t".into()],
                ..TaskInstance::default()
            };
            Arc::new(Task { instance, repo: RepoSource::Files(Arc::default()) })
        })
        .collect()
}

/// The good token and the bad one.
const GOOD: u32 = 1;
const BAD: u32 = 2;

/// Log-probability of a token under weight `w`.
fn logprob(w: f32, token: u32) -> f32 {
    let signed = if token == GOOD { w } else { -w };
    -(1.0 + (-signed).exp()).ln()
}

/// What a checkpoint of the fake holds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Saved {
    weight_bits: u32,
    moment_bits: u32,
    version: PolicyVersion,
}

/// The published policy.
#[derive(Debug, Default)]
pub struct FakeSampler {
    /// Weight's bits and version.
    published: Mutex<(f32, PolicyVersion)>,
    /// Sessions that were sampled for and have not ended.
    live: Mutex<BTreeSet<u64>>,
    /// Added to each log-probability that is given out: an engine that lies.
    pub lie: Mutex<f32>,
}

impl FakeSampler {
    /// Sessions that were begun and not ended.
    pub fn num_live_sessions(&self) -> usize {
        self.live.lock().unwrap().len()
    }
}

impl Sampler for FakeSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        self.live.lock().unwrap().insert(request.session);
        let (weight, policy_version) = *self.published.lock().unwrap();
        let good = stream(request.seed, &["token"]).random::<f32>().ln() < logprob(weight, GOOD);
        let token = if good { GOOD } else { BAD };
        Ok(Completion {
            tokens: vec![token],
            logprobs: vec![logprob(weight, token) + *self.lie.lock().unwrap()],
            finish_reason: FinishReason::Stop,
            policy_version,
            ..Completion::default()
        })
    }

    fn end_session(&self, session: u64) {
        self.live.lock().unwrap().remove(&session);
    }

    fn max_context(&self) -> usize {
        64
    }
}

/// Trains the one weight, with momentum, so that the optimizer's state matters for resume.
pub struct FakeTrainer {
    weight: f32,
    moment: f32,
    gradient: f32,
    version: PolicyVersion,
    sampler: Arc<FakeSampler>,
    /// Counts optimizer steps of the process.
    pub num_steps: Arc<AtomicU64>,
    /// `publish` forgets to hand the weights over: an engine that serves stale ones.
    pub stale: bool,
}

impl FakeTrainer {
    fn logprobs(&self, samples: &[TrainingSample]) -> Vec<Vec<f32>> {
        let of = |sample: &TrainingSample| {
            sample.tokens.iter().map(|token| logprob(self.weight, *token)).collect()
        };
        samples.iter().map(of).collect()
    }
}

impl Trainer for FakeTrainer {
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        objective: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        let mut result = ForwardBackward { logprobs: self.logprobs(samples), ..Default::default() };
        for (sample, logprobs) in samples.iter().zip(&result.logprobs) {
            for (t, logprob) in logprobs.iter().enumerate().skip(1) {
                if sample.loss_mask[t] > 0.0 {
                    let loss = objective.token_loss(sample, t, *logprob);
                    let probability = logprob.exp();
                    let sign = if sample.tokens[t] == GOOD { 1.0 } else { -1.0 };
                    self.gradient += loss.d_logprob * sign * (1.0 - probability);
                    result.loss += f64::from(loss.loss);
                    result.num_loss_tokens += 1;
                    result.num_clipped += usize::from(loss.clipped);
                }
            }
        }
        Ok(result)
    }

    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        Ok(self.logprobs(samples))
    }

    fn optim_step(&mut self, params: &AdamParams) -> Result<OptimStats, TrainerError> {
        self.moment = 0.9 * self.moment + self.gradient;
        self.weight -= params.lr * self.moment;
        let grad_norm = self.gradient.abs();
        self.gradient = 0.0;
        self.num_steps.fetch_add(1, Ordering::SeqCst);
        Ok(OptimStats { grad_norm })
    }

    fn save(&mut self, dir: &Path) -> Result<(), TrainerError> {
        let saved = Saved {
            weight_bits: self.weight.to_bits(),
            moment_bits: self.moment.to_bits(),
            version: self.version,
        };
        let failed = |error: std::io::Error| TrainerError::Checkpoint {
            path: dir.display().to_string(),
            reason: error.to_string(),
        };
        std::fs::create_dir(dir).map_err(failed)?;
        std::fs::write(dir.join("fake.json"), serde_json::to_string(&saved).unwrap())
            .map_err(failed)
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainerError> {
        let text = std::fs::read_to_string(dir.join("fake.json")).map_err(|error| {
            TrainerError::Checkpoint { path: dir.display().to_string(), reason: error.to_string() }
        })?;
        let saved: Saved = serde_json::from_str(&text).unwrap();
        self.weight = f32::from_bits(saved.weight_bits);
        self.moment = f32::from_bits(saved.moment_bits);
        self.gradient = 0.0;
        self.version = saved.version;
        *self.sampler.published.lock().unwrap() = (self.weight, self.version);
        Ok(())
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        self.version.0 += 1;
        if !self.stale {
            *self.sampler.published.lock().unwrap() = (self.weight, self.version);
        }
        Ok(self.version)
    }

    fn reset_optimizer(&mut self) {
        self.moment = 0.0;
    }

    fn policy_version(&self) -> PolicyVersion {
        self.version
    }
}

/// When and how the fake environment fails or stops the run.
#[derive(Default)]
pub struct Faults {
    /// Fails this part of all rollouts, for good, by instance and sibling.
    pub fail_every: Option<usize>,
    /// Fails the first try of every rollout.
    pub fail_first_try: bool,
    /// Cancels the run at the rollout of this number.
    pub cancel_at: Option<usize>,
}

/// Rolls out the fake policy.
pub struct FakeEnvironment {
    sampler: Arc<dyn Sampler>,
    faults: Faults,
    num_rollouts: AtomicUsize,
    tried: Mutex<BTreeMap<(String, u32, u64), usize>>,
    /// Rollouts by the version they were asked to be served by.
    pub versions: Mutex<BTreeMap<u64, usize>>,
}

impl Environment for FakeEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        let number = self.num_rollouts.fetch_add(1, Ordering::SeqCst);
        if self.faults.cancel_at == Some(number) {
            cancel.cancel();
        }
        *self.versions.lock().unwrap().entry(spec.policy_version.0).or_default() += 1;
        let key = (task.instance.instance_id.clone(), spec.sibling, spec.seed);
        let tries = {
            let mut tried = self.tried.lock().unwrap();
            let tries = tried.entry(key).or_default();
            *tries += 1;
            *tries
        };
        let broken =
            self.faults.fail_every.is_some_and(|every| spec.seed.is_multiple_of(every as u64));
        if broken || (self.faults.fail_first_try && tries == 1) {
            let class = FailureClass::Sandbox;
            return failed_rollout(task, spec, class, "the disk is full".to_owned());
        }
        let sampler =
            GuardedSampler { inner: &self.sampler, policy_version: spec.policy_version, cancel };
        let rollout = turns(task, spec, &sampler);
        sampler.end_session(spec.session);
        rollout
    }

    fn stats(&self) -> EnvironmentStats {
        EnvironmentStats { num_sandboxes: self.num_rollouts.load(Ordering::SeqCst) as u64 }
    }
}

fn turns(task: &Task, spec: &RolloutSpec, sampler: &dyn Sampler) -> Rollout {
    let mut trajectory = Trajectory {
        tokens: vec![7, 8],
        sampler_logprobs: vec![0.0, 0.0],
        num_prompt_tokens: 2,
        prompt: "fix it".into(),
        ..Trajectory::default()
    };
    let num_turns = 1 + (spec.seed % 3) as usize;
    for index in 0..num_turns.min(spec.max_turns) {
        let request = SampleRequest {
            session: spec.session,
            context: trajectory.tokens.clone(),
            max_tokens: 1,
            stop_tokens: vec![],
            params: patchwright_core::SamplingParams::default(),
            seed: spec.seed.wrapping_add(index as u64),
            ..SampleRequest::default()
        };
        let completion = match sampler.sample(&request) {
            Ok(completion) => completion,
            Err(error) => {
                return failed_rollout(task, spec, FailureClass::Engine, error.to_string());
            }
        };
        let start = trajectory.tokens.len();
        trajectory.tokens.extend(&completion.tokens);
        trajectory.sampler_logprobs.extend(&completion.logprobs);
        trajectory.turns.push(Turn {
            text: format!("token {}", completion.tokens[0]),
            command: String::new(),
            observation: "ok".into(),
            outcome: TurnOutcome::Executed,
            sampled: TokenSpan { start, end: start + 1 },
            finish_reason: completion.finish_reason,
        });
        trajectory.tokens.push(9);
        trajectory.sampler_logprobs.push(0.0);
    }
    let solved = trajectory.turns.last().is_some_and(|turn| turn.text == "token 1");
    Rollout {
        instance_id: task.instance.instance_id.clone(),
        sibling: spec.sibling,
        attempt: 0,
        policy_version: spec.policy_version,
        status: RolloutStatus::Submitted,
        failure: (!solved).then_some(FailureClass::Model),
        failure_detail: None,
        solved: Some(solved),
        patch: if solved { "good".into() } else { String::new() },
        trajectory,
        branches: Vec::new(),
    }
}
/// A fake world and handles into it.
pub struct Fake {
    /// What a run takes.
    pub world: World,
    /// The policy's sampler.
    pub sampler: Arc<FakeSampler>,
    /// Rollouts by version, faults.
    pub environment: Arc<FakeEnvironment>,
    /// Optimizer steps taken.
    pub num_steps: Arc<AtomicU64>,
}

/// A fake world at weight -1 (solves about one in four), version 0.
pub fn fake(faults: Faults) -> Fake {
    fake_with(faults, false)
}

/// [`fake`], whose trainer may forget to hand over what it publishes.
pub fn fake_with(faults: Faults, stale: bool) -> Fake {
    let sampler = Arc::new(FakeSampler::default());
    *sampler.published.lock().unwrap() = (-1.0, PolicyVersion(0));
    let environment = Arc::new(FakeEnvironment {
        sampler: sampler.clone(),
        faults,
        num_rollouts: AtomicUsize::new(0),
        tried: Mutex::default(),
        versions: Mutex::default(),
    });
    let num_steps = Arc::new(AtomicU64::new(0));
    let trainer = FakeTrainer {
        weight: -1.0,
        moment: 0.0,
        gradient: 0.0,
        version: PolicyVersion(0),
        sampler: Arc::clone(&sampler),
        num_steps: Arc::clone(&num_steps),
        stale,
    };
    let world = World {
        train: tasks("train", 12),
        evaluation_sets: vec![
            ("held-out".into(), tasks("held", 6)),
            ("transfer".into(), tasks("far", 2)),
        ],
        environment: environment.clone(),
        sampler: sampler.clone(),
        trainer: Box::new(trainer),
    };
    Fake { world, sampler, environment, num_steps }
}

/// A recipe small enough for tests.
pub fn small_recipe(overrides: &[&str]) -> Recipe {
    let text = r#"
        [run]
        name = "test"
        seed = 5
        [eval]
        num_runs = 4
        num_runs_transfer = 4
        pass_k = 4
        [rft]
        num_tasks = 0
        rollouts_per_task = 4
        batch_size = 6
        lr = 0.05
        [[rl]]
        name = "rl-1"
        iterations = 4
        problems_per_iteration = 5
        group_size = 6
        batch_size = 10
        lr = 0.1
        [[rl]]
        name = "rl-2"
        iterations = 3
        problems_per_iteration = 4
        group_size = 6
        batch_size = 10
        lr = 0.1
        refresh_pool = true
        [infrastructure]
        num_workers = 4
    "#;
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Recipe::parse(text, "test", &overrides).unwrap()
}

/// Remembers all events.
#[derive(Default)]
pub struct Recorder(pub Mutex<Vec<RunEvent>>);

impl Observer for Recorder {
    fn event(&self, event: &RunEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}
