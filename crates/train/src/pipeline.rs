//! The whole run: which stages, in which order, and how it goes on after an interruption.
//!
//! ```text
//! eval-base ► rft ► eval-rft ► rl-1 ► eval-rl-1 ► (refresh pool) ► rl-2 ► eval-rl-2 ► report
//! ```

use std::sync::Arc;
use std::time::Instant;

use patchwright_core::{PolicyVersion, TrainerError};

use crate::environment::Task;
use crate::error::TrainError;
use crate::evaluate::evaluate;
use crate::events::{CancelToken, Observer, RunEvent, StageKind, StagePlan};
use crate::history::SolveHistory;
use crate::journal::{Journal, Journaled, Record, SCHEMA_VERSION, read_journal};
use crate::pool::refresh;
use crate::recipe::{Recipe, RlStageRecipe};
use crate::report::{Report, peak_memory_bytes};
use crate::rft::rft;
use crate::rl::{Collected, rl_stage};
use crate::run::{Run, World};
use crate::run_dir::RunDir;

/// Name of what comes before the first stage: opening the policy, making the task sets.
pub const SETUP: &str = "setup";

/// Stands for the place behind the last stage.
const END: &str = "end";

/// The stages of a recipe in order. Numbers of rollouts are what the recipe asks for; a small
/// task set may give fewer. An evaluation of all sets runs `num_evaluation_rollouts`.
pub fn plan(recipe: &Recipe, num_evaluation_rollouts: usize) -> Vec<StagePlan> {
    let stage = |name: String, kind, num_rollouts, num_iterations| StagePlan {
        name,
        kind,
        num_rollouts,
        num_iterations,
    };
    let evaluation = |policy: &str| {
        stage(format!("eval-{policy}"), StageKind::Evaluation, num_evaluation_rollouts, 1)
    };
    let mut stages = vec![evaluation("base")];
    if recipe.rft.enabled {
        let num_rollouts = recipe.rft.num_tasks * recipe.rft.rollouts_per_task;
        stages.push(stage("rft".to_owned(), StageKind::Rft, num_rollouts, 1));
        stages.push(evaluation("rft"));
    }
    for rl in &recipe.rl {
        let num_rollouts = rl.iterations * rl.problems_per_iteration * rl.group_size;
        stages.push(stage(rl.name.clone(), StageKind::Rl, num_rollouts, rl.iterations));
        stages.push(evaluation(&rl.name));
    }
    stages
}

