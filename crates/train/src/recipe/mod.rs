//! Recipes: everything that decides what a run does, as one documented TOML document.
//!
//! A recipe is read with [`Recipe::load`], which refuses unknown keys (naming the nearest right
//! one) and then with [`Recipe::check`] refuses combinations that cannot be honoured: no knob is
//! silent. The resolved recipe is saved with the run as `recipe.json`.

mod check;
mod engines;
mod load;
mod stages;

use patchwright_core::SandboxLimits;
use patchwright_tasks::filter::FilterRecipe;
use patchwright_tasks::issue::IssueStyle;
use serde::{Deserialize, Serialize};

pub use engines::{
    EngineRecipe, LoraRecipe, SamplerKind, ServersRecipe, TinkerRecipe, TrainerKind,
};
pub use load::{BUILT_IN, RecipeError};
pub use patchwright_algo::filter::DropOn;
pub use patchwright_algo::reward::PenaltyOn;
pub use patchwright_algo::schedule::Schedule;
pub use stages::{RftRecipe, RlStageRecipe};

/// A whole run: evaluation of the base, RFT, RL stages, evaluations between.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// What learns.
    pub trainer: TrainerKind,
    /// What generates tokens.
    pub sampler: SamplerKind,
    /// Name and seed.
    pub run: RunRecipe,
    /// The model, and the embedded engine.
    pub engine: EngineRecipe,
    /// Engines that others keep, which generate.
    pub servers: ServersRecipe,
    /// A server that trains and generates.
    pub tinker: TinkerRecipe,
    /// The task sets.
    pub tasks: TasksRecipe,
    /// Which tasks of a file are worth training on; `tasks filter` applies it.
    pub filter: FilterRecipe,
    /// How the agent works.
    pub agent: AgentRecipe,
    /// How a policy is measured.
    pub eval: EvalRecipe,
    /// Rejection-sampling fine-tuning.
    pub rft: RftRecipe,
    /// The RL stages in order; none skips RL.
    pub rl: Vec<RlStageRecipe>,
    /// Bounds on each sandbox.
    pub sandbox: SandboxRecipe,
    /// Concurrency and what is done about failures that are not the policy's.
    pub infrastructure: InfrastructureRecipe,
}

/// `[run]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RunRecipe {
    /// The recipe's name, shown in reports and used for the run directory.
    pub name: String,
    /// Seed of every random decision of training and evaluation. The task sets have their own.
    pub seed: u64,
    /// Whether every rollout is kept whole, with its tokens and log-probabilities, in the run's
    /// `rollouts/`, for `patchwright export`.
    pub keep_rollouts: bool,
}

impl Default for RunRecipe {
    fn default() -> Self {
        Self { name: "embedded".into(), seed: 0, keep_rollouts: false }
    }
}

/// Where a task set comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskSource {
    /// The compositional generator of small Python repositories.
    Generated,
    /// The hand-written repositories.
    Katas,
    /// A file or directory of SWE-bench-style JSONL rows, at `path`.
    File,
    /// The set is left out.
    None,
}

/// One task set: `[tasks.train]`, `[tasks.held-out]`, `[tasks.transfer]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskSetRecipe {
    /// `generated`, `katas`, `file` or `none`.
    pub source: TaskSource,
    /// For `file`: the JSONL file or a directory of such files. Empty otherwise.
    pub path: String,
    /// Number of instances at most; 0 means all that the source has.
    pub num_instances: usize,
    /// For `generated` and `katas`: instances made of one repository at most.
    pub instances_per_repo: usize,
}

impl Default for TaskSetRecipe {
    fn default() -> Self {
        Self {
            source: TaskSource::None,
            path: String::new(),
            num_instances: 0,
            instances_per_repo: 4,
        }
    }
}

/// `[tasks]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TasksRecipe {
    /// Seed of the embedded sets. Kept apart from the run's seed, so that two runs with
    /// different seeds are measured on the same tasks.
    pub seed: u64,
    /// How issues of the embedded sets are worded: `compact` (one line a call, for the smallest
    /// models) or `full`.
    pub issue_style: IssueStyle,
    /// More task sets (JSONL, JSON or Parquet, files or directories) that training must share
    /// nothing with, such as the splits that a finished policy will be measured on. Training is
    /// refused when it would: see `tasks.train`.
    pub keep_away: Vec<String>,
    /// Share of the train set that is replaced by canaries: the same tasks with one more hidden
    /// test, which contradicts the others, so that no honest patch passes. A pass is reported as a
    /// cheat and never rewarded. 0.02 to 0.05 watch a long run for reward hacking.
    pub impossible_share: f64,
    /// The pool that RFT and RL draw from. It is refused when it shares an instance, a repository
    /// at the same commit, a gold patch or a source file with a set that is evaluated on or kept
    /// away from; where one side names no commit, the repository alone decides.
    pub train: TaskSetRecipe,
    /// Tasks of repositories that training never sees.
    #[serde(rename = "held-out")]
    pub held_out: TaskSetRecipe,
    /// A harder set, reported beside it.
    pub transfer: TaskSetRecipe,
}

