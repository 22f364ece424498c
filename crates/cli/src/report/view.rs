//! The page's words and numbers, ready for the template.

use std::time::Duration;

use askama::Template;
use patchwright_core::{FailureClass, RolloutStatus};
use patchwright_train::events::StageKind;
use patchwright_train::journal::RolloutRecord;
use patchwright_train::metrics::EvaluationResult;

use super::agreement::{self, AgreementRow};
use super::curves::{self, Figure};
use super::run::{Run, Stage};
use crate::numbers::{count, duration, mean_sem, percent_fine};

/// Characters of one text that are shown at most.
const MAX_TEXT: usize = 20_000;

/// The template's data.
#[derive(Template)]
#[template(path = "report.html")]
pub struct Page<'a> {
    run: &'a Run,
    /// The sentence on top: what training did to Pass@1.
    headline: Option<String>,
    facts: Vec<(&'static str, String)>,
    sets: Vec<ResultSet>,
    pass_at_1: Option<Figure>,
    curves: Vec<Figure>,
    funnels: Vec<FunnelRow>,
    agreement: Vec<AgreementRow>,
    stages: Vec<StageRow>,
    rollouts: Vec<Shown<'a>>,
}

/// A task set's rows of the headline table.
struct ResultSet {
    name: String,
    num_tasks: usize,
    num_runs: usize,
    pass_k: usize,
    rows: Vec<ResultRow>,
}

struct ResultRow {
    policy: String,
    pass_at_1: String,
    pass_at_k: String,
    turns: String,
    submitted: String,
}

struct FunnelRow {
    stage: String,
    num_tasks: String,
    rollouts: String,
    solved: String,
    /// Width of the bar of solved rollouts, in per cent.
    solved_percent: f64,
    groups: String,
    dropped_solved: String,
    dropped_failed: String,
    trained: String,
    /// Width of the bar of trained rollouts, in per cent.
    trained_percent: f64,
    failed: usize,
}

struct StageRow {
    name: String,
    wall: String,
    /// Width of its bar, in per cent of the longest stage.
    percent: f64,
    sampled: String,
    trained: String,
    sandboxes: String,
}

struct Shown<'a> {
    verdict: &'static str,
    solved: bool,
    what: String,
    record: &'a RolloutRecord,
    prompt: String,
    turns: Vec<(String, String)>,
    patch: Vec<(&'static str, String)>,
}

impl<'a> Page<'a> {
    /// Gathers what the template shows.
    pub fn new(run: &'a Run) -> Self {
        Self {
            run,
            headline: headline(&run.evaluations),
            facts: facts(run),
            sets: result_sets(&run.evaluations),
            pass_at_1: curves::pass_at_1(run),
            curves: curves::learning(run),
            funnels: run
                .stages
                .iter()
                .filter(|stage| matches!(stage.kind(), StageKind::Rft | StageKind::Rl))
                .map(FunnelRow::new)
                .collect(),
            agreement: agreement::rows(run),
            stages: stage_rows(run),
            rollouts: run.rollouts.iter().map(Shown::new).collect(),
        }
    }
}

/// The first and the last policy on the held-out set.
fn headline(evaluations: &[EvaluationResult]) -> Option<String> {
    let mut held_out = evaluations.iter().filter(|e| e.task_set == "held-out");
    let (first, last) = (held_out.next()?, held_out.next_back()?);
    Some(format!(
        "Held-out Pass@1 went from {} ({}) to {} ({}).",
        mean_sem(first.pass_at_1),
        first.policy,
        mean_sem(last.pass_at_1),
        last.policy
    ))
}

fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let rollouts: usize = run.stages.iter().map(|stage| stage.funnel.num_rollouts).sum::<usize>()
        + run.evaluations.iter().map(|e| e.num_tasks * e.num_runs).sum::<usize>();
    let sandboxes: u64 = run.stages.iter().map(|stage| stage.num_sandboxes).sum();
    let mut facts = vec![
        ("Wall clock", seconds(run.wall_seconds())),
        ("Rollouts", count(rollouts as f64)),
        ("Sandboxes", count(sandboxes as f64)),
    ];
    if let Some(bytes) = run.peak_memory_bytes() {
        facts.push(("Peak memory", format!("{} MiB", count(bytes as f64 / f64::from(1 << 20)))));
    }
    facts
}

fn seconds(value: f64) -> String {
    Duration::try_from_secs_f64(value).map_or_else(|_| "-".into(), duration)
}

fn result_sets(evaluations: &[EvaluationResult]) -> Vec<ResultSet> {
    let mut sets: Vec<ResultSet> = Vec::new();
    for e in evaluations {
        let known = sets.iter().position(|set| set.name == e.task_set);
        let index = known.unwrap_or_else(|| {
            sets.push(ResultSet {
                name: e.task_set.clone(),
                num_tasks: e.num_tasks,
                num_runs: e.num_runs,
                pass_k: e.pass_k,
                rows: Vec::new(),
            });
            sets.len() - 1
        });
        sets[index].rows.push(ResultRow {
            policy: e.policy.clone(),
            pass_at_1: mean_sem(e.pass_at_1),
            pass_at_k: percent_fine(e.pass_at_10),
            turns: format!("{:.1}", e.mean_turns),
            submitted: percent_fine(e.submit_rate),
        });
    }
    sets
}

