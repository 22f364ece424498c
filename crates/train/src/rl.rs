//! Reinforcement learning (arXiv 2508.03501, section 4.3):
//!
//! ```text
//! for each iteration:
//!     draw problems from the pool
//!     roll out group_size siblings of each          collect
//!     reward, advantage, drop groups that agree     learn
//!     optimizer steps on the clipped surrogate
//!     publish the weights as the next version       publish
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use patchwright_algo::batch::num_steps;
use patchwright_algo::dapo::Dapo;
use patchwright_algo::filter::{DropReason, ScoredGroup, rl_samples, score_group};
use patchwright_algo::reward::Reward;
use patchwright_algo::schedule::learning_rate;
use patchwright_core::{Objective, PolicyVersion, RolloutGroup, TrainingSample};
use serde::{Deserialize, Serialize};

use crate::agreement;
use crate::environment::{Environment, Task};
use crate::error::TrainError;
use crate::events::{Observer, RunEvent};
use crate::journal::{Record, RolloutRecord};
use crate::learn::{LearnPlan, Learned, VersionedSample, learn};
use crate::metrics::IterationMetrics;
use crate::pool::draw;
use crate::recipe::{Recipe, RlStageRecipe};
use crate::rft::add_learned;
use crate::rollout_engine::{BatchSpec, RolloutEngine};
use crate::run::{RolloutTotals, Run, group_record, into_groups, sibling_jobs};
use crate::scheduler::{self, Learner};

/// The rollouts of an iteration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Collected {
    /// The groups, in the order of the draw.
    pub groups: Vec<RolloutGroup>,
    /// Wall clock, in seconds.
    pub rollout_seconds: f64,
    /// Sandboxes that were made.
    pub num_sandboxes: u64,
}

/// Runs the iterations of a stage from `first_iteration` on. `pending` are batches that an
/// interrupted run had collected ahead.
///
/// # Errors
/// [`TrainError`] of rollouts, training or the run directory.
pub fn rl_stage(
    run: &mut Run,
    stage: &RlStageRecipe,
    pool: &[Arc<Task>],
    first_iteration: usize,
    pending: Vec<Collected>,
) -> Result<(), TrainError> {
    if first_iteration == 0 {
        run.world.trainer.reset_optimizer();
    }
    let published = AtomicU64::new(run.world.trainer.policy_version().0);
    let environment = Arc::clone(&run.world.environment);
    let recipe = run.recipe.clone();
    let (observer, cancel) = (run.observer, run.cancel);
    let collector = Collector {
        engine: RolloutEngine {
            environment: environment.as_ref(),
            limits: &recipe.infrastructure,
            seed: recipe.run.seed,
            observer,
            cancel,
            keep: run.keep(),
        },
        recipe: &recipe,
        stage,
        pool,
        published: &published,
        environment: environment.as_ref(),
        observer,
    };
    let mut learner = RlLearner { run, stage, published: &published, finished: None };
    scheduler::run(
        first_iteration..stage.iterations,
        stage.max_staleness,
        pending,
        |iteration| collector.collect(iteration),
        &mut learner,
    )
}

/// Makes an iteration's groups.
struct Collector<'a> {
    engine: RolloutEngine<'a>,
    recipe: &'a Recipe,
    stage: &'a RlStageRecipe,
    pool: &'a [Arc<Task>],
    published: &'a AtomicU64,
    environment: &'a dyn Environment,
    observer: &'a dyn Observer,
}

