//! Weights to servers that behave, and to servers that do not.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use patchwright_core::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, SampleRequest, Sampler,
    Trainer, TrainerError, TrainingSample,
};
use patchwright_remote::replicas::Standing;
use patchwright_remote::sampler::{Dialect, RemoteSampler};
use patchwright_remote::sync::{LoadAs, SyncOptions, SyncReport, SyncedTrainer};
use serde_json::{Value, json};

use crate::samplers::{facts, options};
use crate::server::{Reply, Request, Server};

/// A trainer of one weight: every token has this log-probability.
struct OneWeight {
    weight: f32,
    version: u64,
}

impl Trainer for OneWeight {
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        _: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        Ok(ForwardBackward { logprobs: self.forward(samples)?, ..ForwardBackward::default() })
    }

    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        Ok(samples.iter().map(|sample| vec![self.weight; sample.tokens.len()]).collect())
    }

    fn optim_step(&mut self, _: &AdamParams) -> Result<OptimStats, TrainerError> {
        self.weight -= 0.5;
        Ok(OptimStats::default())
    }

    fn save(&mut self, dir: &Path) -> Result<(), TrainerError> {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("weight"), self.weight.to_string()).unwrap();
        Ok(())
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.weight = std::fs::read_to_string(dir.join("weight")).unwrap().parse().unwrap();
        Ok(())
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        self.version += 1;
        Ok(PolicyVersion(self.version))
    }

    fn reset_optimizer(&mut self) {}

    fn policy_version(&self) -> PolicyVersion {
        PolicyVersion(self.version)
    }
}

/// How a server misbehaves.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Fault {
    None,
    /// Says that it loaded, and did not.
    KeepsOldWeights,
    /// Cannot read the path.
    NoSuchPath,
    /// Does not take the new version's name.
    OldVersion,
    /// Goes away when it is to reload.
    Dies,
}

/// A vLLM of one weight, as 0.32 answers.
struct FakeVllm {
    weight: f32,
    version: String,
    paused: bool,
    fault: Fault,
    calls: Vec<String>,
}

type Shared = Arc<Mutex<FakeVllm>>;

fn vllm() -> (Server, Shared) {
    let fake = FakeVllm {
        weight: -9.0,
        version: "default".into(),
        paused: false,
        fault: Fault::None,
        calls: Vec::new(),
    };
    let shared = Arc::new(Mutex::new(fake));
    let state = Arc::clone(&shared);
    (Server::new(move |request| state.lock().unwrap().answer(request)), shared)
}

impl FakeVllm {
    fn answer(&mut self, request: &Request) -> Reply {
        if request.body == b"{}" && request.path == "/inference/v1/generate" {
            return Reply::Json(422, json!({}));
        }
        let body = request.json();
        self.calls.push(request.path.clone());
        match request.path.as_str() {
            "/pause?mode=wait" => self.paused = true,
            "/resume" => self.paused = false,
            "/collective_rpc" => return self.reload(&body),
            "/update_weight_version" if self.fault != Fault::OldVersion => {
                body["new_version"].as_str().unwrap().clone_into(&mut self.version);
            }
            "/update_weight_version" | "/reset_prefix_cache" => {}
            "/weight_info" => return Reply::Json(200, json!({"weight_version": self.version})),
            "/weight_checker" => {
                return Reply::Json(200, json!({"checksums": {"w": self.weight.to_string()}}));
            }
            "/inference/v1/generate" => return self.generate(&body),
            _ => return facts(request).unwrap_or(Reply::Json(404, json!({}))),
        }
        Reply::Json(200, json!({}))
    }

    fn reload(&mut self, body: &Value) -> Reply {
        assert!(self.paused && body["method"] == "reload_weights");
        let dir = body["kwargs"]["weights_path"].as_str().unwrap();
        match self.fault {
            Fault::NoSuchPath => {
                let message = "Worker failed with error 'Repo id must be in the form'";
                return Reply::Json(500, json!({"error": {"message": message}}));
            }
            Fault::Dies => return Reply::Drop,
            Fault::KeepsOldWeights => {}
            Fault::None | Fault::OldVersion => {
                let text = std::fs::read_to_string(Path::new(dir).join("weight")).unwrap();
                self.weight = text.parse().unwrap();
            }
        }
        Reply::Json(200, json!({"results": [null]}))
    }

    fn generate(&self, body: &Value) -> Reply {
        assert!(!self.paused, "a paused engine does not answer");
        let prompt = body["token_ids"].as_array().unwrap();
        let params = &body["sampling_params"];
        let of_prompt: Vec<Value> = prompt
            .iter()
            .enumerate()
            .map(|(t, id)| {
                if t == 0 { Value::Null } else { json!({id.to_string(): {"logprob": self.weight}}) }
            })
            .collect();
        let wanted = params.get("prompt_logprobs").is_some();
        Reply::Json(
            200,
            json!({
            "prompt_logprobs": if wanted { json!(of_prompt) } else { Value::Null },
            "choices": [{"token_ids": [5], "finish_reason": "length",
                "weight_versions": [{"version": self.version, "start": 0, "end": 1}],
                "logprobs": {"content": [{"token_id": 5, "logprob": self.weight}]}}]}),
        )
    }
}

type Reports = Arc<Mutex<Vec<SyncReport>>>;

