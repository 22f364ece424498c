//! The programs: RFT, RL, evaluation and the whole pipeline; the rollout engine, the journal and
//! resume.

pub mod events;
pub mod metrics;
pub mod recipe;
