//! Tensors from files, piece by piece: weights are never held twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use patchwright_core::TrainerError;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::dtype::WeightDtype;
use super::fail;
use crate::params::{ParamLayout, TensorSpec};

/// Takes the next elements of a tensor.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[f32]) -> Result<(), TrainerError>;

/// Where tensors come from.
pub(crate) trait TensorSource {
    /// Checks that the tensor is there, with this shape, without reading it.
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), TrainerError>;

    /// Pushes all elements of the tensor, row-major, in pieces. Each is finite.
    fn stream(&self, name: &str, shape: &[usize], sink: Sink) -> Result<(), TrainerError>;
}

/// Elements of a piece.
const PIECE: usize = 1 << 16;
/// Bytes of a safetensors header at most; the format's own bound.
const MAX_HEADER: u64 = 100_000_000;
/// Bytes of an index file at most.
const MAX_INDEX: u64 = 64 << 20;

/// Reads every tensor of the layout, under its name behind `prefix`. Memory is asked for only when
/// the files were found to hold it all.
pub(crate) fn read_all(
    source: &dyn TensorSource,
    layout: &ParamLayout,
    prefix: &str,
) -> Result<Vec<f32>, TrainerError> {
    let name_of = |spec: &TensorSpec| format!("{prefix}{}", spec.name);
    for spec in &layout.tensors {
        source.check(&name_of(spec), &spec.shape)?;
    }
    let mut values = vec![0.0; layout.total];
    for spec in &layout.tensors {
        let mut at = spec.range.start;
        source.stream(&name_of(spec), &spec.shape, &mut |piece| {
            values[at..at + piece.len()].copy_from_slice(piece);
            at += piece.len();
            Ok(())
        })?;
    }
    Ok(values)
}

/// The tensors of a flat buffer.
pub(crate) struct FlatTensors<'a> {
    pub layout: &'a ParamLayout,
    /// Pairs of a prefix of names and a buffer.
    pub buffers: &'a [(&'a str, &'a [f32])],
}

impl FlatTensors<'_> {
    fn find(&self, name: &str) -> Option<&[f32]> {
        self.buffers.iter().find_map(|(prefix, values)| {
            let name = name.strip_prefix(prefix)?;
            let spec = self.layout.tensors.iter().find(|spec| spec.name == name)?;
            values.get(spec.range.clone())
        })
    }
}

impl TensorSource for FlatTensors<'_> {
    fn check(&self, name: &str, _: &[usize]) -> Result<(), TrainerError> {
        let missing = || TrainerError::Engine(format!("tensor {name} is not of this model"));
        self.find(name).map(|_| ()).ok_or_else(missing)
    }

    fn stream(&self, name: &str, shape: &[usize], sink: Sink) -> Result<(), TrainerError> {
        self.check(name, shape)?;
        self.find(name).into_iter().flat_map(|values| values.chunks(PIECE)).try_for_each(sink)
    }
}

/// A safetensors file whose header was read and checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: fs::File,
    header: Metadata,
    /// Where tensors begin in the file.
    start: u64,
}

impl TensorFile {
    pub(crate) fn open(path: &Path) -> Result<Self, TrainerError> {
        let unreadable = |e: std::io::Error| fail(path, format!("cannot be read: {e}"));
        let wrong = |why: String| fail(path, format!("is not a safetensors file: {why}"));
        let mut file = fs::File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let mut length = [0; 8];
        if size < 8 {
            return Err(wrong("it is too short for a header".to_owned()));
        }
        file.read_exact(&mut length).map_err(unreadable)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER || length > size - 8 {
            return Err(wrong(format!("its header would be {length} bytes long")));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(unreadable)?;
        let header: Metadata = serde_json::from_slice(&header)
            .map_err(|error| wrong(format!("its header cannot be parsed: {error}")))?;
        let (start, expected) = (8 + length, header.data_len() as u64);
        if size - start != expected {
            return Err(wrong(format!(
                "its header speaks of {expected} bytes of tensors, there are {}",
                size - start
            )));
        }
        Ok(Self { path: path.to_owned(), file, header, start })
    }

    fn names(&self) -> BTreeSet<String> {
        self.header.tensors().into_keys().collect()
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(WeightDtype, u64), TrainerError> {
        let bad = |reason: String| fail(&self.path, format!("tensor {name} {reason}"));
        let info = self.header.info(name).ok_or_else(|| bad("is missing".to_owned()))?;
        if info.shape != shape {
            return Err(bad(format!("has shape {:?}, expected {shape:?}", info.shape)));
        }
        let dtype = WeightDtype::from_safetensors(info.dtype)
            .ok_or_else(|| bad(format!("is {:?}, expected F32, BF16 or F16", info.dtype)))?;
        Ok((dtype, self.start + info.data_offsets.0 as u64))
    }
}

impl TensorSource for TensorFile {
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), TrainerError> {
        self.find(name, shape).map(|_| ())
    }

    fn stream(&self, name: &str, shape: &[usize], sink: Sink) -> Result<(), TrainerError> {
        let (dtype, at) = self.find(name, shape)?;
        let unreadable = |e: std::io::Error| fail(&self.path, format!("cannot be read: {e}"));
        let mut file = &self.file;
        file.seek(SeekFrom::Start(at)).map_err(unreadable)?;
        let total: usize = shape.iter().product();
        let (mut bytes, mut numbers) = (Vec::new(), Vec::new());
        let mut done = 0;
        while done < total {
            let count = PIECE.min(total - done);
            bytes.resize(count * dtype.size(), 0);
            numbers.resize(count, 0.0);
            file.read_exact(&mut bytes).map_err(unreadable)?;
            dtype.decode(&bytes, &mut numbers);
            if let Some(index) = numbers.iter().position(|x| !x.is_finite()) {
                let reason = format!("tensor {name} is not finite at element {}", done + index);
                return Err(fail(&self.path, reason));
            }
            sink(&numbers)?;
            done += count;
        }
        Ok(())
    }
}

/// The weights of a directory: one file, or several with an index.
#[derive(Debug)]
pub(crate) struct ModelFiles {
    dir: PathBuf,
    files: Vec<TensorFile>,
    /// The file of each tensor.
    places: BTreeMap<String, usize>,
}

/// `model.safetensors.index.json`.
#[derive(Deserialize)]
struct Index {
    /// Tensor to file name.
    weight_map: BTreeMap<String, String>,
}

impl ModelFiles {
    /// Names of the files with weights. As `transformers` has it, the one file goes first.
    pub(crate) fn names(dir: &Path) -> Result<Vec<String>, TrainerError> {
        let path = dir.join(super::INDEX);
        if dir.join(super::MODEL).exists() || !path.exists() {
            return Ok(vec![super::MODEL.to_owned()]);
        }
        let names: BTreeSet<String> = read_index(&path)?.weight_map.into_values().collect();
        let mut names: Vec<String> = names.into_iter().collect();
        names.push(super::INDEX.to_owned());
        Ok(names)
    }

