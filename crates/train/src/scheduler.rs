//! When rollouts run and when training does: staleness.
//!
//! Batch `s` of rollouts is sampled whole by the weights after `max(0, s - k)` updates, where `k`
//! is `max_staleness`, and is learned from when the weights have had `s` updates. Time goes in
//! ticks: while one batch is learned from, another is collected; then the new weights are
//! published.
//!
//! ```text
//! k = 0   collect 0 | learn 0 | collect 1 | learn 1 | …          synchronous, on policy
//! k = 1   collect 0 | collect 1 + learn 0 | collect 2 + learn 1 | …
//! ```
//!
//! With `k` of 1 sampling and training overlap, at the price of samples that are one version old;
//! the objective's importance ratio accounts for it. Publishing waits for the tick's rollouts, so
//! that every trajectory has one version and the result does not depend on timing. Larger `k`
//! keeps `k` batches between the two.

use std::collections::VecDeque;
use std::ops::Range;

/// The side of the loop that owns the weights.
pub trait Learner<B> {
    /// What can go wrong.
    type Error: Send;

    /// Updates the trainer's weights with batch `iteration`. The sampler still serves the old ones.
    ///
    /// # Errors
    /// Ends the loop.
    fn learn(&mut self, iteration: usize, batch: B) -> Result<(), Self::Error>;

    /// Makes the weights the sampler's. No rollout is running; `waiting` are collected batches
    /// that will be learned from next.
    ///
    /// # Errors
    /// Ends the loop.
    fn publish(&mut self, iteration: usize, waiting: &VecDeque<B>) -> Result<(), Self::Error>;
}

