//! What a command cannot see, reach or keep.

use std::collections::BTreeMap;

use patchwright_core::{ExecRequest, ExecStatus, SandboxError, SandboxProvider};

use crate::support::{LONG, WORKDIR, files, provider, python, shell, simple, spec, stdout, text};

#[test]
fn there_is_no_network() {
    let mut sandbox = simple();
    let out = python(
        &mut *sandbox,
        "import socket\n\
         for family, kind, to in [(socket.AF_INET, socket.SOCK_STREAM, ('1.1.1.1', 80)),\n    \
         (socket.AF_INET, socket.SOCK_DGRAM, ('8.8.8.8', 53)),\n    \
         (socket.AF_INET, socket.SOCK_STREAM, ('169.254.169.254', 80)),\n    \
         (socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', 22))]:\n    \
         s = socket.socket(family, kind)\n    s.settimeout(5)\n    \
         try:\n        s.connect(to); s.send(b'x'); print('reached', to)\n    \
         except OSError as e: print('no')\n\
         print([n for _, n in socket.if_nameindex()])",
    );
    assert_eq!(out, "no\nno\nno\nno\n['lo']\n");
}

/// What a suite starts on `localhost` is reached, and its port is free again for the next command
/// and the next sandbox.
#[test]
fn servers_on_localhost_are_reached() {
    let talk = "import socket, threading\n\
                for family, host in [(socket.AF_INET, '127.0.0.1'), (socket.AF_INET6, '::1')]:\n    \
                server = socket.socket(family); server.bind((host, 8765)); server.listen()\n    \
                def answer():\n        \
                one, _ = server.accept(); one.sendall(b'hello'); one.close(); server.close()\n    \
                thread = threading.Thread(target=answer); thread.start()\n    \
                print(socket.create_connection((host, 8765)).recv(9)); thread.join()";
    for _ in 0..4 {
        let mut sandbox = simple();
        for _ in 0..2 {
            assert_eq!(python(&mut *sandbox, talk), "b'hello'\nb'hello'\n");
        }
    }
}

#[test]
fn abstract_sockets_of_two_sandboxes_do_not_meet() {
    let (mut a, mut b) = (simple(), simple());
    let listen = "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0meet')\n\
                  s.listen()\ns.settimeout(1)\n\
                  try:\n    s.accept(); print('met')\nexcept OSError: print('alone')";
    let connect = "import socket, time\nmet = 0\nfor _ in range(20):\n    \
                   s = socket.socket(socket.AF_UNIX)\n    \
                   try:\n        s.connect('\\0meet'); met = 1\n    except OSError: pass\n    \
                   time.sleep(0.05)\nprint(met)";
    std::thread::scope(|scope| {
        let one = scope.spawn(|| python(&mut *a, listen));
        let two = scope.spawn(|| python(&mut *b, connect));
        assert_eq!((one.join().unwrap(), two.join().unwrap()), ("alone\n".into(), "0\n".into()));
    });
}

#[test]
fn the_host_s_files_are_not_there() {
    let secret = tempfile::Builder::new().prefix("pw-secret").tempfile_in("/tmp").unwrap();
    std::fs::write(secret.path(), "secret").unwrap();
    let mut sandbox = simple();
    let path = secret.path().display();
    let output = shell(&mut *sandbox, &format!("cat {path} /root/.ssh/* /etc/shadow; ls -A /tmp"));
    assert_eq!(text(&output.stdout), "", "{}", text(&output.stderr));
    // At the top there is the system, the sandbox's own, and the way to the host's python3.
    let prefix = python(&mut *sandbox, "import sys; print(sys.base_prefix.split('/')[1])");
    let known = "bin dev etc home lib lib32 lib64 libx32 nix proc run sbin testbed tmp usr var";
    for name in stdout(&mut *sandbox, "ls -A /").lines() {
        assert!(known.split(' ').any(|k| k == name) || name == prefix.trim(), "/{name} is there");
    }
    // The way back through PID 1's root or descriptors is closed too.
    let output =
        shell(&mut *sandbox, "ls /proc/1/root/ /proc/1/fd/ /proc/1/cwd/; cat /proc/1/environ");
    assert_eq!(text(&output.stdout), "");
    let users = stdout(&mut *sandbox, "id -u; id -g; id -G; id -un; grep -c . /etc/passwd");
    assert_eq!(users, "1000\n1000\n1000\nagent\n3\n");
}

#[test]
fn supplementary_groups_do_not_come_along_as_root() {
    if !crate::support::is_root() {
        // An ordinary user cannot give groups up; they are of no use on read-only mounts.
        return;
    }
    let mut sandbox = simple();
    assert_eq!(stdout(&mut *sandbox, "grep Groups /proc/self/status | tr -d '\\t '"), "Groups:\n");
}

