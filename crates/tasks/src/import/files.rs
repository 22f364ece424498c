//! Which files an input is, and how each is read.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use patchwright_core::TaskError;

use super::{Raw, RawRows, Trouble, json, parquet};
use crate::harbor;
use crate::rows::io;

/// Directories below an input that are searched for files.
const MAX_DEPTH: usize = 6;

/// What an input is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// By the file's name, then by its first bytes.
    #[default]
    Auto,
    /// JSON lines: one row a line.
    Jsonl,
    /// A JSON array of rows, or one value after the other.
    Json,
    /// Parquet.
    Parquet,
    /// A Harbor task directory, or a directory of them.
    Harbor,
}

/// A file, or a Harbor task's directory, to be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputFile {
    /// Where it is.
    pub path: PathBuf,
    /// How it is read; never `Auto`.
    pub format: Format,
    /// Its size on disk; 0 for a directory.
    pub bytes: u64,
}

impl InputFile {
    /// The rows of the file; `bytes` is kept at the number of its bytes that were read.
    pub(super) fn rows(&self, bytes: &Arc<AtomicU64>) -> Result<RawRows, String> {
        let open = || {
            let file = File::open(&self.path).map_err(|e| e.to_string())?;
            let counted = Counted { inner: file, bytes: Arc::clone(bytes) };
            decompress(BufReader::with_capacity(1 << 18, counted))
        };
        Ok(match self.format {
            Format::Auto | Format::Jsonl => Box::new(json::Lines::new(open()?)),
            Format::Json => Box::new(json::Values::new(open()?)),
            Format::Parquet => {
                let file = File::open(&self.path).map_err(|e| e.to_string())?;
                Box::new(parquet::Rows::open(file, Arc::clone(bytes))?)
            }
            Format::Harbor => {
                let instance = harbor::read_task(&self.path)
                    .map(|instance| Raw::Instance(Box::new(instance)))
                    .map_err(|error| Trouble::row(error.reason));
                Box::new(std::iter::once((0, instance)))
            }
        })
    }
}

/// The files of an input in the order of their paths.
///
/// # Errors
/// [`TaskError::Io`] when there is no such file, or nothing to read in the directory.
pub(super) fn find(input: &Path, format: Format) -> Result<Vec<InputFile>, TaskError> {
    let metadata = std::fs::metadata(input).map_err(|e| io("opening", input, e))?;
    if !metadata.is_dir() {
        let format = match format {
            Format::Auto => detect(input).map_err(|e| io("opening", input, e))?,
            Format::Harbor => {
                let not = "a Harbor task is a directory with a task.toml";
                let error = std::io::Error::new(std::io::ErrorKind::NotADirectory, not);
                return Err(io("opening", input, error));
            }
            format => format,
        };
        return Ok(vec![InputFile { path: input.to_owned(), format, bytes: metadata.len() }]);
    }
    let mut found = Vec::new();
    walk(input, format, 0, &mut found)?;
    // Data sets carry descriptions of themselves as `.json` beside the rows.
    if found.iter().any(|file: &InputFile| file.format != Format::Json) && format != Format::Json {
        found.retain(|file| file.format != Format::Json);
    }
    if found.is_empty() {
        let what = match format {
            Format::Harbor => "no task.toml in it or below",
            Format::Parquet => "no *.parquet in it",
            Format::Jsonl => "no *.jsonl, *.jsonl.gz or *.jsonl.zst in it",
            Format::Json => "no *.json in it",
            Format::Auto => "no *.jsonl, *.json or *.parquet, and no Harbor task, in it",
        };
        let none = std::io::Error::new(std::io::ErrorKind::NotFound, what);
        return Err(io("reading", input, none));
    }
    Ok(found)
}

fn walk(
    dir: &Path,
    format: Format,
    depth: usize,
    found: &mut Vec<InputFile>,
) -> Result<(), TaskError> {
    let harbor = matches!(format, Format::Auto | Format::Harbor);
    if harbor && dir.join("task.toml").is_file() {
        found.push(InputFile { path: dir.to_owned(), format: Format::Harbor, bytes: 0 });
        return Ok(());
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(|e| io("reading", dir, e))? {
        let entry = entry.map_err(|e| io("reading", dir, e))?;
        entries.push((entry.path(), entry.file_type().map_err(|e| io("reading", dir, e))?));
    }
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    for (path, kind) in entries {
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        // Files may be links, as in the cache of a data hub; directories may not, against cycles.
        if hidden || kind.is_dir() {
            if !hidden && depth < MAX_DEPTH {
                walk(&path, format, depth + 1, found)?;
            }
            continue;
        }
        let Some(by_name) = by_name(&path) else { continue };
        let wanted = matches!(format, Format::Auto) || format == by_name;
        let metadata = std::fs::metadata(&path);
        if let (true, Ok(metadata)) = (wanted, metadata)
            && metadata.is_file()
        {
            found.push(InputFile { path, format: by_name, bytes: metadata.len() });
        }
    }
    Ok(())
}

fn by_name(path: &Path) -> Option<Format> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    let ends = |suffix: &str| plain.ends_with(suffix);
    if ends(".jsonl") || ends(".ndjson") {
        Some(Format::Jsonl)
    } else if ends(".json") {
        Some(Format::Json)
    } else if name.ends_with(".parquet") {
        Some(Format::Parquet)
    } else {
        None
    }
}

/// By name, else by the first bytes: Parquet has a magic number, all else is taken for JSON, which
/// [`json::Values`] reads whether or not it is an array or has one value a line.
fn detect(path: &Path) -> std::io::Result<Format> {
    if let Some(format) = by_name(path) {
        return Ok(format);
    }
    let mut magic = Vec::new();
    File::open(path)?.take(4).read_to_end(&mut magic)?;
    Ok(if magic == b"PAR1" { Format::Parquet } else { Format::Json })
}

/// The text of a file that may be compressed with gzip or Zstandard, by its first bytes.
fn decompress(mut file: impl BufRead + 'static) -> Result<Box<dyn BufRead>, String> {
    let magic = file.fill_buf().map_err(|e| e.to_string())?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        let decoder = flate2::bufread::MultiGzDecoder::new(file);
        return Ok(Box::new(BufReader::with_capacity(1 << 18, decoder)));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::Decoder::with_buffer(file).map_err(|e| e.to_string())?;
        return Ok(Box::new(BufReader::with_capacity(1 << 18, decoder)));
    }
    Ok(Box::new(file))
}

/// Counts what was read.
struct Counted<R> {
    inner: R,
    bytes: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.bytes.fetch_add(read as u64, Ordering::Relaxed);
        Ok(read)
    }
}
