//! Failures: of the server itself, and of one request in the shape that its client expects.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use patchwright_core::{SamplerError, TrainerError};
use serde_json::json;

/// A server that cannot start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The bearer token is missing or none.
    #[error("{0}")]
    Token(String),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// The cause.
        source: std::io::Error,
    },
    /// Threads or sockets failed.
    #[error("server: {0}")]
    Io(#[from] std::io::Error),
    /// The model's tokenizer, template or configuration cannot be used.
    #[error("{0}")]
    Model(String),
}

/// The answer to a request that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub status: StatusCode,
    pub message: String,
    /// The parameter at fault.
    pub param: Option<String>,
    /// A short name of the failure, for programs.
    pub code: &'static str,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// The request is wrong as it stands.
    pub(crate) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", message)
    }

    /// One parameter of it is wrong.
    pub(crate) fn param(name: &str, message: impl std::fmt::Display) -> Self {
        Self { param: Some(name.to_owned()), ..Self::bad(format!("{name}: {message}")) }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", message)
    }

    pub(crate) fn busy(message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", message)
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "engine_failed", message)
    }

    pub(crate) fn body(&self) -> serde_json::Value {
        let kind = match self.status.as_u16() {
            401 | 403 => "authentication_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "server_error",
        };
        json!({
            "error": {
                "message": self.message, "type": kind, "param": self.param, "code": self.code,
            },
            // What clients of the Tinker API show.
            "detail": self.message,
        })
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(self.body())).into_response();
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            let seconds = axum::http::HeaderValue::from_static("1");
            response.headers_mut().insert(axum::http::header::RETRY_AFTER, seconds);
        }
        response
    }
}

impl From<SamplerError> for ApiError {
    fn from(error: SamplerError) -> Self {
        match error {
            SamplerError::BadRequest(reason) => Self::bad(reason),
            SamplerError::Cancelled => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "cancelled", "the request was cancelled")
            }
            SamplerError::Engine(reason) => Self::internal(format!("engine: {reason}")),
        }
    }
}

impl From<TrainerError> for ApiError {
    fn from(error: TrainerError) -> Self {
        match error {
            TrainerError::BadInput(_) | TrainerError::Checkpoint { .. } => {
                Self::bad(error.to_string())
            }
            TrainerError::Diverged(_) | TrainerError::Engine(_) => {
                Self::internal(error.to_string())
            }
        }
    }
}
