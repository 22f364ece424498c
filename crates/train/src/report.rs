//! `report.json`: the result of a run, made from its journal and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::journal::{Record, read_journal};
use crate::metrics::{EvaluationResult, Funnel, IterationMetrics};
use crate::run_dir::write_json;

/// Version of `report.json`'s schema.
pub const REPORT_SCHEMA_VERSION: u32 = 1;

/// What `report.json` holds. Fields are only ever added.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`REPORT_SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The recipe's name.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// Wall clock in seconds: `total`, and each stage by name. Time between an interruption and
    /// its resume is not counted.
    pub wall_seconds: BTreeMap<String, f64>,
    /// Each policy on each task set, in the order they were measured.
    pub evaluations: Vec<EvaluationResult>,
    /// Version of the program that began the run.
    pub program_version: String,
    /// Whether all stages are finished.
    pub finished: bool,
    /// How fast it went.
    pub throughput: Throughput,
    /// Highest memory of the process, in bytes; 0 where it is not known.
    pub peak_memory_bytes: u64,
    /// Rollouts to samples, by stage.
    pub funnels: BTreeMap<String, Funnel>,
    /// Each iteration of RFT and RL: the learning curves.
    pub iterations: Vec<IterationMetrics>,
    /// What was worth saying.
    pub notices: Vec<String>,
}

/// How fast a run went.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Throughput {
    /// Tokens sampled, per second of rollouts (agent, sandboxes and grading included).
    pub sampled_tokens_per_second: f64,
    /// Tokens of training samples, per second of training.
    pub trained_tokens_per_second: f64,
    /// Sandboxes made, per second of rollouts.
    pub sandboxes_per_second: f64,
    /// Rollouts, per second of rollouts.
    pub rollouts_per_second: f64,
    /// Optimizer steps of the whole run.
    pub num_optimizer_steps: usize,
}

/// Sums from which [`Throughput`] is made.
#[derive(Debug, Default)]
struct Sums {
    sampled_tokens: f64,
    trained_tokens: f64,
    sandboxes: f64,
    rollouts: f64,
    rollout_seconds: f64,
    train_seconds: f64,
    optimizer_steps: usize,
}

impl Report {
    /// Makes the report of a run directory from its journal. `stages` are the run's stages in
    /// order.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn from_journal(path: &Path, stages: &[String]) -> Result<Self, TrainError> {
        let journaled = read_journal(path)?;
        let mut report = Self::empty();
        let mut sums = Sums::default();
        for record in journaled.effective(stages) {
            report.add(record, &mut sums);
        }
        // Time that was spent counts, also on work that was done again.
        for record in &journaled.records {
            if let Record::StageFinished { stage, wall_seconds, .. }
            | Record::Interrupted { stage, wall_seconds, .. } = record
            {
                *report.wall_seconds.entry(stage.clone()).or_default() += wall_seconds;
            }
        }
        let total = report.wall_seconds.values().sum();
        report.wall_seconds.insert("total".to_owned(), total);
        report.throughput = sums.throughput();
        Ok(report)
    }

    /// Writes `report.json`, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), TrainError> {
        write_json(path, self)
    }

    fn empty() -> Self {
        Self {
            schema_version: REPORT_SCHEMA_VERSION,
            recipe: String::new(),
            seed: 0,
            wall_seconds: BTreeMap::new(),
            evaluations: Vec::new(),
            program_version: String::new(),
            finished: false,
            throughput: Throughput::default(),
            peak_memory_bytes: 0,
            funnels: BTreeMap::new(),
            iterations: Vec::new(),
            notices: Vec::new(),
        }
    }

    fn add(&mut self, record: &Record, sums: &mut Sums) {
        match record {
            Record::Header { program_version, recipe, seed, .. } => {
                self.program_version.clone_from(program_version);
                self.recipe.clone_from(recipe);
                self.seed = *seed;
            }
            Record::Iteration { metrics, num_sandboxes, .. } => {
                sums.sampled_tokens += metrics.num_sampled_tokens as f64;
                sums.trained_tokens += metrics.num_trained_tokens as f64;
                sums.sandboxes += *num_sandboxes as f64;
                sums.rollouts += metrics.funnel.num_rollouts as f64;
                sums.rollout_seconds += metrics.rollout_seconds;
                sums.train_seconds += metrics.train_seconds;
                sums.optimizer_steps += metrics.num_optimizer_steps;
                *self.funnels.entry(metrics.stage.clone()).or_default() += metrics.funnel;
                self.iterations.push(metrics.clone());
            }
            Record::Evaluation { result, num_sandboxes, num_sampled_tokens } => {
                sums.sampled_tokens += *num_sampled_tokens as f64;
                sums.sandboxes += *num_sandboxes as f64;
                sums.rollouts += (result.num_tasks * result.num_runs) as f64;
                sums.rollout_seconds += result.wall_seconds;
                self.evaluations.push(result.clone());
            }
            Record::StageFinished { peak_memory_bytes, .. } => {
                self.peak_memory_bytes = self.peak_memory_bytes.max(*peak_memory_bytes);
            }
            Record::Notice { text, .. } if !self.notices.contains(text) => {
                self.notices.push(text.clone());
            }
            Record::RunFinished { .. } => self.finished = true,
            _ => {}
        }
    }
}

impl Sums {
    fn throughput(&self) -> Throughput {
        let per = |count: f64, seconds: f64| if seconds > 0.0 { count / seconds } else { 0.0 };
        Throughput {
            sampled_tokens_per_second: per(self.sampled_tokens, self.rollout_seconds),
            trained_tokens_per_second: per(self.trained_tokens, self.train_seconds),
            sandboxes_per_second: per(self.sandboxes, self.rollout_seconds),
            rollouts_per_second: per(self.rollouts, self.rollout_seconds),
            num_optimizer_steps: self.optimizer_steps,
        }
    }
}

/// Highest resident memory of this process so far, in bytes; 0 where it is not known.
pub fn peak_memory_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}
