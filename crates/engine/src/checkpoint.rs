//! Checkpoints in the Hugging Face layout, written whole or not at all.
//!
//! `config.json` and `model.safetensors` are what `transformers` reads. Beside them lie
//! `optimizer.safetensors` (the moments, named `exp_avg.<tensor>` and `exp_avg_sq.<tensor>`),
//! `trainer_state.json`, files that the caller attached (a tokenizer), and `manifest.json` with the
//! SHA-256 of each of the others. A directory is filled under another name, synced, then renamed.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use patchwright_core::{PolicyVersion, TrainerError};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::config::ModelConfig;
use crate::optim::Moments;
use crate::params::{ParamLayout, TensorSpec};

const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const MANIFEST: &str = "manifest.json";
const SCHEMA_VERSION: u32 = 1;

/// What a checkpoint holds.
#[derive(Debug)]
pub(crate) struct Checkpoint {
    pub config: ModelConfig,
    pub params: Vec<f32>,
    /// Empty moments when there are none in the directory.
    pub moments: Moments,
    pub version: PolicyVersion,
}

#[derive(Serialize, Deserialize)]
struct TrainerState {
    schema_version: u32,
    optimizer_step: u64,
    policy_version: PolicyVersion,
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    schema_version: u32,
    /// File name to SHA-256, in hex.
    sha256: BTreeMap<String, String>,
}

fn fail(path: &Path, reason: impl std::fmt::Display) -> TrainerError {
    TrainerError::Checkpoint { path: path.display().to_string(), reason: reason.to_string() }
}

/// Writes a checkpoint to the new directory `dir`.
pub(crate) fn save(
    dir: &Path,
    layout: &ParamLayout,
    checkpoint: &CheckpointRef,
    attached: &BTreeMap<String, Vec<u8>>,
) -> Result<(), TrainerError> {
    if dir.exists() {
        return Err(fail(dir, "already exists; a checkpoint is written to a new directory"));
    }
    let name = dir
        .file_name()
        .ok_or_else(|| fail(dir, "has no name; give the path of a new directory"))?;
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".partial");
    let partial = parent.join(hidden);
    let written = write_all(&partial, layout, checkpoint, attached).and_then(|()| {
        fs::rename(&partial, dir).map_err(|e| fail(dir, format!("cannot be renamed to: {e}")))?;
        sync_dir(parent)
    });
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

/// Checks that a file of this name can lie beside the engine's own.
pub(crate) fn check_attached_name(name: &str) -> Result<(), String> {
    let plain = Path::new(name).file_name().is_some_and(|n| n == name);
    if !plain || name.contains('\0') {
        return Err(format!("{name:?} is not a plain file name"));
    }
    if [CONFIG, MODEL, OPTIMIZER, STATE, MANIFEST].contains(&name) {
        return Err(format!("{name} is written by the engine itself"));
    }
    Ok(())
}

/// What [`save`] writes.
pub(crate) struct CheckpointRef<'a> {
    pub config: &'a ModelConfig,
    pub params: &'a [f32],
    pub moments: &'a Moments,
    pub version: PolicyVersion,
}

fn write_all(
    dir: &Path,
    layout: &ParamLayout,
    checkpoint: &CheckpointRef,
    attached: &BTreeMap<String, Vec<u8>>,
) -> Result<(), TrainerError> {
    if dir.exists() {
        // Left by an interrupted save.
        fs::remove_dir_all(dir).map_err(|e| fail(dir, format!("cannot be removed: {e}")))?;
    }
    fs::create_dir_all(dir).map_err(|e| fail(dir, format!("cannot be created: {e}")))?;
    let mut sha256 = BTreeMap::new();
    let mut write = |name: &str, bytes: &[u8]| -> Result<(), TrainerError> {
        sha256.insert(name.to_owned(), hex(&Sha256::digest(bytes)));
        write_synced(&dir.join(name), bytes)
    };
    write(CONFIG, checkpoint.config.to_json().as_bytes())?;
    let tensors = layout.tensors.iter().map(|t| (t.name.clone(), t, checkpoint.params));
    write(MODEL, &serialize(dir, MODEL, tensors)?)?;
    let moments = checkpoint.moments;
    if !moments.first.is_empty() {
        let first =
            layout.tensors.iter().map(|t| (format!("exp_avg.{}", t.name), t, &moments.first[..]));
        let second = layout
            .tensors
            .iter()
            .map(|t| (format!("exp_avg_sq.{}", t.name), t, &moments.second[..]));
        write(OPTIMIZER, &serialize(dir, OPTIMIZER, first.chain(second))?)?;
    }
    let state = TrainerState {
        schema_version: SCHEMA_VERSION,
        optimizer_step: moments.step,
        policy_version: checkpoint.version,
    };
    write(STATE, to_json(&state)?.as_bytes())?;
    for (name, bytes) in attached {
        write(name, bytes)?;
    }
    let manifest = Manifest { schema_version: SCHEMA_VERSION, sha256 };
    write_synced(&dir.join(MANIFEST), to_json(&manifest)?.as_bytes())?;
    sync_dir(dir)
}

