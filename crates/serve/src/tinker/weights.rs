//! Checkpoints: `tinker://MODEL/weights/NAME` for training on, `tinker://MODEL/sampler_weights/NAME`
//! for sampling, each a directory of the store.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Characters of a checkpoint's name at most.
const MAX_NAME_CHARS: usize = 200;

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Training,
    Sampling,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Training => "weights",
            Self::Sampling => "sampler_weights",
        }
    }
}

/// What a model must be created with to take a checkpoint up. Kept beside the weights.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Origin {
    pub base_model: String,
    pub lora_rank: Option<usize>,
    pub train_attn: bool,
    pub train_mlp: bool,
}

/// File with the [`Origin`].
const ORIGIN: &str = "tinker.json";

/// The checkpoints of a server.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    max_snapshots: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    expiring: Vec<(Instant, PathBuf)>,
    snapshots: BTreeMap<String, VecDeque<PathBuf>>,
}

impl Store {
    pub(super) fn new(root: PathBuf, max_snapshots: usize) -> Self {
        Self { root, max_snapshots, state: Mutex::default() }
    }

    /// Path and directory of a checkpoint that is to be written.
    pub(super) fn place(
        &self,
        model: &str,
        purpose: Purpose,
        name: &str,
    ) -> Result<(String, PathBuf), ApiError> {
        check_name("path", name)?;
        let word = purpose.word();
        let dir = self.root.join(file_name(model)).join(word).join(name);
        Ok((format!("tinker://{model}/{word}/{name}"), dir))
    }

    /// The directory and origin of a checkpoint that was written.
    pub(super) fn find(&self, path: &str) -> Result<(PathBuf, Origin), ApiError> {
        let bad = || {
            let form =
                "expected tinker://MODEL/weights/NAME or tinker://MODEL/sampler_weights/NAME";
            ApiError::param("path", format!("{path:?}: {form}"))
        };
        let rest = path.strip_prefix("tinker://").ok_or_else(bad)?;
        let [model, word, name] = rest.split('/').collect::<Vec<_>>()[..] else {
            return Err(bad());
        };
        if ![Purpose::Training, Purpose::Sampling].iter().any(|purpose| purpose.word() == word) {
            return Err(bad());
        }
        check_name("path", name)?;
        check_name("path", &file_name(model))?;
        let dir = self.root.join(file_name(model)).join(word).join(name);
        let missing = |_| ApiError::not_found(format!("there is no checkpoint {path}"));
        let origin = std::fs::read(dir.join(ORIGIN)).map_err(missing)?;
        let origin = serde_json::from_slice(&origin)
            .map_err(|error| ApiError::internal(format!("checkpoint {path}: {error}")))?;
        Ok((dir, origin))
    }

    /// Writes a checkpoint with `write`, then its origin.
    pub(super) fn write(
        dir: &Path,
        overwrite: bool,
        origin: &Origin,
        write: impl FnOnce(&Path) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let io = |error: std::io::Error| {
            ApiError::internal(format!("cannot write a checkpoint: {error}"))
        };
        if dir.exists() {
            if !overwrite && dir.join(ORIGIN).exists() {
                let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(ApiError::param("path", format!("{name} is there already")));
            }
            std::fs::remove_dir_all(dir).map_err(io)?;
        }
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        write(dir)?;
        let text = serde_json::to_vec(origin).map_err(|error| io(error.into()))?;
        std::fs::write(dir.join(ORIGIN), text).map_err(io)
    }

    /// Removes a checkpoint after a time.
    pub(super) fn expire_after(&self, dir: &Path, ttl: Duration) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expiring.push((Instant::now() + ttl, dir.to_owned()));
    }

    /// Counts a snapshot without a name; the oldest of its model beyond the bound is removed.
    pub(super) fn keep_snapshot(&self, model: &str, dir: &Path) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.snapshots.entry(model.to_owned()).or_default();
        known.push_back(dir.to_owned());
        while known.len() > self.max_snapshots.max(1) {
            if let Some(old) = known.pop_front() {
                remove(&old);
            }
        }
    }

    /// Removes what has expired.
    pub(super) fn expire(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        state.expiring.retain(|(at, dir)| {
            let keep = *at > now;
            if !keep {
                remove(dir);
            }
            keep
        });
    }
}

/// One that cannot be removed stays: nothing depends on it.
fn remove(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
}

/// A model's id as a directory's name.
fn file_name(model: &str) -> String {
    model.replace(':', "_")
}

fn check_name(param: &str, name: &str) -> Result<(), ApiError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let good = !name.is_empty()
        && name.len() <= MAX_NAME_CHARS
        && !name.starts_with('.')
        && name.chars().all(allowed);
    if good {
        return Ok(());
    }
    let form = "letters, digits, dots, dashes and underscores, not beginning with a dot";
    Err(ApiError::param(param, format!("{name:?} is no name; expected {form}")))
}

#[cfg(test)]
mod tests {
    use super::{Origin, Purpose, Store};

    #[test]
    fn checkpoints_are_found_by_their_path_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned(), 2);
        let origin = Origin {
            base_model: "base".to_owned(),
            lora_rank: Some(4),
            train_attn: true,
            train_mlp: false,
        };
        let (path, place) = store.place("s-1:train:0", Purpose::Training, "step-1").unwrap();
        assert_eq!(path, "tinker://s-1:train:0/weights/step-1");
        assert!(store.find(&path).is_err());
        let write = |dir: &std::path::Path| {
            std::fs::create_dir(dir).unwrap();
            Ok(())
        };
        Store::write(&place, false, &origin, write).unwrap();
        assert_eq!(store.find(&path).unwrap(), (place.clone(), origin.clone()));
        assert!(Store::write(&place, false, &origin, write).is_err());
        Store::write(&place, true, &origin, write).unwrap();
        for bad in [
            "",
            "tinker://",
            "tinker://a/weights/../x",
            "tinker://../weights/x",
            "tinker://a/other/x",
            "/etc/passwd",
            "tinker://a/weights/..",
            "tinker://a/weights/x/y",
        ] {
            assert!(store.find(bad).is_err(), "{bad}");
        }
        assert!(store.place("m", Purpose::Sampling, "../x").is_err());
    }
}
