//! The embedded policy on the CPU: transformer, sampler, trainer, checkpoints. Tokens in, tokens
//! out; text is no matter of this crate.
//!
//! ```text
//!  TrainingSample ─► trainer ─► microbatch ─┬─► forward, attention, head ─┬─► kernels
//!                      │          (team)    └─► backward ─────────────────┤
//!                      │ publish                                          │
//!                      ▼                                                  │
//!  SampleRequest ─► sampler ─► scheduler ─► batch ─► decode ─► draw ──────╯
//!                                 └─► sequence, prefix_tree, kv_cache
//! ```
//! Trainer and sampler run the same kernels in the same order on every row, so their
//! log-probabilities of the same tokens under the same weights agree to the last bit, and nothing
//! depends on what else is in a batch, on how it is cut, or on the number of threads.

mod attention;
mod backward;
mod batch;
pub mod bench;
mod checkpoint;
mod config;
mod decode;
mod draw;
mod engine;
mod forward;
mod gguf;
mod head;
mod kernels;
mod kv_cache;
mod lora;
mod microbatch;
mod optim;
mod params;
mod prefix_tree;
mod rope;
mod sampler;
mod scheduler;
mod sequence;
mod team;
mod trainer;
mod weights;

pub use checkpoint::{ExportOptions, ModelSummary, WeightDtype};
pub use config::{ModelConfig, ModelType};
pub use engine::{Engine, EngineOptions, Recompute, WeightSwap};
pub use gguf::{GgufFile, GgufVocabulary};
pub use kernels::gemm::Precision;
pub use lora::LoraConfig;
pub use rope::RopeScaling;
pub use sampler::{EmbeddedSampler, SamplerStats};
pub use trainer::EmbeddedTrainer;
