//! Several layers at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::ImageError;
use crate::progress::{Progress, PullEvent};

/// Cancelled when the caller says so or a sibling failed.
struct Together<'a> {
    progress: &'a dyn Progress,
    failed: &'a AtomicBool,
}

impl Progress for Together<'_> {
    fn event(&self, event: &PullEvent) {
        self.progress.event(event);
    }

    fn is_cancelled(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.progress.is_cancelled()
    }
}

/// Does a job for each item, `parallelism` at a time, in the order of the items. The first failure
/// stops the others and is returned.
pub fn run<T: Sync>(
    items: &[T],
    parallelism: usize,
    progress: &dyn Progress,
    job: impl Fn(&T, &dyn Progress) -> Result<(), ImageError> + Sync,
) -> Result<(), ImageError> {
    let failed = AtomicBool::new(false);
    let next = AtomicUsize::new(0);
    let first: Mutex<Option<ImageError>> = Mutex::new(None);
    let work = || {
        let together = Together { progress, failed: &failed };
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let done = if together.is_cancelled() {
                Err(ImageError::Cancelled)
            } else {
                job(item, &together)
            };
            if let Err(error) = done {
                // Siblings that are cancelled by a failure come after it.
                let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(error);
                failed.store(true, Ordering::Relaxed);
                return;
            }
        }
    };
    thread::scope(|scope| {
        for _ in 1..parallelism.min(items.len()).max(1) {
            let named = thread::Builder::new().name("layer".to_owned());
            // Fewer threads do the same work.
            let _ = named.spawn_scoped(scope, work);
        }
        work();
    });
    first.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
