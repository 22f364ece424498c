//! The trainer: micro-batches over threads, gradient in a fixed order, `AdamW`, checkpoints.

mod adapter;
mod check;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use patchwright_core::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, Trainer, TrainerError,
    TrainingSample,
};

use crate::backward::Wanted;
use crate::checkpoint::{self, Checkpoint, CheckpointRef, ExportOptions};
use crate::config::ModelConfig;
use crate::engine::{EngineOptions, Recompute};
use crate::kernels::gemm::Precision;
use crate::kernels::math;
use crate::lora::Lora;
use crate::microbatch::{Learning, MicroBatchResult, Workspace, row_floats};
use crate::optim::{self, Moments};
use crate::sampler::EmbeddedSampler;
use crate::team::Team;
use crate::weights::{BackwardWeights, Weights};

use check::check_adam;

/// A batch is cut into at least this many micro-batches (tokens permitting), so that threads have
/// something to share. Fixed: the cut, and so the gradient's bits, must not depend on the threads.
const MIN_MICRO_BATCHES: usize = 16;

/// The same in bfloat16: beside faster products each micro-batch's passes over the gradient weigh
/// more.
const MIN_MICRO_BATCHES_BF16: usize = 4;

/// No micro-batch is made smaller than this for the sake of more of them.
const MIN_MICRO_BATCH_TOKENS: usize = 256;

/// Models of more parameters have one gradient at a time.
const MOST_APART_PARAMETERS: usize = 1 << 24;

/// Elements of the gradient that one thread adds at a time.
const ADD_CHUNK: usize = 1 << 15;

/// Trains the embedded policy; see [`Trainer`].
///
/// A batch is cut into micro-batches, each run by one thread, or by all together where there are
/// few; their gradients are added in order, whoever finishes first, so that the result has the same
/// bits on any number of threads.
pub struct EmbeddedTrainer {
    weights: Arc<Weights>,
    backward: BackwardWeights,
    /// Whether `backward` is packed from other parameters than `weights`.
    backward_is_stale: bool,
    moments: Moments,
    gradient: Vec<f32>,
    /// Whether `gradient` is all zeros.
    gradient_is_clear: bool,
    /// What is trained instead of the weights.
    lora: Option<Lora>,
    team: Team,
    threads: Vec<ThreadState>,
    options: EngineOptions,
    version: PolicyVersion,
    sampler: Arc<EmbeddedSampler>,
    attached: BTreeMap<String, Vec<u8>>,
}

/// What a thread keeps between micro-batches.
#[derive(Default)]
struct ThreadState {
    workspace: Workspace,
    gradient: Vec<f32>,
}

/// The gradient, and whose turn it is to add to it.
struct Turn<'a> {
    next: usize,
    gradient: &'a mut [f32],
    results: Vec<MicroBatchResult>,
}

impl EmbeddedTrainer {
    pub(crate) fn new(
        weights: Arc<Weights>,
        moments: Moments,
        version: PolicyVersion,
        options: EngineOptions,
        sampler: Arc<EmbeddedSampler>,
    ) -> Result<Self, TrainerError> {
        let team = Team::new(options.num_threads).map_err(TrainerError::Engine)?;
        Ok(Self {
            weights,
            backward: BackwardWeights::default(),
            backward_is_stale: true,
            moments,
            gradient: Vec::new(),
            gradient_is_clear: true,
            lora: None,
            threads: (0..team.size()).map(|_| ThreadState::default()).collect(),
            team,
            options,
            version,
            sampler,
            attached: BTreeMap::new(),
        })
    }

    /// The architecture.
    pub fn config(&self) -> &ModelConfig {
        &self.weights.model.config
    }

    /// Optimizer steps since the moments were last reset.
    pub fn optimizer_step(&self) -> u64 {
        self.lora.as_ref().map_or(self.moments.step, Lora::optimizer_step)
    }

    /// A file that every later [`Trainer::save`] writes beside the weights, such as
    /// `tokenizer.json`: part of the checkpoint, and of its manifest.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] when `name` is not a plain file name, or one of the engine's own.
    pub fn attach_file(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), TrainerError> {
        checkpoint::check_attached_name(name).map_err(TrainerError::BadInput)?;
        self.attached.insert(name.to_owned(), bytes);
        Ok(())
    }

