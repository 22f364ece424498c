//! An image that is here, and the lease that keeps it.

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use patchwright_core::RootFs;

use crate::config::ImageConfig;
use crate::digest::Digest;

/// An image whose layers are all in the store. As long as it, or a clone, is alive, `gc` and `rm`
/// of any process leave its layers alone: keep it for as long as sandboxes stand on it.
#[derive(Debug, Clone)]
pub struct Image {
    pub(crate) id: Digest,
    pub(crate) reference: String,
    pub(crate) config: ImageConfig,
    /// The topmost first.
    pub(crate) layers: Vec<PathBuf>,
    pub(crate) bytes: u64,
    /// A shared lock on the image's record; let go by the kernel if the process is killed.
    pub(crate) _lease: Arc<File>,
}

impl Image {
    /// The digest of the config: the same image has the same id, whichever way it came.
    pub fn id(&self) -> Digest {
        self.id
    }

    /// The name under which it was asked for, in full; its id where it has no name.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// How its commands are to be run.
    pub fn config(&self) -> &ImageConfig {
        &self.config
    }

    /// Directories to stack as an overlay mounted with `userxattr`, the topmost first. A layer
    /// that an image has twice is here once: what is below its upper copy cannot be seen.
    pub fn layers(&self) -> &[PathBuf] {
        &self.layers
    }

    /// What a sandbox stands on.
    pub fn root(&self) -> RootFs {
        RootFs::Layers(self.layers.clone())
    }

    /// Bytes of all files of all layers.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}
