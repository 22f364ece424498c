use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::all;
use crate::validate::EmbeddedRepo;

/// Lines that `check.py` prints about the katas, under a seed of Python's string hashing.
fn check(katas: &[EmbeddedRepo], hash_seed: &str) -> Vec<String> {
    let mut child = Command::new("python3")
        .args(["-B", "-c", include_str!("check.py")])
        .env("PYTHONHASHSEED", hash_seed)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the tests of the katas need python3 in PATH");
    let input = serde_json::to_vec(katas).expect("katas are JSON");
    child.stdin.take().expect("piped").write_all(&input).expect("check.py reads its input");
    let output = child.wait_with_output().expect("check.py ends");
    assert!(output.status.success(), "check.py failed: {}", output.status);
    String::from_utf8(output.stdout).expect("UTF-8").lines().map(str::to_owned).collect()
}

#[test]
fn every_example_holds_whatever_the_hash_seed() {
    let katas = all().expect("embedded katas are readable");
    let num_examples: usize = katas.iter().map(|kata| kata.examples.len()).sum();
    for seed in ["0", "1"] {
        assert_eq!(check(&katas, seed), [format!("checked {num_examples}")]);
    }
}

#[test]
fn the_check_finds_wrong_values_and_untested_functions() {
    let mut kata = all().expect("embedded katas are readable").swap_remove(0);
    kata.examples.truncate(2);
    kata.examples[0].expected.push('0');
    let call = format!("{}.{}(", kata.examples[0].module, kata.examples[0].function);
    let lines = check(std::slice::from_ref(&kata), "0");
    assert!(lines[0].starts_with(&format!("{}: {call}", kata.name)), "{lines:?}");
    assert!(lines[1..].iter().any(|line| line.contains("fewer than two examples")), "{lines:?}");
    assert_eq!(lines.last().map(String::as_str), Some("checked 2"));
}

#[test]
fn the_list_is_sorted_and_holds_every_directory_and_module() {
    let listed: Vec<(String, Vec<String>)> = all()
        .expect("embedded katas are readable")
        .into_iter()
        .map(|kata| (kata.name, kata.files.into_keys().collect()))
        .collect();
    let mut on_disk = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("katas");
    for entry in std::fs::read_dir(root).expect("katas/ lies in the crate") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            // Sorted by a set; Python's own droppings are no files of the kata.
            let files: BTreeSet<String> = std::fs::read_dir(&path)
                .expect("readable")
                .map(|file| file.expect("readable").file_name().to_string_lossy().into_owned())
                .filter(|name| name != "examples.json" && name != "__pycache__")
                .collect();
            let name = path.file_name().expect("named").to_string_lossy().into_owned();
            on_disk.push((name, files.into_iter().collect()));
        }
    }
    on_disk.sort();
    assert_eq!(listed, on_disk);
}

#[test]
fn katas_are_many_small_and_without_repeated_examples() {
    let katas = all().expect("embedded katas are readable");
    assert!(katas.len() >= 48, "only {} katas", katas.len());
    let names: BTreeSet<&String> = katas.iter().map(|kata| &kata.name).collect();
    assert_eq!(names.len(), katas.len());
    for kata in &katas {
        let modules: Vec<&String> =
            kata.files.iter().filter(|(path, _)| *path != "README.md").map(|(_, s)| s).collect();
        assert!((1..=3).contains(&modules.len()), "{}: {} modules", kata.name, modules.len());
        let lines: usize = modules.iter().map(|source| source.lines().count()).sum();
        assert!((20..=64).contains(&lines), "{}: {lines} lines", kata.name);
        assert!(kata.examples.len() >= 6, "{}: {} examples", kata.name, kata.examples.len());
        let calls: BTreeSet<_> =
            kata.examples.iter().map(|e| (&e.module, &e.function, &e.args)).collect();
        assert_eq!(calls.len(), kata.examples.len(), "{}: an example twice", kata.name);
    }
}
