//! Servers that go away and come back, told once each.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::failure::{FailureKind, HttpFailure};

/// Hears lines for people: a server is down, it is back. From any thread; it must be quick. Clones
/// are the same listener; the default one hears nothing.
#[derive(Clone, Default)]
pub struct Listener(Option<Arc<Hear>>);

type Hear = dyn Fn(&str) + Send + Sync;

impl Listener {
    /// Calls `hear` with each line.
    pub fn new(hear: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hear)))
    }

    /// Says a line.
    pub(crate) fn say(&self, line: &str) {
        if let Some(hear) = &self.0 {
            hear(line);
        }
    }
}

impl PartialEq for Listener {
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Listener({})", self.0.is_some())
    }
}

/// Whether one server answers, by what its requests say.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    listener: Listener,
    since: Mutex<Option<Instant>>,
}

impl Outage {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { listener, since: Mutex::default() }
    }

    /// What came of a request to the server at `url`.
    pub(crate) fn heard<T>(&self, url: &str, result: &Result<T, HttpFailure>) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Err(failure) if matches!(failure.kind, FailureKind::Connect | FailureKind::Dropped) => {
                if since.is_none() {
                    *since = Some(Instant::now());
                    self.listener.say(&down(url, &failure.to_string(), "it is asked again"));
                }
            }
            // It answered, whatever it said; a withdrawn request and a late answer tell nothing.
            Err(failure)
                if matches!(
                    failure.kind,
                    FailureKind::Cancelled | FailureKind::Timeout | FailureKind::BadRequest
                ) => {}
            _ => {
                if let Some(start) = since.take() {
                    self.listener.say(&back(url, start));
                }
            }
        }
    }
}

/// The line of a server that went away.
pub(crate) fn down(url: &str, reason: &str, then: &str) -> String {
    format!("note: server {url} is down: {reason}; {then}")
}

/// The line of a server that came back.
pub(crate) fn back(url: &str, since: Instant) -> String {
    format!("note: server {url} is back after {} s", since.elapsed().as_secs())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::{Listener, Outage};
    use crate::http::{FailureKind, HttpFailure};

    #[test]
    fn each_outage_is_told_once_and_its_end_by_the_first_answer() {
        let lines = Arc::new(Mutex::new(Vec::<String>::new()));
        let heard = Arc::clone(&lines);
        let outage =
            Outage::new(Listener::new(move |line| heard.lock().unwrap().push(line.to_owned())));
        let hear = |kind: Option<FailureKind>| {
            let failure = |kind| HttpFailure::new(kind, "GET http://h/x", "no");
            outage.heard("http://h", &kind.map_or(Ok(()), |kind| Err(failure(kind))));
            lines.lock().unwrap().len()
        };
        assert_eq!(hear(None), 0);
        assert_eq!(hear(Some(FailureKind::Timeout)), 0, "a late answer is no outage");
        assert_eq!(hear(Some(FailureKind::Dropped)), 1);
        assert_eq!(hear(Some(FailureKind::Connect)), 1);
        assert_eq!(hear(Some(FailureKind::Timeout)), 1);
        assert_eq!(hear(Some(FailureKind::Server(500))), 2, "it speaks");
        assert_eq!(hear(None), 2);
        assert_eq!(hear(Some(FailureKind::Connect)), 3);
        let lines = lines.lock().unwrap();
        assert!(lines[0].contains("http://h is down: GET http://h/x: no"), "{lines:?}");
        assert!(lines[1].contains("http://h is back"), "{lines:?}");
    }
}
