//! The messages of the Tinker API, as JSON and as protobuf: what its clients and servers share.
//!
//! The API is an open interface for post-training: an asynchronous request is a `POST` to a path of
//! [`paths`] that returns an [`UntypedFuture`]; its result is long-polled with
//! [`paths::RETRIEVE_FUTURE`]. Everything is JSON except three messages, which since version 0.25 of
//! the official SDK are protobuf ([`PROTOBUF`], optionally compressed with zstd): the request of
//! `forward_backward`, and the results of `forward_backward` and of `asample`. No `.proto` is
//! published; the field numbers are those of the SDK's descriptors, and `tests/goldens` holds bytes
//! that the SDK (0.25 and 0.38) made.
//!
//! - [`ForwardBackwardRequest`], [`ForwardBackwardOutput`], [`SampleResponse`]: plain structs of
//!   vectors with `encode` and `decode`; protobuf messages do not leave this crate.
//! - [`json`]: the JSON messages, for serde.
//! - [`FutureReply`]: what `retrieve_future` answered.
//! - [`Limits`]: decoding is bounded. Sizes and counts are checked before memory is taken, so that a
//!   body of `n` bytes costs at most a small multiple of `n`, and no bytes panic.

mod compress;
mod error;
mod forward_backward;
mod future;
pub mod json;
mod limits;
pub mod paths;
mod proto;
mod sample;
mod tensor;

pub use compress::{compress, decompress};
pub use error::WireError;
pub use forward_backward::{Datum, ForwardBackwardOutput, ForwardBackwardRequest, LossFn};
pub use future::FutureReply;
pub use json::UntypedFuture;
pub use limits::Limits;
pub use sample::{SampleResponse, SampledSequence, StopReason, TopkLogprobs};
pub use tensor::{Tensor, TensorData};

/// Content type of the protobuf messages.
pub const PROTOBUF: &str = "application/x-protobuf";

/// Version of the official SDK whose wire this crate speaks; clients send it as `sdk_version`.
/// Fields that 0.38 added are read where they have a meaning and refused where they would be
/// ignored.
pub const SDK_VERSION: &str = "0.25.0";
