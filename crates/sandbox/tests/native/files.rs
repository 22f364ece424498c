//! Reading, writing, diffs and copies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use patchwright_core::{ExecStatus, FileChange, SandboxError, SandboxProvider};

use patchwright_sandbox::{FeatureStatus, NativeSandboxes};

use crate::isolation::open_to_all;
use crate::support::{
    directory, files, is_root, provider, python, shell, simple, spec, stdout, with_limits,
};

#[test]
fn files_are_read_and_written() {
    let mut sandbox = simple();
    assert_eq!(sandbox.read("/testbed/a.txt", 100).unwrap(), b"one\n");
    assert_eq!(sandbox.read("/testbed/a.txt", 2).unwrap(), b"on");
    sandbox.write("/testbed/new/deep/b.bin", b"\0\xff").unwrap();
    assert_eq!(stdout(&mut *sandbox, "stat -c '%a %s' new/deep/b.bin"), "644 2\n");
    stdout(&mut *sandbox, "chmod 755 a.txt");
    sandbox.write("/testbed/a.txt", b"").unwrap();
    assert_eq!(stdout(&mut *sandbox, "stat -c '%a %s' a.txt"), "755 0\n");
    let long = b"x".repeat(3 << 20);
    sandbox.write("/tmp/long", &long).unwrap();
    assert_eq!(sandbox.read("/tmp/long", 10 << 20).unwrap(), long);
    // Commands own what the host wrote.
    stdout(&mut *sandbox, "echo more >> new/deep/b.bin; rm -r new");
}

#[test]
fn paths_that_are_no_files_of_the_sandbox_are_refused() {
    let mut sandbox = simple();
    stdout(
        &mut *sandbox,
        "mkdir d; mkfifo fifo; ln -s /proc/1/mem mem; ln -s /proc/self/fd/0 fd; ln -s loop loop; \
         ln -s /nowhere/x dangling; ln -s a.txt link; ln -s /etc/passwd passwd; \
         ln -s /proc/self/cwd/a.txt magic; ln -s /dev/zero zero",
    );
    for path in [
        "a.txt",
        "",
        "/testbed/d",
        "/testbed/none",
        "/testbed/a.txt/x",
        "/dev/null",
        "/dev/zero",
        "/testbed/fifo",
        "/testbed/mem",
        "/testbed/fd",
        "/testbed/loop",
        "/testbed/dangling",
        "/testbed/magic",
        "/testbed/zero",
        "/proc/1/environ",
        "/proc/1/maps",
        "/proc/self/root/testbed/a.txt",
        "/testbed/\0",
    ] {
        let error = sandbox.read(path, 10).err();
        assert!(matches!(error, Some(SandboxError::Path { .. })), "read {path:?}: {error:?}");
    }
    for path in [
        "a.txt",
        "/testbed/d",
        "/dev/null",
        "/testbed/fifo",
        "/testbed/mem",
        "/etc/passwd",
        "/testbed/passwd",
        "/usr/bin/new",
        "/new",
        "/testbed/dangling",
        "/proc/1/oom_score_adj",
        "/proc/sys/kernel/hostname",
        "/testbed/zero",
    ] {
        let error = sandbox.write(path, b"x").err();
        assert!(matches!(error, Some(SandboxError::Path { .. })), "write {path:?}: {error:?}");
    }
    // A link inside the sandbox is the agent's own affair.
    sandbox.write("/testbed/link", b"through").unwrap();
    assert_eq!(sandbox.read("/testbed/a.txt", 10).unwrap(), b"through");
}

#[test]
fn listings_are_the_same_in_every_sandbox() {
    let list = "ls -la --time-style=full-iso a.txt; id; echo $$";
    let (mut a, mut b) = (simple(), simple());
    assert_eq!(stdout(&mut *a, list), stdout(&mut *b, list));
}

pub fn brief(changes: &[FileChange]) -> Vec<String> {
    let show = |bytes: &Option<Vec<u8>>| {
        bytes.as_ref().map_or("-".to_owned(), |b| String::from_utf8_lossy(b).trim().to_owned())
    };
    changes
        .iter()
        .map(|c| {
            let x = if c.executable { " x" } else { "" };
            format!("{} {} {}{x}", c.path, show(&c.old), show(&c.new))
        })
        .collect()
}

const EDITS: &str = "echo 2 > changed.py; rm gone.py; echo n > new.py; chmod +x mode.sh; \
    mkdir -p deep/er; echo d > deep/er/f; mkdir __pycache__; echo > __pycache__/m.pyc; echo > x.pyc; \
    mkdir -p .git/hooks; echo evil > .git/hooks/pre-commit; echo same > same.py; \
    rm linked.py; ln -s /etc/passwd linked.py; ln -s /etc/group newlink; mkfifo pipe; \
    rm -r pkg; echo file > pkg; mv moved.py renamed.py; touch touched.py; \
    rm -r redone; mkdir redone; echo fresh > redone/two.py";

