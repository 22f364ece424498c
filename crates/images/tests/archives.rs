//! Archives as `docker save`, old and new, and other tools write them.

mod common;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use common::tarball::Tarball;
use common::{Built, Dialect, Form, TestImage, descriptor, index};
use patchwright_images::{Digest, Image, ImageError, ImageStore, LoadOptions, Silent};
use serde_json::json;

struct Ground {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(dir.path().join("images")).unwrap();
        Self { dir, store }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, path: &Path) -> Result<Vec<Image>, ImageError> {
        let platform = ("linux".into(), "amd64".into());
        self.store.load(path, &LoadOptions { platform, ..LoadOptions::default() }, &Silent)
    }

    fn refusal(&self, path: &Path) -> String {
        let error = self.load(path).unwrap_err().to_string();
        assert!(self.store.list().unwrap().iter().all(|image| !image.complete), "{error}");
        error
    }
}

fn image(dialect: Dialect) -> TestImage {
    let base = Tarball::new().dir("testbed").file("testbed/a.py", "x = 1\n");
    let top = Tarball::new().file("testbed/.wh.a.py", "").file("testbed/b.py", "y = 2\n");
    let forms = match dialect {
        Dialect::Docker => (Form::Plain, Form::Plain),
        Dialect::Oci => (Form::Gzip, Form::Zstd),
    };
    TestImage::new([(base, forms.0), (top, forms.1)]).dialect(dialect)
}

fn assert_is_image(image: &Image, built: &Built) {
    assert_eq!(image.id(), built.id());
    let [top, base] = image.layers() else { panic!("{:?}", image.layers()) };
    assert_eq!(fs::read_to_string(base.join("testbed/a.py")).unwrap(), "x = 1\n");
    assert_eq!(fs::read_to_string(top.join("testbed/b.py")).unwrap(), "y = 2\n");
}