/// Runs `iterations`, collecting at most `max_staleness` batches ahead of learning.
///
/// `pending` are batches that an interrupted run had collected, from `iterations.start` on.
/// `collect(i)` makes batch `i`; it runs on another thread while [`Learner::learn`] does, and
/// never while [`Learner::publish`] does.
///
/// # Errors
/// The first error of any of the three; a batch that is being collected is waited for.
pub fn run<B: Send, L: Learner<B>>(
    iterations: Range<usize>,
    max_staleness: usize,
    pending: Vec<B>,
    collect: impl Fn(usize) -> Result<B, L::Error> + Sync,
    learner: &mut L,
) -> Result<(), L::Error> {
    let mut next_collect = iterations.start + pending.len();
    let mut next_learn = iterations.start;
    let mut waiting: VecDeque<B> = pending.into();
    while next_learn < iterations.end {
        let may_collect =
            next_collect < iterations.end && next_collect <= next_learn + max_staleness;
        if max_staleness == 0 && may_collect {
            waiting.push_back(collect(next_collect)?);
            next_collect += 1;
            continue;
        }
        // Learning begins once `max_staleness` batches stand between it and the sampler.
        let may_learn = waiting.len() >= max_staleness || !may_collect;
        let batch = if may_learn { waiting.pop_front() } else { None };
        let learns = batch.is_some();
        let (collected, learned) = std::thread::scope(|scope| {
            let collector = may_collect.then(|| scope.spawn(|| collect(next_collect)));
            let learned = batch.map_or(Ok(()), |batch| learner.learn(next_learn, batch));
            let collected = collector.map(|thread| match thread.join() {
                Ok(collected) => collected,
                Err(panic) => std::panic::resume_unwind(panic),
            });
            (collected, learned)
        });
        learned?;
        if let Some(collected) = collected {
            waiting.push_back(collected?);
            next_collect += 1;
        }
        if learns {
            learner.publish(next_learn, &waiting)?;
            next_learn += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::{Learner, run};

    /// A batch: its number, and the updates that the weights had when it was collected.
    type Batch = (usize, usize);

    /// Counts updates; may stop.
    struct Counter<'a> {
        published: &'a AtomicUsize,
        sampled_after: Vec<usize>,
        waiting: Vec<Batch>,
        stop_after: Option<usize>,
        meet: Option<&'a Barrier>,
    }

    impl<'a> Counter<'a> {
        fn new(published: &'a AtomicUsize) -> Self {
            Self {
                published,
                sampled_after: Vec::new(),
                waiting: Vec::new(),
                stop_after: None,
                meet: None,
            }
        }
    }

    impl Learner<Batch> for Counter<'_> {
        type Error = &'static str;

        fn learn(&mut self, i: usize, (batch, sampled_after): Batch) -> Result<(), Self::Error> {
            assert_eq!(i, batch, "in order");
            if let (0, Some(barrier)) = (i, self.meet) {
                barrier.wait();
            }
            self.sampled_after.push(sampled_after);
            Ok(())
        }

        fn publish(&mut self, i: usize, waiting: &VecDeque<Batch>) -> Result<(), Self::Error> {
            assert_eq!(self.published.swap(i + 1, Ordering::SeqCst), i, "one update each");
            self.waiting = waiting.iter().copied().collect();
            if self.stop_after == Some(i) { Err("stopped") } else { Ok(()) }
        }
    }

    /// Runs `start..end` and gives, per iteration, the updates that its batch was sampled after.
    fn versions(start: usize, end: usize, k: usize, pending: Vec<Batch>) -> Vec<usize> {
        let published = AtomicUsize::new(start);
        let mut learner = Counter::new(&published);
        let collect = |i| Ok((i, published.load(Ordering::SeqCst)));
        run(start..end, k, pending, collect, &mut learner).unwrap();
        let versions = learner.sampled_after;
        assert_eq!(published.into_inner(), end);
        versions
    }

    #[test]
    fn synchronous_is_on_policy() {
        assert_eq!(versions(0, 5, 0, vec![]), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn staleness_is_exactly_the_bound() {
        assert_eq!(versions(0, 5, 1, vec![]), [0, 0, 1, 2, 3]);
        assert_eq!(versions(0, 6, 2, vec![]), [0, 0, 0, 1, 2, 3]);
    }

    proptest! {
        /// Going on from any iteration with the batches that waited gives what the whole run does.
        #[test]
        fn resume_changes_nothing(end in 1usize..9, k in 0usize..4, stop in 0usize..8) {
            let whole = versions(0, end, k, vec![]);
            let expected: Vec<usize> = (0..end).map(|s| s.saturating_sub(k)).collect();
            prop_assert_eq!(&whole, &expected);
            let stop = stop.min(end - 1);
            let published = AtomicUsize::new(0);
            let mut learner = Counter { stop_after: Some(stop), ..Counter::new(&published) };
            let collect = |i| Ok((i, published.load(Ordering::SeqCst)));
            prop_assert_eq!(run(0..end, k, vec![], collect, &mut learner), Err("stopped"));
            let rest = versions(stop + 1, end, k, learner.waiting);
            prop_assert_eq!(&rest[..], &whole[stop + 1..]);
        }
    }

    /// Batch 1 is collected while batch 0 is learned from: each waits for the other.
    #[test]
    fn learning_and_collecting_overlap() {
        let (barrier, published) = (Barrier::new(2), AtomicUsize::new(0));
        let mut learner = Counter { meet: Some(&barrier), ..Counter::new(&published) };
        let collect = |i| {
            if i == 1 {
                barrier.wait();
            }
            Ok((i, 0))
        };
        run(0..2, 1, vec![], collect, &mut learner).unwrap();
    }

    #[test]
    fn the_first_error_ends_it() {
        for k in 0..3 {
            let published = AtomicUsize::new(0);
            let mut learner = Counter::new(&published);
            let collect = |i| if i == 3 { Err("no rollouts") } else { Ok((i, 0)) };
            assert_eq!(run(0..5, k, vec![], collect, &mut learner), Err("no rollouts"));
            assert!(published.into_inner() <= 3);
        }
    }
}
