//! A trainer whose weights go to servers whenever they are published or loaded.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use patchwright_core::{
    AdamParams, ForwardBackward, Objective, OptimStats, PolicyVersion, SampleRequest, Trainer,
    TrainerError, TrainingSample,
};

use super::load::{LoadAs, Loading};
use super::{SyncOptions, SyncReport, write_output_head};
use crate::http::{FailureKind, HttpClient, HttpFailure};
use crate::replicas::{Healthy, Readmit, Served};
use crate::sampler::RemoteSampler;

/// Versions that stay on the disk: the current one, and the one before, which a request in flight
/// may still use as an adapter.
const NUM_KEPT: usize = 2;

/// Told of each version that was brought over.
pub type Listener = Box<dyn Fn(&SyncReport) + Send>;

/// Writes a trainer's weights, or its adapter, to a new directory.
pub type Writer<T> = fn(&mut T, &Path) -> Result<(), TrainerError>;

/// What every replica must have.
#[derive(Clone)]
struct Current {
    dir: PathBuf,
    tag: String,
    /// The trainer's log-probabilities of the probe.
    logprobs: Vec<f32>,
}

/// How one server is given the current weights, and must prove that it has them.
struct Bringer {
    sampler: Weak<RemoteSampler>,
    options: SyncOptions,
    current: Mutex<Option<Current>>,
}

/// Passes everything on to a trainer, and its weights to a sampler's servers.
pub struct SyncedTrainer<T> {
    inner: T,
    writer: Writer<T>,
    sampler: Arc<RemoteSampler>,
    bringer: Arc<Bringer>,
    /// Directories written so far, oldest first, with the names they were loaded under.
    written: Vec<(PathBuf, String)>,
    /// Part of the names, so that no other run's weights, nor what a server cached of them, have
    /// the same.
    nonce: u128,
    listener: Listener,
}

impl<T: Trainer> SyncedTrainer<T> {
    /// Joins both and brings the trainer's present weights over: a server's own are never trusted.
    /// `writer` writes what [`SyncOptions::load_as`] says, and no other weights beside: vLLM loads
    /// every safetensors file of a directory.
    ///
    /// # Errors
    /// [`TrainerError::Engine`] when no server has the weights then, [`TrainerError::Checkpoint`]
    /// when they cannot be written.
    pub fn new(
        inner: T,
        writer: Writer<T>,
        sampler: Arc<RemoteSampler>,
        options: SyncOptions,
        listener: Listener,
    ) -> Result<Self, TrainerError> {
        if options.probe.len() < 2 {
            let reason = "a probe of at least two tokens is needed";
            return Err(TrainerError::BadInput(reason.to_owned()));
        }
        let bringer = Arc::new(Bringer {
            sampler: Arc::downgrade(&sampler),
            options,
            current: Mutex::new(None),
        });
        sampler.replicas().set_readmit(Arc::clone(&bringer) as Arc<dyn Readmit>);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let nonce = now.as_micros() << 16 | u128::from(std::process::id() & 0xffff);
        let written = Vec::new();
        let mut synced = Self { inner, writer, sampler, bringer, written, nonce, listener };
        synced.bring_over()?;
        Ok(synced)
    }