    /// Writes the weights, `config.json` and the attached files to the new directory `dir`, for
    /// others to load: in the format and files that `options` says, without a trainer's state.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`], also for a weight that the format cannot hold.
    pub fn export(&self, dir: &Path, options: &ExportOptions) -> Result<(), TrainerError> {
        let params = &self.weights.params;
        checkpoint::export_params(dir, self.config(), params, &self.attached, options)
    }

    /// The gathered gradient of each tensor by its Hugging Face name, row-major. While an adapter is
    /// in training, that of what it does not change is not computed.
    pub fn gradients(&self) -> BTreeMap<String, Vec<f32>> {
        self.by_name(&self.gradient)
    }

    /// The parameters of each tensor by its Hugging Face name, row-major.
    pub fn parameters(&self) -> BTreeMap<String, Vec<f32>> {
        self.by_name(&self.weights.params)
    }

    /// Overwrites one tensor, row-major.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] for an unknown name, another size, or values that are not finite,
    /// and while an adapter is in training.
    pub fn set_parameter(&mut self, name: &str, values: &[f32]) -> Result<(), TrainerError> {
        let bad = |reason: &str| TrainerError::BadInput(format!("tensor {name} {reason}"));
        if self.lora.is_some() {
            return Err(bad("is frozen while an adapter is in training"));
        }
        let tensors = &self.weights.model.layout.tensors;
        let spec = tensors.iter().find(|t| t.name == name).ok_or_else(|| bad("is unknown"))?;
        let range = spec.range.clone();
        if values.len() != range.len() {
            return Err(bad("has another number of elements"));
        }
        if values.iter().any(|x| !x.is_finite()) {
            return Err(bad("would not be finite"));
        }
        let weights = Arc::make_mut(&mut self.weights);
        weights.params[range].copy_from_slice(values);
        weights.pack(&self.team);
        self.backward_is_stale = true;
        Ok(())
    }

    fn by_name(&self, flat: &[f32]) -> BTreeMap<String, Vec<f32>> {
        let tensors = &self.weights.model.layout.tensors;
        tensors
            .iter()
            .filter_map(|t| Some((t.name.clone(), flat.get(t.range.clone())?.to_vec())))
            .collect()
    }

