//! A server of the Tinker API that is as small as a model can be: the log-probability of the token at
//! place `t` is `-3 + θ[t]`. It keeps what the API promises: requests known by their numbers, loads
//! only first, checkpoints by name; and it can lose everything.

use std::collections::BTreeMap;

use patchwright_wire::{
    ForwardBackwardOutput, ForwardBackwardRequest, Limits, LossFn, PROTOBUF, SampleResponse,
    SampledSequence, StopReason, Tensor,
};
use serde_json::{Value, json};

use crate::server::{Reply, Request};

/// Places that have a parameter.
pub const PLACES: usize = 16;

/// How token losses become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Adds {
    Sum,
    MeanOfMeans,
    TokenMean,
}

#[derive(Debug, Clone)]
struct Model {
    theta: [f32; PLACES],
    moments: [[f32; PLACES]; 2],
    steps: i32,
    gradient: [f32; PLACES],
    weights: f32,
    datums: f32,
}

/// The server's state.
#[derive(Debug)]
pub struct Tiny {
    pub adds: Adds,
    pub clips: bool,
    /// Models that there is room for.
    pub room: usize,
    sessions: usize,
    models: BTreeMap<String, Model>,
    made: usize,
    checkpoints: BTreeMap<String, Model>,
    results: BTreeMap<String, Reply>,
    /// Request ids by model and sequence number.
    known: BTreeMap<(String, u64), String>,
}

