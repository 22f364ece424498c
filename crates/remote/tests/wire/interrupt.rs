//! Ctrl-C: requests end that wait for an answer, at once and not at their timeouts.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use patchwright_core::{SampleRequest, Sampler, SamplerError, Trainer, TrainerError};
use patchwright_remote::http::{Call, FailureKind, HttpClient, HttpOptions, Interrupt};
use patchwright_remote::sampler::{Dialect, RemoteSampler, SamplerOptions};
use patchwright_remote::tinker::{Reduction, TinkerOptions, open};
use serde_json::{Value, json};

use crate::samplers::facts;
use crate::server::{Reply, Request, Server};
use crate::tinker::samples;
use crate::tinker_server::{Adds, Tiny};

/// Far beyond what the test may take.
const FOR_EVER: Duration = Duration::from_mins(10);
/// Far beyond what an interrupted request takes, on a busy machine as well.
const SOON: Duration = Duration::from_mins(1);

fn never() -> Reply {
    Reply::Slow(FOR_EVER, Box::new(Reply::Drop))
}

/// Sets the switch once the server says that it holds a request.
fn set_when_held(interrupt: &Interrupt, held: Receiver<()>) {
    let switch = interrupt.switch();
    std::thread::spawn(move || {
        if held.recv().is_ok() {
            switch();
        }
    });
}

/// A server that holds what `holds` picks for ever, and says so.
fn holding(
    mut answer: impl FnMut(&Request) -> Reply + Send + 'static,
    holds: impl Fn(&Request) -> bool + Send + 'static,
) -> (Server, Receiver<()>) {
    let (says, held): (Sender<()>, _) = channel();
    let server = Server::new(move |request| {
        if holds(request) {
            let _ = says.send(());
            return never();
        }
        answer(request)
    });
    (server, held)
}

#[test]
fn a_request_that_waits_is_ended_and_later_ones_are_not_sent() {
    let (server, held) = holding(|_| Reply::Drop, |_| true);
    let interrupt = Interrupt::new();
    let options = HttpOptions {
        timeout: FOR_EVER,
        interrupt: interrupt.clone(),
        ..HttpOptions::new(server.url())
    };
    let client = HttpClient::new(options).unwrap();
    set_when_held(&interrupt, held);
    let start = Instant::now();
    for _ in 0..2 {
        let failure = client.get_json::<Value>("/", &Call::default()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}");
    }
    assert!(start.elapsed() < SOON && interrupt.is_set());
    assert_eq!(server.seen().len(), 1);
}

#[test]
fn a_sample_that_waits_is_cancelled() {
    let draws = |request: &Request| request.method == "POST" && request.body != b"{}";
    let answer = |request: &Request| {
        facts(request).unwrap_or_else(|| Reply::Json(422, json!({"detail": "Field required"})))
    };
    let (server, held) = holding(answer, draws);
    let interrupt = Interrupt::new();
    let options = SamplerOptions {
        timeout: FOR_EVER,
        interrupt: interrupt.clone(),
        ..SamplerOptions::new(vec![server.url().to_owned()])
    };
    let sampler = RemoteSampler::connect(Dialect::VllmGenerate, options).unwrap();
    set_when_held(&interrupt, held);
    let request = SampleRequest { context: vec![1], max_tokens: 2, ..SampleRequest::default() };
    let start = Instant::now();
    let error = sampler.sample(&request).unwrap_err();
    assert!(matches!(error, SamplerError::Cancelled), "{error}");
    assert!(start.elapsed() < SOON);
    assert!(sampler.replicas().is_serving(0), "it is not the server's failure");
}

#[test]
fn a_trainer_that_waits_for_its_result_ends() {
    let mut tiny = Tiny::new(Adds::Sum, false);
    // The first two futures are the model's creation and its first publication.
    let asks = |request: &Request| {
        request.path.ends_with("retrieve_future")
            && request.json()["request_id"].as_str() > Some("r1")
    };
    let (server, held) = holding(move |request| tiny.answer(request), asks);
    let interrupt = Interrupt::new();
    let options = TinkerOptions {
        request_timeout: FOR_EVER,
        poll_timeout: FOR_EVER,
        reduction: Some(Reduction::Sum),
        clips_gradients: Some(false),
        interrupt: interrupt.clone(),
        ..TinkerOptions::new(server.url(), "tiny")
    };
    let (mut trainer, sampler) = open(options).unwrap();
    set_when_held(&interrupt, held);
    let start = Instant::now();
    let error = trainer.forward(&samples()).unwrap_err();
    assert!(matches!(&error, TrainerError::Engine(text) if text.contains("cancelled")), "{error}");
    let request = SampleRequest { context: vec![1], max_tokens: 2, ..SampleRequest::default() };
    let error = Arc::clone(&sampler).sample(&request).unwrap_err();
    assert!(matches!(error, SamplerError::Cancelled), "{error}");
    drop(trainer);
    assert!(start.elapsed() < SOON);
}
