//! Which groups teach something: the zero-advantage filter.

use patchwright_core::{RolloutGroup, TrainingSample};
use serde::{Deserialize, Serialize};

use crate::advantage::group_normalised;
use crate::reward::{Reward, RewardConfig, reward};

/// Which reward decides whether a group has something to teach. The paper does not say: with a
/// penalty that also hits failures, a group of failures alone can have advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropOn {
    /// The verdict of the hidden tests alone: groups all solved or all failed are dropped.
    Outcome,
    /// The final reward, penalties included: groups are dropped when it is equal for all.
    Final,
}

/// Why a group is not trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// Every graded sibling is solved.
    AllSolved,
    /// No graded sibling is solved.
    AllFailed,
    /// Fewer than two siblings have a grade.
    Infrastructure,
}

/// A group with its rewards and advantages.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoredGroup {
    /// Reward of each sibling, `[g]`; `None` without a grade.
    pub rewards: Vec<Option<Reward>>,
    /// Advantage of each sibling, `[g]`; `None` where the sibling is not trained on: no grade, the
    /// group was dropped, or the advantage is exactly 0.
    pub advantages: Vec<Option<f64>>,
    /// Why the whole group is dropped.
    pub dropped: Option<DropReason>,
}

impl ScoredGroup {
    /// Siblings that are trained on.
    pub fn num_trained(&self) -> usize {
        self.advantages.iter().flatten().count()
    }
}

/// Rewards and advantages of a group, and whether it is dropped (DAPO's dynamic sampling, Yu et
/// al., arXiv 2503.14476, equation 11; arXiv 2508.03501, section 4.3). Siblings without a grade
/// have no part in mean and deviation.
pub fn score_group(
    group: &RolloutGroup,
    config: &RewardConfig,
    drop_on: DropOn,
    delta: f64,
) -> ScoredGroup {
    let rewards: Vec<Option<Reward>> =
        group.rollouts.iter().map(|rollout| reward(rollout, config)).collect();
    let totals: Vec<f64> = rewards.iter().flatten().map(Reward::total).collect();
    let dropped = drop_reason(&rewards, &totals, drop_on);
    let mut normalised = group_normalised(&totals, delta).into_iter();
    let advantages = rewards
        .iter()
        .map(|reward| {
            let advantage = reward.and_then(|_| normalised.next())?;
            (dropped.is_none() && advantage != 0.0).then_some(advantage)
        })
        .collect();
    ScoredGroup { rewards, advantages, dropped }
}

fn drop_reason(rewards: &[Option<Reward>], totals: &[f64], drop_on: DropOn) -> Option<DropReason> {
    if totals.len() < 2 {
        return Some(DropReason::Infrastructure);
    }
    let num_solved = rewards.iter().flatten().filter(|reward| reward.outcome > 0.0).count();
    let same_outcome = if num_solved == totals.len() {
        DropReason::AllSolved
    } else if num_solved == 0 {
        DropReason::AllFailed
    } else {
        return None;
    };
    let equal = totals.iter().all(|total| total.to_bits() == totals[0].to_bits());
    (drop_on == DropOn::Outcome || equal).then_some(same_outcome)
}

