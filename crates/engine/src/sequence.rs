//! A request on its way: what was drawn so far, and when it ends.

use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender};

use patchwright_core::{
    Completion, DrawnToken, FinishReason, PolicyVersion, SampleRequest, SamplerError,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::decode::{Run, StepResult};
use crate::draw::Drawn;
use crate::kv_cache::{CachedSequence, PAGE, Page};
use crate::prefix_tree::{Found, NodeId, PrefixTree, ROOT};

/// Where the answer goes.
pub(crate) type Reply = SyncSender<Result<Completion, SamplerError>>;

/// Where tokens go as they are drawn.
pub(crate) type Listener = Sender<DrawnToken>;

/// Bytes of each token, for stop strings.
pub(crate) type TokenBytes = Arc<[Box<[u8]>]>;

/// Likely tokens that are given at most for each that is drawn.
const MAX_TOP_LOGPROBS: usize = 256;

/// A request and all that is known of its sequence.
pub(crate) struct Sequence {
    /// Place in the order of arrival: who came first is served first.
    pub order: u64,
    /// The caller's name for it, to cancel it by.
    pub ticket: u64,
    pub request: SampleRequest,
    pub run: Run,
    /// It has been given room before: it counts as in flight, and goes on with what it has drawn.
    pub was_started: bool,
    /// Weights were swapped since it last drew a token, and it is running again: the next swap
    /// waits for one, or frequent swaps would let nobody get on.
    pub is_catching_up: bool,
    logprobs: Vec<f32>,
    entropies: Vec<f32>,
    policy_versions: Vec<PolicyVersion>,
    prompt_logprobs: Vec<f32>,
    /// One entry a token where they are asked for, else empty.
    top_logprobs: Vec<Vec<(u32, f32)>>,
    /// Last bytes drawn, as many as could begin a stop string.
    stop_tail: Vec<u8>,
    /// Where the last of the pages in the tree is, and how many there are.
    place: (NodeId, usize),
    /// Tokens of the context that were found computed when it was first given room.
    pub num_cached: usize,
    reply: Reply,
    listener: Option<Listener>,
}

impl Sequence {
    pub(crate) fn new(
        order: u64,
        ticket: u64,
        request: SampleRequest,
        reply: Reply,
        listener: Option<Listener>,
    ) -> Self {
        let run = Run {
            cache: CachedSequence::default(),
            tokens: request.context.clone(),
            count: 0,
            scored: if request.prompt_logprobs { 1..request.context.len() } else { 0..0 },
            temperature: request.params.temperature,
            num_top_logprobs: request.num_top_logprobs.min(MAX_TOP_LOGPROBS),
            rng: ChaCha8Rng::seed_from_u64(request.seed),
        };
        // The first token has nothing before it.
        let prompt_logprobs = if request.prompt_logprobs { vec![0.0] } else { Vec::new() };
        Self {
            order,
            ticket,
            request,
            run,
            was_started: false,
            is_catching_up: false,
            logprobs: Vec::new(),
            entropies: Vec::new(),
            policy_versions: Vec::new(),
            prompt_logprobs,
            top_logprobs: Vec::new(),
            stop_tail: Vec::new(),
            place: (ROOT, 0),
            num_cached: 0,
            reply,
            listener,
        }
    }

    /// Tokens that are not computed yet.
    pub(crate) fn num_missing(&self) -> usize {
        self.run.tokens.len() - self.run.cache.tokens.len()
    }

    pub(crate) fn is_prefilling(&self) -> bool {
        self.num_missing() > 1
    }

    pub(crate) fn num_drawn(&self) -> usize {
        self.logprobs.len()
    }

    /// The tokens whose keys and values may come from elsewhere. The last one must be computed for
    /// the logits after it; so must each whose logits give a log-probability of the context that
    /// is still asked for.
    pub(crate) fn reusable(&self) -> &[u32] {
        let scored = &self.run.scored;
        let most = if scored.is_empty() { self.run.tokens.len() } else { scored.start };
        &self.run.tokens[..most - 1]
    }

    /// Takes pages that were found; a partial one is copied.
    pub(crate) fn adopt(&mut self, found: Found) {
        let len = found.len();
        self.place = (found.node, found.pages.len());
        let mut pages = found.pages;
        pages.extend(found.partial.map(|(page, _)| Page::copy(&page)));
        self.run.cache = CachedSequence { tokens: self.run.tokens[..len].to_vec(), pages };
    }

    /// Where the last whole page in the tree is, if all whole pages are there.
    pub(crate) fn place(&self) -> NodeId {
        self.place.0
    }

    /// Hands pages that were filled to the tree. If another sequence has computed the same, its
    /// page is used from now on.
    pub(crate) fn share_whole_pages(&mut self, tree: &mut PrefixTree) {
        let cache = &mut self.run.cache;
        while (self.place.1 + 1) * PAGE <= cache.tokens.len() {
            let (parent, index) = self.place;
            let tokens = &cache.tokens[index * PAGE..(index + 1) * PAGE];
            let inserted = tree.insert(parent, tokens, &cache.pages[index]);
            // No page is longer than a whole one.
            let Some((node, page)) = inserted else { return };
            cache.pages[index] = page;
            self.place = (node, index + 1);
        }
    }

    /// Gives up all pages; what was computed stays in the tree for as long as there is room. The
    /// last place is returned.
    pub(crate) fn release(&mut self, tree: &mut PrefixTree) -> NodeId {
        self.share_whole_pages(tree);
        let cache = std::mem::take(&mut self.run.cache);
        let (mut node, whole) = std::mem::replace(&mut self.place, (ROOT, 0));
        if let Some(page) = cache.pages.get(whole)
            && !cache.tail().is_empty()
            && let Some((tail, _)) = tree.insert(node, cache.tail(), page)
        {
            node = tail;
        }
        node
    }

    /// Gives up all pages, which are of other weights than those to come. Log-probabilities of the
    /// context begin anew, so that all of them are of the same weights.
    pub(crate) fn forget(&mut self) {
        self.run.cache = CachedSequence::default();
        self.place = (ROOT, 0);
        self.is_catching_up = self.was_started;
        if !self.run.scored.is_empty() {
            self.prompt_logprobs.truncate(1);
            self.run.scored.start = 1;
        }
    }

    /// Notes what a step gave.
    pub(crate) fn record(
        &mut self,
        result: StepResult,
        version: PolicyVersion,
        bytes: Option<&TokenBytes>,
    ) {
        self.run.scored.start += result.prompt_logprobs.len();
        self.prompt_logprobs.extend(result.prompt_logprobs);
        let Some(Drawn { token, logprob, entropy }) = result.drawn else { return };
        self.is_catching_up = false;
        self.run.tokens.push(token);
        self.logprobs.push(logprob);
        self.entropies.push(entropy);
        self.policy_versions.push(version);
        if let Some(listener) = &self.listener {
            // Who went away hears nothing.
            let _ = listener.send(DrawnToken { token, logprob, top: result.top.clone() });
        }
        if self.run.num_top_logprobs > 0 {
            self.top_logprobs.push(result.top);
        }
        if let Some(bytes) = bytes.filter(|_| !self.request.stop_strings.is_empty()) {
            let longest = self.request.stop_strings.iter().map(Vec::len).max().unwrap_or(0);
            let new = bytes.get(token as usize).map_or(0, |bytes| {
                self.stop_tail.extend_from_slice(bytes);
                bytes.len()
            });
            // What a match that ends in this token could begin with.
            let keep = (new + longest.saturating_sub(1)).min(self.stop_tail.len());
            self.stop_tail.drain(..self.stop_tail.len() - keep);
        }
    }

    fn has_stop_string(&self) -> bool {
        let contains = |stop: &Vec<u8>| self.stop_tail.windows(stop.len()).any(|w| w == &stop[..]);
        self.request.stop_strings.iter().any(contains)
    }

    /// Whether, and why, the completion has ended.
    pub(crate) fn finish_reason(
        &self,
        max_context: usize,
    ) -> Option<Result<FinishReason, SamplerError>> {
        let logprob = self.logprobs.last()?;
        if !logprob.is_finite() {
            let reason = format!("the model gave a log-probability of {logprob}");
            return Some(Err(SamplerError::Engine(reason)));
        }
        let token = self.run.tokens.last()?;
        if self.request.stop_tokens.contains(token) || self.has_stop_string() {
            return Some(Ok(FinishReason::Stop));
        }
        let full =
            self.logprobs.len() >= self.request.max_tokens || self.run.tokens.len() >= max_context;
        full.then_some(Ok(FinishReason::Length))
    }

    /// Answers the caller. One that went away does not wait.
    pub(crate) fn answer(self, reason: Result<FinishReason, SamplerError>) {
        let result = reason.map(|finish_reason| Completion {
            tokens: self.run.tokens[self.request.context.len()..].to_vec(),
            logprobs: self.logprobs,
            entropies: self.entropies,
            prompt_logprobs: self.prompt_logprobs,
            num_cached_tokens: self.num_cached,
            top_logprobs: self.top_logprobs,
            finish_reason,
            policy_version: self.policy_versions.first().copied().unwrap_or_default(),
            policy_versions: self.policy_versions,
        });
        let _ = self.reply.send(result);
    }
}
