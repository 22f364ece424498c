//! The paths of the API.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Path, State as Shared};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use patchwright_core::AdamParams;
use patchwright_wire::json::{self, UntypedFuture};
use patchwright_wire::{ForwardBackwardRequest, Limits, PROTOBUF, decompress, paths};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::futures::{Begun, Futures, Outcome, Payload, Reply};
use super::loss::{self, Batch};
use super::models::Model;
use super::sampling::{Plan, Samplers, Source};
use super::weights::{Origin, Purpose, Store};
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

impl State {
    pub(super) fn new(
        backend: Arc<dyn Backend>,
        options: TinkerOptions,
        work: Work,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            futures: Arc::new(Futures::new(options.max_futures, options.future_ttl)),
            samplers: Arc::new(Samplers::new(Arc::clone(&backend), options.max_samplers)),
            store: Arc::new(Store::new(options.store.clone(), options.max_snapshots)),
            tables: Mutex::default(),
            num_sessions: AtomicU64::new(0),
            epoch: rand::random(),
            backend,
            options,
            work,
            metrics,
        }))
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
        self.0.store.expire();
        let ttl = self.0.options.session_ttl;
        let mut tables = self.tables();
        let Tables { sessions, models, samplers } = &mut *tables;
        sessions.retain(|_, last| last.elapsed() < ttl);
        models.retain(|_, model| sessions.contains_key(&model.session));
        samplers.retain(|id, _| {
            let session = id.split(":sample:").next().unwrap_or_default();
            sessions.contains_key(session)
        });
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
        .route(paths::CREATE_MODEL, post(create_model))
        .route(paths::GET_INFO, post(get_info))
        .route(paths::UNLOAD_MODEL, post(unload_model))
        .route(paths::FORWARD_BACKWARD, post(forward_backward))
        .route(paths::OPTIM_STEP, post(optim_step))
        .route(paths::SAVE_WEIGHTS, post(save_weights))
        .route(paths::LOAD_WEIGHTS, post(load_weights))
        .route(paths::SAVE_WEIGHTS_FOR_SAMPLER, post(save_for_sampler))
        .route(paths::WEIGHTS_INFO, post(weights_info))
        .route(paths::CREATE_SAMPLING_SESSION, post(create_sampling_session))
        .route("/api/v1/samplers/{id}", get(show_sampler))
        .route(paths::ASAMPLE, post(asample))
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
            None => to_json(json::ModelCreated { model_id: id, kind: Default::default() }),
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
        reply.answer(to_json(json::ModelUnloaded { model_id: id, kind: Default::default() }));
        Ok(())
    })
}

async fn forward_backward(
    Shared(state): Shared<State>,
    headers: HeaderMap,
    body: Bytes,
) -> Answer<UntypedFuture> {
    let is = |name, value: &str| {
        let given = headers.get(name).and_then(|given: &header::HeaderValue| given.to_str().ok());
        given.is_some_and(|given| given.starts_with(value))
    };
    if !is(header::CONTENT_TYPE, PROTOBUF) {
        let message = format!("the body must be {PROTOBUF}; SDKs before 0.25 are not supported");
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(ApiError::new(status, "unsupported_media_type", message));
    }
    let limits = Limits::default();
    let is_zstd = is(header::CONTENT_ENCODING, "zstd");
    let wire = |error: patchwright_wire::WireError| ApiError::bad(error.to_string());
    let parse = move |_: &crate::work::Gone| {
        let body =
            if is_zstd { decompress(&body, limits.max_body).map_err(wire)?.into() } else { body };
        let request = ForwardBackwardRequest::decode(&body, &limits).map_err(wire)?;
        let batch = Batch::read(&request);
        Ok((request.model_id, request.seq_id, request.forward_only, batch))
    };
    let (model_id, seq_id, forward_only, batch) = state.0.work.run(parse).await?;
    let metrics = Arc::clone(&state.0.metrics);
    state.job(&model_id, Some(seq_id), move |learner| {
        let batch = batch?;
        let (logprobs, loss) = if forward_only {
            let logprobs = learner.forward(&batch.samples)?;
            let loss = loss::sum(&batch, &logprobs);
            (logprobs, loss)
        } else {
            let done = learner.forward_backward(&batch.samples, &batch.loss)?;
            (done.logprobs, done.loss)
        };
        metrics.trained(batch.num_tokens());
        let named = [("loss:sum".to_owned(), loss)].into();
        let encoded = loss::output(&logprobs, named).encode();
        encoded.map(Payload::Proto).map_err(|error| ApiError::internal(error.to_string()))
    })
}

