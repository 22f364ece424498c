//! Pulls that are cut short, killed, or made at the same time, and what is collected.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use patchwright_images::{Digest, ImageError, ImageStore};

use crate::common::server::Server;
use crate::common::tarball::Tarball;
use crate::common::wire::Wire;
use crate::common::{Dialect, Form, TestImage, noise};
use crate::{StopAfter, assert_is_clean, assert_is_whole, image, merged, options, pull, store};

#[test]
fn an_interrupted_pull_is_gone_on_with() {
    const BYTES: usize = 3_000_000;
    let server = Server::start();
    let built = image(Dialect::Docker, BYTES).build();
    server.push("big", "v1", &built);
    let wire = Wire::to(server.port);
    let (_dir, store) = store();
    let name = wire.name("big:v1");
    let stop = StopAfter { left: 1_500_000.into(), stopped: false.into() };
    let error = store.pull(&name, &options(), &stop).unwrap_err();
    assert!(matches!(error, ImageError::Cancelled), "{error}");
    assert!(store.get(&name).unwrap().is_none());
    let before = wire.sent();
    assert_is_whole(&pull(&store, &name).unwrap(), BYTES);
    let rest = wire.sent() - before;
    assert!(rest < built.size() - 1_000_000, "{rest} of {}", built.size());
    assert_is_clean(&store);
}

/// Damage to what an interrupted pull left is found, and mended by pulling all of it.
#[test]
fn a_damaged_rest_is_thrown_away() {
    const BYTES: usize = 3_000_000;
    let server = Server::start();
    server.push("big", "v1", &image(Dialect::Docker, BYTES).build());
    let (_dir, store) = store();
    let name = server.name("big:v1");
    let stop = StopAfter { left: 1_500_000.into(), stopped: false.into() };
    store.pull(&name, &options(), &stop).unwrap_err();
    let mut damaged = 0;
    for staging in fs::read_dir(store.dir().join("staging")).unwrap() {
        for file in fs::read_dir(staging.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            if let Some(byte) = bytes.get_mut(middle) {
                *byte ^= 1;
                fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0);
    assert_is_whole(&pull(&store, &name).unwrap(), BYTES);
}

/// Run by [`a_killed_pull_leaves_nothing_whole`] in a process of its own.
#[test]
fn child() {
    let Ok(arguments) = std::env::var("IMAGES_TEST_CHILD") else { return };
    let (dir, name) = arguments.split_once(' ').unwrap();
    let store = ImageStore::open(dir).unwrap();
    let image = pull(&store, name).unwrap();
    if std::env::var_os("IMAGES_TEST_HOLD").is_some() {
        fs::write(store.dir().join("held"), "").unwrap();
        std::thread::sleep(Duration::from_mins(10));
    }
    drop(image);
}

fn child_process(store: &ImageStore, name: &str, hold: bool) -> std::process::Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "interrupted::child", "--test-threads=1"]);
    command.env("IMAGES_TEST_CHILD", format!("{} {name}", store.dir().display()));
    if hold {
        command.env("IMAGES_TEST_HOLD", "1");
    }
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_mins(1);
    while !condition() {
        assert!(Instant::now() < end, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_killed_pull_leaves_nothing_whole() {
    const BYTES: usize = 2_000_000;
    let server = Server::start();
    let built = image(Dialect::Docker, BYTES).build();
    server.push("big", "v1", &built);
    let wire = Wire::to(server.port);
    let (_dir, store) = store();
    let name = wire.name("big:v1");
    for killed_at in [300_000, 900_000] {
        wire.faults.pause.store(20, Ordering::SeqCst);
        let mut child = child_process(&store, &name, false);
        let end = wire.sent() + killed_at;
        wait_for("bytes", || wire.sent() > end);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(store.get(&name).unwrap().is_none());
        let big = Digest::of(&image(Dialect::Docker, BYTES).layers[2].0.bytes());
        assert!(!store.dir().join("layers/sha256").join(big.hex()).exists());
        let listed = store.list().unwrap();
        assert!(listed.iter().all(|image| !image.complete && !image.in_use), "{listed:?}");
    }
    wire.faults.pause.store(0, Ordering::SeqCst);
    let before = wire.sent();
    assert_is_whole(&pull(&store, &name).unwrap(), BYTES);
    assert!(wire.sent() - before < built.size() - 200_000, "the rest alone");
    assert_is_clean(&store);
}

#[test]
fn what_a_killed_pull_left_is_collected() {
    let server = Server::start();
    server.push("big", "v1", &image(Dialect::Docker, 2_000_000).build());
    let wire = Wire::to(server.port);
    wire.faults.pause.store(20, Ordering::SeqCst);
    let (_dir, store) = store();
    let mut child = child_process(&store, &wire.name("big:v1"), false);
    wait_for("bytes", || wire.sent() > 600_000);
    // What is being pulled is left alone.
    let report = store.gc(Some(0)).unwrap();
    assert_eq!((report.removed_downloads, report.in_use), (0, 1), "{report:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    let report = store.gc(None).unwrap();
    assert_eq!((report.removed_images.len(), report.in_use), (1, 0), "{report:?}");
    assert!(report.removed_downloads > 0);
    assert_is_clean(&store);
    assert!(store.list().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.dir().join("layers/sha256")).unwrap().count(), 0);
}

#[test]
fn pulls_at_once_share_the_work() {
    const BYTES: usize = 1_000_000;
    let server = Server::start();
    let built = image(Dialect::Docker, BYTES).build();
    server.push("big", "v1", &built);
    let wire = Wire::to(server.port);
    let (_dir, store) = store();
    let name = wire.name("big:v1");
    let mut children: Vec<_> = (0..2).map(|_| child_process(&store, &name, false)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let own = ImageStore::open(store.dir()).unwrap();
                assert_is_whole(&pull(&own, &name).unwrap(), BYTES);
            });
        }
    });
    for child in &mut children {
        assert!(child.wait().unwrap().success());
    }
    assert!(wire.sent() < built.size() + 200_000, "{} of {}", wire.sent(), built.size());
    assert_is_clean(&store);
    assert_eq!(store.list().unwrap().len(), 1);
}