impl FunnelRow {
    fn new(stage: &Stage) -> Self {
        let funnel = &stage.funnel;
        let part = |num: usize| 100.0 * num as f64 / funnel.num_rollouts.max(1) as f64;
        let number = |num: usize| count(num as f64);
        // RFT keeps single rollouts: its groups are not dropped as such.
        let group = |num: usize| {
            if stage.kind() == StageKind::Rl { number(num) } else { "–".to_owned() }
        };
        Self {
            stage: stage.name.clone(),
            num_tasks: number(stage.num_tasks),
            rollouts: number(funnel.num_rollouts),
            solved: number(funnel.num_solved),
            solved_percent: part(funnel.num_solved),
            groups: number(funnel.num_groups),
            dropped_solved: group(funnel.num_groups_all_solved),
            dropped_failed: group(funnel.num_groups_all_failed),
            trained: number(funnel.num_trained),
            trained_percent: part(funnel.num_trained),
            failed: funnel.num_failed_infrastructure,
        }
    }
}

fn stage_rows(run: &Run) -> Vec<StageRow> {
    let longest = run.stages.iter().map(|stage| stage.wall_seconds).fold(0.0, f64::max);
    let rate = |num: f64, seconds: f64| {
        // Absent is not zero.
        if num > 0.0 && seconds > 0.0 { count(num / seconds) } else { "–".to_owned() }
    };
    run.stages
        .iter()
        .map(|stage| StageRow {
            name: stage.name.clone(),
            wall: seconds(stage.wall_seconds),
            percent: if longest > 0.0 { 100.0 * stage.wall_seconds / longest } else { 0.0 },
            sampled: rate(stage.num_sampled_tokens as f64, stage.rollout_seconds),
            trained: rate(stage.num_trained_tokens as f64, stage.train_seconds),
            sandboxes: rate(stage.num_sandboxes as f64, stage.rollout_seconds),
        })
        .collect()
}

impl<'a> Shown<'a> {
    fn new(record: &'a RolloutRecord) -> Self {
        let place = if record.task_set.is_empty() {
            format!("{}, iteration {}", record.stage, record.iteration + 1)
        } else {
            let policy = record.stage.strip_prefix("eval-").unwrap_or(&record.stage);
            format!("{policy} on {}", record.task_set)
        };
        let mut what = vec![place, format!("{} turns", record.num_turns), ended(record).to_owned()];
        if let Some(reward) = &record.reward {
            what.push(format!("reward {:.2}", reward.total()));
        }
        if let Some(advantage) = record.advantage {
            what.push(format!("advantage {advantage:+.2}"));
        }
        Self {
            verdict: match record.solved {
                Some(true) => "solved",
                Some(false) => "not solved",
                None => "no grade",
            },
            solved: record.solved == Some(true),
            what: what.join(" · "),
            record,
            prompt: bounded(&record.prompt),
            turns: record
                .turns
                .iter()
                .map(|turn| (bounded(&turn.text), bounded(&turn.observation)))
                .collect(),
            patch: patch_lines(&bounded(&record.patch)),
        }
    }
}

/// How a rollout ended, in words.
fn ended(record: &RolloutRecord) -> &'static str {
    match (record.status, record.failure) {
        (_, Some(FailureClass::Cheat)) => "cheated: its patch forges results",
        (RolloutStatus::Submitted, _) => "submitted",
        (RolloutStatus::TurnLimit, _) => "turn limit",
        (RolloutStatus::ContextLimit, _) => "context limit",
        (RolloutStatus::FormatLimit, _) => "too many format errors",
        (RolloutStatus::Failed, Some(FailureClass::Sandbox)) => "sandbox failed",
        (RolloutStatus::Failed, Some(FailureClass::Grader)) => "grader failed",
        (RolloutStatus::Failed, Some(FailureClass::Engine)) => "engine failed",
        (RolloutStatus::Failed, Some(FailureClass::Agent)) => "agent's program failed",
        (RolloutStatus::Failed, _) => "failed",
    }
}

/// At most [`MAX_TEXT`] characters; what is left out is said.
fn bounded(text: &str) -> String {
    match text.char_indices().nth(MAX_TEXT) {
        None => text.to_owned(),
        Some((end, _)) => {
            format!("{}\n[{} bytes left out]", &text[..end], text.len() - end)
        }
    }
}

/// Each line of a diff with its CSS class.
fn patch_lines(patch: &str) -> Vec<(&'static str, String)> {
    let class = |line: &str| match line.as_bytes().first() {
        _ if line.starts_with("+++") || line.starts_with("---") => "meta",
        Some(b'+') => "add",
        Some(b'-') => "del",
        Some(b'@' | b'd' | b'i' | b'n' | b'o' | b'r') => "meta",
        _ => "",
    };
    patch.lines().map(|line| (class(line), line.to_owned())).collect()
}