impl Collector<'_> {
    fn collect(&self, iteration: usize) -> Result<Collected, TrainError> {
        let start = Instant::now();
        let sandboxes = self.environment.stats().num_sandboxes;
        let (stage, seed) = (self.stage, self.recipe.run.seed);
        let wanted = stage.problems_per_iteration;
        let (drawn, rest) = draw(self.pool, wanted, seed, &stage.name, iteration);
        let mut spare = rest.into_iter();
        let mut groups = self.roll_out(iteration, 0, &drawn)?;
        for round in 1..=stage.num_resample_rounds {
            let useful = groups.iter().filter(|group| score(group, stage).dropped.is_none());
            let missing = wanted.saturating_sub(useful.count());
            let tasks: Vec<Arc<Task>> = spare.by_ref().take(missing).collect();
            if tasks.is_empty() {
                break;
            }
            groups.extend(self.roll_out(iteration, round, &tasks)?);
        }
        Ok(Collected {
            groups,
            rollout_seconds: start.elapsed().as_secs_f64(),
            num_sandboxes: self.environment.stats().num_sandboxes - sandboxes,
        })
    }

    fn roll_out(
        &self,
        iteration: usize,
        round: usize,
        tasks: &[Arc<Task>],
    ) -> Result<Vec<RolloutGroup>, TrainError> {
        let stage = self.stage;
        let spec = BatchSpec {
            stage: stage.name.clone(),
            iteration,
            part: if round == 0 { String::new() } else { format!("round-{round}") },
            policy_version: PolicyVersion(self.published.load(Ordering::SeqCst)),
            max_turns: stage.max_turns,
            context_tokens: stage.context_tokens,
            temperature: self.recipe.agent.temperature,
            demonstration: false,
        };
        let jobs = sibling_jobs(tasks, stage.group_size);
        self.observer.event(&RunEvent::RolloutsStarted {
            stage: stage.name.clone(),
            iteration,
            num_rollouts: jobs.len(),
        });
        Ok(into_groups(self.engine.run(&spec, &jobs)?, stage.group_size))
    }
}

fn score(group: &RolloutGroup, stage: &RlStageRecipe) -> ScoredGroup {
    score_group(group, &stage.reward(), stage.drop_on, stage.advantage_delta)
}

/// Turns groups into new weights.
struct RlLearner<'r, 'a> {
    run: &'r mut Run<'a>,
    stage: &'r RlStageRecipe,
    published: &'r AtomicU64,
    /// Numbers of the iteration that was learned and is not yet published, and its sandboxes.
    finished: Option<(IterationMetrics, u64)>,
}

impl Learner<Collected> for RlLearner<'_, '_> {
    type Error = TrainError;

    fn learn(&mut self, iteration: usize, batch: Collected) -> Result<(), TrainError> {
        let start = Instant::now();
        let scored: Vec<ScoredGroup> =
            batch.groups.iter().map(|group| score(group, self.stage)).collect();
        let (samples, num_trained) = self.samples(&batch.groups, &scored)?;
        self.journal(iteration, &batch.groups, &scored)?;
        let mut metrics = metrics(&self.stage.name, iteration, &batch.groups, &scored);
        metrics.funnel.num_trained = num_trained;
        metrics.funnel.num_dropped_rollouts =
            metrics.funnel.num_rollouts - metrics.funnel.num_failed_infrastructure - num_trained;
        let trainer_version = self.run.world.trainer.policy_version();
        metrics.staleness = samples
            .iter()
            .map(|sample| trainer_version.0 - sample.policy_version.0)
            .max()
            .unwrap_or(0);
        let probed = self.probe(&samples)?;
        let learned = self.optimize(iteration, &samples)?;
        let difference = learned.logprob_difference_max.or(probed);
        agreement::check(self.run, &self.stage.name, iteration, difference)?;
        add_learned(&mut metrics, &learned);
        metrics.logprob_difference_max = difference.unwrap_or(0.0);
        metrics.rollout_seconds = batch.rollout_seconds;
        metrics.train_seconds = start.elapsed().as_secs_f64();
        self.finished = Some((metrics, batch.num_sandboxes));
        Ok(())
    }

    fn publish(
        &mut self,
        iteration: usize,
        waiting: &VecDeque<Collected>,
    ) -> Result<(), TrainError> {
        let Some((mut metrics, num_sandboxes)) = self.finished.take() else {
            return Ok(());
        };
        metrics.policy_version = self.run.world.trainer.publish()?;
        self.published.store(metrics.policy_version.0, Ordering::SeqCst);
        let last = iteration + 1 == self.stage.iterations;
        if last {
            self.run.stage_versions.insert(self.stage.name.clone(), metrics.policy_version);
        }
        let every = self.run.recipe.infrastructure.checkpoint_every;
        let checkpoint = last || (iteration + 1).is_multiple_of(every);
        let pending: Vec<&Collected> = waiting.iter().collect();
        self.run.finish_iteration(metrics, checkpoint, &pending, num_sandboxes)
    }
}

