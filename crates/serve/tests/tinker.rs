//! The Tinker API over the embedded engine: message by message, and by the official SDK where
//! `PATCHWRIGHT_TINKER_VENVS` names virtual environments that have it (`scripts/sdk_venvs.sh`).

#[path = "../../cli/src/commands/serve/embedded.rs"]
mod embedded;
mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use embedded::{EmbeddedBackend, load};
use patchwright_engine::EngineOptions;
use patchwright_serve::tinker::{self, TinkerOptions};
use patchwright_serve::{BearerToken, Guard, Metrics, ModelText, Server, ServerLimits, Work};
use patchwright_wire::{
    Datum, ForwardBackwardOutput, ForwardBackwardRequest, Limits, LossFn, SampleResponse, Tensor,
    compress, paths,
};
use serde_json::{Value, json};

const SECRET: &str = "tml-secret-of-the-tests";

struct Rig {
    server: Server,
    text: Arc<ModelText>,
    _store: tempfile::TempDir,
}

fn rig() -> Rig {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/base");
    let options = EngineOptions { num_threads: 1, ..EngineOptions::default() };
    let text = Arc::new(ModelText::from_dir(&dir).unwrap());
    let sampler = load(&dir, &options, &text).unwrap().sampler();
    let backend = EmbeddedBackend {
        dir,
        name: "base".to_owned(),
        text: Arc::clone(&text),
        options,
        sampler,
        tell: |_| (),
    };
    let store = tempfile::tempdir().unwrap();
    let limits = ServerLimits::default();
    let metrics = Arc::new(Metrics::default());
    let token = BearerToken::new(SECRET).unwrap();
    let tinker_options = TinkerOptions {
        poll: std::time::Duration::from_secs(5),
        max_models: 3,
        ..TinkerOptions::new(store.path().to_owned())
    };
    let work = Work::new(limits.max_samples);
    let routes =
        tinker::router(Arc::new(backend), tinker_options, work, Arc::clone(&metrics)).unwrap();
    let router = Guard::new(Some(token.clone()), limits, metrics).protect(routes);
    let address = "127.0.0.1:0".parse().unwrap();
    let server = Server::start(address, Some(&token), limits, router).unwrap();
    Rig { server, text, _store: store }
}

enum Result {
    Json(Value),
    Proto(Vec<u8>),
}

