//! The trainer: what is pending here, what the server has, and how to get back after a loss.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use patchwright_core::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, Trainer, TrainerError,
    TrainingSample,
};
use patchwright_wire::LossFn;

use super::batch::{self, Pending};
use super::checkpoint::{Checkpoint, Fingerprint};
use super::client::TinkerClient;
use super::error::TinkerError;
use super::heartbeat::Session;
use super::model::{Chunking, Model};
use super::options::TinkerOptions;
use super::probe::{self, Findings, Reduction};
use super::sampler::{Served, TinkerSampler};

/// The sequence whose log-probabilities know saved weights again.
const FINGERPRINT: [u32; 8] = [4, 12, 8, 6, 14, 3, 10, 7];

/// Trains a model at a server of the Tinker API. Made by [`open`].
#[derive(Debug)]
pub struct TinkerTrainer {
    client: Arc<TinkerClient>,
    options: TinkerOptions,
    chunking: Chunking,
    findings: Findings,
    session: Session,
    model: Model,
    /// Models that are not needed any more. They are only unloaded when the server has no room for
    /// another: unloading makes some (`SkyRL` 0.4 on several processes) mix models up, and all are
    /// forgotten with the session.
    old_models: Vec<Model>,
    /// Models and sampling sessions of the session so far.
    num_models: u32,
    num_sampling_sessions: u32,
    num_saves: u64,
    sampler: Arc<TinkerSampler>,
    version: PolicyVersion,
    pending: Vec<Pending>,
    /// Weights and optimizer state that the model can be made of again, unless it is new.
    saved: Option<String>,
    /// Whether the weights are others than `saved`, or a new model's.
    changed: bool,
    /// Whether nobody knows what the model is, since a step failed halfway.
    unsure: bool,
    /// Whether the optimizer's state is to be forgotten before the next step.
    forget: bool,
}

/// Opens a model at a server, to train and to sample from; its policy version is 0.
///
/// # Errors
/// [`TinkerError`]: the server is not there, does not have the base model, or makes of losses what
/// cannot be accounted for.
pub fn open(options: TinkerOptions) -> Result<(TinkerTrainer, Arc<TinkerSampler>), TinkerError> {
    let client = Arc::new(TinkerClient::new(&options)?);
    let max_context = check_options(&client, &options)?;
    let config = client.client_config()?;
    let bound = |own: usize, told: Option<u64>| {
        told.and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0).map_or(own, |n| n.min(own))
    };
    let chunking = Chunking {
        max_datums: bound(options.max_chunk_datums, config.fwdbwd_max_chunk_len).max(1),
        max_bytes: bound(options.max_chunk_bytes, config.fwdbwd_max_chunk_bytes_count),
        packed: config.proto_compress_fwdbwd,
    };
    let session = Session::begin(&client, options.heartbeat)?;
    let (mut num_models, mut old_models) = (0, Vec::new());
    let findings = match (options.reduction, options.clips_gradients) {
        (Some(reduction), Some(clips_gradients)) => Findings { reduction, clips_gradients },
        (reduction, clips) => {
            let mut scratch = Model::create(&client, session.id(), num_models, &options)?;
            num_models += 1;
            let found = probe::run(&client, &mut scratch, &chunking)?;
            old_models.push(scratch);
            Findings {
                reduction: reduction.unwrap_or(found.reduction),
                clips_gradients: clips.unwrap_or(found.clips_gradients),
            }
        }
    };
    let mut model = create_with_room(&client, session.id(), num_models, &options, &mut old_models)?;
    let published = model.publish(&client, session.id(), 0)?;
    let served = Served {
        version: PolicyVersion(0),
        sampling_session_id: published.sampling_session_id,
        next_seq: AtomicU64::new(0),
    };
    let sampler = Arc::new(TinkerSampler::new(Arc::clone(&client), served, max_context));
    let trainer = TinkerTrainer {
        client,
        options,
        chunking,
        findings,
        session,
        model,
        old_models,
        num_models: num_models + 1,
        num_sampling_sessions: 1,
        num_saves: 0,
        sampler: Arc::clone(&sampler),
        version: PolicyVersion(0),
        pending: Vec::new(),
        saved: None,
        changed: false,
        unsure: false,
        forget: false,
    };
    Ok((trainer, sampler))
}

