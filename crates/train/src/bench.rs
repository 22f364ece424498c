//! What the control plane costs: the rollout engine, the agent's loop, prompts, parsing and records,
//! with an engine and sandboxes that only wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use patchwright_agent::{AgentConfig, AgentRun, Profile, Renderer, Tokenizer, run_agent};
use patchwright_core::{
    Completion, ExecOutput, ExecRequest, ExecStatus, FileChange, FinishReason, PolicyVersion,
    RepoSource, Rollout, SampleRequest, Sampler, SamplerError, Sandbox, SandboxError, TaskInstance,
    derive_seed,
};
use patchwright_remote::chat::byte_tokenizer_json;
use serde::Serialize;

use crate::environment::{Environment, GuardedSampler, RolloutSpec, Task};
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RunEvent};
use crate::recipe::InfrastructureRecipe;
use crate::rollout_engine::{BatchSpec, Job, RolloutEngine};

/// What is run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ControlBench {
    /// Episodes, all in flight at once.
    pub num_episodes: usize,
    /// Turns of each.
    pub num_turns: usize,
    /// Waits of the engine for one turn, drawn evenly between the two.
    pub engine_latency: (Duration, Duration),
    /// Wait of the sandbox for one command.
    pub sandbox_latency: Duration,
}

impl Default for ControlBench {
    fn default() -> Self {
        Self {
            num_episodes: 4096,
            num_turns: 10,
            engine_latency: (Duration::from_secs(1), Duration::from_secs(7)),
            sandbox_latency: Duration::from_millis(300),
        }
    }
}

/// What it cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ControlFigures {
    /// Episodes.
    pub num_episodes: usize,
    /// Most of them that waited for the engine at once.
    pub num_in_flight_max: usize,
    /// Turns of all episodes.
    pub num_turns: usize,
    /// Wall clock, in seconds.
    pub wall_seconds: f64,
    /// CPU time of the process, in milliseconds a turn.
    pub cpu_ms_per_turn: f64,
    /// Resident memory at its highest less that before, in bytes an episode, the tokens of its
    /// trajectory (ids and log-probabilities) left out.
    pub memory_bytes_per_episode: f64,
    /// Bytes of an episode's trajectory at its end, left out above.
    pub token_bytes_per_episode: f64,
}

/// A turn: some reasoning, one command.
const TURN: &str = "The function that parses the header seems to be in this file, and the failing \
                    case of the issue goes through it. I look for its callers first, then at the \
                    tests beside it.\n```command\ngrep -rn parse_header src | head -20\n```\n";
const OBSERVATION: &str = "src/header.py:17:def parse_header(line, strict=False):\n\
                           src/reader.py:88:    key, value = parse_header(line)\n\
                           src/reader.py:131:        fields.append(parse_header(line, strict=True))\n";

impl ControlBench {
    /// Runs it.
    ///
    /// # Errors
    /// When the prompt cannot be made or the machine does not give so many threads.
    pub fn run(&self) -> Result<ControlFigures, TrainError> {
        let setup = |error: String| TrainError::setup("control-plane bench", error);
        let tokenizer = Tokenizer::from_bytes(byte_tokenizer_json().as_bytes())
            .map_err(|error| setup(error.to_string()))?;
        let profile = Profile::builtin("full").map_err(|error| setup(error.to_string()))?;
        let renderer = Renderer::new(Arc::new(tokenizer), profile)
            .map_err(|error| setup(error.to_string()))?;
        let engine = Arc::new(WaitingEngine {
            turn: renderer.tokenizer().encode_text(TURN),
            stop: renderer.stop_token(),
            latency: self.engine_latency,
            in_flight: AtomicUsize::new(0),
            in_flight_max: AtomicUsize::new(0),
        });
        let environment = WaitingEnvironment {
            sampler: Arc::clone(&engine) as Arc<dyn Sampler>,
            renderer,
            sandbox_latency: self.sandbox_latency,
        };
        let instance = TaskInstance {
            instance_id: "bench".to_owned(),
            problem_statement: "parse_header drops the last field when the line has no end. "
                .repeat(8),
            ..TaskInstance::default()
        };
        let task = Arc::new(Task { instance, repo: RepoSource::InRoot });
        let jobs: Vec<Job> = (0..self.num_episodes)
            .map(|n| Job { task: Arc::clone(&task), sibling: n as u32 })
            .collect();
        let limits = InfrastructureRecipe {
            num_workers: self.num_episodes,
            ..InfrastructureRecipe::default()
        };
        let (observer, cancel) = (Peak::default(), CancelToken::default());
        let before = resident_bytes();
        let (cpu, start) = (cpu_seconds(), Instant::now());
        let rollouts = std::thread::scope(|scope| {
            let watch = scope.spawn(|| observer.watch());
            let engine = RolloutEngine {
                environment: &environment,
                limits: &limits,
                seed: 0,
                observer: &observer,
                cancel: &cancel,
                keep: None,
            };
            let rollouts = engine.run(&self.spec(), &jobs);
            observer.stop();
            let _ = watch.join();
            rollouts
        })?;
        let (cpu, wall_seconds) = (cpu_seconds() - cpu, start.elapsed().as_secs_f64());
        let num_turns: usize = rollouts.iter().map(Rollout::num_turns).sum();
        if num_turns != self.num_episodes * self.num_turns {
            let detail = rollouts.iter().find_map(|rollout| rollout.failure_detail.clone());
            return Err(setup(format!("{num_turns} turns: {}", detail.unwrap_or_default())));
        }
        let tokens: usize = rollouts.iter().map(|rollout| rollout.trajectory.tokens.len()).sum();
        let token_bytes = (tokens * (size_of::<u32>() + size_of::<f32>())) as f64;
        let memory = observer.peak_bytes().saturating_sub(before) as f64;
        let num = self.num_episodes as f64;
        Ok(ControlFigures {
            num_episodes: self.num_episodes,
            num_in_flight_max: engine.in_flight_max.load(Ordering::Relaxed),
            num_turns,
            wall_seconds,
            cpu_ms_per_turn: 1000.0 * cpu / num_turns as f64,
            memory_bytes_per_episode: (memory - token_bytes).max(0.0) / num,
            token_bytes_per_episode: token_bytes / num,
        })
    }

