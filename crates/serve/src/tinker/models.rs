//! Models in training: one thread each, which works requests off in the order of their numbers.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use patchwright_core::TrainerError;

use super::{Learner, LoraSpec};
use crate::error::ApiError;

/// Requests of a model that wait at most.
const MAX_WAITING: usize = 4096;

/// A number that does not come holds those after it up for so long, then they go on without it:
/// its client gave it up.
const GAP: Duration = Duration::from_secs(20);

/// What is to be done with a model. Answers its future itself.
pub(super) type Job = Box<dyn FnOnce(&mut dyn Learner) + Send>;

/// A model in training.
pub(super) struct Model {
    pub session: String,
    pub base: String,
    pub lora: Option<LoraSpec>,
    jobs: Sender<(Option<u32>, Job)>,
    _thread: Thread,
}

/// Ends with its queue.
struct Thread(Option<JoinHandle<()>>);

impl Model {
    /// Starts a model whose learner `make` makes on its own thread; `made` hears of it.
    pub(super) fn start(
        session: String,
        base: String,
        lora: Option<LoraSpec>,
        make: impl FnOnce() -> Result<Box<dyn Learner>, TrainerError> + Send + 'static,
        made: impl FnOnce(Result<(), ApiError>) + Send + 'static,
    ) -> Result<Self, ApiError> {
        let (jobs, queue) = channel();
        let run = move || match make() {
            Ok(mut learner) => {
                made(Ok(()));
                work(learner.as_mut(), &queue);
            }
            Err(error) => made(Err(error.into())),
        };
        let thread = std::thread::Builder::new()
            .name("model".to_owned())
            .spawn(run)
            .map_err(|error| ApiError::internal(format!("cannot start a thread: {error}")))?;
        Ok(Self { session, base, lora, jobs, _thread: Thread(Some(thread)) })
    }

    /// Hands a job over, under its number.
    pub(super) fn push(&self, seq_id: Option<u32>, job: Job) -> Result<(), ApiError> {
        let ended = |_| ApiError::internal("the model has ended; its creation or a request failed");
        self.jobs.send((seq_id, job)).map_err(ended)
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        // The queue's other end goes with the model; the thread ends after its present job, which
        // nobody should wait for here. Dropping the handle lets it.
        drop(self.0.take());
    }
}

/// Works jobs off until nobody can send any more.
fn work(learner: &mut dyn Learner, queue: &Receiver<(Option<u32>, Job)>) {
    let mut waiting: BTreeMap<u32, Job> = BTreeMap::new();
    // The SDK counts from 1.
    let mut next = 1u32;
    let mut since = Instant::now();
    loop {
        if let Some(job) = waiting.remove(&next) {
            job(learner);
            (next, since) = (next.saturating_add(1), Instant::now());
            continue;
        }
        let received = if waiting.is_empty() {
            queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            queue.recv_timeout(GAP.saturating_sub(since.elapsed()))
        };
        match received {
            Ok((Some(number), job)) if number > next && waiting.len() < MAX_WAITING => {
                if waiting.is_empty() {
                    since = Instant::now();
                }
                waiting.insert(number, job);
            }
            Ok((number, job)) => {
                job(learner);
                if number == Some(next) {
                    (next, since) = (next.saturating_add(1), Instant::now());
                }
            }
            Err(RecvTimeoutError::Timeout) => {
                next = waiting.keys().next().copied().unwrap_or(next);
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
