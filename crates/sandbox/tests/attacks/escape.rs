//! Attacks 15 to 18 and 21: out of the sandbox, or into what speaks for it.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixListener;

use patchwright_core::{ExecRequest, ExecStatus, SandboxProvider};

use crate::support::{
    LONG, WORKDIR, alone, attempt, held, is_child, provider, python, sandbox, shell, spec, stdout,
    still_serves, text, watchdog,
};

/// Tries: to write what the kernel runs or obeys. Must hold: none of it can be written, and what
/// speaks of the machine cannot be read.
#[test]
fn attack_15_kernel_settings() {
    let mut sandbox = sandbox();
    for (path, value) in [
        ("/proc/sys/kernel/core_pattern", "|/tmp/x"),
        ("/proc/sys/kernel/modprobe", "/tmp/x"),
        ("/proc/sys/kernel/hostname", "x"),
        ("/proc/sys/kernel/shmmax", "1"),
        ("/proc/sys/vm/overcommit_memory", "1"),
        ("/proc/sys/net/ipv4/ip_forward", "1"),
        ("/proc/sys/fs/binfmt_misc/register", ":x:M::x::/tmp/x:"),
        ("/proc/sys/user/max_user_namespaces", "100"),
        ("/proc/sysrq-trigger", "b"),
        ("/proc/self/oom_score_adj", "-1000"),
        ("/proc/1/oom_score_adj", "1000"),
        ("/proc/self/uid_map", "0 0 1"),
        ("/proc/1/mem", "x"),
        ("/proc/irq/0/smp_affinity", "1"),
        ("/proc/acpi/wakeup", "x"),
        ("/sys/kernel/uevent_helper", "/tmp/x"),
        ("/sys/fs/cgroup/memory/release_agent", "/tmp/x"),
        ("/dev/kmsg", "x"),
        ("/dev/mem", "x"),
    ] {
        let script =
            format!("import os\nf = os.open('{path}', os.O_WRONLY)\nos.write(f, b'{value}')");
        assert_ne!(attempt(&mut *sandbox, &script).status, ExecStatus::Exited(0), "{path}");
    }
    for path in ["kcore", "kmsg", "keys", "cmdline", "timer_list", "sysrq-trigger"] {
        let output = shell(&mut *sandbox, &format!("head -c 100 /proc/{path}"));
        assert_eq!(output.stdout.len(), 0, "/proc/{path}");
    }
    still_serves(&mut *sandbox);
    held(15, "write core_pattern, sysrq");
}

