//! Pulls from a real registry server.

#[path = "../common/mod.rs"]
mod common;
mod interrupted;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::server::{Access, Server, TokenServer};
use common::tarball::Tarball;
use common::wire::Wire;
use common::{Dialect, Form, TestImage, descriptor, index, noise};
use patchwright_images::{
    Credentials, Digest, Image, ImageError, ImageStore, Progress, PullEvent, PullOptions, Silent,
};
use serde_json::json;

fn options() -> PullOptions {
    PullOptions {
        docker_config: None,
        platform: ("linux".into(), "amd64".into()),
        ..PullOptions::default()
    }
}

fn store() -> (tempfile::TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path().join("images")).unwrap();
    (dir, store)
}

fn pull(store: &ImageStore, name: &str) -> Result<Image, ImageError> {
    store.pull(name, &options(), &Silent)
}

/// Three layers: files, changes with whiteouts, and noise of this many bytes.
fn image(dialect: Dialect, noise_bytes: usize) -> TestImage {
    let base = Tarball::new()
        .dir("etc")
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\n")
        .file("etc/gone", "g")
        .dir("old")
        .file("old/a", "a")
        .symlink("lib", "usr/lib");
    let change = Tarball::new()
        .dir("etc")
        .file("etc/.wh.gone", "")
        .dir("old")
        .file("old/.wh..wh..opq", "")
        .file("old/b", "b");
    let big = Tarball::new().dir("testbed").file("testbed/noise", noise(noise_bytes, 1));
    let (a, b, c) = match dialect {
        Dialect::Docker => (Form::Gzip, Form::Gzip, Form::Gzip),
        Dialect::Oci => (Form::Plain, Form::Zstd, Form::Gzip),
    };
    TestImage::new([(base, a), (change, b), (big, c)]).dialect(dialect)
}

/// What an overlay of the layers shows: regular files with their contents.
fn merged(image: &Image) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for layer in image.layers().iter().rev() {
        apply(layer, "", &mut files);
    }
    files
}

fn apply(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    let mut opaque = [0; 4];
    if rustix::fs::lgetxattr(dir, "user.overlay.opaque", &mut opaque[..]) == Ok(1)
        && opaque[0] == b'y'
    {
        files.retain(|path, _| !path.starts_with(prefix));
    }
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            apply(&entry.path(), &format!("{path}/"), files);
        } else if kind.is_char_device() {
            files.retain(|other, _| *other != path && !other.starts_with(&format!("{path}/")));
        } else if kind.is_file() {
            files.insert(path, fs::read(entry.path()).unwrap());
        }
    }
}

fn assert_is_whole(image: &Image, noise_bytes: usize) {
    let files = merged(image);
    let names: Vec<&str> = files.keys().map(String::as_str).collect();
    assert_eq!(names, ["etc/passwd", "old/b", "testbed/noise"]);
    assert!(files["testbed/noise"] == noise(noise_bytes, 1));
}

/// Nothing in the store is partial.
fn assert_is_clean(store: &ImageStore) {
    for part in ["staging", "trash"] {
        let left: Vec<_> = fs::read_dir(store.dir().join(part)).unwrap().collect();
        assert!(left.is_empty(), "{part}: {left:?}");
    }
}

#[test]
fn both_dialects_and_all_compressions() {
    let server = Server::start();
    for (dialect, repository) in [(Dialect::Docker, "org/docker"), (Dialect::Oci, "oci")] {
        let built = image(dialect, 50_000).build();
        server.push(repository, "v1", &built);
        let (_dir, store) = store();
        let name = server.name(&format!("{repository}:v1"));
        assert!(store.get(&name).unwrap().is_none());
        let pulled = pull(&store, &name).unwrap();
        assert_is_whole(&pulled, 50_000);
        assert_is_clean(&store);
        assert_eq!(pulled.id(), built.id());
        assert_eq!(pulled.reference(), name);
        assert_eq!(pulled.config().workdir, "/testbed");
        assert_eq!(pulled.config().env["A"], "b=c");
        let again = store.get(&name).unwrap().unwrap();
        assert_eq!(again.layers(), pulled.layers());
        let short = &built.id().hex()[..12];
        assert_eq!(store.get(short).unwrap().unwrap().id(), built.id());
        // By digest; the second time nothing is asked for.
        let pinned = server.name(&format!("{repository}@{}", built.digest()));
        assert_eq!(pull(&store, &pinned).unwrap().id(), built.id());
        let list = store.list().unwrap();
        assert_eq!(list.len(), 1);
        assert_eq!(list[0].references.len(), 2);
        assert!(list[0].complete && list[0].in_use);
        assert!(list[0].bytes > 50_000 && list[0].bytes < 51_000);
    }
}

