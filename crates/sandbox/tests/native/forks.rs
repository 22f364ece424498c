//! Forks: exact, cheap whatever the number of files, a hundred deep, and freed with the last.

use std::fs;

use patchwright_core::{ExecStatus, RepoSource, Sandbox, SandboxProvider, SandboxSpec};
use patchwright_sandbox::{FeatureStatus, NativeOptions, NativeSandboxes};

use crate::files::{brief, host_repository};
use crate::layers::{image, programs};
use crate::support::{
    directory, files, is_root, provider, python, shell, simple, spec, stdout, text, with_limits,
};

/// Whether forks share layers here, rather than copy.
fn shares() -> bool {
    let overlay = NativeSandboxes::probe().pop().unwrap();
    matches!(overlay.status, FeatureStatus::Ok(_))
}

/// Everything that a command can write, as it can see it.
pub const LOOK: &str = "find . /tmp /dev/shm $HOME ! -path '*/.git*' -printf '%p %m %U %y %l %T@\\n' | sort; \
    find . /tmp /dev/shm $HOME -type f -links +1 | sort; \
    find . /tmp /dev/shm $HOME -type f -size -9 -exec sh -c 'echo {}; cat {}' ';' | sort";

pub const WORK: &str = "mkdir -p d/e gone/x; echo f > d/e/f; chmod 640 d/e/f; ln -s /nowhere d/link; ln d/e/f d/hard; \
    mkfifo d/pipe; echo t > /tmp/t; echo s > /dev/shm/s; echo h > $HOME/h; \
    echo g > gone/x/y; rm -f a.txt; mkdir -p redo; echo 1 > redo/one; \
    touch -d 2001-02-03T04:05:06 d/e/f; truncate -s 1T /tmp/sparse; mkdir /tmp/deep; echo z > /tmp/deep/z";

/// Over [`WORK`]: deletions, a directory made anew, types that change, names that move.
pub const MORE: &str = "rm -r gone; rm -r redo; mkdir redo; echo 2 > redo/two; rm /tmp/t; mkdir /tmp/t; \
    echo u > /tmp/t/u; rm d/link 2>/dev/null; chmod 755 d; rm d/link; echo file > d/link; \
    rm -r /tmp/deep; echo s2 >> /dev/shm/s; rm $HOME/h; mv d/pipe d/pipe2; chmod 600 d/e/f; \
    echo back > a.txt; rm /tmp/sparse";

fn check_exact(mut sandbox: Box<dyn Sandbox>) {
    stdout(&mut *sandbox, WORK);
    if !is_root() {
        // Where the kernel does not keep them together.
        stdout(&mut *sandbox, "rm -f d/hard");
    }
    let first = stdout(&mut *sandbox, LOOK);
    let mut one = sandbox.fork().unwrap();
    assert_eq!(stdout(&mut *one, LOOK), first);
    assert_eq!(one.diff().unwrap(), sandbox.diff().unwrap());
    // The original goes on in its own layer, the copy in its.
    stdout(&mut *sandbox, MORE);
    let second = stdout(&mut *sandbox, LOOK);
    assert_ne!(second, first);
    assert_eq!(stdout(&mut *one, LOOK), first);
    let mut two = sandbox.fork().unwrap();
    assert_eq!(stdout(&mut *two, LOOK), second);
    assert_eq!(stdout(&mut *sandbox, LOOK), second);
    assert_eq!(two.diff().unwrap(), sandbox.diff().unwrap());
    assert_ne!(two.diff().unwrap(), one.diff().unwrap());
    // The other branch does the same, a fork later, and comes to the same.
    stdout(&mut *one, MORE);
    assert_eq!(one.diff().unwrap(), two.diff().unwrap());
    sandbox.destroy().unwrap();
    let mut three = two.fork().unwrap();
    two.destroy().unwrap();
    assert_eq!(stdout(&mut *three, LOOK), second);
    stdout(&mut *three, "rm -rf d redo /tmp/t; echo new > only");
    assert_eq!(
        stdout(&mut *three, "ls"),
        stdout(&mut *three, "find . -maxdepth 1 ! -name . ! -name .git -printf '%f\\n' | sort")
    );
}

