//! For each layer of defence, an attack that succeeds with that layer switched off and fails with
//! it on: so the suite is known to test something. "Succeeds" is measured, and bounded so that the
//! machine lives: 200 processes in place of 128, not all there can be. Where one attack is stopped
//! by two layers, the one beside that under test is off in both runs, and named.

use std::fs;
use std::time::Duration;

use patchwright_core::{ExecOutput, ExecRequest, ExecStatus, Sandbox, SandboxProvider};
use patchwright_sandbox::{Layer, NativeSandboxes};

use crate::escape::{Listeners, READ_DESCRIPTORS, SECRET, SYSTEM_CALLS, leak_descriptor};
use crate::files::open_to_all;
use crate::host::{busy_host, kill_busy_host, left_after};
use crate::lifetime::{COUNT_FORKS, DAEMON};
use crate::resources::{HOG, MANY_FILES, small};
use crate::support::{
    LONG, alone, attempt, bites, descendants, is_child, limited, python, shell, shell_for, spec,
    stdout, text, without,
};

/// Runs an attack with all layers but those in `beside`, where it must fail, and with `layer` off
/// as well, where it must succeed.
fn only_without(
    layer: Layer,
    beside: &[Layer],
    attack: &str,
    succeeds: impl Fn(&NativeSandboxes) -> bool,
) {
    assert!(!succeeds(&without(beside)), "{attack}: succeeds with {layer:?} on");
    let off: Vec<_> = beside.iter().copied().chain([layer]).collect();
    assert!(succeeds(&without(&off)), "{attack}: fails though {layer:?} is off");
    bites(layer, attack);
}

fn plain(provider: &NativeSandboxes) -> Box<dyn Sandbox> {
    limited(provider, |_| {})
}

#[test]
fn seccomp() {
    only_without(Layer::Seccomp, &[], "io_uring, keys, AF_ALG and their like", |provider| {
        let seen = python(&mut *plain(provider), SYSTEM_CALLS);
        assert!(seen.ends_with("done\n"), "{seen}");
        seen.contains("succeeded")
    });
}

#[test]
fn pid_namespace() {
    only_without(Layer::PidNamespace, &[], "kill -9 -1 reaches another sandbox", |provider| {
        let (mut one, mut other) = (plain(provider), plain(provider));
        let slow = "sleep 3.141; echo lived";
        let request = ExecRequest::shell(slow, "/testbed", LONG);
        std::thread::scope(|scope| {
            let bystander = scope.spawn(|| other.exec(&request));
            while !bystander.is_finished() && !runs(b"sleep\x003.141\0") {
                std::thread::sleep(Duration::from_millis(20));
            }
            let kill = ExecRequest::shell("kill -9 -1", "/testbed", LONG);
            // With the layer off it may take its own sandbox along.
            let _ = one.exec(&kill);
            match bystander.join().unwrap() {
                Ok(output) => text(&output.stdout) != "lived\n",
                Err(_) => true,
            }
        })
    });
}

/// Whether one of our sandboxes runs this command line.
fn runs(line: &[u8]) -> bool {
    let all = descendants(std::process::id());
    all.iter().any(|pid| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|l| l == line))
}

#[test]
fn net_namespace() {
    only_without(Layer::NetNamespace, &[], "TCP to a port of the host", |provider| {
        let listeners = Listeners::open();
        python(&mut *plain(provider), &listeners.script());
        listeners.came().contains(&"TCP")
    });
}

#[test]
fn read_only() {
    only_without(Layer::ReadOnly, &[], "change what sandboxes share", |provider| {
        let shared = tempfile::tempdir().unwrap();
        open_to_all(shared.path(), 0o755);
        let file = shared.path().join("lib.py");
        fs::write(&file, "X = 7\n").unwrap();
        open_to_all(&file, 0o666);
        let mut spec = spec();
        spec.read_only_mounts.push((shared.path().to_owned(), "/opt/env".to_owned()));
        let mut sandbox = provider.create(&spec).unwrap();
        shell(&mut *sandbox, "echo 'X = 8' > /opt/env/lib.py");
        fs::read_to_string(&file).unwrap() != "X = 7\n"
    });
}

#[test]
fn memory() {
    only_without(Layer::Memory, &[], "300 MiB where 128 may be", |provider| {
        text(&attempt(&mut *small(provider), HOG).stdout).contains("ate")
    });
}

#[test]
fn processes() {
    // Without cgroups, the sum of 300 processes is too much memory, too.
    only_without(
        Layer::Processes,
        &[Layer::Memory],
        "300 processes where 128 may be",
        |provider| {
            let count: u32 = python(&mut *plain(provider), COUNT_FORKS).trim().parse().unwrap();
            assert!((100..=300).contains(&count), "{count}");
            count > 200
        },
    );
}

