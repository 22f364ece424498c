//! Task sets in, chosen from, and out.

use std::path::Path;

use crate::support::{patchwright, shown};

fn row(id: &str, more: &str) -> String {
    format!(
        r#"{{"instance_id":"{id}","repo":"org/r","base_commit":"c-{id}","problem_statement":"p","FAIL_TO_PASS":["t"],"PASS_TO_PASS":"[]","patch":"--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-a\n+b\n","install_config":{{"test_cmd":"pytest"}},"created_at":"2025-05-02 10:00:00"{more}}}"#
    )
}

/// Runs the program, which must end with `code`; its output and what it says.
fn run(dir: &Path, code: i32, args: &[&str]) -> (String, String) {
    let output = patchwright(dir, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", shown(&output));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

fn ids(path: &Path) -> Vec<String> {
    let rows = patchwright_tasks::rows::read_task_set(path).unwrap();
    rows.into_iter().map(|row| row.instance_id).collect()
}

#[test]
fn rows_are_imported_and_bad_ones_named() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [row("a", ""), "{}".to_owned(), row("b", ""), row("a", "")];
    std::fs::write(dir.path().join("in.jsonl"), lines.join("\n")).unwrap();
    let args = ["tasks", "import", "in.jsonl", "--out", "out.jsonl"];
    let (_, said) = run(dir.path(), 1, &args);
    assert!(said.contains("error: in.jsonl:2: missing field `instance_id`"), "{said}");
    assert!(said.contains("in.jsonl:4: instance_id: a was already at in.jsonl:1"), "{said}");
    let summary = "4 rows read, 2 written to out.jsonl, 1 bad, 1 duplicates left out";
    assert!(said.contains(summary), "{said}");
    assert_eq!(ids(&dir.path().join("out.jsonl")), ["a", "b"]);

    let (json, _) = run(dir.path(), 1, &[args.as_slice(), &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["num_bad"], &json["problems"][0]["row"]), (&1.into(), &2.into()));

    let strict = ["tasks", "import", "in.jsonl", "--out", "strict.jsonl", "--strict"];
    let (_, said) = run(dir.path(), 1, &strict);
    assert!(said.contains("stopped at a bad one: strict.jsonl is not written"), "{said}");
    assert!(!dir.path().join("strict.jsonl").exists());

    let (_, said) = run(dir.path(), 0, &["tasks", "import", "out.jsonl", "--out", "same.jsonl"]);
    assert!(said.contains("2 rows read, 2 written"), "{said}");
    run(dir.path(), 2, &["tasks", "import", "none.jsonl", "--out", "x.jsonl"]);
}

#[test]
fn tasks_survive_as_harbor_directories() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("in.jsonl"), row("a", "") + "\n" + &row("b", "")).unwrap();
    run(dir.path(), 0, &["tasks", "import", "in.jsonl", "--out", "rows.jsonl"]);
    run(dir.path(), 0, &["tasks", "export", "rows.jsonl", "--format", "harbor", "--out", "tasks"]);
    assert!(dir.path().join("tasks/b/environment/Dockerfile").is_file());
    run(dir.path(), 0, &["tasks", "import", "tasks", "--out", "back.jsonl"]);
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(text("rows.jsonl"), text("back.jsonl"));
    let again = ["tasks", "export", "rows.jsonl", "--format", "harbor", "--out", "tasks"];
    let (_, said) = run(dir.path(), 1, &again);
    assert!(said.contains("tasks/a: writing it: File exists"), "{said}");
}