/// What a filter must refuse, each with an expression of Python that is true when it succeeded.
pub const SYSTEM_CALLS: &str = "import ctypes, os, platform\n\
    libc = ctypes.CDLL(None, use_errno=True)\n\
    x86 = platform.machine() == 'x86_64'\n\
    def call(name, x, a, *args):\n    \
    r = libc.syscall(x if x86 else a, *args)\n    \
    if r >= 0: print(name, 'succeeded')\n\
    p = ctypes.create_string_buffer(4096)\n\
    parent = os.getppid()\n\
    call('io_uring_setup', 425, 425, 8, p)\n\
    call('bpf', 321, 280, 0, b'\\2\\0\\0\\0\\4\\0\\0\\0\\4\\0\\0\\0\\1\\0\\0\\0' + bytes(100), 72)\n\
    call('keyctl', 250, 219, 0, -3, 1)\n\
    call('add_key', 248, 217, b'user', b'x', b'y', 1, -3)\n\
    call('request_key', 249, 218, b'user', b'x', None, -3)\n\
    call('userfaultfd', 323, 282, 1)\n\
    call('perf_event_open', 298, 241, p, 0, -1, -1, 0)\n\
    call('ptrace', 101, 117, 0, 0, 0, 0)\n\
    call('process_vm_readv', 310, 270, os.getpid(), p, 0, p, 0, 0)\n\
    call('kcmp', 312, 272, os.getpid(), os.getpid(), 0, 0, 0)\n\
    call('mount', 165, 40, b'none', b'/tmp', b'tmpfs', 0, None)\n\
    call('umount2', 166, 39, b'/tmp', 2)\n\
    call('pivot_root', 155, 41, b'/tmp', b'/tmp')\n\
    call('chroot', 161, 51, b'/tmp')\n\
    call('fsopen', 430, 430, b'tmpfs', 0)\n\
    call('open_tree', 428, 428, -100, b'/tmp', 1)\n\
    call('open_tree without clone', 428, 428, -100, b'/tmp', 0)\n\
    call('mount_setattr', 442, 442, -100, b'/tmp', 0, p, 32)\n\
    call('unshare of a user namespace', 272, 97, 0x10000000)\n\
    call('unshare of mounts', 272, 97, 0x20000)\n\
    call('unshare of a network', 272, 97, 0x40000000)\n\
    call('setns', 308, 268, os.open('/proc/self/ns/net', os.O_RDONLY), 0)\n\
    call('setns to an older view', 308, 268, os.open('/proc/self/ns/mnt', os.O_RDONLY), 0)\n\
    call('clone with a user namespace', 56, 220, 0x10000011, 0, 0, 0, 0)\n\
    call('clone3', 435, 435, p, 88)\n\
    call('open_by_handle_at', 304, 265, -100, p, 0)\n\
    call('name_to_handle_at', 303, 264, -100, b'/tmp', p, p, 0)\n\
    call('init_module', 175, 105, p, 1, b'')\n\
    call('finit_module', 313, 273, 0, b'', 0)\n\
    call('kexec_load', 246, 104, 0, 0, None, 0)\n\
    call('swapon', 167, 224, b'/tmp/x', 0)\n\
    call('reboot', 169, 142, 0xfee1dead, 672274793, 0, None)\n\
    call('acct', 163, 89, None)\n\
    call('quotactl', 179, 60, 0x800001 << 8, None, 0, None)\n\
    call('syslog', 103, 116, 3, p, 100)\n\
    call('fanotify_init', 300, 262, 0, 0)\n\
    call('settimeofday', 164, 170, p, None)\n\
    call('clock_settime', 227, 112, 0, p)\n\
    call('sethostname', 170, 161, b'x', 1)\n\
    call('pidfd_getfd', 438, 438, libc.syscall(434, 1, 0), 0, 0)\n\
    call('memfd_secret', 447, 447, 0)\n\
    call('modify_ldt', 154, 9999, 0, p, 100)\n\
    call('mknod of a device', 259, 33, -100, b'/tmp/dev', 0o20666, 0)\n\
    call('mknod of a disk', 259, 33, -100, b'/tmp/disk', 0o60666, 0x800)\n\
    call('socket of AF_VSOCK', 41, 198, 40, 1, 0)\n\
    call('socket of AF_ALG', 41, 198, 38, 5, 0)\n\
    call('socket of AF_PACKET', 41, 198, 17, 3, 0)\n\
    call('socket of NETLINK_NETFILTER', 41, 198, 16, 3, 12)\n\
    call('TIOCSTI', 16, 29, 0, 0x5412, b'x')\n\
    print('done')\n";

/// Tries: each system call that others escaped by. Must hold: every one fails, on every rung; the
/// calls of another architecture kill; what honest programs need works.
#[test]
fn attack_16_system_calls() {
    for provider in [provider(), watchdog()] {
        let mut sandbox = provider.create(&spec()).unwrap();
        assert_eq!(python(&mut *sandbox, SYSTEM_CALLS), "done\n");
        let status = stdout(&mut *sandbox, "cat /proc/self/status");
        assert!(
            status.contains("Seccomp:\t2\n") && status.contains("NoNewPrivs:\t1\n"),
            "{status}"
        );
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            let line = status.lines().find(|line| line.starts_with(set)).unwrap();
            assert!(line.ends_with("\t0000000000000000"), "{line}");
        }
        for escape in ["unshare -r true", "nsenter -t 1 -m true", "chroot / true", "su -c true"] {
            let output = shell(&mut *sandbox, &format!("{escape} </dev/null"));
            assert_ne!(output.status, ExecStatus::Exited(0), "{escape}");
        }
        // Threads, processes, pipes, sockets, FIFOs and terminals' absence are all as ever.
        let honest = "import os, socket, subprocess, threading, time, multiprocessing as m\n\
                      t = threading.Thread(target=lambda: None); t.start(); t.join()\n\
                      print(subprocess.run(['echo', 'x'], capture_output=True).stdout)\n\
                      q = m.get_context('fork').Queue()\n\
                      p = m.get_context('fork').Process(target=q.put, args=(7,))\n\
                      p.start(); print(q.get()); p.join()\n\
                      a, b = socket.socketpair(); a.send(b'y'); print(b.recv(1))\n\
                      os.mkfifo('/tmp/fifo'); print(len(socket.if_nameindex()))\n";
        assert_eq!(python(&mut *sandbox, honest), "b'x\\n'\n7\nb'y'\n1\n");
    }
    #[cfg(target_arch = "x86_64")]
    {
        // `int 0x80` with eax = 20, getpid of 32-bit programs.
        let foreign = "import ctypes, mmap\n\
            m = mmap.mmap(-1, 4096, prot=7)\n\
            m.write(b'\\xb8\\x14\\0\\0\\0\\xcd\\x80\\xc3')\n\
            at = ctypes.addressof(ctypes.c_char.from_buffer(m))\n\
            print(ctypes.CFUNCTYPE(ctypes.c_int)(at)())";
        let x32 = "import ctypes\nprint(ctypes.CDLL(None).syscall(0x40000000 + 39))";
        for script in [foreign, x32] {
            let status = attempt(&mut *sandbox(), script).status;
            assert_eq!(status, ExecStatus::Signaled(libc::SIGSYS), "{script}");
        }
    }
    held(16, "mount, nested userns, setns, bpf, keyctl, io_uring, ptrace");
}

