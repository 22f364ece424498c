//! The reward of a rollout: the verdict of the hidden tests and small penalties.

use patchwright_core::{Rollout, RolloutStatus};
use serde::{Deserialize, Serialize};

use crate::length_penalty::length_penalty;

/// Which rollouts the length penalty falls on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PenaltyOn {
    /// Solved ones only: a group of failures keeps equal rewards.
    Successes,
    /// All, as in the paper.
    All,
}

/// What shapes the reward.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RewardConfig {
    /// `T_max`.
    pub max_turns: usize,
    /// `L_thr`.
    pub length_threshold: usize,
    /// Which rollouts the length penalty falls on.
    pub length_penalty_on: PenaltyOn,
    /// Subtracted for each turn with a formatting error.
    pub format_error_penalty: f64,
    /// Subtracted when the agent did not submit.
    pub no_submission_penalty: f64,
}

/// A reward in its parts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// `R`: 1 when the hidden tests pass, else 0.
    pub outcome: f64,
    /// `R_len`, 0 or below.
    pub length: f64,
    /// Malformed turns and a missing submission, 0 or below.
    pub shaping: f64,
}

impl Reward {
    /// `R_final = R + R_len` (arXiv 2508.03501, section 4.3), plus the shaping.
    pub fn total(&self) -> f64 {
        self.outcome + self.length + self.shaping
    }
}

/// The reward of a rollout; `None` when there is no grade, because a failure of the
/// infrastructure never becomes a reward.
pub fn reward(rollout: &Rollout, config: &RewardConfig) -> Option<Reward> {
    let infrastructure = rollout.status == RolloutStatus::Failed
        || rollout.failure.is_some_and(patchwright_core::FailureClass::is_infrastructure);
    let solved = rollout.solved.filter(|_| !infrastructure)?;
    let penalised = solved || config.length_penalty_on == PenaltyOn::All;
    let length = if penalised {
        length_penalty(rollout.num_turns(), config.length_threshold, config.max_turns)
    } else {
        0.0
    };
    let malformed = rollout.trajectory.num_format_errors() as f64 * config.format_error_penalty;
    let unsubmitted =
        if rollout.status == RolloutStatus::Submitted { 0.0 } else { config.no_submission_penalty };
    Some(Reward {
        outcome: f64::from(u8::from(solved)),
        length,
        shaping: 0.0 - malformed - unsubmitted,
    })
}

#[cfg(test)]
mod tests {
    use patchwright_core::{FailureClass, RolloutStatus};

    use super::{PenaltyOn, RewardConfig, reward};
    use crate::testing::rollout;

    const CONFIG: RewardConfig = RewardConfig {
        max_turns: 10,
        length_threshold: 5,
        length_penalty_on: PenaltyOn::Successes,
        format_error_penalty: 0.03,
        no_submission_penalty: 0.1,
    };

    fn total(solved: bool, status: RolloutStatus, turns: usize, errors: usize) -> f64 {
        reward(&rollout(Some(solved), status, turns, errors), &CONFIG).unwrap().total()
    }

    #[test]
    fn parts_by_hand() {
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        near(total(true, RolloutStatus::Submitted, 3, 0), 1.0);
        near(total(true, RolloutStatus::Submitted, 8, 0), 1.0 - 0.6);
        near(total(true, RolloutStatus::Submitted, 3, 2), 0.94);
        near(total(true, RolloutStatus::TurnLimit, 10, 0), 1.0 - 1.0 - 0.1);
        near(total(false, RolloutStatus::Submitted, 9, 0), 0.0);
        near(total(false, RolloutStatus::ContextLimit, 9, 1), -0.13);
        let all = RewardConfig { length_penalty_on: PenaltyOn::All, ..CONFIG };
        let failed = rollout(Some(false), RolloutStatus::Submitted, 10, 0);
        near(reward(&failed, &all).unwrap().total(), -1.0);
    }

    #[test]
    fn infrastructure_is_never_a_reward() {
        assert_eq!(reward(&rollout(None, RolloutStatus::Submitted, 3, 0), &CONFIG), None);
        assert_eq!(reward(&rollout(Some(false), RolloutStatus::Failed, 3, 0), &CONFIG), None);
        for class in [FailureClass::Sandbox, FailureClass::Grader, FailureClass::Engine] {
            let mut failed = rollout(Some(false), RolloutStatus::Submitted, 3, 0);
            failed.failure = Some(class);
            assert_eq!(reward(&failed, &CONFIG), None, "{class:?}");
        }
        let mut wrong = rollout(Some(false), RolloutStatus::Submitted, 3, 0);
        wrong.failure = Some(FailureClass::Model);
        assert!(reward(&wrong, &CONFIG).is_some());
    }
}
