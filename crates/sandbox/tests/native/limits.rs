//! Every bound holds, on every rung.

use std::time::{Duration, Instant};

use patchwright_core::{ExecRequest, ExecStatus, SandboxError, SandboxProvider};
use patchwright_sandbox::{LimitsRung, NativeOptions, NativeSandboxes};

use crate::support::{
    LONG, WORKDIR, files, is_root, provider, shell, shell_for, spec, stdout, text, with_limits,
};

const EAT: &str =
    "b = []\nfor n in range(4000): b.append(bytearray(b'x') * (1 << 20))\nprint('ate')";

#[test]
fn a_fork_bomb_stays_inside_its_bound() {
    let mut sandbox = with_limits(|limits| limits.num_processes = 20);
    let count = "import os, time\nn = 0\n\
                 while True:\n    \
                 try:\n        pid = os.fork()\n    except OSError: break\n    \
                 if pid == 0: time.sleep(100)\n    n += 1\nprint(n)";
    let request = ExecRequest::argv(&["python3", "-I", "-S", "-c", count], WORKDIR, LONG);
    let output = sandbox.exec(&request).unwrap();
    assert_eq!(text(&output.stdout), "19\n", "{}", text(&output.stderr));
    let bomb = "f() { f | f & }; f; sleep 30";
    let start = Instant::now();
    let output = shell_for(&mut *sandbox, bomb, Duration::from_millis(700));
    assert!(output.status != ExecStatus::Exited(0), "{:?}", output.status);
    assert!(start.elapsed() < Duration::from_secs(25));
    assert_eq!(stdout(&mut *sandbox, "echo alive"), "alive\n");
}

#[test]
fn one_sandbox_s_processes_do_not_count_for_another() {
    let mut one = with_limits(|limits| limits.num_processes = 10);
    let mut two = with_limits(|limits| limits.num_processes = 10);
    let busy = "for i in 1 2 3 4 5 6 7; do sleep 2 & done; wait; echo done";
    std::thread::scope(|scope| {
        let a = scope.spawn(|| stdout(&mut *one, busy));
        let b = scope.spawn(|| stdout(&mut *two, busy));
        assert_eq!((a.join().unwrap(), b.join().unwrap()), ("done\n".into(), "done\n".into()));
    });
}

fn memory_is_bounded(provider: &NativeSandboxes) {
    let mut spec = spec(files(&[]));
    spec.limits.memory_bytes = 128 << 20;
    spec.limits.disk_bytes = 16 << 20;
    let mut sandbox = provider.create(&spec).unwrap();
    let mut eat = |script: &str| {
        let request = ExecRequest::argv(&["python3", "-I", "-S", "-c", script], WORKDIR, LONG);
        sandbox.exec(&request).unwrap()
    };
    let one = eat(EAT);
    assert_ne!(one.status, ExecStatus::Exited(0), "{}", text(&one.stdout));
    // Four processes that each stay below the bound: together they do not.
    let four = "import os, time\n\
                for _ in range(4):\n    if os.fork() == 0:\n        \
                b = bytearray(b'x') * (60 << 20); time.sleep(5); os._exit(0)\n\
                ok = 1\nfor _ in range(4): ok &= os.wait()[1] == 0\nprint('all lived' if ok else '')";
    let four = eat(four);
    assert!(!text(&four.stdout).contains("all lived"));
    let fits = eat("b = bytearray(b'x') * (50 << 20); print(len(b))");
    assert_eq!(fits.status, ExecStatus::Exited(0), "{}", text(&fits.stderr));
    sandbox.destroy().unwrap();
}

#[test]
fn memory_is_bounded_on_the_best_rung() {
    memory_is_bounded(provider());
}

#[test]
fn memory_is_bounded_without_cgroups() {
    let options =
        NativeOptions { limits_rung: Some(LimitsRung::Watchdog), ..NativeOptions::default() };
    let provider = NativeSandboxes::new(options).unwrap();
    assert_eq!(provider.limits_rung(), LimitsRung::Watchdog);
    memory_is_bounded(&provider);
}

#[test]
fn the_rung_is_told_and_a_demand_is_never_met_with_less() {
    for rung in [LimitsRung::CgroupV1, LimitsRung::CgroupV2, LimitsRung::Watchdog] {
        let options = NativeOptions { limits_rung: Some(rung), ..NativeOptions::default() };
        match NativeSandboxes::new(options) {
            Ok(provider) => assert_eq!(provider.limits_rung(), rung),
            Err(SandboxError::Unsupported(why)) => {
                assert!(why.contains(&rung.to_string()), "{why}");
                assert_ne!(rung, LimitsRung::Watchdog);
            }
            Err(other) => panic!("{other}"),
        }
    }
}

