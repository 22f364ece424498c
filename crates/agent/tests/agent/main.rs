//! The agent against real sandboxes.

mod common;
mod grading;
mod react;
mod releases;
mod tools;
