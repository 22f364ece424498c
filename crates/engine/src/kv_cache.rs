//! Keys and values of sequences in pages of 32 positions, shared where contexts agree.
//!
//! A page holds all layers of 32 positions. Whole pages are shared by reference count and never
//! written again; the page that a sequence writes to is its own. So forks, siblings and turns of a
//! session are all the same thing, found through the [prefix tree](crate::prefix_tree).

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::attention::{KeyValues, write_column};
use crate::config::ModelConfig;
use crate::kernels::gemm::{Into, PANEL, matmul_panels, padded};

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

/// Keys and values of 32 positions. Positions not yet written hold zeros or stale finite numbers.
#[derive(Debug)]
pub(crate) struct Page {
    data: Vec<f32>,
    alive: Arc<AtomicUsize>,
}

impl Clone for Page {
    fn clone(&self) -> Self {
        self.alive.fetch_add(1, Ordering::Relaxed);
        Self { data: self.data.clone(), alive: Arc::clone(&self.alive) }
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
        self.alive.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes pages and knows how many are alive.
#[derive(Debug)]
pub(crate) struct PageAllocator {
    pub shape: PageShape,
    alive: Arc<AtomicUsize>,
}

impl PageAllocator {
    pub(crate) fn new(shape: PageShape) -> Self {
        Self { shape, alive: Arc::default() }
    }

    pub(crate) fn num_alive(&self) -> usize {
        self.alive.load(Ordering::Relaxed)
    }

    /// A page of zeros.
    pub(crate) fn page(&self) -> Arc<Page> {
        self.alive.fetch_add(1, Ordering::Relaxed);
        let data = vec![0.0; self.shape.num_bytes() / size_of::<f32>()];
        Arc::new(Page { data, alive: Arc::clone(&self.alive) })
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
        PagedKeyValues { pages: &self.pages, shape, at: shape.head_at(layer, kv_head) }
    }
}

/// Number of leading elements that agree.
pub(crate) fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// One head of a [`CachedSequence`].
pub(crate) struct PagedKeyValues<'a> {
    pages: &'a [Arc<Page>],
    shape: PageShape,
    at: usize,
}

impl KeyValues for PagedKeyValues<'_> {
    fn scores(&self, q: &[f32], rows: usize, panels: Range<usize>, scores: &mut [f32]) {
        let (dim, ld) = (self.shape.head_dim, panels.len() * PANEL);
        for (panel, page) in self.pages[panels].iter().enumerate() {
            let keys = &page.data[self.at..][..self.shape.keys_len()];
            let to = &mut scores[panel * PANEL..];
            matmul_panels(q, dim, (rows, dim, 1), keys, 0, to, ld, Into::Set);
        }
    }

    fn mix(&self, probs: &[f32], rows: usize, panels: Range<usize>, out: &mut [f32], into: Into) {
        let (width, ld) = (padded(self.shape.head_dim), panels.len() * PANEL);
        for (panel, page) in self.pages[panels].iter().enumerate() {
            let start = self.at + self.shape.keys_len();
            let values = &page.data[start..][..self.shape.values_len()];
            let into = if panel == 0 { into } else { Into::Add };
            let (probs, shape) = (&probs[panel * PANEL..], (rows, PAGE, width / PANEL));
            matmul_panels(probs, ld, shape, values, PAGE * PANEL, out, width, into);
        }
    }
}