const PRISTINE: [(&str, &str); 12] = [
    ("changed.py", "1\n"),
    ("gone.py", "g\n"),
    ("mode.sh", "s\n"),
    ("same.py", "same\n"),
    ("linked.py", "l\n"),
    ("pkg/a.py", "a\n"),
    ("pkg/b.py", "b\n"),
    ("moved.py", "m\n"),
    ("touched.py", "t\n"),
    ("redone/one.py", "r1\n"),
    ("redone/two.py", "r2\n"),
    ("untouched/u.py", "u\n"),
];

const CHANGES: [&str; 13] = [
    "changed.py 1 2",
    "deep/er/f - d",
    "gone.py g -",
    "linked.py l -",
    "mode.sh s s x",
    "moved.py m -",
    "new.py - n",
    "pkg - file",
    "pkg/a.py a -",
    "pkg/b.py b -",
    "redone/one.py r1 -",
    "redone/two.py r2 fresh",
    "renamed.py - m",
];

#[test]
fn diffs_of_files_say_what_changed_and_nothing_else() {
    let mut sandbox = provider().create(&spec(files(&PRISTINE))).unwrap();
    assert!(sandbox.diff().unwrap().is_empty());
    stdout(&mut *sandbox, EDITS);
    let changes = sandbox.diff().unwrap();
    assert_eq!(brief(&changes), CHANGES);
    assert_eq!(sandbox.diff().unwrap(), changes);
}

pub fn host_repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    for (path, text) in PRISTINE.into_iter().chain([(".git/config", "secret\n")]) {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    dir
}

/// Every path with its mode, time and content.
pub fn state(dir: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(at) = todo.pop() {
        let meta = fs::symlink_metadata(&at).unwrap();
        let mode = meta.permissions().mode();
        let bytes = if meta.is_file() { fs::read(&at).unwrap() } else { Vec::new() };
        let text = String::from_utf8_lossy(&bytes);
        out.push(format!("{} {mode:o} {:?} {text}", at.display(), meta.modified().unwrap()));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&at).unwrap().map(|e| e.unwrap().path()));
        }
    }
    out.sort();
    out
}

#[test]
fn diffs_of_a_directory_are_the_same_and_the_directory_is_never_written() {
    let repository = host_repository();
    let before = state(repository.path());
    let mut sandbox = directory(repository.path());
    // Shared, not copied, wherever the machine can.
    let overlay = NativeSandboxes::probe().pop().unwrap();
    let shared = matches!(overlay.status, FeatureStatus::Ok(_));
    let mounts = stdout(&mut *sandbox, "cat /proc/mounts");
    assert_eq!(mounts.contains("overlay /testbed overlay"), shared, "{mounts}");
    assert!(sandbox.diff().unwrap().is_empty());
    assert_eq!(
        stdout(&mut *sandbox, "ls -A; cat .git/config 2>/dev/null || echo none").lines().last(),
        Some("none")
    );
    stdout(&mut *sandbox, EDITS);
    assert_eq!(brief(&sandbox.diff().unwrap()), CHANGES);
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(brief(&copy.diff().unwrap()), CHANGES);
    assert_eq!(
        stdout(&mut *copy, "cat .git/hooks/pre-commit untouched/u.py pkg; ls redone"),
        "evil\nu\nfile\ntwo.py\n"
    );
    drop((sandbox, copy));
    assert_eq!(state(repository.path()), before);
    // Two sandboxes over one directory see the directory, not each other.
    let (mut a, mut b) = (directory(repository.path()), directory(repository.path()));
    stdout(&mut *a, "echo A > changed.py");
    assert_eq!(stdout(&mut *b, "cat changed.py"), "1\n");
}

#[test]
fn hidden_tricks_do_not_fool_a_diff() {
    let mut sandbox = provider().create(&spec(files(&[("a.py", "1\n"), ("b.py", "2\n")]))).unwrap();
    // Same size and time; an unreadable file and directory; a name that is not UTF-8; a sparse
    // file; a hard link.
    python(
        &mut *sandbox,
        "import os\nst = os.stat('a.py')\nopen('a.py', 'w').write('7\\n')\n\
         os.utime('a.py', ns=(st.st_atime_ns, st.st_mtime_ns))\n\
         os.mkdir('dark'); open('dark/f', 'w').write('d'); os.chmod('dark/f', 0); os.chmod('dark', 0)\n\
         open(b'bad\\xff', 'w').write('x')\nopen('sparse', 'w').truncate(1 << 20)\nos.link('b.py', 'c.py')",
    );
    let changes = sandbox.diff().unwrap();
    let paths: Vec<_> = changes.iter().map(|c| c.path.as_str()).collect();
    assert_eq!(paths, ["a.py", "c.py", "dark/f", "sparse"]);
    assert_eq!(changes[3].new.as_ref().map(Vec::len), Some(1 << 20));
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(copy.diff().unwrap(), changes);
}

