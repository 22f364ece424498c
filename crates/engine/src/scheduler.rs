//! The thread behind the sampler: admits requests, forms the batch of each step, keeps caches.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use patchwright_core::{Completion, FinishReason, PolicyVersion, SampleRequest, SamplerError};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::decode::{DecodeWorkspace, Drawn, Run};
use crate::engine::EngineOptions;
use crate::kv_cache::{CachedSequence, PAGE, PageAllocator, PageShape, common_prefix};
use crate::sampler::Counters;
use crate::weights::Weights;

/// A request waits for a sequence that is computing a prefix they share when that saves at least
/// this many tokens.
const WORTH_WAITING_TOKENS: usize = 8;

/// Least number of tokens that are worth another thread.
const MIN_SHARD_TOKENS: usize = 4;

/// Caches of ended sessions that are kept for siblings to come.
const MAX_ENDED_SESSIONS: usize = 64;

/// What the face asks of the thread.
pub(crate) enum Command {
    Sample { request: SampleRequest, reply: SyncSender<Result<Completion, SamplerError>> },
    EndSession(u64),
    Publish { weights: Arc<Weights>, version: PolicyVersion, done: SyncSender<()> },
    Stop,
}

/// A request being drawn.
struct Active {
    run: Run,
    request: SampleRequest,
    reply: SyncSender<Result<Completion, SamplerError>>,
    logprobs: Vec<f32>,
    /// Pages it may come to hold.
    max_pages: usize,
    /// Its session ended meanwhile.
    ended: bool,
}

impl Active {
    fn is_prefilling(&self) -> bool {
        self.run.tokens.len() - self.run.cache.tokens.len() > 1
    }
}

/// The cache of a session between two requests.
struct Idle {
    cache: CachedSequence,
    last_used: u64,
    ended: bool,
}

struct Waiting {
    request: SampleRequest,
    reply: SyncSender<Result<Completion, SamplerError>>,
}

struct Publication {
    weights: Arc<Weights>,
    version: PolicyVersion,
    done: SyncSender<()>,
}

/// What one thread computes of a step.
#[derive(Default)]
struct Shard<'a> {
    num_tokens: usize,
    /// Places of the runs among the active requests.
    indices: Vec<usize>,
    runs: Vec<&'a mut Run>,
}

impl<'a> Shard<'a> {
    fn push(&mut self, index: usize, run: &'a mut Run) {
        self.num_tokens += run.count;
        self.indices.push(index);
        self.runs.push(run);
    }
}

/// Shares runs out in about equal numbers of tokens. Chunks of contexts go to whoever has least;
/// single tokens follow in the order of their first page, so that siblings, which share pages, are
/// computed next to each other while the pages are in cache.
fn share_out(runs: Vec<(usize, &mut Run)>, num_shards: usize) -> Vec<Shard<'_>> {
    let total: usize = runs.iter().map(|(_, run)| run.count).sum();
    // A thread is not woken for less than this.
    let num_shards = num_shards.min(total.div_ceil(MIN_SHARD_TOKENS)).max(1);
    let mut shards: Vec<Shard> = (0..num_shards).map(|_| Shard::default()).collect();
    let (mut chunks, mut singles): (Vec<_>, Vec<_>) =
        runs.into_iter().partition(|(_, run)| run.count > 1);
    chunks.sort_by_key(|(index, run)| (std::cmp::Reverse(run.count), *index));
    for (index, run) in chunks {
        if let Some(shard) = shards.iter_mut().min_by_key(|shard| shard.num_tokens) {
            shard.push(index, run);
        }
    }
    singles.sort_by_key(|(index, run)| (run.cache.pages.first().map(Arc::as_ptr), *index));
    let mut current = 0;
    for (index, run) in singles {
        while current + 1 < num_shards && shards[current].num_tokens >= total.div_ceil(num_shards) {
            current += 1;
        }
        shards[current].push(index, run);
    }
    shards
}