impl RlLearner<'_, '_> {
    /// All samples with an advantage, and of how many rollouts they are; refuses any that is older
    /// than the recipe allows.
    fn samples(
        &self,
        groups: &[RolloutGroup],
        scored: &[ScoredGroup],
    ) -> Result<(Vec<VersionedSample>, usize), TrainError> {
        let trainer = self.run.world.trainer.policy_version();
        let max_staleness = self.stage.max_staleness;
        let (mut samples, mut num_rollouts) = (Vec::new(), 0);
        for (group, scored) in groups.iter().zip(scored) {
            let Some(sampled) = group.rollouts.first().map(|rollout| rollout.policy_version) else {
                continue;
            };
            if sampled > trainer || sampled.0 + (max_staleness as u64) < trainer.0 {
                return Err(TrainError::Stale { sampled, trainer, max_staleness });
            }
            let of_group = rl_samples(group, scored);
            num_rollouts += of_group.len();
            let of_group = of_group.into_iter().flatten();
            samples
                .extend(of_group.map(|sample| VersionedSample { sample, policy_version: sampled }));
        }
        Ok((samples, num_rollouts))
    }

    fn journal(
        &mut self,
        iteration: usize,
        groups: &[RolloutGroup],
        scored: &[ScoredGroup],
    ) -> Result<(), TrainError> {
        for (group, scored) in groups.iter().zip(scored) {
            for (index, rollout) in group.rollouts.iter().enumerate() {
                let mut record =
                    RolloutRecord::new(&self.stage.name, iteration, rollout, index == 0);
                record.reward = scored.rewards[index];
                record.advantage = scored.advantages[index];
                self.run.journal.append(&Record::Rollout(record))?;
            }
            let mut record = group_record(&self.stage.name, iteration, group);
            record.dropped = scored.dropped;
            self.run.record_group(record)?;
        }
        Ok(())
    }

    /// Where no sample is of the trainer's own version, asks sampler and trainer about new tokens.
    fn probe(&mut self, samples: &[VersionedSample]) -> Result<Option<f32>, TrainError> {
        let version = self.run.world.trainer.policy_version();
        let Some(first) = samples.first().filter(|_| self.stage.max_staleness > 0) else {
            return Ok(None);
        };
        if samples.iter().any(|sample| sample.policy_version == version) {
            return Ok(None);
        }
        let seed = self.run.recipe.run.seed;
        let sampler = Arc::clone(&self.run.world.sampler);
        agreement::probe(sampler.as_ref(), self.run.world.trainer.as_mut(), &first.sample, seed)
    }

    fn optimize(
        &mut self,
        iteration: usize,
        samples: &[VersionedSample],
    ) -> Result<Learned, TrainError> {
        let stage = self.stage;
        let steps_per_epoch = num_steps(
            samples.len(),
            stage.batch_size,
            stage.min_optimizer_steps,
            stage.max_optimizer_steps,
        );
        let lr = learning_rate(
            stage.schedule,
            stage.lr,
            iteration,
            stage.iterations,
            stage.warmup_iterations,
        );
        let plan = LearnPlan {
            stage: &stage.name,
            iteration,
            steps_per_epoch,
            epochs: stage.epochs,
            seed: self.run.recipe.run.seed,
            objective: &|batch: &[TrainingSample]| -> Box<dyn Objective> {
                Box::new(Dapo::of_batch(stage.clip_low, stage.clip_high, batch))
            },
            adam: &|_| stage.adam(lr),
            observer: self.run.observer,
            cancel: self.run.cancel,
        };
        learn(self.run.world.trainer.as_mut(), samples, &plan)
    }
}

fn metrics(
    stage: &str,
    iteration: usize,
    groups: &[RolloutGroup],
    scored: &[ScoredGroup],
) -> IterationMetrics {
    let totals = RolloutTotals::of(groups.iter().flat_map(|group| &group.rollouts));
    let mut metrics = totals.metrics(stage, iteration);
    let rewards: Vec<f64> =
        scored.iter().flat_map(|s| &s.rewards).flatten().map(Reward::total).collect();
    metrics.reward_mean = rewards.iter().sum::<f64>() / rewards.len().max(1) as f64;
    let dropped = |reason| scored.iter().filter(|s| s.dropped == Some(reason)).count();
    metrics.funnel.num_groups = groups.len();
    metrics.funnel.num_groups_all_solved = dropped(DropReason::AllSolved);
    metrics.funnel.num_groups_all_failed = dropped(DropReason::AllFailed);
    metrics.funnel.num_groups_infrastructure = dropped(DropReason::Infrastructure);
    metrics
}
