//! The desk: where agents that run anywhere are given episodes, and hand in what they made.
//!
//! ```text
//!  POST /episodes                    the operator's token   an episode with its key and its task
//!  GET  /episodes/ID                 the episode's key      how it stands, and its reward
//!  GET  /episodes/ID/repository      the episode's key      the repository, as a .tar.gz
//!  POST /episodes/ID/submit          the episode's key      a patch, or the sandbox as it stands
//! ```
//! The model's endpoint of an episode is [`Gateway::router`](super::Gateway::router).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::auth::BearerToken;
use crate::error::ApiError;
use crate::work::Work;

/// What an agent asks for when it wants an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseRequest {
    /// Run the agent's commands here, in a sandbox at `/episode/exec`; without it the agent works
    /// on a copy of its own.
    pub sandbox: bool,
}

/// Bounds of an episode, for its agent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EpisodeLimits {
    /// Calls of the model.
    pub max_turns: usize,
    /// Tokens of one completion.
    pub max_turn_tokens: usize,
    /// Tokens of a prompt with its completion.
    pub context_tokens: usize,
    /// From the lease to the submission, in seconds.
    pub episode_seconds: f64,
    /// Of one command in the sandbox, in seconds.
    pub command_seconds: f64,
}

/// An episode that was given away.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lease {
    /// Its name.
    pub id: String,
    /// The key that its requests bear, as `OPENAI_API_KEY`. A secret.
    pub key: String,
    /// The model's name.
    pub model: String,
    /// Paths of this server: `openai` (the base of an `OpenAI` client's URL), `repository` where it
    /// can be had, `exec` where there is a sandbox, `submit`.
    pub paths: BTreeMap<String, String>,
    /// What is to be done: `instance_id`, `repo`, `base_commit`, `problem_statement`, `hints_text`.
    pub task: BTreeMap<String, String>,
    /// Where the repository is in the sandbox.
    pub workdir: String,
    /// Its bounds.
    pub limits: EpisodeLimits,
}

/// How an episode stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum EpisodeStatus {
    /// The agent is at work.
    Open,
    /// What it handed in is being graded.
    Grading,
    /// It is over.
    Finished,
}

/// An episode, as its agent sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpisodeReport {
    /// Its name.
    pub id: String,
    /// How it stands.
    pub status: EpisodeStatus,
    /// Whether the hidden tests pass; `None` before the end and without a grade.
    pub solved: Option<bool>,
    /// 1 if they do, else 0; `None` without a grade.
    pub reward: Option<f64>,
    /// Why it is no success.
    pub failure: Option<String>,
}

/// Why the desk does not do what it was asked. Each becomes a status of HTTP.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeskError {
    /// The key is of no such episode (401).
    #[error("the key is of no such episode (Authorization: Bearer KEY)")]
    Key,
    /// Every episode is finished or in other hands for good (410): an agent ends here.
    #[error("there is nothing more to do")]
    NothingLeft,
    /// The desk is being closed (410): an agent ends here too.
    #[error("the gateway is stopping and gives no more episodes away")]
    Closing,
    /// Not now (429).
    #[error("{0}; try again soon")]
    Busy(String),
    /// The request does not fit the episode (422); the episode goes on.
    #[error("{0}")]
    Refused(String),
    /// Sandbox, grader or disk failed (500).
    #[error("{0}")]
    Failed(String),
}

impl From<DeskError> for ApiError {
    fn from(error: DeskError) -> Self {
        let message = error.to_string();
        let (status, code) = match error {
            DeskError::Key => (StatusCode::UNAUTHORIZED, "invalid_api_key"),
            DeskError::NothingLeft => (StatusCode::GONE, "nothing_left"),
            DeskError::Closing => (StatusCode::GONE, "closing"),
            DeskError::Busy(_) => return Self::busy(message),
            DeskError::Refused(_) => (StatusCode::UNPROCESSABLE_ENTITY, "refused"),
            DeskError::Failed(_) => (StatusCode::INTERNAL_SERVER_ERROR, "desk_failed"),
        };
        Self::new(status, code, message)
    }
}

