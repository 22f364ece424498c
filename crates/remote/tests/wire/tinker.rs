//! The Tinker client against a tiny server, which fails in every way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use patchwright_core::{
    AdamParams, Objective, PolicyVersion, SampleRequest, Sampler, SamplerError, TokenLoss, Trainer,
    TrainerError, TrainingSample,
};
use patchwright_remote::tinker::{Reduction, TinkerError, TinkerOptions, open};
use patchwright_wire::PROTOBUF;
use serde_json::json;

use crate::server::{Reply, Request, Server};
use crate::tinker_server::{Adds, PLACES, Tiny};

const ADAM: AdamParams =
    AdamParams { lr: 0.1, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.0, grad_clip: 0.0 };

/// A loss that is not linear, with its own weights.
struct Square;

impl Objective for Square {
    fn token_loss(&self, sample: &TrainingSample, t: usize, logprob: f32) -> TokenLoss {
        let weight = sample.advantages[t];
        let loss = weight * logprob * logprob;
        TokenLoss { loss, d_logprob: 2.0 * weight * logprob, clipped: false }
    }
}

fn options(server: &Server) -> TinkerOptions {
    TinkerOptions {
        first_pause: Duration::from_millis(1),
        request_timeout: Duration::from_secs(20),
        heartbeat: Duration::from_millis(5),
        max_chunk_datums: 2,
        ..TinkerOptions::new(server.url(), "tiny")
    }
}

/// Without a probe.
fn known(server: &Server) -> TinkerOptions {
    TinkerOptions {
        reduction: Some(Reduction::Sum),
        clips_gradients: Some(false),
        ..options(server)
    }
}

/// A tiny server behind `fault`, which may answer in its place.
fn serve(
    tiny: Tiny,
    mut fault: impl FnMut(&Request) -> Option<Reply> + Send + 'static,
) -> (Server, Arc<Mutex<Tiny>>) {
    let tiny = Arc::new(Mutex::new(tiny));
    let shared = Arc::clone(&tiny);
    let server = Server::new(move |request| {
        fault(request).unwrap_or_else(|| shared.lock().unwrap().answer(request))
    });
    (server, tiny)
}

pub fn samples() -> Vec<TrainingSample> {
    [5usize, 9, 1, 3]
        .iter()
        .enumerate()
        .map(|(i, n)| {
            let mask = (0..*n).map(|t| f32::from(t % 2 == 1)).collect();
            let mut sample = TrainingSample::supervised((0..*n as u32).collect(), mask);
            sample.advantages = vec![[1.0, -0.5, 1.0, 2.0][i]; *n];
            sample
        })
        .collect()
}

/// Two steps, the second's gradient of two calls.
fn train(trainer: &mut dyn Trainer) {
    let samples = samples();
    trainer.forward_backward(&samples, &Square).unwrap();
    trainer.optim_step(&ADAM).unwrap();
    trainer.forward_backward(&samples[..1], &Square).unwrap();
    trainer.forward_backward(&samples[1..], &Square).unwrap();
    trainer.optim_step(&ADAM).unwrap();
}

/// What two such steps make of the tiny model.
fn expected() -> [f32; PLACES] {
    let mut theta = [0.0f32; PLACES];
    let mut moments = [[0.0f32; PLACES]; 2];
    for step in 1..=2 {
        let mut gradient = [0.0f32; PLACES];
        for sample in samples() {
            for t in (1..sample.tokens.len()).filter(|t| sample.loss_mask[*t] != 0.0) {
                gradient[t - 1] += 2.0 * sample.advantages[t] * (-3.0 + theta[t - 1]);
            }
        }
        for t in 0..PLACES {
            moments[0][t] = 0.9 * moments[0][t] + 0.1 * gradient[t];
            moments[1][t] = 0.95 * moments[1][t] + 0.05 * gradient[t] * gradient[t];
            let m = moments[0][t] / (1.0 - 0.9f32.powi(step));
            let v = moments[1][t] / (1.0 - 0.95f32.powi(step));
            theta[t] -= 0.1 * m / (v.sqrt() + 1e-8);
        }
    }
    theta
}

