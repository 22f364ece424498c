//! Settings of the client.

use std::time::Duration;

use super::probe::Reduction;
use crate::http::{Interrupt, Listener};

/// A secret; it cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Wraps a key; spaces and line ends around it are cut off.
    pub fn new(key: &str) -> Self {
        Self(key.trim().to_owned())
    }

    pub(super) fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// How a server of the Tinker API is used.
#[derive(Debug, Clone, PartialEq)]
pub struct TinkerOptions {
    /// `http://host:port`.
    pub url: String,
    /// Sent as `X-API-Key` and as bearer token.
    pub api_key: Option<ApiKey>,
    /// The model's name at the server.
    pub base_model: String,
    /// Rank of the adapter that is trained; 0 asks for training of all weights.
    pub lora_rank: u32,
    /// Seed of the adapter's start.
    pub seed: u64,
    /// Tokens that the model holds; `None` asks the server.
    pub max_context: Option<usize>,
    /// How the server adds up; `None` probes it.
    pub reduction: Option<Reduction>,
    /// Whether the server clips gradients by `grad_clip_norm`; `None` probes it.
    pub clips_gradients: Option<bool>,
    /// Wall clock of one operation of the server, waiting included.
    pub request_timeout: Duration,
    /// Longest single wait for a result; then it is asked for again.
    pub poll_timeout: Duration,
    /// Times that a request is sent again after a failure that may pass.
    pub max_retries: u32,
    /// Pause before the first of them.
    pub first_pause: Duration,
    /// Time between signs of life.
    pub heartbeat: Duration,
    /// Sequences in one `forward_backward` at most.
    pub max_chunk_datums: usize,
    /// Bytes of one `forward_backward` at most (one sequence may be longer).
    pub max_chunk_bytes: usize,
    /// Ends all requests when it is set.
    pub interrupt: Interrupt,
    /// Hears of it when the server goes away and comes back.
    pub listener: Listener,
}

impl TinkerOptions {
    /// Defaults for a server and a model: rank 32, half an hour for an operation.
    pub fn new(url: impl Into<String>, base_model: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            api_key: None,
            base_model: base_model.into(),
            lora_rank: 32,
            seed: 0,
            max_context: None,
            reduction: None,
            clips_gradients: None,
            request_timeout: Duration::from_mins(30),
            poll_timeout: Duration::from_secs(15),
            max_retries: 5,
            first_pause: Duration::from_millis(250),
            heartbeat: Duration::from_secs(10),
            max_chunk_datums: 1024,
            max_chunk_bytes: 5_000_000,
            interrupt: Interrupt::new(),
            listener: Listener::default(),
        }
    }
}
