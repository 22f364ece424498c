//! What is known of a run while it goes: a pure machine from events and the clock to numbers.

use std::collections::BTreeMap;
use std::time::Duration;

use patchwright_train::events::{RunEvent, StageKind, StagePlan};

/// The stage in progress.
#[derive(Debug, Clone)]
pub struct Current {
    /// Its plan.
    pub plan: StagePlan,
    /// When it began.
    started: Duration,
    /// The iteration, from 0.
    pub iteration: usize,
    /// Rollouts of the iteration: asked for, ended, solved.
    pub batch: Batch,
    /// Rollouts of the stage that ended since this process began it.
    num_finished: usize,
    /// Rollouts that were left when this process began it.
    num_left_at_start: usize,
    /// The optimizer step in progress and how many there are, while it trains.
    pub training: Option<(usize, usize)>,
    /// Work that is not rollouts.
    pub work: Option<Work>,
}

/// Countable work that is not rollouts: a task set being made, pretraining.
#[derive(Debug, Clone)]
pub struct Work {
    /// What is being done.
    pub part: String,
    /// What is counted.
    pub unit: &'static str,
    /// Done so far.
    pub num_done: usize,
    /// At most.
    pub num_wanted: usize,
    /// When it began.
    started: Duration,
    /// When the last was done.
    last: Duration,
}

impl Work {
    /// Done in a second so far; `None` before anything is known.
    pub fn per_second(&self) -> Option<f64> {
        let seconds = self.last.saturating_sub(self.started).as_secs_f64();
        (self.num_done > 0 && seconds > 0.0).then(|| self.num_done as f64 / seconds)
    }

    /// How much longer it takes if it goes on as it did.
    pub fn time_left(&self) -> Option<Duration> {
        let left = self.num_wanted.saturating_sub(self.num_done) as f64;
        Duration::try_from_secs_f64(left / self.per_second()?).ok()
    }
}

/// The rollouts of one iteration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Batch {
    /// Asked for.
    pub num_rollouts: usize,
    /// Ended.
    pub num_finished: usize,
    /// Solved.
    pub num_solved: usize,
    /// Without a grade, because the infrastructure failed.
    pub num_failed: usize,
    /// Tokens that the sampler drew.
    num_tokens: usize,
    /// When they began.
    started: Duration,
    /// When the last one ended.
    last: Duration,
}

impl Batch {
    /// Tokens drawn in a second of this iteration so far; `None` before anything is known.
    pub fn tokens_per_second(&self) -> Option<f64> {
        let seconds = self.last.saturating_sub(self.started).as_secs_f64();
        (self.num_tokens > 0 && seconds > 0.0).then(|| self.num_tokens as f64 / seconds)
    }
}

/// Time spent and rollouts run in stages of one kind.
#[derive(Debug, Clone, Copy, Default)]
struct Pace {
    seconds: f64,
    num_rollouts: usize,
}

/// The run as seen from outside. Times are since the process began.
#[derive(Debug, Default)]
pub struct RunState {
    /// Whether there is a run directory that holds a run.
    pub has_run: bool,
    plans: Vec<StagePlan>,
    /// The stage in progress.
    pub current: Option<Current>,
    /// Finished stages of this process, by kind.
    paces: BTreeMap<&'static str, Pace>,
}

impl RunState {
    /// Takes note of an event at `now`.
    pub fn apply(&mut self, event: &RunEvent, now: Duration) {
        match event {
            RunEvent::RunStarted { stages, .. } => {
                self.has_run = true;
                self.plans.clone_from(stages);
            }
            RunEvent::StageStarted { plan, first_iteration } => {
                self.start(plan, *first_iteration, now);
            }
            RunEvent::RolloutsStarted { iteration, num_rollouts, .. } => {
                if let Some(current) = &mut self.current {
                    current.iteration = *iteration;
                    current.training = None;
                    current.batch = Batch {
                        num_rollouts: *num_rollouts,
                        started: now,
                        last: now,
                        ..Batch::default()
                    };
                }
            }
            RunEvent::RolloutFinished(rollout) => {
                if let Some(current) = &mut self.current {
                    current.num_finished += 1;
                    let batch = &mut current.batch;
                    batch.num_finished += 1;
                    batch.num_solved += usize::from(rollout.solved == Some(true));
                    batch.num_failed += usize::from(rollout.solved.is_none());
                    batch.num_tokens += rollout.num_sampled_tokens;
                    batch.last = now;
                }
            }
            RunEvent::OptimizerStep { step, num_steps, .. } => {
                if let Some(current) = &mut self.current {
                    current.training = Some((step + 1, *num_steps));
                }
            }
            RunEvent::Progress { part, unit, num_done, num_wanted } => {
                let Some(current) = &mut self.current else { return };
                if current.work.as_ref().is_none_or(|work| work.part != *part) {
                    current.work = Some(Work {
                        part: part.clone(),
                        unit,
                        num_done: 0,
                        num_wanted: *num_wanted,
                        started: now,
                        last: now,
                    });
                }
                if let Some(work) = &mut current.work
                    && *num_done > work.num_done
                {
                    (work.num_done, work.last) = (*num_done, now);
                }
            }
            RunEvent::StageFinished { .. } => self.finish(now),
            RunEvent::Resumed { .. }
            | RunEvent::IterationFinished(_)
            | RunEvent::EvaluationFinished(_)
            | RunEvent::Notice(_)
            | RunEvent::Interrupted { .. }
            | RunEvent::RunFinished { .. } => {}
        }
    }

