//! Attacks 19, 20 and 22: through files, into the host or into another sandbox.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use patchwright_core::{ExecStatus, RepoSource, RootFs, Sandbox, SandboxError, SandboxProvider};

use crate::support::{
    attempt, cannot_run, files, held, is_root, provider, python, sandbox, shell, spec, stdout,
    still_serves, text,
};

pub fn open_to_all(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn over(repo: RepoSource) -> Result<Box<dyn Sandbox>, SandboxError> {
    let mut spec = spec();
    spec.repo = repo;
    provider().create(&spec)
}

/// Tries: to have the host write or read outside the repository, or hang, by what lies in a tree:
/// `..`, links, FIFOs and device nodes, whether they come with the repository or the agent makes
/// them. Must hold: what is no clean path is refused; links lead nowhere but inside; nothing
/// blocks; the diff holds no contents of the host's files.
#[test]
fn attack_19_hostile_trees() {
    for name in ["../x", "a/../../x", "/etc/x", "a//b", "./a", "", "a/.", "a\0b"] {
        let error = over(files(&[(name, "b")])).err();
        assert!(matches!(error, Some(SandboxError::Path { .. })), "{name:?}: {error:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path(), 0o755);
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "host secret").unwrap();
    open_to_all(secret.path(), 0o666);
    fs::write(dir.path().join("a.txt"), "one\n").unwrap();
    symlink(secret.path(), dir.path().join("out")).unwrap();
    symlink("/", dir.path().join("root")).unwrap();
    symlink("../../../../etc/shadow", dir.path().join("up")).unwrap();
    symlink("loop", dir.path().join("loop")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(dir.path().join("fifo")).status();
    assert!(fifo.unwrap().success());
    let start = Instant::now();
    let mut sandbox = over(RepoSource::Directory(dir.path().to_owned())).unwrap();
    let path = secret.path().display();
    shell(
        &mut *sandbox,
        &format!(
            "cat out up root/{path} loop; echo spoilt > out; echo spoilt > root{path}; \
         ln -s /proc/1/environ env; ln -s /proc/self/root{path} magic; ln -s {path} abs; \
         mkfifo pipe; ln -s /dev/zero zero; ln -s a.txt b.txt; mkdir sub; ln -s .. sub/up"
        ),
    );
    for link in ["out", "up", "env", "magic", "abs", "loop", "fifo", "pipe", "zero", "root"] {
        let read = sandbox.read(&format!("/testbed/{link}"), 1000);
        if let Ok(bytes) = &read {
            assert!(!text(bytes).contains("secret"), "{link}");
        }
        let _ = sandbox.write(&format!("/testbed/{link}"), b"from the host");
        let _ = sandbox.write(&format!("/testbed/{link}/x"), b"from the host");
    }
    assert_eq!(fs::read_to_string(secret.path()).unwrap(), "host secret");
    let diff = sandbox.diff().unwrap();
    assert!(!format!("{diff:?}").contains("host secret"), "{diff:?}");
    let mut copy = sandbox.fork().unwrap();
    assert_eq!(stdout(&mut *copy, "cat a.txt"), "one\n");
    assert!(fs::metadata(dir.path().join("fifo")).unwrap().file_type().is_fifo());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6, "the host's directory is as it was");
    assert!(start.elapsed() < Duration::from_mins(1));
    // Device nodes, of which overlay takes one for a deletion.
    for node in ["c 0 0", "b 8 0", "c 1 3"] {
        let output = shell(&mut *sandbox, &format!("mknod /tmp/node {node}"));
        assert_ne!(output.status, ExecStatus::Exited(0), "{node}");
    }
    if is_root() {
        let made = std::process::Command::new("mknod")
            .arg(dir.path().join("null"))
            .args(["c", "1", "3"])
            .status();
        if made.is_ok_and(|status| status.success()) {
            open_to_all(&dir.path().join("null"), 0o666);
            let mut sandbox = over(RepoSource::Directory(dir.path().to_owned())).unwrap();
            let opened = shell(&mut *sandbox, "exec 3<null");
            assert_ne!(opened.status, ExecStatus::Exited(0), "a device of the repository's");
        } else {
            cannot_run(19, "device nodes in a repository", "this root cannot make device nodes");
        }
    } else {
        cannot_run(19, "device nodes in a repository", "an ordinary user cannot make them");
    }
    held(19, "symlink, .., FIFO and device nodes");
}

/// Tries: an image whose layers hold links in place of the directories that a sandbox mounts on,
/// whiteouts, and modes that close it. Must hold: it is refused or what is mounted lies inside;
/// the host's files and the layers are as before. (Archives of layers: `crates/images`.)
#[test]
fn attack_20_malicious_layers() {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path(), 0o755);
    let victim = dir.path().join("victim");
    fs::create_dir(&victim).unwrap();
    open_to_all(&victim, 0o777);
    let (mut unsupported, mut tried) = (None, 0);
    for name in ["testbed", "proc", "dev", "tmp", "home", "etc", "run", "dev/shm"] {
        let layer = dir.path().join(format!("layer{}", name.replace('/', "-")));
        fs::create_dir(&layer).unwrap();
        open_to_all(&layer, 0o755);
        if let Some((parent, _)) = name.split_once('/') {
            fs::create_dir(layer.join(parent)).unwrap();
        }
        for system in ["usr", "bin", "lib", "lib64", "sbin"] {
            let own = Path::new("/").join(system);
            if let Ok(target) = fs::read_link(&own) {
                symlink(target, layer.join(system)).unwrap();
            }
        }
        symlink(&victim, layer.join(name)).unwrap();
        let mut spec = spec();
        spec.root = RootFs::Layers(vec![layer.clone()]);
        match provider().create(&spec) {
            Ok(mut sandbox) => {
                tried += 1;
                let script = format!("touch /{name}/reached {}/reached", victim.display());
                let _ = attempt(&mut *sandbox, &format!("import os; os.system('{script}')"));
                let _ = sandbox.write(&format!("/{name}/reached"), b"x");
            }
            Err(SandboxError::Unsupported(why)) => unsupported = Some(why),
            Err(_) => tried += 1,
        }
        assert_eq!(fs::read_dir(&victim).unwrap().count(), 0, "{name} led out");
        assert!(fs::symlink_metadata(layer.join(name)).unwrap().is_symlink(), "{name}");
    }
    match unsupported {
        Some(why) if tried == 0 => cannot_run(20, "malicious layers", &why),
        _ => held(20, "links in layers where a sandbox mounts (archives: crates/images)"),
    }
}

/// Tries: to leave something for another sandbox, or change what both were made from. Must hold:
/// neither what one writes, nor its sockets, memory or processes, are another's to find.
#[test]
fn attack_22_reach_another_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path(), 0o755);
    for name in ["a.txt", "b.txt"] {
        fs::write(dir.path().join(name), "one\n").unwrap();
        open_to_all(&dir.path().join(name), 0o666);
    }
    let shared = tempfile::tempdir().unwrap();
    open_to_all(shared.path(), 0o777);
    fs::write(shared.path().join("lib.py"), "X = 7\n").unwrap();
    open_to_all(&shared.path().join("lib.py"), 0o666);
    let mut spec = spec();
    spec.repo = RepoSource::Directory(dir.path().to_owned());
    spec.read_only_mounts.push((shared.path().to_owned(), "/opt/env".to_owned()));
    let (mut one, mut two) = (provider().create(&spec).unwrap(), provider().create(&spec).unwrap());
    let leave = "import ctypes, mmap, os\n\
        for d in ('/tmp', '/dev/shm', '/home/agent', '/testbed', '/var/tmp'):\n    \
        open(d + '/left', 'w').write('x')\n\
        f = open('b.txt', 'r+b'); m = mmap.mmap(f.fileno(), 4); m[:4] = b'two\\n'; m.flush()\n\
        os.truncate('a.txt', 0); os.chmod('a.txt', 0o777)\n\
        os.link('b.txt', '/testbed/hard'); os.remove('/testbed/b.txt')\n\
        for p in ('/opt/env/lib.py', '/usr/left', '/opt/env/left', '/opt/left', '/run/left'):\n    \
        try: open(p, 'a').write('x'); print('wrote', p)\n    except OSError: pass\n\
        libc = ctypes.CDLL(None)\nlibc.shmget(99, 4096, 0o1666)\n";
    assert_eq!(python(&mut *one, leave), "");
    for other in [&mut two, &mut provider().create(&spec).unwrap()] {
        let look = "cat a.txt b.txt /opt/env/lib.py; ls -A /tmp /dev/shm /home/agent /var/tmp/; \
                    ls /testbed; ls -d /opt/left /run/left /usr/left 2>/dev/null";
        let seen = text(&shell(&mut **other, look).stdout);
        assert!(seen.starts_with("one\none\nX = 7\n") && !seen.contains("left"), "{seen}");
        let find = "import ctypes\nprint(ctypes.CDLL(None).shmget(99, 4096, 0))";
        assert_eq!(python(&mut **other, find), "-1\n");
    }
    for name in ["a.txt", "b.txt"] {
        assert_eq!(fs::read_to_string(dir.path().join(name)).unwrap(), "one\n");
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert_eq!(fs::read_to_string(shared.path().join("lib.py")).unwrap(), "X = 7\n");
    // System V memory does not outlive its command, either: a sandbox's state is its files.
    let again = "import ctypes\nprint(ctypes.CDLL(None).shmget(99, 4096, 0))";
    assert_eq!(python(&mut *one, again), "-1\n");
    still_serves(&mut *sandbox());
    held(22, "reach another sandbox by /tmp or shared lowers");
}
