//! Filtering a whole set.

use std::collections::{BTreeSet, BinaryHeap};
use std::path::Path;

use patchwright_core::seed::derive_seed;
use patchwright_core::{TaskError, TaskInstance};
use serde::Serialize;

use super::{Filter, Finding};
use crate::import::{BadRow, MAX_REPORTED, TaskReader};
use crate::rows::RowWriter;

/// What one rule did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleCount {
    /// The rule's name.
    pub rule: &'static str,
    /// Rows that it dropped, of those that the rules before it left.
    pub num_dropped: usize,
    /// Rows that it would drop of all.
    pub num_alone: usize,
    /// Rows that it drops and no other rule does.
    pub num_only: usize,
}

/// How many rows each rule dropped.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Funnel {
    /// Rows that were judged.
    pub num_in: usize,
    /// The rules in their order.
    pub rules: Vec<RuleCount>,
    /// Rows that no rule dropped.
    pub num_kept: usize,
}

impl Funnel {
    /// Counts one row. Returns whether it stays.
    fn count(&mut self, findings: &[Finding]) -> bool {
        self.num_in += 1;
        let num_drops = findings.iter().filter(|finding| finding.drops).count();
        let mut first = true;
        for finding in findings {
            let place = self.rules.iter().position(|count| count.rule == finding.rule);
            let place = place.unwrap_or_else(|| {
                let rule = finding.rule;
                self.rules.push(RuleCount { rule, num_dropped: 0, num_alone: 0, num_only: 0 });
                self.rules.len() - 1
            });
            if finding.drops {
                let count = &mut self.rules[place];
                count.num_alone += 1;
                count.num_dropped += usize::from(first);
                count.num_only += usize::from(num_drops == 1);
                first = false;
            }
        }
        self.num_kept += usize::from(num_drops == 0);
        num_drops == 0
    }
}

/// A fixed subset of what is kept: the `num` instances whose ids come first in a pseudo-random
/// order of the seed. It depends on nothing but the ids and the seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// Instances at most.
    pub num: usize,
    /// Seed of the order.
    pub seed: u64,
}

impl Sample {
    fn rank(&self, instance_id: &str) -> u64 {
        derive_seed(self.seed, &["sample", instance_id])
    }
}

/// What became of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FilterSummary {
    /// The funnel.
    pub funnel: Funnel,
    /// Rows in the new file: what was kept, or the sample of it.
    pub num_written: usize,
    /// Rows that are no instances; they are not in the funnel.
    pub num_bad: usize,
    /// What was wrong with them, [`MAX_REPORTED`] at most.
    pub problems: Vec<BadRow>,
    /// Ids of the selection's list that are not in the set, sorted.
    pub missing_ids: Vec<String>,
    /// Whether it ended before the input did; nothing was written then.
    pub stopped: bool,
    /// The ids that were written, in the file's order.
    #[serde(skip)]
    pub ids: Vec<String>,
}

/// Rows that are kept for a sample, the worst on top.
type Best = BinaryHeap<(u64, usize, Box<Ranked>)>;

/// A row in the heap; rank and index, which differ, decide.
struct Ranked(TaskInstance);

impl PartialEq for Ranked {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, _: &Self) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

/// Judges all rows of a reader and writes those that stay to `out`, if there is one. Nothing is
/// written when an id of the selection's list is missing. `proceed` is as in
/// [`crate::import::import`].
///
/// # Errors
/// [`TaskError::Io`] when the file cannot be written.
pub fn filter(
    mut reader: TaskReader,
    rules: &Filter,
    sample: Option<Sample>,
    out: Option<&Path>,
    mut proceed: impl FnMut(u64, u64, &Funnel) -> bool,
) -> Result<FilterSummary, TaskError> {
    let mut writer = out.map(RowWriter::create).transpose()?;
    let mut summary = FilterSummary::default();
    let mut missing: BTreeSet<String> = rules.selection.ids.clone().unwrap_or_default();
    let mut best = Best::new();
    while let Some(item) = reader.next() {
        match item {
            Ok(instance) => {
                missing.remove(&instance.instance_id);
                let stays = summary.funnel.count(&rules.judge(&instance));
                match sample {
                    _ if !stays => {}
                    Some(sample) => {
                        let rank = sample.rank(&instance.instance_id);
                        best.push((rank, summary.funnel.num_in, Box::new(Ranked(instance))));
                        if best.len() > sample.num {
                            best.pop();
                        }
                    }
                    None => keep(&instance, writer.as_mut(), &mut summary.ids)?,
                }
            }
            Err(bad) => {
                summary.num_bad += 1;
                if summary.problems.len() < MAX_REPORTED {
                    summary.problems.push(bad);
                }
            }
        }
        if (summary.funnel.num_in + summary.num_bad).is_multiple_of(128) {
            let (done, total) = reader.progress();
            if !proceed(done, total, &summary.funnel) {
                summary.stopped = true;
                return Ok(summary);
            }
        }
    }
    summary.missing_ids = missing.into_iter().collect();
    if !summary.missing_ids.is_empty() {
        summary.ids.clear();
        return Ok(summary);
    }
    let mut sampled = best.into_vec();
    sampled.sort_by_key(|(_, index, _)| *index);
    for (_, _, ranked) in sampled {
        keep(&ranked.0, writer.as_mut(), &mut summary.ids)?;
    }
    summary.num_written = writer.map_or(Ok(0), RowWriter::finish)?;
    Ok(summary)
}

fn keep(
    instance: &TaskInstance,
    writer: Option<&mut RowWriter>,
    ids: &mut Vec<String>,
) -> Result<(), TaskError> {
    ids.push(instance.instance_id.clone());
    writer.map_or(Ok(()), |writer| writer.write(instance))
}
