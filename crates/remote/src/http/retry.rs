//! Trying again: exponential pauses with seeded jitter, bounded by count, by time, and by a budget
//! that all requests of a client share.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use patchwright_core::derive_seed;

use super::failure::{FailureKind, HttpFailure};

/// How long a sleep goes on before the caller is asked whether it still wants the answer.
const TICK: Duration = Duration::from_millis(50);

/// When a request is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// Tries after the first, at most.
    pub max_retries: u32,
    /// Pause before the first of them; each next one is twice as long.
    pub first_pause: Duration,
    /// Longest pause; a server's `Retry-After` may be longer, up to `total`.
    pub max_pause: Duration,
    /// Wall clock of all tries and pauses; no try begins after it.
    pub total: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_retries: 5,
            first_pause: Duration::from_millis(250),
            max_pause: Duration::from_secs(20),
            total: Duration::from_mins(20),
        }
    }
}

impl RetryPolicy {
    /// No try after the first.
    pub fn never() -> Self {
        Self { max_retries: 0, ..Self::default() }
    }

    /// The pause before retry `n` (from 1): the doubled pause, half of it drawn.
    fn pause(&self, n: u32, seed: u64, kind: FailureKind) -> Duration {
        let doubled = self.first_pause.saturating_mul(1 << (n - 1).min(16)).min(self.max_pause);
        let draw = derive_seed(seed, &["retry", &n.to_string()]) as f64 / u64::MAX as f64;
        let jittered = doubled.mul_f64(0.5 + 0.5 * draw);
        match kind {
            FailureKind::Busy { retry_after: Some(after) } => after.max(jittered),
            _ => jittered,
        }
    }
}

/// Bounds the retries of all requests together, so that a server in trouble is not buried: each
/// success earns a part of a retry, each retry costs one.
#[derive(Debug)]
pub struct RetryBudget {
    /// In hundredths of a retry.
    left: AtomicI64,
    max: i64,
}

/// Hundredths of a retry that a success earns.
const EARNED: i64 = 20;

impl RetryBudget {
    /// A budget that holds, and begins with, this many retries.
    pub fn new(num_retries: u32) -> Self {
        let max = i64::from(num_retries) * 100;
        Self { left: AtomicI64::new(max), max }
    }

    fn earn(&self) {
        let _ = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left < self.max).then(|| (left + EARNED).min(self.max))
        });
    }

    fn spend(&self) -> bool {
        self.left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                (left >= 100).then_some(left - 100)
            })
            .is_ok()
    }

    /// Whole retries left.
    pub fn left(&self) -> u32 {
        (self.left.load(Ordering::Relaxed) / 100).max(0) as u32
    }
}

impl Default for RetryBudget {
    /// 4096 retries: every episode of a large run may lose a connection at once, and no more.
    fn default() -> Self {
        Self::new(4096)
    }
}

/// Makes `attempt`s (numbered from 0) until one succeeds, one fails for good, or policy or budget
/// are used up. `seed` draws the jitter. Looks at `is_cancelled` before each try and in pauses.
///
/// # Errors
/// The last failure, with the number of tries in its text; [`FailureKind::Cancelled`].
pub fn retried<T>(
    policy: &RetryPolicy,
    budget: &RetryBudget,
    seed: u64,
    is_cancelled: &dyn Fn() -> bool,
    mut attempt: impl FnMut(u32) -> Result<T, HttpFailure>,
) -> Result<T, HttpFailure> {
    let start = Instant::now();
    let mut n = 0;
    loop {
        if is_cancelled() {
            return Err(HttpFailure::cancelled("request"));
        }
        let mut failure = match attempt(n) {
            Ok(done) => {
                budget.earn();
                return Ok(done);
            }
            Err(failure) => failure,
        };
        n += 1;
        let pause = policy.pause(n, seed, failure.kind);
        let why = if !failure.kind.is_passing() {
            None
        } else if n > policy.max_retries {
            Some(format!("gave up after {n} tries"))
        } else if start.elapsed() + pause >= policy.total {
            Some(format!("gave up after {n} tries and {} s", start.elapsed().as_secs()))
        } else if !budget.spend() {
            Some(format!("gave up after {n} tries: too many retries of all requests together"))
        } else {
            sleep(pause, is_cancelled)?;
            continue;
        };
        if let Some(why) = why.filter(|_| n > 1 || policy.max_retries > 0) {
            failure.reason = format!("{}; {why}", failure.reason);
        }
        return Err(failure);
    }
}