#[test]
fn what_is_used_is_not_collected() {
    let server = Server::start();
    let shared = (Tarball::new().file("base", noise(1000, 1)), Form::Gzip);
    for (name, seed) in [("a", 2), ("b", 3), ("c", 4)] {
        let own = (Tarball::new().file("own", noise(1000, seed)), Form::Gzip);
        server.push(name, "v1", &TestImage::new([shared.clone(), own]).build());
    }
    let (_dir, store) = store();
    let [a, b, c] = ["a", "b", "c"].map(|name| server.name(&format!("{name}:v1")));
    drop(pull(&store, &a).unwrap());
    drop(pull(&store, &b).unwrap());
    let mut child = child_process(&store, &c, true);
    wait_for("a lease", || store.dir().join("held").exists());
    let here = |name: &str| store.list().unwrap().iter().any(|i| i.references == [name.to_owned()]);
    assert!(matches!(store.remove(&c), Err(ImageError::InUse { .. })));
    // Used last, by the second it was.
    std::thread::sleep(Duration::from_millis(1100));
    drop(store.get(&a).unwrap());
    let report = store.gc(Some(3500)).unwrap();
    assert_eq!((report.removed_images.len(), report.kept_bytes, report.in_use), (1, 3000, 1));
    assert!(here(&a) && !here(&b) && here(&c));
    let report = store.gc(Some(0)).unwrap();
    assert_eq!((report.kept_bytes, report.removed_layers), (2000, 1), "{report:?}");
    let held = store.get(&c).unwrap().unwrap();
    assert_eq!(merged(&held).len(), 2);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(store.gc(Some(0)).unwrap().removed_images.len(), 0, "this process has one");
    drop(held);
    assert_eq!(store.remove(&c).unwrap().removed_layers, 2);
    assert!(store.list().unwrap().is_empty());
    assert!(matches!(store.remove(&c), Err(ImageError::Unknown { .. })));
}
