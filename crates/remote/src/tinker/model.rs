//! One model at the server: its requests in order, each with a sequence number.

use patchwright_core::AdamParams;
use patchwright_wire::json::{self, LoraConfig, ModelCreated, WeightsSaved};
use patchwright_wire::{
    Datum, ForwardBackwardOutput, ForwardBackwardRequest, LossFn, UntypedFuture, paths,
};

use super::client::{TinkerClient, never};
use super::error::TinkerError;
use super::options::TinkerOptions;

/// How bodies of `forward_backward` are cut and packed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunking {
    pub(super) max_datums: usize,
    pub(super) max_bytes: usize,
    pub(super) packed: bool,
}

/// A model that is trained.
#[derive(Debug)]
pub(super) struct Model {
    id: String,
    next_seq: u32,
}

/// Weights that a sampling session serves.
pub(super) struct Published {
    pub(super) sampling_session_id: String,
}

impl Model {
    /// Creates a model of the options' base, the `model_seq_id`-th of its session.
    pub(super) fn create(
        client: &TinkerClient,
        session_id: &str,
        model_seq_id: u32,
        options: &TinkerOptions,
    ) -> Result<Self, TinkerError> {
        let what = "create_model";
        let body = json::CreateModel {
            session_id: session_id.to_owned(),
            model_seq_id,
            base_model: options.base_model.clone(),
            lora_config: Some(LoraConfig {
                rank: options.lora_rank,
                // Servers keep it in 31 bits.
                seed: Some(options.seed & 0x7fff_ffff),
                train_unembed: false,
                train_mlp: true,
                train_attn: true,
            }),
            ..json::CreateModel::default()
        };
        let future = client.start(what, paths::CREATE_MODEL, &body, &never)?;
        let created: ModelCreated = client.wait_json(what, &future)?;
        Ok(Self { id: created.model_id, next_seq: 1 })
    }

    fn seq(&mut self) -> u32 {
        self.next_seq += 1;
        self.next_seq - 1
    }

    /// Runs datums through the model, in as many requests as the chunking asks for, which the
    /// server may take at once. The result has one output a datum.
    pub(super) fn run(
        &mut self,
        client: &TinkerClient,
        chunking: &Chunking,
        data: Vec<Datum>,
        loss_fn: LossFn,
        forward_only: bool,
    ) -> Result<ForwardBackwardOutput, TinkerError> {
        let what = if forward_only { "forward" } else { "forward_backward" };
        let num_datums = data.len();
        let mut futures: Vec<(UntypedFuture, usize)> = Vec::new();
        for chunk in chunks(data, chunking) {
            let len = chunk.len();
            let body = ForwardBackwardRequest {
                model_id: self.id.clone(),
                seq_id: self.seq(),
                data: chunk,
                loss_fn,
                loss_fn_config: std::collections::BTreeMap::new(),
                forward_only,
            }
            .encode()?;
            let future =
                client.start_proto(what, paths::FORWARD_BACKWARD, &body, chunking.packed)?;
            futures.push((future, len));
        }
        let mut all = ForwardBackwardOutput::default();
        for (future, len) in futures {
            let bytes = client.wait_proto(what, &future, &never)?;
            let output = ForwardBackwardOutput::decode(&bytes, client.limits())
                .map_err(|error| TinkerError::contract(what, error.to_string()))?;
            if output.loss_fn_outputs.len() != len {
                let reason = format!("{} outputs for {len} datums", output.loss_fn_outputs.len());
                return Err(TinkerError::contract(what, reason));
            }
            all.loss_fn_outputs.extend(output.loss_fn_outputs);
            all.metrics.extend(output.metrics);
        }
        debug_assert_eq!(all.loss_fn_outputs.len(), num_datums);
        Ok(all)
    }

    /// One optimizer step; the gradient's norm, NaN if the server does not tell it.
    pub(super) fn optim_step(
        &mut self,
        client: &TinkerClient,
        params: &AdamParams,
    ) -> Result<f32, TinkerError> {
        let what = "optim_step";
        let body = json::OptimStep {
            adam_params: json::AdamParams {
                learning_rate: f64::from(params.lr),
                beta1: f64::from(params.beta1),
                beta2: f64::from(params.beta2),
                eps: f64::from(params.eps),
                weight_decay: f64::from(params.weight_decay),
                grad_clip_norm: f64::from(params.grad_clip),
            },
            model_id: self.id.clone(),
            seq_id: Some(self.seq()),
            kind: json::kinds::OptimStep,
        };
        let future = client.start(what, paths::OPTIM_STEP, &body, &never)?;
        let done: json::OptimStepDone = client.wait_json(what, &future)?;
        let norm = done
            .metrics
            .iter()
            .flatten()
            .find(|(name, _)| name.contains("grad_norm"))
            .map_or(f64::NAN, |(_, value)| *value);
        Ok(norm as f32)
    }