#[test]
fn a_fork_of_files_is_exact() {
    check_exact(simple());
}

#[test]
fn a_fork_over_a_directory_is_exact() {
    let repository = host_repository();
    check_exact(directory(repository.path()));
}

#[test]
fn a_fork_of_an_image_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    crate::isolation::open_to_all(dir.path());
    programs(dir.path());
    fs::create_dir_all(dir.path().join("testbed/sub")).unwrap();
    fs::create_dir_all(dir.path().join("root")).unwrap();
    fs::write(dir.path().join("testbed/a.txt"), "one\n").unwrap();
    let spec = image(vec![dir.path().to_owned()], RepoSource::InRoot);
    check_exact(provider().create(&spec).unwrap());
}

#[test]
fn names_of_one_file_stay_one_file() {
    let mut sandbox = simple();
    stdout(&mut *sandbox, "ln a.txt b.txt; ln a.txt /testbed/c.txt");
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(
        stdout(&mut *copy, "stat -c %h a.txt; [ a.txt -ef b.txt ] && echo same"),
        "3\nsame\n"
    );
    stdout(&mut *copy, "echo two >> a.txt");
    let seen = stdout(&mut *copy, "cat b.txt");
    // The kernel keeps names together across an overlay's layers for root alone.
    assert_eq!(seen, if is_root() || !shares() { "one\ntwo\n" } else { "one\n" });
    let changed = brief(&copy.diff().unwrap());
    let mut next = copy.fork().unwrap();
    assert_eq!(stdout(&mut *next, "cat b.txt"), seen);
    assert_eq!(brief(&next.diff().unwrap()), changed);
    assert_eq!(
        changed.contains(&"b.txt - one\ntwo".to_owned()),
        seen.ends_with("two\n"),
        "{changed:?}"
    );
    assert_eq!(stdout(&mut *sandbox, "cat a.txt b.txt c.txt"), "one\none\none\n");
}

#[test]
fn forks_of_forks_go_a_hundred_deep_and_on() {
    let mut sandbox = simple();
    for n in 0..140 {
        stdout(
            &mut *sandbox,
            &format!("echo {n} > n; echo {n} > f{n}; rm -f f{}; echo {n} >> log", n - 3),
        );
        let next = sandbox.fork().unwrap();
        sandbox.destroy().unwrap();
        sandbox = next;
        if n == 100 {
            let mounts = stdout(&mut *sandbox, "grep -c ^overlay /proc/mounts");
            assert_eq!(mounts.trim() != "0", shares(), "{mounts}");
        }
    }
    assert_eq!(
        stdout(&mut *sandbox, "cat n; ls; wc -l < log; cat a.txt"),
        "139\na.txt\nf137\nf138\nf139\nlog\nn\n140\none\n"
    );
    let paths: Vec<_> = sandbox.diff().unwrap().into_iter().map(|c| c.path).collect();
    assert_eq!(paths, ["f137", "f138", "f139", "log", "n"]);
}

#[test]
fn siblings_share_a_parent_that_goes_on() {
    let mut parent = simple();
    stdout(&mut *parent, "echo base > /tmp/base");
    let mut children: Vec<_> = (0..8).map(|_| parent.fork().unwrap()).collect();
    for (n, child) in children.iter_mut().enumerate() {
        assert_eq!(stdout(&mut **child, &format!("cat /tmp/base; echo {n} > who")), "base\n");
    }
    assert!(parent.diff().unwrap().is_empty());
    stdout(&mut *parent, "rm /tmp/base; echo parent > who");
    for (n, child) in children.iter_mut().enumerate() {
        assert_eq!(stdout(&mut **child, "cat /tmp/base who"), format!("base\n{n}\n"));
        assert_eq!(brief(&child.diff().unwrap()), [format!("who - {n}")]);
    }
    // A parent that was forked and never used again ends too.
    let mut last = children.pop().unwrap();
    let copy = last.fork().unwrap();
    last.destroy().unwrap();
    drop((children, parent));
    let mut again = copy;
    assert_eq!(stdout(&mut *again, "cat who"), "7\n");
    assert_eq!(again.read("/tmp/base", 10).unwrap(), b"base\n");
    again.write("/tmp/base", b"more\n").unwrap();
    assert_eq!(again.fork().unwrap().read("/tmp/base", 10).unwrap(), b"more\n");
}

