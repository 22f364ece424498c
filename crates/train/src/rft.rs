//! Rejection-sampling fine-tuning (arXiv 2508.03501, section 4.2): sample several rollouts of each
//! task, keep what the hidden tests accept, fine-tune on it once.

use std::sync::Arc;
use std::time::Instant;

use patchwright_algo::schedule::learning_rate;
use patchwright_algo::supervised::{CrossEntropy, rft_samples};
use patchwright_core::{Objective, RolloutGroup, TrainingSample, stream};
use rand::seq::SliceRandom;

use crate::agreement;
use crate::environment::Task;
use crate::error::TrainError;
use crate::events::RunEvent;
use crate::journal::{Record, RolloutRecord};
use crate::learn::{LearnPlan, Learned, VersionedSample, learn};
use crate::metrics::IterationMetrics;
use crate::rollout_engine::BatchSpec;
use crate::run::{RolloutTotals, Run, group_record, into_groups, sibling_jobs};

/// Runs the stage: one iteration, one new policy version.
///
/// # Errors
/// [`TrainError`] of rollouts, training or the run directory.
pub fn rft(run: &mut Run, stage: &str) -> Result<(), TrainError> {
    let recipe = run.recipe.rft.clone();
    let sandboxes = run.world.environment.stats().num_sandboxes;
    let tasks = choose_tasks(&run.world.train, recipe.num_tasks, run.recipe.run.seed);

    let rollout_start = Instant::now();
    let groups = collect(run, stage, &tasks)?;
    let rollout_seconds = rollout_start.elapsed().as_secs_f64();

    let (samples, num_trained) = keep_successes(run, stage, &groups)?;
    let totals = RolloutTotals::of(groups.iter().flat_map(|group| &group.rollouts));
    let mut metrics = totals.metrics(stage, 0);
    metrics.reward_mean = metrics.solve_rate;
    metrics.funnel.num_groups = groups.len();
    metrics.funnel.num_trained = num_trained;
    metrics.funnel.num_dropped_rollouts =
        totals.funnel.num_rollouts - totals.funnel.num_failed_infrastructure - num_trained;

    let train_start = Instant::now();
    let learned = fine_tune(run, stage, &samples)?;
    // With a demonstration the tokens were sampled after another prompt than they are trained on.
    if !recipe.one_shot_demonstration {
        agreement::check(run, stage, 0, learned.logprob_difference_max)?;
    }
    metrics.policy_version = run.world.trainer.publish()?;
    metrics.rollout_seconds = rollout_seconds;
    metrics.train_seconds = train_start.elapsed().as_secs_f64();
    add_learned(&mut metrics, &learned);
    if samples.is_empty() {
        run.notice(stage, "no rollout was solved: RFT changes nothing".to_owned())?;
    }
    run.stage_versions.insert(stage.to_owned(), metrics.policy_version);
    let sandboxes = run.world.environment.stats().num_sandboxes - sandboxes;
    run.finish_iteration::<()>(metrics, true, &[], sandboxes)
}

/// The first `num_tasks` of the train set in a seeded order; 0 means all.
fn choose_tasks(train: &[Arc<Task>], num_tasks: usize, seed: u64) -> Vec<Arc<Task>> {
    let mut tasks = train.to_vec();
    tasks.shuffle(&mut stream(seed, &["rft", "tasks"]));
    if num_tasks > 0 {
        tasks.truncate(num_tasks);
    }
    tasks
}

fn collect(
    run: &mut Run,
    stage: &str,
    tasks: &[Arc<Task>],
) -> Result<Vec<RolloutGroup>, TrainError> {
    let recipe = &run.recipe.rft;
    let num_siblings = recipe.rollouts_per_task;
    let spec = BatchSpec {
        stage: stage.to_owned(),
        iteration: 0,
        part: String::new(),
        policy_version: run.world.trainer.policy_version(),
        max_turns: recipe.max_turns,
        context_tokens: recipe.context_tokens,
        temperature: run.recipe.agent.temperature,
        demonstration: recipe.one_shot_demonstration,
    };
    let jobs = sibling_jobs(tasks, num_siblings);
    run.tell(&RunEvent::RolloutsStarted {
        stage: stage.to_owned(),
        iteration: 0,
        num_rollouts: jobs.len(),
    });
    Ok(into_groups(run.rollout_engine().run(&spec, &jobs)?, num_siblings))
}

/// Journals all rollouts and makes samples of the successes, at most
/// `max_successes_per_task` of a task. Also tells how many successes these are.
fn keep_successes(
    run: &mut Run,
    stage: &str,
    groups: &[RolloutGroup],
) -> Result<(Vec<VersionedSample>, usize), TrainError> {
    let most = match run.recipe.rft.max_successes_per_task {
        0 => usize::MAX,
        most => most,
    };
    let mask_format_errors = run.recipe.rft.mask_format_errors;
    let (mut samples, mut num_successes) = (Vec::new(), 0);
    for group in groups {
        let successes = group.rollouts.iter().map(|rollout| {
            let samples = rft_samples(rollout, mask_format_errors).into_iter();
            let policy_version = rollout.policy_version;
            samples.map(|sample| VersionedSample { sample, policy_version }).collect::<Vec<_>>()
        });
        for success in successes.filter(|samples| !samples.is_empty()).take(most) {
            samples.extend(success);
            num_successes += 1;
        }
        for rollout in &group.rollouts {
            let readable = rollout.sibling == 0 || rollout.is_solved();
            let record = RolloutRecord::new(stage, 0, rollout, readable);
            run.journal.append(&Record::Rollout(record))?;
        }
        run.record_group(group_record(stage, 0, group))?;
    }
    Ok((samples, num_successes))
}

fn fine_tune(
    run: &mut Run,
    stage: &str,
    samples: &[VersionedSample],
) -> Result<Learned, TrainError> {
    let recipe = &run.recipe.rft;
    let steps_per_epoch = samples.len().div_ceil(recipe.batch_size);
    let num_steps = steps_per_epoch * recipe.epochs;
    run.world.trainer.reset_optimizer();
    let plan = LearnPlan {
        stage,
        iteration: 0,
        steps_per_epoch,
        epochs: recipe.epochs,
        seed: run.recipe.run.seed,
        objective: &|batch: &[TrainingSample]| -> Box<dyn Objective> {
            Box::new(CrossEntropy::of_batch(batch))
        },
        adam: &|step| {
            let warmup = recipe.warmup_steps;
            recipe.adam(learning_rate(recipe.schedule, recipe.lr, step, num_steps, warmup))
        },
        observer: run.observer,
        cancel: run.cancel,
    };
    learn(run.world.trainer.as_mut(), samples, &plan)
}

/// Copies what learning did into an iteration's metrics.
pub(crate) fn add_learned(metrics: &mut IterationMetrics, learned: &Learned) {
    metrics.loss = learned.loss;
    metrics.grad_norm = learned.grad_norm;
    metrics.lr = learned.lr;
    metrics.clipped_fraction = learned.clipped_fraction;
    metrics.num_optimizer_steps = learned.num_steps;
    metrics.num_trained_tokens = learned.num_tokens;
    metrics.logprob_difference_max = learned.logprob_difference_max.unwrap_or(0.0);
    metrics.agreement = learned.agreement;
}