    pub(crate) fn open(dir: &Path) -> Result<Self, TrainerError> {
        let mut found = Self { dir: dir.to_owned(), files: Vec::new(), places: BTreeMap::new() };
        for name in Self::names(dir)?.iter().filter(|name| *name != super::INDEX) {
            let file = TensorFile::open(&dir.join(name))?;
            for tensor in file.names() {
                let first = found.places.insert(tensor.clone(), found.files.len());
                if first.is_some() {
                    return Err(fail(&file.path, format!("tensor {tensor} is in two files")));
                }
            }
            found.files.push(file);
        }
        Ok(found)
    }

    /// Refuses a tensor that is neither in the layout nor `ignored`: it would be lost in silence.
    pub(crate) fn check_names(
        &self,
        layout: &ParamLayout,
        ignored: impl Fn(&str) -> bool,
    ) -> Result<(), TrainerError> {
        let known: BTreeSet<&str> = layout.tensors.iter().map(|t| t.name.as_str()).collect();
        match self.places.iter().find(|(name, _)| !known.contains(name.as_str()) && !ignored(name))
        {
            Some((name, file)) => {
                let path = &self.files[*file].path;
                Err(fail(path, format!("tensor {name} is not of this architecture")))
            }
            None => Ok(()),
        }
    }

    /// The formats of the tensors, each once.
    pub(crate) fn dtypes(&self) -> Vec<String> {
        let infos = self.files.iter().flat_map(|file| file.header.tensors().into_values());
        let names: BTreeSet<String> = infos.map(|info| format!("{:?}", info.dtype)).collect();
        names.into_iter().collect()
    }

    pub(crate) fn num_files(&self) -> usize {
        self.files.len()
    }

    fn file_of(&self, name: &str) -> Result<&TensorFile, TrainerError> {
        if let Some(index) = self.places.get(name) {
            return Ok(&self.files[*index]);
        }
        let path = match self.files.as_slice() {
            [only] => &only.path,
            _ => &self.dir,
        };
        Err(fail(path, format!("tensor {name} is missing")))
    }
}

impl TensorSource for ModelFiles {
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), TrainerError> {
        self.file_of(name)?.check(name, shape)
    }

    fn stream(&self, name: &str, shape: &[usize], sink: Sink) -> Result<(), TrainerError> {
        self.file_of(name)?.stream(name, shape, sink)
    }
}

fn read_index(path: &Path) -> Result<Index, TrainerError> {
    let text = super::read_bounded(path, MAX_INDEX)?;
    let index: Index = serde_json::from_slice(&text)
        .map_err(|error| fail(path, format!("cannot be parsed: {error}")))?;
    let plain = |name: &&String| {
        Path::new(name.as_str()).file_name().is_some_and(|n| n == name.as_str())
            && Path::new(name.as_str()).extension().is_some_and(|e| e == "safetensors")
    };
    match index.weight_map.values().find(|name| !plain(name)) {
        Some(name) => Err(fail(path, format!("{name:?} is no name of a .safetensors file"))),
        None if index.weight_map.is_empty() => Err(fail(path, "names no tensor")),
        None => Ok(index),
    }
}
