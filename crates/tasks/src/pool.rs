//! The pool that training draws from: its refresh from what was solved, the selection of an
//! iteration, and the guard against contamination.

mod contamination;

use std::collections::BTreeMap;

use patchwright_core::stream;
use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

pub(crate) use contamination::repo_name;
pub use contamination::{Contamination, Contaminations, Fingerprints, assert_disjoint};

/// How often an instance was tried and solved. Failures of the infrastructure are not tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Solves {
    /// Rollouts with a grade.
    pub num_graded: u64,
    /// Those that were solved.
    pub num_solved: u64,
}

/// What is known of every instance, by `instance_id`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SolveHistory(BTreeMap<String, Solves>);

impl SolveHistory {
    /// Adds one graded rollout.
    pub fn record(&mut self, instance_id: &str, solved: bool) {
        let solves = self.0.entry(instance_id.to_owned()).or_default();
        solves.num_graded += 1;
        solves.num_solved += u64::from(solved);
    }

    /// What is known of an instance; zeros when nothing is.
    pub fn get(&self, instance_id: &str) -> Solves {
        self.0.get(instance_id).copied().unwrap_or_default()
    }
}

/// Which instances a refresh drops. The default is the reference's (arXiv 2508.03501, section 4.3):
/// solved more than 2/3 of the time, or never.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RefreshThresholds {
    /// A success rate above this drops the instance: there is little left to learn.
    pub max_success_rate: f64,
    /// Whether an instance that was never solved is dropped: its groups have no signal.
    pub drop_never_solved: bool,
    /// Graded rollouts below which nothing is known yet, and the instance stays. At least 1.
    pub min_graded: u64,
}

impl Default for RefreshThresholds {
    fn default() -> Self {
        Self { max_success_rate: 2.0 / 3.0, drop_never_solved: true, min_graded: 1 }
    }
}

/// Why instances stayed or went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RefreshCounts {
    /// Stayed, with a success rate between the thresholds.
    pub num_kept: usize,
    /// Stayed, since too little is known of them.
    pub num_unknown: usize,
    /// Dropped: solved too often.
    pub num_too_easy: usize,
    /// Dropped: never solved.
    pub num_never_solved: usize,
}

/// Drops the members whose record says so; the others keep their order. `id` gives a member's
/// `instance_id`.
pub fn refresh<T>(
    pool: Vec<T>,
    id: impl Fn(&T) -> &str,
    history: &SolveHistory,
    thresholds: &RefreshThresholds,
) -> (Vec<T>, RefreshCounts) {
    let mut counts = RefreshCounts::default();
    let mut kept = pool;
    kept.retain(|member| {
        let Solves { num_graded, num_solved } = history.get(id(member));
        if num_graded < thresholds.min_graded.max(1) {
            counts.num_unknown += 1;
            return true;
        }
        let rate = num_solved as f64 / num_graded as f64;
        if num_solved == 0 && thresholds.drop_never_solved {
            counts.num_never_solved += 1;
            false
        } else if rate > thresholds.max_success_rate {
            counts.num_too_easy += 1;
            false
        } else {
            counts.num_kept += 1;
            true
        }
    });
    (kept, counts)
}

/// The members of iteration `iteration` (from 0): `num` indices into a pool of `pool_size`, all
/// different. An epoch is a shuffle of the pool cut into iterations; no member comes twice in it,
/// and what does not fill an iteration waits for the next epoch's shuffle. A pool of fewer than
/// `num` gives all it has.
pub fn select(
    pool_size: usize,
    num: usize,
    seed: u64,
    stage: &str,
    iteration: usize,
) -> Vec<usize> {
    let num = num.min(pool_size);
    if num == 0 {
        return Vec::new();
    }
    let per_epoch = pool_size / num;
    let (epoch, place) = (iteration / per_epoch, iteration % per_epoch);
    let mut order: Vec<usize> = (0..pool_size).collect();
    order.shuffle(&mut stream(seed, &["pool", stage, &epoch.to_string()]));
    order[place * num..(place + 1) * num].to_vec()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::{RefreshCounts, RefreshThresholds, SolveHistory, refresh, select};

    fn history(records: &[(&str, u64, u64)]) -> SolveHistory {
        let mut history = SolveHistory::default();
        for (id, num_solved, num_graded) in records {
            for index in 0..*num_graded {
                history.record(id, index < *num_solved);
            }
        }
        history
    }

    #[test]
    fn what_is_solved_too_often_or_never_goes() {
        let history =
            history(&[("easy", 7, 10), ("edge", 2, 3), ("never", 0, 10), ("rare", 1, 10)]);
        let pool = vec!["rare", "easy", "edge", "never", "new"];
        let thresholds = RefreshThresholds::default();
        let (kept, counts) = refresh(pool.clone(), |id| id, &history, &thresholds);
        assert_eq!(kept, ["rare", "edge", "new"]);
        let expected =
            RefreshCounts { num_kept: 2, num_unknown: 1, num_too_easy: 1, num_never_solved: 1 };
        assert_eq!(counts, expected);
        let thresholds =
            RefreshThresholds { max_success_rate: 0.5, drop_never_solved: false, min_graded: 10 };
        let (kept, counts) = refresh(pool, |id| id, &history, &thresholds);
        assert_eq!(kept, ["rare", "edge", "never", "new"]);
        assert_eq!((counts.num_unknown, counts.num_too_easy), (2, 1));
    }

    proptest! {
        #[test]
        fn an_epoch_has_no_repeats(size in 1_usize..40, num in 1_usize..50, seed: u64) {
            let per_epoch = (size / num.min(size)).max(1);
            for epoch in 0..3 {
                let epoch: Vec<usize> = (epoch * per_epoch..(epoch + 1) * per_epoch)
                    .flat_map(|iteration| select(size, num, seed, "rl-1", iteration))
                    .collect();
                prop_assert_eq!(epoch.len(), per_epoch * num.min(size));
                prop_assert!(epoch.iter().all(|index| *index < size));
                prop_assert_eq!(epoch.iter().collect::<BTreeSet<_>>().len(), epoch.len());
            }
        }
    }

    #[test]
    fn selection_depends_on_seed_stage_and_iteration_only() {
        assert_eq!(select(50, 10, 1, "rl-1", 3), select(50, 10, 1, "rl-1", 3));
        assert_ne!(select(50, 10, 1, "rl-1", 3), select(50, 10, 2, "rl-1", 3));
        assert_ne!(select(50, 10, 1, "rl-1", 3), select(50, 10, 1, "rl-2", 3));
        assert_ne!(select(50, 50, 1, "rl-1", 0), select(50, 50, 1, "rl-1", 1));
        assert!(select(0, 10, 1, "rl-1", 3).is_empty());
        assert!(select(10, 0, 1, "rl-1", 3).is_empty());
    }
}
