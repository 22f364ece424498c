//! The paths of the API: server, sessions, models and futures here, the rest below.

mod checkpoints;
mod sampling;
mod training;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::State as Shared;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Json, Router};
use patchwright_wire::json::{self, UntypedFuture, kinds};
use patchwright_wire::{PROTOBUF, paths};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::futures::{Begun, Futures, Outcome, Payload, Reply};
use super::models::Model;
use super::samplers::{Samplers, Source};
use super::weights::Store;
use super::{Backend, Learner, LoraSpec, TinkerOptions};
use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::work::Work;

/// What all requests share.
#[derive(Clone)]
pub(super) struct State(Arc<Inner>);

struct Inner {
    backend: Arc<dyn Backend>,
    options: TinkerOptions,
    work: Work,
    metrics: Arc<Metrics>,
    futures: Arc<Futures>,
    samplers: Arc<Samplers>,
    store: Arc<Store>,
    tables: Mutex<Tables>,
    num_sessions: AtomicU64,
    /// Tells this server's sessions from those of one before, whose checkpoints may be there.
    epoch: u32,
}

/// Sessions, models and sampling sessions by their ids.
#[derive(Default)]
struct Tables {
    sessions: HashMap<String, Instant>,
    models: HashMap<String, Arc<Model>>,
    samplers: HashMap<String, Source>,
}

/// The longest that what has expired stays.
const SWEEP: Duration = Duration::from_secs(10);

impl State {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        options: TinkerOptions,
        work: Work,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let state = Self(Arc::new(Inner {
            futures: Arc::new(Futures::new(options.max_futures, options.future_ttl)),
            samplers: Arc::new(Samplers::new(
                Arc::clone(&backend),
                options.max_samplers,
                options.max_sampler_bytes,
            )),
            store: Arc::new(Store::new(
                options.store.clone(),
                options.max_snapshots,
                options.max_store_bytes,
            )),
            tables: Mutex::default(),
            num_sessions: AtomicU64::new(0),
            epoch: rand::random(),
            backend,
            options,
            work,
            metrics,
        }));
        state.sweep()?;
        Ok(state)
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn model(&self, id: &str) -> Result<Arc<Model>, ApiError> {
        let known = self.tables().models.get(id).cloned();
        known.ok_or_else(|| {
            ApiError::not_found(format!("model {id:?} is not in training here; create it anew"))
        })
    }

    fn is_base(&self, name: &str) -> Result<(), ApiError> {
        let models = self.0.backend.base_models();
        if models.iter().any(|model| model.name == name) {
            return Ok(());
        }
        let known: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
        let known = known.join(", ");
        Err(ApiError::param("base_model", format!("{name:?} is not served here, only {known}")))
    }

    fn is_session(&self, id: &str) -> Result<(), ApiError> {
        if self.tables().sessions.contains_key(id) {
            return Ok(());
        }
        Err(ApiError::not_found(format!("session {id:?} is not known or has ended")))
    }

    /// Forgets what has expired: sessions without a heartbeat, with their models and samplers.
    fn expire(&self) {
        self.0.futures.expire();
        let ttl = self.0.options.session_ttl;
        let mut tables = self.tables();
        let Tables { sessions, models, samplers } = &mut *tables;
        sessions.retain(|_, last| last.elapsed() < ttl);
        models.retain(|_, model| sessions.contains_key(&model.session));
        samplers.retain(|id, _| {
            let session = id.split(":sample:").next().unwrap_or_default();
            sessions.contains_key(session)
        });
        let is_open =
            |model: &str| sessions.contains_key(model.split(":train:").next().unwrap_or_default());
        let gone = self.0.store.expire(is_open);
        drop(tables);
        self.0.samplers.expire(&gone, ttl);
    }

    /// Forgets what has expired, now and then, until the server is gone: a server that nobody asks
    /// anything should not hold the memory of those who left.
    fn sweep(&self) -> std::io::Result<()> {
        let state = Arc::downgrade(&self.0);
        let pause = (self.0.options.session_ttl / 4).min(SWEEP);
        let sweep = move || {
            while let Some(state) = state.upgrade() {
                State(state).expire();
                std::thread::sleep(pause);
            }
        };
        std::thread::Builder::new().name("tinker-sweep".to_owned()).spawn(sweep).map(drop)
    }

    /// A future for the request that `key` names, begun by `start` unless it was sent before.
    fn future(
        &self,
        key: String,
        model_id: Option<String>,
        start: impl FnOnce(Reply) -> Result<(), ApiError>,
    ) -> Result<Json<UntypedFuture>, ApiError> {
        let id = match self.0.futures.begin(key)? {
            Begun::Known(id) => id,
            Begun::New(id) => {
                // What cannot be begun is told through the future as well.
                let reply = Reply::new(&self.0.futures, id);
                if let Err(error) = start(reply) {
                    self.0.futures.answer(id, Err(error));
                }
                id
            }
        };
        Ok(Json(UntypedFuture { request_id: id.to_string(), model_id }))
    }

