//! Task instances: rows, the embedded task sets, bug injection, validation, the pool.

pub mod environment;
pub mod filter;
mod finished;
pub mod generated;
pub mod harbor;
pub mod import;
pub mod impossible;
pub mod inject;
pub mod issue;
pub mod katas;
pub mod pool;
pub mod releases;
pub mod rows;
pub mod source;
pub mod validate;
