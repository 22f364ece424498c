//! Checkpoints in the Hugging Face layout, written whole or not at all.
//!
//! `config.json` and `model.safetensors` (or several files with an index) are what `transformers`
//! reads. Beside them lie `optimizer.safetensors` (the moments, named `exp_avg.<tensor>` and
//! `exp_avg_sq.<tensor>`), `trainer_state.json`, files that the caller attached (a tokenizer), and
//! `manifest.json` with the SHA-256 of each of the others. A directory is filled under another
//! name, synced, then renamed. A GGUF file is read too, as weights without a past.

mod describe;
mod dtype;
mod source;
mod write;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use patchwright_core::{PolicyVersion, TrainerError};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use describe::ModelSummary;
pub use dtype::WeightDtype;
use source::{FlatTensors, TensorFile, read_all};
pub(crate) use source::{ModelFiles, Sink, TensorSource};
pub use write::ExportOptions;
use write::{Named, write_model, write_tensors};
pub(crate) use write::{Progress, new_directory, write_file};

use crate::config::ModelConfig;
use crate::gguf::GgufFile;
use crate::optim::Moments;
use crate::params::ParamLayout;

const CONFIG: &str = "config.json";
const MODEL: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "trainer_state.json";
const MANIFEST: &str = "manifest.json";
const SCHEMA_VERSION: u32 = 1;
/// Before the names of the first moments.
const FIRST: &str = "exp_avg.";
/// Before the names of the second moments.
const SECOND: &str = "exp_avg_sq.";
/// Bytes of `config.json`, `trainer_state.json` and `manifest.json` at most.
const MAX_JSON: u64 = 16 << 20;

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

pub(crate) fn fail(path: &Path, reason: impl std::fmt::Display) -> TrainerError {
    TrainerError::Checkpoint { path: path.display().to_string(), reason: reason.to_string() }
}

/// Writes a checkpoint to the new directory `dir`.
pub(crate) fn save(
    dir: &Path,
    layout: &ParamLayout,
    checkpoint: &CheckpointRef,
    attached: &BTreeMap<String, Vec<u8>>,
) -> Result<(), TrainerError> {
    new_directory(dir, |dir| write_checkpoint(dir, layout, checkpoint, attached))
}

/// Writes a model that `transformers` loads to the new directory `dir`: `config.json`, the
/// weights of `source` and `files`, without a trainer's state.
pub(crate) fn export(
    dir: &Path,
    config: &ModelConfig,
    source: &dyn TensorSource,
    files: &BTreeMap<String, Vec<u8>>,
    options: &ExportOptions,
    progress: Progress,
) -> Result<(), TrainerError> {
    for name in files.keys() {
        check_attached_name(name).map_err(TrainerError::BadInput)?;
    }
    let layout = ParamLayout::new(config);
    new_directory(dir, |dir| {
        write_file(&dir.join(CONFIG), config.to_json_as(options.dtype).as_bytes())?;
        for (name, bytes) in files {
            write_file(&dir.join(name), bytes)?;
        }
        write_model(dir, &named(&layout, ""), source, options, progress).map(|_| ())
    })
}

/// Writes the weights of a flat buffer as [`export`] does.
pub(crate) fn export_params(
    dir: &Path,
    config: &ModelConfig,
    params: &[f32],
    files: &BTreeMap<String, Vec<u8>>,
    options: &ExportOptions,
) -> Result<(), TrainerError> {
    let layout = ParamLayout::new(config);
    let source = FlatTensors { layout: &layout, buffers: &[("", params)] };
    export(dir, config, &source, files, options, &mut |_, _| true)
}

/// Names and shapes of the layout's tensors, behind `prefix`.
fn named(layout: &ParamLayout, prefix: &str) -> Vec<Named> {
    layout.tensors.iter().map(|t| (format!("{prefix}{}", t.name), t.shape.clone())).collect()
}

/// Checks that a file of this name can lie beside the engine's own.
pub(crate) fn check_attached_name(name: &str) -> Result<(), String> {
    if !is_plain(name) {
        return Err(format!("{name:?} is not a plain file name"));
    }
    let weights = name.starts_with("model") && name.contains(".safetensors");
    if weights || [CONFIG, OPTIMIZER, STATE, MANIFEST].contains(&name) {
        return Err(format!("{name} is written by the engine itself"));
    }
    Ok(())
}

fn is_plain(name: &str) -> bool {
    Path::new(name).file_name().is_some_and(|n| n == name) && !name.contains('\0')
}

/// What [`save`] writes.
pub(crate) struct CheckpointRef<'a> {
    pub config: &'a ModelConfig,
    pub params: &'a [f32],
    pub moments: &'a Moments,
    pub version: PolicyVersion,
}

