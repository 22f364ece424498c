//! Commands that make sandboxes, on a task set from a seed.

use std::collections::BTreeMap;
use std::path::Path;

use crate::support::{patchwright, shown};
use patchwright_core::TaskInstance;
use serde_json::Value;

fn generate(dir: &Path) -> Vec<TaskInstance> {
    let output =
        patchwright(dir, &["tasks", "generate", "--out", "t.jsonl", "--num", "3", "--seed", "5"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let text = std::fs::read_to_string(dir.join("t.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn command(text: &str) -> String {
    format!("```command\n{text}\n```")
}

/// A script that applies the gold patch is graded solved; one that does nothing, or that only
/// edits tests, is not.
#[test]
fn a_scripted_agent_is_graded() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = generate(dir.path());
    assert_eq!(tasks.len(), 3);
    let apply = format!("git apply <<'EOF'\n{}EOF", tasks[0].patch);
    let submit = command("submit");
    let script = BTreeMap::from([
        (
            &tasks[0].instance_id,
            vec![format!("Größe — fixed.\n{}", command(&apply)), submit.clone()],
        ),
        (&tasks[1].instance_id, vec![submit.clone()]),
        (&tasks[2].instance_id, vec![command("echo 'x = 1' > test_new.py"), submit]),
    ]);
    std::fs::write(dir.path().join("s.json"), serde_json::to_string(&script).unwrap()).unwrap();
    let output =
        patchwright(dir.path(), &["rollout", "--tasks", "t.jsonl", "--script", "s.json", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let lines: Vec<Value> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let verdicts: Vec<&Value> = lines.iter().map(|line| &line["solved"]).collect();
    assert_eq!(verdicts, [&Value::Bool(true), &Value::Bool(false), &Value::Bool(false)]);
    assert_eq!(lines[0]["schema_version"], 1);
    assert!(lines[0]["turns"][0]["text"].as_str().unwrap().starts_with("Größe — fixed."));
    let id = tasks[1].instance_id.as_str();
    let args = ["rollout", "--tasks", "t.jsonl", "--script", "s.json", "--instance", id];
    let table = shown(&patchwright(dir.path(), &args)).replace(id, "<instance>");
    assert!(table.starts_with("exit code 0"), "{table}");
    assert!(table.contains("not solved  submitted      1"), "{table}");
}

/// A script that ends before the agent submits is the caller's mistake, not the policy's: there
/// is no grade, and the exit code says so.
#[test]
fn a_script_that_is_too_short_is_no_success() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = generate(dir.path());
    let id = &tasks[0].instance_id;
    let script = BTreeMap::from([(id, vec![command("ls")])]);
    std::fs::write(dir.path().join("s.json"), serde_json::to_string(&script).unwrap()).unwrap();
    let args = ["rollout", "--tasks", "t.jsonl", "--script", "s.json", "--instance", id];
    let output = shown(&patchwright(dir.path(), &args));
    assert!(output.starts_with("exit code 1"), "{output}");
    assert!(output.contains("let it end with `submit`"), "{output}");
    let args = ["rollout", "--tasks", "t.jsonl", "--script", "s.json"];
    let output = shown(&patchwright(dir.path(), &args));
    assert!(output.starts_with("exit code 2"), "{output}");
}

#[test]
fn tasks_are_the_same_from_the_same_seed_and_can_be_shown() {
    let dir = tempfile::tempdir().unwrap();
    let again = tempfile::tempdir().unwrap();
    let tasks = generate(dir.path());
    assert_eq!(tasks, generate(again.path()));
    let list = shown(&patchwright(dir.path(), &["tasks", "show", "t.jsonl"]));
    let one = patchwright(dir.path(), &["tasks", "show", "t.jsonl", &tasks[0].instance_id]);
    let one = shown(&one);
    assert!(list.contains(&tasks[2].instance_id), "{list}");
    assert!(one.contains(tasks[0].problem_statement.trim()), "{one}");
    assert!(!one.contains(&tasks[0].patch), "the fix is shown on request only");
    let id = tasks[0].instance_id.as_str();
    let patch = shown(&patchwright(dir.path(), &["tasks", "show", "t.jsonl", id, "--patch"]));
    assert!(patch.contains(tasks[0].patch.trim_end()), "{patch}");
    let unknown = shown(&patchwright(dir.path(), &["tasks", "show", "t.jsonl", "nope"]));
    assert!(unknown.starts_with("exit code 2"), "{unknown}");
}

#[test]
fn a_command_in_a_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("repo")).unwrap();
    std::fs::write(dir.path().join("repo/a.txt"), "one\n").unwrap();
    let script = "echo out; echo err >&2; echo two > a.txt; exit 7";
    let args = ["sandbox", "run", "--repo", "repo", "--diff", "--", "bash", "-c", script];
    insta::assert_snapshot!("sandbox-run", shown(&patchwright(dir.path(), &args)));
    assert_eq!(std::fs::read_to_string(dir.path().join("repo/a.txt")).unwrap(), "one\n");
    let killed = patchwright(dir.path(), &["sandbox", "run", "--", "bash", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(137), "{}", shown(&killed));
    let late =
        patchwright(dir.path(), &["sandbox", "run", "--timeout", "1", "--", "sleep", "1000"]);
    assert_eq!(late.status.code(), Some(124), "{}", shown(&late));
}

/// The names of the checks, whatever this machine has.
#[test]
fn doctor_as_json() {
    let dir = tempfile::tempdir().unwrap();
    let output = patchwright(dir.path(), &["doctor", "--json"]);
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["schema_version"], 1);
    let checks = found["checks"].as_array().unwrap();
    for name in ["python3", "kernel", "user namespaces", "sandboxes", "disk space here"] {
        assert!(checks.iter().any(|check| check["name"] == name), "{name}: {found}");
    }
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!(found["ok"], !failed);
    assert_eq!(output.status.code(), Some(i32::from(failed)));
    let table = shown(&patchwright(dir.path(), &["doctor"]));
    assert!(table.contains("python3 in a sandbox"), "{table}");
}
