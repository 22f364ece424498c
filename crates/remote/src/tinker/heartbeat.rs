//! A session that is kept alive by a thread, which ends with it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::client::TinkerClient;
use super::error::TinkerError;

/// A session and its heartbeat.
#[derive(Debug)]
pub(super) struct Session {
    id: String,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    ended: Mutex<bool>,
    wake: Condvar,
    lost: AtomicBool,
}

impl Session {
    /// Begins a session and its heartbeat.
    pub(super) fn begin(client: &Arc<TinkerClient>, period: Duration) -> Result<Self, TinkerError> {
        let id = client.create_session()?.session_id;
        let state = Arc::new(State::default());
        let thread = std::thread::Builder::new()
            .name("tinker-heartbeat".to_owned())
            .spawn({
                let (client, state, id) = (Arc::clone(client), Arc::clone(&state), id.clone());
                move || beat(&client, &state, &id, period)
            })
            .map_err(|error| {
                TinkerError::Setting(format!("no thread for the heartbeat: {error}"))
            })?;
        Ok(Self { id, state, thread: Some(thread) })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    /// Whether the server said that it does not know the session any more.
    pub(super) fn is_lost(&self) -> bool {
        self.state.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        *self.state.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.state.wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // A heartbeat on its way ends within its timeout.
            let _ = thread.join();
        }
    }
}

/// Beats until the session ends or is lost. A heartbeat that fails is made up for by the next one:
/// servers wait for minutes.
fn beat(client: &TinkerClient, state: &State, id: &str, period: Duration) {
    let mut ended = state.ended.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        ended = state
            .wake
            .wait_timeout_while(ended, period, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner)
            .0;
        if *ended {
            return;
        }
        drop(ended);
        if client.heartbeat(id).is_err_and(|error| error.is_lost()) {
            state.lost.store(true, Ordering::Relaxed);
            return;
        }
        ended = state.ended.lock().unwrap_or_else(PoisonError::into_inner);
    }
}
