//! Several servers as one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use patchwright_core::PolicyVersion;
use patchwright_remote::http::{FailureKind, HttpClient, HttpFailure, HttpOptions, Listener};
use patchwright_remote::replicas::{Replicas, Served, Standing};
use serde_json::json;

use crate::server::{Reply, Server};

const SOON: Duration = Duration::from_secs(3);

fn healthy() -> Server {
    Server::new(|_| Reply::Json(200, json!({})))
}

fn replicas(servers: &[&Server], max_in_flight: usize) -> Replicas {
    let client = |server: &&Server| HttpClient::new(HttpOptions::new(server.url())).unwrap();
    Replicas::new(servers.iter().map(client).collect(), max_in_flight, Served::default())
}

fn routed(replicas: &Replicas, session: u64) -> usize {
    replicas.acquire(session, SOON, &|| false).unwrap().index
}

#[test]
fn sessions_stay_and_only_those_of_a_lost_replica_move() {
    let (a, b, c) = (healthy(), healthy(), healthy());
    let replicas = replicas(&[&a, &b, &c], 8);
    let before: BTreeMap<u64, usize> = (0..300).map(|s| (s, routed(&replicas, s))).collect();
    for index in 0..3 {
        let share = before.values().filter(|i| **i == index).count();
        assert!((60..140).contains(&share), "replica {index} has {share} of 300 sessions");
    }
    assert!(before.iter().all(|(session, index)| routed(&replicas, *session) == *index));
    replicas.fence(1, "test");
    for (session, index) in &before {
        let now = routed(&replicas, *session);
        assert!(now != 1 && (*index == 1 || now == *index));
    }
    let report = replicas.report();
    assert_eq!(report[1].standing, Standing::Fenced { reason: "test".into() });
    assert!(report[0].num_strays > 0 && report[1].num_outages == 1);
}

#[test]
fn a_replica_is_bounded_and_its_room_comes_back() {
    let server = healthy();
    let replicas = replicas(&[&server], 2);
    let (one, two) = (replicas.acquire(1, SOON, &|| false), replicas.acquire(2, SOON, &|| false));
    let refused = replicas.acquire(3, Duration::from_millis(50), &|| false).err().unwrap();
    assert!(refused.to_string().contains("has no room"), "{refused}");
    let cancelled = replicas.acquire(3, SOON, &|| true).err().unwrap();
    assert_eq!(cancelled.kind, FailureKind::Cancelled);
    drop(one);
    assert!(replicas.acquire(3, SOON, &|| false).is_ok());
    drop(two);
    assert_eq!(
        (replicas.report()[0].num_in_flight, replicas.report()[0].num_in_flight_max),
        (0, 2)
    );
}

#[test]
fn a_replica_that_fails_is_left_until_it_is_healthy_again() {
    let ill = Arc::new(AtomicBool::new(false));
    let is_ill = Arc::clone(&ill);
    let server = Server::new(move |_| {
        if is_ill.load(Ordering::SeqCst) {
            Reply::Json(503, json!({"error": {"message": "loading"}}))
        } else {
            Reply::Json(200, json!({}))
        }
    });
    let replicas = replicas(&[&server], 2);
    let lease = replicas.acquire(1, SOON, &|| false).unwrap();
    ill.store(true, Ordering::SeqCst);
    lease.failed(&HttpFailure::new(FailureKind::Dropped, "POST", "broke off"));
    drop(lease);
    let error = replicas.acquire(1, Duration::from_millis(500), &|| false).err().unwrap();
    assert!(
        error.to_string().contains("is down") && error.to_string().contains("loading"),
        "{error}"
    );
    ill.store(false, Ordering::SeqCst);
    assert!(replicas.acquire(1, SOON, &|| false).is_ok());
    assert_eq!(replicas.report()[0].num_outages, 1);
}

/// A listener, and the lines that it heard.
pub fn ears() -> (Listener, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::<String>::new()));
    let heard = Arc::clone(&lines);
    (Listener::new(move |line| heard.lock().unwrap().push(line.to_owned())), lines)
}