    fn start(&mut self, plan: &StagePlan, first_iteration: usize, now: Duration) {
        if let Some(known) = self.plans.iter_mut().find(|known| known.name == plan.name) {
            known.clone_from(plan);
        }
        let num_iterations = plan.num_iterations.max(1);
        let left = num_iterations.saturating_sub(first_iteration);
        self.current = Some(Current {
            plan: plan.clone(),
            started: now,
            iteration: first_iteration,
            batch: Batch { started: now, last: now, ..Batch::default() },
            num_finished: 0,
            num_left_at_start: plan.num_rollouts * left / num_iterations,
            training: None,
            work: None,
        });
    }

    fn finish(&mut self, now: Duration) {
        if let Some(current) = self.current.take() {
            let pace = self.paces.entry(kind_name(current.plan.kind)).or_default();
            pace.seconds += now.saturating_sub(current.started).as_secs_f64();
            pace.num_rollouts += current.num_finished;
        }
    }

    /// How much longer the whole run takes, if it goes on as stages of the same kind did, or as
    /// the run did so far where there was none. `None` before ten rollouts ended.
    pub fn time_left(&self, now: Duration) -> Option<Duration> {
        let current = self.current.as_ref()?;
        let mut paces = self.paces.clone();
        let pace = paces.entry(kind_name(current.plan.kind)).or_default();
        pace.seconds += now.saturating_sub(current.started).as_secs_f64();
        pace.num_rollouts += current.num_finished;
        let rollout_paces = paces.iter().filter(|(kind, _)| **kind != "setup").map(|(_, p)| p);
        let (seconds, num) =
            rollout_paces.fold((0.0, 0), |(s, n), pace| (s + pace.seconds, n + pace.num_rollouts));
        if num < 10 {
            return None;
        }
        let seconds_each = |kind: StageKind| match paces.get(kind_name(kind)) {
            Some(pace) if pace.num_rollouts >= 10 => pace.seconds / pace.num_rollouts as f64,
            _ => seconds / num as f64,
        };
        let here = current.num_left_at_start.saturating_sub(current.num_finished) as f64
            * seconds_each(current.plan.kind);
        let later = self
            .plans
            .iter()
            .skip_while(|plan| plan.name != current.plan.name)
            .skip(1)
            .map(|plan| plan.num_rollouts as f64 * seconds_each(plan.kind));
        Duration::try_from_secs_f64(here + later.sum::<f64>()).ok()
    }
}

fn kind_name(kind: StageKind) -> &'static str {
    match kind {
        StageKind::Setup => "setup",
        StageKind::Evaluation => "evaluation",
        StageKind::Rft => "rft",
        StageKind::Rl => "rl",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::testing::{finished, plan};

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn started(state: &mut RunState, plan: &StagePlan, first_iteration: usize, now: Duration) {
        let event = RunEvent::StageStarted { plan: plan.clone(), first_iteration };
        state.apply(&event, now);
        state.apply(
            &RunEvent::RolloutsStarted {
                stage: plan.name.clone(),
                iteration: first_iteration,
                num_rollouts: plan.num_rollouts / plan.num_iterations,
            },
            now,
        );
    }

    #[test]
    fn time_left_counts_later_stages_at_the_pace_of_their_kind() {
        let stages = vec![
            plan("eval-base", StageKind::Evaluation, 20, 1),
            plan("rl-1", StageKind::Rl, 100, 10),
            plan("eval-rl-1", StageKind::Evaluation, 40, 1),
        ];
        let mut state = RunState::default();
        let event = RunEvent::RunStarted {
            dir: "runs/x".into(),
            recipe: "x".into(),
            seed: 0,
            stages: stages.clone(),
        };
        state.apply(&event, at(0));
        started(&mut state, &stages[0], 0, at(0));
        assert_eq!(state.time_left(at(1)), None, "nothing is known yet");
        for i in 1..=20 {
            state.apply(&finished("eval-base", 0, Some(true)), at(i));
        }
        // 1 s a rollout: 100 of RL at the only pace known, and 40 of evaluation.
        assert_eq!(state.time_left(at(20)), Some(at(140)));
        let event = RunEvent::StageFinished { stage: "eval-base".into(), wall_seconds: 20.0 };
        state.apply(&event, at(20));
        started(&mut state, &stages[1], 0, at(20));
        for i in 1..=20 {
            state.apply(&finished("rl-1", 0, Some(false)), at(20 + 2 * i));
        }
        // RL takes 2 s a rollout, evaluation still 1 s.
        assert_eq!(state.time_left(at(60)), Some(at(80 * 2 + 40)));
    }

    #[test]
    fn a_resumed_stage_has_only_its_rest_to_do() {
        let stage = plan("rl-1", StageKind::Rl, 100, 10);
        let mut state = RunState::default();
        started(&mut state, &stage, 8, at(0));
        for i in 1..=10 {
            state.apply(&finished("rl-1", 8, None), at(i));
        }
        assert_eq!(state.time_left(at(10)), Some(at(10)));
        let batch = state.current.as_ref().unwrap().batch;
        assert_eq!((batch.num_failed, batch.num_solved, batch.num_finished), (10, 0, 10));
        assert_eq!(batch.tokens_per_second(), Some(100.0));
    }
}
