//! What every program of a run works with.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use patchwright_core::{PolicyVersion, Rollout, RolloutGroup, Sampler, Trainer};

use crate::environment::{Environment, Task};
use crate::error::TrainError;
use crate::events::{CancelToken, Observer, RunEvent};
use crate::history::SolveHistory;
use crate::journal::{GroupRecord, Journal, Record};
use crate::metrics::{Funnel, IterationMetrics};
use crate::recipe::Recipe;
use crate::rollout_engine::{Job, RolloutEngine};
use crate::run_dir::RunDir;

/// The tasks, what runs rollouts, and the policy.
pub struct World {
    /// The train set.
    pub train: Vec<Arc<Task>>,
    /// The evaluation sets by name, in the order they are reported: `held-out`, `transfer`.
    pub evaluation_sets: Vec<(String, Vec<Arc<Task>>)>,
    /// Runs and grades rollouts.
    pub environment: Arc<dyn Environment>,
    /// The policy's sampler, for probes.
    pub sampler: Arc<dyn Sampler>,
    /// The policy's trainer.
    pub trainer: Box<dyn Trainer>,
}

/// A run under way.
pub struct Run<'a> {
    /// The recipe.
    pub recipe: Recipe,
    /// The run directory.
    pub dir: RunDir,
    /// The journal.
    pub journal: Journal,
    /// Tasks, environment, policy.
    pub world: World,
    /// How often tasks were solved so far.
    pub history: SolveHistory,
    /// Versions whose checkpoints are kept: those that stages ended with, by stage.
    pub stage_versions: BTreeMap<String, PolicyVersion>,
    /// Told of what happens.
    pub observer: &'a dyn Observer,
    /// Set when the run is to stop.
    pub cancel: &'a CancelToken,
}

impl Run<'_> {
    /// Sends an event.
    pub fn tell(&self, event: &RunEvent) {
        self.observer.event(event);
    }

    /// Writes something worth knowing to the journal and to whoever watches.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn notice(&mut self, stage: &str, text: String) -> Result<(), TrainError> {
        self.journal.append(&Record::Notice { stage: stage.to_owned(), text: text.clone() })?;
        self.tell(&RunEvent::Notice(text));
        Ok(())
    }

    /// The engine that runs batches of rollouts.
    pub fn rollout_engine(&self) -> RolloutEngine<'_> {
        RolloutEngine {
            environment: self.world.environment.as_ref(),
            limits: &self.recipe.infrastructure,
            seed: self.recipe.run.seed,
            observer: self.observer,
            cancel: self.cancel,
            keep: self.keep(),
        }
    }

    /// Where whole rollouts are kept, if the recipe says so.
    pub fn keep(&self) -> Option<PathBuf> {
        self.recipe.run.keep_rollouts.then(|| self.dir.rollouts())
    }

    /// Adds a group to the journal and to the solve history.
    ///
    /// # Errors
    /// When the journal cannot be written.
    pub fn record_group(&mut self, group: GroupRecord) -> Result<(), TrainError> {
        self.history.add(&group);
        self.journal.append(&Record::Group(group))?;
        Ok(())
    }

    /// Finishes an iteration whose weights were just published: checkpoint, `metrics.jsonl`,
    /// journal, in this order, so that a journaled iteration has all that it names.
    ///
    /// # Errors
    /// When something cannot be written.
    pub fn finish_iteration<T: serde::Serialize>(
        &mut self,
        metrics: IterationMetrics,
        checkpoint: bool,
        pending: &[T],
        num_sandboxes: u64,
    ) -> Result<(), TrainError> {
        if checkpoint {
            self.dir.save_checkpoint(self.world.trainer.as_mut(), pending)?;
        }
        append_line(&self.dir.metrics(), &metrics)?;
        let version = metrics.policy_version;
        self.journal.append(&Record::Iteration {
            metrics: metrics.clone(),
            checkpoint,
            num_sandboxes,
        })?;
        self.journal.sync()?;
        if checkpoint {
            let mut keep: Vec<PolicyVersion> = self.stage_versions.values().copied().collect();
            keep.extend([PolicyVersion(0), version]);
            self.dir.prune_checkpoints(&keep)?;
        }
        self.tell(&RunEvent::IterationFinished(metrics));
        Ok(())
    }
}

fn append_line(path: &std::path::Path, value: &impl serde::Serialize) -> Result<(), TrainError> {
    use std::io::Write;
    let mut line = serde_json::to_string(value)
        .map_err(|error| TrainError::setup(path.display().to_string(), error.to_string()))?;
    line.push('\n');
    std::fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(line.as_bytes()))
        .map_err(TrainError::io(path))
}

