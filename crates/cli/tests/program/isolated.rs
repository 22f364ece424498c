//! `patchwright sandbox` and `bench sandbox`: what they pass on, and that nothing is left.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::{patchwright, shown};
use serde_json::Value;

fn run(dir: &Path, args: &[&str]) -> Output {
    let mut all = vec!["sandbox", "run"];
    all.extend(args);
    patchwright(dir, &all)
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", shown(output));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn settings_reach_the_command() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("data")).unwrap();
    fs::write(dir.path().join("data/f"), "shown\n").unwrap();
    let mount = format!("{}:/data", dir.path().join("data").display());
    let script = "cat /data/f; pwd; echo $MODE; touch /data/g 2>/dev/null || echo kept";
    let args = ["--mount", &mount, "--env", "MODE=a=b", "--cwd", "/tmp", "--", "sh", "-c", script];
    assert_eq!(stdout(&run(dir.path(), &args)), "shown\n/tmp\na=b\nkept\n");
    let args = ["--disk", "1M", "--", "sh", "-c", "head -c 2000000 /dev/zero > f"];
    assert_ne!(run(dir.path(), &args).status.code(), Some(0));
    let args = ["--output", "1k", "--", "sh", "-c", "head -c 5000 /dev/zero"];
    let output = run(dir.path(), &args);
    assert_eq!(output.stdout.len(), 1024);
    assert!(shown(&output).contains("3976 bytes of output were dropped"), "{}", shown(&output));
}

#[test]
fn wrong_settings_are_explained() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, why) in [
        (vec!["--memory", "lots"], 2, "no unit"),
        (vec!["--cwd", "tmp"], 2, "absolute path inside"),
        (vec!["--mount", "/a"], 2, "HOST:INSIDE"),
        (vec!["--env", "HOME"], 2, "NAME=VALUE"),
        (vec!["--rootfs", "nowhere"], 2, "No such file"),
        (vec!["--rootfs", "/", "--image", "debian"], 2, "cannot be used with"),
        (vec!["--disk", "1G"], 2, "--memory 536870912 is too little"),
    ] {
        let mut all = args.clone();
        all.extend(["--", "true"]);
        let output = run(dir.path(), &all);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", shown(&output));
        assert!(shown(&output).contains(why), "{args:?}: {}", shown(&output));
    }
}

#[test]
fn a_shell_keeps_directory_and_variables() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.txt"), "one\n").unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_patchwright"))
        .args(["sandbox", "shell", "--repo", "."])
        .current_dir(dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = "cat a.txt\nmkdir -p 'x y'; cd 'x y'\npwd\nexport A='b c'\necho \"$A\" \\\nmore\n\
        echo two > ../a.txt\n:diff\nfalse\n";
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.starts_with("one\n/testbed/x y\nb c more\n"), "{}", shown(&output));
    assert!(text.contains("-one\n+two\n"), "{}", shown(&output));
    assert_eq!(output.status.code(), Some(1), "the last code: {}", shown(&output));
}

/// A program with one sandbox in which a command runs for long, in a registry of its own.
struct Long {
    child: Child,
    registry: tempfile::TempDir,
}

impl Long {
    fn start() -> Self {
        let registry = tempfile::tempdir().unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_patchwright"))
            .args(["sandbox", "run", "--timeout", "1000", "--", "sleep", "1000"])
            .env("PATCHWRIGHT_RUNTIME_DIR", registry.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let long = Self { child, registry };
        let deadline = Instant::now() + Duration::from_mins(1);
        while long.ask("list")["sandboxes"].as_array().unwrap().is_empty() {
            assert!(Instant::now() < deadline, "no sandbox is listed");
            std::thread::sleep(Duration::from_millis(20));
        }
        long
    }

    fn ask(&self, command: &str) -> Value {
        let output = Command::new(env!("CARGO_BIN_EXE_patchwright"))
            .args(["sandbox", command, "--json"])
            .env("PATCHWRIGHT_RUNTIME_DIR", self.registry.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", shown(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn num_leases(&self) -> usize {
        fs::read_dir(self.registry.path()).unwrap().count()
    }
}

#[test]
fn a_killed_program_s_sandbox_is_reaped() {
    let mut long = Long::start();
    let listed = long.ask("list");
    let one = &listed["sandboxes"][0];
    assert_eq!(one["owner"]["pid"], long.child.id());
    assert!(one["age_seconds"].as_f64().unwrap() >= 0.0, "{listed}");
    assert_eq!(long.ask("reap")["num_living"], 1);
    long.child.kill().unwrap();
    long.child.wait().unwrap();
    let reaped = long.ask("reap");
    assert_eq!(reaped["dead"][0]["num_sandboxes"], 1, "{reaped}");
    assert_eq!(reaped["dead"][0]["failures"].as_array().unwrap().len(), 0, "{reaped}");
    assert_eq!(long.num_leases(), 0);
    assert_eq!(long.ask("reap")["dead"].as_array().unwrap().len(), 0);
}

#[test]
fn ctrl_c_ends_the_sandbox_and_leaves_nothing() {
    let mut long = Long::start();
    let pid = long.child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &pid]).status().unwrap().success());
    assert_eq!(long.child.wait().unwrap().code(), Some(130));
    assert_eq!(long.num_leases(), 0, "the lease went with its sandbox");
}

#[test]
fn the_bench_has_its_figures_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let args =
        ["bench", "sandbox", "--seconds", "0.2", "--lives", "20", "--peers", "none", "--json"];
    let output = Command::new(env!("CARGO_BIN_EXE_patchwright"))
        .args(args)
        .env("PATCHWRIGHT_RUNTIME_DIR", dir.path())
        .output()
        .unwrap();
    let bench: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let native = &bench["native"];
    for key in ["create_exec_destroy_ms", "exec_ms", "fork_ms", "episode_ms"] {
        assert!(native[key]["p50"].as_f64().unwrap() > 0.0, "{key}: {bench}");
    }
    assert!(native["concurrent_32_per_second"].as_f64().unwrap() > 0.0, "{bench}");
    assert_eq!(native["leftovers"]["num_lives"], 20);
    assert_eq!(bench.as_object().unwrap().len(), 1, "no peers: {bench}");
}
