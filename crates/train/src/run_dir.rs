//! The run directory: names of its files, its lock, and checkpoints.
//!
//! ```text
//! runs/<name>/recipe.json       the resolved recipe, program version
//!             journal.jsonl     everything that happened
//!             metrics.jsonl     one line an iteration
//!             checkpoints/<policy_version>/   Hugging Face layout, optimizer state, tokenizer.json
//!             report.json       the result, at the end
//! ```

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use patchwright_core::{PolicyVersion, Trainer};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::recipe::Recipe;

/// A run directory, locked: one process at a time works on it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    /// Held for its lock.
    _lock: File,
}

/// What `recipe.json` holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedRecipe {
    /// Version of the program that made the run.
    pub program_version: String,
    /// The recipe with every value, overrides applied.
    pub recipe: Recipe,
}

impl RunDir {
    /// Makes a new run directory with its recipe.
    ///
    /// # Errors
    /// When it holds a run already, or cannot be written.
    pub fn create(path: &Path, recipe: &Recipe) -> Result<Self, TrainError> {
        Self::check_free(path)?;
        let checkpoints = path.join("checkpoints");
        std::fs::create_dir_all(&checkpoints).map_err(TrainError::io(&checkpoints))?;
        let dir = Self::lock(path)?;
        let saved = SavedRecipe {
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: recipe.clone(),
        };
        write_json(&dir.recipe(), &saved)?;
        Ok(dir)
    }

    /// Refuses a directory that holds a run.
    ///
    /// # Errors
    /// When it does.
    pub fn check_free(path: &Path) -> Result<(), TrainError> {
        if path.join("journal.jsonl").exists() {
            return Err(TrainError::setup(
                path.display().to_string(),
                "there is a run in it already: choose another directory with --out, or go on with \
                 --resume",
            ));
        }
        Ok(())
    }

    /// Opens the directory of an earlier run.
    ///
    /// # Errors
    /// When it holds no run, or another process works on it.
    pub fn open(path: &Path) -> Result<(Self, Recipe), TrainError> {
        let file = path.join("recipe.json");
        let text = std::fs::read_to_string(&file).map_err(|error| {
            TrainError::setup(
                path.display().to_string(),
                format!("not a run directory: recipe.json: {error}"),
            )
        })?;
        let saved: SavedRecipe = serde_json::from_str(&text)
            .map_err(|error| TrainError::setup(file.display().to_string(), error.to_string()))?;
        saved.recipe.check()?;
        if !path.join("journal.jsonl").exists() {
            return Err(TrainError::setup(
                path.display().to_string(),
                "the run was stopped before it began: start it anew with --out",
            ));
        }
        Ok((Self::lock(path)?, saved.recipe))
    }

    fn lock(path: &Path) -> Result<Self, TrainError> {
        let file = path.join(".lock");
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(TrainError::io(&file))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(TrainError::setup(
                path.display().to_string(),
                "another process works on this run",
            )),
            Err(std::fs::TryLockError::Error(error)) => Err(TrainError::io(&file)(error)),
        }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `recipe.json`.
    pub fn recipe(&self) -> PathBuf {
        self.path.join("recipe.json")
    }

    /// `journal.jsonl`.
    pub fn journal(&self) -> PathBuf {
        self.path.join("journal.jsonl")
    }

    /// `rollouts/`, with whole rollouts where the recipe keeps them.
    pub fn rollouts(&self) -> PathBuf {
        self.path.join("rollouts")
    }

    /// `metrics.jsonl`.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// `report.json`.
    pub fn report(&self) -> PathBuf {
        self.path.join("report.json")
    }

    /// `checkpoints/<policy_version>`.
    pub fn checkpoint(&self, version: PolicyVersion) -> PathBuf {
        self.path.join("checkpoints").join(version.to_string())
    }

    /// Saves the trainer's weights and optimizer state, and `pending` (batches that were sampled
    /// and not yet learned from) beside. What an interrupted save left under the name is replaced.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn save_checkpoint<T: Serialize>(
        &self,
        trainer: &mut dyn Trainer,
        pending: &[T],
    ) -> Result<(), TrainError> {
        let version = trainer.policy_version();
        if !pending.is_empty() {
            write_json(&self.pending_path(version), &pending)?;
        }
        let dir = self.checkpoint(version);
        remove_dir(&dir)?;
        trainer.save(&dir)?;
        Ok(())
    }

    /// The batches that [`RunDir::save_checkpoint`] put beside a checkpoint.
    ///
    /// # Errors
    /// When they cannot be read.
    pub fn pending<T: for<'de> Deserialize<'de>>(
        &self,
        version: PolicyVersion,
    ) -> Result<Vec<T>, TrainError> {
        let path = self.pending_path(version);
        if !path.exists() {
            return Ok(Vec::new());
        }
        let text = std::fs::read(&path).map_err(TrainError::io(&path))?;
        serde_json::from_slice(&text)
            .map_err(|error| TrainError::setup(path.display().to_string(), error.to_string()))
    }

    fn pending_path(&self, version: PolicyVersion) -> PathBuf {
        self.path.join("checkpoints").join(format!("{version}.pending.json"))
    }

    /// Removes every checkpoint that is not in `keep`, and the batches beside all but the newest.
    ///
    /// # Errors
    /// When one cannot be removed.
    pub fn prune_checkpoints(&self, keep: &[PolicyVersion]) -> Result<(), TrainError> {
        let dir = self.path.join("checkpoints");
        for entry in std::fs::read_dir(&dir).map_err(TrainError::io(&dir))? {
            let path = entry.map_err(TrainError::io(&dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if let Some(version) = name.strip_suffix(".pending.json") {
                let version = version.parse().map(PolicyVersion).ok();
                if version != keep.iter().max().copied() {
                    std::fs::remove_file(&path).map_err(TrainError::io(&path))?;
                }
            } else if let Ok(version) = name.parse()
                && !keep.contains(&PolicyVersion(version))
            {
                remove_dir(&path)?;
            }
        }
        Ok(())
    }
}

fn remove_dir(path: &Path) -> Result<(), TrainError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::io(path)(error))
        }
        _ => Ok(()),
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// When it cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), TrainError> {
    let mut text = serde_json::to_vec_pretty(value)
        .map_err(|error| TrainError::setup(path.display().to_string(), error.to_string()))?;
    text.push(b'\n');
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".part");
    let temporary = PathBuf::from(temporary);
    let mut file = File::create(&temporary).map_err(TrainError::io(&temporary))?;
    file.write_all(&text).map_err(TrainError::io(&temporary))?;
    file.sync_all().map_err(TrainError::io(&temporary))?;
    std::fs::rename(&temporary, path).map_err(TrainError::io(path))
}