impl Default for TasksRecipe {
    fn default() -> Self {
        Self {
            seed: 0,
            issue_style: IssueStyle::Compact,
            keep_away: Vec::new(),
            impossible_share: 0.0,
            train: TaskSetRecipe {
                source: TaskSource::Generated,
                num_instances: 2000,
                ..TaskSetRecipe::default()
            },
            held_out: TaskSetRecipe {
                source: TaskSource::Generated,
                num_instances: 100,
                instances_per_repo: 1,
                ..TaskSetRecipe::default()
            },
            transfer: TaskSetRecipe {
                source: TaskSource::Katas,
                num_instances: 40,
                instances_per_repo: 1,
                ..TaskSetRecipe::default()
            },
        }
    }
}

/// `[agent]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentRecipe {
    /// Name of a shipped prompt profile (`compact`, `full`, or `chat`, which frames messages by the
    /// model's own chat template) or the path of a profile file.
    pub profile: String,
    /// Sampling temperature of training rollouts. Training assumes samples of the full
    /// distribution, so anything but 1 is refused.
    pub temperature: f32,
    /// Tokens of one assistant turn at most.
    pub max_tokens_per_turn: usize,
    /// The rollout ends after this many formatting errors in a row.
    pub max_format_errors: usize,
    /// Wall-clock bound on each command, in seconds.
    pub command_timeout_seconds: u64,
    /// A program that is the agent instead of our own, with its arguments: it is started for each
    /// rollout and speaks to the policy through the gateway. Empty means our own agent.
    pub foreign_command: Vec<String>,
}

impl Default for AgentRecipe {
    fn default() -> Self {
        Self {
            profile: "compact".into(),
            temperature: 1.0,
            max_tokens_per_turn: 64,
            max_format_errors: 3,
            command_timeout_seconds: 10,
            foreign_command: Vec::new(),
        }
    }
}

/// `[eval]`: how each policy is measured, the same for all of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalRecipe {
    /// Independent runs over each set; Pass@1 is their mean, its error the SEM over them.
    pub num_runs: usize,
    /// Runs over the transfer set.
    pub num_runs_transfer: usize,
    /// The `k` of Pass@k; at most the number of runs.
    pub pass_k: usize,
    /// Turns of a rollout at most.
    pub max_turns: usize,
    /// Tokens of a trajectory at most.
    pub context_tokens: usize,
    /// Sampling temperature.
    pub temperature: f32,
}

impl Default for EvalRecipe {
    fn default() -> Self {
        Self {
            num_runs: 10,
            num_runs_transfer: 10,
            pass_k: 10,
            max_turns: 16,
            context_tokens: 1024,
            temperature: 1.0,
        }
    }
}

impl EvalRecipe {
    /// Runs over a task set, `held-out` or `transfer`.
    pub fn runs_of(&self, task_set: &str) -> usize {
        if task_set == "transfer" { self.num_runs_transfer } else { self.num_runs }
    }
}

/// `[sandbox]`: bounds on each sandbox, all enforced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SandboxRecipe {
    /// Memory of all its processes together, in MiB.
    pub memory_mib: u64,
    /// Processes and threads alive at once.
    pub num_processes: u64,
    /// CPU time of one command, in seconds.
    pub cpu_seconds: u64,
    /// KiB kept of each output stream of a command.
    pub output_kib: usize,
    /// MiB that may be written to its disk; it is held in memory, so at least 32 below `memory_mib`.
    pub disk_mib: u64,
}

impl SandboxRecipe {
    /// The bounds as a sandbox takes them.
    pub fn limits(&self) -> SandboxLimits {
        SandboxLimits {
            memory_bytes: self.memory_mib << 20,
            num_processes: self.num_processes,
            cpu_seconds: self.cpu_seconds,
            output_bytes: self.output_kib << 10,
            disk_bytes: self.disk_mib << 20,
        }
    }
}

impl Default for SandboxRecipe {
    fn default() -> Self {
        Self { memory_mib: 512, num_processes: 64, cpu_seconds: 10, output_kib: 64, disk_mib: 16 }
    }
}

/// `[infrastructure]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InfrastructureRecipe {
    /// Rollouts that run at once.
    pub num_workers: usize,
    /// Wall-clock bound on one run of the hidden tests, in seconds.
    pub grade_timeout_seconds: u64,
    /// How often a rollout that failed in the infrastructure is tried again.
    pub num_retries: usize,
    /// The run stops when more than this part of a batch's rollouts fail in the infrastructure.
    pub max_failed_fraction: f64,
    /// The run stops when trainer and sampler disagree by more than this on a token's
    /// log-probability under the same weights.
    pub max_logprob_difference: f32,
    /// Iterations between two checkpoints that `--resume` can start from.
    pub checkpoint_every: usize,
}

impl Default for InfrastructureRecipe {
    fn default() -> Self {
        Self {
            num_workers: 64,
            grade_timeout_seconds: 10,
            num_retries: 1,
            max_failed_fraction: 0.2,
            max_logprob_difference: 1e-3,
            checkpoint_every: 1,
        }
    }
}
