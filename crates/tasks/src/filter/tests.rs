use std::path::Path;

use patchwright_core::TaskInstance;
use proptest::prelude::*;
use serde_json::json;

use super::{Filter, FilterRecipe, FilterSummary, Sample, Selection, filter};
use crate::import::{Format, TaskReader};
use crate::pool::Fingerprints;
use crate::rows::{read_task_set, write_task_set};
use crate::validate::report::{SCHEMA_VERSION, TaskVerdict, Verdict, read_report};

fn patch(files: usize, lines: usize) -> String {
    let share = lines / files;
    let diff = |file: usize| {
        let num = if file == 0 { lines - share * (files - 1) } else { share };
        let body = "+print(1)\n".repeat(num);
        format!("--- a/f{file}.py\n+++ b/f{file}.py\n@@ -1,0 +1,{num} @@\n{body}")
    };
    (0..files).map(diff).collect::<Vec<_>>().concat()
}

fn row(id: &str, files: usize, lines: usize) -> TaskInstance {
    TaskInstance {
        instance_id: id.to_owned(),
        repo: "Org/r".to_owned(),
        patch: patch(files, lines),
        problem_statement: "It fails.".to_owned(),
        fail_to_pass: vec!["t".to_owned()],
        created_at: "2025-05-31 23:59:59".to_owned(),
        ..TaskInstance::default()
    }
}

fn with_meta(mut row: TaskInstance, meta: serde_json::Value) -> TaskInstance {
    row.extra.insert("meta".to_owned(), meta);
    row
}

fn verdict(id: &str, verdict: Verdict, flaky: &[&str]) -> TaskVerdict {
    let text = json!({
        "schema_version": SCHEMA_VERSION, "instance_id": id, "verdict": verdict,
        "flaky_tests": flaky, "num_repeats": 50, "num_tests": 9, "seconds": 1.0,
    });
    serde_json::from_value(text).unwrap()
}

fn reference(verdicts: Option<Vec<TaskVerdict>>) -> Filter {
    Filter::new(FilterRecipe::default(), Selection::default(), verdicts).unwrap()
}

fn dropped_by(filter: &Filter, row: &TaskInstance) -> Option<(&'static str, String)> {
    let finding = filter.judge(row).into_iter().find(|finding| finding.drops)?;
    Some((finding.rule, finding.text))
}

#[test]
fn thresholds_are_the_references() {
    let filter = reference(None);
    let check = |row: &TaskInstance| dropped_by(&filter, row);
    assert_eq!(check(&row("a", 7, 499)), None);
    let text = "8 modified files, at most 7".to_owned();
    assert_eq!(check(&row("a", 8, 8)), Some(("modified_files", text)));
    let text = "500 modified lines, fewer than 500".to_owned();
    assert_eq!(check(&row("a", 1, 500)), Some(("modified_lines", text)));
    let score = |value: f64| with_meta(row("a", 1, 1), json!({"llm_score": {"test_score": value}}));
    assert_eq!(check(&score(2.0)), None);
    let (rule, text) = check(&score(3.0)).unwrap();
    assert_eq!((rule, text.as_str()), ("llm_score", "test_score 3; each below 3"));
    let empty = TaskInstance { fail_to_pass: Vec::new(), ..row("a", 1, 1) };
    assert_eq!(check(&empty).unwrap().0, "fail_to_pass");
}

#[test]
fn the_rows_own_counts_win() {
    let counted = with_meta(row("a", 1, 1), json!({"num_modified_files": 9.0}));
    assert_eq!(dropped_by(&reference(None), &counted).unwrap().0, "modified_files");
    let counted = with_meta(row("a", 1, 900), json!({"num_modified_lines": 5}));
    assert_eq!(dropped_by(&reference(None), &counted), None);
}

#[test]
fn names_nobody_can_know_drop_a_row() {
    let mut hidden = row("a", 1, 1);
    hidden.patch = hidden.patch.replace("print(1)", "def made_up():");
    hidden.test_patch =
        "--- a/t.py\n+++ b/t.py\n@@ -1,0 +1 @@\n+from f0 import made_up\n".to_owned();
    let (rule, text) = dropped_by(&reference(None), &hidden).unwrap();
    assert_eq!(rule, "invalid_references");
    assert!(text.ends_with("does not mention: made_up"), "{text}");
}

