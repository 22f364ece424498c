//! Attacks 1 to 5: outliving, outnumbering and outlasting what started one.

use std::time::{Duration, Instant};

use patchwright_core::ExecStatus;

use crate::support::{
    attempt, descendants, held, limited, provider, python, ran_alone, sandbox, shell, shell_for,
    stdout, still_serves, text, without,
};

/// Forks as often as it may, and says how often.
pub const COUNT_FORKS: &str = "import os, time\nn = 0\n\
    while n < 300:\n    \
    try:\n        pid = os.fork()\n    except OSError: break\n    \
    if pid == 0: time.sleep(100)\n    n += 1\nprint(n)";

/// Tries: to fork without end. Must hold: no more than `num_processes` live at once, the bomb
/// ends with its command, and other sandboxes are not slowed into errors.
#[test]
fn attack_01_fork_bomb() {
    let mut one = limited(provider(), |limits| limits.num_processes = 40);
    let mut other = sandbox();
    assert_eq!(python(&mut *one, COUNT_FORKS), "39\n");
    std::thread::scope(|scope| {
        let bomb = "f() { f | f & }; f; sleep 60";
        let bombed = scope.spawn(|| shell_for(&mut *one, bomb, Duration::from_secs(1)));
        assert_eq!(stdout(&mut *other, "echo fine"), "fine\n");
        assert_ne!(bombed.join().unwrap().status, ExecStatus::Exited(0));
    });
    still_serves(&mut *one);
    held(1, "fork bomb");
}

/// Forks twice into a session of its own, ignoring what can be ignored.
pub const DAEMON: &str = "import os, signal, time\n\
    if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        \
    [signal.signal(s, signal.SIG_IGN) for s in range(1, 30) if s not in (9, 19)]\n        \
    open('/tmp/started', 'w').close()\n        time.sleep(60)\n        \
    open('/tmp/survived', 'w').close()\n    os._exit(0)\n\
    while not os.path.exists('/tmp/started'): time.sleep(0.01)\n";

/// Tries: to outlive the command as a daemon in a session of its own. Must hold: it ends with
/// the command.
#[test]
fn attack_02_daemon() {
    let mut sandbox = sandbox();
    python(&mut *sandbox, DAEMON);
    still_serves(&mut *sandbox);
    stdout(&mut *sandbox, "nohup setsid sleep 1000 >/dev/null 2>&1 & disown");
    still_serves(&mut *sandbox);
    held(2, "setsid and double-fork daemon");
}

/// Tries: to outlast the time limit with every signal ignored and blocked. Must hold: the whole
/// tree ends soon after the limit.
#[test]
fn attack_03_all_signals_ignored() {
    let mut sandbox = sandbox();
    let deaf = "import os, signal, time\n\
                signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\n\
                [signal.signal(s, signal.SIG_IGN) for s in range(1, 32) if s not in (9, 19)]\n\
                os.fork(); os.fork()\nwhile True: time.sleep(100)";
    let argv = ["python3", "-I", "-S", "-c", deaf];
    let limit = Duration::from_secs(1);
    let request = patchwright_core::ExecRequest::argv(&argv, "/testbed", limit);
    let start = Instant::now();
    assert_eq!(sandbox.exec(&request).unwrap().status, ExecStatus::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(30));
    still_serves(&mut *sandbox);
    held(3, "all signals ignored");
}

/// Tries: to kill everything, PID 1 above all. Must hold: only the command itself ends; PID 1
/// and other sandboxes live.
#[test]
fn attack_04_kill_everything() {
    let (mut one, mut other) = (sandbox(), sandbox());
    std::thread::scope(|scope| {
        let bystander = scope.spawn(|| stdout(&mut *other, "sleep 1; echo lived"));
        for kill in [
            "kill -9 -1",
            "kill -9 1; kill -TERM 1; kill -SEGV 1; kill -STOP 1; kill -ABRT 1; echo on",
            "trap '' TERM; kill -TERM -1; kill -9 -1",
        ] {
            let status = shell(&mut *one, kill).status;
            let ended = matches!(status, ExecStatus::Exited(_) | ExecStatus::Signaled(_));
            assert!(ended, "{kill}: {status:?}");
            still_serves(&mut *one);
        }
        // Every number, in case one leads out.
        let all = "import os\nfor pid in range(2, 100000):\n    if pid != os.getpid():\n        \
                   try: os.kill(pid, 9); print(pid)\n        except OSError: pass";
        assert_eq!(python(&mut *one, all), "", "nobody else is there");
        assert_eq!(bystander.join().unwrap(), "lived\n");
    });
    held(4, "kill -9 -1, killing PID 1");
}

/// Tries: to hang the caller by a grandchild that holds stdout open. Must hold: the command is
/// over when its own process is.
#[test]
fn attack_05_grandchild_holds_stdout() {
    let mut sandbox = sandbox();
    let start = Instant::now();
    let output = shell(&mut *sandbox, "(setsid sleep 1000; echo late) & (sleep 1000) & echo now");
    assert_eq!((output.status, &*output.stdout), (ExecStatus::Exited(0), &b"now\n"[..]));
    assert!(start.elapsed() < Duration::from_secs(30));
    // Passing the descriptor on through a socket to itself keeps it from being closed, too.
    let passed = "import array, os, socket, time\na, b = socket.socketpair()\n\
                  socket.send_fds(a, [b'x'], [1, 2])\n\
                  if os.fork() == 0: time.sleep(1000)\nprint('now')";
    assert_eq!(python(&mut *sandbox, passed), "now\n");
    still_serves(&mut *sandbox);
    held(5, "grandchild that holds stdout");
}

/// A provider of its own leaves no process, whatever its commands started.
#[test]
fn attack_02_daemons_do_not_outlive_the_sandbox() {
    if ran_alone("lifetime::attack_02_daemons_do_not_outlive_the_sandbox") {
        return;
    }
    let before = descendants(std::process::id()).len();
    let provider = without(&[]);
    let mut sandbox = limited(&provider, |_| {});
    let output = attempt(&mut *sandbox, DAEMON);
    assert_eq!(output.status, ExecStatus::Exited(0), "{}", text(&output.stderr));
    sandbox.destroy().unwrap();
    drop(provider);
    assert_eq!(descendants(std::process::id()).len(), before);
}
