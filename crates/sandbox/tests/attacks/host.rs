//! Attacks 11 to 13: the host program, or a helper, dies at the worst moment; and what a thousand
//! sandboxes leave.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use patchwright_core::{ExecRequest, SandboxProvider};
use patchwright_sandbox::{Defences, Fault, LimitsRung, NativeOptions, NativeSandboxes};

use crate::support::{
    WORKDIR, alone, cgroups_of, descendants, held, is_child, is_running, provider, ran_alone, spec,
    stdout, text,
};

/// What a host does that is then killed: sandboxes whose commands ignore all that they can.
pub fn busy_host(provider: &NativeSandboxes) {
    let mut sandboxes: Vec<_> = (0..3).map(|_| provider.create(&spec()).unwrap()).collect();
    std::thread::scope(|scope| {
        for sandbox in &mut sandboxes {
            let hour = Duration::from_hours(1);
            let script = "trap '' TERM INT HUP; (setsid sleep 12.34 &) ; sleep 12.34";
            scope.spawn(move || sandbox.exec(&ExecRequest::shell(script, WORKDIR, hour)));
        }
        // Once all commands run, the parent is told, and kills this process.
        loop {
            let all = descendants(std::process::id());
            let sleeps = |pid: &&u32| {
                let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                line.starts_with("sleep\0")
            };
            if all.iter().filter(sleeps).count() >= 6 {
                let list: Vec<_> = all.iter().map(u32::to_string).collect();
                println!("\nALL {}", list.join(" "));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    });
}

/// Kills a busy host and gives all its helpers and commands.
pub fn kill_busy_host(host: &mut Command) -> Vec<u32> {
    let mut child = host.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let all = loop {
        let line = lines.next().expect("the child ended early").unwrap();
        if let Some(pids) = line.strip_prefix("ALL ") {
            break pids.split(' ').map(|p| p.parse::<u32>().unwrap()).collect::<Vec<_>>();
        }
    };
    child.kill().unwrap();
    child.wait().unwrap();
    all
}

/// Which of these still run after `patience`, at the latest.
pub fn left_after(all: &[u32], patience: Duration) -> Vec<u32> {
    let deadline = Instant::now() + patience;
    loop {
        let left: Vec<_> = all.iter().copied().filter(|pid| is_running(*pid)).collect();
        if left.is_empty() || Instant::now() >= deadline {
            return left;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tries: SIGKILL of the host program while its sandboxes run what ignores every signal. Must
/// hold: every helper and every command ends, and the cgroups are gone.
#[test]
fn attack_11_host_killed() {
    if is_child() {
        busy_host(&NativeSandboxes::new(NativeOptions::default()).unwrap());
        return;
    }
    let all = kill_busy_host(&mut alone("host::attack_11_host_killed"));
    assert!(all.len() >= 11, "keeper, spawner, three slots, three sandboxes, their commands");
    assert_eq!(left_after(&all, Duration::from_secs(10)), Vec::<u32>::new(), "still running");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !cgroups_of(&all).is_empty() {
        assert!(Instant::now() < deadline, "{:?}", cgroups_of(&all));
        std::thread::sleep(Duration::from_millis(20));
    }
    held(11, "SIGKILL of the host program");
}

/// More steps than a set-up can have.
const MAX_STEPS: u32 = 400;

const FAULT: &str = "PATCHWRIGHT_ATTACK_FAULT";

/// A host whose helper meets a fault at step n of the set-up.
fn faulty_host() {
    let text = std::env::var(FAULT).unwrap();
    let (step, hold_ms) = text.split_once(' ').unwrap();
    let fault = Fault { step: step.parse().unwrap(), hold_ms: hold_ms.parse().unwrap() };
    let defences = Defences::with_fault(fault);
    let made = NativeSandboxes::new(NativeOptions { defences, ..NativeOptions::default() });
    let outcome = made.and_then(|provider| {
        let mut sandbox = provider.create(&spec())?;
        sandbox.exec(&ExecRequest::argv(&["true"], WORKDIR, Duration::from_secs(5)))?;
        sandbox.destroy()
    });
    println!(
        "\nOUTCOME {}",
        outcome.map_or_else(|error| error.to_string(), |()| "fine".to_owned())
    );
}

fn faulty(test: &str, step: u32, hold_ms: u32) -> Command {
    let mut command = alone(test);
    command.env(FAULT, format!("{step} {hold_ms}"));
    command
}

/// Runs `one` for 1, 2, … on a few threads, until it says that there is nothing left to do.
fn for_every_step(one: impl Fn(u32) -> bool + Sync) -> u32 {
    let next = std::sync::atomic::AtomicU32::new(1);
    let done = std::sync::atomic::AtomicU32::new(u32::MAX);
    let order = std::sync::atomic::Ordering::SeqCst;
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let step = next.fetch_add(1, order);
                    if step >= done.load(order) || step > MAX_STEPS {
                        return;
                    }
                    if !one(step) {
                        done.fetch_min(step, order);
                        return;
                    }
                }
            });
        }
    });
    done.load(order)
}

