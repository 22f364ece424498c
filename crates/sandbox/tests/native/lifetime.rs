//! What is left behind: nothing.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use patchwright_core::{ExecRequest, SandboxProvider};
use patchwright_sandbox::{LimitsRung, NativeOptions, NativeSandboxes};

use crate::support::{WORKDIR, files, provider, spec, stdout};

/// Tests that count what is on the machine run one in its own process, alone.
const CHILD: &str = "PATCHWRIGHT_TEST_CHILD";

/// Runs one of the tests below in a process of its own.
fn alone(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    command
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

fn descendants(root: u32) -> Vec<u32> {
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

/// This process's descriptors and mounts.
fn traces() -> (usize, String) {
    let fds = fs::read_dir("/proc/self/fd").unwrap().count();
    (fds, fs::read_to_string("/proc/self/mountinfo").unwrap())
}

/// Cgroups of a provider whose keeper is `keeper`, on all hierarchies.
fn cgroups_of(keeper: u32) -> usize {
    let prefix = format!("patchwright-{keeper}-");
    let mut count = 0;
    let mut todo = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
    while let Some(at) = todo.pop() {
        for entry in fs::read_dir(&at).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                count += usize::from(entry.file_name().to_string_lossy().starts_with(&prefix));
                todo.push(entry.path());
            }
        }
    }
    count
}

fn is_registry(name: &str) -> bool {
    name.strip_prefix("patchwright-").is_some_and(|user| user.parse::<u32>().is_ok())
}

fn temporary_entries() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir("/tmp")
        .unwrap()
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        // The lease registry stays, for the next program.
        .filter(|name| name.contains("patchwright") && !is_registry(name))
        .collect();
    names.sort();
    names
}

