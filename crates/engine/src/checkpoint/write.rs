//! Directories that appear whole or not at all, and tensors written piece by piece.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use patchwright_core::TrainerError;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::dtype::WeightDtype;
use super::source::TensorSource;
use super::{INDEX, MODEL, fail, hex};

/// How weights are written for others to read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportOptions {
    /// Format of the weights.
    pub dtype: WeightDtype,
    /// Bytes of tensors in a file at most (a larger tensor has a file of its own). More than that
    /// is split over `model-00001-of-….safetensors` with an index.
    pub max_shard_bytes: u64,
}

impl Default for ExportOptions {
    /// f32, files of 5 GB.
    fn default() -> Self {
        Self { dtype: WeightDtype::F32, max_shard_bytes: 5_000_000_000 }
    }
}

/// Hears how many of how many bytes of tensors are written; `false` stops the work.
pub(crate) type Progress<'a> = &'a mut dyn FnMut(u64, u64) -> bool;

/// Name and shape of a tensor to write.
pub(crate) type Named = (String, Vec<usize>);

/// Fills a new directory under another name with `write`, syncs it and renames it to `dir`.
pub(crate) fn new_directory(
    dir: &Path,
    write: impl FnOnce(&Path) -> Result<(), TrainerError>,
) -> Result<(), TrainerError> {
    if dir.exists() {
        return Err(fail(dir, "already exists; give the path of a new directory"));
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
    let fill = || {
        if partial.exists() {
            // Left by an interrupted save.
            fs::remove_dir_all(&partial)
                .map_err(|e| fail(&partial, format!("cannot be removed: {e}")))?;
        }
        fs::create_dir_all(&partial)
            .map_err(|e| fail(&partial, format!("cannot be created: {e}")))?;
        write(&partial)?;
        sync_dir(&partial)?;
        fs::rename(&partial, dir).map_err(|e| fail(dir, format!("cannot be renamed to: {e}")))?;
        sync_dir(parent)
    };
    let written = fill();
    if written.is_err() {
        // Best effort: the error that matters is the first one.
        let _ = fs::remove_dir_all(&partial);
    }
    written
}

fn sync_dir(dir: &Path) -> Result<(), TrainerError> {
    fs::File::open(dir)
        .and_then(|d| d.sync_all())
        .map_err(|error| fail(dir, format!("cannot be synced: {error}")))
}

/// A file that knows its SHA-256.
struct HashedFile<'a> {
    path: &'a Path,
    file: fs::File,
    hash: Sha256,
}

impl<'a> HashedFile<'a> {
    fn create(path: &'a Path) -> Result<Self, TrainerError> {
        let file = fs::File::create(path)
            .map_err(|error| fail(path, format!("cannot be written: {error}")))?;
        Ok(Self { path, file, hash: Sha256::new() })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TrainerError> {
        self.hash.update(bytes);
        let written = self.file.write_all(bytes);
        written.map_err(|error| fail(self.path, format!("cannot be written: {error}")))
    }

    /// Syncs the file. Returns its SHA-256, in hex.
    fn finish(self) -> Result<String, TrainerError> {
        let synced = self.file.sync_all();
        synced.map_err(|error| fail(self.path, format!("cannot be synced: {error}")))?;
        Ok(hex(&self.hash.finalize()))
    }
}

/// Writes a file and syncs it. Returns its SHA-256, in hex.
pub(crate) fn write_file(path: &Path, bytes: &[u8]) -> Result<String, TrainerError> {
    let mut file = HashedFile::create(path)?;
    file.write(bytes)?;
    file.finish()
}

fn bytes_of(shape: &[usize], dtype: WeightDtype) -> u64 {
    (shape.iter().product::<usize>() * dtype.size()) as u64
}

/// Writes tensors to one safetensors file. `done` counts bytes of tensors over several calls, of
/// `total`. Returns the file's SHA-256, in hex.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[Named],
    source: &dyn TensorSource,
    dtype: WeightDtype,
    (done, total): (&mut u64, u64),
    progress: Progress,
) -> Result<String, TrainerError> {
    let mut header = Map::new();
    // `transformers` asks for the format.
    header.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0;
    for (name, shape) in tensors {
        source.check(name, shape)?;
        let end = at + bytes_of(shape, dtype);
        let info = json!({
            "dtype": dtype.safetensors_name(), "shape": shape, "data_offsets": [at, end]
        });
        header.insert(name.clone(), info);
        at = end;
    }
    let mut header = Value::Object(header).to_string();
    // Tensors begin at a multiple of 8.
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut file = HashedFile::create(path)?;
    file.write(&(header.len() as u64).to_le_bytes())?;
    file.write(header.as_bytes())?;
    let mut bytes = Vec::new();
    for (name, shape) in tensors {
        let mut index = 0;
        source.stream(name, shape, &mut |piece| {
            bytes.clear();
            dtype.encode(piece, &mut bytes).map_err(|wrong| {
                let (x, name_of) = (piece[wrong], dtype.torch_name());
                let element = index + wrong;
                fail(path, format!("tensor {name}: {x} (element {element}) is no {name_of}"))
            })?;
            index += piece.len();
            file.write(&bytes)?;
            *done += bytes.len() as u64;
            if progress(*done, total) { Ok(()) } else { Err(fail(path, "interrupted")) }
        })?;
    }
    file.finish()
}

/// Writes a model's tensors to one file, or to several with an index. Returns names and SHA-256.
pub(crate) fn write_model(
    dir: &Path,
    tensors: &[Named],
    source: &dyn TensorSource,
    options: &ExportOptions,
    progress: Progress,
) -> Result<BTreeMap<String, String>, TrainerError> {
    let dtype = options.dtype;
    let total = tensors.iter().map(|(_, shape)| bytes_of(shape, dtype)).sum();
    let mut shards: Vec<&[Named]> = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (index, (_, shape)) in tensors.iter().enumerate() {
        let bytes = bytes_of(shape, dtype);
        if size + bytes > options.max_shard_bytes && index > start {
            shards.push(&tensors[start..index]);
            (start, size) = (index, 0);
        }
        size += bytes;
    }
    shards.push(&tensors[start..]);
    let mut sums = BTreeMap::new();
    let mut weight_map = Map::new();
    let mut done = 0;
    for (index, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => MODEL.to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", index + 1),
        };
        let counted = (&mut done, total);
        let sum = write_tensors(&dir.join(&name), shard, source, dtype, counted, progress)?;
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), name.as_str().into())));
        sums.insert(name, sum);
    }
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        let text = format!("{index:#}\n");
        sums.insert(INDEX.to_owned(), write_file(&dir.join(INDEX), text.as_bytes())?);
    }
    Ok(sums)
}