#[test]
fn what_is_sealed_counts_against_every_branch() {
    let mut sandbox = with_limits(|limits| limits.disk_bytes = 32 << 20);
    stdout(&mut *sandbox, "head -c 20M /dev/zero > /tmp/big");
    let mut copy = sandbox.fork().unwrap();
    for branch in [&mut sandbox, &mut copy] {
        let out = shell(&mut **branch, "head -c 14M /dev/zero > /tmp/more");
        assert_ne!(out.status, ExecStatus::Exited(0), "{}", text(&out.stderr));
        stdout(&mut **branch, "rm /tmp/more; head -c 10M /dev/zero > /tmp/more");
    }
    // A branch that writes the same again and again is not full of what it has overwritten.
    for _ in 0..6 {
        stdout(&mut *copy, "head -c 3M /dev/zero > /tmp/more");
        copy = copy.fork().unwrap();
    }
    assert_eq!(stdout(&mut *copy, "stat -c %s /tmp/more /tmp/big"), "3145728\n20971520\n");
}

#[test]
fn what_a_dead_original_wrote_is_on_nobody_s_account() {
    let provider = NativeSandboxes::new(NativeOptions::default()).unwrap();
    let mut spec = spec(files(&[("a.txt", "one\n")]));
    spec.limits.disk_bytes = 64 << 20;
    spec.limits.memory_bytes = 100 << 20;
    let mut held: Vec<Box<dyn Sandbox>> = Vec::new();
    for _ in 0..4 {
        // Every one has all of its own limit, though its slot has served others whose files live.
        let mut sandbox = provider.create(&spec).unwrap();
        stdout(&mut *sandbox, "head -c 60M /dev/zero > /tmp/big");
        held.push(sandbox.fork().unwrap());
        sandbox.destroy().unwrap();
    }
    for copy in &mut held {
        assert_eq!(stdout(&mut **copy, "stat -c %s /tmp/big"), "62914560\n");
    }
}

/// Kilobytes of memory that files hold, on the whole machine.
fn shared_memory_kb() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Shmem:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[test]
fn layers_are_freed_with_the_last_that_holds_them() {
    let before = shared_memory_kb();
    for _ in 0..24 {
        let mut sandbox = with_limits(|limits| limits.disk_bytes = 100 << 20);
        stdout(&mut *sandbox, "head -c 40M /dev/zero > /tmp/big");
        let mut copy = sandbox.fork().unwrap();
        stdout(&mut *sandbox, "head -c 10M /dev/zero > /tmp/other");
        let third = copy.fork().unwrap();
        drop(sandbox);
        assert_eq!(stdout(&mut *copy, "stat -c %s /tmp/big"), "41943040\n");
        drop((copy, third));
    }
    // 1.2 GB if they were not; other tests hold some at the same time.
    let grown = shared_memory_kb().saturating_sub(before);
    assert!(grown < 600 << 10, "{grown} kB");
}

#[test]
fn a_fork_does_not_depend_on_the_number_of_files() {
    let mut spec = spec(files(&[("a.txt", "one\n")]));
    spec.limits.disk_bytes = 256 << 20;
    spec.limits.memory_bytes = 1 << 30;
    let mut sandbox = provider().create(&SandboxSpec { ..spec }).unwrap();
    python(
        &mut *sandbox,
        "import os\nfor d in range(100):\n    os.mkdir(f'd{d}')\n    \
         for f in range(100): open(f'd{d}/{f}', 'w').write('x')",
    );
    let mut copy = sandbox.fork().unwrap();
    if shares() {
        // Not one of them is in the new layer.
        let count = "df --output=iused /testbed 2>/dev/null | tail -n 1";
        let used: u64 = stdout(&mut *copy, count).trim().parse().unwrap();
        assert!(used < 100, "{used}");
    }
    assert_eq!(stdout(&mut *copy, "find . -type f | wc -l"), "10001\n");
    assert_eq!(copy.diff().unwrap().len(), 10_000);
}
