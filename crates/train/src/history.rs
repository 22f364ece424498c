//! Which tasks were solved how often: the journal's groups, added up.

use std::collections::BTreeMap;

use crate::journal::GroupRecord;

/// Counts of one instance in one stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Solves {
    /// Rollouts with a grade.
    pub num_graded: usize,
    /// Solved ones.
    pub num_solved: usize,
}

/// Solve counts by stage and instance.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SolveHistory {
    stages: BTreeMap<String, BTreeMap<String, Solves>>,
}

impl SolveHistory {
    /// Adds a group.
    pub fn add(&mut self, group: &GroupRecord) {
        let solves = self
            .stages
            .entry(group.stage.clone())
            .or_default()
            .entry(group.instance_id.clone())
            .or_default();
        solves.num_graded += group.num_graded;
        solves.num_solved += group.num_solved;
    }

    /// Counts of an instance in a stage.
    pub fn of(&self, stage: &str, instance_id: &str) -> Solves {
        self.stages
            .get(stage)
            .and_then(|instances| instances.get(instance_id))
            .copied()
            .unwrap_or_default()
    }

    /// Counts of an instance in the last of `stages` that graded it. A policy's verdict on a task
    /// is that of the latest policy that tried it, not of the base.
    pub fn latest(&self, stages: &[&str], instance_id: &str) -> Solves {
        stages
            .iter()
            .rev()
            .map(|stage| self.of(stage, instance_id))
            .find(|solves| solves.num_graded > 0)
            .unwrap_or_default()
    }
}