    /// A future for a model's work.
    fn job<F>(&self, model_id: &str, seq_id: Option<u32>, call: F) -> Answer<UntypedFuture>
    where
        F: FnOnce(&mut dyn Learner) -> Result<Payload, ApiError> + Send + 'static,
    {
        let model = self.model(model_id)?;
        let key = seq_id.map_or_else(|| unique("model"), |seq| format!("model {model_id} {seq}"));
        self.future(key, Some(model_id.to_owned()), |reply| {
            model.push(seq_id, Box::new(move |learner| reply.answer(call(learner))))
        })
    }
}

type Answer<T> = Result<Json<T>, ApiError>;

static NUM_UNIQUE: AtomicU64 = AtomicU64::new(0);

/// A key of a request without a number: it is never the same as another.
fn unique(kind: &str) -> String {
    format!("{kind} without a number {}", NUM_UNIQUE.fetch_add(1, Ordering::Relaxed))
}

fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::bad(format!("body: {error}")))
}

fn to_json<T: Serialize>(value: T) -> Result<Payload, ApiError> {
    let value = serde_json::to_value(value);
    value.map(Payload::Json).map_err(|error| ApiError::internal(error.to_string()))
}

pub(super) fn routes(state: State) -> Router {
    Router::new()
        .route(paths::HEALTHZ, get(|| async { Json(json!({"status": "ok"})) }))
        .route(paths::GET_SERVER_CAPABILITIES, get(capabilities))
        .route(paths::CLIENT_CONFIG, post(client_config))
        .route(paths::CLIENT_DYNAMIC_CONFIG, post(|| async { Json(json!({})) }))
        .route(paths::TELEMETRY, post(|| async { Json(json!({"status": "accepted"})) }))
        .route(paths::CREATE_SESSION, post(create_session))
        .route(paths::SESSION_HEARTBEAT, post(heartbeat))
        .route("/api/v1/sessions/{id}/finish", post(finish_session))
        .route(paths::CREATE_MODEL, post(create_model))
        .route(paths::GET_INFO, post(get_info))
        .route(paths::UNLOAD_MODEL, post(unload_model))
        .route(paths::FORWARD_BACKWARD, post(training::forward_backward))
        .route(paths::OPTIM_STEP, post(training::optim_step))
        .route(paths::SAVE_WEIGHTS, post(training::save_weights))
        .route(paths::LOAD_WEIGHTS, post(training::load_weights))
        .route(paths::SAVE_WEIGHTS_FOR_SAMPLER, post(training::save_for_sampler))
        .route("/api/v1/training_runs/{id}/checkpoints", get(checkpoints::list))
        .route("/api/v1/training_runs/{id}/checkpoints/{*checkpoint}", delete(checkpoints::delete))
        .route(paths::WEIGHTS_INFO, post(training::weights_info))
        .route(paths::CREATE_SAMPLING_SESSION, post(sampling::create_sampling_session))
        .route("/api/v1/samplers/{id}", get(sampling::show_sampler))
        .route(paths::ASAMPLE, post(sampling::asample))
        .route(paths::RETRIEVE_FUTURE, post(retrieve_future))
        .with_state(state)
}

async fn capabilities(Shared(state): Shared<State>) -> Json<json::ServerCapabilities> {
    let models = state.0.backend.base_models();
    let supported_models = models.into_iter().map(|model| json::SupportedModel {
        model_name: Some(model.name),
        max_context_length: Some(model.max_context as u64),
    });
    Json(json::ServerCapabilities { supported_models: supported_models.collect() })
}

async fn client_config() -> Json<json::ClientConfig> {
    Json(json::ClientConfig { proto_compress_fwdbwd: true, ..json::ClientConfig::default() })
}

async fn create_session(Shared(state): Shared<State>) -> Answer<json::SessionCreated> {
    state.expire();
    let number = state.0.num_sessions.fetch_add(1, Ordering::Relaxed);
    let session_id = format!("session-{:08x}-{number}", state.0.epoch);
    let mut tables = state.tables();
    if tables.sessions.len() >= state.0.options.max_sessions {
        let most = state.0.options.max_sessions;
        return Err(ApiError::busy(format!("{most} sessions are open; end one first")));
    }
    tables.sessions.insert(session_id.clone(), Instant::now());
    Ok(Json(json::SessionCreated { session_id, ..json::SessionCreated::default() }))
}

/// A client that is done says so; its models and samplers go at once.
async fn finish_session(
    Shared(state): Shared<State>,
    axum::extract::Path(id): axum::extract::Path<String>,
) -> Answer<serde_json::Value> {
    state.tables().sessions.remove(&id);
    state.expire();
    Ok(Json(json!({})))
}

