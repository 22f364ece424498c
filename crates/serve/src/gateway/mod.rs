//! The gateway: any agent that speaks to an OpenAI-compatible endpoint works on our tasks, and is
//! trained on.
//!
//! An [`Episode`] has a key of its own. Whoever bears it asks the policy at `/v1/chat/completions`
//! and runs commands in the episode's sandbox at `/episode/exec`. Each call is recorded token by
//! token; [`Recording::stitch`] makes trajectories of them. Text that the policy said is never
//! tokenized again: a prompt that begins with an earlier prompt and its completion begins with
//! their tokens.
//!
//! A key is known to the agent's program only. Nothing inside a sandbox has it, and a sandbox has
//! no network.

mod desk;
mod episode;
mod record;
mod stitch;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::error::ApiError;
use crate::metrics::Metrics;
use crate::openai::{self, Shared};
use crate::work::Work;

pub use desk::{
    Desk, DeskError, EpisodeLimits, EpisodeReport, EpisodeStatus, Lease, LeaseRequest, desk_router,
};
pub use episode::{Episode, EpisodeSpec, Finished};
pub use record::{Call, Recording};
pub use stitch::{Branch, Stitched};

/// The name under which the policy is served.
pub const MODEL: &str = "policy";

/// Episodes at once.
const MAX_EPISODES: usize = 1 << 16;

/// Digest of a key: what is looked up says nothing about how much of a guess was right.
type KeyDigest = [u8; 32];

/// The gateway's episodes. Cheap to clone.
#[derive(Clone)]
pub struct Gateway {
    inner: Arc<Inner>,
}

struct Inner {
    episodes: Mutex<HashMap<KeyDigest, Arc<episode::Live>>>,
    shared: Arc<Shared>,
}

impl Gateway {
    /// A gateway without episodes. Completions and commands take turns in `work`.
    pub fn new(work: Work, metrics: Arc<Metrics>) -> Self {
        let shared = Shared::new(work, metrics);
        Self { inner: Arc::new(Inner { episodes: Mutex::default(), shared }) }
    }

    /// Begins an episode. It ends when it is finished or dropped; then its key is worth nothing.
    ///
    /// # Errors
    /// [`ServeError::Model`](crate::ServeError::Model) when there are too many.
    pub fn begin(&self, spec: EpisodeSpec) -> Result<Episode, crate::ServeError> {
        let key = format!("pw-{:032x}{:032x}", rand::random::<u128>(), rand::random::<u128>());
        let digest: KeyDigest = Sha256::digest(key.as_bytes()).into();
        let live = Arc::new(episode::Live::new(spec));
        let mut episodes = self.inner.episodes.lock().unwrap_or_else(PoisonError::into_inner);
        if episodes.len() >= MAX_EPISODES {
            let message = format!("{MAX_EPISODES} episodes are open; finish some first");
            return Err(crate::ServeError::Model(message));
        }
        episodes.insert(digest, Arc::clone(&live));
        drop(episodes);
        Ok(Episode::new(self.clone(), key, digest, live))
    }

    /// Episodes that are open.
    pub fn num_episodes(&self) -> usize {
        self.inner.episodes.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    fn close(&self, digest: &KeyDigest) {
        self.inner.episodes.lock().unwrap_or_else(PoisonError::into_inner).remove(digest);
    }

    /// The routes. They ask for an episode's key, so [`Guard`](crate::Guard) needs no token here.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v1/models", get(models))
            .route("/v1/chat/completions", post(chat))
            .route("/v1/completions", post(complete))
            .route("/episode", get(show))
            .route("/episode/exec", post(exec))
            .with_state(self.clone())
    }

    /// The episode whose key a request bears.
    fn find(&self, headers: &HeaderMap) -> Result<Arc<episode::Live>, ApiError> {
        let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = given.and_then(|given| given.split_once(' ')).map_or("", |(_, key)| key.trim());
        let digest: KeyDigest = Sha256::digest(key.as_bytes()).into();
        let episodes = self.inner.episodes.lock().unwrap_or_else(PoisonError::into_inner);
        episodes.get(&digest).cloned().ok_or_else(|| {
            let message = "the key is of no open episode (Authorization: Bearer KEY)";
            ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message)
        })
    }
}

async fn models(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
) -> Result<Json<Value>, ApiError> {
    let episode = gateway.find(&headers)?;
    let data = [openai::model_json(MODEL, &episode.served())];
    Ok(Json(json!({"object": "list", "data": data})))
}

async fn chat(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let episode = gateway.find(&headers)?;
    episode.check_turns()?;
    openai::answer_chat(episode.served(), &gateway.inner.shared, &body).await
}

async fn complete(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, ApiError> {
    let episode = gateway.find(&headers)?;
    episode.check_turns()?;
    openai::answer_completion(episode.served(), &gateway.inner.shared, &body).await
}

async fn show(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    Ok(Json(gateway.find(&headers)?.describe()))
}

async fn exec(
    State(gateway): State<Gateway>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let episode = gateway.find(&headers)?;
    let request = serde_json::from_slice(&body)
        .map_err(|error| ApiError::bad(format!("the body is no command: {error}")))?;
    gateway.inner.shared.work.run(move |_| episode.exec(&request)).await.map(Json)
}