    /// Writes the weights down and brings them to every replica.
    fn bring_over(&mut self) -> Result<(), TrainerError> {
        let version = self.inner.policy_version();
        let start = Instant::now();
        let (dir, tag) = self.save_new(version)?;
        let save_seconds = start.elapsed().as_secs_f64();
        let probe = self.bringer.options.probe.clone();
        let ones = vec![1.0; probe.len()];
        let mut logprobs = self.inner.forward(&[TrainingSample::supervised(probe, ones)])?;
        let logprobs = logprobs.pop().unwrap_or_default();
        let current = Current { dir: dir.clone(), tag: tag.clone(), logprobs };
        let is_adapter = self.bringer.options.load_as == LoadAs::Adapter;
        let before = self.sampler.replicas().served();
        let served = Served {
            model: if is_adapter { tag.clone() } else { before.model.clone() },
            policy_version: version,
            // An adapter's name is part of every request; versions are the base weights' then.
            tag: (!is_adapter).then_some(tag),
        };
        *self.bringer.lock() = Some(current.clone());
        let differences = Mutex::new(BTreeMap::new());
        let bringer = &self.bringer;
        let load = |client: &HttpClient| {
            let (fingerprint, difference) = bringer.bring(client, &served, &current)?;
            let mut differences = differences.lock().unwrap_or_else(PoisonError::into_inner);
            differences.insert(client.base_url().to_owned(), difference);
            Ok(fingerprint)
        };
        let drain = bringer.options.drain;
        let report = self
            .sampler
            .replicas()
            .update(served.clone(), drain, is_adapter, &load)
            .map_err(|failure| engine(version, &failure))?;
        let differences = differences.into_inner().unwrap_or_else(PoisonError::into_inner);
        let clients = self.sampler.replicas().clients();
        let outcomes = report.results.into_iter().zip(&clients).filter_map(|(result, client)| {
            let url = client.base_url();
            let difference = differences.get(url).copied().unwrap_or(f32::NAN);
            let outcome = result?.map(|_| difference).map_err(|failure| failure.to_string());
            Some((url.to_owned(), outcome))
        });
        (self.listener)(&SyncReport {
            policy_version: version,
            dir,
            save_seconds,
            load_seconds: report.wall_seconds,
            replicas: outcomes.collect(),
        });
        self.forget_old(is_adapter);
        Ok(())
    }

    /// A new directory with the weights, and the name that no other of this run's has.
    fn save_new(&mut self, version: PolicyVersion) -> Result<(PathBuf, String), TrainerError> {
        let root = &self.bringer.options.dir;
        let failed = |error: &dyn std::fmt::Display| TrainerError::Checkpoint {
            path: root.display().to_string(),
            reason: format!("the directory shared with the servers: {error}"),
        };
        std::fs::create_dir_all(root).map_err(|error| failed(&error))?;
        let root = root.canonicalize().map_err(|error| failed(&error))?;
        // A resumed run makes a version again that its predecessor may have written.
        for n in 0..10_000 {
            let tag = format!("patchwright-{:x}-{version}-{n}", self.nonce);
            let dir = root.join(&tag);
            if !dir.exists() {
                (self.writer)(&mut self.inner, &dir)?;
                if self.bringer.options.load_as == LoadAs::Weights {
                    write_output_head(&dir).map_err(|error| failed(&error))?;
                }
                self.written.push((dir.clone(), tag.clone()));
                return Ok((dir, tag));
            }
        }
        Err(failed(&"it is full of older versions; empty it"))
    }

    fn forget_old(&mut self, is_adapter: bool) {
        while self.written.len() > NUM_KEPT {
            let (dir, tag) = self.written.remove(0);
            if is_adapter {
                for client in self.sampler.replicas().clients() {
                    Loading { client: &client, timeout: self.bringer.options.load_timeout }
                        .unload_adapter(&tag);
                }
            }
            // What cannot be deleted only takes room.
            let _ = std::fs::remove_dir_all(dir);
        }
    }
}

/// The servers keep what they loaded; the directories were only the way there.
impl<T> Drop for SyncedTrainer<T> {
    fn drop(&mut self) {
        for (dir, _) in self.written.drain(..) {
            let _ = std::fs::remove_dir_all(dir);
        }
        // Only if nothing else is in it.
        let _ = std::fs::remove_dir(&self.bringer.options.dir);
    }
}

fn engine(version: PolicyVersion, failure: &HttpFailure) -> TrainerError {
    TrainerError::Engine(format!("no server took the weights of version {version}: {failure}"))
}

