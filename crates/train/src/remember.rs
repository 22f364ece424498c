//! Finished rollouts on the disk, so that an evaluation that was interrupted goes on.
//!
//! A line of JSON for each graded rollout, under its task and seed; the seed says everything else
//! (stage, set, run). A rollout that the infrastructure failed is not kept: it is run again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_core::Rollout;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, EnvironmentStats, RolloutSpec, Task};
use crate::error::TrainError;
use crate::events::CancelToken;

#[derive(Serialize, Deserialize)]
struct Line {
    seed: u64,
    rollout: Rollout,
}

/// Runs rollouts that are not known yet.
pub struct RememberingEnvironment {
    inner: Arc<dyn Environment>,
    known: HashMap<(String, u64), Rollout>,
    file: Mutex<File>,
    path: PathBuf,
}

impl RememberingEnvironment {
    /// Opens or makes the file. What a crash left of a last line is cut off.
    ///
    /// # Errors
    /// [`TrainError::Io`], and [`TrainError::Setup`] for a file of something else.
    pub fn open(path: &Path, inner: Arc<dyn Environment>) -> Result<Self, TrainError> {
        let io = || TrainError::io(path);
        let mut options = OpenOptions::new();
        let mut file =
            options.read(true).write(true).create(true).truncate(false).open(path).map_err(io())?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(io())?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let mut known = HashMap::new();
        for (n, line) in text[..whole].split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            let Line { seed, rollout } = serde_json::from_slice(line).map_err(|error| {
                let reason =
                    format!("line {} is no rollout ({error}); name another directory", n + 1);
                TrainError::setup(path.display().to_string(), reason)
            })?;
            known.insert((rollout.instance_id.clone(), seed), rollout);
        }
        file.set_len(whole as u64).map_err(io())?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(io())?;
        Ok(Self { inner, known, file: Mutex::new(file), path: path.to_owned() })
    }

    /// Rollouts that were there when it was opened.
    pub fn num_known(&self) -> usize {
        self.known.len()
    }

    fn keep(&self, seed: u64, rollout: &Rollout) -> Result<(), TrainError> {
        let line = Line { seed, rollout: rollout.clone() };
        let mut text = serde_json::to_vec(&line).map_err(|error| {
            TrainError::setup(self.path.display().to_string(), error.to_string())
        })?;
        text.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&text).map_err(TrainError::io(&self.path))
    }
}

impl Environment for RememberingEnvironment {
    fn rollout(&self, task: &Task, spec: &RolloutSpec, cancel: &CancelToken) -> Rollout {
        let key = (task.instance.instance_id.clone(), spec.seed);
        if let Some(known) = self.known.get(&key) {
            return known.clone();
        }
        let rollout = self.inner.rollout(task, spec, cancel);
        let failed = rollout.solved.is_none() || cancel.is_cancelled();
        if !failed && let Err(error) = self.keep(spec.seed, &rollout) {
            // The result stands; only a resume would run it again.
            eprintln!("note: {error}");
        }
        rollout
    }

    fn limits_rung(&self) -> Option<&str> {
        self.inner.limits_rung()
    }

    fn stats(&self) -> EnvironmentStats {
        self.inner.stats()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use patchwright_core::{
        FailureClass, PolicyVersion, RepoSource, Rollout, RolloutStatus, TaskInstance,
    };

    use super::RememberingEnvironment;
    use crate::environment::{Environment, RolloutSpec, Task, failed_rollout};
    use crate::events::CancelToken;

    /// Seed 3 fails in the infrastructure; others are solved where the seed is even.
    struct Counting(AtomicUsize);

    impl Environment for Counting {
        fn rollout(&self, task: &Task, spec: &RolloutSpec, _: &CancelToken) -> Rollout {
            self.0.fetch_add(1, Ordering::SeqCst);
            let failed = failed_rollout(task, spec, FailureClass::Engine, "down".to_owned());
            if spec.seed == 3 {
                return failed;
            }
            let solved = Some(spec.seed.is_multiple_of(2));
            Rollout { solved, status: RolloutStatus::Submitted, failure: None, ..failed }
        }
    }

    fn spec(seed: u64) -> RolloutSpec {
        RolloutSpec {
            sibling: 0,
            session: seed,
            seed,
            policy_version: PolicyVersion(0),
            max_turns: 1,
            context_tokens: 1,
            temperature: 1.0,
            demonstration: false,
        }
    }

    #[test]
    fn what_was_graded_is_not_run_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rollouts.jsonl");
        let instance = TaskInstance { instance_id: "a".into(), ..TaskInstance::default() };
        let task = Task { instance, repo: RepoSource::InRoot };
        let run = |seeds: std::ops::Range<u64>| {
            let inner = Arc::new(Counting(AtomicUsize::new(0)));
            let environment = RememberingEnvironment::open(&path, inner.clone()).unwrap();
            let cancel = CancelToken::default();
            let rollouts: Vec<Rollout> =
                seeds.map(|seed| environment.rollout(&task, &spec(seed), &cancel)).collect();
            (rollouts, inner.0.load(Ordering::SeqCst), environment.num_known())
        };
        let (first, num_run, num_known) = run(0..4);
        assert_eq!((num_run, num_known), (4, 0));
        // A crash in the middle of a line.
        let mut text = std::fs::read(&path).unwrap();
        text.extend(b"{\"seed\":9,\"roll");
        std::fs::write(&path, text).unwrap();
        let (second, num_run, num_known) = run(0..6);
        assert_eq!((num_run, num_known), (3, 3), "the failed one, and two new ones");
        assert_eq!(second[..4], first[..]);
        assert_eq!(run(0..6).1, 1);
        std::fs::write(&path, "what?\n").unwrap();
        let inner = Arc::new(Counting(AtomicUsize::new(0)));
        assert!(RememberingEnvironment::open(&path, inner).is_err());
    }
}
