//! Clients against a server of the tests that answers as real ones were recorded to, and that
//! breaks in every way that real ones do.

mod chat;
mod http;
mod interrupt;
mod replicas;
mod samplers;
mod server;
mod sync;
mod tinker;
mod tinker_server;