#[test]
fn cpu_time_is_bounded_for_the_whole_tree() {
    let mut sandbox = with_limits(|limits| limits.cpu_seconds = 1);
    let start = Instant::now();
    let output = shell(&mut *sandbox, "while :; do :; done");
    assert!(matches!(output.status, ExecStatus::Signaled(24 | 9)), "{:?}", output.status);
    // Children that each use little, one after the other, and are waited for.
    let relay = "while :; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); done";
    let output = shell(&mut *sandbox, relay);
    assert_eq!(output.status, ExecStatus::Signaled(24), "{}", text(&output.stderr));
    assert!(start.elapsed() < Duration::from_secs(25));
    // The bound is a command's, not the sandbox's.
    assert_eq!(stdout(&mut *sandbox, "echo next"), "next\n");
}

#[test]
fn a_full_disk_is_an_error_inside_and_a_limit_outside() {
    let mut sandbox = with_limits(|limits| limits.disk_bytes = 4 << 20);
    for dir in ["/testbed", "/tmp", "/dev/shm", "/home/agent"] {
        let fill = format!("head -c 20000000 /dev/zero > {dir}/full");
        let output = shell(&mut *sandbox, &fill);
        assert_ne!(output.status, ExecStatus::Exited(0), "{dir}");
        assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
        assert_eq!(stdout(&mut *sandbox, &format!("rm {dir}/full; echo ok")), "ok\n");
    }
    sandbox.write("/testbed/a.txt", b"short").unwrap();
    stdout(&mut *sandbox, "head -c 3900000 /dev/zero > /tmp/most");
    let error = sandbox.write("/testbed/a.txt", &vec![b'x'; 1 << 20]).unwrap_err();
    assert!(matches!(error, SandboxError::Limit(_)), "{error}");
    assert_eq!(sandbox.read("/testbed/a.txt", 100).unwrap(), b"short", "it stays as it was");
    let error = sandbox.write("/testbed/new", &vec![b'x'; 1 << 20]).unwrap_err();
    assert!(matches!(error, SandboxError::Limit(_)), "{error}");
    assert!(matches!(sandbox.read("/testbed/new", 1), Err(SandboxError::Path { .. })));
    assert!(matches!(sandbox.write("/tmp/x", &vec![0; 5 << 20]), Err(SandboxError::Limit(_))));
}

#[test]
fn inodes_run_out_before_memory_does() {
    let mut sandbox = with_limits(|limits| limits.disk_bytes = 4 << 20);
    let script = "import os\nn = 0\ntry:\n    while True: open(f'/tmp/{n}', 'w').close(); n += 1\n\
                  except OSError: print(n < 10000)";
    assert_eq!(crate::support::python(&mut *sandbox, script), "True\n");
}

#[test]
fn a_repository_that_does_not_fit_is_a_limit() {
    let mut spec = spec(files(&[("big", &"x".repeat(3 << 20))]));
    spec.limits.disk_bytes = 1 << 20;
    let error = provider().create(&spec).err();
    assert!(matches!(error, Some(SandboxError::Limit(_))), "{error:?}");
    spec.limits.disk_bytes = 8 << 20;
    provider().create(&spec).unwrap();
}

#[test]
fn bounds_that_cannot_be_kept_are_refused() {
    type Change = fn(&mut patchwright_core::SandboxLimits);
    let changes: [Change; 4] = [
        |l| l.disk_bytes = l.memory_bytes,
        |l| l.output_bytes = 1 << 30,
        |l| l.num_processes = 0,
        |l| l.cpu_seconds = 0,
    ];
    for change in changes {
        let mut spec = spec(files(&[]));
        change(&mut spec.limits);
        assert!(matches!(provider().create(&spec).err(), Some(SandboxError::Limit(_))));
    }
    let few = NativeOptions { max_sandboxes: 1, ..NativeOptions::default() };
    let few = NativeSandboxes::new(few).unwrap();
    let first = few.create(&spec(files(&[]))).unwrap();
    assert!(matches!(few.create(&spec(files(&[]))).err(), Some(SandboxError::Limit(_))));
    first.destroy().unwrap();
    few.create(&spec(files(&[]))).unwrap();
}

#[test]
fn root_s_commands_are_nobody_on_the_host() {
    if !is_root() {
        return;
    }
    let mut sandbox = with_limits(|_| {});
    let map = stdout(&mut *sandbox, "cat /proc/self/uid_map; cat /proc/self/gid_map");
    for line in map.lines() {
        let fields: Vec<_> = line.split_whitespace().collect();
        assert_eq!(fields, ["1000", "65533", "1"]);
    }
}