async fn optim_step(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::OptimStep = read(&body)?;
    let given = asked.adam_params;
    let params = AdamParams {
        lr: given.learning_rate as f32,
        beta1: given.beta1 as f32,
        beta2: given.beta2 as f32,
        eps: given.eps as f32,
        weight_decay: given.weight_decay as f32,
        grad_clip: given.grad_clip_norm as f32,
    };
    state.job(&asked.model_id, asked.seq_id, move |learner| {
        let stats = learner.optim_step(&params)?;
        let metrics: BTreeMap<String, f64> =
            [("grad_norm".to_owned(), f64::from(stats.grad_norm))].into();
        to_json(json::OptimStepDone { metrics: Some(metrics) })
    })
}

fn origin(model: &Model) -> Origin {
    Origin {
        base_model: model.base.clone(),
        lora_rank: model.lora.map(|lora| lora.rank),
        train_attn: model.lora.is_none_or(|lora| lora.train_attn),
        train_mlp: model.lora.is_none_or(|lora| lora.train_mlp),
    }
}

async fn save_weights(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::SaveWeights = read(&body)?;
    let model = state.model(&asked.model_id)?;
    let name = asked.path.unwrap_or_else(|| format!("state-{}", asked.seq_id.unwrap_or(0)));
    let (path, dir) = state.0.store.place(&asked.model_id, Purpose::Training, &name)?;
    let (origin, store) = (origin(&model), Arc::clone(&state.0.store));
    let (overwrite, ttl) = (asked.overwrite, asked.ttl_seconds);
    state.job(&asked.model_id, asked.seq_id, move |learner| {
        Store::write(&dir, overwrite, &origin, |dir| Ok(learner.save_state(dir)?))?;
        if let Some(seconds) = ttl {
            store.expire_after(&dir, Duration::from_secs(seconds));
        }
        to_json(json::WeightsSaved { path, kind: Default::default() })
    })
}

async fn load_weights(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::LoadWeights = read(&body)?;
    let (dir, origin) = state.0.store.find(&asked.path)?;
    if let (None, Some(session), Some(seq)) =
        (&asked.model_id, &asked.session_id, asked.model_seq_id)
    {
        let lora = origin.lora_rank.map(|rank| LoraSpec {
            rank,
            seed: 0,
            train_attn: origin.train_attn,
            train_mlp: origin.train_mlp,
        });
        let model_id = format!("{session}:train:{seq}");
        let from = Some((asked.path, dir, asked.optimizer));
        return start_model(&state, session, model_id, origin.base_model, lora, from);
    }
    let Some(model_id) = asked.model_id else {
        return Err(ApiError::param("model_id", "is missing"));
    };
    let model = state.model(&model_id)?;
    if model.base != origin.base_model || model.lora.map(|lora| lora.rank) != origin.lora_rank {
        let rank = origin.lora_rank.map_or("none".to_owned(), |rank| rank.to_string());
        return Err(ApiError::param(
            "path",
            format!("is of {} with an adapter of rank {rank}, the model is not", origin.base_model),
        ));
    }
    let id = model_id.clone();
    state.job(&model_id, asked.seq_id, move |learner| {
        learner.load_state(&dir, asked.optimizer)?;
        to_json(json::WeightsLoaded {
            path: Some(asked.path),
            model_id: Some(id),
            ..json::WeightsLoaded::default()
        })
    })
}