#[test]
fn two_hundred_lives_leave_nothing() {
    if !is_child() {
        let output = alone("lifetime::two_hundred_lives_leave_nothing").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let spec = spec(files(&[("a.txt", "one\n")]));
    let before = (traces(), descendants(std::process::id()).len(), temporary_entries());
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    provider.create(&spec).unwrap().destroy().unwrap();
    let keeper = descendants(std::process::id())[0];
    let has_cgroups = provider.limits_rung() != LimitsRung::Watchdog;
    assert_eq!(cgroups_of(keeper), usize::from(has_cgroups));
    let one =
        (fs::read_dir("/proc/self/fd").unwrap().count(), descendants(std::process::id()).len());
    for n in 0..200 {
        let mut sandbox = provider.create(&spec).unwrap();
        assert_eq!(stdout(&mut *sandbox, "cat a.txt; sleep 100 & true"), "one\n");
        if n % 2 == 0 {
            sandbox.destroy().unwrap();
        }
    }
    let all =
        (fs::read_dir("/proc/self/fd").unwrap().count(), descendants(std::process::id()).len());
    assert_eq!(all, one, "descriptors and processes while the provider lives");
    drop(provider);
    assert_eq!(
        (traces(), descendants(std::process::id()).len(), temporary_entries()),
        before,
        "descriptors, mounts, processes and files after the provider"
    );
    assert_eq!(cgroups_of(keeper), 0);
}

#[test]
fn many_threads_share_a_provider() {
    let counts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..32)
            .map(|n| {
                scope.spawn(move || {
                    for round in 0..5 {
                        let text = format!("{n} {round}\n");
                        let spec = spec(files(&[("who", &text)]));
                        let mut sandbox = provider().create(&spec).unwrap();
                        assert_eq!(stdout(&mut *sandbox, "cat who; echo $n > mine"), text);
                        assert_eq!(sandbox.diff().unwrap().len(), 1);
                        let mut copy = sandbox.fork().unwrap();
                        sandbox.destroy().unwrap();
                        assert_eq!(stdout(&mut *copy, "cat who"), text);
                    }
                    5
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(counts.iter().sum::<i32>(), 160);
}

#[test]
fn sandboxes_outlive_their_provider_s_handle() {
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    let mut sandbox = provider.create(&spec(files(&[("a", "b")]))).unwrap();
    drop(provider);
    assert_eq!(stdout(&mut *sandbox, "cat a"), "b");
    sandbox.destroy().unwrap();
}

#[test]
fn a_killed_host_takes_its_sandboxes_along() {
    const TEST: &str = "lifetime::a_killed_host_takes_its_sandboxes_along";
    if is_child() {
        let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
        let mut sandboxes: Vec<_> =
            (0..3).map(|_| provider.create(&spec(files(&[]))).unwrap()).collect();
        std::thread::scope(|scope| {
            for sandbox in &mut sandboxes {
                let hour = Duration::from_hours(1);
                let script = "trap '' TERM INT HUP; (setsid sleep 4321 &) ; sleep 4321";
                scope.spawn(move || sandbox.exec(&ExecRequest::shell(script, WORKDIR, hour)));
            }
            // Once all commands run, the parent is told, and kills this process.
            loop {
                let all = descendants(std::process::id());
                let sleeping = all.iter().filter(|pid| cmdline(**pid).contains("4321")).count();
                if sleeping >= 6 {
                    println!(
                        "\nALL {}",
                        all.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
                    );
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        return;
    }
    let mut child = alone(TEST).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let all = loop {
        let line = lines.next().expect("the child ended early").unwrap();
        if let Some(pids) = line.strip_prefix("ALL ") {
            break pids.split(' ').map(|p| p.parse::<u32>().unwrap()).collect::<Vec<_>>();
        }
    };
    assert!(all.len() >= 11, "keeper, spawner, three slots, three sandboxes, their commands");
    child.kill().unwrap();
    child.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let left: Vec<_> = all.iter().filter(|pid| is_running(**pid)).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "still running: {left:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn cmdline(pid: u32) -> String {
    fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Whether a process exists and is not a zombie that only waits for the machine's init.
fn is_running(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn a_sandbox_whose_pid_1_was_killed_is_an_error_and_others_go_on() {
    const TEST: &str = "lifetime::a_sandbox_whose_pid_1_was_killed_is_an_error_and_others_go_on";
    if !is_child() {
        let output = alone(TEST).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        return;
    }
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    let spec = spec(files(&[("a", "b")]));
    let before = descendants(std::process::id());
    let mut sandbox = provider.create(&spec).unwrap();
    let new: Vec<_> =
        descendants(std::process::id()).into_iter().filter(|p| !before.contains(p)).collect();
    // The slot comes first, its sandbox's PID 1 after it.
    assert_eq!(new.len(), 2);
    let status = Command::new("kill").args(["-9", &new[1].to_string()]).status().unwrap();
    assert!(status.success());
    let error = sandbox.read("/testbed/a", 1).unwrap_err();
    assert!(matches!(error, patchwright_core::SandboxError::Died(_)), "{error}");
    let error = sandbox.diff().unwrap_err();
    assert!(matches!(error, patchwright_core::SandboxError::Died(_)), "{error}");
    sandbox.destroy().unwrap();
    let mut next = provider.create(&spec).unwrap();
    assert_eq!(stdout(&mut *next, "cat a"), "b");

    // An idle slot that is killed costs no sandbox.
    next.destroy().unwrap();
    let idle = descendants(std::process::id());
    let idle: Vec<_> = idle.iter().filter(|pid| !before.contains(pid)).collect();
    assert!(!idle.is_empty());
    for pid in idle {
        Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap();
    }
    let mut next = provider.create(&spec).unwrap();
    assert_eq!(stdout(&mut *next, "cat a"), "b");
}

#[test]
fn the_probe_says_what_is_there() {
    let features = NativeSandboxes::probe();
    let names: Vec<_> = features.iter().map(|f| f.name).collect();
    for name in [
        "kernel",
        "user namespaces",
        "user namespace",
        "own /proc",
        "overlay",
        "id-mapped mounts",
        "pidfd",
        "seccomp",
        "landlock",
        "openat2",
        "control groups",
        "limits in force",
        "sandboxes",
    ] {
        assert!(names.contains(&name), "{name}: {names:?}");
    }
    assert!(features.iter().all(patchwright_sandbox::Feature::is_usable), "{features:?}");
}