/// Sends to a host that listens, by every way there is.
pub fn reach(tcp: u16, udp: u16, name: &str) -> String {
    format!(
        "import socket\n\
         def go(family, kind, to):\n    \
         try:\n        s = socket.socket(family, kind); s.settimeout(3)\n        \
         s.connect(to); s.send(b'x')\n    except OSError: pass\n\
         go(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {tcp}))\n\
         go(socket.AF_INET6, socket.SOCK_STREAM, ('::1', {tcp}))\n\
         go(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', {udp}))\n\
         go(socket.AF_UNIX, socket.SOCK_STREAM, '\\0{name}')\n"
    )
}

/// Listens on the host for what gets out.
pub struct Listeners {
    pub tcp: TcpListener,
    pub udp: UdpSocket,
    pub unix: UnixListener,
    pub name: String,
}

impl Listeners {
    pub fn open() -> Self {
        use std::os::linux::net::SocketAddrExt;
        let (me, at) = (std::process::id(), std::thread::current().id());
        let name = format!("patchwright-attack-{me}-{at:?}");
        let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
        Self {
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
            unix: UnixListener::bind_addr(&address).unwrap(),
            name,
        }
    }

    /// The attack's script.
    pub fn script(&self) -> String {
        let (tcp, udp) = (self.tcp.local_addr().unwrap(), self.udp.local_addr().unwrap());
        reach(tcp.port(), udp.port(), &self.name)
    }

    /// By which ways something came, so far.
    pub fn came(&self) -> Vec<&'static str> {
        self.tcp.set_nonblocking(true).unwrap();
        self.udp.set_nonblocking(true).unwrap();
        self.unix.set_nonblocking(true).unwrap();
        let ways = [
            ("TCP", self.tcp.accept().is_ok()),
            ("UDP", self.udp.recv(&mut [0; 8]).is_ok()),
            ("an abstract socket", self.unix.accept().is_ok()),
        ];
        ways.into_iter().filter(|(_, came)| *came).map(|(way, _)| way).collect()
    }
}

/// Tries: TCP, UDP, DNS, the metadata address, and abstract sockets of the host and of another
/// sandbox. Must hold: nothing gets out, and there is no interface but the sandbox's own loopback.
#[test]
fn attack_17_network() {
    let listeners = Listeners::open();
    let mut sandbox = sandbox();
    python(&mut *sandbox, &listeners.script());
    let far = "import socket\n\
               for kind, to in [(1, ('1.1.1.1', 443)), (2, ('8.8.8.8', 53)), \
               (1, ('169.254.169.254', 80)), (1, ('10.0.0.1', 22))]:\n    \
               s = socket.socket(socket.AF_INET, kind); s.settimeout(3)\n    \
               try: s.connect(to); s.send(b'x'); print('reached', to)\n    \
               except OSError: pass\n\
               try: socket.getaddrinfo('example.com', 80); print('resolved')\n\
               except OSError: pass\n\
               print([n for _, n in socket.if_nameindex()])";
    assert_eq!(python(&mut *sandbox, far), "['lo']\n");
    assert_eq!(listeners.came(), [""; 0], "nobody came");
    held(17, "TCP, UDP, DNS, abstract sockets, metadata address");
}

