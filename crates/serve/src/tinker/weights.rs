//! Checkpoints: `tinker://MODEL/weights/NAME` for training on, `tinker://MODEL/sampler_weights/NAME`
//! for sampling, each a directory of the store.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::ApiError;

/// Characters of a checkpoint's name at most.
const MAX_NAME_CHARS: usize = 200;

/// File with the second since 1970 at which a checkpoint goes. 0 says that it does not outlive its
/// server.
const EXPIRES: &str = "expires";

/// What a checkpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    Training,
    Sampling,
}

impl Purpose {
    const ALL: [Self; 2] = [Self::Training, Self::Sampling];

    fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.word() == word)
    }

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
    max_bytes: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What goes, and at which second.
    expiring: Vec<(u64, PathBuf)>,
    snapshots: BTreeMap<String, VecDeque<PathBuf>>,
}

/// A checkpoint that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept {
    pub purpose: Purpose,
    pub name: String,
    pub path: String,
    pub num_bytes: u64,
    /// Seconds since 1970.
    pub saved: u64,
    pub expires: Option<u64>,
}

impl Store {
    /// The store of a directory. What an earlier server left there goes when it said so.
    pub(super) fn new(root: PathBuf, max_snapshots: usize, max_bytes: u64) -> Self {
        let models = entries(&root);
        let places = models.iter().flat_map(|model| Purpose::ALL.map(|p| model.join(p.word())));
        let dirs = places.flat_map(|place| entries(&place));
        let expiring = dirs.filter_map(|dir| Some((expires(&dir)?, dir))).collect();
        let state = State { expiring, ..State::default() };
        Self { root, max_snapshots, max_bytes, state: Mutex::new(state) }
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
        let dir = self.dir(path)?;
        let missing = |_| ApiError::not_found(format!("there is no checkpoint {path}"));
        let origin = std::fs::read(dir.join(ORIGIN)).map_err(missing)?;
        let origin = serde_json::from_slice(&origin)
            .map_err(|error| ApiError::internal(format!("checkpoint {path}: {error}")))?;
        Ok((dir, origin))
    }

    /// Removes a checkpoint; its directory is not there any more.
    pub(super) fn delete(&self, path: &str) -> Result<PathBuf, ApiError> {
        let (dir, _) = self.find(path)?;
        std::fs::remove_dir_all(&dir)
            .map_err(|error| ApiError::internal(format!("cannot remove {path}: {error}")))?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expiring.retain(|(_, other)| *other != dir);
        for snapshots in state.snapshots.values_mut() {
            snapshots.retain(|other| *other != dir);
        }
        Ok(dir)
    }

    /// The checkpoints of a model that have a name, oldest first.
    pub(super) fn list(&self, model: &str) -> Result<Vec<Kept>, ApiError> {
        check_name("training_run_id", &file_name(model))?;
        let place = self.root.join(file_name(model));
        let mut all = Vec::new();
        for purpose in Purpose::ALL {
            let word = purpose.word();
            for dir in entries(&place.join(word)) {
                let Ok(written) = std::fs::metadata(dir.join(ORIGIN)) else { continue };
                let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let expires = expires(&dir);
                if expires == Some(0) {
                    continue;
                }
                all.push(Kept {
                    purpose,
                    path: format!("tinker://{model}/{word}/{name}"),
                    name,
                    num_bytes: num_bytes(&dir),
                    saved: written.modified().map_or(0, seconds),
                    expires,
                });
            }
        }
        all.sort_by(|a, b| (a.saved, &a.path).cmp(&(b.saved, &b.path)));
        Ok(all)
    }

    /// Where a checkpoint is, or would be.
    fn dir(&self, path: &str) -> Result<PathBuf, ApiError> {
        let bad = || {
            let form =
                "expected tinker://MODEL/weights/NAME or tinker://MODEL/sampler_weights/NAME";
            ApiError::param("path", format!("{path:?}: {form}"))
        };
        let rest = path.strip_prefix("tinker://").ok_or_else(bad)?;
        let [model, word, name] = rest.split('/').collect::<Vec<_>>()[..] else {
            return Err(bad());
        };
        Purpose::named(word).ok_or_else(bad)?;
        check_name("path", name)?;
        check_name("path", &file_name(model))?;
        Ok(self.root.join(file_name(model)).join(word).join(name))
    }

    /// Writes a checkpoint with `write`, then its origin, unless the store is full.
    pub(super) fn write(
        &self,
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
        let held = num_bytes(&self.root);
        if held >= self.max_bytes {
            return Err(ApiError::param(
                "path",
                format!(
                    "the store is full ({} MiB of {}): delete checkpoints (delete_checkpoint of the \
                     SDK's REST client), save with ttl_seconds, or serve with more room",
                    held >> 20,
                    self.max_bytes >> 20
                ),
            ));
        }
        if let Some(parent) = dir.parent() {
            std::fs::create_dir_all(parent).map_err(io)?;
        }
        write(dir)?;
        let text = serde_json::to_vec(origin).map_err(|error| io(error.into()))?;
        std::fs::write(dir.join(ORIGIN), text).map_err(io)
    }

    /// Removes a checkpoint after a time, also if the server is another by then.
    pub(super) fn expire_after(&self, dir: &Path, ttl: Duration) -> Result<(), ApiError> {
        let at = seconds(SystemTime::now()).saturating_add(ttl.as_secs());
        mark(dir, at)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.expiring.retain(|(_, other)| other != dir);
        state.expiring.push((at, dir.to_owned()));
        Ok(())
    }