fn synced(
    servers: &[&Server],
    dir: &Path,
) -> Result<(SyncedTrainer<OneWeight>, Arc<RemoteSampler>, Reports), TrainerError> {
    let urls = servers.iter().map(|server| server.url().to_owned()).collect();
    let sampler = RemoteSampler::connect(Dialect::VllmGenerate, options(urls)).unwrap();
    let sampler = Arc::new(sampler);
    let options = SyncOptions {
        dir: dir.to_owned(),
        load_as: LoadAs::Weights,
        drain: Duration::from_secs(3),
        load_timeout: Duration::from_secs(3),
        probe: vec![1, 2, 3],
        max_difference: 1e-3,
    };
    let reports = Reports::default();
    let heard = Arc::clone(&reports);
    let listener = Box::new(move |report: &SyncReport| heard.lock().unwrap().push(report.clone()));
    let inner = OneWeight { weight: -1.0, version: 0 };
    let trainer =
        SyncedTrainer::new(inner, OneWeight::save, Arc::clone(&sampler), options, listener)?;
    Ok((trainer, sampler, reports))
}

fn request(session: u64) -> SampleRequest {
    SampleRequest { session, context: vec![1, 2], max_tokens: 1, ..SampleRequest::default() }
}

#[test]
fn every_published_version_is_what_the_servers_serve() {
    let dir = tempfile::tempdir().unwrap();
    let ((a, first), (b, _)) = (vllm(), vllm());
    let (mut trainer, sampler, reports) = synced(&[&a, &b], dir.path()).unwrap();
    assert!(
        (first.lock().unwrap().weight - -1.0).abs() < 1e-6,
        "a server's own weights are never trusted"
    );
    let calls = first.lock().unwrap().calls.clone();
    let order = [
        "/pause?mode=wait",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/weight_checker",
        "/resume",
    ];
    let places: Vec<_> = order.iter().map(|c| calls.iter().position(|x| x == c).unwrap()).collect();
    assert!(places.is_sorted(), "{calls:?}");
    for version in 1..=4 {
        trainer.inner_step();
        assert_eq!(trainer.publish().unwrap(), PolicyVersion(version));
        for session in 0..8 {
            let completion = sampler.sample(&request(session)).unwrap();
            assert_eq!(completion.policy_version, PolicyVersion(version));
            let expected = -1.0 - 0.5 * version as f32;
            assert!((completion.logprobs[0] - expected).abs() < 1e-6);
        }
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "old versions go");
    let last = reports.lock().unwrap().last().unwrap().clone();
    assert!(last.summary().contains("agrees within"), "{}", last.summary());
}

#[test]
fn a_replica_that_fails_an_update_is_fenced_and_never_served_stale() {
    for (fault, why) in [
        (Fault::KeepsOldWeights, "it serves other weights"),
        (Fault::NoSuchPath, "Repo id"),
        (Fault::OldVersion, "it says version"),
        (Fault::Dies, "broke off"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let ((a, _), (b, bad), (c, _)) = (vllm(), vllm(), vllm());
        let (mut trainer, sampler, _) = synced(&[&a, &b, &c], dir.path()).unwrap();
        trainer.inner_step();
        bad.lock().unwrap().fault = fault;
        trainer.publish().unwrap();
        let standing = &sampler.replicas().report()[1].standing;
        assert!(
            matches!(standing, Standing::Fenced { reason } if reason.contains(why)),
            "{fault:?}: {standing:?}"
        );
        for session in 0..12 {
            let completion = sampler.sample(&request(session)).unwrap();
            assert!((completion.logprobs[0] - -1.5).abs() < 1e-6, "{fault:?}");
        }
        bad.lock().unwrap().fault = Fault::None;
        trainer.publish().unwrap();
        assert!(sampler.replicas().is_serving(1), "{fault:?}: the next version mends it");
    }
}

#[test]
fn the_only_server_with_other_weights_stops_training() {
    let dir = tempfile::tempdir().unwrap();
    let (a, state) = vllm();
    let (mut trainer, sampler, _) = synced(&[&a], dir.path()).unwrap();
    trainer.inner_step();
    state.lock().unwrap().fault = Fault::KeepsOldWeights;
    let error = trainer.publish().unwrap_err().to_string();
    assert!(error.contains("it serves other weights"), "{error}");
    assert!(!sampler.replicas().is_serving(0));
}

/// A server that was started anew has its first weights again, under their first name.
#[test]
fn a_server_that_was_started_anew_is_given_the_weights_before_it_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (a, state) = vllm();
    let (mut trainer, sampler, _) = synced(&[&a], dir.path()).unwrap();
    trainer.inner_step();
    trainer.publish().unwrap();
    // It is found out by the version in its answer, fenced, and mended by the next update.
    {
        let mut state = state.lock().unwrap();
        (state.weight, state.version) = (-9.0, "default".into());
    }
    let error =
        sampler.sample_cancellable(&request(1), &|| !sampler.replicas().is_serving(0)).unwrap_err();
    assert!(!sampler.replicas().is_serving(0), "{error}");
    trainer.publish().unwrap();
    let completion = sampler.sample(&request(1)).unwrap();
    assert!((completion.logprobs[0] - -1.5).abs() < 1e-6);
}

/// What the tests do to the trainer's weight.
trait Step {
    fn inner_step(&mut self);
}

impl Step for SyncedTrainer<OneWeight> {
    fn inner_step(&mut self) {
        let adam = AdamParams {
            lr: 0.0,
            beta1: 0.0,
            beta2: 0.0,
            eps: 0.0,
            weight_decay: 0.0,
            grad_clip: 0.0,
        };
        self.optim_step(&adam).unwrap();
    }
}