fn assert_near(found: [f32; PLACES], expected: [f32; PLACES]) {
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-4, "{found:?} is not {expected:?}");
    }
}

#[test]
fn reductions_and_clips_are_probed_and_give_the_same_steps() {
    for (adds, clips, reduction) in
        [(Adds::Sum, true, Reduction::Sum), (Adds::MeanOfMeans, false, Reduction::MeanOfMeans)]
    {
        // Room for one model: the probe's must go first.
        let (server, tiny) = serve(Tiny::new(adds, clips), |_| None);
        tiny.lock().unwrap().room = 1;
        let (mut trainer, _) = open(options(&server)).unwrap();
        assert_eq!((trainer.reduction(), trainer.clips_gradients()), (reduction, clips));
        train(&mut trainer);
        assert_near(tiny.lock().unwrap().theta(), expected());
        let clipped = trainer.optim_step(&AdamParams { grad_clip: 1.0, ..ADAM });
        if clips {
            clipped.unwrap();
        } else {
            let error = clipped.unwrap_err().to_string();
            assert!(error.contains("set grad_clip to 0"), "{error}");
        }
    }
    let (server, _) = serve(Tiny::new(Adds::TokenMean, false), |_| None);
    let error = open(options(&server)).unwrap_err().to_string();
    assert!(error.contains("neither summed nor averaged"), "{error}");
}

#[test]
fn faults_are_survived_and_nothing_is_counted_twice() {
    let mut count = 0;
    let (server, tiny) = serve(Tiny::new(Adds::Sum, false), |_| None);
    let shared = Arc::clone(&tiny);
    drop(server);
    // Before and after the server has done what it was asked: an answer that is lost is a request
    // sent twice.
    let server = Server::new(move |request| {
        count += 1;
        let done = |request| shared.lock().unwrap().answer(request);
        match count % 9 {
            2 => Reply::Drop,
            3 => Reply::Json(500, json!({"detail": "oops"})),
            4 => Reply::Text(429, Some(("retry-after", "0")), String::new()),
            6 => {
                done(request);
                Reply::Drop
            }
            7 => {
                done(request);
                Reply::Raw(b"garbage")
            }
            8 => Reply::Json(200, json!("nonsense")),
            _ => done(request),
        }
    });
    let options =
        TinkerOptions { max_retries: 20, heartbeat: Duration::from_hours(1), ..known(&server) };
    let (mut trainer, sampler) = open(options).unwrap();
    train(&mut trainer);
    assert_near(tiny.lock().unwrap().theta(), expected());
    assert_eq!(trainer.publish().unwrap(), PolicyVersion(1));
    let request = SampleRequest { context: vec![1], max_tokens: 3, ..SampleRequest::default() };
    let drawn = sampler.sample(&request).unwrap();
    assert_eq!((drawn.tokens, drawn.policy_version), (vec![7; 3], PolicyVersion(1)));
}

#[test]
fn a_lost_session_is_made_anew_unless_steps_would_be_lost() {
    let (server, tiny) = serve(Tiny::new(Adds::Sum, false), |_| None);
    let (mut trainer, _) = open(known(&server)).unwrap();
    let temp = tempfile::tempdir().unwrap();
    tiny.lock().unwrap().lose();
    train(&mut trainer);
    assert_near(tiny.lock().unwrap().theta(), expected());
    trainer.publish().unwrap();
    trainer.save(&temp.path().join("1")).unwrap();

    tiny.lock().unwrap().lose();
    trainer.forward(&samples()).unwrap();
    assert_near(tiny.lock().unwrap().theta(), expected());

    trainer.forward_backward(&samples(), &Square).unwrap();
    trainer.optim_step(&ADAM).unwrap();
    tiny.lock().unwrap().lose();
    let error = trainer.forward(&samples()).unwrap_err();
    assert!(matches!(&error, TrainerError::Engine(text) if text.contains("--resume")), "{error}");

    // What the error tells to do.
    trainer.load(&temp.path().join("1")).unwrap();
    assert_eq!(trainer.policy_version(), PolicyVersion(1));
    assert_near(tiny.lock().unwrap().theta(), expected());

    tiny.lock().unwrap().forget_checkpoints();
    let error = trainer.load(&temp.path().join("1")).unwrap_err();
    assert!(
        matches!(&error, TrainerError::Checkpoint { reason, .. } if reason.contains("expired")),
        "{error}"
    );
}

