//! Evaluation: several independent runs over a task set.

use std::sync::Arc;
use std::time::Instant;

use patchwright_algo::pass_at_k::{mean_and_sem, pass_at_k};
use patchwright_core::Rollout;
use patchwright_remote::chat::BYTES_PER_TOKEN;

use crate::environment::Task;
use crate::error::TrainError;
use crate::events::RunEvent;
use crate::journal::{Record, RolloutRecord};
use crate::metrics::{EvaluationResult, MeanSem};
use crate::recipe::SamplerKind;
use crate::rollout_engine::{BatchSpec, Job};
use crate::run::{RolloutTotals, Run};

/// Measures the policy that the sampler serves on every evaluation set and journals the results.
/// `policy` names it: `base`, `rft`, `rl-1`, `rl-2`.
///
/// # Errors
/// As [`crate::rollout_engine::RolloutEngine::run`], or when the journal cannot be written.
pub fn evaluate(
    run: &mut Run,
    stage: &str,
    policy: &str,
) -> Result<Vec<EvaluationResult>, TrainError> {
    let mut results = Vec::new();
    for (set_name, tasks) in run.world.evaluation_sets.clone() {
        let num_runs = run.recipe.eval.runs_of(&set_name);
        results.push(evaluate_set(run, stage, policy, &set_name, &tasks, num_runs)?);
    }
    run.journal.sync()?;
    Ok(results)
}

fn evaluate_set(
    run: &mut Run,
    stage: &str,
    policy: &str,
    set_name: &str,
    tasks: &[Arc<Task>],
    num_runs: usize,
) -> Result<EvaluationResult, TrainError> {
    let start = Instant::now();
    let sandboxes = run.world.environment.stats().num_sandboxes;
    let policy_version = run.world.trainer.policy_version();
    let eval = &run.recipe.eval;
    let is_chat = run.recipe.sampler == SamplerKind::Openai;
    let scale = if is_chat { BYTES_PER_TOKEN } else { 1 };
    let pass_k = eval.pass_k;
    let spec = BatchSpec {
        stage: stage.to_owned(),
        iteration: 0,
        part: set_name.to_owned(),
        policy_version,
        max_turns: eval.max_turns,
        context_tokens: eval.context_tokens.saturating_mul(scale),
        temperature: eval.temperature,
        demonstration: false,
    };
    let jobs: Vec<Job> = (0..num_runs)
        .flat_map(|sibling| {
            tasks.iter().map(move |task| Job { task: Arc::clone(task), sibling: sibling as u32 })
        })
        .collect();
    run.tell(&RunEvent::RolloutsStarted {
        stage: stage.to_owned(),
        iteration: 0,
        num_rollouts: jobs.len(),
    });
    let rollouts = run.rollout_engine().run(&spec, &jobs)?;
    for (index, rollout) in rollouts.iter().enumerate() {
        let mut record = RolloutRecord::new(stage, 0, rollout, index < tasks.len());
        set_name.clone_into(&mut record.task_set);
        run.journal.append(&Record::Rollout(record))?;
    }
    let totals = RolloutTotals::of(rollouts.iter());
    let (pass_at_1, pass_at_k) = summarise(&rollouts, tasks.len(), pass_k);
    let result = EvaluationResult {
        policy: policy.to_owned(),
        policy_version,
        task_set: set_name.to_owned(),
        num_tasks: tasks.len(),
        num_runs,
        pass_at_1,
        pass_k,
        pass_at_10: pass_at_k,
        mean_turns: totals.per_graded(totals.num_turns),
        num_failed_infrastructure: totals.funnel.num_failed_infrastructure,
        entropy: totals.entropy(),
        submit_rate: totals.per_graded(totals.num_submitted),
        wall_seconds: start.elapsed().as_secs_f64(),
    };
    run.journal.append(&Record::Evaluation {
        result: result.clone(),
        num_sandboxes: run.world.environment.stats().num_sandboxes - sandboxes,
        num_sampled_tokens: totals.num_sampled_tokens,
    })?;
    run.tell(&RunEvent::EvaluationFinished(result.clone()));
    Ok(result)
}

/// Pass@1 with its SEM over runs, and mean Pass@k over tasks. `rollouts` are run by run, all tasks
/// in each. Rollouts without a grade have no part: neither a success nor a failure of the policy.
/// A task with fewer than `k` grades has no part in Pass@k.
pub fn summarise(rollouts: &[Rollout], num_tasks: usize, k: usize) -> (MeanSem, f64) {
    let rate = |run: &[Rollout]| {
        let graded = run.iter().filter(|rollout| rollout.solved.is_some()).count();
        let solved = run.iter().filter(|rollout| rollout.is_solved()).count();
        (graded > 0).then(|| solved as f64 / graded as f64)
    };
    let rates: Vec<f64> = rollouts.chunks(num_tasks.max(1)).filter_map(rate).collect();
    let (mean, sem) = mean_and_sem(&rates);
    let estimates: Vec<f64> = (0..num_tasks)
        .filter_map(|task| {
            let of_task = || rollouts.iter().skip(task).step_by(num_tasks);
            let graded = of_task().filter(|rollout| rollout.solved.is_some()).count();
            pass_at_k(graded, of_task().filter(|rollout| rollout.is_solved()).count(), k)
        })
        .collect();
    (MeanSem { mean, sem }, mean_and_sem(&estimates).0)
}

#[cfg(test)]
mod tests {
    use patchwright_core::{PolicyVersion, Rollout, RolloutStatus, Trajectory};

    use super::summarise;

    fn rollout(solved: Option<bool>) -> Rollout {
        Rollout {
            instance_id: String::new(),
            sibling: 0,
            attempt: 0,
            policy_version: PolicyVersion(0),
            status: RolloutStatus::Submitted,
            failure: None,
            failure_detail: None,
            solved,
            patch: String::new(),
            trajectory: Trajectory::default(),
            branches: Vec::new(),
        }
    }

    /// Two tasks, three runs: rates 1, 1/2, 0; task 0 solved in 2 of 3, task 1 in 1 of 3.
    #[test]
    fn by_hand() {
        let rollouts: Vec<Rollout> =
            [true, true, true, false, false, false].map(|solved| rollout(Some(solved))).into();
        let (one, two) = summarise(&rollouts, 2, 2);
        assert!((one.mean - 0.5).abs() < 1e-12);
        assert!((one.sem - 0.5 / 3f64.sqrt()).abs() < 1e-12);
        // pass@2 of 2/3 is 1 - C(1,2)/C(3,2) = 1, of 1/3 is 1 - C(2,2)/C(3,2) = 2/3
        assert!((two - 5.0 / 6.0).abs() < 1e-12);
    }

    #[test]
    fn faults_count_neither_way() {
        let rollouts: Vec<Rollout> =
            [Some(true), None, Some(true), Some(false)].map(rollout).into();
        let (one, two) = summarise(&rollouts, 2, 2);
        assert!((one.mean - 0.75).abs() < 1e-12);
        assert!((two - 1.0).abs() < 1e-12, "only task 0 has two grades");
        assert!(summarise(&[], 0, 1).0.mean.abs() < 1e-12);
    }
}