#[test]
fn an_outage_is_bounded_and_told_once_and_so_is_its_end() {
    let ill = Arc::new(AtomicBool::new(false));
    let is_ill = Arc::clone(&ill);
    let server = Server::new(move |_| {
        if is_ill.load(Ordering::SeqCst) { Reply::Drop } else { Reply::Json(200, json!({})) }
    });
    let (listener, lines) = ears();
    // No outage is short enough, so nothing here waits; the request itself might, for an hour.
    let replicas = replicas(&[&server], 2).with_outages(Duration::ZERO, listener);
    let acquire = || replicas.acquire(1, Duration::from_hours(1), &|| false);
    let lease = acquire().unwrap();
    assert!(lines.lock().unwrap().is_empty(), "all is well");
    ill.store(true, Ordering::SeqCst);
    for _ in 0..2 {
        lease.failed(&HttpFailure::new(FailureKind::Dropped, "POST /x", "broke off"));
        let error = acquire().err().unwrap();
        assert_eq!(error.kind, FailureKind::Unavailable);
        let text = error.to_string();
        assert!(text.contains("none has served for 0 s") && text.contains(server.url()), "{text}");
    }
    {
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 1, "{lines:?}");
        let wanted = ["is down", server.url(), "POST /x: broke off", "requests wait, for 0 s"];
        assert!(wanted.iter().all(|part| lines[0].contains(part)), "{lines:?}");
    }
    ill.store(false, Ordering::SeqCst);
    while acquire().is_err() {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(acquire().is_ok());
    let lines = lines.lock().unwrap();
    assert!(lines.len() == 2 && lines[1].contains("is back after"), "{lines:?}");
}

#[test]
fn one_of_two_that_never_answered_is_told_and_the_other_goes_on() {
    let (a, b) = (healthy(), Server::new(|_| Reply::Drop));
    let (listener, lines) = ears();
    let replicas = replicas(&[&a, &b], 4).with_outages(Duration::ZERO, listener);
    for session in 0..20 {
        assert_eq!(routed(&replicas, session), 0);
    }
    let lines = lines.lock().unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains(b.url()), "{lines:?}");
}

#[test]
fn a_drained_replica_finishes_what_it_has() {
    let (a, b) = (healthy(), healthy());
    let replicas = replicas(&[&a, &b], 4);
    let session = (0..100).find(|s| routed(&replicas, *s) == 0).unwrap();
    let lease = replicas.acquire(session, SOON, &|| false).unwrap();
    replicas.drain(0);
    assert_eq!(routed(&replicas, session), 1);
    assert!(!replicas.wait_drained(0, Duration::from_millis(20)));
    drop(lease);
    assert!(replicas.wait_drained(0, SOON));
    replicas.undrain(0);
    assert_eq!(routed(&replicas, session), 0);
}

#[test]
fn an_update_fences_what_it_fails_on_and_what_differs() {
    let (a, b, c) = (healthy(), healthy(), healthy());
    let replicas = replicas(&[&a, &b, &c], 4);
    let served = |n| Served { policy_version: PolicyVersion(n), ..Served::default() };
    let bad = c.url().to_owned();
    let load = |client: &HttpClient| {
        if client.base_url() == bad {
            Err(HttpFailure::new(FailureKind::Server(500), "reload", "no such path"))
        } else {
            Ok("same".to_owned())
        }
    };
    let report = replicas.update(served(1), SOON, false, &load).unwrap();
    assert!(report.results[0].as_ref().unwrap().is_ok());
    assert!(
        matches!(&replicas.report()[2].standing, Standing::Fenced { reason } if reason.contains("no such path"))
    );
    let lease = replicas.acquire(1, SOON, &|| false).unwrap();
    assert_eq!(lease.served.policy_version, PolicyVersion(1));
    assert!(lease.index != 2);
    drop(lease);
    let odd = b.url().to_owned();
    let print = |client: &HttpClient| Ok(format!("{}", client.base_url() == odd));
    replicas.update(served(2), SOON, false, &print).unwrap();
    assert!(replicas.is_serving(2), "a fenced replica takes part in the next update");
    assert!(
        matches!(&replicas.report()[1].standing, Standing::Fenced { reason } if reason.contains("checksum"))
    );
    let failing = |_: &HttpClient| Err(HttpFailure::new(FailureKind::Server(500), "reload", "no"));
    assert!(replicas.update(served(3), SOON, false, &failing).is_err());
    assert!(replicas.acquire(1, Duration::from_millis(20), &|| false).is_err(), "nothing stale");
}