/// Gives episodes away and takes results. Its methods may block; they are called from many threads.
pub trait Desk: Send + Sync + 'static {
    /// Gives the next episode away.
    ///
    /// # Errors
    /// [`DeskError::NothingLeft`], [`DeskError::Closing`], [`DeskError::Busy`],
    /// [`DeskError::Failed`].
    fn lease(&self, request: LeaseRequest) -> Result<Lease, DeskError>;

    /// How an episode stands.
    ///
    /// # Errors
    /// [`DeskError::Key`].
    fn report(&self, id: &str, key: &str) -> Result<EpisodeReport, DeskError>;

    /// The repository of an open episode, as a compressed archive.
    ///
    /// # Errors
    /// [`DeskError::Key`], [`DeskError::Refused`], [`DeskError::Failed`].
    fn repository(&self, id: &str, key: &str) -> Result<Vec<u8>, DeskError>;

    /// Ends an episode with a patch, or without one with its sandbox as it stands, and grades it.
    /// An episode that has ended is reported as it stands, so that a client may ask again.
    ///
    /// # Errors
    /// [`DeskError::Key`], [`DeskError::Refused`], [`DeskError::Failed`].
    fn submit(
        &self,
        id: &str,
        key: &str,
        patch: Option<String>,
    ) -> Result<EpisodeReport, DeskError>;
}

/// A submission.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Submission {
    /// A unified diff; without it the sandbox counts.
    patch: Option<String>,
}

#[derive(Clone)]
struct Counter {
    desk: Arc<dyn Desk>,
    operator: Option<BearerToken>,
    work: Work,
}

/// The desk's routes. Who asks for an episode bears `operator`, where there is one. What the desk
/// does takes turns in `work`.
pub fn desk_router(desk: Arc<dyn Desk>, operator: Option<BearerToken>, work: Work) -> Router {
    Router::new()
        .route("/episodes", post(lease))
        .route("/episodes/{id}", get(report))
        .route("/episodes/{id}/repository", get(repository))
        .route("/episodes/{id}/submit", post(submit))
        .with_state(Counter { desk, operator, work })
}

fn bearer(headers: &HeaderMap) -> &str {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    given.and_then(|given| given.split_once(' ')).map_or("", |(_, key)| key.trim())
}

/// A body of JSON; an empty one asks for nothing in particular.
fn body<T: DeserializeOwned + Default>(bytes: &[u8], what: &str) -> Result<T, ApiError> {
    if bytes.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    let wrong = |error: serde_json::Error| ApiError::bad(format!("the body is no {what}: {error}"));
    serde_json::from_slice(bytes).map_err(wrong)
}

async fn lease(
    State(counter): State<Counter>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<(StatusCode, Json<Lease>), ApiError> {
    let is_operator = |token: &BearerToken| token.matches(bearer(&headers));
    if !counter.operator.as_ref().is_none_or(is_operator) {
        let message = "episodes are given to whoever bears the operator's token";
        return Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message));
    }
    let request: LeaseRequest = body(&bytes, "request for an episode")?;
    let desk = counter.desk;
    let lease = counter.work.run(move |_| Ok(desk.lease(request)?)).await?;
    Ok((StatusCode::CREATED, Json(lease)))
}

async fn report(
    State(counter): State<Counter>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<EpisodeReport>, ApiError> {
    Ok(Json(counter.desk.report(&id, bearer(&headers))?))
}

async fn repository(
    State(counter): State<Counter>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let (desk, key) = (counter.desk, bearer(&headers).to_owned());
    let archive = counter.work.run(move |_| Ok(desk.repository(&id, &key)?)).await?;
    Ok(([(header::CONTENT_TYPE, "application/gzip")], archive).into_response())
}

async fn submit(
    State(counter): State<Counter>,
    Path(id): Path<String>,
    headers: HeaderMap,
    bytes: Bytes,
) -> Result<Json<EpisodeReport>, ApiError> {
    let Submission { patch } = body(&bytes, "submission")?;
    let (desk, key) = (counter.desk, bearer(&headers).to_owned());
    counter.work.run(move |_| Ok(desk.submit(&id, &key, patch)?)).await.map(Json)
}