fn to_json(value: &impl Serialize) -> Result<String, TrainerError> {
    serde_json::to_string_pretty(value)
        .map(|text| text + "\n")
        .map_err(|error| TrainerError::Engine(format!("cannot write JSON: {error}")))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), TrainerError> {
    let write = || -> std::io::Result<()> {
        let mut file = fs::File::create(path)?;
        file.write_all(bytes)?;
        file.sync_all()
    };
    write().map_err(|error| fail(path, format!("cannot be written: {error}")))
}

fn sync_dir(dir: &Path) -> Result<(), TrainerError> {
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|error| fail(dir, format!("cannot be synced: {error}")))
}

fn serialize<'a>(
    dir: &Path,
    name: &str,
    tensors: impl Iterator<Item = (String, &'a TensorSpec, &'a [f32])>,
) -> Result<Vec<u8>, TrainerError> {
    let bytes: Vec<(String, &TensorSpec, Vec<u8>)> = tensors
        .map(|(name, spec, values)| {
            let bytes = values[spec.range.clone()].iter().flat_map(|x| x.to_le_bytes()).collect();
            (name, spec, bytes)
        })
        .collect();
    let views: Result<Vec<_>, _> = bytes
        .iter()
        .map(|(name, spec, bytes)| {
            TensorView::new(Dtype::F32, spec.shape.clone(), bytes).map(|view| (name, view))
        })
        .collect();
    // `transformers` asks for the format.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    views
        .and_then(|views| safetensors::serialize(views, Some(metadata)))
        .map_err(|error| fail(&dir.join(name), format!("cannot be serialized: {error}")))
}

/// Reads a checkpoint, verifying it against its manifest where there is one.
pub(crate) fn load(dir: &Path) -> Result<Checkpoint, TrainerError> {
    if !dir.is_dir() {
        return Err(fail(dir, "is not a directory"));
    }
    let manifest = read_manifest(dir)?;
    let verified = |name: &str| read_verified(dir, name, manifest.as_ref());
    if let Some(manifest) = &manifest {
        // Attached files too: whoever reads them next relies on it.
        for name in manifest
            .sha256
            .keys()
            .filter(|n| ![CONFIG, MODEL, OPTIMIZER, STATE].contains(&n.as_str()))
        {
            verified(name)?;
        }
    }
    verified(CONFIG)?;
    let config = ModelConfig::read(&dir.join(CONFIG))?;
    if dir.join("model.safetensors.index.json").exists() {
        return Err(fail(dir, "the model is split over several files, which is not supported"));
    }
    let layout = ParamLayout::new(&config);
    let mut params = vec![0.0; layout.total];
    let file = TensorFile { path: dir.join(MODEL), bytes: verified(MODEL)? };
    let reader = file.open()?;
    for spec in &layout.tensors {
        file.read(&reader, &spec.name, spec, &mut params)?;
    }
    let ignored = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    let known = |name: &str| layout.tensors.iter().any(|t| t.name == name) || ignored(name);
    if let Some(name) = reader.names().into_iter().filter(|name| !known(name)).min() {
        return Err(fail(&file.path, format!("tensor {name} is not of this architecture")));
    }
    let (mut moments, mut version) = (Moments::default(), PolicyVersion::default());
    let listed = |name: &str| manifest.as_ref().is_some_and(|m| m.sha256.contains_key(name));
    if listed(STATE) || dir.join(STATE).exists() {
        let state: TrainerState = serde_json::from_slice(&verified(STATE)?)
            .map_err(|error| fail(&dir.join(STATE), format!("cannot be parsed: {error}")))?;
        check_schema(&dir.join(STATE), state.schema_version)?;
        version = state.policy_version;
        moments.step = state.optimizer_step;
    }
    if listed(OPTIMIZER) || dir.join(OPTIMIZER).exists() {
        let file = TensorFile { path: dir.join(OPTIMIZER), bytes: verified(OPTIMIZER)? };
        let reader = file.open()?;
        moments.first = vec![0.0; layout.total];
        moments.second = vec![0.0; layout.total];
        for spec in &layout.tensors {
            file.read(&reader, &format!("exp_avg.{}", spec.name), spec, &mut moments.first)?;
            file.read(&reader, &format!("exp_avg_sq.{}", spec.name), spec, &mut moments.second)?;
        }
    } else if moments.step > 0 {
        return Err(fail(&dir.join(OPTIMIZER), "is missing, but the trainer state has steps"));
    }
    Ok(Checkpoint { config, params, moments, version })
}