    /// Cuts the batch, in order, into micro-batches of about equal token counts. The cut depends on
    /// the samples and `max_batch_tokens` only.
    fn micro_batches<'s>(&self, samples: &'s [TrainingSample]) -> Vec<Vec<&'s TrainingSample>> {
        let total: usize = samples.iter().map(|s| s.tokens.len()).sum();
        let min_micro_batches = match self.weights.precision {
            Precision::F32 => MIN_MICRO_BATCHES,
            Precision::Bf16 => MIN_MICRO_BATCHES_BF16,
        };
        let target = total
            .div_ceil(min_micro_batches)
            .max(MIN_MICRO_BATCH_TOKENS)
            .min(self.options.max_batch_tokens);
        let mut batches: Vec<Vec<&TrainingSample>> = Vec::new();
        let mut room = 0;
        for sample in samples {
            let n = sample.tokens.len();
            if n > room || batches.is_empty() {
                batches.push(Vec::new());
                room = target;
            }
            room = room.saturating_sub(n);
            if let Some(batch) = batches.last_mut() {
                batch.push(sample);
            }
        }
        batches
    }

    /// Runs all samples; with an objective, adds to the gradient.
    fn run(
        &mut self,
        samples: &[TrainingSample],
        objective: Option<&dyn Objective>,
    ) -> Vec<MicroBatchResult> {
        let batches = self.micro_batches(samples);
        if objective.is_some() {
            self.gradient.resize(self.weights.params.len(), 0.0);
            if std::mem::take(&mut self.backward_is_stale) {
                self.backward.pack(&self.weights, &self.team);
            }
        }
        let num_threads = self.options.num_threads;
        // Apart, threads never wait for each other, but need room for a gradient each, and enough
        // micro-batches that none idles at the end.
        let apart = self.weights.params.len() <= MOST_APART_PARAMETERS
            && (batches.len() >= 4 * num_threads || batches.len().is_multiple_of(num_threads));
        let recompute = self.recomputes(&batches, if apart { num_threads } else { 1 });
        if apart {
            self.run_apart(&batches, objective, recompute)
        } else {
            self.run_together(&batches, objective, recompute)
        }
    }

    /// Whether layers are computed again in the backward pass.
    fn recomputes(&self, batches: &[Vec<&TrainingSample>], at_once: usize) -> bool {
        let model = &self.weights.model;
        let rows = |batch: &Vec<&TrainingSample>| batch.iter().map(|s| s.tokens.len()).sum();
        let most: usize = batches.iter().map(rows).max().unwrap_or(0);
        let (kept, detail) = row_floats(&model.config, model.layout.layers[0].qk_norm.is_some());
        let floats = most * at_once * model.config.num_hidden_layers * (kept + detail);
        match self.options.recompute {
            Recompute::Always => true,
            Recompute::Never => false,
            Recompute::Auto => size_of::<f32>() * floats > self.options.max_activation_bytes,
        }
    }

    /// All threads on one micro-batch, one after the other.
    fn run_together(
        &mut self,
        batches: &[Vec<&TrainingSample>],
        objective: Option<&dyn Objective>,
        recompute: bool,
    ) -> Vec<MicroBatchResult> {
        let wanted = self.wanted();
        let Self { weights, backward, gradient, threads, team, gradient_is_clear, .. } = self;
        let Some(state) = threads.first_mut() else { return Vec::new() };
        let run = |batch: &Vec<&TrainingSample>| {
            let Some(objective) = objective else {
                return state.workspace.run(team, weights, batch, None);
            };
            // 0 + x is x: the first micro-batch needs no room of its own.
            let direct = std::mem::take(gradient_is_clear);
            if !direct {
                state.gradient.clear();
                state.gradient.resize(gradient.len(), 0.0);
            }
            let own = if direct { &mut *gradient } else { &mut state.gradient };
            let learning = Learning { objective, backward, gradient: own, wanted, recompute };
            let result = state.workspace.run(team, weights, batch, Some(learning));
            if !direct {
                let parts = gradient.chunks_mut(ADD_CHUNK).zip(state.gradient.chunks(ADD_CHUNK));
                team.each(&mut vec![(); team.size()], parts.collect(), |(), (to, from)| {
                    math::add_assign(to, from);
                });
            }
            result
        };
        batches.iter().map(run).collect()
    }

    /// A micro-batch for each thread at a time.
    fn run_apart(
        &mut self,
        batches: &[Vec<&TrainingSample>],
        objective: Option<&dyn Objective>,
        recompute: bool,
    ) -> Vec<MicroBatchResult> {
        if objective.is_some() {
            self.gradient_is_clear = false;
        }
        let (weights, backward, wanted) = (&*self.weights, &self.backward, self.wanted());
        let results = batches.iter().map(|_| MicroBatchResult::default()).collect();
        let turn = Mutex::new(Turn { next: 0, gradient: &mut self.gradient, results });
        let added = Condvar::new();
        let work = |state: &mut ThreadState, (index, batch): (usize, &Vec<&TrainingSample>)| {
            let learning = objective.map(|objective| {
                state.gradient.clear();
                state.gradient.resize(weights.params.len(), 0.0);
                let gradient = &mut state.gradient;
                Learning { objective, backward, gradient, wanted, recompute }
            });
            let result = state.workspace.run(&Team::solo(), weights, batch, learning);
            let mut turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            if objective.is_some() {
                while turn.next != index {
                    turn = added.wait(turn).unwrap_or_else(PoisonError::into_inner);
                }
                math::add_assign(turn.gradient, &state.gradient);
                turn.next += 1;
                added.notify_all();
            }
            turn.results[index] = result;
        };
        self.team.each(&mut self.threads, batches.iter().enumerate().collect(), work);
        turn.into_inner().unwrap_or_else(PoisonError::into_inner).results
    }

    /// An adapter's gradient follows from those of the matrices it changes.
    fn wanted(&self) -> Wanted {
        self.lora.as_ref().map_or(Wanted::ALL, Lora::wanted)
    }

    fn clear_gradient(&mut self) {
        self.gradient.fill(0.0);
        self.gradient_is_clear = true;
    }

    fn set_weights(&mut self, weights: Arc<Weights>) {
        self.weights = weights;
        self.backward_is_stale = true;
    }
}