/// The training samples of a scored group, of each sibling that is trained on: advantage on every
/// sampled token of all its trajectories, mask 0 on prompts and on observations. The token-level
/// mean of the objective then weighs a token of a branch as one of the main trajectory.
pub fn rl_samples(group: &RolloutGroup, scored: &ScoredGroup) -> Vec<Vec<TrainingSample>> {
    group
        .rollouts
        .iter()
        .zip(&scored.advantages)
        .filter_map(|(rollout, advantage)| {
            let advantage = (*advantage)? as f32;
            Some(rollout.to_samples(advantage, |_| true))
        })
        .filter(|samples| !samples.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use patchwright_core::{RolloutGroup, RolloutStatus, TrainingSample};

    use super::{DropOn, DropReason, ScoredGroup, rl_samples, score_group};
    use crate::reward::{PenaltyOn, RewardConfig};
    use crate::testing::rollout;

    const CONFIG: RewardConfig = RewardConfig {
        max_turns: 10,
        length_threshold: 5,
        length_penalty_on: PenaltyOn::All,
        format_error_penalty: 0.0,
        no_submission_penalty: 0.0,
    };

    fn group(siblings: &[(Option<bool>, usize)]) -> RolloutGroup {
        let rollouts = siblings
            .iter()
            .map(|(solved, turns)| rollout(*solved, RolloutStatus::Submitted, *turns, 0))
            .collect();
        RolloutGroup { instance_id: "a__b-1".into(), rollouts }
    }

    fn score(siblings: &[(Option<bool>, usize)], drop_on: DropOn) -> ScoredGroup {
        score_group(&group(siblings), &CONFIG, drop_on, 1e-6)
    }

    #[test]
    fn reasons() {
        let (yes, no) = (Some(true), Some(false));
        let cases = [
            (vec![(yes, 2), (yes, 2)], Some(DropReason::AllSolved)),
            (vec![(no, 2), (no, 2), (None, 2)], Some(DropReason::AllFailed)),
            (vec![(yes, 2), (None, 2)], Some(DropReason::Infrastructure)),
            (vec![(yes, 2), (no, 2)], None),
        ];
        for (siblings, expected) in cases {
            for drop_on in [DropOn::Outcome, DropOn::Final] {
                assert_eq!(score(&siblings, drop_on).dropped, expected, "{siblings:?}");
            }
        }
    }

    /// Failures of different lengths, penalised alike: the two rules differ.
    #[test]
    fn failures_alone_can_have_advantages() {
        let siblings = [(Some(false), 6), (Some(false), 9)];
        assert_eq!(score(&siblings, DropOn::Outcome).dropped, Some(DropReason::AllFailed));
        let by_final = score(&siblings, DropOn::Final);
        assert_eq!(by_final.dropped, None);
        assert!(by_final.advantages[0].unwrap() > 0.0 && by_final.advantages[1].unwrap() < 0.0);
    }

    #[test]
    fn siblings_without_a_grade_have_no_part() {
        let with = score(&[(Some(true), 2), (None, 2), (Some(false), 2)], DropOn::Outcome);
        let without = score(&[(Some(true), 2), (Some(false), 2)], DropOn::Outcome);
        assert_eq!(with.advantages[1], None);
        assert_eq!(with.rewards[1], None);
        assert_eq!(with.advantages[0], without.advantages[0]);
        assert_eq!(with.advantages[2], without.advantages[1]);
        assert_eq!(with.num_trained(), 2);
    }

    #[test]
    fn samples_mask_prompt_and_observations() {
        let group = group(&[(Some(true), 2), (Some(false), 1), (None, 3)]);
        let scored = score_group(&group, &CONFIG, DropOn::Outcome, 1e-6);
        let samples = rl_samples(&group, &scored).concat();
        assert_eq!(samples.len(), 2);
        assert_eq!(samples[0].loss_mask, [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0]);
        for (sample, sign) in samples.iter().zip([1.0, -1.0]) {
            for (mask, advantage) in sample.loss_mask.iter().zip(&sample.advantages) {
                assert_eq!(mask * sign > 0.0, *advantage > 0.0);
                assert_eq!(*mask == 0.0, *advantage == 0.0);
            }
        }
    }

    /// A sibling that said something beside its main trajectory is trained on all of it, with one
    /// advantage.
    #[test]
    fn branches_are_samples_of_their_own() {
        let mut group = group(&[(Some(true), 2), (Some(false), 1)]);
        let branch = rollout(None, RolloutStatus::Submitted, 1, 0).trajectory;
        let nothing = rollout(None, RolloutStatus::Submitted, 0, 0).trajectory;
        group.rollouts[0].branches = vec![branch, nothing];
        let scored = score_group(&group, &CONFIG, DropOn::Outcome, 1e-6);
        let samples = rl_samples(&group, &scored);
        assert_eq!(samples.iter().map(Vec::len).collect::<Vec<_>>(), [2, 1]);
        let num_trained: usize = samples[0].iter().map(TrainingSample::num_loss_tokens).sum();
        assert_eq!(num_trained, group.rollouts[0].num_sampled_tokens());
        assert_eq!(samples[0][1].loss_mask, [0.0, 1.0, 1.0, 0.0]);
        assert_eq!(samples[0][1].advantages[1].to_bits(), samples[0][0].advantages[1].to_bits());
    }

    /// A sibling in the middle can have exactly nothing to say; it is left out.
    #[test]
    fn a_zero_advantage_is_left_out() {
        let config = RewardConfig { format_error_penalty: 0.5, ..CONFIG };
        let mut group = group(&[(Some(true), 2), (Some(true), 2), (Some(false), 2)]);
        group.rollouts[1] = rollout(Some(true), RolloutStatus::Submitted, 2, 1);
        let scored = score_group(&group, &config, DropOn::Outcome, 1e-6);
        assert_eq!(scored.advantages[1], None);
        assert_eq!(scored.num_trained(), 2);
    }
}