pub(crate) struct Scheduler {
    weights: Arc<Weights>,
    version: PolicyVersion,
    receiver: Receiver<Command>,
    allocator: PageAllocator,
    max_pages: usize,
    max_step_tokens: usize,
    workspaces: Vec<DecodeWorkspace>,
    stats: Arc<Counters>,
    waiting: VecDeque<Waiting>,
    active: Vec<Active>,
    idle: HashMap<u64, Idle>,
    publications: VecDeque<Publication>,
    /// Counts admissions and completions, for least-recently-used.
    clock: u64,
    stopping: bool,
}

impl Scheduler {
    pub(crate) fn new(
        weights: Arc<Weights>,
        version: PolicyVersion,
        options: &EngineOptions,
        stats: Arc<Counters>,
        receiver: Receiver<Command>,
    ) -> Self {
        let workspaces = (0..options.num_threads).map(|_| DecodeWorkspace::default()).collect();
        Self {
            allocator: PageAllocator::new(PageShape::new(&weights.model.config)),
            weights,
            version,
            receiver,
            max_pages: options.max_cached_tokens / PAGE,
            max_step_tokens: options.max_batch_tokens,
            workspaces,
            stats,
            waiting: VecDeque::new(),
            active: Vec::new(),
            idle: HashMap::new(),
            publications: VecDeque::new(),
            clock: 0,
            stopping: false,
        }
    }

    /// Serves, on a thread of a rayon pool, until told to stop, or until nobody can ask any more. Requests that are not finished
    /// by then are dropped, which their callers see as an ended sampler.
    pub(crate) fn run(mut self) {
        loop {
            self.receive();
            if self.stopping {
                return;
            }
            if self.active.is_empty() {
                self.apply_publications();
            }
            if self.publications.is_empty() {
                self.admit();
            }
            if !self.active.is_empty() {
                self.step();
            }
        }
    }