#[test]
fn an_index_gives_the_platform_that_is_asked_for() {
    let server = Server::start();
    let make = |architecture: &str| {
        let mut image = TestImage::new([(Tarball::new().file("arch", architecture), Form::Gzip)]);
        image.architecture = architecture.to_owned();
        image.build()
    };
    let (amd, arm) = (make("amd64"), make("arm64"));
    server.push("multi", "amd", &amd);
    server.push("multi", "arm", &arm);
    let bytes = index(&[("arm64", &arm), ("unknown", &arm), ("amd64", &amd)]);
    server.push_manifest("multi", "all", "application/vnd.oci.image.index.v1+json", &bytes);
    let (_dir, store) = store();
    let name = server.name("multi:all");
    for (architecture, built) in [("amd64", &amd), ("arm64", &arm)] {
        let platform = ("linux".to_owned(), architecture.to_owned());
        let options = PullOptions { platform, ..options() };
        assert_eq!(store.pull(&name, &options, &Silent).unwrap().id(), built.id());
    }
    let other = PullOptions { platform: ("linux".into(), "s390x".into()), ..options() };
    let error = store.pull(&name, &other, &Silent).unwrap_err().to_string();
    assert!(error.contains("linux/s390x") && error.contains("linux/arm64"), "{error}");
}

#[test]
fn errors_say_what_is_wrong() {
    let server = Server::start();
    let (_dir, store) = store();
    let error = pull(&store, &server.name("none:v1")).unwrap_err();
    assert!(matches!(error, ImageError::NotFound { .. }), "{error}");
    let error = pull(&store, "not an image").unwrap_err().to_string();
    assert!(error.contains("no image reference"), "{error}");
    // An artifact is no image.
    server.push("art", "blob", &image(Dialect::Oci, 10).build());
    let config = image(Dialect::Oci, 10).build().config;
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&image(Dialect::Oci, 10).build().manifest).unwrap();
    manifest["layers"] = json!([descriptor("application/vnd.cncf.helm.chart.v1", &config)]);
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    server.push_manifest("art", "v1", media_type, &serde_json::to_vec(&manifest).unwrap());
    let error = pull(&store, &server.name("art:v1")).unwrap_err().to_string();
    assert!(error.contains("no container image"), "{error}");
    assert!(store.list().unwrap().is_empty());
    // Nobody there.
    let quick = PullOptions { max_retries: 1, ..options() };
    let error = store.pull("127.0.0.1:1/x", &quick, &Silent).unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }), "{error}");
}

#[test]
fn plain_http_is_for_this_machine_alone() {
    let (_dir, store) = store();
    let quick = PullOptions { max_retries: 0, ..options() };
    // An address that is for documentation: whatever answers, it is spoken to with TLS.
    let error = store.pull("localhost.invalid:5000/x", &quick, &Silent).unwrap_err();
    assert!(matches!(error, ImageError::Registry { .. }), "{error}");
}

/// What `htpasswd -nbB user secret` prints.
const LINE: &str = "user:$2y$05$fmHCfSeOD6LIqEsepeeTr.fAaYvCVN6Gm4BgvxxQB.a5ulO9k2Smi\n";

