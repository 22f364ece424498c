//! JSON as the official SDK writes (`goldens/make_goldens.py`) and reads it.

use std::path::Path;

use patchwright_wire::json::{
    AdamParams, ApiError, CreateModel, CreateSamplingSession, CreateSession, ErrorCategory,
    GetInfo, LoadWeights, ModelInput, OptimStep, RetrieveFuture, SampleRequest, SamplingParams,
    SaveWeights, SaveWeightsForSampler, SessionHeartbeat, Stop, TryAgain,
};
use patchwright_wire::{FutureReply, PROTOBUF};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

fn read<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("is such a message")
}

fn write(message: &impl Serialize) -> Value {
    serde_json::to_value(message).expect("can be written")
}

/// Reads a body as a message, which must be written as the body was, but for fields of 0.38 at their
/// defaults.
fn goes_round<T: Serialize + DeserializeOwned>(bodies: &Value, name: &str) -> T {
    let mut body = bodies[name].clone();
    let message: T = read(body.clone());
    let fields = body.as_object_mut().expect("an object");
    fields.retain(|key, value| !(ADDED_BY_0_38.contains(&key.as_str()) && *value == json!(0)));
    assert_eq!(write(&message), body, "{name}");
    message
}

const ADDED_BY_0_38: [&str; 2] = ["topk_sample_logprobs", "prompt_alt_tokens_k"];

fn bodies(version: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(format!("tests/goldens/requests_{version}.json"));
    serde_json::from_slice(&std::fs::read(path).expect("golden")).expect("JSON")
}

#[test]
fn requests_of_both_sdks() {
    for version in ["0.25", "0.38"] {
        let bodies = bodies(version);
        let session: CreateSession = goes_round(&bodies, "create_session");
        assert!(session.sdk_version.starts_with(version));
        goes_round::<SessionHeartbeat>(&bodies, "session_heartbeat");
        let model: CreateModel = goes_round(&bodies, "create_model");
        let lora = model.lora_config.expect("given");
        assert_eq!((lora.rank, lora.seed, lora.train_unembed), (8, Some(3), true));
        goes_round::<GetInfo>(&bodies, "get_info");
        let step: OptimStep = goes_round(&bodies, "optim_step");
        let adam = AdamParams { learning_rate: 0.001, ..AdamParams::default() };
        assert_eq!((step.adam_params, step.seq_id), (adam, Some(2)));
        goes_round::<SaveWeights>(&bodies, "save_weights");
        let load: LoadWeights = goes_round(&bodies, "load_weights");
        assert!(load.optimizer && load.model_id.as_deref() == Some("m"));
        let save: SaveWeightsForSampler = goes_round(&bodies, "save_weights_for_sampler");
        assert_eq!(save.client_kind.as_deref(), (version == "0.38").then_some("snapshot"));
        goes_round::<CreateSamplingSession>(&bodies, "create_sampling_session");
        let sample: SampleRequest = goes_round(&bodies, "asample");
        assert_eq!(sample.sampling_params.stop, Some(Stop::Tokens(vec![13, 14])));
        assert_eq!(sample.seq_id, Some(1_000_000_001));
        assert_eq!(sample.prompt.into_tokens().expect("text"), [1, 2, 3]);
        goes_round::<RetrieveFuture>(&bodies, "retrieve_future");
    }
}

#[test]
fn stops_and_chunks() {
    let stops = [
        (json!("a"), Stop::Text("a".to_owned())),
        (json!(["a", "b"]), Stop::Texts(vec!["a".to_owned(), "b".to_owned()])),
        (json!([]), Stop::Tokens(vec![])),
    ];
    for (value, stop) in stops {
        let params: SamplingParams = read(json!({"stop": value}));
        assert_eq!(params, SamplingParams { stop: Some(stop), ..SamplingParams::default() });
    }

    let image = json!({"chunks": [{"type": "image", "data": "AAAA", "format": "png"}]});
    let error = read::<ModelInput>(image).into_tokens().expect_err("no text");
    assert!(error.to_string().contains("image"), "{error}");
}

#[test]
fn negative_tokens_are_refused() {
    let value = json!({"chunks": [{"type": "encoded_text", "tokens": [-1]}]});
    assert!(serde_json::from_value::<ModelInput>(value).is_err());
}

#[test]
fn answers_of_retrieve_future() {
    let parse = |value: Value| {
        FutureReply::parse("application/json; charset=utf-8", value.to_string().into_bytes())
    };
    let wait = parse(json!({"type": "try_again", "request_id": "7", "queue_state": "active"}));
    let FutureReply::TryAgain(TryAgain { queue_state, .. }) = wait.expect("parses") else {
        panic!("not yet");
    };
    assert_eq!(queue_state, "active");

    let failed = parse(json!({"error": "no such model", "category": "user"})).expect("parses");
    assert!(matches!(failed, FutureReply::Failed(f) if f.category == ErrorCategory::User));
    let failed = parse(json!({"error": "?", "category": "cosmic rays"})).expect("parses");
    assert!(matches!(failed, FutureReply::Failed(f) if f.category == ErrorCategory::Unknown));

    let large = parse(json!({"status": "complete_metadata", "response_payload_size": 9}));
    assert_eq!(large, Ok(FutureReply::MetadataOnly { payload_size: Some(9) }));

    let done = parse(json!({"path": "tinker://m/weights/one"})).expect("parses");
    assert!(matches!(done, FutureReply::Json(_)));

    assert_eq!(FutureReply::parse(PROTOBUF, vec![1, 2]), Ok(FutureReply::Proto(vec![1, 2])));
    assert!(FutureReply::parse("text/html", b"<html>".to_vec()).is_err());
    assert!(parse(json!([1])).is_err());
}

#[test]
fn errors_hold_text_or_what_a_framework_made() {
    assert_eq!(write(&ApiError::new("no such model")), json!({"detail": "no such model"}));
    let listed: ApiError = read(json!({"detail": [{"loc": ["body"], "msg": "Field required"}]}));
    assert!(listed.detail.is_array());
}