    /// Takes all commands that are there; waits for one when there is nothing else to do.
    fn receive(&mut self) {
        let has_work =
            !(self.active.is_empty() && self.waiting.is_empty() && self.publications.is_empty());
        if !has_work {
            match self.receiver.recv() {
                Ok(command) => self.take(command),
                Err(_) => self.stopping = true,
            }
        }
        while let Ok(command) = self.receiver.try_recv() {
            self.take(command);
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Sample { request, reply } => {
                self.waiting.push_back(Waiting { request, reply });
            }
            Command::EndSession(session) => {
                if let Some(idle) = self.idle.get_mut(&session) {
                    idle.ended = true;
                }
                for active in self.active.iter_mut().filter(|a| a.request.session == session) {
                    active.ended = true;
                }
                self.limit_ended();
            }
            Command::Publish { weights, version, done } => {
                self.publications.push_back(Publication { weights, version, done });
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn apply_publications(&mut self) {
        while let Some(Publication { weights, version, done }) = self.publications.pop_front() {
            (self.weights, self.version) = (weights, version);
            self.idle.clear();
            // A publisher that went away does not wait.
            let _ = done.send(());
        }
    }

    /// Starts waiting requests, in order, as far as the cache has room.
    fn admit(&mut self) {
        let mut later = VecDeque::new();
        while let Some(waiting) = self.waiting.pop_front() {
            if self.should_wait(&waiting.request) {
                later.push_back(waiting);
                continue;
            }
            if !self.make_room(&waiting.request) {
                // First come, first served: nobody overtakes a request that needs more room.
                later.push_back(waiting);
                break;
            }
            self.start(waiting);
        }
        later.append(&mut self.waiting);
        self.waiting = later;
    }

    /// Whether a sequence is computing what this request could share.
    fn should_wait(&self, request: &SampleRequest) -> bool {
        let computing = self.active.iter().filter(|a| a.is_prefilling());
        let shared =
            computing.map(|a| common_prefix(&a.run.tokens, &request.context)).max().unwrap_or(0);
        shared >= WORTH_WAITING_TOKENS
            && self.best_cache(request).0 + WORTH_WAITING_TOKENS <= shared
    }

    /// The longest cached prefix of a context, and where it is.
    fn best_cache(&self, request: &SampleRequest) -> (usize, Option<&CachedSequence>) {
        // The last token must be computed in any case, for the logits after it.
        let usable = &request.context[..request.context.len() - 1];
        let own = self.idle.get(&request.session).map(|idle| &idle.cache);
        if let Some(own) = own
            && own.common_prefix(usable) == own.tokens.len().min(usable.len())
        {
            return (own.tokens.len().min(usable.len()), Some(own));
        }
        let live = self.active.iter().map(|a| &a.run.cache);
        // Which of several equals is taken has no influence on any result.
        let idle = self.idle.values().map(|idle| &idle.cache);
        live.chain(idle)
            .map(|cache| (cache.common_prefix(usable), Some(cache)))
            .max_by_key(|(length, _)| *length)
            .filter(|(length, _)| *length > 0)
            .unwrap_or((0, None))
    }

    /// Evicts idle caches, ended ones first and then the least recently used, until the request
    /// fits beside the active ones at their largest.
    fn make_room(&mut self, request: &SampleRequest) -> bool {
        let needed = self.pages_of(request);
        loop {
            let growth: usize = self
                .active
                .iter()
                .map(|a| a.max_pages.saturating_sub(a.run.cache.pages.len()))
                .sum();
            // Each may copy one more page: the partly filled one that it shares.
            let copies = self.active.len() + 1;
            if self.allocator.num_alive() + growth + needed + copies <= self.max_pages {
                return true;
            }
            let victim = self
                .idle
                .iter()
                .filter(|(session, _)| **session != request.session || self.idle.len() == 1)
                .min_by_key(|(_, idle)| (!idle.ended, idle.last_used))
                .map(|(session, _)| *session);
            match victim {
                Some(session) => self.idle.remove(&session),
                // With nobody else there, the request was checked to fit.
                None => return self.active.is_empty(),
            };
        }
    }

    fn pages_of(&self, request: &SampleRequest) -> usize {
        let most = request.context.len() + request.max_tokens;
        most.min(self.weights.model.config.max_position_embeddings).div_ceil(PAGE)
    }

    fn start(&mut self, Waiting { request, reply }: Waiting) {
        let (length, source) = self.best_cache(&request);
        let cache = source.map(|cache| cache.fork(length)).unwrap_or_default();
        // The session's old cache is either contained in the new one or of no more use.
        self.idle.remove(&request.session);
        let context = request.context.len();
        self.stats.reused_tokens.fetch_add(length as u64, Ordering::Relaxed);
        self.stats.prefill_tokens.fetch_add((context - length) as u64, Ordering::Relaxed);
        let run = Run {
            cache,
            tokens: request.context.clone(),
            count: 0,
            temperature: request.params.temperature,
            rng: ChaCha8Rng::seed_from_u64(request.seed),
        };
        let max_pages = self.pages_of(&request);
        let active = Active { run, request, reply, logprobs: Vec::new(), max_pages, ended: false };
        self.active.push(active);
    }

    /// One forward pass over all active sequences, as far as the step's bound allows.
    fn step(&mut self) {
        let started = Instant::now();
        let mut budget = self.max_step_tokens;
        // Sequences that draw go first, so that a long context does not hold them up.
        for prefilling in [false, true] {
            for active in self.active.iter_mut().filter(|a| a.is_prefilling() == prefilling) {
                let run = &mut active.run;
                run.count = (run.tokens.len() - run.cache.tokens.len()).min(budget);
                budget -= run.count;
                if run.count > 0 {
                    run.cache.reserve(run.cache.tokens.len() + run.count, &self.allocator);
                }
            }
        }
        let drawn = self.compute();
        for (index, drawn) in drawn {
            self.active[index].record(drawn);
        }
        let mut index = 0;
        while index < self.active.len() {
            match self.active[index]
                .finish_reason(self.weights.model.config.max_position_embeddings)
            {
                Some(reason) => {
                    let active = self.active.swap_remove(index);
                    self.finish(active, reason);
                }
                None => index += 1,
            }
        }
        let stats = &self.stats;
        stats.steps.fetch_add(1, Ordering::Relaxed);
        stats.pages_max.fetch_max(self.allocator.num_alive() as u64, Ordering::Relaxed);
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stats.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Shares the step's runs out to the threads by their number of tokens. Which thread computes
    /// what has no influence on any result.
    fn compute(&mut self) -> Vec<(usize, Drawn)> {
        let runs: Vec<(usize, &mut Run)> = self
            .active
            .iter_mut()
            .map(|a| &mut a.run)
            .enumerate()
            .filter(|(_, run)| run.count > 0)
            .collect();
        let mut shards = share_out(runs, self.workspaces.len());
        let weights = &*self.weights;
        let mut results: Vec<Vec<Option<Drawn>>> = shards.iter().map(|_| Vec::new()).collect();
        let mut jobs: Vec<_> =
            self.workspaces.iter_mut().zip(&mut shards).zip(&mut results).collect();
        let own = jobs.remove(0);
        let work = |((workspace, shard), result): ((&mut DecodeWorkspace, &mut Shard), _)| {
            let result: &mut Vec<_> = result;
            if !shard.runs.is_empty() {
                *result = workspace.step(weights, &mut shard.runs);
            }
        };
        rayon::scope(|scope| {
            for job in jobs {
                scope.spawn(move |_| work(job));
            }
            work(own);
        });
        let indices = shards.into_iter().flat_map(|shard| shard.indices);
        indices
            .zip(results.into_iter().flatten())
            .filter_map(|(index, drawn)| drawn.map(|drawn| (index, drawn)))
            .collect()
    }

    fn finish(&mut self, active: Active, reason: Result<FinishReason, SamplerError>) {
        let Active { run, request, reply, logprobs, ended, .. } = active;
        let result = reason.map(|finish_reason| Completion {
            tokens: run.tokens[request.context.len()..].to_vec(),
            logprobs,
            finish_reason,
            policy_version: self.version,
        });
        self.clock += 1;
        let idle = Idle { cache: run.cache, last_used: self.clock, ended };
        self.idle.insert(request.session, idle);
        self.limit_ended();
        self.stats.completions.fetch_add(1, Ordering::Relaxed);
        let tokens = result.as_ref().map_or(0, |c| c.tokens.len());
        self.stats.sampled_tokens.fetch_add(tokens as u64, Ordering::Relaxed);
        // A caller that went away does not wait.
        let _ = reply.send(result);
    }

    fn limit_ended(&mut self) {
        let ended = || self.idle.iter().filter(|(_, idle)| idle.ended);
        let surplus = ended().count().saturating_sub(MAX_ENDED_SESSIONS);
        for _ in 0..surplus {
            let oldest = self
                .idle
                .iter()
                .filter(|(_, idle)| idle.ended)
                .min_by_key(|(_, idle)| idle.last_used)
                .map(|(session, _)| *session);
            if let Some(session) = oldest {
                self.idle.remove(&session);
            }
        }
    }
}

impl Active {
    fn record(&mut self, drawn: Drawn) {
        self.run.tokens.push(drawn.token);
        self.logprobs.push(drawn.logprob);
    }

    /// Whether, and why, the completion has ended.
    fn finish_reason(&self, max_context: usize) -> Option<Result<FinishReason, SamplerError>> {
        let logprob = self.logprobs.last()?;
        if !logprob.is_finite() {
            let reason = format!("the model gave a log-probability of {logprob}");
            return Some(Err(SamplerError::Engine(reason)));
        }
        if self.run.tokens.last().is_some_and(|t| self.request.stop_tokens.contains(t)) {
            return Some(Ok(FinishReason::Stop));
        }
        let full =
            self.logprobs.len() >= self.request.max_tokens || self.run.tokens.len() >= max_context;
        full.then_some(Ok(FinishReason::Length))
    }
}
