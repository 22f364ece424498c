//! Task instances: rows, the embedded task sets, bug injection, validation, the pool.

pub mod inject;

pub mod katas;