#[test]
fn validation_reports_speak_for_flaky_and_wrong_tasks() {
    let report = vec![
        verdict("good", Verdict::Valid, &[]),
        verdict("flaky", Verdict::Flaky, &["t::a"]),
        verdict("wrong", Verdict::GoldFails, &[]),
    ];
    let filter = reference(Some(report.clone()));
    assert_eq!(dropped_by(&filter, &row("good", 1, 1)), None);
    assert_eq!(dropped_by(&filter, &row("unknown", 1, 1)), None);
    let text = "1 of 9 tests flaky in 50 runs: t::a".to_owned();
    assert_eq!(dropped_by(&filter, &row("flaky", 1, 1)), Some(("flaky", text)));
    assert_eq!(dropped_by(&filter, &row("wrong", 1, 1)).unwrap().0, "not_valid");

    let strict = FilterRecipe { require_validation: true, ..FilterRecipe::default() };
    assert!(Filter::new(strict.clone(), Selection::default(), None).is_err());
    let filter = Filter::new(strict, Selection::default(), Some(report)).unwrap();
    assert_eq!(dropped_by(&filter, &row("unknown", 1, 1)).unwrap().0, "not_validated");
}

#[test]
fn lite_validators_count_when_asked_for() {
    let failed = with_meta(row("a", 1, 1), json!({"failed_lite_validators": ["has_links"]}));
    let filter = |names: &[&str]| {
        let lite_validators = names.iter().map(ToString::to_string).collect();
        let recipe = FilterRecipe { lite_validators, ..FilterRecipe::default() };
        Filter::new(recipe, Selection::default(), None).unwrap()
    };
    assert_eq!(dropped_by(&filter(&[]), &failed), None);
    assert_eq!(dropped_by(&filter(&["has_git"]), &failed), None);
    for names in [["*"], ["has_links"]] {
        assert_eq!(dropped_by(&filter(&names), &failed).unwrap().0, "lite_validators");
    }
}

#[test]
fn selections_choose_by_date_repository_and_language() {
    let mut go = row("a", 1, 1);
    go.extra.insert("language".to_owned(), "Go".into());
    let check = |selection: Selection, row: &TaskInstance| {
        let filter = Filter::new(FilterRecipe::none(), selection, None).unwrap();
        dropped_by(&filter, row).map(|(rule, _)| rule)
    };
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    let day = |day: &str| Some(day.to_owned());
    let none = Selection::default;
    assert_eq!(check(Selection { repos: texts(&["org/R"]), ..none() }, &go), None);
    assert_eq!(check(Selection { repos: texts(&["org/x"]), ..none() }, &go), Some("repo"));
    assert_eq!(check(Selection { languages: texts(&["go"]), ..none() }, &go), None);
    assert_eq!(
        check(Selection { languages: texts(&["go"]), ..none() }, &row("b", 1, 1)),
        Some("language")
    );
    assert_eq!(check(Selection { months: texts(&["2025-05"]), ..none() }, &go), None);
    assert_eq!(check(Selection { months: texts(&["2025-06"]), ..none() }, &go), Some("created"));
    assert_eq!(check(Selection { created_from: day("2025-05-31"), ..none() }, &go), None);
    assert_eq!(
        check(Selection { created_before: day("2025-05-31"), ..none() }, &go),
        Some("created")
    );
    let undated = TaskInstance { created_at: String::new(), ..go.clone() };
    assert_eq!(
        check(Selection { created_from: day("2020-01-01"), ..none() }, &undated),
        Some("created")
    );
}

fn run(
    path: &Path,
    rules: &Filter,
    sample: Option<Sample>,
) -> (FilterSummary, Option<Vec<TaskInstance>>) {
    let out = path.with_extension("out");
    let _ = std::fs::remove_file(&out);
    let reader = TaskReader::open(&[path.to_owned()], Format::Auto).unwrap();
    let summary = filter(reader, rules, sample, Some(&out), |_, _, _| true).unwrap();
    (summary, out.exists().then(|| read_task_set(&out).unwrap()))
}

#[test]
fn the_funnel_counts_in_order_alone_and_only() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let bad_score = json!({"llm_score": {"test_score": 3.0}});
    let rows = [
        row("kept", 1, 1),
        row("files", 9, 9),
        row("files-and-lines", 9, 900),
        row("lines", 1, 900),
        with_meta(row("all", 9, 900), bad_score),
    ];
    write_task_set(&path, &rows).unwrap();
    let (summary, written) = run(&path, &reference(None), None);
    assert_eq!(summary.ids, ["kept"]);
    assert_eq!(written.unwrap(), rows[..1]);
    let counts: Vec<_> = summary
        .funnel
        .rules
        .iter()
        .map(|c| (c.rule, c.num_dropped, c.num_alone, c.num_only))
        .collect();
    let expected = [
        ("fail_to_pass", 0, 0, 0),
        ("invalid_references", 0, 0, 0),
        ("modified_files", 3, 3, 1),
        ("modified_lines", 1, 3, 1),
        ("llm_score", 0, 1, 0),
    ];
    assert_eq!(counts, expected);
    assert_eq!((summary.funnel.num_in, summary.funnel.num_kept), (5, 1));
}

