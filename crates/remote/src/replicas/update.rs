//! New weights for all replicas.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{FIRST_RECHECK, Replicas, Served, Standing};
use crate::http::{FailureKind, HttpClient, HttpFailure};

/// What became of an update.
#[derive(Debug, Clone, PartialEq)]
pub struct UpdateReport {
    /// What each replica's loader said, in the replicas' order; `None` for one that drains.
    pub results: Vec<Option<Result<String, HttpFailure>>>,
    /// Wall clock from the first pause to the last answer, in seconds.
    pub wall_seconds: f64,
}

impl Replicas {
    /// Brings new weights to every replica that is not draining, fenced ones included: no request
    /// is given to any until `load` has succeeded there; one where it failed is fenced. `drain`
    /// bounds the wait for requests in flight; `in_flight_may_go_on` leaves that wait out, for loads
    /// that do not touch what is being served. `load` gives a fingerprint of the loaded weights;
    /// where replicas differ in it, all but the most frequent one are fenced.
    ///
    /// # Errors
    /// When no replica has the new weights.
    pub fn update(
        &self,
        served: Served,
        drain: Duration,
        in_flight_may_go_on: bool,
        load: &(dyn Fn(&HttpClient) -> Result<String, HttpFailure> + Sync),
    ) -> Result<UpdateReport, HttpFailure> {
        let start = Instant::now();
        let clients = self.begin_update(served);
        let mut results: Vec<Option<Result<String, HttpFailure>>> = std::thread::scope(|scope| {
            let loads: Vec<_> = clients
                .iter()
                .enumerate()
                .map(|(index, client)| {
                    client.as_ref().map(|client| {
                        scope.spawn(move || {
                            if !in_flight_may_go_on && !self.wait_drained(index, drain) {
                                let what = format!("update of {}", client.base_url());
                                let reason = "requests in flight did not end in time";
                                return Err(HttpFailure::new(FailureKind::Timeout, what, reason));
                            }
                            load(client)
                        })
                    })
                })
                .collect();
            let panicked = || HttpFailure::new(FailureKind::BadRequest, "update", "it panicked");
            loads
                .into_iter()
                .map(|load| load.map(|load| load.join().unwrap_or_else(|_| Err(panicked()))))
                .collect()
        });
        disagreements(&mut results);
        self.end_update(&results);
        let report = UpdateReport { results, wall_seconds: start.elapsed().as_secs_f64() };
        let any = report.results.iter().flatten().any(Result::is_ok);
        match report.results.iter().flatten().find_map(|result| result.as_ref().err()) {
            Some(failure) if !any => Err(failure.clone()),
            None if !any => Err(HttpFailure::new(
                FailureKind::Connect,
                "update",
                "every replica is draining: none has the new weights",
            )),
            _ => Ok(report),
        }
    }

    fn begin_update(&self, served: Served) -> Vec<Option<HttpClient>> {
        let mut state = self.lock();
        state.served = Arc::new(served);
        let clients = state.replicas.iter_mut().map(|replica| {
            if replica.standing == Standing::Draining {
                return None;
            }
            replica.standing = Standing::Updating;
            Some(replica.client.clone())
        });
        clients.collect()
    }

    fn end_update(&self, results: &[Option<Result<String, HttpFailure>>]) {
        let mut state = self.lock();
        let mut lines = Vec::new();
        for (replica, result) in state.replicas.iter_mut().zip(results) {
            match result {
                Some(Ok(_)) => {
                    replica.standing = Standing::Serving;
                    replica.recheck_pause = FIRST_RECHECK;
                }
                Some(Err(failure)) => {
                    replica.standing = Standing::Fenced { reason: failure.to_string() };
                    replica.num_outages += 1;
                }
                None => {}
            }
        }
        for index in 0..state.replicas.len() {
            lines.extend(state.changed(index, self.max_outage));
        }
        drop(state);
        for line in &lines {
            self.listener.say(line);
        }
        self.changed.notify_all();
    }
}

/// Turns fingerprints that are not the most frequent one into failures.
fn disagreements(results: &mut [Option<Result<String, HttpFailure>>]) {
    let prints: Vec<String> =
        results.iter().flatten().filter_map(|result| result.as_ref().ok().cloned()).collect();
    let count = |print: &String| prints.iter().filter(|other| *other == print).count();
    // The first of the most frequent ones.
    let Some(common) = prints.iter().rev().max_by_key(|print| count(print)).cloned() else {
        return;
    };
    for result in results.iter_mut().flatten() {
        if result.as_ref().is_ok_and(|print| *print != common) {
            *result = Err(HttpFailure::garbage(
                "update",
                "the checksum of its loaded weights is not the other replicas'",
            ));
        }
    }
}
