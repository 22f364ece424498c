//! The embedded sampler: the face that many threads call, and its statistics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use patchwright_core::{
    Completion, DrawnToken, PolicyVersion, SampleRequest, Sampler, SamplerError,
};

use crate::engine::EngineOptions;
use crate::kv_cache::PAGE;
use crate::scheduler::{Command, Scheduler};
use crate::sequence::{Listener, TokenBytes};
use crate::weights::{Model, Weights};

/// How often a waiting caller asks whether its request is cancelled.
const CANCEL_INTERVAL: Duration = Duration::from_millis(50);

/// Samples from the published weights; see [`Sampler`].
///
/// One thread owns the caches and batches all requests: each step runs a chunk of every new
/// context and one token of every other sequence. Keys and values are kept, as far as there is
/// room, for whoever comes with the same prefix: turns, siblings, forks. A completion depends on
/// its request and the weights only, bit for bit, whatever else is in the batch or the cache.
pub struct EmbeddedSampler {
    model: Arc<Model>,
    max_pages: usize,
    token_bytes: Arc<OnceLock<TokenBytes>>,
    num_tickets: AtomicU64,
    commands: Sender<Command>,
    stats: Arc<Counters>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a sampler has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplerStats {
    /// Tokens drawn.
    pub num_sampled_tokens: u64,
    /// Context tokens computed.
    pub num_prefill_tokens: u64,
    /// Context tokens taken from the cache instead.
    pub num_reused_tokens: u64,
    /// Times that a sequence gave up its place for want of room, to go on later.
    pub num_preemptions: u64,
    /// Tokens that such sequences, and those in flight when weights were swapped, computed again.
    pub num_recomputed_tokens: u64,
    /// Tokens whose keys and values were evicted (in whole pages).
    pub num_evicted_tokens: u64,
    /// Forward passes.
    pub num_steps: u64,
    /// Completions given.
    pub num_completions: u64,
    /// Time in forward passes.
    pub busy: Duration,
    /// Most tokens that were cached at once (in whole pages).
    pub cached_tokens_max: u64,
}

impl SamplerStats {
    /// Share of context tokens that were taken from the cache, 0 to 1; 0 before there are any.
    pub fn hit_rate(&self) -> f64 {
        let total = self.num_reused_tokens + self.num_prefill_tokens;
        if total == 0 { 0.0 } else { self.num_reused_tokens as f64 / total as f64 }
    }
}

/// [`SamplerStats`] while they grow.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub sampled_tokens: AtomicU64,
    pub prefill_tokens: AtomicU64,
    pub reused_tokens: AtomicU64,
    pub preemptions: AtomicU64,
    pub restored_tokens: AtomicU64,
    pub recomputed_tokens: AtomicU64,
    pub evicted_pages: AtomicU64,
    pub steps: AtomicU64,
    pub completions: AtomicU64,
    pub busy_nanos: AtomicU64,
    pub pages_max: AtomicU64,
}

