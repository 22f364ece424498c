//! An adapter in files: PEFT's two, and its state in training.

use std::path::Path;

use patchwright_core::TrainerError;
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::{Lora, LoraConfig};
use crate::checkpoint::{WeightDtype, fail, read_bounded};
use crate::optim::Moments;
use crate::params::{ParamLayout, TensorSpec};

const CONFIG: &str = "adapter_config.json";
const MODEL: &str = "adapter_model.safetensors";
const STATE: &str = "adapter_state.json";
/// The adapter and, behind these prefixes, its moments.
const STATE_TENSORS: &str = "adapter_state.safetensors";
const FIRST: &str = "exp_avg.";
const SECOND: &str = "exp_avg_sq.";
const SCHEMA_VERSION: u32 = 1;
/// Bytes of a JSON file at most.
const MAX_JSON: u64 = 1 << 20;

/// `adapter_state.json`: what PEFT has no place for.
#[derive(Serialize, Deserialize)]
struct AdapterState {
    schema_version: u32,
    optimizer_step: u64,
    config: LoraConfig,
}

/// A file by its name.
pub(crate) type NamedFile = (&'static str, Vec<u8>);

impl Lora {
    /// The files of a PEFT directory.
    ///
    /// # Errors
    /// [`TrainerError::Engine`] when they cannot be made.
    pub(crate) fn files(&self) -> Result<[NamedFile; 2], TrainerError> {
        let model = serialize(&self.tensors, &[("", &self.params)])?;
        Ok([(CONFIG, self.config.to_json().into_bytes()), (MODEL, model)])
    }

    /// Files that training goes on from with the same bits: the adapter, its moments, its steps.
    ///
    /// # Errors
    /// [`TrainerError::Engine`] when they cannot be made.
    pub(crate) fn state_files(&self) -> Result<[NamedFile; 2], TrainerError> {
        let state = AdapterState {
            schema_version: SCHEMA_VERSION,
            optimizer_step: self.moments.step,
            config: self.config.clone(),
        };
        let state = serde_json::to_vec_pretty(&state)
            .map_err(|error| TrainerError::Engine(format!("cannot write the adapter: {error}")))?;
        let Moments { first, second, .. } = &self.moments;
        let mut buffers = vec![("", &self.params[..])];
        if !first.is_empty() {
            buffers.extend([(FIRST, &first[..]), (SECOND, &second[..])]);
        }
        Ok([(STATE, state), (STATE_TENSORS, serialize(&self.tensors, &buffers)?)])
    }

    /// Reads a PEFT directory over `base`; with the moments, where its state is beside it.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and what is wrong with it.
    pub(crate) fn read(
        dir: &Path,
        layout: &ParamLayout,
        base: Vec<f32>,
    ) -> Result<Self, TrainerError> {
        let path = dir.join(CONFIG);
        let text = read_bounded(&path, MAX_JSON)?;
        let config = LoraConfig::parse(&String::from_utf8_lossy(&text))
            .map_err(|reason| fail(&path, reason))?;
        let mut lora = Self::new(config, layout, base, 0).map_err(|reason| fail(&path, reason))?;
        lora.params = read_tensors(&dir.join(MODEL), &lora.tensors, &[""])?.concat();
        if dir.join(STATE).exists() {
            lora.moments = lora.read_state(dir)?.1;
        }
        Ok(lora)
    }

    /// The adapter that was saved in `dir` while it was in training over the same base; `None` when
    /// none was.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and what is wrong with it.
    pub(crate) fn resumed(&self, dir: &Path) -> Result<Option<Self>, TrainerError> {
        if !dir.join(STATE).exists() {
            return Ok(None);
        }
        let (params, moments) = self.read_state(dir)?;
        Ok(Some(Self {
            config: self.config.clone(),
            targets: self.targets.clone(),
            tensors: self.tensors.clone(),
            base: self.base.clone(),
            gradient: vec![0.0; params.len()],
            params,
            moments,
        }))
    }

    /// Adapter and moments of [`Lora::state_files`].
    fn read_state(&self, dir: &Path) -> Result<(Vec<f32>, Moments), TrainerError> {
        let path = dir.join(STATE);
        let state: AdapterState = serde_json::from_slice(&read_bounded(&path, MAX_JSON)?)
            .map_err(|error| fail(&path, format!("cannot be parsed: {error}")))?;
        if state.schema_version != SCHEMA_VERSION {
            let found = state.schema_version;
            let reason = format!("schema version {found}, this program reads {SCHEMA_VERSION}");
            return Err(fail(&path, reason));
        }
        if state.config != self.config {
            let reason =
                format!("is of another adapter, {:?}, than {:?}", state.config, self.config);
            return Err(fail(&path, reason));
        }
        let path = dir.join(STATE_TENSORS);
        let prefixes: &[&str] =
            if state.optimizer_step == 0 { &[""] } else { &["", FIRST, SECOND] };
        let mut buffers = read_tensors(&path, &self.tensors, prefixes)?.into_iter();
        let mut next = || buffers.next().unwrap_or_default();
        let params = next();
        Ok((params, Moments { first: next(), second: next(), step: state.optimizer_step }))
    }
}

/// A safetensors file of the tensors of each flat buffer, named behind its prefix.
fn serialize(tensors: &[TensorSpec], buffers: &[(&str, &[f32])]) -> Result<Vec<u8>, TrainerError> {
    let engine = |error: safetensors::SafeTensorError| {
        TrainerError::Engine(format!("cannot write the adapter: {error}"))
    };
    let places = || buffers.iter().flat_map(|buffer| tensors.iter().map(move |t| (buffer, t)));
    let bytes = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let data: Vec<Vec<u8>> =
        places().map(|((_, values), tensor)| bytes(&values[tensor.range.clone()])).collect();
    let mut views = Vec::new();
    for (((prefix, _), tensor), data) in places().zip(&data) {
        let (dtype, shape) = (safetensors::Dtype::F32, tensor.shape.clone());
        let view = safetensors::tensor::TensorView::new(dtype, shape, data).map_err(engine)?;
        views.push((format!("{prefix}{}", tensor.name), view));
    }
    safetensors::serialize(views, None).map_err(engine)
}

/// A flat buffer for each prefix of a file that has these tensors and no others.
fn read_tensors(
    path: &Path,
    tensors: &[TensorSpec],
    prefixes: &[&str],
) -> Result<Vec<Vec<f32>>, TrainerError> {
    let bytes =
        std::fs::read(path).map_err(|error| fail(path, format!("cannot be read: {error}")))?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|error| fail(path, format!("not a safetensors file: {error}")))?;
    let known = |name: &str| {
        let parts = prefixes.iter().filter_map(|prefix| name.strip_prefix(prefix));
        parts.into_iter().any(|name| tensors.iter().any(|t| t.name == name))
    };
    if let Some(name) = file.names().into_iter().find(|name| !known(name)) {
        return Err(fail(path, format!("tensor {name} is not of this adapter")));
    }
    let total = tensors.last().map_or(0, |tensor| tensor.range.end);
    let read = |prefix: &&str| {
        let mut flat = vec![0.0; total];
        for tensor in tensors {
            let name = format!("{prefix}{}", tensor.name);
            read_tensor(&file, path, &name, &tensor.shape, &mut flat[tensor.range.clone()])?;
        }
        Ok(flat)
    };
    prefixes.iter().map(read).collect()
}

fn read_tensor(
    file: &SafeTensors,
    path: &Path,
    name: &str,
    shape: &[usize],
    to: &mut [f32],
) -> Result<(), TrainerError> {
    let bad = |reason: String| fail(path, format!("tensor {name} {reason}"));
    let view = file.tensor(name).map_err(|error| bad(format!("is missing: {error}")))?;
    if view.shape() != shape {
        return Err(bad(format!("has shape {:?}, expected {shape:?}", view.shape())));
    }
    let dtype = WeightDtype::from_safetensors(view.dtype())
        .ok_or_else(|| bad(format!("is {:?}, expected F32, F16 or BF16", view.dtype())))?;
    dtype.decode(view.data(), to);
    if to.iter().any(|x| !x.is_finite()) {
        return Err(bad("has numbers that are not finite".to_owned()));
    }
    Ok(())
}