#[test]
fn a_diff_has_a_bound() {
    let mut sandbox = with_limits(|limits| {
        limits.disk_bytes = 100 << 20;
        limits.memory_bytes = 512 << 20;
    });
    stdout(&mut *sandbox, "truncate -s 10T sparse");
    let error = sandbox.diff().unwrap_err();
    assert!(matches!(error, SandboxError::Limit(_)), "{error}");
    stdout(&mut *sandbox, "rm sparse; head -c 80000000 /dev/zero > large");
    let error = sandbox.diff().unwrap_err();
    assert!(matches!(error, SandboxError::Limit(_)), "{error}");
    stdout(&mut *sandbox, "rm large");
    python(&mut *sandbox, "import os\nfor _ in range(400): os.mkdir('d'); os.chdir('d')");
    let error = sandbox.diff().unwrap_err();
    assert!(matches!(error, SandboxError::Limit(_)), "{error}");
    // It is the diff that fails, not the sandbox.
    stdout(&mut *sandbox, "rm -rf d");
    assert!(sandbox.diff().unwrap().is_empty());
}

#[test]
fn a_copy_is_exact_and_independent() {
    let mut sandbox = simple();
    python(
        &mut *sandbox,
        "import os\nos.makedirs('d/e'); open('d/e/f', 'w').write('f'); os.chmod('d/e/f', 0o640)\n\
         os.symlink('/nowhere', 'd/link'); os.mkfifo('d/pipe'); os.link('d/e/f', 'd/hard')\n\
         open('/tmp/t', 'w').write('t'); open('/dev/shm/s', 'w').write('s')\n\
         open('/home/agent/h', 'w').write('h'); os.chmod('d', 0o555)\n\
         os.utime('d/e/f', (1, 2)); open('sparse', 'w').truncate(1 << 40)",
    );
    let look = "find . /tmp /dev/shm /home/agent -printf '%p %m %n %y %l %s %T@\\n' | sort; \
                cat d/e/f /tmp/t /dev/shm/s /home/agent/h";
    let before = stdout(&mut *sandbox, look);
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(stdout(&mut *copy, look), before);
    stdout(&mut *copy, "echo copy > a.txt; rm /tmp/t; echo x > only_copy");
    stdout(&mut *sandbox, "echo original >> a.txt");
    assert_eq!(
        stdout(&mut *sandbox, "cat a.txt; ls only_copy /tmp/t 2>/dev/null; true"),
        "one\noriginal\n/tmp/t\n"
    );
    assert_eq!(stdout(&mut *copy, "cat a.txt"), "copy\n");
    let mut third = copy.fork().unwrap();
    sandbox.destroy().unwrap();
    copy.destroy().unwrap();
    assert_eq!(stdout(&mut *third, "cat a.txt only_copy d/e/f"), "copy\nx\nf");
}

#[test]
fn the_overlay_s_insides_cannot_be_forged() {
    let repository = host_repository();
    let mut sandbox = directory(repository.path());
    // Marks of the overlay's own, set by a command, are not the overlay's.
    let out = python(
        &mut *sandbox,
        "import os\nfor name in ['user.overlay.opaque', 'trusted.overlay.opaque']:\n    \
         try: os.setxattr('untouched', name, b'y')\n    except OSError: pass\n\
         try: os.mknod('changed2', 0o20000, 0)\nexcept OSError: print('refused')\n\
         print(os.listdir('untouched'))",
    );
    assert!(out.ends_with("['u.py']\n"), "{out}");
    assert!(sandbox.diff().unwrap().is_empty());
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(stdout(&mut *copy, "cat untouched/u.py"), "u\n");
    assert_eq!(shell(&mut *copy, "true").status, ExecStatus::Exited(0));
}

#[test]
fn what_belongs_to_somebody_else_can_be_changed_too() {
    if !is_root() {
        eprintln!("not tested as an ordinary user: it cannot give files away");
        return;
    }
    let repository = host_repository();
    let own = |path: &str, id| {
        std::os::unix::fs::chown(repository.path().join(path), Some(id), Some(id + 1)).unwrap();
    };
    fs::create_dir_all(repository.path().join("theirs/deep")).unwrap();
    fs::write(repository.path().join("theirs/deep/f.py"), "f\n").unwrap();
    fs::write(repository.path().join("theirs/g.py"), "g\n").unwrap();
    for (path, id) in
        [("same.py", 1234), ("pkg/a.py", 7), ("theirs", 4321), ("theirs/deep/f.py", 65_533)]
    {
        own(path, id);
    }
    let before = state(repository.path());
    let mut sandbox = directory(repository.path());
    assert!(sandbox.diff().unwrap().is_empty());
    assert_eq!(stdout(&mut *sandbox, "find . ! -uid 1000 -o ! -gid 1000"), "");
    stdout(
        &mut *sandbox,
        "echo 2 >> same.py; chmod +x pkg/a.py; echo n > theirs/new; rm theirs/deep/f.py; \
         echo 3 > theirs/g.py; rm -r pkg/b.py",
    );
    let changes = [
        "pkg/a.py a a x",
        "pkg/b.py b -",
        "same.py same same\n2",
        "theirs/deep/f.py f -",
        "theirs/g.py g 3",
        "theirs/new - n",
    ];
    assert_eq!(brief(&sandbox.diff().unwrap()), changes);
    stdout(&mut *sandbox, "rm -r theirs same.py");
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(stdout(&mut *copy, "ls -d theirs same.py 2>/dev/null; true"), "");
    drop((sandbox, copy));
    assert_eq!(state(repository.path()), before);
}
