//! Servers over an engine: the Tinker API, OpenAI-compatible endpoints, and the gateway that
//! records what a foreign agent asks.
//!
//! ```text
//!  connection ─► http (limits, graceful stop) ─► guard (request id, bearer token, metrics)
//!                                                   ├─► openai ─► work ─► core::Sampler
//!                                                   ├─► tinker ─► one thread a model ─► core::Trainer
//!                                                   └─► gateway ─► openai, recorded per episode
//! ```
//! HTTP is asynchronous on few threads; engines block, so they are called on a bounded pool
//! (`work`) and told when the client has gone away.

mod auth;
mod error;
pub mod gateway;
mod guard;
mod http;
mod limits;
mod metrics;
pub mod openai;
mod text;
pub mod tinker;
mod token_bytes;
mod work;

pub use auth::BearerToken;
/// What the modules make and [`Server`] serves.
pub use axum::Router;
pub use error::ServeError;
pub use guard::Guard;
pub use http::Server;
pub use limits::ServerLimits;
pub use metrics::Metrics;
pub use text::ModelText;
pub use work::Work;
