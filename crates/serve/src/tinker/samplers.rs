//! Samplers in memory: made when they are first asked, let go of by age, number and size.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use patchwright_core::Sampler;

use super::{Backend, weights};
use crate::error::ApiError;
use crate::text::ModelText;

/// What is sampled from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    pub base: String,
    /// The weights' directory; `None`: the base model's own.
    pub dir: Option<PathBuf>,
    /// As the client named it.
    pub path: Option<String>,
}

/// Samplers by what they sample from.
pub(super) struct Samplers {
    backend: Arc<dyn Backend>,
    max: usize,
    max_bytes: u64,
    /// The one used last is at the end.
    loaded: Mutex<Vec<Loaded>>,
}

struct Loaded {
    source: Source,
    sampler: Arc<dyn Sampler>,
    /// Size of the weights' files.
    num_bytes: u64,
    used: Instant,
}

/// A sampler beside the one that is asked now, so that two weights may be asked by turns.
const NUM_KEPT: usize = 1;

impl Samplers {
    /// At most `max` samplers, of weights of `max_bytes` in all; but one beside the newest stays,
    /// however large.
    pub(super) fn new(backend: Arc<dyn Backend>, max: usize, max_bytes: u64) -> Self {
        Self { backend, max: max.max(1), max_bytes, loaded: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Loaded>> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sampler of a source. Blocks while it is loaded; others wait meanwhile, so that no
    /// weights are loaded twice.
    pub(super) fn get(&self, source: &Source) -> Result<Arc<dyn Sampler>, ApiError> {
        let Some(dir) = source.dir.as_deref() else {
            // The base model's stays in memory anyhow.
            return Ok(self.backend.sampler(&source.base, None)?);
        };
        let mut loaded = self.lock();
        if let Some(at) = loaded.iter().position(|known| known.source == *source) {
            let mut known = loaded.remove(at);
            known.used = Instant::now();
            let sampler = Arc::clone(&known.sampler);
            loaded.push(known);
            return Ok(sampler);
        }
        let num_bytes = weights::num_bytes(dir);
        // Room is made first. Requests in flight hold their sampler until they are done.
        while loaded.len() >= self.max
            || (loaded.len() > NUM_KEPT && sum_of_bytes(&loaded) + num_bytes > self.max_bytes)
        {
            loaded.remove(0);
        }
        let sampler = self.backend.sampler(&source.base, Some(dir))?;
        loaded.push(Loaded {
            source: source.clone(),
            sampler: Arc::clone(&sampler),
            num_bytes,
            used: Instant::now(),
        });
        Ok(sampler)
    }

    /// Lets go of weights whose directories are gone, and of what nobody asked for so long. A
    /// later request loads them anew.
    pub(super) fn expire(&self, gone: &[PathBuf], idle: Duration) {
        let is_gone = |dir: &Path| gone.iter().any(|gone| gone == dir);
        self.lock().retain(|known| {
            known.used.elapsed() < idle && !known.source.dir.as_deref().is_some_and(is_gone)
        });
    }

    pub(super) fn text(&self, base: &str) -> Option<Arc<ModelText>> {
        self.backend.text(base)
    }
}

fn sum_of_bytes(loaded: &[Loaded]) -> u64 {
    loaded.iter().map(|known| known.num_bytes).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use patchwright_core::{Completion, SampleRequest, SamplerError, TrainerError};

    use super::super::{BaseModel, Learner, LoraSpec};
    use super::*;

    struct Silent;

    impl Sampler for Silent {
        fn sample(&self, _request: &SampleRequest) -> Result<Completion, SamplerError> {
            Ok(Completion::default())
        }

        fn end_session(&self, _session: u64) {}

        fn max_context(&self) -> usize {
            1
        }
    }

    /// Counts what it loads.
    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Backend for Counting {
        fn base_models(&self) -> Vec<BaseModel> {
            Vec::new()
        }

        fn learner(
            &self,
            base: &str,
            _lora: Option<LoraSpec>,
        ) -> Result<Box<dyn Learner>, TrainerError> {
            Err(TrainerError::BadInput(format!("{base} is not trained here")))
        }

        fn sampler(
            &self,
            _base: &str,
            weights: Option<&Path>,
        ) -> Result<Arc<dyn Sampler>, TrainerError> {
            self.0.fetch_add(usize::from(weights.is_some()), Ordering::Relaxed);
            Ok(Arc::new(Silent))
        }

        fn text(&self, _base: &str) -> Option<Arc<ModelText>> {
            None
        }
    }

    struct Place {
        _dir: tempfile::TempDir,
        backend: Arc<Counting>,
        sources: Vec<Source>,
    }

    impl Place {
        fn num_loads(&self) -> usize {
            self.backend.0.load(Ordering::Relaxed)
        }
    }

    /// Weights of 1,000 bytes each.
    fn place(num_sources: usize) -> Place {
        let dir = tempfile::tempdir().unwrap();
        let source = |i: usize| {
            let weights = dir.path().join(i.to_string());
            std::fs::create_dir(&weights).unwrap();
            std::fs::write(weights.join("model.safetensors"), [0; 1000]).unwrap();
            Source { base: "base".to_owned(), dir: Some(weights), path: None }
        };
        let sources = (0..num_sources).map(source).collect();
        Place { _dir: dir, backend: Arc::default(), sources }
    }

    #[test]
    fn what_was_asked_longest_ago_makes_room_by_number_and_by_size() {
        for (max, max_bytes) in [(3, u64::MAX), (8, 3000)] {
            let place = place(4);
            let samplers = Samplers::new(place.backend.clone(), max, max_bytes);
            for source in &place.sources[..3] {
                samplers.get(source).unwrap();
            }
            samplers.get(&place.sources[0]).unwrap();
            assert_eq!(place.num_loads(), 3);
            samplers.get(&place.sources[3]).unwrap();
            samplers.get(&place.sources[0]).unwrap();
            assert_eq!(place.num_loads(), 4);
            samplers.get(&place.sources[1]).unwrap();
            assert_eq!(place.num_loads(), 5);
        }
    }

    #[test]
    fn two_stay_that_are_asked_by_turns_however_large() {
        let place = place(2);
        let samplers = Samplers::new(place.backend.clone(), 8, 10);
        for _ in 0..3 {
            place.sources.iter().for_each(|source| drop(samplers.get(source).unwrap()));
        }
        assert_eq!(place.num_loads(), 2);
    }

    #[test]
    fn what_is_gone_or_idle_is_let_go_of_and_the_base_model_is_not_loaded_twice() {
        let place = place(2);
        let samplers = Samplers::new(place.backend.clone(), 8, u64::MAX);
        place.sources.iter().for_each(|source| drop(samplers.get(source).unwrap()));
        let gone: Vec<PathBuf> = place.sources[0].dir.clone().into_iter().collect();
        samplers.expire(&gone, Duration::MAX);
        samplers.get(&place.sources[1]).unwrap();
        assert_eq!(place.num_loads(), 2);
        samplers.get(&place.sources[0]).unwrap();
        assert_eq!(place.num_loads(), 3);
        samplers.expire(&[], Duration::ZERO);
        assert!(samplers.lock().is_empty());
        samplers.get(&Source { base: "base".to_owned(), dir: None, path: None }).unwrap();
        assert!(samplers.lock().is_empty());
    }
}