    /// Counts a snapshot without a name; the oldest of its model beyond the bound is removed.
    pub(super) fn keep_snapshot(&self, model: &str, dir: &Path) -> Result<(), ApiError> {
        mark(dir, 0)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.snapshots.entry(model.to_owned()).or_default();
        known.push_back(dir.to_owned());
        while known.len() > self.max_snapshots.max(1) {
            if let Some(old) = known.pop_front() {
                remove(&old);
            }
        }
        Ok(())
    }

    /// Removes what has expired, and snapshots of models that are of no session any more. What
    /// went.
    pub(super) fn expire(&self, is_open: impl Fn(&str) -> bool) -> Vec<PathBuf> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = seconds(SystemTime::now());
        let mut gone = Vec::new();
        state.expiring.retain(|(at, dir)| {
            let keep = *at > now;
            if !keep {
                gone.push(dir.clone());
            }
            keep
        });
        state.snapshots.retain(|model, dirs| {
            let keep = is_open(model);
            if !keep {
                gone.extend(dirs.drain(..));
            }
            keep
        });
        for dir in &gone {
            remove(dir);
        }
        gone
    }
}

/// One that cannot be removed stays: nothing depends on it.
fn remove(dir: &Path) {
    let _ = std::fs::remove_dir_all(dir);
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn mark(dir: &Path, at: u64) -> Result<(), ApiError> {
    std::fs::write(dir.join(EXPIRES), at.to_string())
        .map_err(|error| ApiError::internal(format!("cannot write a checkpoint: {error}")))
}

/// When a checkpoint goes, if it goes by itself.
fn expires(dir: &Path) -> Option<u64> {
    std::fs::read_to_string(dir.join(EXPIRES)).ok()?.trim().parse().ok()
}

/// What is in a directory; nothing, where there is none.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// Bytes of all files below a directory. A link counts as itself.
pub(super) fn num_bytes(dir: &Path) -> u64 {
    let size = |path: &PathBuf| match std::fs::symlink_metadata(path) {
        Ok(data) if data.is_dir() => num_bytes(path),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries(dir).iter().map(size).sum()
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
    use std::time::Duration;

    use super::{Origin, Purpose, Store};

    fn origin() -> Origin {
        Origin {
            base_model: "base".to_owned(),
            lora_rank: Some(4),
            train_attn: true,
            train_mlp: false,
        }
    }

    #[expect(clippy::unnecessary_wraps, reason = "as writers of checkpoints are")]
    fn write(dir: &std::path::Path) -> Result<(), crate::error::ApiError> {
        std::fs::create_dir(dir).unwrap();
        std::fs::write(dir.join("weights"), [0; 1000]).unwrap();
        Ok(())
    }

    #[test]
    fn checkpoints_are_found_by_their_path_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::new(dir.path().to_owned(), 2, 1 << 20);
        let origin = origin();
        let (path, place) = store.place("s-1:train:0", Purpose::Training, "step-1").unwrap();
        assert_eq!(path, "tinker://s-1:train:0/weights/step-1");
        assert!(store.find(&path).is_err());
        store.write(&place, false, &origin, write).unwrap();
        assert_eq!(store.find(&path).unwrap(), (place.clone(), origin.clone()));
        assert!(store.write(&place, false, &origin, write).is_err());
        store.write(&place, true, &origin, write).unwrap();
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
    #[test]
    fn what_is_deleted_expired_or_without_a_session_is_gone_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::new(dir.path().to_owned(), 2, 2500);
        let store = open();
        let save = |store: &Store, name: &str| {
            let (path, place) = store.place("s-1:train:0", Purpose::Sampling, name)?;
            store.write(&place, false, &origin(), write).map(|()| (path, place))
        };
        let (kept, _) = save(&store, "kept").unwrap();
        let (_, passing) = save(&store, "passing").unwrap();
        store.expire_after(&passing, Duration::from_hours(1)).unwrap();
        let (_, snapshot) = save(&store, "session-0").unwrap();
        store.keep_snapshot("s-1:train:0", &snapshot).unwrap();
        let listed = store.list("s-1:train:0").unwrap();
        let names: Vec<&str> = listed.iter().map(|kept| kept.name.as_str()).collect();
        assert!(names.len() == 2 && names.contains(&"kept") && names.contains(&"passing"));
        assert!(listed[0].num_bytes >= 1000 && listed.iter().any(|kept| kept.expires.is_some()));
        let full = save(&store, "more").unwrap_err();
        assert!(full.message.contains("full"), "{}", full.message);

        assert!(store.expire(|_| true).is_empty());
        assert_eq!(store.expire(|model| model != "s-1:train:0"), std::slice::from_ref(&snapshot));
        assert!(!snapshot.exists() && passing.exists());
        // What was to go then goes though the server is another.
        save(&store, "session-1").map(|(_, dir)| store.keep_snapshot("m", &dir).unwrap()).unwrap();
        super::mark(&passing, 1).unwrap();
        let store = open();
        assert_eq!(store.expire(|_| true).len(), 2);
        assert!(!passing.exists());
        store.delete(&kept).unwrap();
        assert!(store.delete(&kept).is_err() && store.list("s-1:train:0").unwrap().is_empty());
        assert!(store.list("../s-1").is_err());
    }
}
