//! What the attacks share.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, RepoSource, RootFs, Sandbox, SandboxLimits,
    SandboxProvider, SandboxSpec,
};
use patchwright_sandbox::{Defences, Layer, LimitsRung, NativeOptions, NativeSandboxes};

pub const WORKDIR: &str = "/testbed";
pub const LONG: Duration = Duration::from_mins(2);

/// Marks a test binary that runs one test in a process of its own.
const CHILD: &str = "PATCHWRIGHT_ATTACK_CHILD";
/// Marks the run as an ordinary user, whose outcomes the run as root takes down.
pub const AS_USER: &str = "PATCHWRIGHT_ATTACK_USER";

/// One provider for all tests, as a program has one.
pub fn provider() -> &'static NativeSandboxes {
    static PROVIDER: OnceLock<NativeSandboxes> = OnceLock::new();
    PROVIDER.get_or_init(|| NativeSandboxes::new(NativeOptions::default()).unwrap())
}

/// A provider whose memory bound is the watchdog's.
pub fn watchdog() -> &'static NativeSandboxes {
    static PROVIDER: OnceLock<NativeSandboxes> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        let limits_rung = Some(LimitsRung::Watchdog);
        NativeSandboxes::new(NativeOptions { limits_rung, ..NativeOptions::default() }).unwrap()
    })
}

/// A provider without these layers of defence.
pub fn without(layers: &[Layer]) -> NativeSandboxes {
    let defences = Defences::without(layers);
    NativeSandboxes::new(NativeOptions { defences, ..NativeOptions::default() }).unwrap()
}

pub fn files(list: &[(&str, &str)]) -> RepoSource {
    let map: BTreeMap<_, _> =
        list.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
    RepoSource::Files(Arc::new(map))
}

pub fn spec() -> SandboxSpec {
    SandboxSpec {
        root: RootFs::Host,
        repo: files(&[("a.txt", "one\n")]),
        workdir: WORKDIR.to_owned(),
        read_only_mounts: Vec::new(),
        env: BTreeMap::new(),
        limits: SandboxLimits::default(),
    }
}

pub fn sandbox() -> Box<dyn Sandbox> {
    provider().create(&spec()).unwrap()
}

/// A sandbox of `provider` with other limits.
pub fn limited(
    provider: &NativeSandboxes,
    change: impl FnOnce(&mut SandboxLimits),
) -> Box<dyn Sandbox> {
    let mut spec = spec();
    change(&mut spec.limits);
    provider.create(&spec).unwrap()
}

pub fn shell_for(sandbox: &mut dyn Sandbox, script: &str, timeout: Duration) -> ExecOutput {
    sandbox.exec(&ExecRequest::shell(script, WORKDIR, timeout)).unwrap()
}

pub fn shell(sandbox: &mut dyn Sandbox, script: &str) -> ExecOutput {
    shell_for(sandbox, script, LONG)
}

/// Standard output of a script that must succeed.
pub fn stdout(sandbox: &mut dyn Sandbox, script: &str) -> String {
    let output = shell(sandbox, script);
    assert_eq!(output.status, ExecStatus::Exited(0), "{script}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// Runs a Python script, whatever becomes of it.
pub fn attempt(sandbox: &mut dyn Sandbox, script: &str) -> ExecOutput {
    let argv = ["python3", "-I", "-S", "-c", script];
    sandbox.exec(&ExecRequest::argv(&argv, WORKDIR, LONG)).unwrap()
}

/// Standard output of a Python script that must succeed.
pub fn python(sandbox: &mut dyn Sandbox, script: &str) -> String {
    let output = attempt(sandbox, script);
    assert_eq!(output.status, ExecStatus::Exited(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// That the sandbox is as good as before the attack.
pub fn still_serves(sandbox: &mut dyn Sandbox) {
    let count = "cat a.txt; n=0; for p in /proc/[0-9]*; do n=$((n+1)); done; echo $n";
    assert_eq!(stdout(sandbox, count), "one\n2\n", "PID 1 and the shell that counts");
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn is_root() -> bool {
    uid() == 0
}

fn uid() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap())
}

/// Whether this process runs one test alone.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// This test binary, to run `test` in a process of its own.
pub fn alone(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command
}

/// Runs `test` in a process of its own, which must succeed. `true` in the parent.
pub fn ran_alone(test: &str) -> bool {
    if is_child() {
        return false;
    }
    let output = alone(test).output().unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    true
}

/// Takes an outcome down: the attack was tried and what must hold did.
pub fn held(number: u32, attack: &str) {
    record(&format!("{number:>2}  {attack}: held"));
}

/// Takes down that the attack succeeds without a layer.
pub fn bites(layer: Layer, attack: &str) {
    record(&format!("--  without {layer:?}: {attack}: succeeds"));
}

/// Takes down that this machine cannot run an attack, and why.
pub fn cannot_run(number: u32, attack: &str, why: &str) {
    record(&format!("{number:>2}  {attack}: NOT RUN: {why}"));
}

/// Where outcomes go.
pub fn report_path() -> PathBuf {
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    scratch.parent().unwrap_or(scratch).join("attacks.txt")
}

/// One line of the report.
pub fn record(line: &str) {
    static FRESH: OnceLock<()> = OnceLock::new();
    if is_child() {
        return;
    }
    if std::env::var_os(AS_USER).is_some() {
        // This user may not write there: whoever started it does.
        println!("\nATTACK {line}");
        return;
    }
    FRESH.get_or_init(|| drop(fs::remove_file(report_path())));
    let who = if is_root() { "root" } else { "user" };
    println!("attack {line} (as {who})");
    write_line(&format!("{line} (as {who})"));
}

/// Appends a line to the report; one write, so that lines of several threads stay whole.
pub fn write_line(line: &str) {
    let file = fs::OpenOptions::new().create(true).append(true).open(report_path());
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = written {
        println!("{}: {error}", report_path().display());
    }
}

/// Processes below `root`.
pub fn descendants(root: u32) -> Vec<u32> {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        if let Some((_, rest)) = stat.rsplit_once(')')
            && let Some(parent) = rest.split_whitespace().nth(1).and_then(|p| p.parse().ok())
        {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![root];
    let mut at = 0;
    while at < found.len() {
        let parent = found[at];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    found.split_off(1)
}

/// Whether a process exists and is not a zombie that only waits for the machine's init.
pub fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

/// Cgroups of providers whose keeper is among these, on all hierarchies.
pub fn cgroups_of(keepers: &[u32]) -> Vec<PathBuf> {
    let prefixes: Vec<_> = keepers.iter().map(|pid| format!("patchwright-{pid}-")).collect();
    let mut found = Vec::new();
    let mut todo = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                let name = entry.file_name().to_string_lossy().into_owned();
                if prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                    found.push(entry.path());
                }
                todo.push(entry.path());
            }
        }
    }
    found
}
