//! What a command is given and what comes back.

use std::time::{Duration, Instant};

use patchwright_core::{ExecRequest, ExecStatus, OutputStream, SandboxProvider};

use crate::support::{
    LONG, WORKDIR, files, provider, python, shell, shell_for, simple, spec, stdout, text,
    with_limits,
};

#[test]
fn exit_codes_and_signals_come_back() {
    let mut sandbox = simple();
    for code in [0, 1, 42, 255] {
        let output = shell(&mut *sandbox, &format!("exit {code}"));
        assert_eq!(output.status, ExecStatus::Exited(code));
    }
    assert_eq!(shell(&mut *sandbox, "kill -TERM $$").status, ExecStatus::Signaled(15));
    assert_eq!(shell(&mut *sandbox, "kill -SEGV $$").status, ExecStatus::Signaled(11));
}

#[test]
fn streams_are_apart_and_need_not_be_utf8() {
    let mut sandbox = simple();
    let output = shell(&mut *sandbox, r"printf 'o\377\000p'; printf 'e\200' >&2");
    assert_eq!(output.stdout, b"o\xff\0p");
    assert_eq!(output.stderr, b"e\x80");
    assert_eq!(output.dropped_bytes, 0);
}

/// The order of a set, and what prints an address, are the same every time.
#[test]
fn a_program_lies_where_it_lay_before() {
    let script = "python3 -c \"print(id(None), id(object()), {None, 'a', 'b', (1, None)})\"";
    let mut sandbox = simple();
    let first = stdout(&mut *sandbox, script);
    for _ in 0..3 {
        assert_eq!(stdout(&mut *sandbox, script), first);
    }
    assert_eq!(stdout(&mut *simple(), script), first);
}

/// Each part of the output is there while the command goes on: it waits for what its own first line
/// sets off.
#[test]
fn output_comes_while_the_command_runs() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .unwrap();
    let mut spec = spec(files(&[]));
    spec.read_only_mounts.push((dir.path().to_owned(), "/opt/host".to_owned()));
    spec.limits.output_bytes = 16;
    let mut sandbox = provider().create(&spec).unwrap();
    let script = "echo one; until [ -e /opt/host/go ]; do sleep 0.01; done; echo two >&2; \
                  printf 0123456789abcdef; exit 3";
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let request = ExecRequest::shell(script, WORKDIR, LONG);
    let output = sandbox
        .exec_streamed(&request, &mut |stream, bytes| {
            std::fs::write(dir.path().join("go"), "").unwrap();
            match stream {
                OutputStream::Stdout => out.extend_from_slice(bytes),
                OutputStream::Stderr => err.extend_from_slice(bytes),
            }
        })
        .unwrap();
    assert_eq!(output.status, ExecStatus::Exited(3));
    assert_eq!((text(&out).as_str(), text(&err).as_str()), ("one\n0123456789ab", "two\n"));
    assert_eq!((output.stdout, output.stderr, output.dropped_bytes), (out, err, 4));
}

#[test]
fn what_cannot_be_started_is_a_failing_command() {
    let mut sandbox = simple();
    for (argv, cwd, code) in [
        (&["no-such-program"][..], WORKDIR, 127),
        (&["/testbed/a.txt"], WORKDIR, 126),
        (&["/no/such"], WORKDIR, 127),
        (&["true"], "/no/such", 126),
        (&["true", "a\0b"], WORKDIR, 126),
        (&[""], WORKDIR, 127),
    ] {
        let output = sandbox.exec(&ExecRequest::argv(argv, cwd, LONG)).unwrap();
        assert_eq!(output.status, ExecStatus::Exited(code), "{argv:?} {}", text(&output.stderr));
        assert!(!output.stderr.is_empty(), "{argv:?} says why");
    }
    let huge = "x".repeat(3 << 20);
    let output = sandbox.exec(&ExecRequest::argv(&["echo", &huge], WORKDIR, LONG)).unwrap();
    assert_eq!(output.status, ExecStatus::Exited(126), "an argument list that is too long");
}

