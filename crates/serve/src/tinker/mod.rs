//! The Tinker API over engines of ours: what the official SDK (0.25 to 0.38) and programs written
//! for it speak. Losses are summed over tokens.
//!
//! ```text
//!  POST forward_backward ─► future ─► queue of the model, in the order of seq_id ─► Learner
//!  POST asample          ─► future ─► pool ─► Sampler of the saved weights
//!  POST retrieve_future  ─► waits a while for the future
//! ```
//! A model has one thread, which owns its [`Learner`]. Requests carry sequence numbers; the same
//! number is the same request sent again and gets the same future. Sessions that send no heartbeat
//! lose their models; futures, models, samplers and checkpoints are bounded.

mod api;
mod futures;
mod loss;
mod models;
mod samplers;
mod sampling;
mod weights;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use patchwright_core::{Sampler, Trainer, TrainerError};

use crate::error::ServeError;
use crate::metrics::Metrics;
use crate::text::ModelText;
use crate::work::Work;

/// A model that others may train or sample from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseModel {
    /// Its name, as clients say it.
    pub name: String,
    /// Tokens of a sequence at most.
    pub max_context: usize,
    /// What clients load its tokenizer by: a directory, or a name on the Hugging Face hub.
    pub tokenizer_id: Option<String>,
}

/// A low-rank adapter, as a client asks for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoraSpec {
    /// Rank, at least 1.
    pub rank: usize,
    /// Seed of its first weights.
    pub seed: u64,
    /// Whether the projections of attention are adapted.
    pub train_attn: bool,
    /// Whether the projections of the MLP are adapted.
    pub train_mlp: bool,
    /// Whether the unembedding was to be adapted too. The SDK asks for it unless it is told not
    /// to, so it is not refused: a backend that cannot says so to whoever runs it, and
    /// `weights_info` to clients.
    pub train_unembed: bool,
}

/// A model in training.
pub trait Learner: Trainer {
    /// Writes the weights alone, for sampling, to the new directory `dir`.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`].
    fn export(&mut self, dir: &Path) -> Result<(), TrainerError>;

    /// Saves what training goes on from to the new directory `dir`.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`].
    fn save_state(&mut self, dir: &Path) -> Result<(), TrainerError>;

    /// Takes up what [`Learner::save_state`] wrote, with the optimizer's state if `optimizer`.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`]; [`TrainerError::BadInput`] when there is no such state.
    fn load_state(&mut self, dir: &Path, optimizer: bool) -> Result<(), TrainerError>;
}

/// Makes models and samplers.
pub trait Backend: Send + Sync {
    /// What there is to train and to sample from.
    fn base_models(&self) -> Vec<BaseModel>;

    /// A model to train, with new weights of `base`: all of them, or an adapter alone.
    ///
    /// # Errors
    /// [`TrainerError`] when it cannot be made.
    fn learner(&self, base: &str, lora: Option<LoraSpec>)
    -> Result<Box<dyn Learner>, TrainerError>;

    /// A sampler of `base`, or of what [`Learner::export`] wrote.
    ///
    /// # Errors
    /// [`TrainerError`] when it cannot be made.
    fn sampler(&self, base: &str, weights: Option<&Path>)
    -> Result<Arc<dyn Sampler>, TrainerError>;

    /// How the tokens of `base` are text, for stop strings.
    fn text(&self, base: &str) -> Option<Arc<ModelText>>;
}

/// Bounds of a Tinker server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TinkerOptions {
    /// Where checkpoints are kept, one directory a model.
    pub store: PathBuf,
    /// Models in training at once.
    pub max_models: usize,
    /// Samplers of saved weights in memory; the one that was used longest ago makes room.
    pub max_samplers: usize,
    /// Size of their weights' files from which on one makes room for the next; two stay anyhow.
    pub max_sampler_bytes: u64,
    /// Futures that are not answered, or whose answers are kept.
    pub max_futures: usize,
    /// Sessions at once.
    pub max_sessions: usize,
    /// How long an answer waits for its client.
    pub future_ttl: Duration,
    /// A session without a heartbeat for so long has ended.
    pub session_ttl: Duration,
    /// How long `retrieve_future` waits before it says "not yet".
    pub poll: Duration,
    /// Snapshots for sampling without a name that are kept of a model, while its session is open.
    pub max_snapshots: usize,
    /// Bytes of checkpoints from which on no more are saved.
    pub max_store_bytes: u64,
}

impl TinkerOptions {
    /// The defaults, with checkpoints in `store`.
    pub fn new(store: PathBuf) -> Self {
        Self {
            store,
            max_models: 8,
            max_samplers: 8,
            max_sampler_bytes: 2 << 30,
            max_futures: 8192,
            max_sessions: 256,
            future_ttl: Duration::from_mins(10),
            session_ttl: Duration::from_mins(5),
            poll: Duration::from_secs(20),
            max_snapshots: 16,
            max_store_bytes: 64 << 30,
        }
    }
}

/// The routes of the API.
///
/// # Errors
/// [`ServeError::Io`] when the store cannot be made.
pub fn router(
    backend: Arc<dyn Backend>,
    options: TinkerOptions,
    work: Work,
    metrics: Arc<Metrics>,
) -> Result<Router, ServeError> {
    std::fs::create_dir_all(&options.store)?;
    Ok(api::routes(api::State::new(backend, options, work, metrics)?))
}