impl Tiny {
    pub fn new(adds: Adds, clips: bool) -> Self {
        Self {
            adds,
            clips,
            room: 8,
            sessions: 0,
            models: BTreeMap::new(),
            made: 0,
            checkpoints: BTreeMap::new(),
            results: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    /// Forgets sessions, models and results; checkpoints stay.
    pub fn lose(&mut self) {
        self.models.clear();
        self.results.clear();
        self.known.clear();
        self.sessions = 0;
    }

    pub fn forget_checkpoints(&mut self) {
        self.checkpoints.clear();
    }

    /// Parameters of the model that was made last.
    pub fn theta(&self) -> [f32; PLACES] {
        self.models[&format!("m{}", self.made)].theta
    }

    pub fn answer(&mut self, request: &Request) -> Reply {
        let body = request.json();
        let path = request.path.strip_prefix("/api/v1/").unwrap_or(&request.path);
        match path {
            "get_server_capabilities" => {
                ok(json!({"supported_models": [{"model_name": "tiny", "max_context_length": 64}]}))
            }
            "client/config" => ok(json!({"pjwt_auth_enabled": false})),
            "create_session" => {
                self.sessions += 1;
                ok(json!({"session_id": format!("s{}", self.sessions)}))
            }
            "session_heartbeat" if self.sessions == 0 => gone(),
            "session_heartbeat" => ok(json!({})),
            "create_model" => self.create(),
            "forward_backward" => self.forward_backward(request),
            "retrieve_future" => {
                self.results.get(text(&body, "request_id")).cloned().unwrap_or_else(gone)
            }
            "asample" => self.sample(&body),
            _ => self.other(path, &body),
        }
    }

    fn create(&mut self) -> Reply {
        if self.models.len() == self.room {
            return Reply::Json(400, json!({"detail": "no room"}));
        }
        self.made += 1;
        let id = format!("m{}", self.made);
        let model = Model {
            theta: [0.0; PLACES],
            moments: [[0.0; PLACES]; 2],
            steps: 0,
            gradient: [0.0; PLACES],
            weights: 0.0,
            datums: 0.0,
        };
        self.models.insert(id.clone(), model);
        self.keep(&id, None, ok(json!({"model_id": id})))
    }

    /// Keeps a result and answers with its future.
    fn keep(&mut self, model: &str, seq: Option<u64>, result: Reply) -> Reply {
        let id = format!("r{}", self.results.len());
        self.results.insert(id.clone(), result);
        if let Some(seq) = seq {
            self.known.insert((model.to_owned(), seq), id.clone());
        }
        ok(json!({"request_id": id}))
    }

    fn repeated(&self, model: &str, seq: u64) -> Option<Reply> {
        self.known.get(&(model.to_owned(), seq)).map(|id| ok(json!({"request_id": id})))
    }

    fn forward_backward(&mut self, request: &Request) -> Reply {
        if request.header("content-type") != Some(PROTOBUF) {
            return Reply::Json(415, json!({"detail": "protobuf, please"}));
        }
        let request = ForwardBackwardRequest::decode(&request.body, &Limits::default()).unwrap();
        let seq = u64::from(request.seq_id);
        if let Some(reply) = self.repeated(&request.model_id, seq) {
            return reply;
        }
        let adds = self.adds;
        let Some(model) = self.models.get_mut(&request.model_id) else { return gone() };
        let mut outputs = Vec::new();
        for datum in &request.data {
            let logprobs: Vec<f32> =
                (0..datum.tokens.len()).map(|t| -3.0 + model.theta[t % PLACES]).collect();
            let input = |name: &str| datum.input(name).unwrap().as_f32(name).unwrap().to_vec();
            if !request.forward_only {
                let weights = input("weights");
                let total: f32 = weights.iter().sum();
                for (t, weight) in weights.iter().enumerate() {
                    let slope = if request.loss_fn == LossFn::CrossEntropy {
                        -weight
                    } else {
                        let ratio = (logprobs[t] - input("logprobs")[t]).exp();
                        -weight * ratio * input("advantages")[t]
                    };
                    let divisor = if adds == Adds::MeanOfMeans { total.max(1e-9) } else { 1.0 };
                    model.gradient[t % PLACES] += slope / divisor;
                }
                model.weights += total;
                model.datums += 1.0;
            }
            outputs.push([("logprobs".to_owned(), Tensor::f32(logprobs))].into());
        }
        let output =
            ForwardBackwardOutput { loss_fn_outputs: outputs, ..ForwardBackwardOutput::default() };
        let reply = Reply::Bytes(PROTOBUF, output.encode());
        self.keep(&request.model_id, Some(seq), reply)
    }

    fn other(&mut self, path: &str, body: &Value) -> Reply {
        let id = text(body, "model_id").to_owned();
        let seq = body["seq_id"].as_u64();
        if let Some(reply) = seq.and_then(|seq| self.repeated(&id, seq)) {
            return reply;
        }
        let Some(model) = self.models.get_mut(&id) else { return gone() };
        let result = match path {
            "optim_step" => {
                let divisor = match self.adds {
                    Adds::Sum => 1.0,
                    Adds::MeanOfMeans => model.datums.max(1.0),
                    Adds::TokenMean => model.weights.max(1.0),
                };
                step(model, &body["adam_params"], divisor, self.clips)
            }
            "save_weights" => {
                let path = format!("tinker://{id}/weights/{}", text(body, "path"));
                self.checkpoints.insert(path.clone(), model.clone());
                json!({"path": path})
            }
            "load_weights" => {
                let Some(saved) = self.checkpoints.get(text(body, "path")) else { return gone() };
                *model = saved.clone();
                if body["optimizer"] == false {
                    (model.moments, model.steps) = ([[0.0; PLACES]; 2], 0);
                }
                json!({})
            }
            "save_weights_for_sampler" => {
                let session = format!("x-{id}-{}", body["sampling_session_seq_id"]);
                json!({"sampling_session_id": session})
            }
            "unload_model" => {
                self.models.remove(&id);
                json!({"model_id": id})
            }
            _ => return Reply::Json(404, json!({"detail": format!("no {path}")})),
        };
        self.keep(&id, seq, ok(result))
    }

    fn sample(&mut self, body: &Value) -> Reply {
        let tokens = vec![7; body["sampling_params"]["max_tokens"].as_u64().unwrap() as usize];
        let sequence = SampledSequence {
            stop_reason: StopReason::Length,
            logprobs: Some(vec![-3.0; tokens.len()]),
            tokens,
        };
        let response = SampleResponse { sequences: vec![sequence], ..SampleResponse::default() };
        let reply = Reply::Bytes(PROTOBUF, response.encode().unwrap());
        self.keep("", None, reply)
    }
}

/// `AdamW` without decay.
fn step(model: &mut Model, adam: &Value, divisor: f32, clips: bool) -> Value {
    let value = |name: &str| adam[name].as_f64().unwrap() as f32;
    let mut gradient = model.gradient.map(|g| g / divisor);
    let norm = gradient.iter().map(|g| g * g).sum::<f32>().sqrt();
    let clip = value("grad_clip_norm");
    if clips && clip > 0.0 && norm > clip {
        gradient = gradient.map(|g| g * clip / norm);
    }
    model.steps += 1;
    let (beta1, beta2) = (value("beta1"), value("beta2"));
    for (t, g) in gradient.iter().enumerate() {
        let m = beta1 * model.moments[0][t] + (1.0 - beta1) * g;
        let v = beta2 * model.moments[1][t] + (1.0 - beta2) * g * g;
        (model.moments[0][t], model.moments[1][t]) = (m, v);
        let m = m / (1.0 - beta1.powi(model.steps));
        let v = v / (1.0 - beta2.powi(model.steps));
        model.theta[t] -= value("learning_rate") * m / (v.sqrt() + value("eps"));
    }
    model.gradient = [0.0; PLACES];
    (model.weights, model.datums) = (0.0, 0.0);
    json!({"metrics": {"grad_norm": norm}})
}

fn ok(value: Value) -> Reply {
    Reply::Json(200, value)
}

fn gone() -> Reply {
    Reply::Json(404, json!({"detail": "not found"}))
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}
