//! Threads that share out the parts of one piece of work.
//!
//! Parts are handed out in their order to whoever is free. Each part writes to places of its own,
//! so a result has the same bits whoever computed it, on any number of threads. Idle threads sleep.

use std::sync::{Mutex, PoisonError};

/// A number of threads: the caller's own, and those of a pool.
#[derive(Debug, Default)]
pub(crate) struct Team {
    /// The others; none when the caller works alone.
    pool: Option<rayon::ThreadPool>,
}

impl Team {
    /// The calling thread by itself.
    pub(crate) fn solo() -> Self {
        Self::default()
    }

    /// `num_threads` threads, the calling one included.
    ///
    /// # Errors
    /// What the system says when it gives no threads.
    pub(crate) fn new(num_threads: usize) -> Result<Self, String> {
        if num_threads < 2 {
            return Ok(Self::solo());
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(num_threads - 1)
            .thread_name(|index| format!("trainer-{}", index + 1))
            .build()
            .map_err(|error| format!("no threads for training: {error}"))?;
        Ok(Self { pool: Some(pool) })
    }

    /// Number of threads.
    pub(crate) fn size(&self) -> usize {
        self.pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads)
            + usize::from(self.pool.is_some())
    }

    /// Calls `work` with every part, each on one thread, which brings one of `states` along.
    pub(crate) fn each<S: Send, T: Send>(
        &self,
        states: &mut [S],
        parts: Vec<T>,
        work: impl Fn(&mut S, T) + Sync,
    ) {
        let Some((own, others)) = states.split_first_mut() else { return };
        let others = &mut others[..];
        let num_others = others.len().min(parts.len().saturating_sub(1));
        let queue = Mutex::new(parts.into_iter());
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let run = |state: &mut S| {
            while let Some(part) = next() {
                work(state, part);
            }
        };
        match &self.pool {
            Some(pool) if num_others > 0 => pool.in_place_scope(|scope| {
                for state in others.iter_mut().take(num_others) {
                    scope.spawn(|_| run(state));
                }
                run(own);
            }),
            _ => run(own),
        }
    }
}

/// Cuts rows off the front of matrices, for parts to own.
pub(crate) struct RowsMut<'a> {
    rest: &'a mut [f32],
    width: usize,
}

impl<'a> RowsMut<'a> {
    /// Rows of `width`.
    pub(crate) fn new(data: &'a mut [f32], width: usize) -> Self {
        Self { rest: data, width }
    }

    /// The next `rows` rows.
    pub(crate) fn take(&mut self, rows: usize) -> &'a mut [f32] {
        let (taken, rest) = std::mem::take(&mut self.rest).split_at_mut(rows * self.width);
        self.rest = rest;
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_by_any_number_of_threads() {
        for num_threads in [1usize, 2, 5] {
            let team = Team::new(num_threads).unwrap();
            assert_eq!(team.size(), num_threads);
            let mut counts = vec![0usize; num_threads];
            let mut done = vec![0u32; 1000];
            let parts: Vec<(usize, &mut u32)> = done.iter_mut().enumerate().collect();
            team.each(&mut counts, parts, |count, (index, slot)| {
                *count += 1;
                *slot += index as u32 + 1;
            });
            assert_eq!(counts.iter().sum::<usize>(), 1000);
            assert!(done.iter().enumerate().all(|(i, x)| *x == i as u32 + 1));
            team.each(&mut counts, Vec::<()>::new(), |_, ()| unreachable!());
        }
    }
}
