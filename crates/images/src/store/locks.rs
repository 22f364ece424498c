//! Locks between processes. The kernel lets go of them when their holder dies, however it dies.
//! Lock files are never removed, so that all lock the same file.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::ImageStore;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::progress::{Progress, PullEvent};

/// How often a lock that another process has is tried again.
const POLL: Duration = Duration::from_millis(50);

pub(super) fn open_lock(path: &Path) -> Result<File, ImageError> {
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .read(true)
        .open(path)
        .map_err(ImageError::at(path))
}

/// Tries to lock: whether it did.
pub(super) fn try_lock(file: &File, path: &Path) -> Result<bool, ImageError> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(ImageError::at(path)(error)),
    }
}

impl ImageStore {
    /// Lock on records and references. Held for moments.
    pub(super) fn lock_index(&self) -> Result<File, ImageError> {
        let path = self.dir.join("locks/index");
        let file = open_lock(&path)?;
        file.lock().map_err(ImageError::at(&path))?;
        Ok(file)
    }

    fn layer_lock_path(&self, diff_id: Digest) -> std::path::PathBuf {
        // A bounded number of files; layers that share one wait for each other.
        self.dir.join("locks").join(format!("{:02x}", diff_id.shard()))
    }

    /// Lock on a layer in the making. Held for as long as that takes.
    pub(super) fn lock_layer(
        &self,
        diff_id: Digest,
        progress: &dyn Progress,
    ) -> Result<File, ImageError> {
        let path = self.layer_lock_path(diff_id);
        let file = open_lock(&path)?;
        let mut told = false;
        while !try_lock(&file, &path)? {
            if progress.is_cancelled() {
                return Err(ImageError::Cancelled);
            }
            if !told {
                progress.event(&PullEvent::Waiting { layer: diff_id });
                told = true;
            }
            thread::sleep(POLL);
        }
        Ok(file)
    }

    /// The lock on a layer in the making, unless somebody has it.
    pub(super) fn try_lock_layer(&self, diff_id: Digest) -> Result<Option<File>, ImageError> {
        let path = self.layer_lock_path(diff_id);
        let file = open_lock(&path)?;
        Ok(try_lock(&file, &path)?.then_some(file))
    }
}
