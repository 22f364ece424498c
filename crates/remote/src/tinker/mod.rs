//! The client of the Tinker API: a [`Trainer`] and a [`Sampler`] whose weights live at a server.
//!
//! [`open`] makes a session and a model and gives both. What is ours to decide:
//!
//! - **Any objective.** The server has losses of its own, but the trait is blind to the algorithm:
//!   [`TinkerTrainer`] asks for log-probabilities (`forward`), evaluates the objective here, and
//!   sends back a loss that is linear in the log-probabilities with exactly those derivatives. It
//!   costs one more forward pass, a quarter to a third of a step's compute, and makes every
//!   objective the same at every server.
//! - **Gradients are sent with the step.** `forward_backward` keeps the derivatives here;
//!   `optim_step` sends them and steps. Servers that divide by the number of sequences can only be
//!   given exact factors when all sequences of the step are known, and a server that is lost between
//!   the two takes no gradient with it.
//! - **How the server adds up** ([`Reduction`]) and whether it clips gradients is probed at the
//!   start, by what a scratch model does ([`probe`]), not by what a server is called.
//! - **A lost session** is made anew from the last saved state when no step was taken since, and is
//!   an error otherwise.
//!
//! [`Trainer`]: patchwright_core::Trainer
//! [`Sampler`]: patchwright_core::Sampler

mod batch;
mod checkpoint;
mod client;
mod error;
mod heartbeat;
mod model;
mod options;
pub mod probe;
mod sampler;
mod trainer;

pub use client::TinkerClient;
pub use error::TinkerError;
pub use options::{ApiKey, TinkerOptions};
pub use probe::Reduction;
pub use sampler::TinkerSampler;
pub use trainer::{TinkerTrainer, open};
