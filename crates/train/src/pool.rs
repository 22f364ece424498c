//! The pool of tasks that an RL stage draws from.

use std::sync::Arc;

use patchwright_core::stream;
use rand::seq::SliceRandom;

use crate::environment::Task;
use crate::history::SolveHistory;
use crate::recipe::RlStageRecipe;

/// How a refresh changed a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refreshed {
    /// Tasks before.
    pub num_before: usize,
    /// Dropped because they are solved too often.
    pub num_too_easy: usize,
    /// Dropped because they were tried and never solved.
    pub num_never_solved: usize,
}

/// The train set without what the history says has nothing to teach (arXiv 2508.03501, section
/// 4.3): tasks solved more often than `pool_max_success_rate`, and those never solved. `earlier`
/// are the stages before, in order; the last one that tried a task decides. Tasks that were not
/// tried stay.
pub fn refresh(
    train: &[Arc<Task>],
    history: &SolveHistory,
    earlier: &[&str],
    stage: &RlStageRecipe,
) -> (Vec<Arc<Task>>, Refreshed) {
    let mut refreshed = Refreshed { num_before: train.len(), ..Refreshed::default() };
    let mut kept = Vec::new();
    for task in train {
        let solves = history.latest(earlier, &task.instance.instance_id);
        let rate = solves.num_solved as f64 / solves.num_graded.max(1) as f64;
        if rate > stage.pool_max_success_rate {
            refreshed.num_too_easy += 1;
        } else if stage.pool_drop_never_solved && solves.num_graded > 0 && solves.num_solved == 0 {
            refreshed.num_never_solved += 1;
        } else {
            kept.push(Arc::clone(task));
        }
    }
    (kept, refreshed)
}

/// The tasks of an iteration: the pool in a seeded order, a new one each pass over it, so that
/// every task is drawn once before any is drawn again. What is left of a pass and does not fill an
/// iteration is skipped; no task is twice in an iteration.
pub fn draw(
    pool: &[Arc<Task>],
    num_tasks: usize,
    seed: u64,
    stage: &str,
    iteration: usize,
) -> Vec<Arc<Task>> {
    let per_pass = (pool.len() / num_tasks.max(1)).max(1);
    let pass = (iteration / per_pass).to_string();
    let mut order = pool.to_vec();
    order.shuffle(&mut stream(seed, &["pool", stage, &pass]));
    order.into_iter().skip(iteration % per_pass * num_tasks).take(num_tasks).collect()
}

/// The tasks that stand in for dropped groups of an iteration, in the order they are used: the
/// pool without `drawn`, in a seeded order of the iteration's own.
pub fn substitutes(
    pool: &[Arc<Task>],
    drawn: &[Arc<Task>],
    seed: u64,
    stage: &str,
    iteration: usize,
) -> Vec<Arc<Task>> {
    let mut rest: Vec<Arc<Task>> = pool
        .iter()
        .filter(|task| !drawn.iter().any(|other| Arc::ptr_eq(task, other)))
        .cloned()
        .collect();
    rest.shuffle(&mut stream(seed, &["substitutes", stage, &iteration.to_string()]));
    rest
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use patchwright_core::{RepoSource, TaskInstance};
    use proptest::prelude::*;

    use super::{draw, refresh, substitutes};
    use crate::environment::Task;
    use crate::history::SolveHistory;
    use crate::journal::GroupRecord;
    use crate::recipe::RlStageRecipe;

    fn pool(size: usize) -> Vec<Arc<Task>> {
        (0..size)
            .map(|index| {
                let instance =
                    TaskInstance { instance_id: format!("t-{index}"), ..TaskInstance::default() };
                Arc::new(Task { instance, repo: RepoSource::Files(Arc::default()) })
            })
            .collect()
    }

    fn names(tasks: &[Arc<Task>]) -> BTreeSet<String> {
        tasks.iter().map(|task| task.instance.instance_id.clone()).collect()
    }

    proptest! {
        #[test]
        fn a_pass_draws_every_task_at_most_once(size in 1usize..40, count in 1usize..12) {
            let pool = pool(size);
            let mut seen = BTreeSet::new();
            for iteration in 0..(size / count).max(1) {
                let drawn = draw(&pool, count, 3, "rl-1", iteration);
                prop_assert_eq!(drawn.len(), count.min(size));
                for name in names(&drawn) {
                    prop_assert!(seen.insert(name));
                }
                let rest = substitutes(&pool, &drawn, 3, "rl-1", iteration);
                prop_assert_eq!(rest.len() + drawn.len(), size);
                prop_assert!(names(&rest).is_disjoint(&names(&drawn)));
            }
        }
    }

    #[test]
    fn passes_and_stages_have_orders_of_their_own() {
        let pool = pool(20);
        let first = draw(&pool, 20, 1, "rl-1", 0);
        let same =
            |a: &[Arc<Task>], b: &[Arc<Task>]| a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b));
        assert!(same(&first, &draw(&pool, 20, 1, "rl-1", 0)));
        assert!(!same(&first, &draw(&pool, 20, 1, "rl-1", 1)));
        assert!(!same(&first, &draw(&pool, 20, 1, "rl-2", 0)));
        assert!(!same(&first, &draw(&pool, 20, 2, "rl-1", 0)));
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
        let (kept, counts) = refresh(&pool(6), &history, &["rft", "rl-1"], &stage);
        let expected: BTreeSet<String> = [0, 1, 4, 5].map(|index| format!("t-{index}")).into();
        assert_eq!(names(&kept), expected);
        assert_eq!((counts.num_before, counts.num_too_easy, counts.num_never_solved), (6, 1, 1));
    }
}
