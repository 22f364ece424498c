//! Attacks 6 to 10 and 14: taking all there is, and waiting for what never comes.

use std::time::{Duration, Instant};

use patchwright_core::{ExecStatus, SandboxError};
use patchwright_sandbox::{LimitsRung, NativeSandboxes};

use crate::support::{
    attempt, cannot_run, held, is_root, limited, provider, python, sandbox, shell, shell_for,
    stdout, still_serves, text, watchdog,
};

/// Mebibytes that the attacks on memory may have.
pub const MEMORY_MIB: u64 = 128;

pub fn small(provider: &NativeSandboxes) -> Box<dyn patchwright_core::Sandbox> {
    limited(provider, |limits| {
        limits.memory_bytes = MEMORY_MIB << 20;
        limits.disk_bytes = 16 << 20;
    })
}

/// Takes a bit more than twice the bound, and says so.
pub const HOG: &str = "b = []\nfor n in range(300): b.append(bytearray(b'x') * (1 << 20))\n\
                       print('ate')";

fn memory_hogs(provider: &NativeSandboxes) {
    let mut sandbox = small(provider);
    let many = "import os, time\nok = 1\n\
                for _ in range(4):\n    if os.fork() == 0:\n        \
                b = bytearray(b'x') * (60 << 20); time.sleep(6); os._exit(0)\n\
                for _ in range(4): ok &= os.wait()[1] == 0\nif ok: print('ate')";
    let shared = "import mmap, time\nb = []\n\
                  for n in range(300):\n    m = mmap.mmap(-1, 1 << 20)\n    \
                  m.write(b'x' * (1 << 20)); b.append(m)\ntime.sleep(1)\nprint('ate')";
    for (name, hog) in [("one", HOG), ("many", many), ("shared", shared)] {
        let output = attempt(&mut *sandbox, hog);
        assert!(!text(&output.stdout).contains("ate"), "{name}: {:?}", output.status);
        still_serves(&mut *sandbox);
    }
    // What fits is let be.
    let fits = "b = bytearray(b'x') * (50 << 20); print(len(b))";
    assert_eq!(python(&mut *sandbox, fits), "52428800\n");
}

/// Tries: more memory than there may be, by one process, by many, by shared pages. Must hold: the
/// command fails, and the sandbox serves the next.
#[test]
fn attack_06_memory_hog() {
    memory_hogs(provider());
    held(6, &format!("memory hog, limits by {}", provider().limits_rung()));
    if provider().limits_rung() == LimitsRung::Watchdog {
        let why = if is_root() { "no memory controller" } else { "no delegated controller" };
        cannot_run(6, "memory hog, limits by a cgroup", why);
    } else {
        memory_hogs(watchdog());
        held(6, "memory hog, limits by the watchdog");
    }
}

/// Memory that no process has mapped, three times the bound.
const UNMAPPED: [(&str, &str); 3] = [
    (
        "System V memory",
        "import ctypes, time\nlibc = ctypes.CDLL(None, use_errno=True)\n\
         libc.shmat.restype = ctypes.c_void_p\nlibc.shmdt.argtypes = [ctypes.c_void_p]\n\
         for key in range(1, 40):\n    \
         i = libc.shmget(key, 10 << 20, 0o1666)\n    at = libc.shmat(i, None, 0)\n    \
         ctypes.memset(at, 1, 10 << 20); libc.shmdt(at); time.sleep(0.01)\n\
         time.sleep(0.5)\nprint('ate')",
    ),
    (
        "files in memory",
        "import os, time\nfds = [os.memfd_create('x') for _ in range(40)]\n\
         for f in fds: os.write(f, b'x' * (10 << 20)); time.sleep(0.01)\n\
         time.sleep(0.5)\nprint('ate')",
    ),
    (
        "socket buffers",
        "import os, socket, time\ndef hold():\n    held = []\n    \
         for n in range(115):\n        \
         pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\n        \
         held.append(pair)\n        for s in pair:\n            s.setblocking(False)\n            \
         try:\n                while True: s.send(b'x' * 60000)\n            \
         except OSError: pass\n    time.sleep(3)\n    os._exit(0)\n\
         for _ in range(5):\n    if os.fork() == 0: hold()\n\
         if sum(os.wait()[1] for _ in range(5)) == 0: print('ate')",
    ),
];

/// Tries: memory that no process has mapped, which a sum over processes does not show. Must hold:
/// on every rung it is refused or counted.
#[test]
fn attack_06_unmapped_memory() {
    for provider in [provider(), watchdog()] {
        for (name, hog) in UNMAPPED {
            // A cgroup counts bytes; what sockets could hold at most is the watchdog's measure.
            if name == "socket buffers" && provider.limits_rung() != LimitsRung::Watchdog {
                continue;
            }
            let mut sandbox = small(provider);
            let output = attempt(&mut *sandbox, hog);
            assert!(!text(&output.stdout).contains("ate"), "{name}: {:?}", output.status);
            still_serves(&mut *sandbox);
        }
        held(6, &format!("unmapped memory, limits by {}", provider.limits_rung()));
    }
}

