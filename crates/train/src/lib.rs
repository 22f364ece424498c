//! The programs: RFT, RL, evaluation and the whole pipeline; the rollout engine, the journal and
//! resume.

pub mod error;
pub mod events;
pub mod journal;
pub mod metrics;
pub mod recipe;

pub use error::TrainError;
