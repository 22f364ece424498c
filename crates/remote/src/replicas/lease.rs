//! One request's place at a replica.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{MAX_RECHECK, PATIENCE, Replicas, Served, Standing, State, ranked};
use crate::http::{FailureKind, HttpClient, HttpFailure};

/// How long a wait goes on before the caller is asked whether it still wants a place.
const TICK: Duration = Duration::from_millis(200);

/// A place; it is given back when this is dropped.
pub struct Lease<'a> {
    replicas: &'a Replicas,
    /// Which replica.
    pub index: usize,
    /// Its client.
    pub client: HttpClient,
    /// What it serves.
    pub served: Arc<Served>,
}

impl Lease<'_> {
    /// Says that the request failed at the replica. One that is in trouble is left alone for a
    /// while.
    pub fn failed(&self, failure: &HttpFailure) {
        {
            let mut state = self.replicas.lock();
            state.replicas[self.index].num_failures += 1;
        }
        // A slow answer may be a long one, and 5xx may be this request's.
        if matches!(failure.kind, FailureKind::Connect | FailureKind::Dropped) {
            let reason = failure.to_string();
            self.replicas.out_of_service(self.index, Standing::Down { reason });
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = self.replicas.lock();
        state.replicas[self.index].in_flight -= 1;
        drop(state);
        self.replicas.changed.notify_all();
    }
}

/// What to do next for a place.
enum Next {
    Take(usize, bool),
    Recheck(usize),
    Wait(Duration),
}

impl Replicas {
    /// A place for a request of `session`, at its favourite replica if that serves and has room
    /// soon. Waits for `timeout` at most, and while no replica serves only until that has gone on for
    /// the longest outage, whoever began to wait.
    ///
    /// # Errors
    /// [`FailureKind::Unavailable`] when no replica serves in time, [`FailureKind::Cancelled`].
    pub fn acquire(
        &self,
        session: u64,
        timeout: Duration,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Lease<'_>, HttpFailure> {
        let start = Instant::now();
        let mut state = self.lock();
        let order = ranked(&state.replicas, session);
        loop {
            match self.next(&state, &order, start.elapsed() >= PATIENCE) {
                Next::Take(index, stray) => {
                    let served = Arc::clone(&state.served);
                    let replica = &mut state.replicas[index];
                    replica.in_flight += 1;
                    replica.in_flight_max = replica.in_flight_max.max(replica.in_flight);
                    replica.num_requests += 1;
                    replica.num_strays += u64::from(stray);
                    let client = replica.client.clone();
                    return Ok(Lease { replicas: self, index, client, served });
                }
                Next::Recheck(index) => state = self.recheck(state, index),
                Next::Wait(time) => {
                    let left = timeout.saturating_sub(start.elapsed());
                    if is_cancelled() {
                        return Err(HttpFailure::cancelled("request"));
                    }
                    if left.is_zero() {
                        return Err(unavailable(&state, "no place within", timeout));
                    }
                    if !state.any_serves() {
                        let since = *state.outage_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= self.max_outage {
                            let max = self.max_outage;
                            return Err(unavailable(&state, "none has served for", max));
                        }
                    }
                    self.num_waits.fetch_add(1, Ordering::Relaxed);
                    state = self.wait(state, time.min(left).min(TICK));
                }
            }
        }
    }

    fn next(&self, state: &State, order: &[usize], impatient: bool) -> Next {
        let now = Instant::now();
        let due = order.iter().copied().find(|index| {
            let replica = &state.replicas[*index];
            let is_down = matches!(replica.standing, Standing::Down { .. });
            is_down && !replica.rechecking && replica.recheck_at <= now
        });
        if let Some(index) = due {
            return Next::Recheck(index);
        }
        let mut serving =
            order.iter().copied().filter(|i| state.replicas[*i].standing == Standing::Serving);
        let has_room = |index: &usize| state.replicas[*index].in_flight < self.max_in_flight;
        match serving.next() {
            Some(first) if has_room(&first) => Next::Take(first, order.first() != Some(&first)),
            Some(_) if impatient => {
                serving.find(has_room).map_or(Next::Wait(TICK), |index| Next::Take(index, true))
            }
            _ => Next::Wait(TICK),
        }
    }

    /// Asks a replica that is down whether it may serve, without the lock.
    fn recheck<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        index: usize,
    ) -> MutexGuard<'a, State> {
        state.replicas[index].rechecking = true;
        let client = state.replicas[index].client.clone();
        let served = Arc::clone(&state.served);
        drop(state);
        let readmit = Arc::clone(&self.readmit.lock().unwrap_or_else(PoisonError::into_inner));
        let result = readmit.readmit(&client, &served);
        let mut state = self.lock();
        // Whoever changed it, or what is served, in the meantime knows better.
        let is_current = Arc::ptr_eq(&served, &state.served);
        let replica = &mut state.replicas[index];
        replica.rechecking = false;
        if matches!(replica.standing, Standing::Down { .. }) && is_current {
            match result {
                Ok(()) => replica.standing = Standing::Serving,
                Err(failure) => {
                    replica.standing = Standing::Down { reason: failure.to_string() };
                    replica.recheck_at = Instant::now() + replica.recheck_pause;
                    replica.recheck_pause = (replica.recheck_pause * 2).min(MAX_RECHECK);
                }
            }
            let line = state.changed(index, self.max_outage);
            if line.is_some() {
                drop(state);
                self.say(line.as_deref());
                state = self.lock();
            }
        }
        self.changed.notify_all();
        state
    }
}

fn unavailable(state: &State, what: &str, time: Duration) -> HttpFailure {
    let of = |replica: &super::Replica| {
        let how = match &replica.standing {
            Standing::Serving => "has no room".to_owned(),
            Standing::Updating => "is being updated".to_owned(),
            Standing::Down { reason } => format!("is down: {reason}"),
            Standing::Fenced { reason } => format!("is fenced: {reason}"),
            Standing::Draining => "is draining".to_owned(),
        };
        format!("{} {how}", replica.client.base_url())
    };
    let all: Vec<String> = state.replicas.iter().map(of).collect();
    let reason = format!("{what} {} s; {}", time.as_secs_f64(), all.join("; "));
    HttpFailure::new(FailureKind::Unavailable, "servers", reason)
}