    /// Saves weights and optimizer state under a name; the `tinker://` path of them.
    pub(super) fn save(
        &mut self,
        client: &TinkerClient,
        name: &str,
    ) -> Result<String, TinkerError> {
        let what = "save_weights";
        // Not every server knows a save sent twice by its number: the second then finds the name
        // taken, so it gets another.
        let mut last = None;
        for suffix in ["", "-b", "-c"] {
            let body = json::SaveWeights {
                model_id: self.id.clone(),
                path: Some(format!("{name}{suffix}")),
                seq_id: Some(self.seq()),
                ..json::SaveWeights::default()
            };
            let saved = client
                .start(what, paths::SAVE_WEIGHTS, &body, &never)
                .and_then(|future| client.wait_json::<WeightsSaved>(what, &future));
            match saved {
                Ok(saved) => return Ok(saved.path),
                Err(TinkerError::Failed { what, reason }) if reason.contains("409") => {
                    last = Some(TinkerError::Failed { what, reason });
                }
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or_else(|| TinkerError::contract(what, "no free name")))
    }

    /// Takes up what [`Model::save`] saved. Only a model that was asked for nothing yet may.
    pub(super) fn load(
        &mut self,
        client: &TinkerClient,
        path: &str,
        optimizer: bool,
    ) -> Result<(), TinkerError> {
        let what = "load_weights";
        let body = json::LoadWeights {
            model_id: Some(self.id.clone()),
            seq_id: Some(self.seq()),
            path: path.to_owned(),
            optimizer,
            ..json::LoadWeights::default()
        };
        let future = client.start(what, paths::LOAD_WEIGHTS, &body, &never)?;
        client.wait_json::<json::WeightsLoaded>(what, &future).map(|_| ())
    }

    /// Makes the weights of now a sampling session, the `sampling_seq`-th of the session.
    pub(super) fn publish(
        &mut self,
        client: &TinkerClient,
        session_id: &str,
        sampling_seq: u32,
    ) -> Result<Published, TinkerError> {
        let what = "save_weights_for_sampler";
        let body = json::SaveWeightsForSampler {
            model_id: self.id.clone(),
            sampling_session_seq_id: Some(sampling_seq),
            seq_id: Some(self.seq()),
            ..json::SaveWeightsForSampler::default()
        };
        let future = client.start(what, paths::SAVE_WEIGHTS_FOR_SAMPLER, &body, &never)?;
        let saved: json::WeightsSavedForSampler = client.wait_json(what, &future)?;
        if let Some(sampling_session_id) = saved.sampling_session_id {
            return Ok(Published { sampling_session_id });
        }
        let Some(path) = saved.path else {
            return Err(TinkerError::contract(what, "neither a path nor a sampling session"));
        };
        let body = json::CreateSamplingSession {
            session_id: session_id.to_owned(),
            sampling_session_seq_id: sampling_seq,
            model_path: Some(path),
            ..json::CreateSamplingSession::default()
        };
        let made: json::SamplingSessionCreated =
            client.post("create_sampling_session", paths::CREATE_SAMPLING_SESSION, &body)?;
        Ok(Published { sampling_session_id: made.sampling_session_id })
    }

    /// Lets the server forget the model.
    pub(super) fn unload(&self, client: &TinkerClient) -> Result<(), TinkerError> {
        let what = "unload_model";
        let body = json::UnloadModel { model_id: self.id.clone(), kind: json::kinds::UnloadModel };
        let future = client.start(what, paths::UNLOAD_MODEL, &body, &never)?;
        client.wait_json::<serde_json::Value>(what, &future).map(|_| ())
    }
}

/// Cuts datums into runs within the chunking's bounds, in order.
fn chunks(data: Vec<Datum>, chunking: &Chunking) -> Vec<Vec<Datum>> {
    let mut chunks: Vec<Vec<Datum>> = Vec::new();
    let mut bytes = 0;
    for datum in data {
        let size = 4 * datum.tokens.len()
            + datum.loss_fn_inputs.values().map(|t| 8 * t.len() + 32).sum::<usize>();
        match chunks.last_mut() {
            Some(chunk)
                if chunk.len() < chunking.max_datums && bytes + size <= chunking.max_bytes =>
            {
                chunk.push(datum);
                bytes += size;
            }
            _ => {
                chunks.push(vec![datum]);
                bytes = size;
            }
        }
    }
    chunks
}