/// Starts a run in a new directory and brings it to its end. `setup_seconds` is the wall clock of
/// making `world`.
///
/// # Errors
/// [`TrainError`]; [`TrainError::Interrupted`] when it was asked to stop. Whatever was finished
/// is kept, and [`resume`] goes on.
pub fn start(
    recipe: &Recipe,
    dir: RunDir,
    mut world: World,
    setup_seconds: f64,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Report, TrainError> {
    dir.save_checkpoint::<()>(world.trainer.as_mut(), &[])?;
    let version = world.trainer.policy_version();
    let header = Record::Header {
        schema_version: SCHEMA_VERSION,
        program_version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: recipe.run.name.clone(),
        seed: recipe.run.seed,
    };
    let journal = Journal::create(&dir.journal(), &header)?;
    let run = new_run(recipe.clone(), dir, journal, world, observer, cancel);
    let mut pipeline =
        Pipeline { run, place: Place { version, ..Place::default() }, base_version: version };
    pipeline.stage_finished(SETUP, setup_seconds)?;
    pipeline.run()
}

/// Goes on with an interrupted run from its last finished iteration, bit for bit as if it had not
/// been interrupted.
///
/// # Errors
/// [`TrainError::Finished`] when there is nothing left to do, else as [`start`].
pub fn resume(
    recipe: Recipe,
    dir: RunDir,
    world: World,
    observer: &dyn Observer,
    cancel: &CancelToken,
) -> Result<Report, TrainError> {
    let (journal, journaled) = Journal::resume(&dir.journal())?;
    let stages = stage_names(&recipe);
    refuse_finished(&dir, &journaled)?;
    let Some(base_version) = base_version(&journaled) else {
        return Err(TrainError::setup(
            dir.path().display().to_string(),
            "the run was stopped before it began: remove the directory and start anew",
        ));
    };
    let place = find_place(&recipe, &dir, &journaled, &stages, base_version);
    let mut run = new_run(recipe, dir, journal, world, observer, cancel);
    let version = place.version;
    run.world.trainer.load(&run.dir.checkpoint(version))?;
    if run.world.trainer.policy_version() != version {
        return Err(TrainError::LostUpdates {
            expected: version,
            found: run.world.trainer.policy_version(),
        });
    }
    let stage = stages.get(place.stage).map_or(END, String::as_str).to_owned();
    run.journal.append(&Record::Resumed {
        stage: stage.clone(),
        iteration: place.iteration,
        policy_version: version,
    })?;
    run.journal.sync()?;
    recall(&mut run, &stages)?;
    run.tell(&RunEvent::Resumed {
        stage,
        iteration: place.iteration,
        policy_version: version,
        num_journal_bytes_cut: journaled.num_bytes_cut,
    });
    Pipeline { run, place, base_version }.run()
}

/// The weights that the run began with.
fn base_version(journaled: &Journaled) -> Option<PolicyVersion> {
    journaled.records.iter().find_map(|record| match record {
        Record::StageFinished { stage, policy_version, .. } if stage == SETUP => {
            Some(*policy_version)
        }
        _ => None,
    })
}

/// Refuses a run that is finished, before anything is opened for it.
///
/// # Errors
/// [`TrainError::Finished`], or when the journal cannot be read.
pub fn check_unfinished(dir: &RunDir) -> Result<(), TrainError> {
    refuse_finished(dir, &read_journal(&dir.journal())?)
}

fn refuse_finished(dir: &RunDir, journaled: &Journaled) -> Result<(), TrainError> {
    if journaled.records.iter().any(|record| matches!(record, Record::RunFinished { .. })) {
        return Err(TrainError::Finished { dir: dir.path().to_owned() });
    }
    Ok(())
}

fn new_run<'a>(
    recipe: Recipe,
    dir: RunDir,
    journal: Journal,
    world: World,
    observer: &'a dyn Observer,
    cancel: &'a CancelToken,
) -> Run<'a> {
    Run {
        recipe,
        dir,
        journal,
        world,
        history: SolveHistory::default(),
        stage_versions: std::collections::BTreeMap::new(),
        observer,
        cancel,
    }
}

fn stage_names(recipe: &Recipe) -> Vec<String> {
    plan(recipe, 0).into_iter().map(|stage| stage.name).collect()
}

/// Where a run goes on, and with which weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Place {
    /// Index of the stage in the plan.
    stage: usize,
    /// Its first iteration that is to be run.
    iteration: usize,
    /// The weights.
    version: PolicyVersion,
}

/// The place behind the last finished iteration whose checkpoint is there, and behind the
/// evaluations that were finished since.
fn find_place(
    recipe: &Recipe,
    dir: &RunDir,
    journaled: &Journaled,
    stages: &[String],
    base_version: PolicyVersion,
) -> Place {
    let plans = plan(recipe, 0);
    let index = |name: &str| stages.iter().position(|stage| stage == name);
    let mut place = Place { version: base_version, ..Place::default() };
    for record in journaled.effective(stages) {
        match record {
            Record::Iteration { metrics, checkpoint: true, .. } => {
                let Some(stage) = index(&metrics.stage) else { continue };
                if dir.checkpoint(metrics.policy_version).is_dir() {
                    let iteration = metrics.iteration + 1;
                    let version = metrics.policy_version;
                    place = if iteration < plans[stage].num_iterations {
                        Place { stage, iteration, version }
                    } else {
                        Place { stage: stage + 1, iteration: 0, version }
                    };
                }
            }
            Record::StageFinished { stage, policy_version, .. } => {
                let evaluated = index(stage) == Some(place.stage) && place.iteration == 0;
                if evaluated && *policy_version == place.version {
                    place.stage += 1;
                }
            }
            _ => {}
        }
    }
    place
}

/// Restores what earlier stages left in memory from what counts of the journal, and writes
/// `metrics.jsonl` anew.
fn recall(run: &mut Run, stages: &[String]) -> Result<(), TrainError> {
    let journaled = read_journal(&run.dir.journal())?;
    let mut lines = String::new();
    for record in journaled.effective(stages) {
        match record {
            Record::Group(group) => run.history.add(group),
            Record::Iteration { metrics, .. } => {
                let line = serde_json::to_string(metrics)
                    .map_err(|error| TrainError::setup("metrics.jsonl", error.to_string()))?;
                lines.push_str(&line);
                lines.push('\n');
                run.stage_versions.insert(metrics.stage.clone(), metrics.policy_version);
            }
            _ => {}
        }
    }
    let path = run.dir.metrics();
    std::fs::write(&path, lines).map_err(TrainError::io(&path))
}

