//! The reference's rules. The name of each is in the funnel and in `--explain`.

use std::collections::HashMap;

use patchwright_core::TaskInstance;
use serde_json::Value;

use super::diff::files;
use super::references::unknowable;
use super::{FilterRecipe, Finding};
use crate::validate::report::{TaskVerdict, Verdict};

/// What the rules that are in force say, in their order.
pub(super) fn judge(
    recipe: &FilterRecipe,
    verdicts: Option<&HashMap<String, TaskVerdict>>,
    instance: &TaskInstance,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |rule, drops, text| findings.push(Finding { rule, drops, text });
    if recipe.min_fail_to_pass > 0 {
        let num = instance.fail_to_pass.len();
        let text = format!("{num} tests in FAIL_TO_PASS, at least {}", recipe.min_fail_to_pass);
        add("fail_to_pass", num < recipe.min_fail_to_pass, text);
    }
    if recipe.drop_invalid_references {
        let names = unknowable(instance);
        let text = match names.len() {
            0 => "the hidden tests use no names that the agent cannot know".to_owned(),
            num => format!(
                "the hidden tests use {num} names that only the gold patch makes and the issue \
                 does not mention: {}",
                shortened(&names)
            ),
        };
        add("invalid_references", !names.is_empty(), text);
    }
    let diff = files(&instance.patch);
    if recipe.max_modified_files > 0 {
        let num = meta_count(instance, "num_modified_files").unwrap_or(diff.len() as u64);
        let text = format!("{num} modified files, at most {}", recipe.max_modified_files);
        add("modified_files", num > recipe.max_modified_files as u64, text);
    }
    if recipe.modified_lines_below > 0 {
        let counted = diff.iter().map(|file| file.num_changed() as u64).sum();
        let num = meta_count(instance, "num_modified_lines").unwrap_or(counted);
        let text = format!("{num} modified lines, fewer than {}", recipe.modified_lines_below);
        add("modified_lines", num >= recipe.modified_lines_below as u64, text);
    }
    if recipe.llm_score_below > 0.0 {
        let (drops, text) = llm_score(recipe, instance);
        add("llm_score", drops, text);
    }
    if !recipe.lite_validators.is_empty() {
        let (drops, text) = lite_validators(recipe, instance);
        add("lite_validators", drops, text);
    }
    if let Some(verdicts) = verdicts {
        validation(recipe, verdicts.get(&instance.instance_id), &mut add);
    }
    findings
}

fn shortened(names: &[String]) -> String {
    let first: Vec<&str> = names.iter().take(5).map(String::as_str).collect();
    let more = if names.len() > 5 { ", …" } else { "" };
    format!("{}{more}", first.join(", "))
}

/// `meta`, also where it is JSON in a string.
fn meta(instance: &TaskInstance) -> Option<&Value> {
    instance.extra.get("meta").filter(|meta| meta.is_object())
}

/// A count of `meta`, in which tools of tables write integers as floats.
fn meta_count(instance: &TaskInstance, field: &str) -> Option<u64> {
    let value = meta(instance)?.get(field)?;
    value.as_u64().or_else(|| value.as_f64().filter(|v| *v >= 0.0).map(|v| v as u64))
}

fn llm_score(recipe: &FilterRecipe, instance: &TaskInstance) -> (bool, String) {
    let scores = meta(instance).and_then(|meta| meta.get("llm_score"));
    let score = |name: &String| scores?.get(name)?.as_f64();
    let found: Vec<(&String, f64)> =
        recipe.llm_scores.iter().filter_map(|name| Some((name, score(name)?))).collect();
    let drops = found.iter().any(|(_, score)| *score >= recipe.llm_score_below);
    if found.is_empty() {
        return (false, "no scores".to_owned());
    }
    let list: Vec<String> = found.iter().map(|(name, score)| format!("{name} {score}")).collect();
    (drops, format!("{}; each below {}", list.join(", "), recipe.llm_score_below))
}

fn lite_validators(recipe: &FilterRecipe, instance: &TaskInstance) -> (bool, String) {
    let failed = meta(instance).and_then(|meta| meta.get("failed_lite_validators"));
    let failed: Vec<String> = match failed {
        Some(Value::Array(names)) => {
            names.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
        }
        _ => Vec::new(),
    };
    let counts = |name: &&String| recipe.lite_validators.iter().any(|r| r == "*" || r == *name);
    let counted: Vec<String> = failed.iter().filter(counts).cloned().collect();
    if counted.is_empty() {
        return (false, format!("{} failed validators, none that counts", failed.len()));
    }
    (true, format!("failed validators: {}", shortened(&counted)))
}

fn validation(
    recipe: &FilterRecipe,
    verdict: Option<&TaskVerdict>,
    add: &mut impl FnMut(&'static str, bool, String),
) {
    if recipe.require_validation {
        let text = if verdict.is_some() { "validated" } else { "not in the validation report" };
        add("not_validated", verdict.is_none(), text.to_owned());
    }
    let Some(verdict) = verdict else { return };
    if recipe.drop_flaky {
        let flaky = verdict.verdict == Verdict::Flaky || !verdict.flaky_tests.is_empty();
        let (num, runs) = (verdict.flaky_tests.len(), verdict.num_repeats);
        let text = format!("{num} of {} tests flaky in {runs} runs", verdict.num_tests);
        let which =
            if num > 0 { format!(": {}", shortened(&verdict.flaky_tests)) } else { String::new() };
        add("flaky", flaky, text + &which);
    }
    if recipe.drop_not_valid {
        let wrong = !matches!(verdict.verdict, Verdict::Valid | Verdict::Flaky);
        let text = format!("validation says {} {}", verdict.verdict.name(), verdict.reason);
        add("not_valid", wrong, text.trim_end().to_owned());
    }
}
