//! The sentences of the progress, the same on a terminal and in a log.

#![expect(clippy::format_push_string, reason = "a few short lines a second at most")]

use std::time::Duration;

use patchwright_train::events::RunEvent;
use patchwright_train::metrics::{EvaluationResult, IterationMetrics};

use super::state::{Batch, Current, RunState, Work};
use crate::numbers::{about, count, duration, mean_sem, percent, percent_fine, significant};

/// The lines that an event leaves for good; most leave none.
pub fn lasting(event: &RunEvent) -> Vec<String> {
    match event {
        RunEvent::RunStarted { dir, recipe, seed, .. } => {
            vec![format!("Recipe {recipe}, seed {seed}, run directory {}", dir.display())]
        }
        RunEvent::Resumed { stage, iteration, policy_version, num_journal_bytes_cut } => {
            let mut line = format!(
                "Going on in {stage}, iteration {}, with policy version {policy_version}",
                iteration + 1
            );
            if *num_journal_bytes_cut > 0 {
                line += &format!(
                    " (a line that was cut off was dropped from the journal: {num_journal_bytes_cut} bytes)"
                );
            }
            vec![line]
        }
        RunEvent::IterationFinished(metrics) => vec![iteration(metrics)],
        RunEvent::EvaluationFinished(result) => vec![evaluation(result)],
        RunEvent::StageFinished { stage, wall_seconds } => {
            let wall = Duration::try_from_secs_f64(*wall_seconds).unwrap_or_default();
            vec![format!("{stage:<10} done in {}", duration(wall))]
        }
        RunEvent::Notice(text) => vec![text.clone()],
        RunEvent::Interrupted { stage, iteration } => {
            vec![format!("Stopped in {stage}, iteration {}", iteration + 1)]
        }
        RunEvent::RunFinished { wall_seconds } => {
            let wall = Duration::try_from_secs_f64(*wall_seconds).unwrap_or_default();
            vec![format!("Done in {}", duration(wall))]
        }
        RunEvent::StageStarted { .. }
        | RunEvent::RolloutsStarted { .. }
        | RunEvent::RolloutFinished(_)
        | RunEvent::OptimizerStep { .. }
        | RunEvent::Progress { .. } => Vec::new(),
    }
}

fn iteration(m: &IterationMetrics) -> String {
    let funnel = &m.funnel;
    // RFT keeps single rollouts, RL whole groups.
    let kept = if m.stage == "rft" {
        format!("trained on {} of {}", funnel.num_trained, funnel.num_rollouts)
    } else {
        let dropped = funnel.num_groups_all_solved
            + funnel.num_groups_all_failed
            + funnel.num_groups_infrastructure;
        format!("groups {}/{}", funnel.num_groups.saturating_sub(dropped), funnel.num_groups)
    };
    let mut parts = vec![
        format!("solved {}", percent_fine(m.solve_rate)),
        format!("reward {:.2}", m.reward_mean),
        format!("turns {:.1}", m.num_turns_mean),
        format!("entropy {:.2}", m.entropy),
        format!("grad {}", significant(m.grad_norm)),
        kept,
    ];
    if m.funnel.num_failed_infrastructure > 0 {
        parts.push(format!("infrastructure failures {}", m.funnel.num_failed_infrastructure));
    }
    let seconds = m.rollout_seconds + m.train_seconds;
    let wall = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    parts.push(duration(wall));
    format!("{:<10} {:>3}  {}", m.stage, m.iteration + 1, parts.join("  "))
}

fn evaluation(e: &EvaluationResult) -> String {
    // Of one run there is neither a standard error nor a Pass@k.
    let pass_at_1 =
        if e.num_runs > 1 { mean_sem(e.pass_at_1) } else { percent_fine(e.pass_at_1.mean) };
    let mut line = format!("{:<10} {}: Pass@1 {pass_at_1}", e.policy, e.task_set);
    if e.pass_k > 1 {
        line += &format!(", Pass@{} {}", e.pass_k, percent_fine(e.pass_at_10));
    }
    line += &format!(", {:.1} turns", e.mean_turns);
    if e.num_failed_infrastructure > 0 {
        line +=
            &format!(" ({} rollouts without a grade are left out)", e.num_failed_infrastructure);
    }
    line
}

/// Where the stage stands: `rl-1 12/30` and what it does.
pub fn place(current: &Current) -> String {
    let iterations = current.plan.num_iterations;
    let mut text = current.plan.name.clone();
    if iterations > 1 {
        text += &format!(" {}/{iterations}", current.iteration + 1);
    }
    text
}

/// The numbers of the moment.
pub fn status(current: &Current) -> String {
    match (current.training, &current.work) {
        (Some((step, steps)), _) => format!("training, step {step} of {steps}"),
        (None, Some(work)) if current.batch.num_rollouts == 0 => counted(work),
        (None, _) => rollouts(&current.batch).join(", "),
    }
}

fn counted(work: &Work) -> String {
    let number = |number: usize| count(number as f64);
    let (done, wanted) = (number(work.num_done), number(work.num_wanted));
    let mut text = format!("{}: {done} of {wanted} {}", work.part, work.unit);
    if let Some(rate) = work.per_second() {
        text += &format!(", {}/s", significant(rate));
    }
    if let Some(left) = work.time_left() {
        text += &format!(", about {} left of this", about(left));
    }
    text
}

/// How much longer the whole run takes, where that can be said.
pub fn time_left(state: &RunState, now: Duration) -> Option<String> {
    state.time_left(now).map(|left| format!("about {} left", about(left)))
}

fn rollouts(batch: &Batch) -> Vec<String> {
    if batch.num_rollouts == 0 {
        return vec!["preparing".into()];
    }
    let mut parts = vec![format!("{}/{} rollouts", batch.num_finished, batch.num_rollouts)];
    let graded = batch.num_finished - batch.num_failed;
    if graded > 0 {
        let part = batch.num_solved as f64 / graded as f64;
        parts.push(format!("{} solved ({})", batch.num_solved, percent(part)));
    }
    if batch.num_failed > 0 {
        parts.push(format!("{} failed in the infrastructure", batch.num_failed));
    }
    if let Some(rate) = batch.tokens_per_second() {
        parts.push(format!("{} tokens/s", count(rate)));
    }
    parts
}
