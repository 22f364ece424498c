//! Why a request failed, by class.

use std::time::Duration;

/// The class of a failure: it decides whether another try makes sense, and what a log counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// No connection: refused, no route, no such host, TLS.
    Connect,
    /// No whole answer within the time.
    Timeout,
    /// The connection ended in the middle: the server died, or cut the answer short.
    Dropped,
    /// 429, or 503 with `Retry-After`: not before this time has passed, if the server said so.
    Busy {
        /// What `Retry-After` says.
        retry_after: Option<Duration>,
    },
    /// 408, 425, or 5xx.
    Server(u16),
    /// Another status than success: the request is wrong, or not allowed. Not tried again.
    Refused(u16),
    /// A success whose body is not what was agreed on: no JSON, another shape, other tokens than
    /// asked for.
    Garbage,
    /// Other weights answered than are to be served.
    WrongWeights,
    /// The answer is longer than its bound. Not tried again.
    TooLarge,
    /// The request cannot be made: a bad URL or token. Not tried again.
    BadRequest,
    /// Servers were waited for as long as the request may take, and none took it. Not tried again:
    /// the wait was the trying.
    Unavailable,
    /// The caller withdrew the request.
    Cancelled,
}

impl FailureKind {
    /// Whether the same request may succeed later.
    pub fn is_passing(self) -> bool {
        match self {
            Self::Connect
            | Self::Timeout
            | Self::Dropped
            | Self::Busy { .. }
            | Self::Server(_)
            | Self::Garbage
            | Self::WrongWeights => true,
            Self::Refused(_)
            | Self::TooLarge
            | Self::BadRequest
            | Self::Unavailable
            | Self::Cancelled => false,
        }
    }

    /// Whether the server itself, not this request, seems to be in trouble.
    pub fn blames_server(self) -> bool {
        matches!(self, Self::Connect | Self::Timeout | Self::Dropped | Self::Server(_))
    }
}

/// One failed request. The text says which request, what happened and, where it was tried again,
/// how often.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct HttpFailure {
    /// Its class.
    pub kind: FailureKind,
    /// Method and URL; never a token.
    pub what: String,
    /// What happened.
    pub reason: String,
}

impl HttpFailure {
    /// A failure of a request.
    pub fn new(kind: FailureKind, what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { kind, what: what.into(), reason: reason.into() }
    }

    /// A request that the caller withdrew.
    pub fn cancelled(what: impl Into<String>) -> Self {
        Self::new(FailureKind::Cancelled, what, "it was withdrawn")
    }

    /// An answer that came whole, and is not what was agreed on.
    pub fn garbage(what: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::new(FailureKind::Garbage, what, reason)
    }
}