impl Rig {
    fn post(&self, path: &str, body: &Value) -> Value {
        let (status, answer) = support::post(self.server.address(), path, SECRET, body);
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    fn wait(&self, future: &Value) -> Result {
        let body = json!({"request_id": future["request_id"]}).to_string();
        loop {
            let (status, head, bytes) = support::raw(
                self.server.address(),
                paths::RETRIEVE_FUTURE,
                SECRET,
                "application/json",
                body.as_bytes(),
            );
            assert_eq!(status, 200);
            if head.contains("x-protobuf") {
                return Result::Proto(bytes);
            }
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            if value["type"] != "try_again" {
                return Result::Json(value);
            }
        }
    }

    fn done(&self, path: &str, body: &Value) -> Value {
        match self.wait(&self.post(path, body)) {
            Result::Json(value) => value,
            Result::Proto(_) => panic!("protobuf from {path}"),
        }
    }

    fn session(&self) -> String {
        let body = json!({"tags": [], "user_metadata": null, "sdk_version": "0.25.0"});
        self.post(paths::CREATE_SESSION, &body)["session_id"].as_str().unwrap().to_owned()
    }

    fn model(&self, session: &str, number: u32, lora: &Value) -> String {
        let body = json!({"session_id": session, "model_seq_id": number, "base_model": "base",
            "lora_config": lora});
        let made = self.done(paths::CREATE_MODEL, &body);
        made["model_id"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }

    fn send(&self, request: &ForwardBackwardRequest) -> Value {
        let body = request.encode().unwrap();
        let (status, _, answer) = support::raw(
            self.server.address(),
            paths::FORWARD_BACKWARD,
            SECRET,
            "application/x-protobuf",
            &body,
        );
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap()
    }

    fn learned(&self, future: &Value) -> ForwardBackwardOutput {
        match self.wait(future) {
            Result::Proto(bytes) => {
                ForwardBackwardOutput::decode(&bytes, &Limits::default()).unwrap()
            }
            Result::Json(value) => panic!("{value}"),
        }
    }

    fn sample(&self, body: &Value) -> SampleResponse {
        match self.wait(&self.post(paths::ASAMPLE, body)) {
            Result::Proto(bytes) => SampleResponse::decode(&bytes, &Limits::default()).unwrap(),
            Result::Json(value) => panic!("{value}"),
        }
    }

    fn datum(&self, text: &str) -> Datum {
        let tokens = self.text.tokenizer().encode(text);
        let targets: Vec<i64> = tokens[1..].iter().map(|t| i64::from(*t)).collect();
        let weights = vec![1.0; targets.len()];
        let loss_fn_inputs: BTreeMap<String, Tensor> = [
            ("target_tokens".to_owned(), Tensor::i64(targets)),
            ("weights".to_owned(), Tensor::f32(weights)),
        ]
        .into();
        Datum { tokens: tokens[..tokens.len() - 1].to_vec(), loss_fn_inputs }
    }
}

fn request(model_id: &str, seq_id: u32, data: Vec<Datum>) -> ForwardBackwardRequest {
    ForwardBackwardRequest {
        model_id: model_id.to_owned(),
        seq_id,
        data,
        loss_fn: LossFn::CrossEntropy,
        loss_fn_config: BTreeMap::new(),
        forward_only: false,
    }
}

#[test]
fn training_lowers_the_loss_and_the_sampler_sees_it() {
    let rig = rig();
    let session = rig.session();
    for (number, lora, rate) in [(0, Value::Null, 1e-3), (1, json!({"rank": 4, "seed": 3}), 1e-2)] {
        let model = rig.model(&session, number, &lora);
        let text = "<|user|>f(1) returned 2<|assistant|>open f.py<|end|>";
        let mut losses = Vec::new();
        for step in 0..4u32 {
            let future = rig.send(&request(&model, 2 * step + 1, vec![rig.datum(text); 2]));
            let output = rig.learned(&future);
            losses.push(output.metrics["loss:sum"]);
            let logprobs = output.loss_fn_outputs[0]["logprobs"].as_f32("logprobs").unwrap();
            let sum: f64 = logprobs.iter().map(|l| f64::from(*l)).sum();
            assert!((output.metrics["loss:sum"] + 2.0 * sum).abs() < 1e-3);
            let step = rig.done(
                paths::OPTIM_STEP,
                &json!({"model_id": model, "seq_id": 2 * step + 2,
                "adam_params": {"learning_rate": rate}}),
            );
            assert!(step["metrics"]["grad_norm"].as_f64().unwrap() > 0.0, "{step}");
        }
        assert!(losses[3] < 0.9 * losses[0], "{losses:?}");
        let saved = rig.done(
            paths::SAVE_WEIGHTS_FOR_SAMPLER,
            &json!({"model_id": model, "seq_id": 9, "sampling_session_seq_id": number}),
        );
        let prompt = rig.datum(text).tokens;
        let ask = |id: &Value| {
            rig.sample(&json!({"sampling_session_id": id, "seq_id": 1, "num_samples": 1,
                "prompt": {"chunks": [{"type": "encoded_text", "tokens": prompt}]},
                "sampling_params": {"max_tokens": 1, "temperature": 1.0, "top_k": -1, "top_p": 1.0},
                "prompt_logprobs": true}))
        };
        let scores = ask(&saved["sampling_session_id"]).prompt_logprobs.unwrap();
        // What the trainer says of the same tokens under the same weights.
        let forward = ForwardBackwardRequest {
            forward_only: true,
            ..request(&model, 10, vec![rig.datum(text)])
        };
        let output = rig.learned(&rig.send(&forward));
        let expected = output.loss_fn_outputs[0]["logprobs"].as_f32("logprobs").unwrap();
        assert!(scores[0].is_nan());
        assert_eq!(scores[1..], expected[..expected.len() - 1]);
        // The base model is as it was.
        let base = rig.post(
            paths::CREATE_SAMPLING_SESSION,
            &json!({"session_id": session,
            "sampling_session_seq_id": 10 + number, "base_model": "base"}),
        );
        let before = ask(&base["sampling_session_id"]).prompt_logprobs.unwrap();
        assert!(before[1..].iter().sum::<f32>() < scores[1..].iter().sum::<f32>());
        // Saved and loaded, it goes on where it was.
        let saved =
            rig.done(paths::SAVE_WEIGHTS, &json!({"model_id": model, "seq_id": 11, "path": "s"}));
        let loaded = rig.done(
            paths::LOAD_WEIGHTS,
            &json!({"session_id": session,
            "model_seq_id": 20 + number, "path": saved["path"], "optimizer": true}),
        );
        let twin = loaded["model_id"].as_str().unwrap_or_else(|| panic!("{loaded}"));
        let forward = ForwardBackwardRequest { model_id: twin.to_owned(), seq_id: 1, ..forward };
        let again = rig.learned(&rig.send(&forward));
        assert_eq!(again.loss_fn_outputs, output.loss_fn_outputs);
        rig.done("/api/v1/unload_model", &json!({"model_id": twin}));
    }
}

#[test]
fn requests_are_worked_off_by_number_and_once() {
    let rig = rig();
    let session = rig.session();
    let model = rig.model(&session, 0, &Value::Null);
    let data = vec![rig.datum("<|user|>a<|assistant|>submit<|end|>")];
    // The second chunk comes first, and the first comes twice.
    let second = rig.send(&request(&model, 2, data.clone()));
    let first = rig.send(&request(&model, 1, data.clone()));
    let again = rig.send(&request(&model, 1, data.clone()));
    assert_eq!(first, again);
    assert_ne!(first, second);
    let (first, second) = (rig.learned(&first), rig.learned(&second));
    assert_eq!(first, second);
    // Two gradients were added, no more: their norm is twice that of one.
    let norm = |seq: u32| {
        let body = json!({"model_id": model, "seq_id": seq, "adam_params": {"learning_rate": 0.0}});
        rig.done(paths::OPTIM_STEP, &body)["metrics"]["grad_norm"].as_f64().unwrap()
    };
    let twice = norm(3);
    let compressed = compress(&request(&model, 4, data).encode().unwrap()).unwrap();
    let (status, _, answer) = support::raw_with(
        rig.server.address(),
        paths::FORWARD_BACKWARD,
        SECRET,
        "application/x-protobuf",
        "Content-Encoding: zstd\r\n",
        &compressed,
    );
    assert_eq!(status, 200, "{}", String::from_utf8_lossy(&answer));
    rig.learned(&serde_json::from_slice(&answer).unwrap());
    assert!((twice / norm(5) - 2.0).abs() < 1e-4);
}

#[test]
fn bad_input_is_told_through_the_future_or_at_once() {
    let rig = rig();
    let session = rig.session();
    let address = rig.server.address();
    let model = rig.model(&session, 0, &Value::Null);
    let mut datum = rig.datum("<|user|>a<|assistant|>b");
    datum.tokens[1] += 1;
    let failed = match rig.wait(&rig.send(&request(&model, 1, vec![datum]))) {
        Result::Json(value) => value,
        Result::Proto(_) => panic!("it was taken"),
    };
    assert_eq!(failed["category"], "user", "{failed}");
    assert!(failed["error"].as_str().unwrap().contains("target_tokens[0]"), "{failed}");
    let sampling = |params: Value| {
        json!({"base_model": "base", "sampling_params": params,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1]}]}})
    };
    for (path, body, status) in [
        (
            paths::CREATE_MODEL,
            json!({"session_id": "none", "model_seq_id": 0, "base_model": "base"}),
            404,
        ),
        (
            paths::CREATE_MODEL,
            json!({"session_id": session, "model_seq_id": 9, "base_model": "x"}),
            400,
        ),
        (paths::GET_INFO, json!({"model_id": "none"}), 404),
        (paths::OPTIM_STEP, json!({}), 400),
        (paths::ASAMPLE, sampling(json!({"top_p": 0.5})), 400),
        (paths::ASAMPLE, sampling(json!({"top_k": 3})), 400),
        (
            paths::LOAD_WEIGHTS,
            json!({"model_id": model, "path": "tinker://../weights/x", "optimizer": false}),
            400,
        ),
        (paths::RETRIEVE_FUTURE, json!({"request_id": "999999"}), 410),
        (paths::FORWARD_BACKWARD, json!({}), 415),
    ] {
        let (got, answer) = support::post(address, path, SECRET, &body);
        assert_eq!(got, status, "{path}: {answer}");
        assert!(answer["detail"].is_string(), "{answer}");
    }
    // A third model, and no fourth.
    rig.model(&session, 1, &Value::Null);
    rig.model(&session, 2, &Value::Null);
    let body = json!({"session_id": session, "model_seq_id": 3, "base_model": "base"});
    let refused = rig.done(paths::CREATE_MODEL, &body);
    assert!(refused["error"].as_str().unwrap().contains("3 models"), "{refused}");
}

#[test]
fn the_official_sdk_trains_and_samples() {
    let Some(venvs) = std::env::var_os("PATCHWRIGHT_TINKER_VENVS") else {
        eprintln!("skipped: PATCHWRIGHT_TINKER_VENVS is not set (scripts/sdk_venvs.sh)");
        return;
    };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/tinker_sdk.py");
    for venv in std::env::split_paths(&venvs) {
        let rig = rig();
        let output = Command::new(venv.join("bin/python"))
            .arg(&script)
            .env("TINKER_BASE_URL", format!("http://{}", rig.server.address()))
            .env("TINKER_API_KEY", SECRET)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}\n{told}", venv.display());
        println!("{said}");
    }
}
