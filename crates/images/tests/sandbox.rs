//! Layers as a sandbox sees them: its own, whoever unpacked them.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::tarball::Tarball;
use common::{Form, TestImage};
use patchwright_core::{
    ExecRequest, ExecStatus, RepoSource, Sandbox, SandboxLimits, SandboxProvider, SandboxSpec,
};
use patchwright_images::{Image, ImageStore, LoadOptions, Silent};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use serde_json::json;

/// Programs of the host with what they load.
fn programs() -> Tarball {
    let mut files = BTreeSet::new();
    for name in ["sh", "cat", "ls", "rm", "chmod", "stat", "touch", "mkdir"] {
        let found = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
        let path = found.into_iter().find(|path| path.exists()).unwrap();
        let listed = Command::new("ldd").arg(&path).output().unwrap();
        for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
            if word.starts_with('/') && !word.ends_with(':') {
                files.insert(PathBuf::from(word));
            }
        }
        files.insert(path);
    }
    files.iter().fold(Tarball::new(), |tar, path| {
        let name = path.to_str().unwrap().trim_start_matches('/');
        tar.entry(b'0', name, "", 0o4755, &fs::read(path).unwrap())
    })
}

/// Three layers through a `docker save` archive.
fn image(store: &ImageStore, dir: &Path) -> Image {
    let base = programs()
        .entry(b'5', "etc", "", 0o755, b"")
        .entry(b'0', "etc/shadow", "", 0o000, b"secret\n")
        .file("testbed/a.py", "a = 1\n")
        .file("testbed/gone.py", "")
        .file("testbed/old/x.py", "")
        .entry(b'5', "root", "", 0o700, b"");
    let change = Tarball::new()
        .dir("testbed")
        .file("testbed/.wh.gone.py", "")
        .dir("testbed/old")
        .file("testbed/old/.wh..wh..opq", "")
        .file("testbed/old/y.py", "y = 1\n");
    let top = Tarball::new().file("testbed/b.py", "b\n").hardlink("testbed/c.py", "testbed/b.py");
    let layers = [(base, Form::Gzip), (change, Form::Zstd), (top, Form::Plain)];
    let built = TestImage::new(layers).build();
    let names: Vec<String> = (0..built.blobs.len()).map(|i| format!("{i}/layer.tar")).collect();
    let manifest = json!([{"Config": "c.json", "RepoTags": ["local/x:1"], "Layers": names}]);
    let mut archive =
        Tarball::new().file("c.json", &built.config).file("manifest.json", manifest.to_string());
    for (name, blob) in names.iter().zip(&built.blobs) {
        archive = archive.file(name, blob);
    }
    let path = dir.join("image.tar");
    fs::write(&path, archive.bytes()).unwrap();
    store.load(&path, &LoadOptions::default(), &Silent).unwrap().remove(0)
}

fn shell(sandbox: &mut dyn Sandbox, script: &str) -> (ExecStatus, String) {
    let request = ExecRequest::argv(&["sh", "-c", script], "/testbed", Duration::from_secs(20));
    let output = sandbox.exec(&request).unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}

/// All that is in a layer, to see that nothing of it changes.
fn state(dir: &Path, at: &mut BTreeMap<PathBuf, (u32, i64, Vec<u8>)>) {
    use std::os::unix::fs::MetadataExt;
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let metadata = path.symlink_metadata().unwrap();
        let bytes = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if metadata.is_dir() {
            state(&path, at);
        }
        at.insert(path, (metadata.mode(), metadata.mtime(), bytes));
    }
}

#[test]
fn an_image_runs_as_it_is_and_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("images")).unwrap();
    let image = image(&store, dir.path());
    let mut before = BTreeMap::new();
    image.layers().iter().for_each(|layer| state(layer, &mut before));
    let provider =
        NativeSandboxes::new(NativeOptions { max_sandboxes: 2, ..NativeOptions::default() })
            .unwrap();
    let spec = SandboxSpec {
        root: image.root(),
        repo: RepoSource::InRoot,
        workdir: "/testbed".to_owned(),
        read_only_mounts: Vec::new(),
        env: image.config().env.clone(),
        limits: SandboxLimits::default(),
    };
    let mut sandbox = provider.create(&spec).unwrap();
    // What an image's root alone could read is the sandbox's own, as is all else.
    let script = "ls; ls old; cat old/y.py /etc/shadow; test -O /etc/shadow && test -O /bin/sh && \
                  test -O /testbed/a.py && test ! -u /bin/sh && stat -c %h c.py";
    let expected = "a.py\nb.py\nc.py\nold\ny.py\ny = 1\nsecret\n2\n";
    assert_eq!(shell(&mut *sandbox, script), (ExecStatus::Exited(0), expected.to_owned()));
    let script = "echo 2 > a.py && rm b.py && touch /etc/new /root/new && chmod 600 /etc/shadow && \
                  mkdir gone.py && echo x > gone.py/z && rm -r old && ls";
    let (status, text) = shell(&mut *sandbox, script);
    assert_eq!((status, text.as_str()), (ExecStatus::Exited(0), "a.py\nc.py\ngone.py\n"));
    let changes = sandbox.diff().unwrap();
    let paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, ["a.py", "b.py", "gone.py/z", "old/y.py"]);
    // Another one sees none of it.
    let mut other = provider.create(&spec).unwrap();
    let (_, text) = shell(&mut *other, "cat a.py; ls /etc");
    assert!(text.starts_with("a = 1\n") && !text.contains("new"), "{text}");
    sandbox.destroy().unwrap();
    other.destroy().unwrap();
    let mut after = BTreeMap::new();
    image.layers().iter().for_each(|layer| state(layer, &mut after));
    assert!(before == after, "the layers were written to");
}