impl EmbeddedSampler {
    pub(crate) fn new(
        weights: Arc<Weights>,
        version: PolicyVersion,
        options: &EngineOptions,
    ) -> Result<Arc<Self>, SamplerError> {
        let (commands, receiver) = channel();
        let stats = Arc::new(Counters::default());
        let model = Arc::clone(&weights.model);
        let token_bytes = Arc::new(OnceLock::new());
        let (bytes, counters) = (Arc::clone(&token_bytes), Arc::clone(&stats));
        let scheduler = Scheduler::new(weights, version, options, bytes, counters, receiver);
        let start = |e: &dyn std::fmt::Display| {
            SamplerError::Engine(format!("cannot start the sampling threads: {e}"))
        };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.num_threads)
            .thread_name(|i| format!("sampler-{i}"))
            .build()
            .map_err(|e| start(&e))?;
        // The scheduler is one of the pool's threads: a share of a step that no other thread has
        // begun, because the machine is busy, it computes itself.
        let thread = std::thread::Builder::new()
            .name("sampler".to_owned())
            .spawn(move || pool.install(|| scheduler.run()))
            .map_err(|e| start(&e))?;
        Ok(Arc::new(Self {
            model,
            max_pages: options.max_cached_tokens / PAGE,
            token_bytes,
            num_tickets: AtomicU64::new(0),
            commands,
            stats,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// Tells the bytes of each token, in the order of ids, which stop strings are looked for in;
    /// a token without text has none. Ids past its end have none either.
    ///
    /// # Errors
    /// [`SamplerError::BadRequest`] when there are more than the model's tokens, or when other
    /// bytes were told before.
    pub fn set_token_bytes(&self, bytes: Vec<Vec<u8>>) -> Result<(), SamplerError> {
        let vocab = self.model.config.vocab_size;
        if bytes.len() > vocab {
            let reason = format!("bytes of {} tokens, the model has {vocab}", bytes.len());
            return Err(SamplerError::BadRequest(reason));
        }
        let bytes: TokenBytes = bytes.into_iter().map(Vec::into_boxed_slice).collect();
        if *self.token_bytes.get_or_init(|| Arc::clone(&bytes)) == bytes {
            Ok(())
        } else {
            let reason = "the bytes of the tokens were set before, to others".to_owned();
            Err(SamplerError::BadRequest(reason))
        }
    }

    /// Serves other weights from now on: as [`WeightSwap`](crate::WeightSwap) says. Nothing that
    /// was computed with the old weights is used after it.
    pub(crate) fn publish(
        &self,
        weights: Arc<Weights>,
        version: PolicyVersion,
    ) -> Result<(), SamplerError> {
        let (done, wait) = sync_channel(1);
        self.commands.send(Command::Publish { weights, version, done }).map_err(|_| ended())?;
        wait.recv().map_err(|_| ended())
    }

    /// What was done so far.
    pub fn stats(&self) -> SamplerStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SamplerStats {
            num_sampled_tokens: get(&self.stats.sampled_tokens),
            num_prefill_tokens: get(&self.stats.prefill_tokens),
            num_reused_tokens: get(&self.stats.reused_tokens),
            num_preemptions: get(&self.stats.preemptions),
            num_recomputed_tokens: get(&self.stats.recomputed_tokens),
            num_evicted_tokens: get(&self.stats.evicted_pages) * PAGE as u64,
            num_steps: get(&self.stats.steps),
            num_completions: get(&self.stats.completions),
            busy: Duration::from_nanos(get(&self.stats.busy_nanos)),
            cached_tokens_max: get(&self.stats.pages_max) * PAGE as u64,
        }
    }

    /// Hands a valid request over; the answer will come.
    fn send(
        &self,
        request: &SampleRequest,
        listener: Option<Listener>,
    ) -> Result<(u64, Answer), SamplerError> {
        self.check(request)?;
        let (reply, wait) = sync_channel(1);
        let ticket = self.num_tickets.fetch_add(1, Ordering::Relaxed);
        let command = Command::Sample { ticket, request: request.clone(), reply, listener };
        self.commands.send(command).map_err(|_| ended())?;
        Ok((ticket, wait))
    }

    fn check(&self, request: &SampleRequest) -> Result<(), SamplerError> {
        let config = &self.model.config;
        let bad = |reason: String| Err(SamplerError::BadRequest(reason));
        let length = request.context.len();
        if length == 0 {
            return bad("the context is empty; give at least one token".to_owned());
        }
        if length >= config.max_position_embeddings {
            return bad(format!(
                "the context has {length} tokens, which leaves no room in the {} of the model",
                config.max_position_embeddings
            ));
        }
        let mut tokens = request.context.iter().chain(&request.stop_tokens);
        if let Some(token) = tokens.find(|t| **t as usize >= config.vocab_size) {
            return bad(format!("token {token} is not one of the model's {}", config.vocab_size));
        }
        if request.max_tokens == 0 {
            return bad("max_tokens is 0, expected at least 1".to_owned());
        }
        if request.stop_strings.iter().any(Vec::is_empty) {
            return bad("a stop string is empty; leave it out".to_owned());
        }
        if !request.stop_strings.is_empty() && self.token_bytes.get().is_none() {
            return bad(
                "stop strings need the bytes of the tokens: call set_token_bytes".to_owned()
            );
        }
        let temperature = request.params.temperature;
        if !(temperature.is_finite() && temperature >= 0.0) {
            return bad(format!("temperature is {temperature}, expected 0 or more"));
        }
        let most = (length + request.max_tokens).min(config.max_position_embeddings);
        if most.div_ceil(PAGE) > self.max_pages {
            return bad(format!(
                "needs a cache of {most} tokens, more than max_cached_tokens ({})",
                self.max_pages * PAGE
            ));
        }
        Ok(())
    }
}

impl Sampler for EmbeddedSampler {
    fn sample(&self, request: &SampleRequest) -> Result<Completion, SamplerError> {
        let (_, wait) = self.send(request, None)?;
        wait.recv().map_err(|_| ended())?
    }

    fn sample_cancellable(
        &self,
        request: &SampleRequest,
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        if is_cancelled() {
            return Err(SamplerError::Cancelled);
        }
        let (ticket, wait) = self.send(request, None)?;
        loop {
            match wait.recv_timeout(CANCEL_INTERVAL) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(ended()),
                Err(RecvTimeoutError::Timeout) if is_cancelled() => {
                    self.commands.send(Command::Cancel { ticket }).map_err(|_| ended())?;
                    // The answer is that it was cancelled, or that it was finished just before.
                    return wait.recv().map_err(|_| ended())?;
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn sample_streaming(
        &self,
        request: &SampleRequest,
        on_token: &mut dyn FnMut(&DrawnToken),
        is_cancelled: &dyn Fn() -> bool,
    ) -> Result<Completion, SamplerError> {
        if is_cancelled() {
            return Err(SamplerError::Cancelled);
        }
        let (listener, tokens) = channel();
        let (ticket, wait) = self.send(request, Some(listener))?;
        let mut asked = Instant::now();
        let mut is_withdrawn = false;
        loop {
            match tokens.recv_timeout(CANCEL_INTERVAL) {
                Ok(drawn) => on_token(&drawn),
                // The sequence is gone: it has been answered, or the thread has ended.
                Err(RecvTimeoutError::Disconnected) => return wait.recv().map_err(|_| ended())?,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if !is_withdrawn && asked.elapsed() >= CANCEL_INTERVAL {
                asked = Instant::now();
                if is_cancelled() {
                    is_withdrawn = true;
                    self.commands.send(Command::Cancel { ticket }).map_err(|_| ended())?;
                }
            }
        }
    }

    fn end_session(&self, session: u64) {
        // A sampler that has ended has no sessions.
        let _ = self.commands.send(Command::EndSession(session));
    }

    fn max_context(&self) -> usize {
        self.model.config.max_position_embeddings
    }
}

impl Drop for EmbeddedSampler {
    fn drop(&mut self) {
        let _ = self.commands.send(Command::Stop);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic there was already told to every caller as an ended sampler.
            let _ = thread.join();
        }
    }
}

/// Where the answer to a request comes.
type Answer = Receiver<Result<Completion, SamplerError>>;

fn ended() -> SamplerError {
    SamplerError::Engine("the sampling thread has ended".to_owned())
}
