//! `patchwright gateway` with the shipped policy, and an agent that is a program of its own.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::running::Running;
use crate::support::{patchwright, shown};

#[test]
fn agents_are_given_tasks_until_none_is_left() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let made = patchwright(dir, &["tasks", "generate", "--num", "2", "--out", "rows.jsonl"]);
    assert_eq!(made.status.code(), Some(0), "{}", shown(&made));

    // Stopped before anybody came, and while an episode was in the hands of an agent that had left.
    let new = ["--tasks", "rows.jsonl", "--runs", "2", "--out", "episodes", "--drain", "0"];
    let running = Running::start(dir, &new);
    assert_eq!(running.agent("leave"), "");
    let pid = running.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    let (code, _, said) = running.end();
    assert_eq!(code, Some(130), "{said}");
    assert!(said.contains("4 to go: patchwright gateway --resume episodes"), "{said}");

    let again = patchwright(dir, &["gateway", "--out", "episodes", "--tasks", "rows.jsonl"]);
    assert_eq!(again.status.code(), Some(2), "{}", shown(&again));

    let running = Running::start(dir, &["--resume", "episodes"]);
    // A failure of the agent's is kept, and its run given away again.
    let said = running.agent("silent");
    assert!(said.starts_with("agent: "), "{said}");
    let said = running.agent("sandbox");
    assert_eq!(said.lines().count(), 4, "{said}");
    let (code, out, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let evaluation = &report["evaluations"][0];
    assert_eq!((&evaluation["num_tasks"], &evaluation["num_runs"]), (&2.into(), &2.into()));
    assert!(evaluation["pass_at_1"]["mean"].is_number(), "{report}");
    let counts = &report["gateway"];
    assert_eq!((&counts["num_episodes"], &counts["num_failed"]), (&5.into(), &1.into()), "{said}");
    let count = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(count("num_calls"), count("num_merged") + count("num_branches"), "{report}");
    assert!(said.contains("5 episodes: "), "{said}");
    let kept = std::fs::read_to_string(dir.join("episodes/report.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), report);

    exported(dir);
}

/// What was kept is what `export` reads, into every format; the failed attempt is left out.
fn exported(dir: &Path) {
    let export = |format: &str, more: &[&str]| {
        let out = format!("{format}{}.out", more.concat());
        let args = ["export", "episodes", "--json", "--format", format, "--out", &out];
        let exported = patchwright(dir, &[&args[..], more].concat());
        assert_eq!(exported.status.code(), Some(0), "{}", shown(&exported));
        serde_json::from_slice::<Value>(&exported.stdout).unwrap()
    };
    for format in ["jsonl", "atif", "swe-agent", "mini-swe-agent", "chat", "parquet"] {
        let told = export(format, &[]);
        assert_eq!(told["num_rollouts"], 4, "{format}: {told}");
        assert_eq!(told["left_out"]["num_earlier_attempts"], 1, "{format}: {told}");
    }
    for format in ["preds", "preds-jsonl", "report"] {
        assert_eq!(export(format, &["--sibling", "0"])["num_rollouts"], 2, "{format}");
    }
    assert_eq!(export("jsonl", &["--attempts=all"])["num_rollouts"], 5);
    assert_eq!(export("atif", &["--attempts=all"])["num_rollouts"], 5);
    let chat = std::fs::read_to_string(dir.join("chat.out")).unwrap();
    let first: Value = serde_json::from_str(chat.lines().next().unwrap()).unwrap();
    let said = first["messages"][0]["content"].as_str().unwrap();
    let rows = std::fs::read_to_string(dir.join("rows.jsonl")).unwrap();
    let rows = rows.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut asked = rows.filter(|row| row["instance_id"] == first["instance_id"]);
    assert_eq!(first["messages"][0]["role"], "user");
    assert_eq!(asked.next().unwrap()["problem_statement"], said, "as the agent sent it");
}

#[test]
fn wrong_use_of_the_gateway_is_told() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    for (args, said) in [
        (&["--out", "e", "--bind", "0.0.0.0:0"][..], "--token-file"),
        (&["--out", "e", "--tasks", "nothing.jsonl"], "no such file"),
        (&["--out", "e", "--model", "somewhere"], "is no server"),
        (&["--out", "e", "--runs", "0"], "1 or more"),
        (&["--resume", "nothing"], "gateway.json"),
        (&["--out", "e", "--set", "agent.foreign_command=[\"x\"]"], "agent.foreign_command"),
    ] {
        let output = patchwright(dir, &[&["gateway"], args].concat());
        let shown = shown(&output);
        assert!(shown.starts_with("exit code 2") && shown.contains(said), "{args:?}: {shown}");
        assert!(!dir.join("e").exists(), "nothing is begun");
    }
}

/// `eval` and the gateway name servers in the same words.
#[test]
fn what_is_set_for_servers_is_taken_or_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let server = ["--tasks", "held-out", "--out", "e", "--model", "http://127.0.0.1:1", "--set"];
    for command in ["eval", "gateway"] {
        for (set, said) in [
            ("servers.urls=[\"http://127.0.0.1:2\"]", "--model and --api say"),
            ("sampler=sglang", "--model and --api say"),
            ("servers.nonsense=1", "unknown key servers.nonsense"),
            ("servers.max_outage_seconds=0", "servers.max_outage_seconds"),
        ] {
            let output = patchwright(dir, &[&[command], &server[..], &[set]].concat());
            let shown = shown(&output);
            assert!(shown.starts_with("exit code 2") && shown.contains(said), "{set}: {shown}");
            assert!(!dir.join("e").exists(), "nothing is begun");
        }
    }
}
