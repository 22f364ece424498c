//! The floors of the architecture, checked against what cargo knows.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Who may import whom, of ours. Tests may import more (dev-dependencies are not looked at).
const FLOORS: [(&str, &[&str]); 14] = [
    ("patchwright-core", &[]),
    ("patchwright-algo", &["patchwright-core"]),
    ("patchwright-tasks", &["patchwright-core"]),
    ("patchwright-sandbox", &["patchwright-core"]),
    ("patchwright-images", &["patchwright-core"]),
    ("patchwright-agent", &["patchwright-core"]),
    ("patchwright-engine", &["patchwright-core"]),
    ("patchwright-formats", &["patchwright-core"]),
    // Beside core: messages of a foreign API, which its client and our server share.
    ("patchwright-wire", &[]),
    ("patchwright-remote", &["patchwright-core", "patchwright-wire"]),
    (
        "patchwright-serve",
        &["patchwright-core", "patchwright-wire", "patchwright-algo", "patchwright-agent"],
    ),
    (
        "patchwright-train",
        &[
            "patchwright-core",
            "patchwright-algo",
            "patchwright-tasks",
            "patchwright-sandbox",
            "patchwright-images",
            "patchwright-agent",
            "patchwright-engine",
            "patchwright-remote",
            "patchwright-serve",
        ],
    ),
    (
        "patchwright-cli",
        &[
            "patchwright-core",
            "patchwright-algo",
            "patchwright-tasks",
            "patchwright-sandbox",
            "patchwright-images",
            "patchwright-agent",
            "patchwright-engine",
            "patchwright-remote",
            "patchwright-serve",
            "patchwright-formats",
            "patchwright-train",
        ],
    ),
    // Stands aside: it makes the references of these two.
    ("xtask", &["patchwright-cli", "patchwright-train"]),
];

/// Our packages and the ones of ours that each imports, outside of tests.
fn imports() -> BTreeMap<String, BTreeSet<String>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(xtask::root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let names: BTreeSet<&str> =
        packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    packages
        .iter()
        .map(|package| {
            let ours = package["dependencies"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|dependency| dependency["kind"] != "dev")
                .map(|dependency| dependency["name"].as_str().unwrap())
                .filter(|name| names.contains(name));
            (package["name"].as_str().unwrap().to_owned(), ours.map(str::to_owned).collect())
        })
        .collect()
}

/// What breaks the floors.
fn violations(imports: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let floors: BTreeMap<&str, &[&str]> = FLOORS.into_iter().collect();
    let mut found = Vec::new();
    for (name, imported) in imports {
        match floors.get(name.as_str()) {
            None => found.push(format!("{name} has no floor: give it one here")),
            Some(allowed) => found.extend(
                imported
                    .iter()
                    .filter(|import| !allowed.contains(&import.as_str()))
                    .map(|import| format!("{name} must not import {import}")),
            ),
        }
    }
    found
}

#[test]
fn no_room_imports_its_neighbours() {
    let imports = imports();
    assert!(imports.len() >= FLOORS.len(), "cargo sees all packages: {imports:?}");
    assert_eq!(violations(&imports), Vec::<String>::new());
}

/// The check can fail.
#[test]
fn a_wrong_import_is_found() {
    let wrong = [
        ("patchwright-agent", "patchwright-sandbox"),
        ("patchwright-core", "patchwright-algo"),
        ("patchwright-train", "patchwright-cli"),
    ];
    for (name, import) in wrong {
        let imports = BTreeMap::from([(name.to_owned(), BTreeSet::from([import.to_owned()]))]);
        assert_eq!(violations(&imports), [format!("{name} must not import {import}")]);
    }
    let unknown = BTreeMap::from([("patchwright-new".to_owned(), BTreeSet::new())]);
    assert_eq!(violations(&unknown).len(), 1);
}