#[test]
fn the_optimizer_is_forgotten_and_the_weights_are_not() {
    let (server, tiny) = serve(Tiny::new(Adds::Sum, false), |_| None);
    let (mut trainer, _) = open(known(&server)).unwrap();
    train(&mut trainer);
    trainer.reset_optimizer();
    trainer.forward_backward(&samples()[..1], &Square).unwrap();
    trainer.optim_step(&ADAM).unwrap();
    // The first step of an Adam that is new moves each parameter by the learning rate.
    let (found, before) = (tiny.lock().unwrap().theta(), expected());
    for t in [0, 2] {
        assert!(((found[t] - before[t]).abs() - 0.1).abs() < 1e-4, "{found:?} after {before:?}");
    }
    assert_near(
        {
            let mut rest = found;
            rest[0] = before[0];
            rest[2] = before[2];
            rest
        },
        before,
    );
}

#[test]
fn another_protocol_is_named() {
    let (server, _) = serve(Tiny::new(Adds::Sum, false), |request| {
        let refuses = request.path.ends_with("forward_backward");
        refuses.then(|| Reply::Json(415, json!({"detail": "JSON only"})))
    });
    let error = open(options(&server)).unwrap_err();
    assert!(matches!(error, TinkerError::Protocol { .. }), "{error}");
    assert!(error.to_string().contains("JSON only"), "{error}");
}

#[test]
fn a_future_that_never_ends_does() {
    let (server, _) = serve(Tiny::new(Adds::Sum, false), |request| {
        let asks = request.path.ends_with("retrieve_future");
        asks.then(|| Reply::Json(200, json!({"type": "try_again", "queue_state": "active"})))
    });
    let options = TinkerOptions { request_timeout: Duration::from_millis(200), ..known(&server) };
    let error = open(options).unwrap_err();
    assert!(matches!(error, TinkerError::TimedOut { .. }), "{error}");
}

#[test]
fn an_answer_of_another_kind_is_refused() {
    let (server, _) = serve(Tiny::new(Adds::Sum, false), |request| {
        let asks = request.path.ends_with("retrieve_future")
            && request.json()["request_id"].as_str() > Some("r1");
        asks.then(|| Reply::Bytes(PROTOBUF, vec![0xff; 9]))
    });
    let (mut trainer, sampler) = open(known(&server)).unwrap();
    let error = trainer.forward(&samples()).unwrap_err().to_string();
    assert!(error.contains("not what was asked for"), "{error}");
    let request = SampleRequest { context: vec![1], max_tokens: 3, ..SampleRequest::default() };
    let error = sampler.sample(&request).unwrap_err();
    assert!(matches!(error, SamplerError::Engine(_)), "{error}");
    let cancelled = sampler.sample_cancellable(&request, &|| true).unwrap_err();
    assert!(matches!(cancelled, SamplerError::Cancelled), "{cancelled}");
}

#[test]
fn a_model_that_the_server_does_not_have_is_never_asked_for() {
    let (server, _) = serve(Tiny::new(Adds::Sum, false), |_| None);
    let error = open(TinkerOptions { base_model: "big".to_owned(), ..known(&server) }).unwrap_err();
    assert!(error.to_string().contains("one of tiny"), "{error}");
    let error = open(TinkerOptions { lora_rank: 1 << 20, ..known(&server) }).unwrap_err();
    assert!(error.to_string().contains("tinker.lora_rank"), "{error}");
    assert!(!server.seen().iter().any(|request| request.path.ends_with("create_model")));
}
