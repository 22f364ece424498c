//! Ending requests from another thread, whatever they are waiting for.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ureq::Agent;

/// Ends the requests of all clients that were made with it ([`super::HttpOptions::interrupt`]):
/// those in flight at once, later ones before they are sent. All of them fail with
/// [`super::FailureKind::Cancelled`]. There is no way back. Clones are the same switch.
#[derive(Clone, Default)]
pub struct Interrupt(Arc<State>);

#[derive(Default)]
struct State {
    is_set: AtomicBool,
    agents: Mutex<Vec<Agent>>,
}

impl Interrupt {
    /// A switch that is not set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends all requests.
    pub fn set(&self) {
        self.0.is_set.store(true, Ordering::SeqCst);
        let agents =
            std::mem::take(&mut *self.0.agents.lock().unwrap_or_else(PoisonError::into_inner));
        agents.into_iter().for_each(Agent::shutdown);
    }

    /// Does what [`Interrupt::set`] does, as long as some client is left.
    pub fn switch(&self) -> impl Fn() + Send + 'static {
        let state = Arc::downgrade(&self.0);
        move || {
            if let Some(state) = state.upgrade() {
                Self(state).set();
            }
        }
    }

    /// Whether [`Interrupt::set`] was called.
    pub fn is_set(&self) -> bool {
        self.0.is_set.load(Ordering::SeqCst)
    }

    /// Ends the agent's requests too, once this is set.
    pub(super) fn watch(&self, agent: &Agent) {
        self.0.agents.lock().unwrap_or_else(PoisonError::into_inner).push(agent.clone());
        // It may have been set between the caller's making the agent and this.
        if self.is_set() {
            self.set();
        }
    }
}

impl PartialEq for Interrupt {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Interrupt {}

impl std::fmt::Debug for Interrupt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interrupt({})", self.is_set())
    }
}
