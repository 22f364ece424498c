//! GGUF files: the one-file format of llama.cpp, weights with tokenizer and metadata. Read only.
//!
//! The tensors keep the names and the layout of their Hugging Face originals but for one thing:
//! for the architecture `llama` the rows of the query and key projections are interleaved, since
//! llama.cpp rotates neighbours there, and not halves. Reading undoes that.

mod convert;
mod dequant;
mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use patchwright_core::TrainerError;

use crate::checkpoint::{ExportOptions, Sink, TensorSource, export, fail};
use crate::config::ModelConfig;
use crate::params::ParamLayout;
use read::{Header, TensorInfo, read_header};

/// Elements of a piece; a multiple of every block.
const PIECE: usize = 1 << 16;

/// Rotary frequencies of a head at most.
const MAX_DIVISORS: usize = 1 << 16;

/// A GGUF file whose header was read and checked.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: fs::File,
    header: Header,
}

/// What a GGUF file says of its tokenizer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GgufVocabulary {
    /// The kind, `gpt2` for byte-level BPE.
    pub model: String,
    /// Name of the pre-tokenizer, such as `qwen2`.
    pub pre: String,
    /// The tokens by id.
    pub tokens: Vec<String>,
    /// Ids of control tokens, ascending: what a text cannot say.
    pub control: Vec<u32>,
    /// Ids of tokens that are cut out of a text before all others, ascending, without `control`.
    pub user_defined: Vec<u32>,
    /// Pairs of pieces, with a space between, the most important first.
    pub merges: Vec<String>,
    /// The token at the beginning of a text.
    pub bos: Option<u32>,
    /// The token that ends a text or turn.
    pub eos: Option<u32>,
    /// The token for what has none.
    pub unk: Option<u32>,
    /// The token that fills rows up.
    pub pad: Option<u32>,
    /// Whether the tokenizer puts `bos` before a text.
    pub add_bos: bool,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
}

impl GgufFile {
    /// Opens a file and reads its header; the tensors are read when they are asked for.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and what is wrong with it.
    pub fn open(path: &Path) -> Result<Self, TrainerError> {
        let unreadable = |e: std::io::Error| fail(path, format!("cannot be read: {e}"));
        let file = fs::File::open(path).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        let header = read_header(&file, size).map_err(|reason| fail(path, reason))?;
        Ok(Self { path: path.to_owned(), file, header })
    }

    /// The architecture, in the words of a `config.json`.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming what is missing or not supported.
    pub fn config(&self) -> Result<ModelConfig, TrainerError> {
        let divisors = self.rope_divisors()?;
        convert::config(&self.header, divisors.as_deref())
            .map_err(|reason| fail(&self.path, reason))
    }

