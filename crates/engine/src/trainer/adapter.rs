//! The trainer's face to low-rank adapters.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use patchwright_core::TrainerError;

use super::EmbeddedTrainer;
use crate::checkpoint::{new_directory, write_file};
use crate::lora::{Lora, LoraConfig};
use crate::optim::Moments;

impl EmbeddedTrainer {
    /// From now on trains a new low-rank adapter alone; the weights stay as they are. `A` is drawn
    /// from `seed`, `B` is 0. The gradient gathered so far and the optimizer's state are dropped.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] when the configuration makes no sense, or an adapter is there.
    pub fn add_adapter(&mut self, config: LoraConfig, seed: u64) -> Result<(), TrainerError> {
        self.without_adapter()?;
        let base = self.weights.params.clone();
        let lora = Lora::new(config, &self.weights.model.layout, base, seed);
        self.begin_adapter(
            lora.map_err(|reason| TrainerError::BadInput(format!("adapter: {reason}")))?,
        );
        Ok(())
    }

    /// As [`EmbeddedTrainer::add_adapter`], with an adapter of a PEFT directory; one that
    /// [`EmbeddedTrainer::save_adapter`] wrote brings its optimizer's state along.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and what is wrong with it;
    /// [`TrainerError::BadInput`] when an adapter is there.
    pub fn load_adapter(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.without_adapter()?;
        let base = self.weights.params.clone();
        let lora = Lora::read(dir, &self.weights.model.layout, base)?;
        self.begin_adapter(lora);
        Ok(())
    }

    /// Writes the adapter to the new directory `dir`: `adapter_config.json` and
    /// `adapter_model.safetensors`, as PEFT reads them, and beside them its state in training.
    /// [`Trainer::save`](patchwright_core::Trainer::save) keeps that state beside the merged
    /// weights; to load it, the same adapter must be in training over the same base.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] without an adapter, [`TrainerError::Checkpoint`] when it cannot be
    /// written.
    pub fn save_adapter(&self, dir: &Path) -> Result<(), TrainerError> {
        let adapter = self.adapter()?;
        let files = adapter.files()?.into_iter().chain(adapter.state_files()?);
        new_directory(dir, |dir| {
            files.map(|(name, bytes)| write_file(&dir.join(name), &bytes)).try_for_each(|sum| {
                sum?;
                Ok(())
            })
        })
    }

    /// Makes the merged weights the model's own and goes on training all of them, with a new
    /// optimizer state.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] without an adapter.
    pub fn merge_adapter(&mut self) -> Result<(), TrainerError> {
        self.adapter()?;
        self.lora = None;
        self.clear_gradient();
        Ok(())
    }

    /// The adapter's tensors by their PEFT names, row-major: `lora_A` `[rank][columns]`, `lora_B`
    /// `[rows][rank]`.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] without an adapter.
    pub fn adapter_parameters(&self) -> Result<BTreeMap<String, Vec<f32>>, TrainerError> {
        Ok(self.adapter()?.parameters())
    }

    /// The gathered gradient of the adapter's tensors by their PEFT names, row-major.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] without an adapter.
    pub fn adapter_gradients(&mut self) -> Result<BTreeMap<String, Vec<f32>>, TrainerError> {
        self.gradient.resize(self.weights.params.len(), 0.0);
        match &mut self.lora {
            Some(lora) => Ok(lora.gradients(&self.gradient, &self.team)),
            None => Err(no_adapter()),
        }
    }

    /// Overwrites one of the adapter's tensors, row-major.
    ///
    /// # Errors
    /// [`TrainerError::BadInput`] without an adapter, or for an unknown name, another size, or
    /// values that are not finite.
    pub fn set_adapter_parameter(
        &mut self,
        name: &str,
        values: &[f32],
    ) -> Result<(), TrainerError> {
        let lora = self.lora.as_mut().ok_or_else(no_adapter)?;
        lora.set(name, values).map_err(TrainerError::BadInput)?;
        self.merge();
        Ok(())
    }

    /// The adapter in training as the checkpoint in `dir`, of merged weights `params`, has it;
    /// `None` when there is none here or none there.
    pub(super) fn resumed_adapter(
        &self,
        dir: &Path,
        params: &[f32],
    ) -> Result<Option<Lora>, TrainerError> {
        let Some(lora) = self.lora.as_ref().map(|lora| lora.resumed(dir)).transpose()?.flatten()
        else {
            return Ok(None);
        };
        let mut merged = params.to_vec();
        lora.merge(&mut merged, &self.team);
        if merged.iter().zip(params).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(TrainerError::Checkpoint {
                path: dir.display().to_string(),
                reason: "its adapter was trained over another base than the engine's".to_owned(),
            });
        }
        Ok(Some(lora))
    }

    fn adapter(&self) -> Result<&Lora, TrainerError> {
        self.lora.as_ref().ok_or_else(no_adapter)
    }

    fn without_adapter(&self) -> Result<(), TrainerError> {
        match &self.lora {
            None => Ok(()),
            Some(_) => Err(TrainerError::BadInput(
                "an adapter is in training already: merge it before another is added".to_owned(),
            )),
        }
    }

    fn begin_adapter(&mut self, lora: Lora) {
        self.lora = Some(lora);
        self.moments = Moments::default();
        self.clear_gradient();
        self.merge();
    }

    /// Computes the weights anew from the adapter.
    pub(super) fn merge(&mut self) {
        let Some(lora) = &self.lora else { return };
        let weights = Arc::make_mut(&mut self.weights);
        lora.merge(&mut weights.params, &self.team);
        weights.pack(&self.team);
        self.backward_is_stale = true;
    }
}

fn no_adapter() -> TrainerError {
    TrainerError::BadInput("there is no adapter: add or load one first".to_owned())
}