#[test]
fn rules_are_counted_and_explained() {
    let dir = tempfile::tempdir().unwrap();
    let lines = [
        row("good", ""),
        row("wide", r#","meta":{"num_modified_files":8}"#),
        row("vague", r#","meta":{"llm_score":{"issue_text_score":3.0}}"#),
        row("late", "").replace("2025-05-02", "2025-06-02"),
    ];
    std::fs::write(dir.path().join("in.jsonl"), lines.join("\n")).unwrap();
    let filter = |code: i32, more: &[&str]| {
        run(dir.path(), code, &[&["tasks", "filter", "in.jsonl"], more].concat())
    };
    let (funnel, said) = filter(0, &["--out", "out.jsonl"]);
    assert!(said.contains("2 rows written to out.jsonl"), "{said}");
    let line = |rule: &str| -> Vec<String> {
        let line = funnel.lines().find(|line| line.starts_with(rule)).unwrap();
        line.split_whitespace().map(str::to_owned).collect()
    };
    assert_eq!(line("modified_files"), ["modified_files", "1", "3", "1", "1"]);
    assert_eq!(line("llm_score"), ["llm_score", "1", "2", "1", "1"]);
    assert_eq!(ids(&dir.path().join("out.jsonl")), ["good", "late"]);

    let (text, _) = filter(0, &["--explain", "wide"]);
    assert!(text.starts_with("wide is dropped by modified_files\n"), "{text}");
    assert!(text.contains("8 modified files, at most 7"), "{text}");
    let (text, _) = filter(0, &["--explain", "wide", "--set", "filter.max_modified_files=8"]);
    assert!(text.starts_with("wide is kept\n"), "{text}");
    filter(2, &["--explain", "none"]);

    let (_, said) = filter(2, &["--set", "filter.max_modified_file=8"]);
    assert!(said.contains("did you mean \"max_modified_files\"?"), "{said}");
    let (_, said) = filter(2, &["--set", "filter.require_validation=true"]);
    assert!(said.contains("filter.require_validation: needs a validation report"), "{said}");
    let (_, said) = filter(2, &["--month", "May"]);
    assert!(said.contains("--month: \"May\" is no month such as 2025-05"), "{said}");

    std::fs::write(dir.path().join("held.jsonl"), row("good", "")).unwrap();
    filter(0, &["--away-from", "held.jsonl", "--out", "apart.jsonl"]);
    assert_eq!(ids(&dir.path().join("apart.jsonl")), ["late"]);
    filter(0, &["--no-rules", "--month", "2025-06", "--out", "june.jsonl"]);
    assert_eq!(ids(&dir.path().join("june.jsonl")), ["late"]);
    let sample = ["--no-rules", "--sample", "2", "--out", "two.jsonl", "--write-ids", "two.txt"];
    filter(0, &sample);
    filter(0, &["--no-rules", "--ids", "two.txt", "--out", "again.jsonl"]);
    let text = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(text("two.jsonl"), text("again.jsonl"));
    assert_eq!(ids(&dir.path().join("two.jsonl")).len(), 2);
    std::fs::write(dir.path().join("two.txt"), "good\nmissing\n").unwrap();
    let (_, said) = filter(1, &["--no-rules", "--ids", "two.txt", "--out", "no.jsonl"]);
    assert!(said.contains("1 ids of the list are not in the set, such as missing"), "{said}");
}

/// Training stops before it begins when the pool holds what it is measured on.
#[test]
fn evaluation_tasks_are_not_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path().join("repo");
    std::fs::create_dir(&repo).unwrap();
    std::fs::write(repo.join("x.py"), "a\n").unwrap();
    let here = |id: &str| row(id, "").replace("org/r", &repo.display().to_string());
    let here = |id: &str| here(id).replace(&format!("c-{id}"), "");
    std::fs::write(dir.path().join("pool.jsonl"), here("a")).unwrap();
    std::fs::write(dir.path().join("later.jsonl"), here("a")).unwrap();
    let args = [
        "train",
        "smoke",
        "--out",
        "run",
        "--set",
        "tasks.train.source=file",
        "--set",
        "tasks.train.path=pool.jsonl",
        "--set",
        "tasks.held-out.source=none",
        "--set",
        "tasks.transfer.source=none",
        "--set",
        "tasks.keep_away=[\"later.jsonl\"]",
    ];
    let (_, said) = run(dir.path(), 1, &args);
    assert!(said.contains("tasks.keep_away later.jsonl: instance a is in the training"), "{said}");
    assert!(!dir.path().join("run/checkpoints").exists(), "nothing was trained");
}
