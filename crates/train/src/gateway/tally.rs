//! The numbers of a gateway's episodes.

use std::collections::BTreeMap;

use patchwright_core::{FailureClass, PolicyVersion, Rollout, Trajectory};
use serde::{Deserialize, Serialize};

use crate::evaluate::summarise;
use crate::metrics::EvaluationResult;
use crate::run::RolloutTotals;

/// Episodes and their calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GatewayCounts {
    /// Episodes that have ended, retries included.
    pub num_episodes: usize,
    /// Of these solved.
    pub num_solved: usize,
    /// Of these without a grade: sandbox, grader, engine or agent failed.
    pub num_failed: usize,
    /// Of these left by their agents.
    pub num_agent_failed: usize,
    /// Calls of the model.
    pub num_calls: usize,
    /// Calls that went on with an earlier one, token by token.
    pub num_merged: usize,
    /// Trajectories that the calls make, one or more an episode.
    pub num_branches: usize,
    /// Tokens that the model drew.
    pub num_sampled_tokens: usize,
}

/// Adds episodes up.
#[derive(Debug, Default)]
pub(super) struct Tally {
    totals: RolloutTotals,
    counts: GatewayCounts,
    /// The last grade of each run of each task, by run and task; without tokens.
    grades: BTreeMap<(u32, usize), Rollout>,
    /// Episodes of each run of each task, failed ones too.
    attempts: BTreeMap<(u32, usize), u32>,
}

impl Tally {
    /// Adds an episode of the task of this number.
    pub fn add(&mut self, task: usize, rollout: &Rollout) {
        self.totals.add(rollout);
        *self.attempts.entry((rollout.sibling, task)).or_default() += 1;
        let counts = &mut self.counts;
        let num_branches = rollout.trajectories().filter(|t| !t.turns.is_empty()).count();
        counts.num_episodes += 1;
        counts.num_solved += usize::from(rollout.is_solved());
        counts.num_failed += usize::from(rollout.solved.is_none());
        counts.num_agent_failed += usize::from(rollout.failure == Some(FailureClass::Agent));
        counts.num_calls += rollout.num_turns();
        counts.num_merged += rollout.num_turns() - num_branches;
        counts.num_branches += num_branches;
        counts.num_sampled_tokens += rollout.num_sampled_tokens();
        if rollout.solved.is_some() {
            self.grades.insert((rollout.sibling, task), without_tokens(rollout));
        }
    }

    pub fn num_episodes(&self) -> usize {
        self.counts.num_episodes
    }

    /// Episodes of this run of this task so far.
    pub fn num_attempts(&self, task: usize, run: u32) -> u32 {
        self.attempts.get(&(run, task)).copied().unwrap_or(0)
    }

    pub fn is_graded(&self, task: usize, run: u32) -> bool {
        self.grades.contains_key(&(run, task))
    }

    /// Runs with a grade.
    pub fn num_graded(&self) -> usize {
        self.grades.len()
    }

    pub fn counts(&self) -> GatewayCounts {
        self.counts
    }

    /// The grades as an evaluation; runs without one have no part. Names and times are the
    /// caller's.
    pub fn result(&self, num_tasks: usize, num_runs: usize, pass_k: usize) -> EvaluationResult {
        let runs = (0..num_runs).flat_map(|run| (0..num_tasks).map(move |task| (run as u32, task)));
        let missing = Rollout { solved: None, ..placeholder() };
        let grid: Vec<Rollout> = runs
            .map(|place| self.grades.get(&place).cloned().unwrap_or_else(|| missing.clone()))
            .collect();
        let (pass_at_1, pass_at_10) = summarise(&grid, num_tasks, pass_k);
        let totals = &self.totals;
        EvaluationResult {
            policy: String::new(),
            policy_version: PolicyVersion(0),
            task_set: String::new(),
            num_tasks,
            num_runs,
            pass_at_1,
            pass_k,
            pass_at_10,
            mean_turns: totals.per_graded(totals.num_turns),
            num_failed_infrastructure: totals.funnel.num_failed_infrastructure,
            entropy: totals.entropy(),
            submit_rate: totals.per_graded(totals.num_submitted),
            wall_seconds: 0.0,
        }
    }
}

fn without_tokens(rollout: &Rollout) -> Rollout {
    Rollout { solved: rollout.solved, sibling: rollout.sibling, ..placeholder() }
}

fn placeholder() -> Rollout {
    Rollout {
        instance_id: String::new(),
        sibling: 0,
        attempt: 0,
        policy_version: PolicyVersion(0),
        status: patchwright_core::RolloutStatus::Submitted,
        failure: None,
        failure_detail: None,
        solved: None,
        patch: String::new(),
        trajectory: Trajectory::default(),
        branches: Vec::new(),
    }
}
