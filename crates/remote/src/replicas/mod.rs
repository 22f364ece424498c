//! Several servers of the same model as one: sticky routing, health, fencing, drain, bounds.
//!
//! A session goes to the replica that rendezvous hashing (Thaler & Ravishankar 1998) ranks first for
//! it, so that its turns find their prefix cached, and only that replica's sessions move when it
//! goes away. A replica takes requests only while it is [`Standing::Serving`], which means: it
//! answered, and it has the weights that are current. One that fails is down until it has proven
//! both again; one whose weights are in doubt is fenced until weights were brought to it anew.

mod lease;
mod update;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use patchwright_core::{PolicyVersion, derive_seed};
use serde::Serialize;

use crate::http::{Call, HttpClient, HttpFailure, Listener, back, down};

pub use lease::Lease;
pub use update::UpdateReport;

/// A session that the preferred replica has no room for goes elsewhere after so long.
const PATIENCE: Duration = Duration::from_secs(2);
/// Pause before a replica that is down is asked again; it doubles.
const FIRST_RECHECK: Duration = Duration::from_millis(200);
const MAX_RECHECK: Duration = Duration::from_secs(5);
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);
/// How long requests wait while no replica serves, unless it is set.
const MAX_OUTAGE: Duration = Duration::from_mins(2);

/// What replicas serve at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Served {
    /// The model's name in requests.
    pub model: String,
    /// Our number of the weights.
    pub policy_version: PolicyVersion,
    /// The engine's name of the weights, where we gave it one.
    pub tag: Option<String>,
}

/// Whether a replica takes requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// It does.
    Serving,
    /// New weights are being brought to it.
    Updating,
    /// It failed, and is asked again now and then.
    Down {
        /// What happened.
        reason: String,
    },
    /// Its weights are in doubt: nothing until an update succeeds.
    Fenced {
        /// What happened.
        reason: String,
    },
    /// It finishes what it has.
    Draining,
}

/// A replica's numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ReplicaReport {
    /// Its URL.
    pub url: String,
    /// Whether it takes requests.
    #[serde(flatten)]
    pub standing: Standing,
    /// Requests in flight.
    pub num_in_flight: usize,
    /// Most requests in flight at once so far.
    pub num_in_flight_max: usize,
    /// Requests that went there.
    pub num_requests: u64,
    /// Requests of sessions that prefer another replica.
    pub num_strays: u64,
    /// Requests that failed there.
    pub num_failures: u64,
    /// Times that it went down or was fenced.
    pub num_outages: u64,
}

/// Proves that a replica that was down may serve: that it answers and has the current weights.
pub trait Readmit: Send + Sync {
    /// Checks the replica, and mends what it can.
    ///
    /// # Errors
    /// Why it may not serve yet.
    fn readmit(&self, client: &HttpClient, served: &Served) -> Result<(), HttpFailure>;
}

/// `GET /health` answers.
pub struct Healthy;

impl Readmit for Healthy {
    fn readmit(&self, client: &HttpClient, _served: &Served) -> Result<(), HttpFailure> {
        let call = Call { timeout: Some(HEALTH_TIMEOUT), ..Call::default() };
        client.send(ureq::http::Method::GET, "/health", None, &call).map(|_| ())
    }
}

struct Replica {
    client: HttpClient,
    standing: Standing,
    in_flight: usize,
    recheck_at: Instant,
    recheck_pause: Duration,
    rechecking: bool,
    /// Since when it is down, as far as it was told.
    told_down: Option<Instant>,
    in_flight_max: usize,
    num_requests: u64,
    num_strays: u64,
    num_failures: u64,
    num_outages: u64,
}

struct State {
    replicas: Vec<Replica>,
    served: Arc<Served>,
    /// Since when requests wait and no replica serves or is being updated.
    outage_since: Option<Instant>,
}

impl State {
    /// Whether a replica serves, or will as soon as it has its weights.
    fn any_serves(&self) -> bool {
        let serves = |r: &Replica| matches!(r.standing, Standing::Serving | Standing::Updating);
        self.replicas.iter().any(serves)
    }

    /// Notes that a replica changed its standing; the line to say of it, once an outage.
    fn changed(&mut self, index: usize, max_outage: Duration) -> Option<String> {
        if self.any_serves() {
            self.outage_since = None;
        }
        let num_serving = self.replicas.iter().filter(|r| r.standing == Standing::Serving).count();
        let (num, is_any) = (self.replicas.len(), self.any_serves());
        let replica = &mut self.replicas[index];
        let url = replica.client.base_url();
        match &replica.standing {
            Standing::Serving => replica.told_down.take().map(|since| back(url, since)),
            Standing::Down { reason } if replica.told_down.is_none() => {
                replica.told_down = Some(Instant::now());
                let then = if is_any {
                    format!("{num_serving} of {num} servers go on, and it is asked again")
                } else {
                    format!("requests wait, for {} s at most", max_outage.as_secs())
                };
                Some(down(url, reason, &then))
            }
            _ => None,
        }
    }
}

/// The replicas of a model.
pub struct Replicas {
    state: Mutex<State>,
    changed: Condvar,
    max_in_flight: usize,
    max_outage: Duration,
    listener: Listener,
    readmit: Mutex<Arc<dyn Readmit>>,
    num_waits: AtomicU64,
}