    /// What Llama 3's rotary frequencies are divided by, where the file says so.
    fn rope_divisors(&self) -> Result<Option<Vec<f32>>, TrainerError> {
        let name = convert::ROPE_FACTORS;
        let Some(info) = self.header.tensors.get(name) else { return Ok(None) };
        let count: usize = info.shape.iter().product();
        let bad = |reason: String| fail(&self.path, format!("tensor {name} {reason}"));
        if count > MAX_DIVISORS || !count.is_multiple_of(info.kind.block().0) {
            return Err(bad(format!("has {count} numbers, at most {MAX_DIVISORS} were expected")));
        }
        let mut divisors = vec![0.0; count];
        self.read(info, 0, &mut divisors).map_err(|e| bad(format!("cannot be read: {e}")))?;
        Ok(Some(divisors))
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming what is missing or makes no sense.
    pub fn vocabulary(&self) -> Result<GgufVocabulary, TrainerError> {
        convert::vocabulary(&self.header).map_err(|reason| fail(&self.path, reason))
    }

    /// How the weights are stored: names such as `Q4_1`, each with its number of tensors.
    pub fn formats(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for info in self.header.tensors.values() {
            *counts.entry(info.kind.name().to_owned()).or_default() += 1;
        }
        counts
    }

    /// Writes the model as a Hugging Face directory: `config.json`, the weights, and `files`
    /// (tokenizer and template). `progress` hears how many of how many bytes of weights are
    /// written; when it answers `false`, the work stops. Whole or not at all.
    ///
    /// # Errors
    /// [`TrainerError::Checkpoint`] naming the file and, where it is one, the tensor;
    /// [`TrainerError::BadInput`] for a file that the engine itself writes.
    pub fn export(
        &self,
        dir: &Path,
        files: &BTreeMap<String, Vec<u8>>,
        options: &ExportOptions,
        progress: &mut dyn FnMut(u64, u64) -> bool,
    ) -> Result<(), TrainerError> {
        let config = self.config()?;
        self.check_tensors(&config)?;
        export(dir, &config, self, files, options, progress)
    }

    /// Checks that the file holds the tensors of this architecture, and none that would be lost in
    /// silence.
    pub(crate) fn check_tensors(&self, config: &ModelConfig) -> Result<(), TrainerError> {
        let layout = ParamLayout::new(config);
        let names = layout.tensors.iter().filter_map(|t| convert::gguf_name(&t.name));
        let known: BTreeSet<String> = names.chain([convert::ROPE_FACTORS.to_owned()]).collect();
        let odd = self.header.tensors.keys().find(|name| !known.contains(*name));
        if let Some(name) = odd {
            return Err(fail(&self.path, format!("tensor {name} is not of this architecture")));
        }
        layout.tensors.iter().try_for_each(|spec| self.check(&spec.name, &spec.shape))
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, TrainerError> {
        let bad = |reason: String| fail(&self.path, format!("tensor {name} {reason}"));
        let info = convert::gguf_name(name)
            .and_then(|name| self.header.tensors.get(&name))
            .ok_or_else(|| bad("is missing".to_owned()))?;
        if info.shape != shape {
            return Err(bad(format!("has shape {:?}, expected {shape:?}", info.shape)));
        }
        Ok(info)
    }

    /// Reads whole blocks from element `first` on.
    fn read(&self, info: &TensorInfo, first: usize, out: &mut [f32]) -> std::io::Result<()> {
        let (numbers, size) = info.kind.block();
        let mut bytes = vec![0; out.len() / numbers * size];
        let mut file = &self.file;
        file.seek(SeekFrom::Start(info.offset + (first / numbers * size) as u64))?;
        file.read_exact(&mut bytes)?;
        info.kind.dequantize(&bytes, out);
        Ok(())
    }
}

impl TensorSource for GgufFile {
    fn check(&self, name: &str, shape: &[usize]) -> Result<(), TrainerError> {
        self.find(name, shape).map(|_| ())
    }

    fn stream(&self, name: &str, shape: &[usize], sink: Sink) -> Result<(), TrainerError> {
        let info = self.find(name, shape)?;
        let total: usize = shape.iter().product();
        let interleaved = convert::interleaved_rows(&self.header, name, shape[0])
            .map_err(|reason| fail(&self.path, reason))?;
        // An interleaved matrix is read row by row, all else in pieces as they lie.
        let piece = if interleaved.is_some() { total / shape[0] } else { PIECE };
        if !piece.is_multiple_of(info.kind.block().0) {
            return Err(fail(&self.path, format!("tensor {name} has rows of broken blocks")));
        }
        let mut numbers = vec![0.0; piece];
        for (index, first) in (0..total).step_by(piece).enumerate() {
            let from = interleaved.as_ref().map_or(first, |rows| rows.source(index) * piece);
            let numbers = &mut numbers[..piece.min(total - first)];
            self.read(info, from, numbers)
                .map_err(|e| fail(&self.path, format!("tensor {name} cannot be read: {e}")))?;
            if let Some(at) = numbers.iter().position(|x| !x.is_finite()) {
                let reason = format!("tensor {name} is not finite at element {}", first + at);
                return Err(fail(&self.path, reason));
            }
            sink(numbers)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