/// Prints what can be read of any descriptor from 3 on, and of PID 1's.
pub const READ_DESCRIPTORS: &str = "import os\n\
    for f in range(3, 200):\n    \
    try: os.fstat(f)\n    except OSError: continue\n    \
    try: print('open', f, os.pread(f, 100, 0))\n    except OSError as e: print('open', f, e)\n\
    for pid in (1, os.getppid()):\n    \
    try:\n        for f in os.listdir(f'/proc/{pid}/fd'): \
    print(pid, f, os.readlink(f'/proc/{pid}/fd/{f}'))\n    except OSError: pass\n";

/// What a host that leaks has: a secret in its environment, and a file open that stays open over
/// `exec`.
pub const SECRET: &str = "patchwright-secret-0x5eed";

/// A descriptor of a file with the secret, without close-on-exec.
pub fn leak_descriptor() -> std::os::fd::OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(SECRET.as_bytes()).unwrap();
    rustix::io::dup(&file).unwrap()
}

/// Tries: to find the host's secrets in inherited descriptors, in PID 1's, in environments and in
/// memory. Must hold: commands have three descriptors, their own environment, and no way to look
/// at PID 1.
#[test]
fn attack_18_inherited_secrets() {
    const TEST: &str = "escape::attack_18_inherited_secrets";
    if !is_child() {
        let output = alone(TEST).env("API_TOKEN", SECRET).output().unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
        held(18, "inherited fds, /proc/1/fd, secrets in the environment");
        return;
    }
    let leaks: Vec<_> = (0..5).map(|_| leak_descriptor()).collect();
    let mut sandbox = sandbox();
    assert_eq!(python(&mut *sandbox, READ_DESCRIPTORS), "");
    let look = "env; cat /proc/*/environ | tr '\\0' '\\n'; ls -l /proc/1/fd /proc/1/cwd/ \
                /proc/1/root/ /proc/1/map_files; cat /proc/1/maps /proc/1/mem /proc/1/stack";
    let seen = shell(&mut *sandbox, look);
    let all = text(&seen.stdout) + &text(&seen.stderr);
    assert!(!all.contains(SECRET) && !all.contains("API_TOKEN"), "{all}");
    let output = sandbox.exec(&ExecRequest::argv(&["env"], WORKDIR, LONG)).unwrap();
    let mut names: Vec<_> = text(&output.stdout)
        .lines()
        .filter_map(|l| Some(l.split_once('=')?.0.to_owned()))
        .collect();
    names.sort();
    assert_eq!(names, ["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"]);
    // The test could have found it: it is there for whoever is given it.
    let mut back = String::new();
    let mut file = std::fs::File::from(leaks.into_iter().next().unwrap());
    std::io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut back).unwrap();
    assert_eq!(back, SECRET);
}

/// Tries: to speak for PID 1, by frames of the protocol on every descriptor, by the look of an
/// answer in the output, by sockets passed on. Must hold: the answer is the command's own output
/// and its real exit code.
#[test]
fn attack_21_forged_answers() {
    let mut sandbox = sandbox();
    // An answer "exit code 0", in the wire's form, on all descriptors that are not its own.
    let forge = "import os, socket, struct\n\
                 for kind in range(32):\n    for body in (b'', b'\\0' * 13, b'\\0' * 30):\n        \
                 frame = struct.pack('<I', len(body)) + bytes([kind]) + body\n        \
                 for f in [0, *range(3, 256)]:\n            \
                 try: os.write(f, frame)\n            except OSError: pass\n            \
                 try: socket.socket(fileno=os.dup(f)).send(frame)\n            \
                 except OSError: pass\n        \
                 os.write(1, frame)\nos._exit(9)";
    let output = attempt(&mut *sandbox, forge);
    assert_eq!(output.status, ExecStatus::Exited(9));
    assert!(output.stdout.len() > 1000, "what it wrote to stdout is its output, and only that");
    for (script, code) in [
        ("echo __EXIT__:0; echo 'exit_code=0'; printf '\\0\\0\\0\\0\\0'; exit 5", 5),
        ("exec 1>&- 2>&-; exit 6", 6),
        ("(sleep 0.1; exit 0) & exit 7", 7),
        ("trap 'exit 8' EXIT; exit 0", 8),
    ] {
        let output = shell(&mut *sandbox, script);
        assert_eq!(output.status, ExecStatus::Exited(code), "{script}");
    }
    still_serves(&mut *sandbox);
    held(21, "forged control messages, fake exit sentinel");
}