/// Refuses on our side what a server may choke on: some stop answering after a `create_model` that
/// they cannot carry out. Returns the model's context.
fn check_options(client: &TinkerClient, options: &TinkerOptions) -> Result<usize, TinkerError> {
    if options.lora_rank > 1 << 14 {
        return Err(TinkerError::Setting(format!(
            "a rank of {} is above 16384: lower tinker.lora_rank",
            options.lora_rank
        )));
    }
    let models = client.capabilities()?.supported_models;
    let found = models
        .iter()
        .find(|model| model.model_name.as_deref().is_some_and(|n| n == options.base_model));
    let Some(model) = found else {
        let names: Vec<_> = models.iter().filter_map(|m| m.model_name.as_deref()).collect();
        return Err(TinkerError::Setting(format!(
            "{} has no base model {:?}: set tinker.base_model to one of {}",
            client.url(),
            options.base_model,
            names.join(", ")
        )));
    };
    let told = model.max_context_length.and_then(|n| usize::try_from(n).ok());
    match (options.max_context, told) {
        (Some(own), Some(told)) => Ok(own.min(told)),
        (Some(length), None) | (None, Some(length)) => Ok(length),
        (None, None) => Err(TinkerError::Setting(format!(
            "{} does not tell how many tokens {:?} holds: name a directory with the model's \
             config.json in engine.checkpoint",
            client.url(),
            options.base_model
        ))),
    }
}

/// Creates a model; when the server refuses, once more without those that are not needed.
fn create_with_room(
    client: &TinkerClient,
    session_id: &str,
    model_seq_id: u32,
    options: &TinkerOptions,
    old_models: &mut Vec<Model>,
) -> Result<Model, TinkerError> {
    match Model::create(client, session_id, model_seq_id, options) {
        Err(TinkerError::Failed { .. }) if !old_models.is_empty() => {
            for old in old_models.drain(..) {
                old.unload(client)?;
            }
            Model::create(client, session_id, model_seq_id, options)
        }
        made => made,
    }
}

impl TinkerTrainer {
    /// How the server adds losses up.
    pub fn reduction(&self) -> Reduction {
        self.findings.reduction
    }

    /// Whether the server clips gradients; where it does not, a step with `grad_clip` above 0 is
    /// refused.
    pub fn clips_gradients(&self) -> bool {
        self.findings.clips_gradients
    }

    /// [`Trainer::forward_backward`] with the cross-entropy of the server itself, each token
    /// weighted by its `loss_mask`: one pass where any other objective needs two. The gradient
    /// waits at the server for [`Trainer::optim_step`]; if the server is lost in between, so is it,
    /// and that is an error.
    ///
    /// # Errors
    /// [`TrainerError`]; [`TrainerError::BadInput`] for samples out of shape, and where losses are
    /// not summed.
    pub fn cross_entropy(
        &mut self,
        samples: &[TrainingSample],
    ) -> Result<ForwardBackward, TrainerError> {
        batch::check(samples)?;
        if self.findings.reduction != Reduction::Sum {
            let reason = format!("{} does not sum losses up", self.client.url());
            return Err(TrainerError::BadInput(reason));
        }
        let long = || samples.iter().filter(|sample| sample.tokens.len() > 1);
        let data: Vec<_> = long().map(batch::cross_entropy_datum).collect();
        let lengths: Vec<usize> = long().map(|sample| sample.tokens.len() - 1).collect();
        let mut told = Vec::new();
        if !data.is_empty() {
            let output = self.surviving(|trainer| {
                trainer.settle_optimizer()?;
                let loss = LossFn::CrossEntropy;
                trainer.model.run(&trainer.client, &trainer.chunking, data.clone(), loss, false)
            })?;
            self.changed = true;
            told = batch::logprobs("forward_backward", output, &lengths)?;
        }
        Ok(batch::cross_entropy(samples, told))
    }

    /// Does `operation`; when the server has lost session or model, gets them back and does it once
    /// more.
    fn surviving<T>(
        &mut self,
        operation: impl Fn(&mut Self) -> Result<T, TinkerError>,
    ) -> Result<T, TrainerError> {
        if self.unsure || self.session.is_lost() {
            self.restart()?;
        }
        match operation(self) {
            Err(error) if error.is_lost() => {
                self.restart()?;
                Ok(operation(self)?)
            }
            done => Ok(done?),
        }
    }

