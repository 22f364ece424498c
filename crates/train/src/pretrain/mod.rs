//! The program that makes the base policy: tokenizer, corpus, training from random weights.
//!
//! The corpus holds no demonstration of fixing bugs: sessions of a random [`explorer`] (unfiltered)
//! and [`documents`] of source text. The result is low but not zero, which is what reinforcement
//! learning needs to start from.

mod corpus;
pub mod documents;
pub mod explorer;
mod schedule;
pub mod tokenizer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use patchwright_agent::{AgentConfig, Profile, Renderer, Tokenizer};
use patchwright_algo::schedule::{Schedule, learning_rate};
use patchwright_algo::supervised::CrossEntropy;
use patchwright_core::{
    AdamParams, SamplingParams, SandboxError, SandboxProvider, TaskError, Trainer, TrainerError,
    TrainingSample, stream,
};
use patchwright_engine::{Engine, EngineOptions, ModelConfig, ModelType};
use patchwright_tasks::generated;
use patchwright_tasks::issue::IssueStyle;
use patchwright_tasks::validate::{BuildOptions, BuildWatch, build_task_set_watched};
use serde::{Deserialize, Serialize};

use crate::events::CancelToken;
use documents::Frame;
use explorer::{ExplorerRates, ExplorerSampler};

/// Everything that decides what the base policy is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PretrainConfig {
    /// Seed of the weights, the repositories and every session.
    pub seed: u64,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Transformer blocks.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Longest sequence, in tokens.
    pub max_context: usize,
    /// Training repositories that the sessions work on.
    pub num_repositories: usize,
    /// Training repositories whose sources are read.
    pub num_source_repositories: usize,
    /// Explorer sessions.
    pub num_sessions: usize,
    /// Turns of a session at most.
    pub max_turns: usize,
    /// Documents of plain source text.
    pub num_sources: usize,
    /// Documents of the warm-up, which re-show lines of a listing.
    pub num_warm_up: usize,
    /// Documents of the same kind in the mix that follows.
    pub num_reshown: usize,
    /// Passes over the mix; the warm-up is seen once.
    pub epochs: usize,
    /// Tokens of an optimizer step.
    pub batch_tokens: usize,
    /// Peak learning rate; falls to 0 along a half cosine.
    pub lr: f32,
    /// Steps over which it rises.
    pub warmup_steps: usize,
    /// Decoupled weight decay.
    pub weight_decay: f32,
    /// Bound on the gradient's global norm.
    pub grad_clip: f32,
    /// How much the tokens of each kind of text weigh.
    pub weights: LossWeights,
    /// What the explorer does how often.
    pub explorer: ExplorerRates,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            seed: 0,
            hidden_size: 128,
            num_layers: 5,
            num_heads: 4,
            num_kv_heads: 2,
            intermediate_size: 384,
            max_context: 1024,
            num_repositories: 4000,
            num_source_repositories: 12_000,
            num_sessions: 24_000,
            max_turns: 12,
            num_sources: 6_000,
            num_warm_up: 9_000,
            num_reshown: 3_000,
            epochs: 2,
            batch_tokens: 1024,
            lr: 2e-3,
            warmup_steps: 50,
            weight_decay: 0.05,
            grad_clip: 1.0,
            weights: LossWeights::default(),
            explorer: ExplorerRates::default(),
        }
    }
}

impl PretrainConfig {
    fn model(&self, vocab_size: usize) -> ModelConfig {
        ModelConfig {
            model_type: ModelType::Qwen2,
            vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_layers,
            num_attention_heads: self.num_heads,
            num_key_value_heads: self.num_kv_heads,
            head_dim: self.hidden_size / self.num_heads.max(1),
            max_position_embeddings: self.max_context,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: false,
            rope_scaling: None,
        }
    }

    fn agent(&self) -> AgentConfig {
        AgentConfig {
            max_turns: self.max_turns,
            max_context_tokens: self.max_context,
            max_turn_tokens: 200,
            max_consecutive_format_errors: self.max_turns,
            params: SamplingParams::default(),
            ..AgentConfig::default()
        }
    }
}

/// Weights of token kinds in the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LossWeights {
    /// What the agent writes.
    pub action: f32,
    /// What the environment answers.
    pub observation: f32,
    /// Plain source text.
    pub source: f32,
}

impl Default for LossWeights {
    fn default() -> Self {
        Self { action: 1.0, observation: 0.2, source: 0.6 }
    }
}

