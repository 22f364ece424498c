//! What a server allows.

use std::time::Duration;

/// Bounds of a server. Whoever goes past one is told so (429, 413, 408) or waits; nothing grows
/// without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServerLimits {
    /// Bytes of a request's body, after decompression.
    pub max_body_bytes: usize,
    /// From the opening of a connection, or the end of a request on it, to the end of the next
    /// request's headers.
    pub header_timeout: Duration,
    /// From the end of the headers to the end of the body.
    pub body_timeout: Duration,
    /// Connections at once; more wait in the backlog.
    pub max_connections: usize,
    /// Requests in work or waiting for the engine, at once; more are answered 429.
    pub max_requests: usize,
    /// Completions that the engine draws at once; more wait.
    pub max_samples: usize,
    /// How long requests in work may go on once the server is told to stop.
    pub drain: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            max_body_bytes: 64 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_mins(1),
            max_connections: 1024,
            max_requests: 1024,
            max_samples: 256,
            drain: Duration::from_secs(10),
        }
    }
}