    /// A new session with the model as it was saved last, or anew if it never was, unless it has
    /// changed since. The adapter's seed makes a new model what it was.
    fn restart(&mut self) -> Result<(), TrainerError> {
        if self.changed {
            return Err(TrainerError::Engine(format!(
                "the model at {} was lost after steps that no checkpoint has; resume the run from \
                 its last checkpoint (--resume)",
                self.client.url()
            )));
        }
        self.session = Session::begin(&self.client, self.options.heartbeat)?;
        self.num_models = 0;
        self.num_sampling_sessions = 0;
        self.old_models.clear();
        self.model = self.new_model()?;
        if let Some(path) = self.saved.clone() {
            self.model.load(&self.client, &path, true)?;
        }
        self.unsure = false;
        self.serve()?;
        Ok(())
    }

    fn new_model(&mut self) -> Result<Model, TinkerError> {
        let session = self.session.id();
        let num_models = self.num_models;
        self.num_models += 1;
        let old = &mut self.old_models;
        create_with_room(&self.client, session, num_models, &self.options, old)
    }

    /// Replaces the model by a new one with saved weights: a model may load only before anything
    /// else.
    fn reload(&mut self, path: &str, optimizer: bool) -> Result<(), TinkerError> {
        let mut model = match self.new_model() {
            // The weights are saved, so the model itself may make room.
            Err(TinkerError::Failed { .. }) => {
                self.model.unload(&self.client)?;
                self.new_model()?
            }
            made => made?,
        };
        model.load(&self.client, path, optimizer)?;
        self.old_models.push(std::mem::replace(&mut self.model, model));
        self.pending.clear();
        Ok(())
    }

    /// Lets the sampler serve the model's weights as the version of now.
    fn serve(&mut self) -> Result<(), TinkerError> {
        let mut publish = || {
            self.num_sampling_sessions += 1;
            let seq = self.num_sampling_sessions - 1;
            self.model.publish(&self.client, self.session.id(), seq)
        };
        let published = match publish() {
            // Sent twice, and the server did not know it by its number: the name is taken.
            Err(TinkerError::Failed { reason, .. }) if reason.contains("409") => publish()?,
            published => published?,
        };
        self.sampler.serve(Served {
            version: self.version,
            sampling_session_id: published.sampling_session_id,
            next_seq: AtomicU64::new(0),
        });
        Ok(())
    }

    /// Log-probabilities of sequences, `[sequence][n]`; index 0 is 0.
    fn logprobs(&mut self, sequences: &[&[u32]]) -> Result<Vec<Vec<f32>>, TinkerError> {
        // A sequence of one token has nothing to predict.
        let asked: Vec<&&[u32]> = sequences.iter().filter(|tokens| tokens.len() > 1).collect();
        let mut told = Vec::new();
        if !asked.is_empty() {
            let data = asked.iter().map(|tokens| batch::forward_datum(tokens)).collect();
            let lengths: Vec<usize> = asked.iter().map(|tokens| tokens.len() - 1).collect();
            let loss_fn = LossFn::CrossEntropy;
            let output = self.model.run(&self.client, &self.chunking, data, loss_fn, true)?;
            told = batch::logprobs("forward", output, &lengths)?;
        }
        let mut told = told.into_iter();
        Ok(sequences
            .iter()
            .map(|tokens| {
                let rest = if tokens.len() > 1 { told.next() } else { None };
                std::iter::once(0.0).chain(rest.into_iter().flatten()).collect()
            })
            .collect())
    }

    fn fingerprint(&mut self) -> Result<Vec<f32>, TinkerError> {
        let mut logprobs = self.logprobs(&[&FINGERPRINT])?.swap_remove(0);
        logprobs.remove(0);
        Ok(logprobs)
    }

    /// Saves under a name of its own and remembers it.
    fn save_state(&mut self) -> Result<String, TinkerError> {
        self.num_saves += 1;
        let name = format!("v{}-{}", self.version, self.num_saves);
        let path = self.model.save(&self.client, &name)?;
        self.saved = Some(path.clone());
        self.changed = false;
        Ok(path)
    }

    /// Forgets the optimizer's state if that is due: the weights go through a checkpoint into a
    /// model whose optimizer is new.
    fn settle_optimizer(&mut self) -> Result<(), TinkerError> {
        if !self.forget {
            return Ok(());
        }
        let path = self.save_state()?;
        let pending = std::mem::take(&mut self.pending);
        self.reload(&path, false)?;
        self.pending = pending;
        self.serve()?;
        // What `saved` names has the old optimizer's state.
        self.save_state()?;
        self.forget = false;
        Ok(())
    }

