//! Answers that are not there yet.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::Notify;

use crate::error::ApiError;

/// The answer of a request.
#[derive(Debug, Clone)]
pub(super) enum Payload {
    Json(serde_json::Value),
    Proto(Vec<u8>),
}

/// What a request came to.
pub(super) type Outcome = Result<Arc<Payload>, ApiError>;

#[derive(Debug)]
struct Entry {
    outcome: Option<Outcome>,
    ready: Arc<Notify>,
    /// When it was answered.
    answered: Option<Instant>,
    key: String,
}

/// Futures by their ids, bounded in number and time.
#[derive(Debug)]
pub(super) struct Futures {
    state: Mutex<State>,
    max: usize,
    ttl: Duration,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<u64, Entry>,
    /// The same key is the same request, sent again.
    by_key: HashMap<String, u64>,
    next: u64,
}

/// A new request, or one that was sent before.
pub(super) enum Begun {
    New(u64),
    Known(u64),
}

impl Futures {
    pub(super) fn new(max: usize, ttl: Duration) -> Self {
        Self { state: Mutex::default(), max, ttl }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A future for the request that `key` names.
    pub(super) fn begin(&self, key: String) -> Result<Begun, ApiError> {
        let mut state = self.lock();
        if let Some(id) = state.by_key.get(&key) {
            return Ok(Begun::Known(*id));
        }
        if state.entries.len() >= self.max {
            state.expire(self.ttl);
        }
        if state.entries.len() >= self.max {
            return Err(ApiError::busy(format!(
                "{} requests are unanswered or their answers not fetched; fetch some",
                self.max
            )));
        }
        let id = state.next;
        state.next += 1;
        state.by_key.insert(key.clone(), id);
        let ready = Arc::new(Notify::new());
        state.entries.insert(id, Entry { outcome: None, ready, answered: None, key });
        Ok(Begun::New(id))
    }

    /// Answers a request. One that was forgotten hears nothing.
    pub(super) fn answer(&self, id: u64, outcome: Result<Payload, ApiError>) {
        if let Some(entry) = self.lock().entries.get_mut(&id) {
            entry.outcome = Some(outcome.map(Arc::new));
            entry.answered = Some(Instant::now());
            entry.ready.notify_waiters();
        }
    }

    /// Waits for an answer; `None` when it is not there after `patience`. Answers can be fetched
    /// again until they expire.
    pub(super) async fn wait(
        &self,
        id: u64,
        patience: Duration,
    ) -> Result<Option<Outcome>, ApiError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let ready = {
                let state = self.lock();
                let entry = state.entries.get(&id).ok_or_else(|| {
                    let message = format!("request {id} is not known, or its answer has expired");
                    ApiError::new(StatusCode::GONE, "expired", message)
                })?;
                if let Some(outcome) = &entry.outcome {
                    return Ok(Some(outcome.clone()));
                }
                Arc::clone(&entry.ready)
            };
            let notified = ready.notified();
            tokio::pin!(notified);
            // From here on no answer is missed; one that came in between is seen below.
            notified.as_mut().enable();
            let answered = self.lock().entries.get(&id).is_none_or(|e| e.outcome.is_some());
            if !answered && tokio::time::timeout_at(deadline, notified).await.is_err() {
                return Ok(None);
            }
        }
    }

    /// Forgets answers that have expired.
    pub(super) fn expire(&self) {
        self.lock().expire(self.ttl);
    }
}

/// The duty to answer a future. One that is dropped answers that it failed, so that nobody waits
/// for ever.
pub(super) struct Reply {
    futures: Arc<Futures>,
    id: u64,
    is_open: bool,
}

impl Reply {
    pub(super) fn new(futures: &Arc<Futures>, id: u64) -> Self {
        Self { futures: Arc::clone(futures), id, is_open: true }
    }

    pub(super) fn answer(mut self, outcome: Result<Payload, ApiError>) {
        self.is_open = false;
        self.futures.answer(self.id, outcome);
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if self.is_open {
            let error = ApiError::internal("the model ended before it came to this request");
            self.futures.answer(self.id, Err(error));
        }
    }
}

impl State {
    fn expire(&mut self, ttl: Duration) {
        let Self { entries, by_key, .. } = self;
        entries.retain(|_, entry| {
            let keep = entry.answered.is_none_or(|at| at.elapsed() < ttl);
            if !keep {
                by_key.remove(&entry.key);
            }
            keep
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Begun, Futures, Payload};

    fn id(begun: &Begun) -> u64 {
        match begun {
            Begun::New(id) | Begun::Known(id) => *id,
        }
    }

    #[tokio::test]
    async fn a_request_sent_again_is_the_same_and_bounds_hold() {
        let futures = Futures::new(2, Duration::ZERO);
        let first = futures.begin("a".to_owned()).unwrap();
        let again = futures.begin("a".to_owned()).unwrap();
        assert!(matches!(again, Begun::Known(_)) && id(&first) == id(&again));
        assert!(futures.wait(id(&first), Duration::ZERO).await.unwrap().is_none());
        futures.begin("b".to_owned()).unwrap();
        assert!(futures.begin("c".to_owned()).is_err());
        futures.answer(id(&first), Ok(Payload::Proto(vec![1])));
        assert!(futures.wait(id(&first), Duration::ZERO).await.unwrap().unwrap().is_ok());
        // The answered one makes room.
        let third = futures.begin("c".to_owned()).unwrap();
        assert!(futures.wait(id(&first), Duration::ZERO).await.is_err());
        let waiting = futures.wait(id(&third), Duration::from_mins(1));
        let answering = async { futures.answer(id(&third), Ok(Payload::Proto(vec![2]))) };
        let (waited, ()) = tokio::join!(waiting, answering);
        assert!(waited.unwrap().is_some());
    }
}
