//! The thread behind the sampler: admits requests, forms the batch of each step, keeps the cache
//! within its bound, swaps weights.
//!
//! A request is admitted when there is room for its context. Sequences then grow page by page; when
//! no page is left that nobody runs on, the youngest gives its pages up and waits, and computes
//! them again later. The oldest is never interrupted and fits alone, so all come to their end.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use patchwright_core::{FinishReason, PolicyVersion, SampleRequest, SamplerError};

use crate::batch;
use crate::decode::{DecodeWorkspace, StepResult};
use crate::engine::{EngineOptions, WeightSwap};
use crate::kv_cache::{PAGE, PageAllocator, PageShape, common_prefix};
use crate::prefix_tree::{Found, NodeId, PrefixTree};
use crate::sampler::Counters;
use crate::sequence::{Listener, Reply, Sequence, TokenBytes};
use crate::weights::Weights;

/// A request waits for a sequence that is computing a prefix they share when that saves at least
/// this many tokens.
const WORTH_WAITING_TOKENS: usize = 8;

/// Multiplications that a step may spend on contexts while others draw: what they wait for.
const PREFILL_WORK: usize = 8_000_000_000;

/// A step with contexts has at least so many of their tokens: fewer would cost as much.
const MIN_PREFILL_TOKENS: usize = 32;

/// Sessions whose place is remembered, to be forgotten first when they end.
const MAX_SESSIONS: usize = 1 << 16;

/// What the face asks of the thread.
pub(crate) enum Command {
    Sample { ticket: u64, request: SampleRequest, reply: Reply, listener: Option<Listener> },
    Cancel { ticket: u64 },
    EndSession(u64),
    Publish { weights: Arc<Weights>, version: PolicyVersion, done: SyncSender<()> },
    Stop,
}

struct Publication {
    weights: Arc<Weights>,
    version: PolicyVersion,
    done: SyncSender<()>,
}

pub(crate) struct Scheduler {
    weights: Arc<Weights>,
    version: PolicyVersion,
    weight_swap: WeightSwap,
    token_bytes: Arc<OnceLock<TokenBytes>>,
    receiver: Receiver<Command>,
    allocator: PageAllocator,
    max_pages: usize,
    max_step_tokens: usize,
    workspaces: Vec<DecodeWorkspace>,
    stats: Arc<Counters>,
    /// Everything computed with the present weights.
    tree: PrefixTree,
    /// In the order of arrival.
    waiting: VecDeque<Sequence>,
    /// In the order of arrival.
    active: Vec<Sequence>,
    /// Where sessions were when they last stopped running.
    sessions: HashMap<u64, (NodeId, u64)>,
    publications: VecDeque<Publication>,
    num_arrived: u64,
    stopping: bool,
}

impl Scheduler {
    pub(crate) fn new(
        weights: Arc<Weights>,
        version: PolicyVersion,
        options: &EngineOptions,
        token_bytes: Arc<OnceLock<TokenBytes>>,
        stats: Arc<Counters>,
        receiver: Receiver<Command>,
    ) -> Self {
        let workspaces = (0..options.num_threads).map(|_| DecodeWorkspace::default()).collect();
        Self {
            allocator: PageAllocator::new(PageShape::new(&weights.model.config)),
            weights,
            version,
            weight_swap: options.weight_swap,
            token_bytes,
            receiver,
            max_pages: options.max_cached_tokens / PAGE,
            max_step_tokens: options.max_batch_tokens,
            workspaces,
            stats,
            tree: PrefixTree::new(),
            waiting: VecDeque::new(),
            active: Vec::new(),
            sessions: HashMap::new(),
            publications: VecDeque::new(),
            num_arrived: 0,
            stopping: false,
        }
    }

    /// Serves, on a thread of a rayon pool, until told to stop, or until nobody can ask any more.
    /// Requests that are not finished by then are dropped, which their callers see as an ended
    /// sampler.
    pub(crate) fn run(mut self) {
        loop {
            self.receive();
            if self.stopping {
                return;
            }
            self.apply_publications();
            self.admit();
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
            Command::Sample { ticket, request, reply, listener } => {
                let order = self.num_arrived;
                self.num_arrived += 1;
                self.waiting.push_back(Sequence::new(order, ticket, request, reply, listener));
            }
            Command::Cancel { ticket } => self.cancel(ticket),
            Command::EndSession(session) => {
                if let Some(place) = self.sessions.remove(&session) {
                    self.tree.demote(place);
                }
            }
            Command::Publish { weights, version, done } => {
                self.publications.push_back(Publication { weights, version, done });
            }
            Command::Stop => self.stopping = true,
        }
    }