    fn spec(&self) -> BatchSpec {
        BatchSpec {
            stage: "bench".to_owned(),
            iteration: 0,
            part: String::new(),
            policy_version: PolicyVersion(0),
            max_turns: self.num_turns,
            context_tokens: usize::MAX,
            temperature: 1.0,
            demonstration: false,
        }
    }
}

/// Draws the same turn after a wait.
struct WaitingEngine {
    turn: Vec<u32>,
    stop: u32,
    latency: (Duration, Duration),
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
}

impl Sampler for WaitingEngine {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        let now = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_max.fetch_max(now, Ordering::Relaxed);
        let (low, high) = self.latency;
        let draw = derive_seed(request.seed, &["latency"]) as f64 / u64::MAX as f64;
        std::thread::sleep(low + high.saturating_sub(low).mul_f64(draw));
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut tokens = self.turn.clone();
        tokens.push(self.stop);
        Ok(Completion {
            logprobs: vec![-0.5; tokens.len()],
            tokens,
            finish_reason: FinishReason::Stop,
            ..Completion::default()
        })
    }

    fn end_session(&self, _: u64) {}

    fn max_context(&self) -> usize {
        usize::MAX
    }
}

/// Answers every command alike after a wait.
struct WaitingSandbox(Duration);

impl Sandbox for WaitingSandbox {
    fn exec(&mut self, _: &ExecRequest) -> Result<ExecOutput, SandboxError> {
        std::thread::sleep(self.0);
        let stdout = OBSERVATION.as_bytes().to_vec();
        let status = ExecStatus::Exited(0);
        Ok(ExecOutput { status, stdout, stderr: Vec::new(), dropped_bytes: 0 })
    }

    fn read(&mut self, path: &str, _: usize) -> Result<Vec<u8>, SandboxError> {
        Err(SandboxError::Path { path: path.to_owned(), reason: "there is none".to_owned() })
    }

    fn write(&mut self, _: &str, _: &[u8]) -> Result<(), SandboxError> {
        Ok(())
    }

    fn diff(&mut self) -> Result<Vec<FileChange>, SandboxError> {
        Ok(Vec::new())
    }

    fn fork(&mut self) -> Result<Box<dyn Sandbox>, SandboxError> {
        Ok(Box::new(Self(self.0)))
    }

    fn destroy(self: Box<Self>) -> Result<(), SandboxError> {
        Ok(())
    }
}

struct WaitingEnvironment {
    sampler: Arc<dyn Sampler>,
    renderer: Renderer,
    sandbox_latency: Duration,
}

impl Environment for WaitingEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        let sampler =
            GuardedSampler { inner: &self.sampler, policy_version: spec.policy_version, cancel };
        let config = AgentConfig {
            max_turns: spec.max_turns,
            max_context_tokens: spec.context_tokens,
            ..AgentConfig::default()
        };
        let mut sandbox = WaitingSandbox(self.sandbox_latency);
        let AgentRun { trajectory, status, failure, failure_detail, patch, .. } = run_agent(
            &task.instance,
            &mut sandbox,
            &sampler,
            &self.renderer,
            &config,
            spec.session,
            spec.seed,
        );
        Rollout {
            instance_id: task.instance.instance_id.clone(),
            sibling: spec.sibling,
            attempt: 0,
            policy_version: spec.policy_version,
            status,
            failure,
            failure_detail,
            solved: Some(false),
            patch,
            trajectory,
            branches: Vec::new(),
        }
    }
}

/// Looks at the resident memory four times a second.
#[derive(Default)]
struct Peak {
    bytes: AtomicUsize,
    done: AtomicUsize,
}

impl Peak {
    fn watch(&self) {
        while self.done.load(Ordering::Relaxed) == 0 {
            self.bytes.fetch_max(resident_bytes(), Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(250));
        }
    }

    fn stop(&self) {
        self.bytes.fetch_max(resident_bytes(), Ordering::Relaxed);
        self.done.store(1, Ordering::Relaxed);
    }

    fn peak_bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Observer for Peak {
    fn event(&self, _: &RunEvent) {}
}

/// Resident memory of the process; 0 where `/proc` does not say.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|text| text.trim().trim_end_matches("kB").trim().parse::<usize>().ok());
    kib.unwrap_or(0) * 1024
}

/// CPU time of all threads so far, ended ones included; 0 where `/proc` does not say.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in parentheses may hold anything; user and system time are the 12th and 13th behind.
    let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: u64 =
        rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    // Linux counts in hundredths, whatever the kernel's own rate.
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::ControlBench;

    #[test]
    fn every_episode_is_in_flight_and_every_turn_is_counted() {
        let bench = ControlBench {
            num_episodes: 64,
            num_turns: 3,
            engine_latency: (Duration::from_millis(200), Duration::from_millis(300)),
            sandbox_latency: Duration::from_millis(1),
        };
        let figures = bench.run().unwrap();
        assert_eq!((figures.num_episodes, figures.num_turns), (64, 192));
        assert!(figures.num_in_flight_max > 32, "{figures:?}");
        assert!(figures.token_bytes_per_episode > 8.0 * 1000.0, "{figures:?}");
    }
}
