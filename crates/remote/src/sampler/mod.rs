//! [`Sampler`](patchwright_core::Sampler) over engines that others keep.
//!
//! ```text
//! SampleRequest ─► dialect (every decoding parameter, explicitly) ─► replica of the session ─► HTTP
//! Completion   ◄─ contract (ids, counts, finish, version)         ◄─ dialect (its answer)   ◄──╯
//! ```
//!
//! A [`Dialect`] says how one kind of engine is asked and how its answer is read; what an answer
//! must keep, whoever gave it, is checked in one place (`contract`). An answer that breaks it is
//! [`FailureKind::Garbage`](crate::http::FailureKind::Garbage): tried again, never used.

mod contract;
mod dialect;
mod llama_cpp;
mod remote;
mod sglang;
mod vllm;

pub use contract::Drawn;
pub use dialect::Dialect;
pub(crate) use remote::sampler_error;
pub use remote::{RemoteSampler, SamplerOptions};