#[test]
fn what_training_would_be_refused_for_is_dropped() {
    let at =
        |id: &str, commit: &str| TaskInstance { base_commit: commit.to_owned(), ..row(id, 1, 1) };
    let held_out = [at("v-1", "0123456789abcdef")];
    let filter = reference(None).away_from(Fingerprints::of(&held_out));
    assert_eq!(dropped_by(&filter, &at("a", "fedcba9876543210")), None);
    let text = "shares the commit 0123456789abcdef of v-1 with a set to keep away from".to_owned();
    assert_eq!(dropped_by(&filter, &at("a", "0123456789ABCDEF")), Some(("away_from", text)));
}

/// The made-up SWE-rebench of `scripts/` falls as its maker says.
#[test]
fn the_synthetic_set_falls_as_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scripts/synthetic_rebench.py");
    let made = std::process::Command::new("python3")
        .arg(script)
        .arg(dir.path())
        .args(["--rows", "300"])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let expected: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("expected.json")).unwrap()).unwrap();
    let report = read_report(&dir.path().join("validation.jsonl")).unwrap();
    let (summary, written) = run(&dir.path().join("rows.jsonl"), &reference(Some(report)), None);
    assert_eq!(summary.funnel.num_in, 300);
    assert_eq!(json!(summary.funnel.num_kept), expected["num_kept"]);
    assert_eq!(json!(written.unwrap().len()), expected["num_kept"]);
    for count in &summary.funnel.rules {
        let made = expected["dropped"].get(count.rule).cloned().unwrap_or_else(|| json!(0));
        assert_eq!(json!(count.num_dropped), made, "{}", count.rule);
    }
}

#[test]
fn samples_are_fixed_by_ids_and_seed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    let rows: Vec<_> = (0..60).map(|i| row(&format!("i{i}"), 1, 1)).collect();
    write_task_set(&path, &rows).unwrap();
    let rules = reference(None);
    let sample = |seed| Some(Sample { num: 10, seed });
    let (first, _) = run(&path, &rules, sample(1));
    assert_eq!(first.ids.len(), 10);
    assert_ne!(run(&path, &rules, sample(2)).0.ids, first.ids);
    let backwards: Vec<_> = rows.iter().rev().cloned().collect();
    write_task_set(&path, &backwards).unwrap();
    let (again, _) = run(&path, &rules, sample(1));
    assert_eq!(again.ids, first.ids.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(run(&path, &rules, Some(Sample { num: 100, seed: 1 })).0.num_written, 60);
}

#[test]
fn a_list_with_ids_that_are_not_there_writes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("rows.jsonl");
    write_task_set(&path, &[row("a", 1, 1), row("b", 1, 1)]).unwrap();
    let rules = |ids: &[&str]| {
        let ids = Some(ids.iter().map(ToString::to_string).collect());
        let selection = Selection { ids, ..Selection::default() };
        Filter::new(FilterRecipe::none(), selection, None).unwrap()
    };
    let (summary, written) = run(&path, &rules(&["b"]), None);
    assert_eq!((summary.ids.len(), written.unwrap().len()), (1, 1));
    let (summary, written) = run(&path, &rules(&["b", "c"]), None);
    assert_eq!((summary.missing_ids, written), (vec!["c".to_owned()], None));
}

#[test]
fn thresholds_that_mean_nothing_are_refused() {
    let check = |recipe: FilterRecipe| recipe.check().unwrap_err();
    let error = check(FilterRecipe { llm_score_below: f64::NAN, ..FilterRecipe::default() });
    assert!(error.starts_with("llm_score_below: "), "{error}");
    let error = check(FilterRecipe { llm_scores: Vec::new(), ..FilterRecipe::default() });
    assert!(error.starts_with("llm_scores: "), "{error}");
    assert_eq!(FilterRecipe::none().check(), Ok(()));
}

proptest! {
    /// Any text as patch and metadata: every rule says something, and none panics.
    #[test]
    fn no_row_stops_us(
        patch in "(diff --git |--- |\\+\\+\\+ |@@ -1,3 \\+1,9 @@|[-+ ].{0,9}|def x\\(|\n|\\PC){0,30}",
        issue in "\\PC{0,20}",
        created_at in "\\PC{0,12}",
    ) {
        let mut row = row("a", 1, 1);
        row.test_patch.clone_from(&patch);
        row.patch = patch;
        row.problem_statement = issue;
        row.created_at = created_at;
        row.extra.insert("meta".to_owned(), "text".into());
        let months = vec!["2025-05".to_owned()];
        let selection = Selection { months, ..Selection::default() };
        let filter = Filter::new(FilterRecipe::default(), selection, None).unwrap();
        prop_assert_eq!(filter.judge(&row).len(), 6);
    }
}
