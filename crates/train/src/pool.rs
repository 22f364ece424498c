//! The pool of tasks that an RL stage draws from. Selection and refresh are those of
//! [`patchwright_tasks::pool`]; here is what a run asks of them.

use std::sync::Arc;

use patchwright_core::stream;
use patchwright_tasks::pool::{self, RefreshCounts, RefreshThresholds};
use rand::seq::SliceRandom;

use crate::environment::Task;
use crate::history::SolveHistory;
use crate::recipe::RlStageRecipe;

/// The train set without what the history says has nothing to teach (arXiv 2508.03501, section
/// 4.3). `earlier` are the stages before, in order; the last one that tried a task decides. Tasks
/// that were not tried stay.
pub fn refresh(
    train: &[Arc<Task>],
    history: &SolveHistory,
    earlier: &[&str],
    stage: &RlStageRecipe,
) -> (Vec<Arc<Task>>, RefreshCounts) {
    let mut latest = pool::SolveHistory::default();
    for task in train {
        let id = &task.instance.instance_id;
        let solves = history.latest(earlier, id);
        for index in 0..solves.num_graded {
            latest.record(id, index < solves.num_solved);
        }
    }
    let thresholds = RefreshThresholds {
        max_success_rate: stage.pool_max_success_rate,
        drop_never_solved: stage.pool_drop_never_solved,
        ..RefreshThresholds::default()
    };
    pool::refresh(train.to_vec(), |task| &task.instance.instance_id, &latest, &thresholds)
}

/// The tasks of an iteration, and those that stand in for dropped groups, in the order they are
/// used: the rest of the pool in a seeded order of the iteration's own.
pub fn draw(
    pool: &[Arc<Task>],
    num_tasks: usize,
    seed: u64,
    stage: &str,
    iteration: usize,
) -> (Vec<Arc<Task>>, Vec<Arc<Task>>) {
    let drawn = pool::select(pool.len(), num_tasks, seed, stage, iteration);
    let mut rest: Vec<usize> = (0..pool.len()).filter(|index| !drawn.contains(index)).collect();
    rest.shuffle(&mut stream(seed, &["substitutes", stage, &iteration.to_string()]));
    let tasks = |indices: Vec<usize>| indices.into_iter().map(|i| Arc::clone(&pool[i])).collect();
    (tasks(drawn), tasks(rest))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use super::{draw, refresh};
    use crate::environment::Task;
    use crate::history::SolveHistory;
    use crate::journal::GroupRecord;
    use crate::recipe::RlStageRecipe;
    use crate::testing::tasks;

    fn names(tasks: &[Arc<Task>]) -> BTreeSet<String> {
        tasks.iter().map(|task| task.instance.instance_id.clone()).collect()
    }

    #[test]
    fn drawn_and_substitutes_are_the_pool() {
        let pool = tasks("t", 11);
        for iteration in 0..4 {
            let (drawn, rest) = draw(&pool, 4, 3, "rl-1", iteration);
            assert_eq!((drawn.len(), rest.len()), (4, 7));
            assert!(names(&drawn).is_disjoint(&names(&rest)));
        }
    }

    #[test]
    fn the_latest_stage_decides() {
        let mut history = SolveHistory::default();
        let mut add = |stage: &str, index: usize, num_graded, num_solved| {
            history.add(&GroupRecord {
                stage: stage.into(),
                iteration: 0,
                instance_id: format!("t-{index}"),
                num_graded,
                num_solved,
                dropped: None,
            });
        };
        add("rft", 0, 10, 0); // never solved by the base, later sometimes: stays
        add("rl-1", 0, 10, 3);
        add("rl-1", 1, 9, 6); // 2/3 exactly: stays
        add("rl-1", 2, 10, 7); // above 2/3
        add("rl-1", 3, 10, 0); // never
        add("rl-1", 3, 10, 0);
        add("rl-1", 4, 0, 0); // only faults: as if not tried
        let stage = RlStageRecipe { refresh_pool: true, ..RlStageRecipe::default() };
        let (kept, counts) = refresh(&tasks("t", 6), &history, &["rft", "rl-1"], &stage);
        let expected: BTreeSet<String> = [0, 1, 4, 5].map(|index| format!("t-{index}")).into();
        assert_eq!(names(&kept), expected);
        assert_eq!((counts.num_too_easy, counts.num_never_solved, counts.num_unknown), (1, 1, 2));
    }
}
