//! Grades by instance and patch, so that equal patches are graded once.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use patchwright_core::{RepoSource, TaskInstance, patch};

use super::{Grade, GradeError, Grader};

/// A grader that remembers. Threads that ask for the same grade at once wait for one run of it.
///
/// The key is the instance and the filtered patch as it applies, so that two texts of one change
/// share a grade. A failure of the infrastructure is not remembered. At most `num_grades_max`
/// grades are held; the oldest goes first.
pub struct GradeCache {
    grader: Grader,
    num_grades_max: usize,
    slots: Mutex<Slots>,
}

type Key = (String, String);
type Slot = Arc<Mutex<Option<Grade>>>;

#[derive(Default)]
struct Slots {
    by_key: HashMap<Key, Slot>,
    oldest_first: VecDeque<Key>,
    num_hits: u64,
}

impl GradeCache {
    /// A cache of at most `num_grades_max` grades (0 counts as 1).
    pub fn new(grader: Grader, num_grades_max: usize) -> Self {
        Self { grader, num_grades_max: num_grades_max.max(1), slots: Mutex::default() }
    }

    /// As [`Grader::grade`].
    ///
    /// # Errors
    /// As [`Grader::grade`].
    pub fn grade(
        &self,
        task: &TaskInstance,
        repo: &RepoSource,
        patch: &str,
    ) -> Result<Grade, GradeError> {
        let prepared = self.grader.prepare(task, repo)?;
        let filtered = self.grader.filter(&prepared, patch)?;
        if filtered.refused.is_some() || filtered.changes.is_empty() {
            return self.grader.grade_filtered(&prepared, &filtered);
        }
        let slot = self.slot((task.instance_id.clone(), patch::render(&filtered.changes)));
        // Held while the grade is made: whoever wants the same one waits here.
        let mut held = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(grade) = &*held {
            self.slots.lock().unwrap_or_else(PoisonError::into_inner).num_hits += 1;
            // What was dropped is this patch's own affair.
            return Ok(Grade { dropped: filtered.dropped, ..grade.clone() });
        }
        let grade = self.grader.grade_filtered(&prepared, &filtered)?;
        *held = Some(grade.clone());
        Ok(grade)
    }

    /// How many grades were answered from memory.
    pub fn num_hits(&self) -> u64 {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).num_hits
    }

    fn slot(&self, key: Key) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.by_key.get(&key) {
            return Arc::clone(slot);
        }
        if slots.oldest_first.len() >= self.num_grades_max
            && let Some(oldest) = slots.oldest_first.pop_front()
        {
            slots.by_key.remove(&oldest);
        }
        let slot = Slot::default();
        slots.oldest_first.push_back(key.clone());
        slots.by_key.insert(key, Arc::clone(&slot));
        slot
    }
}