impl Replicas {
    /// Replicas that are all down until they have proven to be healthy. `max_in_flight` bounds the
    /// requests at one of them.
    pub fn new(clients: Vec<HttpClient>, max_in_flight: usize, served: Served) -> Self {
        let now = Instant::now();
        let replica = |client| Replica {
            client,
            standing: Standing::Down { reason: "not asked yet".to_owned() },
            in_flight: 0,
            recheck_at: now,
            recheck_pause: FIRST_RECHECK,
            rechecking: false,
            told_down: None,
            in_flight_max: 0,
            num_requests: 0,
            num_strays: 0,
            num_failures: 0,
            num_outages: 0,
        };
        let replicas = clients.into_iter().map(replica).collect();
        Self {
            state: Mutex::new(State { replicas, served: Arc::new(served), outage_since: None }),
            changed: Condvar::new(),
            max_in_flight: max_in_flight.max(1),
            max_outage: MAX_OUTAGE,
            listener: Listener::default(),
            readmit: Mutex::new(Arc::new(Healthy)),
            num_waits: AtomicU64::new(0),
        }
    }

    /// Sets how long requests wait while no replica serves (two minutes unless set), and who hears
    /// of replicas that go down and come back.
    #[must_use]
    pub fn with_outages(self, max_outage: Duration, listener: Listener) -> Self {
        Self { max_outage, listener, ..self }
    }

    /// Sets what a replica must prove before it serves again.
    pub fn set_readmit(&self, readmit: Arc<dyn Readmit>) {
        *self.readmit.lock().unwrap_or_else(PoisonError::into_inner) = readmit;
    }

    /// What is served now.
    pub fn served(&self) -> Arc<Served> {
        Arc::clone(&self.lock().served)
    }

    /// Clients of all replicas, in order.
    pub fn clients(&self) -> Vec<HttpClient> {
        self.lock().replicas.iter().map(|replica| replica.client.clone()).collect()
    }

    /// Whether a replica takes requests.
    pub fn is_serving(&self, index: usize) -> bool {
        self.lock().replicas.get(index).is_some_and(|r| r.standing == Standing::Serving)
    }

    /// Takes a replica out of service until an update succeeds: its weights are in doubt.
    pub fn fence(&self, index: usize, reason: &str) {
        self.out_of_service(index, Standing::Fenced { reason: reason.to_owned() });
    }

    /// Gives a replica no more requests; what it has is finished.
    pub fn drain(&self, index: usize) {
        if let Some(replica) = self.lock().replicas.get_mut(index) {
            replica.standing = Standing::Draining;
        }
        self.changed.notify_all();
    }

    /// Waits until no request is in flight at a replica; whether that came about in time.
    pub fn wait_drained(&self, index: usize, timeout: Duration) -> bool {
        let end = Instant::now() + timeout;
        let mut state = self.lock();
        while state.replicas.get(index).is_some_and(|replica| replica.in_flight > 0) {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            state = self.wait(state, left);
        }
        true
    }

    /// Brings a drained replica back, once it has proven to be healthy.
    pub fn undrain(&self, index: usize) {
        let mut state = self.lock();
        if let Some(replica) = state.replicas.get_mut(index)
            && replica.standing == Standing::Draining
        {
            replica.standing = Standing::Down { reason: "was drained".to_owned() };
            replica.recheck_at = Instant::now();
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Numbers of each replica.
    pub fn report(&self) -> Vec<ReplicaReport> {
        let report = |replica: &Replica| ReplicaReport {
            url: replica.client.base_url().to_owned(),
            standing: replica.standing.clone(),
            num_in_flight: replica.in_flight,
            num_in_flight_max: replica.in_flight_max,
            num_requests: replica.num_requests,
            num_strays: replica.num_strays,
            num_failures: replica.num_failures,
            num_outages: replica.num_outages,
        };
        self.lock().replicas.iter().map(report).collect()
    }

    /// Times that a request had to wait for room.
    pub fn num_waits(&self) -> u64 {
        self.num_waits.load(Ordering::Relaxed)
    }

    fn out_of_service(&self, index: usize, standing: Standing) {
        let mut state = self.lock();
        let mut line = None;
        if let Some(replica) = state.replicas.get_mut(index) {
            let was_serving = replica.standing == Standing::Serving;
            let is_fenced = matches!(replica.standing, Standing::Fenced { .. });
            if was_serving || matches!(standing, Standing::Fenced { .. }) && !is_fenced {
                replica.standing = standing;
                replica.num_outages += 1;
                replica.recheck_pause = FIRST_RECHECK;
                replica.recheck_at = Instant::now() + FIRST_RECHECK;
                line = state.changed(index, self.max_outage);
            }
        }
        drop(state);
        self.say(line.as_deref());
        self.changed.notify_all();
    }

    fn say(&self, line: Option<&str>) {
        if let Some(line) = line {
            self.listener.say(line);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Indices of replicas, the session's favourite first.
fn ranked(replicas: &[Replica], session: u64) -> Vec<usize> {
    let score =
        |index: &usize| derive_seed(session, &["replica", replicas[*index].client.base_url()]);
    let mut order: Vec<usize> = (0..replicas.len()).collect();
    if order.len() > 1 {
        order.sort_by_cached_key(|index| std::cmp::Reverse(score(index)));
    }
    order
}
