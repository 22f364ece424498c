//! Keys and values of sequences in pages of 32 positions, shared where contexts agree.
//!
//! A page holds all layers of 32 positions. Whole pages are shared by reference count and never
//! written again; the page that a sequence writes to is its own. So forks, siblings and turns of a
//! session are all the same thing, found through the [prefix tree](crate::prefix_tree).

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::attention::{KeyValues, write_column};
use crate::config::ModelConfig;
use crate::kernels::blocks::{multiply_each, multiply_sum};
use crate::kernels::gemm::{Into, PANEL, padded};
use crate::kernels::vectorized;

/// Positions of a page: one block of keys.
pub(crate) const PAGE: usize = PANEL;

/// Sizes of a page's parts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PageShape {
    num_layers: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl PageShape {
    pub(crate) fn new(config: &ModelConfig) -> Self {
        Self {
            num_layers: config.num_hidden_layers,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
        }
    }

    /// Floats of one head's keys, `[head_dim][32]`.
    fn keys_len(self) -> usize {
        self.head_dim * PAGE
    }

    /// Floats of one head's values, `[head_dim / 32][32][32]`.
    fn values_len(self) -> usize {
        padded(self.head_dim) * PAGE
    }

    fn head_at(self, layer: usize, kv_head: usize) -> usize {
        (layer * self.num_kv_heads + kv_head) * (self.keys_len() + self.values_len())
    }

    /// Bytes of a page.
    pub(crate) fn num_bytes(self) -> usize {
        self.head_at(self.num_layers, 0) * size_of::<f32>()
    }
}

/// Bytes of pages without a user that are kept for the next: those of a few steps.
const MAX_FREE_BYTES: usize = 64 << 20;

/// What the pages of a sampler share.
#[derive(Debug, Default)]
struct Ledger {
    alive: AtomicUsize,
    /// Of pages that are gone. New memory of the system's would cost as much as a page's attention.
    free: Mutex<Vec<Vec<f32>>>,
}

impl Ledger {
    fn free(&self) -> MutexGuard<'_, Vec<Vec<f32>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The contents are arbitrary finite numbers.
    fn page(self: &Arc<Self>, len: usize) -> Page {
        self.alive.fetch_add(1, Ordering::Relaxed);
        let data = self.free().pop().unwrap_or_else(|| vec![0.0; len]);
        Page { data, ledger: Arc::clone(self) }
    }
}

/// Keys and values of 32 positions. Positions not yet written hold stale finite numbers.
#[derive(Debug)]
pub(crate) struct Page {
    data: Vec<f32>,
    ledger: Arc<Ledger>,
}

impl Clone for Page {
    fn clone(&self) -> Self {
        let mut page = self.ledger.page(self.data.len());
        page.data.copy_from_slice(&self.data);
        page
    }
}

impl Page {
    /// A page of one's own with the same contents.
    pub(crate) fn copy(page: &Arc<Self>) -> Arc<Self> {
        Arc::new(Self::clone(page))
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.ledger.alive.fetch_sub(1, Ordering::Relaxed);
        let data = std::mem::take(&mut self.data);
        let mut free = self.ledger.free();
        // One that a broken model filled would spoil what comes after it.
        if (free.len() + 1) * size_of_val(&data[..]) <= MAX_FREE_BYTES && all_finite(&data) {
            free.push(data);
        }
    }
}

/// Makes pages and knows how many are alive.
#[derive(Debug)]
pub(crate) struct PageAllocator {
    pub shape: PageShape,
    ledger: Arc<Ledger>,
}

impl PageAllocator {
    pub(crate) fn new(shape: PageShape) -> Self {
        Self { shape, ledger: Arc::default() }
    }

    pub(crate) fn num_alive(&self) -> usize {
        self.ledger.alive.load(Ordering::Relaxed)
    }

    /// A page that is nobody else's.
    pub(crate) fn page(&self) -> Arc<Page> {
        Arc::new(self.ledger.page(self.shape.num_bytes() / size_of::<f32>()))
    }
}

vectorized! {
    fn all_finite(values: &[f32]) -> bool {
        values.iter().fold(true, |all, x| all & x.is_finite())
    }
}

/// A sequence whose keys and values are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct CachedSequence {
    /// Tokens with keys and values, in order.
    pub tokens: Vec<u32>,
    pub pages: Vec<Arc<Page>>,
}

