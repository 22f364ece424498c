//! Snapshots: written, read back by another process's provider, and refused when they are bad.

use std::fs;
use std::path::Path;

use patchwright_core::{RepoSource, SandboxError, SandboxProvider, SandboxSpec};
use patchwright_sandbox::{NativeOptions, NativeSandboxes};
use sha2::{Digest, Sha256};

use crate::files::{brief, host_repository};
use crate::forks::{LOOK, MORE, WORK};
use crate::layers::{image, programs};
use crate::support::{directory, files, is_root, provider, simple, spec, stdout};

fn check_round_trip(spec: &SandboxSpec) {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    let mut sandbox = provider().create(spec).unwrap();
    stdout(&mut *sandbox, WORK);
    if !is_root() {
        // Where the kernel does not keep names of one file together over a fork.
        stdout(&mut *sandbox, "rm -f d/hard");
    }
    sandbox.snapshot(&first).unwrap();
    let before = (stdout(&mut *sandbox, LOOK), sandbox.diff().unwrap());
    // Written in several layers, over deletions in others.
    let mut copy = sandbox.fork().unwrap();
    stdout(&mut *copy, MORE);
    let after = (stdout(&mut *copy, LOOK), copy.diff().unwrap());
    copy.snapshot(&second).unwrap();
    // It goes on after it was taken, and the file is not written again.
    stdout(&mut *copy, "rm -rf d; echo later > later");
    drop((sandbox, copy));

    let other = NativeSandboxes::new(NativeOptions::default()).unwrap();
    let mut restored = other.restore(spec, &first).unwrap();
    assert_eq!((stdout(&mut *restored, LOOK), restored.diff().unwrap()), before);
    let mut restored = other.restore(spec, &second).unwrap();
    assert_eq!((stdout(&mut *restored, LOOK), restored.diff().unwrap()), after);
    // What comes back is a sandbox like any other.
    let mut copy = restored.fork().unwrap();
    stdout(&mut *copy, "echo more > more");
    copy.snapshot(&first).unwrap();
    let mut last = provider().restore(spec, &first).unwrap();
    assert_eq!(stdout(&mut *last, "cat more a.txt; ls /tmp/t"), "more\nback\nu\n");
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
}

#[test]
fn snapshots_of_files_come_back() {
    check_round_trip(&spec(files(&[("a.txt", "one\n")])));
}

#[test]
fn snapshots_over_a_directory_come_back() {
    let repository = host_repository();
    check_round_trip(&spec(RepoSource::Directory(repository.path().to_owned())));
}

#[test]
fn snapshots_of_an_image_come_back() {
    let dir = tempfile::tempdir().unwrap();
    crate::isolation::open_to_all(dir.path());
    programs(dir.path());
    fs::create_dir_all(dir.path().join("testbed/gone")).unwrap();
    fs::create_dir_all(dir.path().join("root")).unwrap();
    check_round_trip(&image(vec![dir.path().to_owned()], RepoSource::InRoot));
}

fn refusal(spec: &SandboxSpec, from: &Path) -> String {
    match provider().restore(spec, from) {
        Ok(_) => panic!("it was accepted"),
        Err(SandboxError::Path { path, reason }) => {
            assert_eq!(path, from.display().to_string());
            reason
        }
        Err(error) => panic!("{error}"),
    }
}

/// The header of a snapshot with other frames, summed up as its writer would.
fn forged(good: &[u8], frames: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = good[..45].to_vec();
    for (kind, body) in frames.iter().chain([&(17, Vec::new())]) {
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.push(*kind);
        bytes.extend_from_slice(body);
    }
    let sum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&sum);
    bytes
}

fn symlink_frame(path: &str, target: &str) -> (u8, Vec<u8>) {
    let mut body = Vec::new();
    for text in [path, target] {
        body.extend_from_slice(&(text.len() as u32).to_le_bytes());
        body.extend_from_slice(text.as_bytes());
    }
    body.extend_from_slice(&[0; 12]);
    (13, body)
}