/// Tries: a helper dies between any two steps of its set-up. Must hold: the host gets an error
/// and goes on; nothing of the helper's is left; without a fault the same steps succeed.
#[test]
fn attack_12_helper_killed_at_every_step() {
    const TEST: &str = "host::attack_12_helper_killed_at_every_step";
    if is_child() {
        faulty_host();
        return;
    }
    let steps = for_every_step(|step| {
        let start = Instant::now();
        let output = faulty(TEST, step, 0).output().unwrap();
        let out = text(&output.stdout);
        assert!(output.status.success(), "step {step}: {out}{}", text(&output.stderr));
        assert!(start.elapsed() < Duration::from_secs(25), "step {step} hangs");
        !out.contains("OUTCOME fine")
    });
    assert!((30..MAX_STEPS).contains(&steps), "{steps} steps");
    println!("{steps} steps of set-up");
    assert_eq!(stdout(&mut *crate::support::sandbox(), "cat a.txt"), "one\n");
    held(12, &format!("a helper ends at each of the {steps} steps of set-up"));
}

/// Tries: SIGKILL of the host program while a helper is between any two steps of its set-up. Must
/// hold: every helper ends, and the next start leaves no cgroup of theirs.
#[test]
fn attack_12_host_killed_at_every_step() {
    const TEST: &str = "host::attack_12_host_killed_at_every_step";
    if is_child() {
        faulty_host();
        return;
    }
    let seen = std::sync::Mutex::new(BTreeMap::new());
    let steps = for_every_step(|step| {
        let mut child =
            faulty(TEST, step, 400).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let held_still = |pid: &u32| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "pw-held"
        };
        let all = loop {
            let all = descendants(child.id());
            if all.iter().any(held_still) {
                break all;
            }
            if child.try_wait().unwrap().is_some() {
                return false;
            }
            std::thread::sleep(Duration::from_millis(3));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        seen.lock().unwrap().insert(step, all);
        true
    });
    assert!((30..MAX_STEPS).contains(&steps), "{steps} steps");
    for (step, all) in seen.lock().unwrap().iter() {
        assert_eq!(
            left_after(all, Duration::from_secs(20)),
            Vec::<u32>::new(),
            "after step {step}"
        );
    }
    let all: Vec<_> = seen.lock().unwrap().values().flatten().copied().collect();
    drop(NativeSandboxes::new(NativeOptions::default()).unwrap());
    assert_eq!(cgroups_of(&all), Vec::<std::path::PathBuf>::new());
    held(12, &format!("SIGKILL of the host program at each of the {steps} steps of set-up"));
}

fn traces() -> (usize, String, usize) {
    let fds = fs::read_dir("/proc/self/fd").unwrap().count();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    (fds, mounts, descendants(std::process::id()).len())
}

/// Directories of ours where temporary files are made.
fn directories() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(std::env::temp_dir())
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.contains("patchwright-"))
        .collect();
    names.sort();
    names
}

/// Tries: a thousand sandboxes, half of them let go of without a word. Must hold: descriptors,
/// mounts, processes, cgroups and directories are all as before.
#[test]
fn attack_13_a_thousand_lives() {
    if ran_alone("host::attack_13_a_thousand_lives") {
        held(13, "1,000 create/destroy leave nothing");
        return;
    }
    let before = (traces(), directories());
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    provider.create(&spec()).unwrap().destroy().unwrap();
    let keepers = descendants(std::process::id());
    let has_cgroups = provider.limits_rung() != LimitsRung::Watchdog;
    assert_eq!(cgroups_of(&keepers).len(), usize::from(has_cgroups));
    let living = traces();
    for n in 0..1000 {
        let mut sandbox = provider.create(&spec()).unwrap();
        if n % 10 == 0 {
            stdout(&mut *sandbox, "echo x > /tmp/x; mkfifo f; (setsid sleep 100 &); true");
        }
        if n % 2 == 0 {
            sandbox.destroy().unwrap();
        }
    }
    assert_eq!(traces(), living, "while the provider lives");
    drop(provider);
    assert_eq!((traces(), directories()), before, "after the provider");
    assert_eq!(cgroups_of(&keepers), Vec::<std::path::PathBuf>::new());
}

/// The shared provider of the suite serves on after all this.
#[test]
fn the_suite_s_own_provider_is_well() {
    assert_eq!(stdout(&mut *provider().create(&spec()).unwrap(), "cat a.txt"), "one\n");
}