/// The jobs of `num_siblings` rollouts of each task, siblings beside one another.
pub fn sibling_jobs(tasks: &[Arc<Task>], num_siblings: usize) -> Vec<Job> {
    tasks
        .iter()
        .flat_map(|task| {
            (0..num_siblings).map(|sibling| Job { task: Arc::clone(task), sibling: sibling as u32 })
        })
        .collect()
}

/// Rollouts of [`sibling_jobs`] as groups.
pub fn into_groups(rollouts: Vec<Rollout>, num_siblings: usize) -> Vec<RolloutGroup> {
    let mut rollouts = rollouts.into_iter();
    let mut groups = Vec::new();
    loop {
        let siblings: Vec<Rollout> = rollouts.by_ref().take(num_siblings).collect();
        let Some(first) = siblings.first() else {
            return groups;
        };
        groups.push(RolloutGroup { instance_id: first.instance_id.clone(), rollouts: siblings });
    }
}

/// A group's line in the solve history.
pub fn group_record(stage: &str, iteration: usize, group: &RolloutGroup) -> GroupRecord {
    GroupRecord {
        stage: stage.to_owned(),
        iteration,
        instance_id: group.instance_id.clone(),
        num_graded: group.rollouts.iter().filter(|rollout| rollout.solved.is_some()).count(),
        num_solved: group.rollouts.iter().filter(|rollout| rollout.is_solved()).count(),
        dropped: None,
    }
}

/// Sums over rollouts that every program reports.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RolloutTotals {
    /// Rollouts by how they ended.
    pub funnel: Funnel,
    /// Rollouts with a grade.
    pub num_graded: usize,
    /// Rollouts that were ended by submitting.
    pub num_submitted: usize,
    /// Turns of graded rollouts.
    pub num_turns: usize,
    /// Turns of graded rollouts with formatting errors.
    pub num_format_errors: usize,
    /// Sampled tokens of all rollouts.
    pub num_sampled_tokens: usize,
    /// Sum of the sampled tokens' log-probabilities.
    pub logprob_sum: f64,
}

impl RolloutTotals {
    /// Adds up rollouts.
    pub fn of<'r>(rollouts: impl Iterator<Item = &'r Rollout>) -> Self {
        let mut totals = Self::default();
        rollouts.for_each(|rollout| totals.add(rollout));
        totals
    }

    /// Adds one.
    pub fn add(&mut self, rollout: &Rollout) {
        use patchwright_core::RolloutStatus as Status;
        let funnel = &mut self.funnel;
        funnel.num_rollouts += 1;
        self.num_sampled_tokens += rollout.num_sampled_tokens();
        for trajectory in rollout.trajectories() {
            let logprobs = trajectory.sampler_logprobs.iter().map(|logprob| f64::from(*logprob));
            self.logprob_sum += logprobs.sum::<f64>();
        }
        if rollout.solved.is_none() {
            funnel.num_failed_infrastructure += 1;
            return;
        }
        self.num_graded += 1;
        funnel.num_solved += usize::from(rollout.is_solved());
        let cheated = rollout.failure == Some(patchwright_core::FailureClass::Cheat);
        funnel.num_cheats += usize::from(cheated);
        self.num_turns += rollout.num_turns();
        self.num_format_errors += rollout.trajectory.num_format_errors();
        match rollout.status {
            Status::Submitted => self.num_submitted += 1,
            Status::TurnLimit => funnel.num_turn_limit += 1,
            Status::ContextLimit => funnel.num_context_limit += 1,
            Status::FormatLimit => funnel.num_format_limit += 1,
            Status::Failed => {}
        }
    }

    /// `part` of the graded rollouts, 0 without any.
    pub fn per_graded(&self, part: usize) -> f64 {
        part as f64 / self.num_graded.max(1) as f64
    }

    /// Mean over sampled tokens of minus their log-probability.
    pub fn entropy(&self) -> f64 {
        0.0 - self.logprob_sum / self.num_sampled_tokens.max(1) as f64
    }

    /// An iteration's metrics, as far as rollouts decide them.
    pub fn metrics(&self, stage: &str, iteration: usize) -> IterationMetrics {
        IterationMetrics {
            stage: stage.to_owned(),
            iteration,
            funnel: self.funnel,
            solve_rate: self.per_graded(self.funnel.num_solved),
            num_turns_mean: self.per_graded(self.num_turns),
            format_error_rate: self.num_format_errors as f64 / self.num_turns.max(1) as f64,
            entropy: self.entropy(),
            num_sampled_tokens: self.num_sampled_tokens,
            ..IterationMetrics::default()
        }
    }
}
