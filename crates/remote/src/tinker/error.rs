//! What can go wrong with a server of the Tinker API, by class.

use std::time::Duration;

use patchwright_core::{SamplerError, TrainerError};
use patchwright_wire::WireError;

use crate::http::{FailureKind, HttpFailure};

/// A failure of the client.
#[derive(Debug, thiserror::Error)]
pub enum TinkerError {
    /// No usable answer, after the retries that the options allow.
    #[error(transparent)]
    Http(HttpFailure),
    /// The server does not speak this version of the protocol.
    #[error(
        "{what}: the server speaks another version of the Tinker API ({reason}); \
             0.25 of the official SDK is spoken here"
    )]
    Protocol {
        /// The operation.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// The server took the request and failed at it.
    #[error("{what} failed at the server: {reason}")]
    Failed {
        /// The operation.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// Session, model or result are not known to the server any more.
    #[error("{what}: the server does not know the session, model or result any more ({reason})")]
    Lost {
        /// The operation.
        what: String,
        /// What the server said.
        reason: String,
    },
    /// No result within the time of the options.
    #[error("{what}: no result within {} s; is the server still working? Restart it, or raise \
             tinker.request_timeout_seconds", limit.as_secs())]
    TimedOut {
        /// The operation.
        what: String,
        /// The bound.
        limit: Duration,
    },
    /// The answer is not what was asked for.
    #[error("{what}: the server's answer is not what was asked for: {reason}")]
    Contract {
        /// The operation.
        what: String,
        /// The difference.
        reason: String,
    },
    /// A message that cannot be written or read.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A setting that cannot work.
    #[error("{0}")]
    Setting(String),
    /// The caller withdrew the request.
    #[error("the request was cancelled")]
    Cancelled,
}

impl TinkerError {
    pub(super) fn contract(what: &str, reason: impl Into<String>) -> Self {
        Self::Contract { what: what.to_owned(), reason: reason.into() }
    }

    /// Classes what HTTP says of an operation.
    pub(super) fn from_http(what: &str, failure: HttpFailure) -> Self {
        let what = what.to_owned();
        match failure.kind {
            FailureKind::Refused(404 | 410) => Self::Lost { what, reason: failure.to_string() },
            FailureKind::Refused(415) => Self::Protocol { what, reason: failure.to_string() },
            FailureKind::Refused(400 | 409 | 422) => {
                Self::Failed { what, reason: failure.to_string() }
            }
            FailureKind::Cancelled => Self::Cancelled,
            _ => Self::Http(failure),
        }
    }

    /// Whether a new session may mend it.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Lost { .. })
    }
}

impl From<TinkerError> for TrainerError {
    fn from(error: TinkerError) -> Self {
        match error {
            TinkerError::Wire(_) | TinkerError::Setting(_) => Self::BadInput(error.to_string()),
            _ => Self::Engine(error.to_string()),
        }
    }
}

impl From<TinkerError> for SamplerError {
    fn from(error: TinkerError) -> Self {
        match error {
            TinkerError::Cancelled => Self::Cancelled,
            TinkerError::Wire(_) | TinkerError::Setting(_) => Self::BadRequest(error.to_string()),
            _ => Self::Engine(error.to_string()),
        }
    }
}