#[test]
fn disk() {
    only_without(Layer::Disk, &[], "20 MB where 8 MiB may be, 40,000 files", |provider| {
        let mut sandbox = limited(provider, |limits| limits.disk_bytes = 8 << 20);
        let filled = shell(&mut *sandbox, "head -c 20000000 /dev/zero > /tmp/full").status;
        shell(&mut *sandbox, "rm /tmp/full");
        let files: u32 = python(&mut *sandbox, MANY_FILES).trim().parse().unwrap();
        let (bytes, many) = (filled == ExecStatus::Exited(0), files > 20_000);
        assert_eq!(bytes, many, "size and number are bounded together");
        bytes
    });
}

#[test]
fn output() {
    only_without(Layer::Output, &[], "4 MiB of output where 4 KiB may be", |provider| {
        let mut sandbox = limited(provider, |limits| limits.output_bytes = 4096);
        let output = shell(&mut *sandbox, "head -c 4194304 /dev/zero");
        output.stdout.len() > 4096 && output.dropped_bytes == 0
    });
}

#[test]
fn cpu_time() {
    only_without(Layer::CpuTime, &[], "1.7 s of CPU time where 1 may be", |provider| {
        let mut sandbox = limited(provider, |limits| limits.cpu_seconds = 1);
        let spin = "import time\nwhile time.process_time() < 1.7: pass\nprint('spun')";
        text(&attempt(&mut *sandbox, spin).stdout) == "spun\n"
    });
}

#[test]
fn wall_time() {
    only_without(Layer::WallTime, &[], "3 s where 1 may be", |provider| {
        let slow = "sleep 3; echo slept";
        let output = shell_for(&mut *plain(provider), slow, Duration::from_secs(1));
        text(&output.stdout) == "slept\n"
    });
}

#[test]
fn capabilities() {
    // Without system calls refused: chroot is on no list, too.
    only_without(Layer::Capabilities, &[Layer::Seccomp], "chroot", |provider| {
        let script = "import os\nos.mkdir('/tmp/r'); os.chroot('/tmp/r'); print('out')";
        text(&attempt(&mut *plain(provider), script).stdout) == "out\n"
    });
}

#[test]
fn masked_proc() {
    only_without(Layer::MaskedProc, &[], "read how the machine was started", |provider| {
        let seen: ExecOutput = shell(&mut *plain(provider), "cat /proc/cmdline");
        !seen.stdout.is_empty()
    });
}

#[test]
fn descriptors() {
    if !is_child() {
        let output = alone("layers::descriptors").output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
        bites(Layer::Descriptors, "read a file that the host has open");
        return;
    }
    let leak = leak_descriptor();
    only_without(Layer::Descriptors, &[], "read a file that the host has open", |provider| {
        python(&mut *plain(provider), READ_DESCRIPTORS).contains(SECRET)
    });
    drop(leak);
}

#[test]
fn environment() {
    if !is_child() {
        let output = alone("layers::environment").env("API_TOKEN", SECRET).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
        bites(Layer::Environment, "read a secret of the host's environment");
        return;
    }
    only_without(Layer::Environment, &[], "read a secret of the host's environment", |provider| {
        stdout(&mut *plain(provider), "env").contains(SECRET)
    });
}

#[test]
fn remains() {
    only_without(Layer::Remains, &[], "a daemon outlives its command", |provider| {
        let mut sandbox = plain(provider);
        python(&mut *sandbox, DAEMON);
        let count = "n=0; for p in /proc/[0-9]*; do n=$((n+1)); done; echo $n";
        stdout(&mut *sandbox, count) == "3\n"
    });
}

#[test]
fn parent_death() {
    const TEST: &str = "layers::parent_death";
    if is_child() {
        busy_host(&without(&[Layer::ParentDeath]));
        return;
    }
    // With the layer on it is attack 11.
    // In a registry of its own: else the next start of any provider would end what is left.
    let registry = tempfile::tempdir().unwrap();
    let all = kill_busy_host(alone(TEST).env("PATCHWRIGHT_RUNTIME_DIR", registry.path()));
    let left = left_after(&all, Duration::from_secs(2));
    assert!(
        left.len() >= 6,
        "the commands outlive the host, until they end by themselves: {left:?}"
    );
    assert_eq!(left_after(&all, Duration::from_secs(40)), Vec::<u32>::new(), "and then all ends");
    bites(Layer::ParentDeath, "sandboxes outlive their host");
}
