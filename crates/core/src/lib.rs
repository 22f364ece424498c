//! The nouns and traits that the rooms of Patchwright meet through.
//!
//! A [`TaskInstance`] is worked on in a [`Sandbox`] by an agent that asks a [`Sampler`] for
//! tokens; the result is a [`Rollout`]; siblings of one instance are a [`RolloutGroup`]; `algo`
//! turns groups into [`TrainingSample`]s; a [`Trainer`] learns from them and publishes a new
//! [`PolicyVersion`]. Nothing here does I/O or knows tensors.

pub mod patch;
pub mod rollout;
pub mod sampler;
pub mod sandbox;
pub mod seed;
pub mod task;
pub mod trainer;

pub use patch::{FileChange, Patch, PatchError};
pub use rollout::{
    FailureClass, Message, Role, Rollout, RolloutGroup, RolloutStatus, TokenSpan, Trajectory, Turn,
    TurnOutcome,
};
pub use sampler::{
    Completion, DrawnToken, FinishReason, SampleRequest, Sampler, SamplerError, SamplingParams,
};
pub use sandbox::{
    ExecOutput, ExecRequest, ExecStatus, OutputStream, RootFs, Sandbox, SandboxError,
    SandboxLimits, SandboxProvider, SandboxSpec,
};
pub use seed::{derive_seed, stream};
pub use task::{InstallConfig, RepoSource, TaskError, TaskInstance};
pub use trainer::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, TokenLoss, Trainer,
    TrainerError, TrainingSample,
};