    /// Ends a request early, wherever it is. One that is not found has been answered.
    fn cancel(&mut self, ticket: u64) {
        let waiting = self.waiting.iter().position(|s| s.ticket == ticket);
        let active = self.active.iter().position(|s| s.ticket == ticket);
        let sequence = match (waiting.and_then(|i| self.waiting.remove(i)), active) {
            (Some(sequence), _) => sequence,
            (None, Some(index)) => {
                let mut sequence = self.active.remove(index);
                sequence.release(&mut self.tree);
                sequence
            }
            (None, None) => return,
        };
        sequence.answer(Err(SamplerError::Cancelled));
    }

    /// Swaps weights as soon as the rule allows it.
    fn apply_publications(&mut self) {
        if self.publications.is_empty() {
            return;
        }
        let must_wait = match self.weight_swap {
            WeightSwap::Drain => {
                !self.active.is_empty() || self.waiting.iter().any(|s| s.was_started)
            }
            WeightSwap::InFlight => self.active.iter().any(|s| s.is_catching_up),
        };
        if must_wait {
            return;
        }
        while let Some(Publication { weights, version, done }) = self.publications.pop_front() {
            (self.weights, self.version) = (weights, version);
            // A publisher that went away does not wait.
            let _ = done.send(());
        }
        for sequence in std::mem::take(&mut self.active) {
            self.wait(sequence);
        }
        for sequence in &mut self.waiting {
            sequence.forget();
        }
        self.tree.clear();
        self.sessions.clear();
    }

    /// Puts a sequence back among the waiting, at its place.
    fn wait(&mut self, sequence: Sequence) {
        let place = self.waiting.partition_point(|s| s.order < sequence.order);
        self.waiting.insert(place, sequence);
    }

    /// Starts waiting requests, in order, as far as the cache has room. While a publication waits
    /// for what is in flight, nothing else is started.
    fn admit(&mut self) {
        let only_started = !self.publications.is_empty();
        let mut later = VecDeque::new();
        while let Some(mut sequence) = self.waiting.pop_front() {
            if (only_started && !sequence.was_started) || self.should_wait(&sequence) {
                later.push_back(sequence);
                continue;
            }
            if !self.make_room(&mut sequence) {
                // First come, first served: nobody overtakes a request that needs more room.
                later.push_back(sequence);
                break;
            }
            self.start(sequence);
        }
        later.append(&mut self.waiting);
        self.waiting = later;
    }

    /// Whether a sequence is computing what this one could share.
    fn should_wait(&self, sequence: &Sequence) -> bool {
        let wanted = sequence.reusable();
        let computing = self.active.iter().filter(|a| a.is_prefilling());
        let shared = computing.map(|a| common_prefix(&a.run.tokens, wanted)).max().unwrap_or(0);
        shared >= WORTH_WAITING_TOKENS
            && self.tree.prefix_len(wanted) + WORTH_WAITING_TOKENS <= shared
    }

    /// The longest prefix in the tree or, beyond its whole pages, in the page that a running
    /// sequence is filling.
    fn find(&mut self, sequence: &Sequence) -> Found {
        let wanted = sequence.reusable();
        let mut found = self.tree.find(wanted);
        let rest = &wanted[found.pages.len() * PAGE..];
        let known = found.partial.as_ref().map_or(0, |(_, len)| *len);
        let tails = self.active.iter().filter(|a| a.place() == found.node);
        let best = tails
            .map(|a| (common_prefix(a.run.cache.tail(), rest), a))
            .max_by_key(|(len, _)| *len)
            .filter(|(len, _)| *len > known);
        if let Some((len, other)) = best
            && let Some(page) = other.run.cache.pages.get(found.pages.len())
        {
            found.partial = Some((Arc::clone(page), len));
        }
        found
    }

    /// Gives a sequence what is known of its context, if beside the active ones there is room for
    /// the rest of it.
    fn make_room(&mut self, sequence: &mut Sequence) -> bool {
        let promised: usize =
            self.active.iter().map(|a| a.run.cache.missing_pages(a.run.tokens.len())).sum();
        // Each active sequence will soon want another page.
        let reserve = promised + self.active.len();
        let found = self.find(sequence);
        let total = sequence.run.tokens.len().div_ceil(PAGE);
        let missing = total - found.pages.len();
        if self.free_pages(reserve + missing) {
            sequence.adopt(found);
            return true;
        }
        // The page that is copied is itself in the way when there is no other left.
        let whole = Found { partial: None, ..found };
        let fits = self.free_pages(reserve + missing);
        if fits {
            sequence.adopt(whole);
        }
        fits
    }