impl CachedSequence {
    /// Makes room for positions up to `len`. The page that is partly written, if any, must be this
    /// sequence's own (see [`Page::copy`]).
    pub(crate) fn reserve(&mut self, len: usize, allocator: &PageAllocator) {
        while self.pages.len() * PAGE < len {
            self.pages.push(allocator.page());
        }
    }

    /// Pages that must be allocated before positions up to `len` can be written.
    pub(crate) fn missing_pages(&self, len: usize) -> usize {
        len.div_ceil(PAGE).saturating_sub(self.pages.len())
    }

    /// Tokens of the page that is partly written.
    pub(crate) fn tail(&self) -> &[u32] {
        &self.tokens[self.tokens.len() / PAGE * PAGE..]
    }

    /// Writes one position of one layer: all heads' keys, then all heads' values, side by side.
    /// [`CachedSequence::reserve`] made room, and the page is this sequence's own.
    pub(crate) fn write(
        &mut self,
        shape: PageShape,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let page = Arc::make_mut(&mut self.pages[position / PAGE]);
        let dim = shape.head_dim;
        let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
        for (kv_head, (key, value)) in heads.enumerate() {
            let head = &mut page.data[shape.head_at(layer, kv_head)..];
            let (key_block, rest) = head.split_at_mut(shape.keys_len());
            write_column(key_block, position % PAGE, key);
            for (panel, part) in value.chunks(PANEL).enumerate() {
                let at = (panel * PAGE + position % PAGE) * PANEL;
                rest[at..at + part.len()].copy_from_slice(part);
            }
        }
    }

    /// The keys and values of one head.
    pub(crate) fn head(
        &self,
        shape: PageShape,
        layer: usize,
        kv_head: usize,
    ) -> PagedKeyValues<'_> {
        PagedKeyValues {
            pages: &self.pages,
            shape,
            at: shape.head_at(layer, kv_head),
            next: [None; BLOCKS_AHEAD],
        }
    }
}

/// Number of leading elements that agree.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// Blocks that are fetched ahead of the one in work: what memory needs to answer.
const BLOCKS_AHEAD: usize = 2;

/// One head of a [`CachedSequence`].
#[derive(Clone, Copy)]
pub(crate) struct PagedKeyValues<'a> {
    pages: &'a [Arc<Page>],
    shape: PageShape,
    at: usize,
    /// First keys of the head that is asked for next, as far as that is known.
    next: [Option<&'a [f32]>; BLOCKS_AHEAD],
}

impl<'a> PagedKeyValues<'a> {
    /// The same, knowing what is asked for next.
    pub(crate) fn before(self, next: Option<Self>) -> Self {
        let mut keys = next.into_iter().flat_map(|next| next.keys(0..next.pages.len()));
        Self { next: std::array::from_fn(|_| keys.next()), ..self }
    }

    fn keys(&self, pages: Range<usize>) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let (at, len) = (self.at, self.shape.keys_len());
        self.pages[pages].iter().map(move |page| &page.data[at..][..len])
    }

    fn values(&self, pages: Range<usize>) -> impl Iterator<Item = &'a [f32]> + use<'a> {
        let (at, len) = (self.at + self.shape.keys_len(), self.shape.values_len());
        self.pages[pages].iter().map(move |page| &page.data[at..][..len])
    }
}

impl KeyValues for PagedKeyValues<'_> {
    fn scores(&self, q: &[f32], rows: usize, panels: Range<usize>, scores: &mut [f32]) {
        let ld = panels.len() * PANEL;
        let (keys, values) = (self.keys(panels.clone()), self.values(panels.clone()));
        let ahead = self.keys(panels).skip(BLOCKS_AHEAD).chain(values);
        multiply_each((q, rows), self.shape.head_dim, keys, ahead, (scores, ld));
    }

    fn mix(&self, probs: &[f32], rows: usize, panels: Range<usize>, out: &mut [f32], into: Into) {
        let ld = panels.len() * PANEL;
        let (num_panels, values) =
            (padded(self.shape.head_dim) / PANEL, self.values(panels.clone()));
        let next = self.next.into_iter().flatten();
        let ahead = self.values(panels).skip(BLOCKS_AHEAD).chain(next);
        multiply_sum((probs, ld, rows), num_panels, values, ahead, out, into);
    }
}
