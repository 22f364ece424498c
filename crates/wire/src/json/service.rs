//! Messages about the server, sessions and futures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::kinds;

/// Answer of `healthz`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// `ok`.
    pub status: String,
}

/// Answer of `get_server_capabilities`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerCapabilities {
    /// Base models.
    pub supported_models: Vec<SupportedModel>,
}

/// A base model of the server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SupportedModel {
    /// What `base_model` of a request names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_name: Option<String>,
    /// Tokens that it holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_context_length: Option<u64>,
}

/// Body of `client/config` and `client/dynamic_config`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientConfigRequest {
    /// Version of the client's SDK.
    pub sdk_version: String,
}

/// Answer of `client/config`: flags with the SDK's defaults where a server does not set them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClientConfig {
    /// Whether the client swaps its key for a token first.
    pub pjwt_auth_enabled: bool,
    /// Whether `forward_backward` bodies are to be compressed with zstd.
    pub proto_compress_fwdbwd: bool,
    /// Datums in one `forward_backward` at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fwdbwd_max_chunk_len: Option<u64>,
    /// Bytes of one `forward_backward` body at most, before compression.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fwdbwd_max_chunk_bytes_count: Option<u64>,
    /// Completions in flight at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample_max_concurrent_requests: Option<u64>,
}

/// Body of `create_session`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CreateSession {
    /// Labels.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Anything of the user's.
    #[serde(default)]
    pub user_metadata: Option<BTreeMap<String, Value>>,
    /// Version of the client's SDK.
    #[serde(default)]
    pub sdk_version: String,
    /// Project to count the session to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub project_id: Option<String>,
    /// `create_session`.
    #[serde(default, rename = "type")]
    pub kind: kinds::CreateSession,
}

/// Answer of `create_session`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCreated {
    /// `create_session`.
    #[serde(default, rename = "type")]
    pub kind: kinds::CreateSession,
    /// Names the session from now on.
    pub session_id: String,
    /// For the user to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub info_message: Option<String>,
    /// For the user to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warning_message: Option<String>,
    /// For the user to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
}

/// Body of `session_heartbeat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionHeartbeat {
    /// The session.
    pub session_id: String,
    /// `session_heartbeat`.
    #[serde(default, rename = "type")]
    pub kind: kinds::SessionHeartbeat,
}

/// Answer of `session_heartbeat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionHeartbeatDone {
    /// `session_heartbeat`.
    #[serde(default, rename = "type")]
    pub kind: kinds::SessionHeartbeat,
}

/// Answer to every asynchronous request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UntypedFuture {
    /// Names the result.
    pub request_id: String,
    /// The model, where one is concerned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_id: Option<String>,
}

/// Body of `retrieve_future`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetrieveFuture {
    /// The result wanted.
    pub request_id: String,
    /// A result that is large may first be answered by its size.
    #[serde(default)]
    pub allow_metadata_only: bool,
}

/// The result is not there yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TryAgain {
    /// `try_again`.
    #[serde(default, rename = "type")]
    pub kind: kinds::TryAgain,
    /// The result asked for.
    #[serde(default)]
    pub request_id: String,
    /// `active`, `paused_capacity` or `paused_rate_limit`.
    #[serde(default)]
    pub queue_state: String,
    /// For the user to read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_state_reason: Option<String>,
}

/// The request behind a future failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestFailed {
    /// What went wrong.
    pub error: String,
    /// Whose fault it is.
    #[serde(default)]
    pub category: ErrorCategory,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ErrorCategory {
    /// The server's: again may work.
    Server,
    /// The caller's: again fails again.
    User,
    /// Not told.
    #[default]
    #[serde(other)]
    Unknown,
}

/// Body of an answer with a status of 400 or more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// What went wrong; a list of objects where a framework wrote it.
    pub detail: Value,
}

impl ApiError {
    /// An error with a text.
    pub fn new(detail: impl Into<String>) -> Self {
        Self { detail: Value::String(detail.into()) }
    }
}
