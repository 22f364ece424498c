//! Engines that others keep, over the wire: samplers (vLLM, `SGLang`, llama.cpp, OpenAI-compatible
//! servers) and the Tinker API.

pub mod chat;
pub mod http;
pub mod replicas;
pub mod sampler;
pub mod sync;
pub mod tinker;