impl Bringer {
    fn lock(&self) -> MutexGuard<'_, Option<Current>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads the weights at a server and compares it with the trainer; gives a fingerprint of what
    /// was loaded and the largest difference.
    fn bring(
        &self,
        client: &HttpClient,
        served: &Served,
        current: &Current,
    ) -> Result<(String, f32), HttpFailure> {
        let sampler = self.sampler()?;
        let loading = Loading { client, timeout: self.options.load_timeout };
        let (dialect, how) = (sampler.dialect(), self.options.load_as);
        let fingerprint = loading.load(dialect, how, &current.dir, &current.tag)?;
        Ok((fingerprint, self.compare(&sampler, client, served, current)?))
    }

    /// The largest difference between the trainer's and a server's log-probabilities of the probe.
    fn compare(
        &self,
        sampler: &RemoteSampler,
        client: &HttpClient,
        served: &Served,
        current: &Current,
    ) -> Result<f32, HttpFailure> {
        let request = SampleRequest {
            context: self.options.probe.clone(),
            max_tokens: 1,
            prompt_logprobs: true,
            ..SampleRequest::default()
        };
        let completion = sampler.sample_at(client, served, &request)?;
        let pairs = current.logprobs.iter().zip(&completion.prompt_logprobs).skip(1);
        let differences = pairs.map(|(a, b)| (a - b).abs());
        // NaN is not below any bound.
        let difference = differences.fold(0.0, |max: f32, d| if d <= max { max } else { d });
        let bound = self.options.max_difference;
        if difference <= bound {
            return Ok(difference);
        }
        let reason = format!(
            "its log-probabilities of the probe differ from the trainer's by {difference}, the \
             bound is {bound}: it serves other weights"
        );
        Err(HttpFailure::new(FailureKind::WrongWeights, client.base_url(), reason))
    }

    fn sampler(&self) -> Result<Arc<RemoteSampler>, HttpFailure> {
        self.sampler.upgrade().ok_or_else(|| {
            HttpFailure::new(FailureKind::Cancelled, "update", "the sampler is gone")
        })
    }
}

/// A replica that was down serves again once it has proven to have the current weights; one that
/// was started anew is given them.
impl Readmit for Bringer {
    fn readmit(&self, client: &HttpClient, served: &Served) -> Result<(), HttpFailure> {
        Healthy.readmit(client, served)?;
        let Some(current) = self.lock().clone() else {
            let reason = "no weights were brought over yet";
            return Err(HttpFailure::new(FailureKind::WrongWeights, client.base_url(), reason));
        };
        let sampler = self.sampler()?;
        match self.compare(&sampler, client, served, &current) {
            Ok(_) => Ok(()),
            Err(_) => self.bring(client, served, &current).map(|_| ()),
        }
    }
}

impl<T: Trainer> Trainer for SyncedTrainer<T> {
    fn forward_backward(
        &mut self,
        samples: &[TrainingSample],
        objective: &dyn Objective,
    ) -> Result<ForwardBackward, TrainerError> {
        self.inner.forward_backward(samples, objective)
    }

    fn forward(&mut self, samples: &[TrainingSample]) -> Result<Vec<Vec<f32>>, TrainerError> {
        self.inner.forward(samples)
    }

    fn optim_step(&mut self, params: &AdamParams) -> Result<OptimStats, TrainerError> {
        self.inner.optim_step(params)
    }

    fn save(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.inner.save(dir)
    }

    fn load(&mut self, dir: &Path) -> Result<(), TrainerError> {
        self.inner.load(dir)?;
        self.bring_over()
    }

    fn publish(&mut self) -> Result<PolicyVersion, TrainerError> {
        let version = self.inner.publish()?;
        self.bring_over()?;
        Ok(version)
    }

    fn reset_optimizer(&mut self) {
        self.inner.reset_optimizer();
    }

    fn policy_version(&self) -> PolicyVersion {
        self.inner.policy_version()
    }
}