fn check_schema(path: &Path, found: u32) -> Result<(), TrainerError> {
    if found == SCHEMA_VERSION {
        return Ok(());
    }
    Err(fail(path, format!("schema version {found}, this program reads {SCHEMA_VERSION}")))
}

fn read_manifest(dir: &Path) -> Result<Option<Manifest>, TrainerError> {
    let path = dir.join(MANIFEST);
    if !path.exists() {
        return Ok(None);
    }
    let bytes = fs::read(&path).map_err(|e| fail(&path, format!("cannot be read: {e}")))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|error| fail(&path, format!("cannot be parsed: {error}")))?;
    check_schema(&path, manifest.schema_version)?;
    Ok(Some(manifest))
}

fn read_verified(
    dir: &Path,
    name: &str,
    manifest: Option<&Manifest>,
) -> Result<Vec<u8>, TrainerError> {
    let path = dir.join(name);
    let bytes = fs::read(&path).map_err(|e| fail(&path, format!("cannot be read: {e}")))?;
    if let Some(manifest) = manifest {
        let expected = manifest
            .sha256
            .get(name)
            .ok_or_else(|| fail(&path, format!("is not listed in {MANIFEST}")))?;
        if *expected != hex(&Sha256::digest(&bytes)) {
            return Err(fail(&path, format!("is damaged: its SHA-256 is not that of {MANIFEST}")));
        }
    }
    Ok(bytes)
}

struct TensorFile {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl TensorFile {
    fn open(&self) -> Result<SafeTensors<'_>, TrainerError> {
        SafeTensors::deserialize(&self.bytes)
            .map_err(|error| fail(&self.path, format!("is not a safetensors file: {error}")))
    }

    fn read(
        &self,
        reader: &SafeTensors,
        name: &str,
        spec: &TensorSpec,
        to: &mut [f32],
    ) -> Result<(), TrainerError> {
        let bad = |reason: String| fail(&self.path, format!("tensor {name} {reason}"));
        let view = reader.tensor(name).map_err(|_| bad("is missing".to_owned()))?;
        if view.shape() != spec.shape {
            return Err(bad(format!("has shape {:?}, expected {:?}", view.shape(), spec.shape)));
        }
        let to = &mut to[spec.range.clone()];
        match view.dtype() {
            Dtype::F32 => {
                for (x, bytes) in to.iter_mut().zip(view.data().as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
            Dtype::BF16 => {
                for (x, bytes) in to.iter_mut().zip(view.data().as_chunks::<2>().0) {
                    *x = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
                }
            }
            Dtype::F16 => {
                for (x, bytes) in to.iter_mut().zip(view.data().as_chunks::<2>().0) {
                    *x = half_to_f32(u16::from_le_bytes(*bytes));
                }
            }
            other => return Err(bad(format!("is {other:?}, expected F32, BF16 or F16"))),
        }
        match to.iter().position(|x| !x.is_finite()) {
            Some(index) => Err(bad(format!("is not finite at element {index}"))),
            None => Ok(()),
        }
    }
}

/// IEEE 754 binary16.
fn half_to_f32(half: u16) -> f32 {
    let sign = if half & 0x8000 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(half >> 10 & 0x1f), f32::from(half & 0x3ff));
    match exponent {
        0 => sign * mantissa * 2f32.powi(-24),
        31 if mantissa == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + mantissa / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "exact values are meant")]
mod tests {
    use super::half_to_f32;

    #[test]
    fn halves() {
        let cases = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x0001, 5.960_464_5e-8),
            (0x7bff, 65504.0),
        ];
        for (bits, value) in cases {
            assert_eq!(half_to_f32(bits), value);
        }
        assert!(half_to_f32(0x7c00).is_infinite() && half_to_f32(0x7e00).is_nan());
    }
}