async fn save_for_sampler(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::SaveWeightsForSampler = read(&body)?;
    if let Some(kind) = asked.client_kind.as_deref().filter(|kind| *kind != "snapshot") {
        return Err(ApiError::param("kind", format!("{kind:?} is not supported, only snapshot")));
    }
    let model = state.model(&asked.model_id)?;
    let session = asked.sampling_session_seq_id;
    let name = match (&asked.path, session) {
        (Some(name), _) => name.clone(),
        (None, Some(session)) => format!("session-{session}"),
        (None, None) => return Err(ApiError::param("path", "is missing")),
    };
    let (path, dir) = state.0.store.place(&asked.model_id, Purpose::Sampling, &name)?;
    let (origin, shared) = (origin(&model), state.clone());
    let (model_id, session_id) = (asked.model_id.clone(), model.session.clone());
    state.job(&asked.model_id, asked.seq_id, move |learner| {
        // A snapshot's name is this server's own.
        Store::write(&dir, asked.path.is_none(), &origin, |dir| Ok(learner.export(dir)?))?;
        if let Some(seconds) = asked.ttl_seconds {
            shared.0.store.expire_after(&dir, Duration::from_secs(seconds));
        }
        let mut answer = json::WeightsSavedForSampler::default();
        if asked.path.is_some() {
            answer.path = Some(path);
        } else if let Some(session) = session {
            shared.0.store.keep_snapshot(&model_id, &dir);
            let id = format!("{session_id}:sample:{session}");
            let source = Source { base: origin.base_model, dir: Some(dir), path: Some(path) };
            shared.tables().samplers.insert(id.clone(), source);
            answer.sampling_session_id = Some(id);
        }
        to_json(answer)
    })
}

async fn weights_info(Shared(state): Shared<State>, body: Bytes) -> Answer<json::WeightsInfo> {
    let asked: json::WeightsInfoRequest = read(&body)?;
    let (_, origin) = state.0.store.find(&asked.tinker_path)?;
    let is_lora = origin.lora_rank.is_some();
    Ok(Json(json::WeightsInfo {
        base_model: origin.base_model,
        is_lora,
        lora_rank: origin.lora_rank.map(|rank| rank as u32),
        train_unembed: is_lora.then_some(false),
        train_mlp: is_lora.then_some(origin.train_mlp),
        train_attn: is_lora.then_some(origin.train_attn),
    }))
}

fn source(state: &State, base: Option<&str>, path: Option<&str>) -> Result<Source, ApiError> {
    match (path, base) {
        (Some(path), _) => {
            let (dir, origin) = state.0.store.find(path)?;
            let path = Some(path.to_owned());
            Ok(Source { base: origin.base_model, dir: Some(dir), path })
        }
        (None, Some(base)) => {
            state.is_base(base)?;
            Ok(Source { base: base.to_owned(), dir: None, path: None })
        }
        (None, None) => Err(ApiError::param("base_model", "is missing, as is model_path")),
    }
}

async fn create_sampling_session(
    Shared(state): Shared<State>,
    body: Bytes,
) -> Answer<json::SamplingSessionCreated> {
    let asked: json::CreateSamplingSession = read(&body)?;
    state.is_session(&asked.session_id)?;
    let source = source(&state, asked.base_model.as_deref(), asked.model_path.as_deref())?;
    let id = format!("{}:sample:{}", asked.session_id, asked.sampling_session_seq_id);
    let mut tables = state.tables();
    if tables.samplers.len() >= state.0.options.max_futures {
        return Err(ApiError::busy("too many sampling sessions are open"));
    }
    tables.samplers.insert(id.clone(), source);
    Ok(Json(json::SamplingSessionCreated { sampling_session_id: id, kind: Default::default() }))
}

fn find_sampler(state: &State, id: &str) -> Result<Source, ApiError> {
    let known = state.tables().samplers.get(id).cloned();
    known.ok_or_else(|| ApiError::not_found(format!("sampling session {id:?} is not known")))
}

async fn show_sampler(Shared(state): Shared<State>, Path(id): Path<String>) -> Answer<Value> {
    let Source { base, path, .. } = find_sampler(&state, &id)?;
    Ok(Json(json!({"sampler_id": id, "base_model": base, "model_path": path})))
}

async fn asample(Shared(state): Shared<State>, body: Bytes) -> Answer<UntypedFuture> {
    let asked: json::SampleRequest = read(&body)?;
    let source = match &asked.sampling_session_id {
        Some(id) => find_sampler(&state, id)?,
        None => source(&state, asked.base_model.as_deref(), asked.model_path.as_deref())?,
    };
    let key = match (&asked.sampling_session_id, asked.seq_id) {
        (Some(session), Some(seq)) => format!("sample {session} {seq}"),
        _ => unique("sample"),
    };
    let text = state.0.samplers.text(&source.base);
    let plan = Plan::read(asked, text.as_deref())?;
    let shared = state.clone();
    state.future(key, None, move |reply| {
        tokio::spawn(async move {
            let inner = &shared.0;
            let samplers = Arc::clone(&inner.samplers);
            let result = plan.run(samplers, source, &inner.work, &inner.metrics).await;
            reply.answer(result.map(Payload::Proto));
        });
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
