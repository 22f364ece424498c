//! Whole rollouts on disk, with tokens and log-probabilities: one file a batch,
//! `rollouts/STAGE-ITERATION[-PART].jsonl.zst`, a rollout a line.
//!
//! A batch that is run again, after a resume, replaces its file: the bits are the same.

use std::io::{BufWriter, Write};
use std::path::Path;

use patchwright_core::Rollout;

use crate::error::TrainError;
use crate::rollout_engine::BatchSpec;

/// Writes a batch, whole or not at all.
pub(crate) fn write(dir: &Path, spec: &BatchSpec, rollouts: &[Rollout]) -> Result<(), TrainError> {
    std::fs::create_dir_all(dir).map_err(TrainError::io(dir))?;
    let part = if spec.part.is_empty() { String::new() } else { format!("-{}", spec.part) };
    let path = dir.join(format!("{}-{:05}{part}.jsonl.zst", spec.stage, spec.iteration));
    compress(dir, &path, rollouts).map_err(TrainError::io(&path))
}

fn compress(dir: &Path, path: &Path, rollouts: &[Rollout]) -> std::io::Result<()> {
    let file = tempfile::Builder::new().prefix(".partial-").tempfile_in(dir)?;
    let mut out = zstd::Encoder::new(BufWriter::new(file), 3)?;
    for rollout in rollouts {
        serde_json::to_writer(&mut out, rollout)?;
        out.write_all(b"\n")?;
    }
    let file = out.finish()?.into_inner().map_err(std::io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