/// Before Docker 25: a directory for each layer, the same layer twice as a link.
fn old_docker_save(built: &Built) -> Tarball {
    let config = format!("{}.json", built.id().hex());
    let manifest = json!([{"Config": config, "RepoTags": ["org/old:v1", "org/old:v2"],
        "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    Tarball::new()
        .file(&config, &built.config)
        .dir("one/")
        .file("one/VERSION", "1.0")
        .file("real/layer.tar", &built.blobs[0])
        .symlink("one/layer.tar", "../real/layer.tar")
        .file("two/layer.tar", &built.blobs[1])
        .file("manifest.json", manifest.to_string())
        .file("repositories", "{}")
}

fn blob_name(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

/// All members of an OCI layout.
fn layout(built: &Built, name: Option<&str>) -> Vec<(String, Vec<u8>)> {
    let mut entry = descriptor(built.media_type, &built.manifest);
    if let Some(name) = name {
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    }
    let index = json!({"schemaVersion": 2, "manifests": [entry]});
    let mut members = vec![
        ("oci-layout".to_owned(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()),
        ("index.json".to_owned(), index.to_string().into_bytes()),
    ];
    for bytes in built.blobs.iter().chain([&built.config, &built.manifest]) {
        members.push((blob_name(bytes), bytes.clone()));
    }
    members
}

fn tar_of(members: &[(String, Vec<u8>)]) -> Tarball {
    members.iter().fold(Tarball::new(), |tar, (name, bytes)| tar.file(name, bytes))
}

#[test]
fn old_archives_of_docker_save() {
    let built = image(Dialect::Docker).build();
    let ground = Ground::new();
    let path = ground.file("old.tar", &old_docker_save(&built).bytes());
    let images = ground.load(&path).unwrap();
    assert_eq!(images.len(), 1);
    assert_is_image(&images[0], &built);
    assert_eq!(images[0].reference(), "docker.io/org/old:v1");
    assert_eq!(ground.store.get("org/old:v2").unwrap().unwrap().id(), built.id());
    // Once more changes nothing; compressed is the same.
    let packed = ground.file("old.tar.gz", &old_docker_save(&built).gzip());
    assert_is_image(&ground.load(&packed).unwrap()[0], &built);
    let fresh = Ground::new();
    assert_is_image(&fresh.load(&packed).unwrap()[0], &built);
    let packed = fresh.file("old.tar.zst", &old_docker_save(&built).zstd());
    assert_is_image(&fresh.load(&packed).unwrap()[0], &built);
}

/// Since Docker 25: an OCI layout with a `manifest.json` beside it.
#[test]
fn new_archives_of_docker_save() {
    let built = image(Dialect::Oci).build();
    let manifest = json!([{"Config": blob_name(&built.config), "RepoTags": ["new:v1"],
        "Layers": [blob_name(&built.blobs[0]), blob_name(&built.blobs[1])]}]);
    let mut members = layout(&built, Some("v1"));
    members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    let ground = Ground::new();
    let path = ground.file("new.tar", &tar_of(&members).bytes());
    assert_is_image(&ground.load(&path).unwrap()[0], &built);
    assert!(ground.store.get("new:v1").unwrap().is_some());
}

#[test]
fn oci_layouts() {
    let built = image(Dialect::Oci).build();
    let members = layout(&built, Some("ghcr.io/org/image:v3"));
    let ground = Ground::new();
    let path = ground.file("oci.tar", &tar_of(&members).bytes());
    let images = ground.load(&path).unwrap();
    assert_is_image(&images[0], &built);
    assert_eq!(images[0].reference(), "ghcr.io/org/image:v3");
    // A directory, with a bare tag that names nothing.
    let ground = Ground::new();
    for (name, bytes) in layout(&built, Some("latest")) {
        ground.file(&format!("layout/{name}"), &bytes);
    }
    let path = ground.dir.path().join("layout");
    let images = ground.load(&path).unwrap();
    assert_is_image(&images[0], &built);
    assert_eq!(images[0].reference(), built.id().to_string());
    let reference = Some("named:here".to_owned());
    let options = LoadOptions { reference, ..LoadOptions::default() };
    ground.store.load(&path, &options, &Silent).unwrap();
    assert!(ground.store.get("named:here").unwrap().is_some());
}

#[test]
fn a_layout_of_several_platforms_gives_one() {
    let amd = image(Dialect::Oci).build();
    let mut other = image(Dialect::Oci);
    other.architecture = "arm64".to_owned();
    let arm = other.build();
    let nested = index(&[("arm64", &arm), ("amd64", &amd)]);
    let entry = descriptor("application/vnd.oci.image.index.v1+json", &nested);
    let top = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    let mut members = vec![("index.json".to_owned(), top)];
    for built in [&amd, &arm] {
        members.extend(layout(built, None).into_iter().filter(|(name, _)| name.contains('/')));
    }
    members.push((blob_name(&nested), nested));
    let ground = Ground::new();
    let path = ground.file("several.tar", &tar_of(&members).bytes());
    let images = ground.load(&path).unwrap();
    assert_eq!(images.len(), 1);
    assert_is_image(&images[0], &amd);
}

#[test]
fn content_that_is_not_what_it_says_is_refused() {
    let built = image(Dialect::Oci).build();
    let members = layout(&built, Some("a:b"));
    for at in 2..members.len() {
        let mut wrong = members.clone();
        let middle = wrong[at].1.len() / 2;
        wrong[at].1[middle] ^= 1;
        let ground = Ground::new();
        let path = ground.file("wrong.tar", &tar_of(&wrong).bytes());
        let error = ground.refusal(&path);
        assert!(!error.is_empty(), "{at}");
    }
    // A layer that is whole, but another: its tar is not what the config says.
    let mut swapped = old_docker_save(&image(Dialect::Docker).build());
    swapped = swapped.file("two/layer.tar", Tarball::new().file("other", "x").bytes());
    let ground = Ground::new();
    let error = ground.refusal(&ground.file("swapped.tar", &swapped.bytes()));
    assert!(error.contains("digest"), "{error}");
}

#[test]
fn archives_that_are_none() {
    let ground = Ground::new();
    let cases: [(&str, Vec<u8>, &str); 6] = [
        ("empty", Vec::new(), "neither manifest.json"),
        ("noise", vec![7; 5000], "no tar archive"),
        ("gzip-noise", [&[0x1f, 0x8b][..], &[7; 100]].concat(), ""),
        ("plain", Tarball::new().file("a", "b").bytes(), "neither manifest.json"),
        ("bad-json", Tarball::new().file("manifest.json", "{").bytes(), "manifest.json"),
        ("none", Tarball::new().file("manifest.json", "[]").bytes(), "no image"),
    ];
    for (name, bytes, expected) in cases {
        let error = ground.refusal(&ground.file(name, &bytes));
        assert!(error.contains(expected), "{name}: {error}");
    }
    assert!(ground.refusal(&ground.dir.path().join("not-there")).contains("not-there"));
    let built = image(Dialect::Docker).build();
    let whole = old_docker_save(&built).bytes();
    assert!(!ground.refusal(&ground.file("cut", &whole[..whole.len() / 2])).is_empty());
}

/// Names in an archive lead nowhere else: not to files of the host, not to each other in circles.
#[test]
fn names_stay_in_the_archive() {
    let built = image(Dialect::Docker).build();
    let config = format!("{}.json", built.id().hex());
    let ground = Ground::new();
    let secret = ground.file("secret.tar", &built.blobs[0]);
    let manifest = |layer: &str| {
        json!([{"Config": config, "RepoTags": null, "Layers": [layer, "two/layer.tar"]}])
            .to_string()
    };
    let base =
        || Tarball::new().file(&config, &built.config).file("two/layer.tar", &built.blobs[1]);
    let absolute = secret.display().to_string();
    for layer in ["../secret.tar", absolute.as_str(), "not/there", "loop", "out", "", "."] {
        let tar = base()
            .symlink("loop", "loop2")
            .symlink("loop2", "loop")
            .symlink("out", "../secret.tar")
            .file("manifest.json", manifest(layer));
        let mut file = fs::File::create(ground.dir.path().join("x.tar")).unwrap();
        file.write_all(&tar.bytes()).unwrap();
        assert!(!ground.refusal(&ground.dir.path().join("x.tar")).is_empty(), "{layer}");
    }
    let dir = ground.file("layout/manifest.json", manifest("../secret.tar").as_bytes());
    ground.file(&format!("layout/{config}"), &built.config);
    ground.file("layout/two/layer.tar", &built.blobs[1]);
    assert!(ground.refusal(dir.parent().unwrap()).contains("no name of a member"));
}
