//! How a step's runs are shared out to threads. Who computes what has no influence on any result.

use std::sync::Arc;

use crate::decode::{DecodeWorkspace, Run, StepResult};
use crate::weights::Weights;

/// Least number of tokens that are worth another thread.
const MIN_SHARD_TOKENS: usize = 4;

/// A model with more parameters does not stay in a core's cache: rather than each thread reading
/// all weights for some of the sequences, all threads read some of the weights for all sequences.
const MAX_NARROW_PARAMETERS: usize = 1 << 23;

/// What one thread computes of a step.
#[derive(Default)]
struct Shard<'a> {
    num_tokens: usize,
    /// Places of the runs in the step.
    indices: Vec<usize>,
    runs: Vec<&'a mut Run>,
    results: Vec<StepResult>,
}

impl<'a> Shard<'a> {
    fn push(&mut self, index: usize, run: &'a mut Run) {
        self.num_tokens += run.count;
        self.indices.push(index);
        self.runs.push(run);
    }
}

/// Computes the `count` tokens of every run; results are in the order of the runs.
///
/// Called on a thread of a rayon pool. A share that no other thread has begun, because the machine
/// is busy, the caller computes itself.
pub(crate) fn step(
    weights: &Weights,
    workspaces: &mut [DecodeWorkspace],
    runs: Vec<&mut Run>,
) -> Vec<StepResult> {
    if weights.model.layout.total > MAX_NARROW_PARAMETERS
        && let Some(workspace) = workspaces.first_mut()
    {
        let mut runs = runs;
        return workspace.step(weights, &mut runs, true);
    }
    let num_runs = runs.len();
    let mut shards = share_out(runs, workspaces.len());
    let mut jobs = workspaces.iter_mut().zip(&mut shards);
    let own = jobs.next();
    let work = |(workspace, shard): (&mut DecodeWorkspace, &mut Shard)| {
        if !shard.runs.is_empty() {
            shard.results = workspace.step(weights, &mut shard.runs, false);
        }
    };
    rayon::scope(|scope| {
        for job in jobs {
            scope.spawn(move |_| work(job));
        }
        if let Some(own) = own {
            work(own);
        }
    });
    let mut results: Vec<StepResult> = (0..num_runs).map(|_| StepResult::default()).collect();
    for shard in shards {
        for (index, result) in shard.indices.into_iter().zip(shard.results) {
            results[index] = result;
        }
    }
    results
}

/// Shares runs out in about equal numbers of tokens. Chunks of contexts go to whoever has least;
/// single tokens follow in the order of their first page, so that siblings, which share pages, are
/// computed next to each other while the pages are in cache.
fn share_out(runs: Vec<&mut Run>, num_shards: usize) -> Vec<Shard<'_>> {
    let total: usize = runs.iter().map(|run| run.count).sum();
    // A thread is not woken for less than this.
    let num_shards = num_shards.min(total.div_ceil(MIN_SHARD_TOKENS)).max(1);
    let mut shards: Vec<Shard> = (0..num_shards).map(|_| Shard::default()).collect();
    let (mut chunks, mut singles): (Vec<_>, Vec<_>) =
        runs.into_iter().enumerate().partition(|(_, run)| run.count > 1);
    chunks.sort_by_key(|(index, run)| (std::cmp::Reverse(run.count), *index));
    for (index, run) in chunks {
        if let Some(shard) = shards.iter_mut().min_by_key(|shard| shard.num_tokens) {
            shard.push(index, run);
        }
    }
    singles.sort_by_key(|(index, run)| (run.cache.pages.first().map(Arc::as_ptr), *index));
    let mut current = 0;
    for (index, run) in singles {
        while current + 1 < num_shards && shards[current].num_tokens >= total.div_ceil(num_shards) {
            current += 1;
        }
        shards[current].push(index, run);
    }
    shards
}