#[test]
fn basic_auth() {
    let open = Server::start();
    let built = image(Dialect::Oci, 100).build();
    open.push("private", "v1", &built);
    let server = open.again(Access::Basic(LINE));
    let (dir, store) = store();
    let name = server.name("private:v1");
    let denied = pull(&store, &name).unwrap_err();
    assert!(matches!(denied, ImageError::Denied { .. }), "{denied}");
    let with = |username: &str, password: &str| {
        let credentials = Credentials { username: username.into(), password: password.into() };
        PullOptions { credentials: Some(credentials), ..options() }
    };
    let wrong = store.pull(&name, &with("user", "wrong"), &Silent).unwrap_err();
    assert!(matches!(wrong, ImageError::Denied { .. }), "{wrong}");
    assert_eq!(store.pull(&name, &with("user", "secret"), &Silent).unwrap().id(), built.id());
    // As `docker login` leaves it: base64 of user:secret.
    let config = dir.path().join("config.json");
    let registry = format!("127.0.0.1:{}", server.port);
    let text = json!({"auths": {registry: {"auth": "dXNlcjpzZWNyZXQ="}}}).to_string();
    fs::write(&config, text).unwrap();
    let options = PullOptions { docker_config: Some(config), ..options() };
    assert_eq!(store.pull(&name, &options, &Silent).unwrap().id(), built.id());
}

#[test]
fn tokens_are_fetched_and_kept() {
    let open = Server::start();
    let built = image(Dialect::Docker, 100).build();
    open.push("org/private", "v1", &built);
    let tokens = TokenServer::start(Some("user:secret"));
    let server = open.again(Access::Token(&tokens));
    let (_dir, store) = store();
    let name = server.name("org/private:v1");
    let denied = pull(&store, &name).unwrap_err();
    assert!(matches!(denied, ImageError::Denied { .. }), "{denied}");
    assert_eq!(tokens.given.load(Ordering::SeqCst), 0);
    let credentials = Credentials { username: "user".into(), password: "secret".into() };
    let options = PullOptions { credentials: Some(credentials), ..options() };
    let pulled = store.pull(&name, &options, &Silent).unwrap();
    assert_is_whole(&pulled, 100);
    assert_eq!(tokens.given.load(Ordering::SeqCst), 1, "one token for the whole pull");
}

#[test]
fn everybody_may_need_a_token() {
    let open = Server::start();
    let built = image(Dialect::Docker, 100).build();
    open.push("public", "v1", &built);
    let tokens = TokenServer::start(None);
    let server = open.again(Access::Token(&tokens));
    let (_dir, store) = store();
    assert_eq!(pull(&store, &server.name("public:v1")).unwrap().id(), built.id());
}

#[test]
fn a_line_that_breaks_is_gone_on_with() {
    const BYTES: usize = 600_000;
    let server = Server::start();
    let built = image(Dialect::Docker, BYTES).build();
    server.push("big", "v1", &built);
    let wire = Wire::to(server.port);
    let (_dir, store) = store();
    wire.cut(3, 150_000);
    let pulled = pull(&store, &wire.name("big:v1")).unwrap();
    assert_is_whole(&pulled, BYTES);
    assert_is_clean(&store);
    assert!(wire.faults.ranges.load(Ordering::SeqCst) >= 3);
    // What had come was not asked for again; a connection's buffers may be lost.
    assert!(wire.sent() < built.size() + 300_000, "{} of {}", wire.sent(), built.size());
}

#[test]
fn a_registry_without_ranges_is_asked_from_the_beginning() {
    const BYTES: usize = 400_000;
    let server = Server::start();
    server.push("big", "v1", &image(Dialect::Docker, BYTES).build());
    let wire = Wire::to(server.port);
    wire.faults.no_ranges.store(true, Ordering::SeqCst);
    wire.cut(2, 150_000);
    let (_dir, store) = store();
    assert_is_whole(&pull(&store, &wire.name("big:v1")).unwrap(), BYTES);
    assert!(wire.faults.ranges.load(Ordering::SeqCst) >= 2);
}