    /// Evicts until so many more pages may be made. Whether they may.
    fn free_pages(&mut self, needed: usize) -> bool {
        while self.allocator.num_alive() + needed > self.max_pages {
            if !self.tree.evict() {
                return false;
            }
            self.stats.evicted_pages.fetch_add(1, Ordering::Relaxed);
        }
        true
    }

    fn start(&mut self, mut sequence: Sequence) {
        let (computed, total) = (sequence.run.cache.tokens.len(), sequence.run.tokens.len());
        let counters = if sequence.was_started {
            [&self.stats.restored_tokens, &self.stats.recomputed_tokens]
        } else {
            [&self.stats.reused_tokens, &self.stats.prefill_tokens]
        };
        for (counter, number) in counters.into_iter().zip([computed, total - computed]) {
            counter.fetch_add(number as u64, Ordering::Relaxed);
        }
        if !sequence.was_started {
            sequence.num_cached = computed;
        }
        sequence.was_started = true;
        let place = self.active.partition_point(|s| s.order < sequence.order);
        self.active.insert(place, sequence);
    }

    /// One forward pass over all active sequences, as far as the step's bounds allow.
    fn step(&mut self) {
        let started = Instant::now();
        self.plan();
        self.reserve();
        let runs = self.active.iter_mut().map(|s| &mut s.run).filter(|run| run.count > 0);
        let results = batch::step(&self.weights, &mut self.workspaces, runs.collect());
        self.record(results);
        let stats = &self.stats;
        stats.steps.fetch_add(1, Ordering::Relaxed);
        let nanos = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        stats.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    /// Decides how many tokens of each sequence the step computes. Sequences that draw go first,
    /// and contexts come in chunks, so that a long one does not hold the others up.
    fn plan(&mut self) {
        let mut budget = self.max_step_tokens;
        let mut some_draw = false;
        for sequence in self.active.iter_mut().filter(|s| !s.is_prefilling()) {
            sequence.run.count = sequence.num_missing().min(budget);
            budget -= sequence.run.count;
            some_draw = true;
        }
        if some_draw {
            let work = PREFILL_WORK / self.weights.model.layout.total.max(1);
            budget = budget.min(work.max(MIN_PREFILL_TOKENS));
        }
        for sequence in self.active.iter_mut().filter(|s| s.is_prefilling()) {
            sequence.run.count = sequence.num_missing().min(budget);
            budget -= sequence.run.count;
        }
    }

    /// Makes the pages that the step writes to, oldest sequence first; where there is no room, the
    /// youngest goes back to wait.
    fn reserve(&mut self) {
        let mut index = 0;
        while index < self.active.len() {
            let run = &self.active[index].run;
            let len = run.cache.tokens.len() + run.count;
            let missing = run.cache.missing_pages(len);
            if self.free_pages(missing) {
                self.active[index].run.cache.reserve(len, &self.allocator);
                index += 1;
            } else if let Some(mut youngest) = self.active.pop() {
                youngest.release(&mut self.tree);
                youngest.run.count = 0;
                self.stats.preemptions.fetch_add(1, Ordering::Relaxed);
                self.wait(youngest);
            }
        }
        let alive = self.allocator.num_alive() as u64;
        self.stats.pages_max.fetch_max(alive, Ordering::Relaxed);
    }

    /// Notes the results of a step's runs, shares the pages they filled, and answers those that
    /// have ended.
    fn record(&mut self, results: Vec<StepResult>) {
        let max_context = self.weights.model.config.max_position_embeddings;
        let bytes = self.token_bytes.get();
        let computed = self.active.iter_mut().filter(|s| s.run.count > 0);
        for (sequence, result) in computed.zip(results) {
            sequence.run.count = 0;
            sequence.record(result, self.version, bytes);
            sequence.share_whole_pages(&mut self.tree);
        }
        let mut index = 0;
        while index < self.active.len() {
            match self.active[index].finish_reason(max_context) {
                Some(reason) => {
                    let sequence = self.active.remove(index);
                    self.finish(sequence, reason);
                }
                None => index += 1,
            }
        }
    }

    fn finish(&mut self, mut sequence: Sequence, reason: Result<FinishReason, SamplerError>) {
        let node = sequence.release(&mut self.tree);
        if self.sessions.len() < MAX_SESSIONS {
            self.sessions.insert(sequence.request.session, self.tree.bookmark(node));
        }
        self.stats.completions.fetch_add(1, Ordering::Relaxed);
        self.stats.sampled_tokens.fetch_add(sequence.num_drawn() as u64, Ordering::Relaxed);
        sequence.answer(reason);
    }
}
