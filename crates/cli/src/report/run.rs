//! A run as its journal tells it: what counts after resumes, gathered for the page.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use patchwright_train::events::StageKind;
use patchwright_train::journal::{JournalError, Record, RolloutRecord, read_journal};
use patchwright_train::metrics::{EvaluationResult, Funnel, IterationMetrics};

/// Rollouts that are shown at most.
const MAX_SHOWN: usize = 20;

/// Everything that the report says.
#[derive(Debug, Default)]
pub struct Run {
    /// The recipe's name.
    pub recipe: String,
    /// The seed.
    pub seed: u64,
    /// Version of the program that made the run.
    pub program_version: String,
    /// Whether it came to its end.
    pub finished: bool,
    /// Stages in order.
    pub stages: Vec<Stage>,
    /// RL and RFT iterations in order.
    pub iterations: Vec<IterationMetrics>,
    /// Measurements in order.
    pub evaluations: Vec<EvaluationResult>,
    /// Rollouts to read, newest policy first.
    pub rollouts: Vec<RolloutRecord>,
    /// What was worth saying.
    pub notices: Vec<String>,
    /// The resolved recipe, as it lies in the run directory.
    pub recipe_json: Option<String>,
}

/// One stage.
#[derive(Debug, Default)]
pub struct Stage {
    /// Its name.
    pub name: String,
    /// Instances of its pool or task set.
    pub num_tasks: usize,
    /// Wall clock over all its parts, in seconds.
    pub wall_seconds: f64,
    /// Highest memory of the process by its end, in bytes; 0 where it is not known.
    pub peak_memory_bytes: u64,
    /// Sandboxes made.
    pub num_sandboxes: u64,
    /// Tokens sampled.
    pub num_sampled_tokens: usize,
    /// Seconds in which they were sampled (and rollouts ran).
    pub rollout_seconds: f64,
    /// Tokens trained on.
    pub num_trained_tokens: usize,
    /// Seconds in which they were trained on.
    pub train_seconds: f64,
    /// Rollouts to samples; all 0 for evaluations.
    pub funnel: Funnel,
}

impl Stage {
    /// What it does, by its name.
    pub fn kind(&self) -> StageKind {
        match self.name.as_str() {
            "setup" => StageKind::Setup,
            "rft" => StageKind::Rft,
            name if name.starts_with("eval-") => StageKind::Evaluation,
            _ => StageKind::Rl,
        }
    }
}

impl Run {
    /// Reads a run directory. An unfinished run gives what there is.
    ///
    /// # Errors
    /// When the journal cannot be read.
    pub fn read(dir: &Path) -> Result<Self, JournalError> {
        let journaled = read_journal(&dir.join("journal.jsonl"))?;
        let mut order: Vec<String> = Vec::new();
        for record in &journaled.records {
            if let Record::StageStarted { stage, .. } = record
                && !order.contains(stage)
            {
                order.push(stage.clone());
            }
        }
        let mut run = Self::default();
        let mut candidates = Vec::new();
        for record in journaled.effective(&order) {
            run.take(record, &mut candidates);
        }
        run.rollouts = choose(&candidates);
        run.recipe_json = read_recipe(&dir.join("recipe.json"));
        Ok(run)
    }