#[test]
fn tries_are_bounded() {
    let server = Server::start();
    server.push("big", "v1", &image(Dialect::Docker, 400_000).build());
    let wire = Wire::to(server.port);
    let (_dir, store) = store();
    let name = wire.name("big:v1");
    wire.faults.refusals.store(2, Ordering::SeqCst);
    assert_is_whole(&pull(&store, &name).unwrap(), 400_000);
    wire.faults.refusals.store(usize::MAX, Ordering::SeqCst);
    let before = wire.faults.requests.load(Ordering::SeqCst);
    let quick = PullOptions { max_retries: 3, ..options() };
    let error = store.pull(&name, &quick, &Silent).unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
    assert_eq!(wire.faults.requests.load(Ordering::SeqCst) - before, 4);
}

#[test]
fn changed_bytes_are_found() {
    let server = Server::start();
    let built = image(Dialect::Docker, 400_000).build();
    server.push("big", "v1", &built);
    let wire = Wire::to(server.port);
    let (_dir, store) = store();
    let name = wire.name("big:v1");
    wire.faults.flip_at.store(200_000, Ordering::SeqCst);
    let error = pull(&store, &name).unwrap_err();
    let found = matches!(error, ImageError::Mismatch { .. } | ImageError::Layer { .. });
    assert!(found, "{error}");
    assert!(store.get(&name).unwrap().is_none());
    wire.faults.flip_at.store(0, Ordering::SeqCst);
    assert_is_whole(&pull(&store, &name).unwrap(), 400_000);
    // A server that has other bytes than it says.
    let (_dir, other) = self::store();
    let path = server.blob_path(Digest::of(&built.blobs[1]));
    fs::write(&path, &built.blobs[0]).unwrap();
    let quick = PullOptions { max_retries: 1, ..options() };
    let error = other.pull(&server.name("big:v1"), &quick, &Silent).unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. } | ImageError::Registry { .. }), "{error}");
    assert!(other.list().unwrap().iter().all(|image| !image.complete));
}

/// The config says what a layer's tar is; another one is not taken, whatever its blob's digest.
#[test]
fn a_layer_that_is_not_the_configs_is_refused() {
    let server = Server::start();
    let mut built = image(Dialect::Docker, 100).build();
    let mut manifest: serde_json::Value = serde_json::from_slice(&built.manifest).unwrap();
    let layers = manifest["layers"].as_array_mut().unwrap();
    layers.swap(0, 1);
    built.manifest = serde_json::to_vec(&manifest).unwrap();
    server.push("swapped", "v1", &built);
    let (_dir, store) = store();
    let error = pull(&store, &server.name("swapped:v1")).unwrap_err();
    assert!(matches!(error, ImageError::Mismatch { .. }), "{error}");
}

#[test]
fn a_decompression_bomb_is_stopped() {
    let server = Server::start();
    let bomb = TestImage::new([(Tarball::new().file("zeros", vec![0; 40 << 20]), Form::Gzip)]);
    server.push("bomb", "v1", &bomb.build());
    let (_dir, store) = store();
    let mut options = options();
    options.limits.free_bytes = 1 << 20;
    options.limits.max_ratio = 20;
    let error = store.pull(&server.name("bomb:v1"), &options, &Silent).unwrap_err().to_string();
    assert!(error.contains("bomb"), "{error}");
    options.limits.max_ratio = 100_000;
    options.limits.max_bytes = 10 << 20;
    let error = store.pull(&server.name("bomb:v1"), &options, &Silent).unwrap_err().to_string();
    assert!(error.contains("more than 10485760 bytes"), "{error}");
    options.limits.max_bytes = 100 << 20;
    assert!(store.pull(&server.name("bomb:v1"), &options, &Silent).is_ok());
}

/// Stops after so many bytes.
struct StopAfter {
    left: AtomicU64,
    stopped: AtomicBool,
}

impl Progress for StopAfter {
    fn event(&self, event: &PullEvent) {
        if let PullEvent::Received { bytes } = event {
            let left = self.left.load(Ordering::SeqCst).saturating_sub(*bytes);
            self.left.store(left, Ordering::SeqCst);
            self.stopped.fetch_or(left == 0, Ordering::SeqCst);
        }
    }

    fn is_cancelled(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}