/// A run and where it stands.
struct Pipeline<'a> {
    run: Run<'a>,
    place: Place,
    base_version: PolicyVersion,
}

impl Pipeline<'_> {
    fn run(mut self) -> Result<Report, TrainError> {
        let start = Instant::now();
        let stages = plan(&self.run.recipe, num_evaluation_rollouts(&self.run));
        self.run.tell(&RunEvent::RunStarted {
            dir: self.run.dir.path().to_owned(),
            recipe: self.run.recipe.run.name.clone(),
            seed: self.run.recipe.run.seed,
            stages: stages.clone(),
        });
        if let Some(rung) = self.run.world.environment.limits_rung() {
            let rung = rung.to_owned();
            self.run.journal.append(&Record::SandboxLimits { rung })?;
        }
        let first = self.place;
        for (index, stage) in stages.iter().enumerate().skip(first.stage) {
            let iteration = if index == first.stage { first.iteration } else { 0 };
            let stage_start = Instant::now();
            let result = self.stage(stage, iteration);
            let wall_seconds = stage_start.elapsed().as_secs_f64();
            if let Err(error) = result {
                return Err(self.stopped(stage, error, wall_seconds));
            }
            self.stage_finished(&stage.name, wall_seconds)?;
        }
        self.check_updates()?;
        let policy_version = self.run.world.trainer.policy_version();
        self.run.journal.append(&Record::RunFinished { policy_version })?;
        self.run.journal.sync()?;
        let report = Report::from_journal(&self.run.dir.journal(), &stage_names(&self.run.recipe))?;
        report.write(&self.run.dir.report())?;
        self.run.tell(&RunEvent::RunFinished { wall_seconds: start.elapsed().as_secs_f64() });
        Ok(report)
    }

    fn stage(&mut self, plan: &StagePlan, first_iteration: usize) -> Result<(), TrainError> {
        let name = plan.name.as_str();
        match plan.kind {
            StageKind::Setup => Ok(()),
            StageKind::Evaluation => {
                let sets = &self.run.world.evaluation_sets;
                let num_tasks = sets.iter().map(|(_, tasks)| tasks.len()).sum();
                self.begin(plan, 0, num_tasks, plan.num_rollouts)?;
                let policy = name.strip_prefix("eval-").unwrap_or(name).to_owned();
                evaluate(&mut self.run, name, &policy).map(drop)
            }
            StageKind::Rft => {
                let recipe = &self.run.recipe.rft;
                let available = self.run.world.train.len();
                let num_tasks = match recipe.num_tasks {
                    0 => available,
                    wanted => wanted.min(available),
                };
                self.begin(plan, 0, num_tasks, num_tasks * recipe.rollouts_per_task)?;
                rft(&mut self.run, name)
            }
            StageKind::Rl => {
                let recipe = self.run.recipe.clone();
                let Some(index) = recipe.rl.iter().position(|stage| stage.name == name) else {
                    return Err(TrainError::setup(name, "no such stage in the recipe"));
                };
                self.rl(plan, &recipe, index, first_iteration)
            }
        }
    }

    fn rl(
        &mut self,
        plan: &StagePlan,
        recipe: &Recipe,
        index: usize,
        first_iteration: usize,
    ) -> Result<(), TrainError> {
        let stage = &recipe.rl[index];
        let pool = self.pool(recipe, index)?;
        let per_iteration = stage.problems_per_iteration.min(pool.len()) * stage.group_size;
        let left = stage.iterations - first_iteration;
        self.begin(plan, first_iteration, pool.len(), left * per_iteration)?;
        let version = self.run.world.trainer.policy_version();
        let pending: Vec<Collected> =
            if first_iteration > 0 { self.run.dir.pending(version)? } else { Vec::new() };
        rl_stage(&mut self.run, stage, &pool, first_iteration, pending)
    }

    /// The stage's pool: the train set, or what a refresh leaves of it.
    fn pool(&mut self, recipe: &Recipe, index: usize) -> Result<Vec<Arc<Task>>, TrainError> {
        let stage: &RlStageRecipe = &recipe.rl[index];
        let train = self.run.world.train.clone();
        if train.is_empty() {
            return Err(TrainError::setup("tasks.train", "the train set is empty"));
        }
        if !stage.refresh_pool {
            return Ok(train);
        }
        let mut earlier: Vec<&str> = recipe.rl[..index].iter().map(|rl| rl.name.as_str()).collect();
        if earlier.is_empty() {
            earlier.push("rft");
        }
        let (pool, counts) = refresh(&train, &self.run.history, &earlier, stage);
        let text = format!(
            "{}: of {} tasks {} are solved too often, {} were never solved, {} stay",
            stage.name,
            train.len(),
            counts.num_too_easy,
            counts.num_never_solved,
            pool.len()
        );
        if pool.is_empty() {
            self.run.notice(&stage.name, format!("{text}; the pool is left as it was"))?;
            return Ok(train);
        }
        self.run.notice(&stage.name, text)?;
        Ok(pool)
    }

    fn begin(
        &mut self,
        plan: &StagePlan,
        first_iteration: usize,
        num_tasks: usize,
        num_rollouts: usize,
    ) -> Result<(), TrainError> {
        if first_iteration == 0 {
            let stage = plan.name.clone();
            self.run.journal.append(&Record::StageStarted { stage, num_tasks })?;
        }
        let plan = StagePlan { num_rollouts, ..plan.clone() };
        self.run.tell(&RunEvent::StageStarted { plan, first_iteration });
        Ok(())
    }

    fn stage_finished(&mut self, stage: &str, wall_seconds: f64) -> Result<(), TrainError> {
        self.run.journal.append(&Record::StageFinished {
            stage: stage.to_owned(),
            policy_version: self.run.world.trainer.policy_version(),
            wall_seconds,
            peak_memory_bytes: peak_memory_bytes(),
        })?;
        self.run.journal.sync()?;
        self.run.tell(&RunEvent::StageFinished { stage: stage.to_owned(), wall_seconds });
        Ok(())
    }

    /// Journals why a run stopped. The error itself is what the caller gets, also when the journal
    /// takes no more.
    fn stopped(&mut self, plan: &StagePlan, error: TrainError, wall_seconds: f64) -> TrainError {
        let stage = &plan.name;
        let iteration = self.next_iteration(stage);
        // An engine whose request was ended fails in its own words.
        let is_ended = matches!(&error, TrainError::Trainer(TrainerError::Engine(_)));
        let error =
            if is_ended && self.run.cancel.is_cancelled() { TrainError::Cancelled } else { error };
        let reason = match &error {
            TrainError::Cancelled => "cancelled".to_owned(),
            error => error.to_string(),
        };
        let record = Record::Interrupted { stage: stage.clone(), iteration, reason, wall_seconds };
        let journaled = self.run.journal.append(&record).and_then(|()| self.run.journal.sync());
        match (error, journaled) {
            (TrainError::Cancelled, Ok(())) => {
                self.run.tell(&RunEvent::Interrupted { stage: stage.clone(), iteration });
                TrainError::Interrupted { dir: self.run.dir.path().to_owned() }
            }
            (TrainError::Cancelled, Err(error)) => error.into(),
            (error, _) => error,
        }
    }

    /// The first iteration of a stage that the journal does not have.
    fn next_iteration(&self, stage: &str) -> usize {
        let Ok(journaled) = read_journal(&self.run.dir.journal()) else {
            return 0;
        };
        let names = stage_names(&self.run.recipe);
        let finished = journaled.effective(&names).into_iter().filter_map(|record| match record {
            Record::Iteration { metrics, .. } if metrics.stage == stage => Some(metrics.iteration),
            _ => None,
        });
        finished.max().map_or(0, |last| last + 1)
    }

    /// Every finished iteration made exactly one version: skipped or repeated work shows here.
    fn check_updates(&self) -> Result<(), TrainError> {
        let recipe = &self.run.recipe;
        let rft = usize::from(recipe.rft.enabled);
        let expected = rft + recipe.rl.iter().map(|stage| stage.iterations).sum::<usize>();
        let expected = PolicyVersion(self.base_version.0 + expected as u64);
        let found = self.run.world.trainer.policy_version();
        if found == expected { Ok(()) } else { Err(TrainError::LostUpdates { expected, found }) }
    }
}

fn num_evaluation_rollouts(run: &Run) -> usize {
    let eval = &run.recipe.eval;
    let sets = run.world.evaluation_sets.iter();
    sets.map(|(name, tasks)| eval.runs_of(name) * tasks.len()).sum()
}

#[cfg(test)]
mod tests;