/// Tries: to fill every place that can be written, and unlinked files. Must hold: "no space
/// left", inside alone; what the host writes is refused with a limit, and space given back is.
#[test]
fn attack_07_full_disk() {
    let mut sandbox = limited(provider(), |limits| limits.disk_bytes = 8 << 20);
    for dir in ["/testbed", "/tmp", "/dev/shm", "/home/agent"] {
        let output = shell(&mut *sandbox, &format!("head -c 40000000 /dev/zero > {dir}/full"));
        assert_ne!(output.status, ExecStatus::Exited(0), "{dir}");
        assert!(text(&output.stderr).contains("No space left"), "{}", text(&output.stderr));
        let error = sandbox.write("/testbed/new", &vec![b'x'; 1 << 20]).unwrap_err();
        assert!(matches!(error, SandboxError::Limit(_)), "{error}");
        stdout(&mut *sandbox, &format!("rm {dir}/full"));
    }
    let unlinked = "import os\nf = open('/tmp/x', 'wb', 0); os.unlink('/tmp/x')\n\
                    try:\n    while True: f.write(b'x' * 65536)\nexcept OSError: print('full')";
    assert_eq!(python(&mut *sandbox, unlinked), "full\n");
    sandbox.write("/testbed/new", &vec![b'x'; 1 << 20]).unwrap();
    // The root and the system are no place to write at all.
    for dir in ["/", "/etc", "/usr", "/dev", "/proc", "/home", "/run", "/var"] {
        let output = shell(&mut *sandbox, &format!("touch {dir}/x"));
        assert_ne!(output.status, ExecStatus::Exited(0), "{dir}");
    }
    still_serves(&mut *sandbox);
    held(7, "full /, /tmp, /dev/shm");
}

/// Makes empty files until it may not, and says how many.
pub const MANY_FILES: &str = "n = 0\ntry:\n    \
    while n < 40000: open(f'/tmp/{n}', 'w').close(); n += 1\nexcept OSError: pass\nprint(n)";

/// Tries: files without content, which no size bounds. Must hold: their number is bounded, and
/// with the files gone the sandbox serves on.
#[test]
fn attack_08_inode_exhaustion() {
    let mut sandbox = limited(provider(), |limits| limits.disk_bytes = 4 << 20);
    let made: u32 = python(&mut *sandbox, MANY_FILES).trim().parse().unwrap();
    assert!(made < 10_000, "{made} files");
    stdout(&mut *sandbox, "find /tmp -type f -delete");
    still_serves(&mut *sandbox);
    held(8, "inode exhaustion");
}

/// Tries: a gigabyte of output, output that is no text, output that never ends. Must hold: what is
/// kept is bounded and exact, what is dropped is counted, nothing waits for what is not read.
#[test]
fn attack_09_output_flood() {
    let mut sandbox = limited(provider(), |limits| limits.output_bytes = 4096);
    let output = shell(&mut *sandbox, "head -c 1073741824 /dev/zero; head -c 9000 /dev/zero >&2");
    assert_eq!(output.status, ExecStatus::Exited(0));
    assert_eq!((output.stdout.len(), output.stderr.len()), (4096, 4096));
    assert_eq!(output.dropped_bytes, (1 << 30) + 9000 - 8192);
    let output = shell(&mut *sandbox, r"printf '\377\376\000\200\r\033[2Jx'; printf '\303' >&2");
    assert_eq!(&*output.stdout, b"\xff\xfe\0\x80\r\x1b[2Jx");
    assert_eq!(&*output.stderr, b"\xc3");
    let output = shell_for(&mut *sandbox, "yes", Duration::from_millis(500));
    assert_eq!((output.status, output.stdout.len()), (ExecStatus::TimedOut, 4096));
    still_serves(&mut *sandbox);
    held(9, "1 GiB of output, output that is not UTF-8");
}

/// Tries: to burn CPU time, in one process and in many that each use little. Must hold: the bound
/// is the whole tree's, and each command's anew.
#[test]
fn attack_10_cpu_spin() {
    let mut sandbox = limited(provider(), |limits| limits.cpu_seconds = 1);
    let start = Instant::now();
    let relay = "while :; do (i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done); done";
    let crowd = "for n in 1 2 3 4 5 6 7 8; do (while :; do :; done) & done; wait";
    for spin in ["while :; do :; done", relay, crowd] {
        let status = shell(&mut *sandbox, spin).status;
        let cut = matches!(status, ExecStatus::Signaled(libc::SIGXCPU | libc::SIGKILL));
        assert!(cut, "{spin}: {status:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(90));
    still_serves(&mut *sandbox);
    held(10, "CPU spin");
}

/// Tries: to wait for input that never comes, from stdin and from a terminal. Must hold: stdin is
/// what was given and ends; there is no terminal, and nothing can be typed into one.
#[test]
fn attack_14_readers_of_stdin_and_tty() {
    let mut sandbox = sandbox();
    assert_eq!(stdout(&mut *sandbox, "cat; read x; echo $?; wc -c < /dev/stdin"), "1\n0\n");
    for reader in ["exec 3<>/dev/tty", "cat < /dev/console", "cat < /dev/ptmx", "tty"] {
        assert_ne!(shell(&mut *sandbox, reader).status, ExecStatus::Exited(0), "{reader}");
    }
    let inject = "import fcntl, os, pty\n\
                  for fd in (0, 1, 2):\n    \
                  try: fcntl.ioctl(fd, 0x5412, b'x'); print('typed')\n    \
                  except OSError: pass\n\
                  try: pty.openpty(); print('a terminal')\nexcept OSError: print('none')";
    assert_eq!(python(&mut *sandbox, inject), "none\n");
    still_serves(&mut *sandbox);
    held(14, "readers of stdin and tty");
}