impl Trainer for EmbeddedTrainer {
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        objective: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        self.check_samples(samples)?;
        let mut total = ForwardBackward::default();
        for result in self.run(samples, Some(objective)) {
            total.logprobs.extend(result.logprobs);
            total.loss += result.loss;
            total.num_loss_tokens += result.num_loss_tokens;
            total.num_clipped += result.num_clipped;
        }
        if !total.loss.is_finite() || total.logprobs.iter().flatten().any(|x| x.is_nan()) {
            // Nothing useful can be added to it any more.
            self.clear_gradient();
            return Err(TrainerError::Diverged(format!(
                "the loss over {} tokens is {}; the gathered gradient was dropped",
                total.num_loss_tokens, total.loss
            )));
        }
        Ok(total)
    }

    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        self.check_samples(samples)?;
        Ok(self.run(samples, None).into_iter().flat_map(|r| r.logprobs).collect())
    }

    fn optim_step(&mut self, params: &AdamParams) -> Result<OptimStats, TrainerError> {
        check_adam(params)?;
        self.gradient.resize(self.weights.params.len(), 0.0);
        let norm = match &mut self.lora {
            Some(lora) => lora.norm(&self.gradient, &self.team),
            None => optim::norm(&self.gradient, &self.team),
        };
        if !norm.is_finite() {
            self.clear_gradient();
            return Err(TrainerError::Diverged(format!(
                "the gradient's norm is {norm}; it was dropped and the weights are as before"
            )));
        }
        let clip = f64::from(params.grad_clip);
        // PyTorch's `clip_grad_norm_` has the same small term.
        let scale = if clip > 0.0 && norm > clip { (clip / (norm + 1e-6)) as f32 } else { 1.0 };
        if let Some(lora) = &mut self.lora {
            lora.step(scale, params, &self.team);
            self.merge();
            self.clear_gradient();
            return Ok(OptimStats { grad_norm: norm as f32 });
        }
        let weights = Arc::make_mut(&mut self.weights);
        let model = Arc::clone(&weights.model);
        let moments = &mut self.moments;
        let (values, gradient) = (&mut weights.params, &mut self.gradient);
        optim::adamw(&model.layout.tensors, values, gradient, scale, moments, params, &self.team);
        weights.pack(&self.team);
        self.backward_is_stale = true;
        self.gradient_is_clear = true;
        Ok(OptimStats { grad_norm: norm as f32 })
    }

    fn save(&mut self, dir: &Path) -> Result<(), TrainerError> {
        let model = &self.weights.model;
        let checkpoint = CheckpointRef {
            config: &model.config,
            params: &self.weights.params,
            moments: &self.moments,
            version: self.version,
        };
        let mut files = self.attached.clone();
        if let Some(lora) = &self.lora {
            files.extend(lora.state_files()?.map(|(name, bytes)| (name.to_owned(), bytes)));
        }
        checkpoint::save(dir, &model.layout, &checkpoint, &files)
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainerError> {
        let Checkpoint { config, params, moments, version } = checkpoint::load(dir)?;
        if config != *self.config() {
            return Err(TrainerError::Checkpoint {
                path: dir.display().to_string(),
                reason: "has another architecture than the engine that loads it".to_owned(),
            });
        }
        let lora = self.resumed_adapter(dir, &params)?;
        let (model, precision) = (Arc::clone(&self.weights.model), self.weights.precision);
        let weights = Arc::new(Weights::with_precision(model, params, precision));
        self.sampler
            .publish(Arc::clone(&weights), version)
            .map_err(|error| TrainerError::Engine(error.to_string()))?;
        self.set_weights(weights);
        self.lora = lora;
        (self.moments, self.version) = (moments, version);
        self.clear_gradient();
        Ok(())
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        let version = PolicyVersion(self.version.0 + 1);
        self.sampler
            .publish(Arc::clone(&self.weights), version)
            .map_err(|error| TrainerError::Engine(error.to_string()))?;
        self.version = version;
        Ok(version)
    }

    fn reset_optimizer(&mut self) {
        self.moments = Moments::default();
        if let Some(lora) = &mut self.lora {
            lora.reset_optimizer();
        }
        self.clear_gradient();
    }

    fn policy_version(&self) -> PolicyVersion {
        self.version
    }
}
