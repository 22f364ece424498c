//! What a pull tells while it works.

use std::time::Duration;

use crate::digest::Digest;

/// Something that happened while an image was pulled or loaded.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PullEvent {
    /// The image is known.
    Resolved {
        /// Its name, in full.
        reference: String,
        /// Layers that it has.
        num_layers: usize,
        /// Layers that are not in the store.
        num_missing: usize,
        /// Compressed bytes of those.
        missing_bytes: u64,
    },
    /// Compressed bytes came in, over the wire or from what an interrupted pull had left.
    Received {
        /// How many since the last such event of this layer.
        bytes: u64,
    },
    /// Another process is making this layer.
    Waiting {
        /// Its diff-id.
        layer: Digest,
    },
    /// A layer is in the store.
    LayerDone {
        /// Its diff-id.
        layer: Digest,
    },
    /// A request failed and is going to be made again.
    Retry {
        /// What failed.
        reason: String,
        /// When it is made again.
        after: Duration,
    },
}

/// Hears what happens, and says when to stop. Called by several threads.
pub trait Progress: Send + Sync {
    /// Something happened.
    fn event(&self, event: &PullEvent);

    /// Whether to stop. Asked several times a second.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Tells nobody and never stops.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _event: &PullEvent) {}
}