#[test]
fn the_environment_is_only_what_was_given() {
    let mut sandbox = simple();
    let output = sandbox.exec(&ExecRequest::argv(&["env"], WORKDIR, LONG)).unwrap();
    let names: BTreeMap<_, _> =
        text(&output.stdout).lines().map(|l| l.split_once('=').unwrap()).map(own).collect();
    let keys: Vec<_> = names.keys().map(String::as_str).collect();
    assert_eq!(keys, ["HOME", "LANG", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONHASHSEED"]);
    assert_eq!(names["LANG"], "C.UTF-8");
    assert_eq!(names["HOME"], "/home/agent");
}

fn own((a, b): (&str, &str)) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

#[test]
fn only_the_standard_descriptors_are_open() {
    // Descriptors of the host program that are open across exec must not come along.
    let leak = std::fs::File::open("/proc/self/status").unwrap();
    let mut sandbox = simple();
    let out = python(
        &mut *sandbox,
        "import os\nfor f in range(3, 1024):\n    try: os.fstat(f); print('open', f)\n    \
         except OSError: pass\nprint([os.ttyname(f) for f in range(3) if os.isatty(f)])",
    );
    assert_eq!(out, "[]\n");
    drop(leak);
    let tty = shell(&mut *sandbox, "exec 3<>/dev/tty");
    assert_ne!(tty.status, ExecStatus::Exited(0));
}

#[test]
fn there_are_no_powers() {
    let mut sandbox = simple();
    let status = stdout(&mut *sandbox, "cat /proc/self/status");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let line = status.lines().find(|line| line.starts_with(set)).unwrap();
        assert!(line.ends_with("0000000000000000"), "{line}");
    }
    assert!(status.contains("NoNewPrivs:\t1"));
    for attempt in [
        "mount -t tmpfs none /mnt",
        "mount -o remount,rw /",
        "mount -o bind /tmp /usr",
        "umount /proc/sys",
        "umount -l /tmp",
        "unshare -U true",
        "unshare -r true",
        "unshare -m true",
        "unshare -n true",
        "nsenter -t 1 -m true",
        "chroot / true",
        "mknod /tmp/sda b 8 0",
        "hostname other",
        "echo x > /proc/sys/kernel/core_pattern",
        "echo x > /proc/sys/kernel/hostname",
        "echo 100 > /proc/sys/user/max_user_namespaces",
        "echo b > /proc/sysrq-trigger",
        "echo -1000 > /proc/self/oom_score_adj",
        "dmesg",
        "touch /usr/x",
        "touch /etc/x",
        "touch /x",
        "rm /etc/passwd",
        "ln -sf /tmp /bin",
        "date -s 2001-01-01",
        "renice -n -20 $$",
        "su -c true",
        "gdb -p 1 -batch",
        "cat /proc/1/mem",
    ] {
        let output = shell(&mut *sandbox, &format!("{{ {attempt} ; }} </dev/null"));
        assert_ne!(output.status, ExecStatus::Exited(0), "{attempt}: {}", text(&output.stdout));
    }
    assert_eq!(stdout(&mut *sandbox, "cat /proc/kcore /proc/cmdline /proc/keys | wc -c"), "0\n");
    assert_eq!(stdout(&mut *sandbox, "hostname; uname -n"), "sandbox\nsandbox\n");
}

#[test]
fn system_v_memory_does_not_reach_another_sandbox() {
    let make = "import ctypes\nlibc = ctypes.CDLL(None)\n\
                print(libc.shmget(1234, 4096, 0o1666) >= 0)";
    let find = "import ctypes\nlibc = ctypes.CDLL(None)\nprint(libc.shmget(1234, 4096, 0) >= 0)";
    let mut sandbox = simple();
    assert_eq!(python(&mut *sandbox, make), "True\n");
    sandbox.destroy().unwrap();
    // The slot that made the first one is free again: the second may well be its successor.
    for _ in 0..4 {
        assert_eq!(python(&mut *simple(), find), "False\n");
    }
}

#[test]
fn read_only_mounts_show_and_cannot_be_changed() {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    std::fs::write(dir.path().join("lib.py"), "X = 7\n").unwrap();
    let mut spec = spec(files(&[]));
    spec.read_only_mounts.push((dir.path().to_owned(), "/opt/env".to_owned()));
    let mut sandbox = provider().create(&spec).unwrap();
    assert_eq!(stdout(&mut *sandbox, "cat /opt/env/lib.py"), "X = 7\n");
    for attempt in ["echo > /opt/env/lib.py", "rm /opt/env/lib.py", "touch /opt/env/new"] {
        assert_ne!(shell(&mut *sandbox, attempt).status, ExecStatus::Exited(0), "{attempt}");
    }
    assert_eq!(std::fs::read_to_string(dir.path().join("lib.py")).unwrap(), "X = 7\n");
    let mut other = simple();
    assert_eq!(shell(&mut *other, "ls /opt/env/lib.py").status, ExecStatus::Exited(2));
}

pub fn open_to_all(path: &std::path::Path) {
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(path, mode).unwrap();
}

#[test]
fn bad_specifications_are_refused_and_the_slot_lives_on() {
    for workdir in ["", "testbed", "/", "/a/../b", "/proc", "/proc/x", "/etc", "/usr/no/such"] {
        let mut bad = spec(files(&[("a", "b")]));
        bad.workdir = workdir.to_owned();
        let error = provider().create(&bad).err();
        assert!(matches!(error, Some(SandboxError::Path { .. })), "{workdir}: {error:?}");
    }
    for name in ["/etc/x", "../x", "a/../../x", "", "a//b"] {
        let error = provider().create(&spec(files(&[(name, "b")]))).err();
        assert!(matches!(error, Some(SandboxError::Path { .. })), "{name}: {error:?}");
    }
    let mut bad = spec(patchwright_core::RepoSource::Directory("/no/such/dir".into()));
    assert!(matches!(provider().create(&bad).err(), Some(SandboxError::Path { .. })));
    bad.repo = files(&[]);
    bad.read_only_mounts.push(("/no/such/dir".into(), "/opt/x".to_owned()));
    assert!(matches!(provider().create(&bad).err(), Some(SandboxError::Path { .. })));
    assert_eq!(stdout(&mut *simple(), "cat a.txt"), "one\n");
}