    /// Sends what is pending and steps. Nothing is known of the model if this fails halfway.
    fn step(&mut self, params: &AdamParams) -> Result<f32, TinkerError> {
        self.settle_optimizer()?;
        let (loss_fn, data) = batch::gradient_data(&self.pending, self.findings.reduction);
        self.unsure = true;
        if !data.is_empty() {
            self.model.run(&self.client, &self.chunking, data, loss_fn, false)?;
        }
        let grad_norm = self.model.optim_step(&self.client, params)?;
        self.unsure = false;
        self.changed = true;
        self.pending.clear();
        Ok(grad_norm)
    }
}

impl Trainer for TinkerTrainer {
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        objective: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        batch::check(samples)?;
        let logprobs = self.forward(samples)?;
        let (result, pending) = batch::evaluate(samples, logprobs, objective)?;
        self.pending.extend(pending);
        Ok(result)
    }

    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        batch::check(samples)?;
        let sequences: Vec<&[u32]> = samples.iter().map(|s| s.tokens.as_slice()).collect();
        self.surviving(|trainer| trainer.logprobs(&sequences))
    }

    fn optim_step(&mut self, params: &AdamParams) -> Result<OptimStats, TrainerError> {
        if params.grad_clip > 0.0 && !self.findings.clips_gradients {
            return Err(TrainerError::BadInput(format!(
                "{} does not clip gradients, and grad_clip is {}: set grad_clip to 0 (and the clip \
                 at the server, where it has one)",
                self.client.url(),
                params.grad_clip
            )));
        }
        let grad_norm = self.surviving(|trainer| trainer.step(params))?;
        if grad_norm.is_infinite() {
            self.unsure = true;
            return Err(TrainerError::Diverged(format!("the gradient's norm is {grad_norm}")));
        }
        Ok(OptimStats { grad_norm })
    }

    fn save(&mut self, dir: &Path) -> Result<(), TrainerError> {
        let (path, logprobs) = self.surviving(|trainer| {
            trainer.settle_optimizer()?;
            let logprobs = trainer.fingerprint()?;
            Ok((trainer.save_state()?, logprobs))
        })?;
        Checkpoint {
            schema_version: 1,
            url: self.client.url().to_owned(),
            path,
            base_model: self.options.base_model.clone(),
            lora_rank: self.options.lora_rank,
            policy_version: self.version,
            fingerprint: Fingerprint { tokens: FINGERPRINT.to_vec(), logprobs },
        }
        .write(dir)
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainerError> {
        let checkpoint = Checkpoint::read(dir)?;
        let fail =
            |reason: String| TrainerError::Checkpoint { path: dir.display().to_string(), reason };
        let theirs = (checkpoint.base_model.as_str(), checkpoint.lora_rank);
        let ours = (self.options.base_model.as_str(), self.options.lora_rank);
        if theirs != ours {
            return Err(fail(format!(
                "it is of {} with rank {}; the recipe says {} with rank {}",
                theirs.0, theirs.1, ours.0, ours.1
            )));
        }
        if self.session.is_lost() {
            self.session = Session::begin(&self.client, self.options.heartbeat)?;
            (self.num_models, self.num_sampling_sessions) = (0, 0);
        }
        let (server, path) = (&checkpoint.url, &checkpoint.path);
        self.reload(path, true).map_err(|error| match error {
            TinkerError::Lost { reason, .. } | TinkerError::Failed { reason, .. } => fail(format!(
                "{path} (saved at {server}) cannot be loaded at {}: it may have expired, or the \
                 server keeps other checkpoints; start from an older checkpoint or anew: {reason}",
                self.client.url()
            )),
            other => other.into(),
        })?;
        let logprobs = self.fingerprint()?;
        checkpoint.fingerprint.check(&logprobs).map_err(fail)?;
        self.version = checkpoint.policy_version;
        self.saved = Some(checkpoint.path);
        (self.changed, self.unsure, self.forget) = (false, false, false);
        self.serve()?;
        Ok(())
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        self.version.0 += 1;
        match self.surviving(Self::serve) {
            Ok(()) => Ok(self.version),
            Err(error) => {
                self.version.0 -= 1;
                Err(error)
            }
        }
    }

    fn reset_optimizer(&mut self) {
        // A model that never stepped has nothing to forget.
        self.forget = self.changed || self.saved.is_some();
    }

    fn policy_version(&self) -> PolicyVersion {
        self.version
    }
}