    fn take<'a>(&mut self, record: &'a Record, candidates: &mut Vec<&'a RolloutRecord>) {
        match record {
            Record::Header { program_version, recipe, seed, .. } => {
                self.recipe.clone_from(recipe);
                self.program_version.clone_from(program_version);
                self.seed = *seed;
            }
            Record::StageStarted { stage, num_tasks } => {
                self.stage(stage).num_tasks = *num_tasks;
            }
            Record::Rollout(rollout) => {
                if !rollout.turns.is_empty() {
                    candidates.push(rollout);
                }
            }
            Record::Iteration { metrics, num_sandboxes, .. } => {
                let stage = self.stage(&metrics.stage);
                stage.num_sandboxes += num_sandboxes;
                stage.num_sampled_tokens += metrics.num_sampled_tokens;
                stage.rollout_seconds += metrics.rollout_seconds;
                stage.num_trained_tokens += metrics.num_trained_tokens;
                stage.train_seconds += metrics.train_seconds;
                add(&mut stage.funnel, &metrics.funnel);
                self.iterations.push(metrics.clone());
            }
            Record::Evaluation { result, num_sandboxes, num_sampled_tokens } => {
                let stage = self.stage(&format!("eval-{}", result.policy));
                stage.num_sandboxes += num_sandboxes;
                stage.num_sampled_tokens += num_sampled_tokens;
                stage.rollout_seconds += result.wall_seconds;
                self.evaluations.push(result.clone());
            }
            Record::StageFinished { stage, wall_seconds, peak_memory_bytes, .. } => {
                let stage = self.stage(stage);
                stage.wall_seconds += wall_seconds;
                stage.peak_memory_bytes = stage.peak_memory_bytes.max(*peak_memory_bytes);
            }
            Record::Interrupted { stage, wall_seconds, .. } => {
                self.stage(stage).wall_seconds += wall_seconds;
            }
            Record::Notice { text, .. } => {
                if !self.notices.contains(text) {
                    self.notices.push(text.clone());
                }
            }
            Record::RunFinished { .. } => self.finished = true,
            Record::Group(_) | Record::Resumed { .. } | Record::SandboxLimits { .. } => {}
        }
    }

    fn stage(&mut self, name: &str) -> &mut Stage {
        let known = self.stages.iter().position(|stage| stage.name == name);
        let index = known.unwrap_or_else(|| {
            self.stages.push(Stage { name: name.to_owned(), ..Stage::default() });
            self.stages.len() - 1
        });
        &mut self.stages[index]
    }

    /// Wall clock of all stages, in seconds.
    pub fn wall_seconds(&self) -> f64 {
        self.stages.iter().map(|stage| stage.wall_seconds).sum()
    }

    /// Highest memory of the process, in bytes; `None` where it is not known.
    pub fn peak_memory_bytes(&self) -> Option<u64> {
        self.stages.iter().map(|stage| stage.peak_memory_bytes).max().filter(|bytes| *bytes > 0)
    }
}

fn add(sum: &mut Funnel, part: &Funnel) {
    sum.num_rollouts += part.num_rollouts;
    sum.num_solved += part.num_solved;
    sum.num_failed_infrastructure += part.num_failed_infrastructure;
    sum.num_turn_limit += part.num_turn_limit;
    sum.num_context_limit += part.num_context_limit;
    sum.num_format_limit += part.num_format_limit;
    sum.num_cheats += part.num_cheats;
    sum.num_groups += part.num_groups;
    sum.num_groups_all_solved += part.num_groups_all_solved;
    sum.num_groups_all_failed += part.num_groups_all_failed;
    sum.num_groups_infrastructure += part.num_groups_infrastructure;
    sum.num_dropped_rollouts += part.num_dropped_rollouts;
    sum.num_trained += part.num_trained;
}

/// A few rollouts of every stage and set: solved and unsolved ones of different tasks, newest
/// policy first.
fn choose(candidates: &[&RolloutRecord]) -> Vec<RolloutRecord> {
    let mut kinds: BTreeMap<(String, String, bool), Vec<&RolloutRecord>> = BTreeMap::new();
    let mut stages: Vec<&str> = Vec::new();
    for rollout in candidates {
        if !stages.contains(&rollout.stage.as_str()) {
            stages.push(&rollout.stage);
        }
        let solved = rollout.solved == Some(true);
        let key = (rollout.stage.clone(), rollout.task_set.clone(), !solved);
        let kept = kinds.entry(key).or_default();
        // The last ones of training say more about the policy than the first.
        if rollout.task_set.is_empty() && kept.len() == 2 {
            kept.remove(0);
        }
        if kept.len() < 2 && kept.iter().all(|k| k.instance_id != rollout.instance_id) {
            kept.push(rollout);
        }
    }
    let mut chosen = Vec::new();
    for stage in stages.iter().rev() {
        let of_stage = kinds.iter().filter(|((name, _, _), _)| name == stage);
        chosen.extend(of_stage.flat_map(|(_, rollouts)| rollouts.iter().map(|r| (*r).clone())));
    }
    chosen.truncate(MAX_SHOWN);
    chosen
}

/// The recipe, indented. A recipe that is missing or damaged is no reason to have no report.
fn read_recipe(path: &PathBuf) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let value: serde_json::Value = serde_json::from_str(&text).ok()?;
    serde_json::to_string_pretty(&value).ok()
}
