//! The radix tree of what is cached: who asks for a context finds the pages of its longest prefix.
//!
//! An edge carries the tokens of one page: 32, or fewer at a leaf. Siblings may begin alike, since
//! a page is never split; who shares only a part of a page copies it. The tree holds whole pages
//! as soon as they are computed, so sequences share while they run, and the last, partly filled
//! page of a sequence when it stops running. All contents belong to one policy version.
//!
//! Nodes are evicted from the leaves, least recently used first, and never while a sequence runs
//! on them. What is found has no influence on any result, only on what it costs.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use crate::kv_cache::{PAGE, Page, common_prefix};

/// A place in the tree. The root stands for the empty context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct NodeId(usize);

/// The empty context.
pub(crate) const ROOT: NodeId = NodeId(0);

#[derive(Debug)]
struct Node {
    parent: NodeId,
    /// At least one, at most a page; fewer than a page only without children.
    tokens: Box<[u32]>,
    /// Absent at the root only.
    page: Option<Arc<Page>>,
    /// Ordered by tokens: the child that agrees longest with a key is next to the key's place.
    children: BTreeMap<Box<[u32]>, NodeId>,
    last_used: u64,
    /// Tells a node from a later one in the same place.
    serial: u64,
}

/// What the tree knows of a context.
#[derive(Debug)]
pub(crate) struct Found {
    /// Where the last whole page is.
    pub node: NodeId,
    /// All whole pages of the prefix.
    pub pages: Vec<Arc<Page>>,
    /// A page whose first so many positions agree as well.
    pub partial: Option<(Arc<Page>, usize)>,
}

impl Found {
    /// Tokens of the prefix.
    pub(crate) fn len(&self) -> usize {
        self.pages.len() * PAGE + self.partial.as_ref().map_or(0, |(_, len)| *len)
    }
}

/// The tree. See the module's description.
#[derive(Debug)]
pub(crate) struct PrefixTree {
    nodes: Vec<Node>,
    /// Places in `nodes` that are free.
    free: Vec<NodeId>,
    /// All leaves but the root, least recently used first.
    leaves: BTreeSet<(u64, NodeId)>,
    clock: u64,
}

impl PrefixTree {
    pub(crate) fn new() -> Self {
        let root = Node {
            parent: ROOT,
            tokens: Box::default(),
            page: None,
            children: BTreeMap::new(),
            last_used: 0,
            serial: 0,
        };
        Self { nodes: vec![root], free: Vec::new(), leaves: BTreeSet::new(), clock: 0 }
    }

