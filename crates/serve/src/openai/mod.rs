//! OpenAI-compatible endpoints over a [`Sampler`]: `/v1/models`, `/v1/completions`,
//! `/v1/chat/completions`.
//!
//! What a request asks is done or refused by name. Log-probabilities are those of the full
//! distribution at temperature 1, of the sampled tokens and of up to 20 likely ones beside each.
//! vLLM's fields for tokens as they are (`return_token_ids`, `return_tokens_as_token_ids`,
//! `skip_special_tokens`, `include_stop_str_in_output`) are known, so that clients of its
//! completions draw tokens here too.

mod chat;
mod completions;
mod fields;
mod history;
mod logprobs;
mod sampling;
mod stream;
mod tools;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use patchwright_core::{FinishReason, Sampler};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::text::ModelText;
use crate::work::Work;

pub(crate) use history::{Asked, History, fingerprint};
pub(crate) use stream::Events;

/// A model with its text, as it is served under a name.
#[derive(Clone)]
pub struct Served {
    /// Draws its tokens. Its engine should know [`ModelText::token_bytes`], where there are any.
    pub sampler: Arc<dyn Sampler>,
    /// Its tokenizer and template.
    pub text: Arc<ModelText>,
    /// All requests are one session of the engine; `None`: each is its own.
    pub(crate) session: Option<u64>,
    /// Prompts are compared with what was said before.
    pub(crate) history: Option<Arc<History>>,
}

impl Served {
    /// A model.
    pub fn new(sampler: Arc<dyn Sampler>, text: Arc<ModelText>) -> Self {
        Self { sampler, text, session: None, history: None }
    }
}

/// What the requests of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub work: Work,
    pub metrics: Arc<Metrics>,
    num_answers: AtomicU64,
    started: u64,
}

impl Shared {
    pub(crate) fn new(work: Work, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self { work, metrics, num_answers: AtomicU64::new(0), started: now() })
    }

    /// A name for an answer, unique on this server.
    pub(crate) fn answer_id(&self, kind: &str) -> String {
        let number = self.num_answers.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{:x}-{number:x}", self.started)
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[derive(Clone)]
struct Api {
    models: Arc<BTreeMap<String, Served>>,
    shared: Arc<Shared>,
}

/// The endpoints for `models`, by name.
pub fn router(models: BTreeMap<String, Served>, work: Work, metrics: Arc<Metrics>) -> Router {
    let api = Api { models: Arc::new(models), shared: Shared::new(work, metrics) };
    Router::new()
        .route("/v1/models", get(list_models))
        .route("/v1/models/{*name}", get(show_model))
        .route("/v1/completions", post(complete))
        .route("/v1/chat/completions", post(complete_chat))
        .with_state(api)
}

/// A model as `/v1/models` shows it.
pub(crate) fn model_json(name: &str, served: &Served) -> Value {
    let max = served.sampler.max_context();
    json!({
        "id": name, "object": "model", "created": 0, "owned_by": "patchwright",
        "max_model_len": max,
    })
}

async fn list_models(State(api): State<Api>) -> Json<Value> {
    let data: Vec<Value> = api.models.iter().map(|(name, s)| model_json(name, s)).collect();
    Json(json!({"object": "list", "data": data}))
}

async fn show_model(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Json<Value>, ApiError> {
    Ok(Json(model_json(&name, find(&api.models, &name)?)))
}

fn find<'a>(models: &'a BTreeMap<String, Served>, name: &str) -> Result<&'a Served, ApiError> {
    models.get(name).ok_or_else(|| {
        let known: Vec<&str> = models.keys().map(String::as_str).collect();
        ApiError {
            param: Some("model".to_owned()),
            code: "model_not_found",
            ..ApiError::not_found(format!(
                "model {name:?} is not served here, only {}",
                known.join(", ")
            ))
        }
    })
}

async fn complete(State(api): State<Api>, body: Bytes) -> Result<Response, ApiError> {
    let mut fields = fields::Fields::read(&body)?;
    let name: String = fields.take("model")?.ok_or_else(|| missing("model"))?;
    let served = find(&api.models, &name)?.clone();
    completions::answer(&name, served, &api.shared, fields).await
}

async fn complete_chat(State(api): State<Api>, body: Bytes) -> Result<Response, ApiError> {
    let mut fields = fields::Fields::read(&body)?;
    let name: String = fields.take("model")?.ok_or_else(|| missing("model"))?;
    let served = find(&api.models, &name)?.clone();
    chat::answer(&name, served, &api.shared, fields).await
}

/// Answers a chat completion of a model that the caller has found; the request's own `model` is
/// only a name.
pub(crate) async fn answer_chat(
    served: Served,
    shared: &Arc<Shared>,
    body: &[u8],
) -> Result<Response, ApiError> {
    let mut fields = fields::Fields::read(body)?;
    let name: String = fields.take("model")?.ok_or_else(|| missing("model"))?;
    chat::answer(&name, served, shared, fields).await
}

/// [`answer_chat`] for a completion.
pub(crate) async fn answer_completion(
    served: Served,
    shared: &Arc<Shared>,
    body: &[u8],
) -> Result<Response, ApiError> {
    let mut fields = fields::Fields::read(body)?;
    let name: String = fields.take("model")?.ok_or_else(|| missing("model"))?;
    completions::answer(&name, served, shared, fields).await
}

fn missing(name: &str) -> ApiError {
    ApiError::param(name, "is missing")
}

fn finish_name(finish: FinishReason) -> &'static str {
    match finish {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
    }
}

/// `usage` of an answer: tokens of prompts, of these cached, and of completions.
fn usage(prompt: usize, cached: usize, completion: usize) -> Value {
    json!({
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    })
}
