//! What holds for every file of the repository.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Longest source file, in lines, tests not counted.
const MAX_LINES: usize = 500;

/// The files that git knows, below the root.
fn tracked() -> Vec<PathBuf> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "-z"])
        .current_dir(xtask::root())
        .output()
        .expect("git runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let names = String::from_utf8(output.stdout).expect("names are UTF-8");
    let files = names.split('\0').filter(|name| !name.is_empty()).map(PathBuf::from);
    files.filter(|path| xtask::root().join(path).is_file()).collect()
}

fn text(path: &Path) -> Option<String> {
    std::fs::read(xtask::root().join(path)).ok().and_then(|bytes| String::from_utf8(bytes).ok())
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    name == "tests"
        || name.ends_with("_tests")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// Lines before the module of tests at the end.
fn num_lines(text: &str) -> usize {
    let lines: Vec<&str> = text.lines().collect();
    let tests = lines.windows(2).position(|two| {
        two[0].trim() == "#[cfg(test)]" && two[1].starts_with("mod ") && two[1].ends_with('{')
    });
    tests.unwrap_or(lines.len())
}

#[test]
fn source_files_are_short() {
    let files: Vec<PathBuf> = tracked()
        .into_iter()
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .filter(|path| !is_test(path))
        .collect();
    assert!(files.len() > 50, "git knows the sources");
    let long: Vec<String> = files
        .iter()
        .filter_map(|path| {
            let lines = num_lines(&text(path)?);
            (lines > MAX_LINES).then(|| format!("{} has {lines} lines", path.display()))
        })
        .collect();
    assert_eq!(long, Vec::<String>::new(), "split them where a reader would");
}

#[test]
fn lines_of_tests_are_not_counted() {
    assert_eq!(num_lines("a\nb\n#[cfg(test)]\nmod tests {\n    x\n}\n"), 2);
    assert_eq!(num_lines("a\n#[cfg(test)]\nmod tests;\nb\n"), 4);
}

/// Paths of the machine that a file was written on: the checkout itself, and a home directory with
/// a user's name in it. Sandboxes have a home of their own.
fn machine_paths(text: &str, root: &str) -> Vec<String> {
    let sandbox_home = "/home/agent";
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.replace(sandbox_home, "");
        let named = ["/home/", "/Users/", concat!("/wo", "rk/")].iter().any(|prefix| {
            // `/home/u` and the like are made-up users of tests.
            line.match_indices(prefix).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let user = line[at + prefix.len()..].split('/').next().unwrap_or_default();
                before.is_none_or(|c| !c.is_alphanumeric() && !"./-_}".contains(c))
                    && user.len() > 1
                    && user.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
            })
        });
        if named || line.contains(root) {
            found.push(format!("line {}", number + 1));
        }
    }
    found
}

#[test]
fn no_path_of_a_machine() {
    let root = xtask::root().display().to_string();
    let found: Vec<String> = tracked()
        .iter()
        .filter(|path| !path.ends_with("xtask/tests/files.rs"))
        .flat_map(|path| {
            let text = text(path).unwrap_or_default();
            let places = machine_paths(&text, &root);
            places.into_iter().map(|place| format!("{}: {place}", path.display()))
        })
        .collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn paths_of_a_machine_are_found() {
    let root = "/srv/checkout";
    for bad in
        ["see /home/maria/x", "\"/Users/max/y\"", "at /srv/checkout/a", concat!("/wo", "rk/main")]
    {
        assert_eq!(machine_paths(bad, root).len(), 1, "{bad}");
    }
    for good in ["/home/agent/x", "/home/u/venv", "target/work/x", "HOME=/home/$USER/x", "a/home/b"]
    {
        assert!(machine_paths(good, root).is_empty(), "{good}");
    }
}