fn sleep(pause: Duration, is_cancelled: &dyn Fn() -> bool) -> Result<(), HttpFailure> {
    let end = Instant::now() + pause;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        if is_cancelled() {
            return Err(HttpFailure::cancelled("request"));
        }
        std::thread::sleep(left.min(TICK));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::{RetryBudget, RetryPolicy, retried};
    use crate::http::{FailureKind, HttpFailure};

    fn quick() -> RetryPolicy {
        RetryPolicy { first_pause: Duration::from_micros(10), ..RetryPolicy::default() }
    }

    fn fail(kind: FailureKind) -> HttpFailure {
        HttpFailure::new(kind, "GET http://x/y", "no")
    }

    fn tries(kind: FailureKind, policy: &RetryPolicy, budget: &RetryBudget) -> (u32, String) {
        let mut count = 0;
        let result: Result<(), _> = retried(policy, budget, 1, &|| false, |n| {
            assert_eq!(n, count);
            count += 1;
            Err(fail(kind))
        });
        (count, result.unwrap_err().to_string())
    }

    #[test]
    fn only_what_passes_is_tried_again() {
        let budget = RetryBudget::default();
        let policy = quick();
        for kind in [
            FailureKind::Connect,
            FailureKind::Timeout,
            FailureKind::Dropped,
            FailureKind::Server(500),
            FailureKind::Busy { retry_after: None },
            FailureKind::Garbage,
        ] {
            let (count, text) = tries(kind, &policy, &budget);
            assert_eq!(count, 6, "{kind:?}");
            assert!(text.contains("6 tries"), "{text}");
        }
        for kind in [
            FailureKind::Refused(404),
            FailureKind::TooLarge,
            FailureKind::BadRequest,
            FailureKind::Unavailable,
        ] {
            assert_eq!(tries(kind, &policy, &budget).0, 1, "{kind:?}");
        }
    }

    #[test]
    fn time_budget_and_cancellation_end_it() {
        let late = FailureKind::Busy { retry_after: Some(Duration::from_hours(1)) };
        assert_eq!(tries(late, &quick(), &RetryBudget::default()).0, 1, "later than the total");
        let budget = RetryBudget::new(7);
        assert_eq!(tries(FailureKind::Dropped, &quick(), &budget).0, 6);
        let (count, text) = tries(FailureKind::Dropped, &quick(), &budget);
        assert_eq!((count, budget.left()), (3, 0));
        assert!(text.contains("all requests"), "{text}");
        for _ in 0..5 {
            retried(&quick(), &budget, 1, &|| false, |_| Ok(())).unwrap();
        }
        assert_eq!(budget.left(), 1, "successes earn retries");

        let asked = Cell::new(0);
        let is_cancelled = || {
            asked.set(asked.get() + 1);
            asked.get() > 2
        };
        let slow = RetryPolicy { first_pause: Duration::from_hours(1), ..RetryPolicy::default() };
        let slow = RetryPolicy { max_pause: Duration::from_hours(1), total: Duration::MAX, ..slow };
        let result: Result<(), _> =
            retried(&slow, &RetryBudget::default(), 1, &is_cancelled, |_| {
                Err(fail(FailureKind::Connect))
            });
        assert_eq!(result.unwrap_err().kind, FailureKind::Cancelled);
    }

    #[test]
    fn pauses_grow_and_their_jitter_is_seeded() {
        let policy = RetryPolicy::default();
        for n in 1..12 {
            let pause = |seed| policy.pause(n, seed, FailureKind::Connect);
            let full = policy.first_pause.saturating_mul(1 << (n - 1)).min(policy.max_pause);
            assert_eq!(pause(3), pause(3));
            assert_ne!(pause(3), pause(4));
            assert!(pause(3) >= full / 2 && pause(3) <= full);
        }
        let busy = FailureKind::Busy { retry_after: Some(Duration::from_secs(7)) };
        assert_eq!(policy.pause(1, 0, busy), Duration::from_secs(7));
    }
}
