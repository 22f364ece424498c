//! Which tasks are worth training on: the filters of the reference (arXiv 2508.03501, section 4.1)
//! as rules in a fixed order, each with its threshold in the recipe, after a selection by id, date,
//! repository and language.
//!
//! Every rule looks at every row, so that the funnel can say what each would drop by itself.

mod diff;
mod references;
mod rules;
mod run;
mod selection;

use std::collections::HashMap;

use patchwright_core::TaskInstance;
use serde::{Deserialize, Serialize};

pub use run::{FilterSummary, Funnel, RuleCount, Sample, filter};
pub use selection::{Selection, parse_date, read_ids};

use crate::pool::Fingerprints;
use crate::validate::report::TaskVerdict;

/// `[filter]`: the thresholds of the rules, in their order. The defaults are the reference's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "each switches one rule")]
pub struct FilterRecipe {
    /// Fewest tests that must go from failing to passing.
    pub min_fail_to_pass: usize,
    /// Drop rows whose hidden tests import, or reach for, names that only the gold patch makes and
    /// the issue does not mention: they fail by `ImportError` or `AttributeError`, and no agent
    /// can guess the names. Read from the two patches; nothing is run.
    pub drop_invalid_references: bool,
    /// Most files that the gold patch changes; 0 means any number.
    pub max_modified_files: usize,
    /// The gold patch adds and removes fewer lines than this; 0 means any number.
    pub modified_lines_below: usize,
    /// Scores given by a language model are below this, from 0 (good) to 3 (bad); 0 means any.
    /// A row without scores stays.
    pub llm_score_below: f64,
    /// Which of `meta.llm_score` are looked at: any of them at the threshold drops the row.
    pub llm_scores: Vec<String>,
    /// Names in `meta.failed_lite_validators` that drop the row; `*` stands for any name.
    pub lite_validators: Vec<String>,
    /// Drop rows that a validation report calls flaky.
    pub drop_flaky: bool,
    /// Drop rows that a validation report finds wrong: the gold patch fails, the empty one passes,
    /// the lists are mislabelled, or nothing could be run.
    pub drop_not_valid: bool,
    /// Drop rows that the validation report does not name; without a report it is refused.
    pub require_validation: bool,
}

impl Default for FilterRecipe {
    fn default() -> Self {
        Self {
            min_fail_to_pass: 1,
            drop_invalid_references: true,
            max_modified_files: 7,
            modified_lines_below: 500,
            llm_score_below: 3.0,
            llm_scores: ["issue_text_score", "test_score", "difficulty_score"]
                .map(str::to_owned)
                .to_vec(),
            lite_validators: Vec::new(),
            drop_flaky: true,
            drop_not_valid: true,
            require_validation: false,
        }
    }
}

impl FilterRecipe {
    /// Thresholds that drop nothing.
    pub fn none() -> Self {
        Self {
            min_fail_to_pass: 0,
            drop_invalid_references: false,
            max_modified_files: 0,
            modified_lines_below: 0,
            llm_score_below: 0.0,
            llm_scores: Vec::new(),
            lite_validators: Vec::new(),
            drop_flaky: false,
            drop_not_valid: false,
            require_validation: false,
        }
    }

    /// Refuses thresholds that mean nothing. The text begins with the key.
    ///
    /// # Errors
    /// The key and what would be right.
    pub fn check(&self) -> Result<(), String> {
        if !self.llm_score_below.is_finite() || self.llm_score_below < 0.0 {
            return Err("llm_score_below: must be 0 (any score) or above".to_owned());
        }
        if self.llm_score_below > 0.0 && self.llm_scores.is_empty() {
            return Err("llm_scores: names no score, and llm_score_below asks for one; set \
                        llm_score_below = 0 to look at none"
                .to_owned());
        }
        Ok(())
    }
}

/// What one rule says of one row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// Whether the rule drops the row.
    pub drops: bool,
    /// What was found, with the numbers and the threshold.
    pub text: String,
}

/// The rules with all that they need to know.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    recipe: FilterRecipe,
    selection: Selection,
    verdicts: Option<HashMap<String, TaskVerdict>>,
    away_from: Option<Fingerprints>,
}

impl Filter {
    /// Rules by a recipe and a selection. `verdicts` is a validation report, for the rules on
    /// flaky and wrong tasks; without one they say nothing.
    ///
    /// # Errors
    /// As [`FilterRecipe::check`]; `require_validation` without a report.
    pub fn new(
        recipe: FilterRecipe,
        selection: Selection,
        verdicts: Option<Vec<TaskVerdict>>,
    ) -> Result<Self, String> {
        recipe.check()?;
        if recipe.require_validation && verdicts.is_none() {
            return Err("require_validation: needs a validation report".to_owned());
        }
        let by_id = |verdict: TaskVerdict| (verdict.instance_id.clone(), verdict);
        let verdicts = verdicts.map(|verdicts| verdicts.into_iter().map(by_id).collect());
        Ok(Self { recipe, selection, verdicts, away_from: None })
    }

    /// Drops, before all other rules but the selection, what training would be refused for: rows
    /// that share anything with the sets that these fingerprints are of.
    #[must_use]
    pub fn away_from(mut self, fingerprints: Fingerprints) -> Self {
        self.away_from = Some(fingerprints);
        self
    }

    /// What every rule that is in force says of a row, in their order. The first that drops it is
    /// the one that counts.
    pub fn judge(&self, instance: &TaskInstance) -> Vec<Finding> {
        let mut findings = self.selection.judge(instance);
        if let Some(fingerprints) = &self.away_from {
            let shared = fingerprints.shared_with(instance);
            let text = match &shared {
                None => "shares nothing with the sets to keep away from".to_owned(),
                Some(shared) => format!("shares {} with a set to keep away from", shared.what()),
            };
            findings.push(Finding { rule: "away_from", drops: shared.is_some(), text });
        }
        findings.extend(rules::judge(&self.recipe, self.verdicts.as_ref(), instance));
        findings
    }
}

#[cfg(test)]
mod tests;
