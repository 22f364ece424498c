//! The `patchwright` program: arguments in, tables and pages out. What it does is in the other
//! crates; this one asks them and tells people.

pub mod args;
pub mod error;
mod numbers;
mod progress;
pub mod report;
mod table;
