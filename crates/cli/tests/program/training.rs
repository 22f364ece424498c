//! Pretraining, training, interruption and resume, as small as they can be.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{patchwright, shown};

/// A policy that knows next to nothing, in seconds.
fn pretrain(dir: &Path) {
    let mut args = vec!["pretrain", "--out", "policy", "--seed", "1"];
    for set in [
        "hidden_size=32",
        "num_layers=1",
        "num_heads=2",
        "num_kv_heads=1",
        "intermediate_size=32",
        "num_repositories=2",
        "num_source_repositories=4",
        "num_sessions=4",
        "num_sources=4",
        "num_reshown=4",
        "num_warm_up=4",
    ] {
        args.extend(["--set", set]);
    }
    let output = patchwright(dir, &args);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
}

const SETS: [&str; 15] = [
    "engine.checkpoint=policy",
    "run.keep_rollouts=true",
    "tasks.train.num_instances=4",
    "tasks.held-out.num_instances=1",
    "tasks.transfer.source=none",
    "rft.num_tasks=2",
    "rft.rollouts_per_task=2",
    "rft.max_turns=2",
    "eval.max_turns=2",
    "rl.0.max_turns=2",
    "rl.0.length_threshold=2",
    "rl.1.max_turns=2",
    "rl.1.length_threshold=2",
    "rl.0.problems_per_iteration=2",
    "rl.1.problems_per_iteration=2",
];

/// What the run kept, in the formats of others.
fn exported(dir: &Path) {
    let export = |stage: &str, more: &[&str]| {
        let args = ["export", "run", "--stage", stage, "--json"];
        patchwright(dir, &[&args[..], more].concat())
    };
    let output = export("rl-1", &["--format", "parquet", "--out", "rl-1.parquet"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(told["num_rollouts"].as_u64().unwrap() >= 4, "{told}");
    assert_eq!(&std::fs::read(dir.join("rl-1.parquet")).unwrap()[..4], b"PAR1");
    let output = export("eval-rl-2", &["--sibling", "0", "--format", "preds", "--out", "p.json"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let predictions: Value =
        serde_json::from_slice(&std::fs::read(dir.join("p.json")).unwrap()).unwrap();
    assert_eq!(predictions.as_object().unwrap().len(), 1, "one held-out task");
    let several = shown(&export("eval-rl-2", &["--format", "report", "--out", "r.json"]));
    assert!(several.starts_with("exit code 1") && several.contains("--sibling"), "{several}");
    let unknown = shown(&export("rl-9", &["--format", "atif", "--out", "a"]));
    assert!(unknown.starts_with("exit code 2") && unknown.contains("eval-base"), "{unknown}");
    assert!(!dir.join("r.json").exists() && !dir.join("a").exists());
}

#[test]
fn interrupted_and_resumed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    pretrain(dir);
    let mut train = Command::new(env!("CARGO_BIN_EXE_patchwright"));
    train.args(["train", "smoke", "--out", "run"]).args(SETS.iter().flat_map(|set| ["--set", set]));
    train.current_dir(dir).env("NO_COLOR", "1").env("XDG_CACHE_HOME", dir.join("cache"));
    let mut child = train.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = Vec::new();
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        said.push(line.unwrap());
        if said.last().unwrap().starts_with("eval-base") {
            let pid = child.id().to_string();
            assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
        }
    }
    let said = said.join("\n");
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("Go on with: patchwright train --resume run"), "{said}");
    assert!(!dir.join("run/report.json").exists());

    let output = patchwright(dir, &["train", "--resume", "run"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let table = String::from_utf8_lossy(&output.stdout);
    let policies: Vec<&str> =
        table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(policies, ["base", "rft", "rl-1", "rl-2"], "{table}");
    let report: Value =
        serde_json::from_slice(&std::fs::read(dir.join("run/report.json")).unwrap()).unwrap();
    assert_eq!(report["schema_version"], 1);
    let page = std::fs::read_to_string(dir.join("run/report.html")).unwrap();
    assert!(page.contains("<svg"));

    exported(dir);

    let again = shown(&patchwright(dir, &["train", "--resume", "run"]));
    assert!(again.starts_with("exit code 1") && again.contains("finished"), "{again}");
    let taken = patchwright(dir, &["train", "smoke", "--out", "run", "--set", SETS[0]]);
    assert!(shown(&taken).contains("--resume"), "{}", shown(&taken));

    let args = ["eval", "--recipe", "smoke", "--checkpoint", "policy", "--runs", "2", "--json"];
    let sets = ["--set", "tasks.held-out.num_instances=1", "--set", "eval.max_turns=2"];
    let output = patchwright(dir, &[&args[..], &sets].concat());
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let measured: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(measured["evaluations"][0]["num_runs"], 2);
    assert_eq!(measured["evaluations"][0]["task_set"], "held-out");
}