async fn heartbeat(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<json::SessionHeartbeatDone> {
    let beat: json::SessionHeartbeat = read(&body)?;
    let known = {
        let mut tables = state.tables();
        tables.sessions.get_mut(&beat.session_id).map(|last| *last = Instant::now())
    };
    state.expire();
    if known.is_none() {
        return Err(ApiError::not_found(format!("session {:?} has ended", beat.session_id)));
    }
    Ok(Json(json::SessionHeartbeatDone::default()))
}

async fn create_model(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::CreateModel = read(&body)?;
    let optimizer = asked.optimizer_config.as_ref().and_then(|c| c["type"].as_str());
    if let Some(kind) = optimizer.filter(|kind| !kind.starts_with("adam")) {
        let message = format!("{kind:?} is not supported here, only adamw");
        return Err(ApiError::param("optimizer_config", message));
    }
    let lora = lora_spec(asked.lora_config.as_ref())?;
    let model_id = format!("{}:train:{}", asked.session_id, asked.model_seq_id);
    start_model(&state, &asked.session_id, model_id, asked.base_model, lora, None)
}

/// Rank 0, and no adapter at all, mean that all weights are trained.
fn lora_spec(config: Option<&json::LoraConfig>) -> Result<Option<LoraSpec>, ApiError> {
    let Some(config) = config.filter(|config| config.rank > 0) else { return Ok(None) };
    if !config.train_attn && !config.train_mlp {
        let message = "adapters are of attention and MLP; turn one of them on";
        return Err(ApiError::param("lora_config", message));
    }
    Ok(Some(LoraSpec {
        rank: config.rank as usize,
        seed: config.seed.unwrap_or_else(rand::random),
        train_attn: config.train_attn,
        train_mlp: config.train_mlp,
        train_unembed: config.train_unembed,
    }))
}

/// A checkpoint that a model begins with, and whether its optimizer's state is taken up too.
type Start = (String, std::path::PathBuf, bool);

fn start_model(
    state: &State,
    session: &str,
    model_id: String,
    base: String,
    lora: Option<LoraSpec>,
    from: Option<Start>,
) -> Answer<UntypedFuture> {
    state.is_session(session)?;
    state.is_base(&base)?;
    state.expire();
    let id = model_id.clone();
    state.future(format!("create {model_id}"), Some(model_id.clone()), |reply| {
        let mut tables = state.tables();
        if tables.models.len() >= state.0.options.max_models {
            let most = state.0.options.max_models;
            return Err(ApiError::busy(format!("{most} models are in training; unload one first")));
        }
        let (backend, name) = (Arc::clone(&state.0.backend), base.clone());
        let answer = match &from {
            None => to_json(json::ModelCreated { model_id: id, kind: kinds::CreateModel }),
            Some((path, ..)) => to_json(json::WeightsLoaded {
                path: Some(path.clone()),
                model_id: Some(id),
                ..json::WeightsLoaded::default()
            }),
        };
        let make = move || {
            let mut learner = backend.learner(&name, lora)?;
            if let Some((_, dir, optimizer)) = from {
                learner.load_state(&dir, optimizer)?;
            }
            Ok(learner)
        };
        let made = move |result: Result<(), ApiError>| reply.answer(result.and(answer));
        let model = Model::start(session.to_owned(), base, lora, make, made)?;
        tables.models.insert(model_id, Arc::new(model));
        Ok(())
    })
}

async fn get_info(Shared(state): Shared<State>, body: Bytes) -> Answer<json::ModelInfo> {
    let asked: json::GetInfo = read(&body)?;
    let model = state.model(&asked.model_id)?;
    let bases = state.0.backend.base_models();
    let base = bases.into_iter().find(|base| base.name == model.base);
    Ok(Json(json::ModelInfo {
        model_data: json::ModelData {
            arch: None,
            model_name: Some(model.base.clone()),
            tokenizer_id: base.and_then(|base| base.tokenizer_id),
        },
        model_id: asked.model_id,
        is_lora: Some(model.lora.is_some()),
        lora_rank: model.lora.map(|lora| lora.rank as u32),
        model_name: Some(model.base.clone()),
        ..json::ModelInfo::default()
    }))
}

async fn unload_model(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::UnloadModel = read(&body)?;
    let id = asked.model_id.clone();
    state.model(&id)?;
    state.future(format!("unload {id}"), Some(id.clone()), |reply| {
        state.tables().models.remove(&id);
        reply.answer(to_json(json::ModelUnloaded { model_id: id, kind: kinds::UnloadModel }));
        Ok(())
    })
}

async fn retrieve_future(Shared(state): Shared<State>, body: Bytes) -> Result<Response, ApiError> {
    let asked: json::RetrieveFuture = read(&body)?;
    let id = asked.request_id.parse().map_err(|_| {
        ApiError::param("request_id", format!("{:?} is none of this server's", asked.request_id))
    })?;
    let outcome: Option<Outcome> = state.0.futures.wait(id, state.0.options.poll).await?;
    Ok(match outcome {
        None => Json(json::TryAgain {
            request_id: asked.request_id,
            queue_state: "active".to_owned(),
            ..json::TryAgain::default()
        })
        .into_response(),
        Some(Ok(payload)) => match &*payload {
            Payload::Json(value) => Json(value.clone()).into_response(),
            Payload::Proto(bytes) => {
                ([(header::CONTENT_TYPE, PROTOBUF)], bytes.clone()).into_response()
            }
        },
        Some(Err(error)) => {
            let is_user = error.status.is_client_error();
            let category =
                if is_user { json::ErrorCategory::User } else { json::ErrorCategory::Server };
            Json(json::RequestFailed { error: error.message, category }).into_response()
        }
    })
}