fn write_checkpoint(
    dir: &Path,
    layout: &ParamLayout,
    checkpoint: &CheckpointRef,
    attached: &BTreeMap<String, Vec<u8>>,
) -> Result<(), TrainerError> {
    let config = checkpoint.config.to_json();
    let mut sha256 = BTreeMap::new();
    sha256.insert(CONFIG.to_owned(), write_file(&dir.join(CONFIG), config.as_bytes())?);
    let params = FlatTensors { layout, buffers: &[("", checkpoint.params)] };
    let options = ExportOptions::default();
    sha256.extend(write_model(dir, &named(layout, ""), &params, &options, &mut |_, _| true)?);
    let moments = checkpoint.moments;
    if !moments.first.is_empty() {
        let source = FlatTensors {
            layout,
            buffers: &[(FIRST, &moments.first[..]), (SECOND, &moments.second[..])],
        };
        let mut tensors = named(layout, FIRST);
        tensors.extend(named(layout, SECOND));
        let (path, dtype) = (dir.join(OPTIMIZER), WeightDtype::F32);
        let sum = write_tensors(&path, &tensors, &source, dtype, (&mut 0, 0), &mut |_, _| true)?;
        sha256.insert(OPTIMIZER.to_owned(), sum);
    }
    let state = TrainerState {
        schema_version: SCHEMA_VERSION,
        optimizer_step: moments.step,
        policy_version: checkpoint.version,
    };
    sha256.insert(STATE.to_owned(), write_file(&dir.join(STATE), to_json(&state)?.as_bytes())?);
    for (name, bytes) in attached {
        sha256.insert(name.clone(), write_file(&dir.join(name), bytes)?);
    }
    let manifest = Manifest { schema_version: SCHEMA_VERSION, sha256 };
    write_file(&dir.join(MANIFEST), to_json(&manifest)?.as_bytes()).map(|_| ())
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

/// Reads a checkpoint, verifying it against its manifest where there is one; or a GGUF file.
pub(crate) fn load(path: &Path) -> Result<Checkpoint, TrainerError> {
    if path.is_file() {
        let file = GgufFile::open(path)?;
        let config = file.config()?;
        file.check_tensors(&config)?;
        let params = read_all(&file, &ParamLayout::new(&config), "")?;
        let (moments, version) = (Moments::default(), PolicyVersion::default());
        return Ok(Checkpoint { config, params, moments, version });
    }
    let dir = path;
    if !dir.is_dir() {
        return Err(fail(dir, "is not a directory"));
    }
    let manifest = read_manifest(dir)?;
    let verify = |name: &str| verify(dir, name, manifest.as_ref());
    if let Some(manifest) = &manifest {
        // Attached files too: whoever reads them next relies on it.
        manifest.sha256.keys().try_for_each(|name| verify(name))?;
    }
    verify(CONFIG)?;
    let config = ModelConfig::read(&dir.join(CONFIG))?;
    ModelFiles::names(dir)?.iter().try_for_each(|name| verify(name))?;
    let layout = ParamLayout::new(&config);
    let files = open_model(dir, &config, &layout)?;
    let params = read_all(&files, &layout, "")?;
    let (mut moments, mut version) = (Moments::default(), PolicyVersion::default());
    if dir.join(STATE).exists() {
        verify(STATE)?;
        let state: TrainerState =
            serde_json::from_slice(&read_bounded(&dir.join(STATE), MAX_JSON)?)
                .map_err(|error| fail(&dir.join(STATE), format!("cannot be parsed: {error}")))?;
        check_schema(&dir.join(STATE), state.schema_version)?;
        version = state.policy_version;
        moments.step = state.optimizer_step;
    }
    if dir.join(OPTIMIZER).exists() {
        verify(OPTIMIZER)?;
        let file = TensorFile::open(&dir.join(OPTIMIZER))?;
        moments.first = read_all(&file, &layout, FIRST)?;
        moments.second = read_all(&file, &layout, SECOND)?;
    } else if moments.step > 0 {
        return Err(fail(&dir.join(OPTIMIZER), "is missing, but the trainer state has steps"));
    }
    Ok(Checkpoint { config, params, moments, version })
}

/// Opens the files with weights and checks that they hold nothing that would be ignored.
pub(crate) fn open_model(
    dir: &Path,
    config: &ModelConfig,
    layout: &ParamLayout,
) -> Result<ModelFiles, TrainerError> {
    let files = ModelFiles::open(dir)?;
    // Tensors that only repeat what is known.
    let ignored = |name: &str| {
        name.ends_with("rotary_emb.inv_freq")
            || (config.tie_word_embeddings && name == "lm_head.weight")
    };
    // What is missing says more than what is too much.
    layout.tensors.iter().try_for_each(|spec| files.check(&spec.name, &spec.shape))?;
    files.check_names(layout, ignored)?;
    Ok(files)
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
    let manifest: Manifest = serde_json::from_slice(&read_bounded(&path, MAX_JSON)?)
        .map_err(|error| fail(&path, format!("cannot be parsed: {error}")))?;
    check_schema(&path, manifest.schema_version)?;
    if let Some(name) = manifest.sha256.keys().find(|name| !is_plain(name)) {
        return Err(fail(&path, format!("{name:?} is not a plain file name")));
    }
    Ok(Some(manifest))
}

/// Reads a file that should be small.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> Result<Vec<u8>, TrainerError> {
    let unreadable = |e: std::io::Error| fail(path, format!("cannot be read: {e}"));
    let file = fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(max_bytes + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > max_bytes {
        return Err(fail(path, format!("is larger than {max_bytes} bytes")));
    }
    Ok(bytes)
}

/// Compares a file with the manifest, if there is one. Without one it only has to be there.
fn verify(dir: &Path, name: &str, manifest: Option<&Manifest>) -> Result<(), TrainerError> {
    let path = dir.join(name);
    let unreadable = |e: std::io::Error| fail(&path, format!("cannot be read: {e}"));
    let mut file = fs::File::open(&path).map_err(unreadable)?;
    let Some(manifest) = manifest else { return Ok(()) };
    let expected = manifest
        .sha256
        .get(name)
        .ok_or_else(|| fail(&path, format!("is not listed in {MANIFEST}")))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        let count = file.read(&mut piece).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        hash.update(&piece[..count]);
    }
    if *expected == hex(&hash.finalize()) {
        return Ok(());
    }
    Err(fail(&path, format!("is damaged: its SHA-256 is not that of {MANIFEST}")))
}
