//! Engines block and HTTP does not: work runs on a bounded number of threads, and hears when
//! nobody waits for it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Semaphore;

use crate::error::ApiError;
use crate::openai::Events;

/// A bounded pool of blocking calls.
#[derive(Debug, Clone)]
pub struct Work {
    permits: Arc<Semaphore>,
}

/// Whether the caller has gone away.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gone {
    dropped: Arc<AtomicBool>,
    events: Option<Events>,
}

impl Gone {
    pub(crate) fn is_set(&self) -> bool {
        self.dropped.load(Ordering::Relaxed) || self.events.as_ref().is_some_and(Events::is_closed)
    }

    /// Gone as well when nobody reads the events any more.
    pub(crate) fn or_closed(&self, events: &Events) -> Self {
        Self { dropped: Arc::clone(&self.dropped), events: Some(events.clone()) }
    }
}

/// Says so when it is dropped, as the future of a request is when its client disconnects.
pub(crate) struct SetOnDrop(Gone);

impl SetOnDrop {
    pub(crate) fn new() -> Self {
        Self(Gone::default())
    }

    pub(crate) fn gone(&self) -> Gone {
        self.0.clone()
    }
}

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.dropped.store(true, Ordering::Relaxed);
    }
}

impl Work {
    /// At most so many calls at once; others wait for their turn.
    pub fn new(max_at_once: usize) -> Self {
        Self { permits: Arc::new(Semaphore::new(max_at_once.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    /// Runs `call` on a thread of its own, in its turn. It should end soon after what it is given
    /// says that the caller is gone, which is when the future is dropped.
    pub(crate) async fn run<T, F>(&self, call: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&Gone) -> Result<T, ApiError> + Send + 'static,
    {
        let closed = |_| ApiError::internal("the server is stopping");
        let permit = Arc::clone(&self.permits).acquire_owned().await.map_err(closed)?;
        let guard = SetOnDrop::new();
        let gone = guard.gone();
        let task = tokio::task::spawn_blocking(move || {
            let result = call(&gone);
            drop(permit);
            result
        });
        let result = task.await.unwrap_or_else(|error| {
            Err(ApiError::internal(format!("a call of the engine failed: {error}")))
        });
        drop(guard);
        result
    }
}
