//! `patchwright gateway` with the shipped policy, and an agent that is a program of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::support::{patchwright, shown};

const TOKEN: &str = "known-to-the-operator-alone";

/// A gateway that runs. Killed when dropped.
struct Running {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    url: String,
}

impl Running {
    fn start(dir: &Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_patchwright"))
            .args(["gateway", "--bind", "127.0.0.1:0", "--json"])
            .args(args)
            .current_dir(dir)
            .env("NO_COLOR", "1")
            .env("PATCHWRIGHT_TOKEN", TOKEN)
            .env("XDG_CACHE_HOME", dir.join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let said = BufReader::new(child.stderr.take().expect("is piped"));
        let mut running = Self { child, said, url: String::new() };
        let mut all = String::new();
        loop {
            let start = all.len();
            assert_ne!(running.said.read_line(&mut all).unwrap(), 0, "no address: {all}");
            let found = all[start..].split_whitespace().find(|word| word.starts_with("http://"));
            if let Some(url) = found.and_then(|url| url.split("/episodes").next()) {
                url.clone_into(&mut running.url);
                return running;
            }
        }
    }

    fn agent(&self, mode: &str) -> String {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("../train/tests/gateway_agent.py");
        let output = Command::new("python3")
            .arg(program)
            .args([&*self.url, mode])
            .env("PATCHWRIGHT_TOKEN", TOKEN)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", shown(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its exit code, standard output and standard error.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut said) = (String::new(), String::new());
        let mut stdout = self.child.stdout.take().expect("is piped");
        stdout.read_to_string(&mut out).unwrap();
        self.said.read_to_string(&mut said).unwrap();
        (self.child.wait().unwrap().code(), out, said)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

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
    let said = running.agent("sandbox");
    assert_eq!(said.lines().count(), 4, "{said}");
    let (code, out, said) = running.end();
    assert_eq!(code, Some(0), "{said}");
    let report: Value = serde_json::from_str(&out).unwrap();
    let evaluation = &report["evaluations"][0];
    assert_eq!((&evaluation["num_tasks"], &evaluation["num_runs"]), (&2.into(), &2.into()));
    assert!(evaluation["pass_at_1"]["mean"].is_number(), "{report}");
    let counts = &report["gateway"];
    assert_eq!((&counts["num_episodes"], &counts["num_failed"]), (&4.into(), &0.into()), "{said}");
    let count = |name: &str| counts[name].as_u64().unwrap();
    assert_eq!(count("num_calls"), count("num_merged") + count("num_branches"), "{report}");
    assert!(said.contains("4 episodes: "), "{said}");
    let kept = std::fs::read_to_string(dir.join("episodes/report.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&kept).unwrap(), report);

    // What was kept is what `export` reads.
    let export =
        ["export", "episodes/rollouts.jsonl.zst", "--format", "parquet", "--out", "rows.parquet"];
    let exported = patchwright(dir, &export);
    assert_eq!(exported.status.code(), Some(0), "{}", shown(&exported));
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
