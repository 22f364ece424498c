//! Roots that are an image's layers.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use patchwright_core::{
    ExecStatus, RepoSource, RootFs, SandboxError, SandboxProvider, SandboxSpec,
};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::files::{brief, state};
use crate::isolation::open_to_all;
use crate::support::{files, provider, shell, spec, stdout};

/// A directory that every user can read.
fn open_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    dir
}

fn put(layer: &Path, path: &str, text: &str) {
    let path = layer.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// A whiteout, as unpackers that may make devices leave one.
fn whiteout(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

fn mark(path: &Path, name: &str, value: &str) {
    rustix::fs::setxattr(path, name, value.as_bytes(), XattrFlags::empty()).unwrap();
}

/// Copies programs of the host with their libraries into a layer: no shell but `sh`.
pub fn programs(layer: &Path) {
    for name in [
        "sh", "cat", "ls", "mkdir", "rm", "mv", "ln", "chmod", "id", "stat", "find", "sort",
        "mkfifo", "touch", "truncate", "cp",
    ] {
        let path = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
        let path = path.iter().find(|path| path.exists()).unwrap();
        copy(path, &layer.join("bin").join(name));
        let listed = Command::new("ldd").arg(path).output().unwrap();
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            if let Some(library) = word.strip_prefix('/') {
                copy(Path::new(word), &layer.join(library));
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !to.exists() {
        fs::copy(from, to).unwrap();
    }
}

pub fn image(layers: Vec<PathBuf>, repo: RepoSource) -> SandboxSpec {
    SandboxSpec { root: RootFs::Layers(layers), ..spec(repo) }
}

fn base(dir: &Path) {
    programs(dir);
    for (path, text) in [
        ("testbed/kept.py", "kept\n"),
        ("testbed/gone.py", "gone\n"),
        ("testbed/marked.py", "marked\n"),
        ("testbed/pkg/old.py", "old\n"),
        ("testbed/.git/config", "secret\n"),
        ("testbed/sub/a.py", "a\n"),
        ("testbed/sub/b.py", "b\n"),
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"),
        ("opt/tool", "tool\n"),
    ] {
        put(dir, path, text);
    }
    fs::create_dir_all(dir.join("root")).unwrap();
}

/// Over [`base`]: two deletions, a directory made anew, a link, a new file.
fn top(dir: &Path) {
    whiteout(&dir.join("testbed/gone.py"));
    put(dir, "testbed/marked.py", "");
    mark(&dir.join("testbed/marked.py"), "user.overlay.whiteout", "y");
    mark(&dir.join("testbed"), "user.overlay.opaque", "x");
    put(dir, "testbed/pkg/new.py", "new\n");
    mark(&dir.join("testbed/pkg"), "user.overlay.opaque", "y");
    symlink("/etc/passwd", dir.join("testbed/link.py")).unwrap();
    put(dir, "testbed/empty.py", "");
}

#[test]
fn layers_are_one_root_and_are_never_written() {
    let (low, high) = (open_dir(), open_dir());
    base(low.path());
    top(high.path());
    let before = (state(low.path()), state(high.path()));
    let layers = vec![high.path().to_owned(), low.path().to_owned()];
    let mut sandbox = provider().create(&image(layers, RepoSource::InRoot)).unwrap();
    // There is no bash; commands have no power though they are called root.
    assert_eq!(
        stdout(
            &mut *sandbox,
            "pwd; ls; cat pkg/*; id -u; echo $HOME; ls /usr/share 2>/dev/null; true"
        ),
        "/testbed\nempty.py\nkept.py\nlink.py\npkg\nsub\nnew\n0\n/root\n"
    );
    assert_ne!(
        shell(&mut *sandbox, "chmod 600 /proc/sys/kernel/hostname").status,
        ExecStatus::Exited(0)
    );
    assert_eq!(
        stdout(&mut *sandbox, "cat /etc/hosts; ls /dev/shm; stat -c %a /tmp; cat /opt/tool"),
        "127.0.0.1 localhost sandbox\n1777\ntool\n"
    );
    assert!(sandbox.diff().unwrap().is_empty());
    // All of it can be written, modes and owners of the layers' files included.
    stdout(
        &mut *sandbox,
        "echo 2 > kept.py; rm -r pkg; mkdir pkg; echo p > pkg/new2.py; rm sub/a.py; mv sub/b.py b2.py; \
         rm link.py; echo mine > link.py; echo x > /bin/new; rm /opt/tool; echo t > /tmp/t; \
         echo s > /dev/shm/s; chmod 700 /root; echo r > /root/r; echo g > gone.py; rm -r .git",
    );
    sandbox.write("/testbed/sub/w.py", b"w\n").unwrap();
    assert_eq!(sandbox.read("/testbed/kept.py", 10).unwrap(), b"2\n");
    let changes = [
        "b2.py - b",
        "gone.py - g",
        "kept.py kept 2",
        "link.py - mine",
        "pkg/new.py new -",
        "pkg/new2.py - p",
        "sub/a.py a -",
        "sub/b.py b -",
        "sub/w.py - w",
    ];
    assert_eq!(brief(&sandbox.diff().unwrap()), changes);
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(brief(&copy.diff().unwrap()), changes);
    assert_eq!(
        stdout(&mut *copy, "cat /bin/new /tmp/t /dev/shm/s /root/r; ls /opt; stat -c %a /root"),
        "x\nt\ns\nr\n700\n"
    );
    // The whole repository gone, and made anew.
    stdout(&mut *copy, "cd /; rm -rf /testbed; mkdir testbed; echo only > testbed/one");
    let paths: Vec<_> = copy.diff().unwrap().into_iter().map(|c| c.path).collect();
    assert_eq!(paths, ["empty.py", "kept.py", "one", "pkg/new.py", "sub/a.py", "sub/b.py"]);
    drop((sandbox, copy));
    assert_eq!((state(low.path()), state(high.path())), before);
}

#[test]
fn a_repository_of_ours_stands_in_an_image() {
    let dir = open_dir();
    programs(dir.path());
    let root = || vec![dir.path().to_owned()];
    let mut sandbox = provider().create(&image(root(), files(&[("m.py", "1\n")]))).unwrap();
    assert_eq!(stdout(&mut *sandbox, "cat m.py; echo 2 > m.py; echo h > /elsewhere"), "1\n");
    assert_eq!(brief(&sandbox.diff().unwrap()), ["m.py 1 2"]);
    let repository = open_dir();
    put(repository.path(), "m.py", "3\n");
    let over = image(root(), RepoSource::Directory(repository.path().to_owned()));
    let mut sandbox = provider().create(&over).unwrap();
    assert_eq!(
        stdout(&mut *sandbox, "cat m.py; echo 4 > m.py; ls /elsewhere 2>/dev/null; true"),
        "3\n"
    );
    assert_eq!(brief(&sandbox.diff().unwrap()), ["m.py 3 4"]);
    let whole = SandboxSpec { workdir: "/".to_owned(), ..image(root(), RepoSource::InRoot) };
    let mut sandbox = provider().create(&whole).unwrap();
    sandbox.write("/made/here", b"1").unwrap();
    assert_eq!(brief(&sandbox.diff().unwrap()), ["made/here - 1"]);
}

#[test]
fn hundreds_of_layers_are_one_root() {
    let dirs: Vec<_> = (0..150).map(|_| open_dir()).collect();
    for (n, dir) in dirs.iter().enumerate() {
        put(dir.path(), "testbed/last", &n.to_string());
        put(dir.path(), &format!("testbed/d{}/f{n}", n % 7), "x");
    }
    programs(dirs[0].path());
    let layers: Vec<_> = dirs.iter().rev().map(|dir| dir.path().to_owned()).collect();
    let mut sandbox = provider().create(&image(layers, RepoSource::InRoot)).unwrap();
    assert_eq!(stdout(&mut *sandbox, "cat last; rm d3/f3; ls d3 | sort | cat"), {
        let mut names: Vec<_> =
            (0..150).filter(|n| n % 7 == 3 && *n != 3).map(|n| format!("f{n}")).collect();
        names.sort();
        format!("149{}\n", names.join("\n"))
    });
    assert_eq!(brief(&sandbox.diff().unwrap()), ["d3/f3 x -"]);
}

fn refused(layer: &Path, workdir: &str) -> String {
    let spec = image(vec![layer.to_owned()], RepoSource::InRoot);
    let spec = SandboxSpec { workdir: workdir.to_owned(), ..spec };
    match provider().create(&spec) {
        Ok(_) => panic!("{workdir} was accepted"),
        Err(error @ (SandboxError::Path { .. } | SandboxError::Unsupported(_))) => {
            error.to_string()
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn an_image_that_is_not_what_it_should_be_is_an_error() {
    let outside = open_dir();
    put(outside.path(), "testbed/secret", "s");
    for (name, target) in [("proc", "/"), ("dev", "/tmp"), ("tmp", "/proc")] {
        let dir = open_dir();
        put(dir.path(), "testbed/a", "a");
        symlink(target, dir.path().join(name)).unwrap();
        assert!(refused(dir.path(), "/testbed").contains(name));
    }
    let dir = open_dir();
    symlink(outside.path(), dir.path().join("link")).unwrap();
    put(dir.path(), "file", "f");
    for workdir in ["/link/testbed", "/missing", "/file", "relative", "/../x"] {
        assert!(refused(dir.path(), workdir).contains(workdir));
    }
    assert!(refused(&dir.path().join("none"), "/").contains("none"));
    assert!(refused(&dir.path().join("file"), "/").contains("directory"));
    let empty = image(Vec::new(), RepoSource::InRoot);
    assert!(matches!(provider().create(&empty).err(), Some(SandboxError::Unsupported(_))));
    let host = spec(RepoSource::InRoot);
    assert!(matches!(provider().create(&host).err(), Some(SandboxError::Unsupported(_))));
}
