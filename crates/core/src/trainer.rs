//! The seam to whatever learns. It has the shape of the Tinker API and is blind to the algorithm:
//! an [`Objective`] gives each token's loss and its derivative by the log-probability.

use std::path::Path;

use serde::{Deserialize, Serialize};

/// Numbers the weights of a run: 0 is the base, each publish adds 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct PolicyVersion(pub u64);

impl std::fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One flat token sequence to learn from. All vectors have the length of `tokens`; index `t`
/// speaks of the prediction *of* token `t` from tokens `0..t`, so index 0 is never trained.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainingSample {
    /// Token ids, `[t]`.
    pub tokens: Vec<u32>,
    /// Weight of each token in the loss; 0 masks it (prompts, observations), `[t]`.
    pub loss_mask: Vec<f32>,
    /// Advantage of each token, `[t]`; all 1 in supervised training.
    pub advantages: Vec<f32>,
    /// Log-probability under the policy that sampled the token, `[t]`; 0 where not sampled.
    pub sampler_logprobs: Vec<f32>,
}

impl TrainingSample {
    /// A supervised sample: every token weighs what `loss_mask` says, advantages are 1.
    pub fn supervised(tokens: Vec<u32>, loss_mask: Vec<f32>) -> Self {
        let n = tokens.len();
        assert_eq!(n, loss_mask.len(), "one weight a token");
        Self { tokens, loss_mask, advantages: vec![1.0; n], sampler_logprobs: vec![0.0; n] }
    }

    /// Number of tokens with a weight above 0.
    pub fn num_loss_tokens(&self) -> usize {
        self.loss_mask.iter().skip(1).filter(|w| **w > 0.0).count()
    }
}

/// A token's part of the loss.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLoss {
    /// The loss itself (before any mean).
    pub loss: f32,
    /// Its derivative by the token's log-probability.
    pub d_logprob: f32,
    /// Whether a clip cut the gradient.
    pub clipped: bool,
}

/// What is minimised: a sum over tokens of a function of the token's log-probability. Any mean is
/// in the weights: a token-level mean divides by the batch's token count here.
pub trait Objective: Sync {
    /// Loss of token `t` of `sample` (1 <= t) given the trainer's log-probability of it. Called
    /// only where `loss_mask[t]` is not 0.
    fn token_loss(&self, sample: &TrainingSample, t: usize, trainer_logprob: f32) -> TokenLoss;
}

/// Result of [`Trainer::forward_backward`].
#[derive(Debug, Clone, Default)]
pub struct ForwardBackward {
    /// `trainer_logprobs` of each sample, `[sample][t]`; index 0 is 0.
    pub logprobs: Vec<Vec<f32>>,
    /// Sum of the token losses.
    pub loss: f64,
    /// Tokens with a weight.
    pub num_loss_tokens: usize,
    /// Tokens whose gradient a clip cut.
    pub num_clipped: usize,
}

/// `AdamW` with decoupled decay (Loshchilov & Hutter, arXiv 1711.05101).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamParams {
    /// Learning rate of this step, after any schedule.
    pub lr: f32,
    /// Decay of the first moment.
    pub beta1: f32,
    /// Decay of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// Decoupled weight decay, for matrices only (not norms).
    pub weight_decay: f32,
    /// The gradient's global L2 norm is scaled down to this; 0 turns it off.
    pub grad_clip: f32,
}

/// Result of [`Trainer::optim_step`].
#[derive(Debug, Clone, Copy, Default)]
pub struct OptimStats {
    /// Global L2 norm of the gradient before the clip.
    pub grad_norm: f32,
}

/// A failure of the training engine.
#[derive(Debug, thiserror::Error)]
pub enum TrainerError {
    /// A sample or parameter is not valid.
    #[error("bad training input: {0}")]
    BadInput(String),
    /// A checkpoint is missing, damaged, or of another shape; the text says which file and why.
    #[error("checkpoint {path}: {reason}")]
    Checkpoint {
        /// The file or directory.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The gradient or the loss is not finite.
    #[error("training diverged: {0}")]
    Diverged(String),
    /// The engine failed.
    #[error("engine: {0}")]
    Engine(String),
}

/// Updates weights.
pub trait Trainer: Send {
    /// Adds the gradient of `objective` over `samples` to the gradient buffer.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] for samples out of shape, [`TrainerError::Diverged`] for a loss
    /// that is not finite.
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        objective: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError>;

    /// `trainer_logprobs` of each sample, `[sample][t]`, without a gradient.
    ///
    /// # Errors
    /// As [`Trainer::forward_backward`].
    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError>;

    /// One optimizer step with the gathered gradient, which is then cleared.
    ///
    /// # Errors
    /// [`TrainerError::Diverged`] when the gradient is not finite; the weights stay as they were.
    fn optim_step(&mut self, params: &AdamParams) -> Result<OptimStats, TrainerError>;

    /// Saves weights, optimizer state and version to a new directory `dir` (HF layout), whole or
    /// not at all.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`].
    fn save(&mut self, dir: &Path) -> Result<(), TrainerError>;

    /// Loads what [`Trainer::save`] wrote; a directory without optimizer state starts a new one.
    /// The sampler serves the loaded weights, under the loaded version, at once.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`].
    fn load(&mut self, dir: &Path) -> Result<(), TrainerError>;

    /// Makes the weights a new policy version that the engine's sampler serves from now on.
    ///
    /// # Errors
    /// [`TrainerError::Engine`].
    fn publish(&mut self) -> Result<PolicyVersion, TrainerError>;

    /// Forgets the optimizer's moments and step count (a new stage starts afresh).
    fn reset_optimizer(&mut self);

    /// The version last published or loaded.
    fn policy_version(&self) -> PolicyVersion;
}