    /// Forgets everything: the weights have changed.
    pub(crate) fn clear(&mut self) {
        *self = Self { clock: self.clock, ..Self::new() };
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The longest prefix of `context`, which counts as used now.
    pub(crate) fn find(&mut self, context: &[u32]) -> Found {
        let (path, partial) = self.walk(context);
        let node = path.last().copied().unwrap_or(ROOT);
        self.touch(partial.map_or(node, |(child, _)| child));
        let page = |id: &NodeId| self.node(*id).page.clone();
        Found {
            node,
            pages: path.iter().filter_map(page).collect(),
            partial: partial.and_then(|(child, len)| Some((page(&child)?, len))),
        }
    }

    /// Length of the longest known prefix of `context`.
    pub(crate) fn prefix_len(&self, context: &[u32]) -> usize {
        let (path, partial) = self.walk(context);
        path.len() * PAGE + partial.map_or(0, |(_, len)| len)
    }

    /// The nodes of the whole pages of `context`, and the child that agrees longest with the rest.
    fn walk(&self, context: &[u32]) -> (Vec<NodeId>, Option<(NodeId, usize)>) {
        let mut path = Vec::new();
        let mut at = ROOT;
        let mut rest = context;
        while let Some((page, after)) = rest.split_at_checked(PAGE)
            && let Some(child) = self.node(at).children.get(page)
        {
            path.push(*child);
            (at, rest) = (*child, after);
        }
        let key = &rest[..rest.len().min(PAGE)];
        let children = &self.node(at).children;
        let below = children.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(key)));
        let above = children.range::<[u32], _>((Bound::Included(key), Bound::Unbounded));
        let neighbours = below.last().into_iter().chain(above.take(1));
        let best = neighbours
            .map(|(tokens, child)| (*child, common_prefix(tokens, key)))
            .max_by_key(|(_, len)| *len)
            .filter(|(_, len)| *len > 0);
        (path, best)
    }

    /// Marks a node and those above it as used now.
    fn touch(&mut self, id: NodeId) {
        self.clock += 1;
        let clock = self.clock;
        self.set_last_used(id, clock);
        let mut at = self.node(id).parent;
        while at != ROOT {
            self.nodes[at.0].last_used = clock;
            at = self.node(at).parent;
        }
    }

    fn set_last_used(&mut self, id: NodeId, clock: u64) {
        if self.leaves.remove(&(self.node(id).last_used, id)) {
            self.leaves.insert((clock, id));
        }
        self.nodes[id.0].last_used = clock;
    }

    /// Adds the page that follows `parent`. Gives the place and the page of these tokens in the
    /// tree: another's, if it was there already. Nothing is added, and there is no place, if a
    /// longer page that begins with these tokens is known.
    ///
    /// `parent` must be alive: the root, or a node that a running sequence holds the page of.
    pub(crate) fn insert(
        &mut self,
        parent: NodeId,
        tokens: &[u32],
        page: &Arc<Page>,
    ) -> Option<(NodeId, Arc<Page>)> {
        let children = &self.node(parent).children;
        if let Some(&known) = children.get(tokens) {
            self.touch(known);
            return Some((known, self.node(known).page.clone()?));
        }
        let longer = children.range::<[u32], _>((Bound::Excluded(tokens), Bound::Unbounded)).next();
        if let Some((_, &longer)) = longer.filter(|(key, _)| key.starts_with(tokens)) {
            self.touch(longer);
            return None;
        }
        // Shorter ones say nothing new any more. They have no children, and nobody runs on them.
        let shorter: Vec<NodeId> =
            (1..tokens.len()).filter_map(|len| children.get(&tokens[..len]).copied()).collect();
        for id in shorter {
            self.remove(id);
        }
        self.clock += 1;
        let node = Node {
            parent,
            tokens: tokens.into(),
            page: Some(Arc::clone(page)),
            children: BTreeMap::new(),
            last_used: self.clock,
            serial: self.clock,
        };
        let id = self.free.pop().unwrap_or(NodeId(self.nodes.len()));
        if let Some(place) = self.nodes.get_mut(id.0) {
            *place = node;
        } else {
            self.nodes.push(node);
        }
        self.leaves.remove(&(self.node(parent).last_used, parent));
        self.leaves.insert((self.clock, id));
        self.nodes[parent.0].children.insert(tokens.into(), id);
        if parent != ROOT {
            self.touch(id);
        }
        Some((id, Arc::clone(page)))
    }

    /// Removes a leaf; its page lives on with whoever holds it.
    fn remove(&mut self, id: NodeId) {
        let Node { parent, last_used, .. } = *self.node(id);
        self.leaves.remove(&(last_used, id));
        let tokens = std::mem::take(&mut self.nodes[id.0].tokens);
        self.nodes[id.0].page = None;
        let above = &mut self.nodes[parent.0];
        above.children.remove(&tokens);
        if above.children.is_empty() && parent != ROOT {
            self.leaves.insert((above.last_used, parent));
        }
        self.free.push(id);
    }

    /// Frees the least recently used page that nobody runs on. Whether there was one.
    pub(crate) fn evict(&mut self) -> bool {
        let is_idle =
            |id: NodeId| self.node(id).page.as_ref().is_none_or(|p| Arc::strong_count(p) == 1);
        let victim = self.leaves.iter().map(|(_, id)| *id).find(|id| is_idle(*id));
        if let Some(id) = victim {
            self.remove(id);
        }
        victim.is_some()
    }

    /// A name of a node for [`PrefixTree::demote`], good for as long as one likes.
    pub(crate) fn bookmark(&self, id: NodeId) -> (NodeId, u64) {
        (id, self.node(id).serial)
    }

    /// Nobody is expected to come back for this node: it, and those above it that lead nowhere
    /// else, are evicted first.
    pub(crate) fn demote(&mut self, (id, serial): (NodeId, u64)) {
        let mut at = id;
        let is_same = self.nodes.get(at.0).is_some_and(|n| n.serial == serial && n.page.is_some());
        if !is_same || !self.node(at).children.is_empty() {
            return;
        }
        while at != ROOT && self.node(at).children.len() <= 1 {
            self.set_last_used(at, 0);
            at = self.node(at).parent;
        }
    }

    /// Number of pages that the tree holds.
    #[cfg(test)]
    pub(crate) fn num_pages(&self) -> usize {
        self.nodes.iter().filter(|n| n.page.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{ModelConfig, ModelType};
    use crate::kv_cache::{PageAllocator, PageShape};

    fn allocator() -> PageAllocator {
        PageAllocator::new(PageShape::new(&ModelConfig {
            model_type: ModelType::Llama,
            vocab_size: 2,
            hidden_size: 2,
            intermediate_size: 2,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            num_key_value_heads: 1,
            head_dim: 2,
            max_position_embeddings: 1024,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
            attention_bias: false,
            rope_scaling: None,
        }))
    }

    /// Stores a sequence as a finished one is; gives the pages of its whole pages, held.
    fn store(tree: &mut PrefixTree, tokens: &[u32], allocator: &PageAllocator) -> Vec<Arc<Page>> {
        let (mut at, mut held) = (ROOT, Vec::new());
        for part in tokens.chunks(PAGE) {
            let Some((node, page)) = tree.insert(at, part, &allocator.page()) else { break };
            at = node;
            held.push(page);
        }
        held
    }

    /// Contexts of a few kinds that begin alike in many ways.
    fn context() -> impl Strategy<Value = Vec<u32>> {
        (0usize..130, 0usize..5, 0usize..130).prop_map(|(len, kind, turn)| {
            (0..len).map(|i| if i < turn { 0 } else { kind as u32 }).collect()
        })
    }

    fn naive(known: &[Vec<u32>], context: &[u32]) -> usize {
        known.iter().map(|tokens| common_prefix(tokens, context)).max().unwrap_or(0)
    }

    proptest! {
        #[test]
        fn the_longest_prefix_is_found(
            stored in prop::collection::vec(context(), 0..12),
            asked in prop::collection::vec(context(), 1..12),
        ) {
            let (mut tree, allocator) = (PrefixTree::new(), allocator());
            for tokens in &stored {
                store(&mut tree, tokens, &allocator);
            }
            prop_assert_eq!(tree.num_pages(), allocator.num_alive());
            for context in &asked {
                prop_assert_eq!(tree.prefix_len(context), naive(&stored, context));
                prop_assert_eq!(tree.find(context).len(), naive(&stored, context));
            }
        }

        #[test]
        fn what_runs_is_never_evicted_and_the_rest_is(
            stored in prop::collection::vec(context(), 1..12),
            running in prop::collection::vec(any::<bool>(), 12),
            evictions in prop::collection::vec(0usize..6, 12),
        ) {
            let (mut tree, allocator) = (PrefixTree::new(), allocator());
            let mut held = Vec::new();
            for ((tokens, runs), evictions) in stored.iter().zip(&running).zip(&evictions) {
                let mut pages = store(&mut tree, tokens, &allocator);
                // As sequences do, whole pages only are held.
                pages.truncate(tokens.len() / PAGE);
                if *runs {
                    held.push((tokens.clone(), pages));
                }
                for _ in 0..*evictions {
                    tree.evict();
                }
                for (tokens, pages) in &held {
                    let found = tree.find(tokens);
                    prop_assert!(found.pages.len() >= pages.len());
                    for (found, page) in found.pages.iter().zip(pages) {
                        prop_assert!(Arc::ptr_eq(found, page));
                    }
                }
            }
            held.clear();
            while tree.evict() {}
            prop_assert_eq!((tree.num_pages(), allocator.num_alive()), (0, 0));
        }
    }

    #[test]
    fn the_least_recently_used_goes_first_unless_one_is_given_up() {
        let (mut tree, allocator) = (PrefixTree::new(), allocator());
        let contexts: Vec<Vec<u32>> = (0..4).map(|kind| vec![kind; 20]).collect();
        for tokens in &contexts {
            store(&mut tree, tokens, &allocator);
        }
        tree.find(&contexts[0]);
        let last = tree.walk(&contexts[3]).1.unwrap().0;
        let bookmark = tree.bookmark(last);
        tree.demote(bookmark);
        for victim in [3, 1, 2, 0] {
            assert_eq!(tree.prefix_len(&contexts[victim]), 20);
            assert!(tree.evict());
            assert_eq!(tree.prefix_len(&contexts[victim]), 0);
        }
        // The place is another's by now: nothing happens.
        store(&mut tree, &contexts[0], &allocator);
        tree.demote(bookmark);
        assert!(tree.evict() && !tree.evict());
    }
}