/// A failure of pretraining.
#[derive(Debug, thiserror::Error)]
pub enum PretrainError {
    /// The training repositories could not be built.
    #[error(transparent)]
    Tasks(#[from] TaskError),
    /// A sandbox failed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// The engine failed.
    #[error(transparent)]
    Trainer(#[from] TrainerError),
    /// The tokenizer, the profile or the output directory is not usable.
    #[error("{0}")]
    Setup(String),
    /// It was asked to stop. Nothing was written.
    #[error("pretraining was asked to stop; nothing was written")]
    Cancelled,
}

/// How far pretraining is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress {
    /// Task instances made, of how many at most.
    Tasks(usize, usize),
    /// Explorer sessions that ended, of how many.
    Sessions(usize, usize),
    /// Optimizer steps done, of how many, the mean loss of the last one, and tokens so far.
    Steps(usize, usize, f64, usize),
}

/// The stream of training repositories; held-out ones are drawn from another.
pub const TRAIN_STREAM: &str = "train";

/// Makes the base policy and writes its checkpoint, tokenizer and recorded recipe to `out`.
///
/// # Errors
/// [`PretrainError`]; [`PretrainError::Cancelled`] soon after `cancel` was set. `out` is written
/// only at the end.
pub fn pretrain(
    config: &PretrainConfig,
    out: &Path,
    provider: &dyn SandboxProvider,
    progress: &(dyn Fn(Progress) + Sync),
    cancel: &CancelToken,
) -> Result<PathBuf, PretrainError> {
    let watch = Watch { progress, cancel };
    let json = serde_json::to_vec_pretty(&tokenizer::tokenizer_json())
        .map_err(|error| PretrainError::Setup(error.to_string()))?;
    let setup = |error: &dyn std::fmt::Display| PretrainError::Setup(error.to_string());
    let tokenizer = Arc::new(Tokenizer::from_bytes(&json).map_err(|e| setup(&e))?);
    let profile = Profile::compact();
    let renderer = Renderer::new(Arc::clone(&tokenizer), profile).map_err(|e| setup(&e))?;
    let id = |token: &str| {
        tokenizer.token_id(token).ok_or_else(|| PretrainError::Setup(format!("no token {token}")))
    };
    let frame = Frame {
        user: id("<|user|>")?,
        assistant: id("<|assistant|>")?,
        end: id("<|end|>")?,
        doc: id("<|doc|>")?,
    };

    let explorer = ExplorerSampler::new(Arc::clone(&tokenizer), frame.end, config.explorer.clone());
    let corpus = gather(config, provider, &renderer, &explorer, frame, &watch)?;
    let model = config.model(tokenizer::vocabulary().len());
    let mut trainer = Engine::new(model, config.seed, EngineOptions::default())?.trainer;
    train(config, &corpus, &mut trainer, &watch)?;
    trainer.reset_optimizer();
    trainer.attach_file("tokenizer.json", json)?;
    let record = serde_json::to_vec_pretty(config).map_err(|e| setup(&e))?;
    trainer.attach_file("pretrain.json", record)?;
    trainer.save(out)?;
    Ok(out.to_path_buf())
}

/// Who is told of progress, and who may stop it.
struct Watch<'a> {
    progress: &'a (dyn Fn(Progress) + Sync),
    cancel: &'a CancelToken,
}

impl Watch<'_> {
    fn go_on(&self) -> Result<(), PretrainError> {
        if self.cancel.is_cancelled() { Err(PretrainError::Cancelled) } else { Ok(()) }
    }
}

impl BuildWatch for Watch<'_> {
    fn progress(&self, num_instances: usize, num_wanted: usize) {
        (self.progress)(Progress::Tasks(num_instances, num_wanted));
    }

    fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled()
    }
}

fn gather(
    config: &PretrainConfig,
    provider: &dyn SandboxProvider,
    renderer: &Renderer,
    explorer: &ExplorerSampler,
    frame: Frame,
    watch: &Watch<'_>,
) -> Result<Corpus, PretrainError> {
    let seed = generated::stream_seed(config.seed, TRAIN_STREAM);
    let repos: Vec<_> =
        (0..config.num_repositories as u64).map(|n| generated::repository(seed, n)).collect();
    let build = BuildOptions {
        seed: config.seed,
        issue_style: IssueStyle::Compact,
        parallelism: std::thread::available_parallelism().map_or(2, usize::from),
        ..BuildOptions::default()
    };
    let built = build_task_set_watched(&repos, provider, &build, watch);
    watch.go_on()?;
    let (tasks, _report) = built?;
    let ended = AtomicUsize::new(0);
    let tell = |_| {
        let done = ended.fetch_add(1, Ordering::Relaxed) + 1;
        (watch.progress)(Progress::Sessions(done, config.num_sessions));
        watch.go_on()
    };
    let mut mix = corpus::sessions(config, &tasks, renderer, explorer, provider, &tell)?;
    let sources: Vec<_> = (0..config.num_source_repositories as u64)
        .map(|n| generated::repository(seed, n))
        .collect();
    let texts = corpus::Texts { config, repos: &sources, renderer, frame };
    mix.extend(texts.sources());
    mix.extend(texts.reshown("mix", config.num_reshown));
    let mut warm_up = texts.reshown("warm-up", config.num_warm_up);
    for samples in [&mut mix, &mut warm_up] {
        samples.retain(|sample| sample.tokens.len() <= config.max_context);
    }
    Ok(Corpus { warm_up, mix })
}

/// What is learned from, first one part, then the other.
struct Corpus {
    warm_up: Vec<TrainingSample>,
    mix: Vec<TrainingSample>,
}

fn train(
    config: &PretrainConfig,
    corpus: &Corpus,
    trainer: &mut dyn Trainer,
    watch: &Watch<'_>,
) -> Result<(), PretrainError> {
    let mut batches = Vec::new();
    for epoch in 0..config.epochs {
        let mut rng = stream(config.seed, &["order", &epoch.to_string()]);
        let warm_up = if epoch == 0 { corpus.warm_up.clone() } else { Vec::new() };
        let mix = corpus.mix.clone();
        batches.extend(schedule::batches(warm_up, mix, config.batch_tokens, &mut rng));
    }
    let num_steps = batches.len();
    let mut num_tokens = 0;
    for (step, batch) in batches.iter().enumerate() {
        watch.go_on()?;
        let result = trainer.forward_backward(batch, &CrossEntropy::of_batch(batch))?;
        trainer.optim_step(&AdamParams {
            lr: learning_rate(Schedule::Cosine, config.lr, step, num_steps, config.warmup_steps),
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: config.weight_decay,
            grad_clip: config.grad_clip,
        })?;
        num_tokens += batch.iter().map(|s| s.tokens.len()).sum::<usize>();
        (watch.progress)(Progress::Steps(step + 1, num_steps, result.loss, num_tokens));
    }
    Ok(())
}
