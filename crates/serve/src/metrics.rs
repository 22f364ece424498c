//! Counts for Prometheus, in its text format. Labels are routes and status codes, which are few.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the buckets of a request's duration, in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 30.0, 120.0, 600.0];

/// Routes that are told apart at most; further ones are counted together.
const MAX_ROUTES: usize = 128;

#[derive(Default)]
struct Route {
    by_status: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// What a server has done since it was started.
#[derive(Default)]
pub struct Metrics {
    routes: Mutex<BTreeMap<String, Route>>,
    in_flight: AtomicI64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    completion_tokens: AtomicU64,
    trained_tokens: AtomicU64,
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Metrics {
    pub(crate) fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn end(&self, route: &str, status: u16, took: Duration) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let known = routes.contains_key(route) || routes.len() < MAX_ROUTES;
        let entry = routes.entry(if known { route } else { "(other)" }.to_owned()).or_default();
        *entry.by_status.entry(status).or_default() += 1;
        entry.count += 1;
        entry.seconds += took.as_secs_f64();
        for (bucket, bound) in entry.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(took.as_secs_f64() <= bound);
        }
    }

    /// Counts the tokens of a completion that was given.
    pub(crate) fn sampled(&self, prompt: usize, cached: usize, completion: usize) {
        self.prompt_tokens.fetch_add(prompt as u64, Ordering::Relaxed);
        self.cached_tokens.fetch_add(cached as u64, Ordering::Relaxed);
        self.completion_tokens.fetch_add(completion as u64, Ordering::Relaxed);
    }

    /// Counts tokens that went through a forward or backward pass.
    pub(crate) fn trained(&self, tokens: usize) {
        self.trained_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
    }

    /// Everything, in the text format of Prometheus (version 0.0.4).
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut number = |name: &str, kind: &str, help: &str, value: String| {
            // Writing to a string does not fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}");
        };
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed).to_string();
        let in_flight = self.in_flight.load(Ordering::Relaxed).to_string();
        number("patchwright_http_in_flight", "gauge", "Requests in work.", in_flight);
        for (name, help, counter) in [
            ("prompt_tokens", "Tokens of prompts.", &self.prompt_tokens),
            ("cached_tokens", "Of these, tokens taken from the cache.", &self.cached_tokens),
            ("completion_tokens", "Tokens drawn.", &self.completion_tokens),
            ("trained_tokens", "Tokens of forward and backward passes.", &self.trained_tokens),
        ] {
            number(&format!("patchwright_{name}_total"), "counter", help, get(counter));
        }
        self.render_routes(&mut text);
        text
    }

    fn render_routes(&self, text: &mut String) {
        let routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        line("# HELP patchwright_http_requests_total Requests answered.".to_owned());
        line("# TYPE patchwright_http_requests_total counter".to_owned());
        for (route, entry) in routes.iter() {
            for (status, count) in &entry.by_status {
                line(format!(
                    "patchwright_http_requests_total{{route=\"{route}\",status=\"{status}\"}} {count}"
                ));
            }
        }
        line("# HELP patchwright_http_request_seconds Until the answer begins.".to_owned());
        line("# TYPE patchwright_http_request_seconds histogram".to_owned());
        let name = "patchwright_http_request_seconds";
        for (route, entry) in routes.iter() {
            for (bound, count) in BUCKETS.iter().zip(entry.buckets) {
                line(format!("{name}_bucket{{route=\"{route}\",le=\"{bound}\"}} {count}"));
            }
            line(format!("{name}_bucket{{route=\"{route}\",le=\"+Inf\"}} {}", entry.count));
            line(format!("{name}_sum{{route=\"{route}\"}} {}", entry.seconds));
            line(format!("{name}_count{{route=\"{route}\"}} {}", entry.count));
        }
    }
}