#[test]
fn stdin_cwd_and_env_are_the_request_s() {
    let mut spec = spec(files(&[("d/x", "")]));
    spec.env.insert("FROM_SPEC".to_owned(), "s".to_owned());
    spec.env.insert("BOTH".to_owned(), "spec".to_owned());
    let mut sandbox = provider().create(&spec).unwrap();
    let mut request = ExecRequest::shell("cat; pwd; echo $FROM_SPEC $BOTH", "/testbed/d", LONG);
    request.stdin = b"input\n".repeat(100_000);
    request.env.insert("BOTH".to_owned(), "request".to_owned());
    let output = sandbox.exec(&request).unwrap();
    assert!(output.stdout.starts_with(b"input\n"));
    request.stdin = b"short\n".to_vec();
    let output = sandbox.exec(&request).unwrap();
    assert_eq!(text(&output.stdout), "short\n/testbed/d\ns request\n");
    // A reader that goes early is no failure, nor is one that waits for input that is not there.
    request.argv = vec!["true".to_owned()];
    request.stdin = vec![b'x'; 1 << 20];
    assert_eq!(sandbox.exec(&request).unwrap().status, ExecStatus::Exited(0));
    assert_eq!(stdout(&mut *sandbox, "cat; read x; echo $?"), "1\n");
}

#[test]
fn a_timeout_ends_the_tree_and_keeps_the_output() {
    let mut sandbox = simple();
    let start = Instant::now();
    let script = "echo before; trap '' TERM INT HUP; sleep 100 & sleep 100";
    let output = shell_for(&mut *sandbox, script, Duration::from_millis(300));
    assert_eq!(output.status, ExecStatus::TimedOut);
    assert_eq!(text(&output.stdout), "before\n");
    assert!(start.elapsed() < Duration::from_secs(20));
    assert_eq!(alive(&mut *sandbox), "1\n");
}

/// Processes beside the shell that counts them: PID 1 alone.
fn alive(sandbox: &mut dyn patchwright_core::Sandbox) -> String {
    stdout(
        sandbox,
        "n=0; for p in /proc/[0-9]*; do [ $p != /proc/$$ ] && n=$((n+1)); done; echo $n",
    )
}

#[test]
fn a_flood_is_cut_and_counted() {
    let mut sandbox = with_limits(|limits| limits.output_bytes = 1000);
    let output = shell(&mut *sandbox, "head -c 50000000 /dev/zero; head -c 5000 /dev/zero >&2");
    assert_eq!(output.status, ExecStatus::Exited(0));
    assert_eq!((output.stdout.len(), output.stderr.len()), (1000, 1000));
    assert_eq!(output.dropped_bytes, 50_005_000 - 2000);
    let output = shell_for(&mut *sandbox, "yes", Duration::from_millis(200));
    assert_eq!(output.status, ExecStatus::TimedOut);
    assert_eq!(output.stdout.len(), 1000);
}

#[test]
fn a_grandchild_that_holds_stdout_does_not_hang_the_command() {
    let mut sandbox = simple();
    let start = Instant::now();
    let output = shell(&mut *sandbox, "(sleep 1000; echo late) & echo now");
    assert_eq!(output.status, ExecStatus::Exited(0));
    assert_eq!(text(&output.stdout), "now\n");
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn nothing_survives_its_command() {
    let mut sandbox = simple();
    let daemon = "import os, time\n\
                  if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
                  import signal\n        \
                  [signal.signal(s, signal.SIG_IGN) for s in range(1, 30) if s not in (9, 19)]\n        \
                  open('/tmp/started', 'w').close()\n        time.sleep(1000)\n    os._exit(0)\n\
                  while not os.path.exists('/tmp/started'): time.sleep(0.01)\n";
    python(&mut *sandbox, daemon);
    assert_eq!(alive(&mut *sandbox), "1\n");
    stdout(&mut *sandbox, "nohup setsid sleep 1000 >/dev/null 2>&1 & disown");
    assert_eq!(alive(&mut *sandbox), "1\n");
}

#[test]
fn killing_everything_harms_only_the_killer() {
    let mut sandbox = simple();
    let output = shell(&mut *sandbox, "kill -9 -1; kill -9 1; kill -TERM 1; kill -STOP 1; echo on");
    assert!(matches!(output.status, ExecStatus::Exited(_) | ExecStatus::Signaled(9)));
    assert_eq!(stdout(&mut *sandbox, "cat a.txt"), "one\n");
}

#[test]
fn sh_stands_in_for_a_bash_that_is_not_there() {
    let mut sandbox = simple();
    let mut request = ExecRequest::shell("echo $0 runs", WORKDIR, LONG);
    stdout(&mut *sandbox, "mkdir /tmp/bin; ln -s /bin/sh /tmp/bin/sh");
    request.env.insert("PATH".to_owned(), "/tmp/bin".to_owned());
    let output = sandbox.exec(&request).unwrap();
    assert_eq!(output.status, ExecStatus::Exited(0));
    assert_eq!(text(&output.stdout), "bash runs\n");
}
