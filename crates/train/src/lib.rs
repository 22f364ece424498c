//! The programs: RFT, RL, evaluation and the whole pipeline; the rollout engine, the journal and
//! resume.

pub mod agreement;
pub mod environment;
pub mod error;
pub mod evaluate;
pub mod events;
pub mod history;
pub mod journal;
pub mod learn;
pub mod metrics;
pub mod pool;
pub mod recipe;
pub mod rft;
pub mod rl;
pub mod rollout_engine;
pub mod run;
pub mod run_dir;
pub mod scheduler;

pub use error::TrainError;