#[test]
fn a_snapshot_that_is_damaged_or_hostile_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let (at, bad) = (dir.path().join("good"), dir.path().join("bad"));
    let own = spec(files(&[("a.txt", "one\n")]));
    let mut sandbox = provider().create(&own).unwrap();
    stdout(&mut *sandbox, "echo two > b.txt");
    sandbox.snapshot(&at).unwrap();
    let good = fs::read(&at).unwrap();
    assert!(provider().restore(&own, &at).is_ok());

    for n in [0, 7, 11, 44, 45, 60, good.len() / 2, good.len() - 1] {
        fs::write(&bad, &good[..n]).unwrap();
        let why = refusal(&own, &bad);
        assert!(why.contains("cut short") || why.contains("damaged"), "{n}: {why}");
        let mut changed = good.clone();
        changed[n] ^= 1;
        fs::write(&bad, &changed).unwrap();
        refusal(&own, &bad);
    }
    for (frames, part) in [
        (vec![symlink_frame("own/repo", "/")], "place of a directory"),
        (vec![symlink_frame("own", "/")], "place of a directory"),
        (vec![symlink_frame("work/own/x", "/")], "outside"),
        (vec![symlink_frame("own/../x", "/")], ".."),
        (vec![symlink_frame("/own/x", "/")], "absolute"),
        (vec![(99, Vec::new())], "unknown kind"),
        (vec![(42, vec![1])], ""),
        (vec![(20, vec![1])], "path"),
        (vec![(20, vec![1, 0, 0, 0, b'x'])], "no part of a tree"),
    ] {
        fs::write(&bad, forged(&good, &frames)).unwrap();
        let why = refusal(&own, &bad);
        assert!(why.contains(part) || part == "path", "{why}");
    }
    // Without the repository there is nothing to mount at its place.
    fs::write(&bad, forged(&good, &[])).unwrap();
    assert!(matches!(provider().restore(&own, &bad).err(), Some(SandboxError::Path { .. })));
    // A length that cannot be, in a frame that is summed.
    let mut bytes = good[..45].to_vec();
    bytes.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 11]);
    bytes.extend_from_slice(&Sha256::digest(&bytes));
    fs::write(&bad, bytes).unwrap();
    assert!(refusal(&own, &bad).contains("longer"));

    assert!(refusal(&own, dir.path()).contains("regular"));
    assert!(refusal(&own, Path::new("/dev/zero")).contains("regular"));
    refusal(&own, &dir.path().join("none"));
    let mut version = good.clone();
    version[8] = 9;
    fs::write(&bad, version).unwrap();
    assert!(refusal(&own, &bad).contains("version"));
    fs::File::create(&bad).unwrap().set_len(1 << 40).unwrap();
    assert!(refusal(&own, &bad).contains("disk limit"));
}

#[test]
fn a_snapshot_goes_over_the_files_it_was_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("snapshot");
    let mut sandbox = simple();
    stdout(&mut *sandbox, "echo two >> a.txt");
    sandbox.snapshot(&at).unwrap();
    let other = spec(files(&[("a.txt", "another\n")]));
    assert!(refusal(&other, &at).contains("other files"));
    let repository = host_repository();
    let over = spec(RepoSource::Directory(repository.path().to_owned()));
    assert!(!refusal(&over, &at).is_empty());

    let mut sandbox = directory(repository.path());
    stdout(&mut *sandbox, "echo 2 > changed.py");
    sandbox.snapshot(&at).unwrap();
    // The same repository, checked out elsewhere and later.
    let again = host_repository();
    let elsewhere = spec(RepoSource::Directory(again.path().to_owned()));
    let mut restored = provider().restore(&elsewhere, &at).unwrap();
    assert_eq!(brief(&restored.diff().unwrap()), ["changed.py 1 2"]);
    fs::write(repository.path().join("same.py"), "other\n").unwrap();
    assert!(refusal(&over, &at).contains("other files"));
    // Nowhere to write it.
    let error = sandbox.snapshot(&dir.path().join("none/x")).unwrap_err();
    assert!(matches!(error, SandboxError::Io { .. }), "{error}");
    assert_eq!(stdout(&mut *sandbox, "cat changed.py"), "2\n");
}
