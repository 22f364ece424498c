//! `patchwright export` of what a gateway keeps of a foreign agent: an attempt that it left, one
//! that solved the task, and a branch.

use std::path::Path;

use serde_json::Value;

use crate::support::{patchwright, shown};

const FORMATS: [&str; 9] = [
    "jsonl",
    "atif",
    "swe-agent",
    "mini-swe-agent",
    "chat",
    "parquet",
    "preds",
    "preds-jsonl",
    "report",
];

fn foreign(dir: &Path) {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../formats/tests/foreign.jsonl");
    std::fs::copy(kept, dir.join("kept.jsonl")).unwrap();
}

/// Rollouts and rows that were written.
fn export(dir: &Path, format: &str, more: &[&str], out: &str) -> Result<(u64, u64), String> {
    let args = ["export", "kept.jsonl", "--json", "--format", format, "--out", out];
    let output = patchwright(dir, &[&args[..], more].concat());
    if output.status.code() != Some(0) {
        return Err(shown(&output));
    }
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    Ok((told["num_rollouts"].as_u64().unwrap(), told["num_rows"].as_u64().unwrap()))
}

#[test]
fn the_last_attempt_counts() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    foreign(dir);
    for format in FORMATS {
        let rows = if ["chat", "parquet"].contains(&format) { 2 } else { 1 };
        assert_eq!(export(dir, format, &[], format), Ok((1, rows)), "{format}");
    }
    let names = |format: &str| {
        let entries = std::fs::read_dir(dir.join(format)).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(names("atif"), ["owner__repo-3.v0.1.a1.json"]);
    let report = std::fs::read_to_string(dir.join("report")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["resolved_instances"], 1);

    let args = ["export", "kept.jsonl", "--format", "mini-swe-agent", "--out", "told"];
    let said = shown(&patchwright(dir, &args));
    assert!(said.contains("Left out: 1 earlier attempts; --attempts all"), "{said}");
    assert!(said.contains("Left out: 1 branches; atif, chat"), "{said}");
}

#[test]
fn all_attempts_if_told_so() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    foreign(dir);
    for format in FORMATS {
        let all = export(dir, format, &["--attempts", "all"], format);
        match format {
            "preds" | "preds-jsonl" | "report" => {
                let said = all.unwrap_err();
                assert!(said.contains("a prediction is one patch"), "{said}");
            }
            "chat" | "parquet" => assert_eq!(all, Ok((2, 3)), "{format}"),
            _ => assert_eq!(all, Ok((2, 2)), "{format}"),
        }
    }
    // What was written is read again, branches and attempts too.
    for (source, rows) in [("jsonl", 2), ("atif", 2), ("swe-agent", 1)] {
        std::fs::rename(dir.join(source), dir.join(format!("{source}.jsonl"))).unwrap();
        let source = format!("{source}.jsonl");
        let args = ["export", &source, "--json", "--format", "chat", "--out"];
        let out = format!("again-{source}");
        let output = patchwright(dir, &[&args[..], &[&out]].concat());
        assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&told["num_rollouts"], &told["num_rows"]), (&1.into(), &rows.into()), "{told}");
        assert_eq!(told["left_out"]["num_earlier_attempts"], 1, "{source}");
    }
}

#[test]
fn a_file_that_is_cut_off_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    foreign(dir);
    let kept = std::fs::read(dir.join("kept.jsonl")).unwrap();
    std::fs::write(dir.join("kept.jsonl"), &kept[..kept.len() - 30]).unwrap();
    let said = export(dir, "jsonl", &[], "out").unwrap_err();
    assert!(
        said.starts_with("exit code 1") && said.contains("kept.jsonl:2: not a rollout"),
        "{said}"
    );
    assert!(!dir.join("out").exists(), "nothing is half there");
}
