use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use patchwright_core::TaskInstance;
use proptest::prelude::*;
use serde_json::json;

use super::{read_task, write_task};
use crate::import::{Format, TaskReader};

fn instance() -> TaskInstance {
    serde_json::from_value(json!({
        "instance_id": "org__r-1", "repo": "org/r", "base_commit": "abc",
        "patch": "--- a/m.py\n+++ b/m.py\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n",
        "test_patch": "--- /dev/null\n+++ b/test_m.py\n@@ -0,0 +1,8 @@\n+import unittest\n+from m import f\n+\n+class T(unittest.TestCase):\n+    def test_two(self):\n+        self.assertEqual(f(), 2)\n+    def test_int(self):\n+        self.assertIsInstance(f(), int)\n",
        "problem_statement": "`f` returns 1.\n", "version": "1.0", "created_at": "2025-05-01",
        "FAIL_TO_PASS": ["test_m.T.test_two"], "PASS_TO_PASS": ["test_m.T.test_int"],
        "install_config": {"test_cmd": "python3 -m unittest", "log_parser": "unittest", "python": "3.9"},
        "meta": {"is_lite": true}, "license_name": null, "docker_image": "img:1"
    }))
    .unwrap()
}

fn put(dir: &Path, path: &str, bytes: impl AsRef<[u8]>) {
    let path = dir.join(path);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// A directory as others make them.
fn foreign(dir: &Path) {
    put(dir, "instruction.md", "Make it work.\n");
    put(
        dir,
        "task.toml",
        "version = \"1.0\"\n\n[metadata]\nauthor_name = \"A\"\ndifficulty = \"hard\" # really\n\n\
         [verifier]\ntimeout_sec = 120.0\n\n[environment]\ndocker_image = \"org/img:2\"\n",
    );
    put(dir, "environment/Dockerfile", "FROM debian\n");
    put(dir, "environment/blob.bin", [0xff, 0x00, 0xfe]);
    put(dir, "tests/test.sh", "#!/bin/bash\necho 1 > /logs/verifier/reward.txt\n");
    put(dir, "solution/solve.sh", "#!/bin/bash\ntrue\n");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(dir.join("tests/test.sh"), executable).unwrap();
}

fn same(a: &Path, b: &Path) {
    let diff = Command::new("diff").arg("-r").args([a, b]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

#[test]
fn rows_survive_as_directories() {
    let dir = tempfile::tempdir().unwrap();
    let mut embedded = instance();
    embedded.extra.clear();
    embedded.instance_id = "../odd id".to_owned();
    embedded.files.insert("pkg/m.py".into(), "x = 1\n".into());
    for instance in [instance(), embedded, TaskInstance { test_patch: String::new(), ..instance() }]
    {
        let out = dir.path().join("a");
        let task = write_task(&out, &instance).unwrap();
        assert_eq!(task.parent(), Some(out.as_path()));
        assert_eq!(read_task(&task).unwrap(), instance);
        assert!(write_task(&out, &instance).is_err(), "nothing is written over");
        std::fs::remove_dir_all(&out).unwrap();
    }
}

#[test]
fn directories_survive_as_rows() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("in/some-task");
    foreign(&first);
    let row = read_task(&first).unwrap();
    assert_eq!((row.instance_id.as_str(), row.repo.as_str()), ("some-task", "harbor:some-task"));
    assert_eq!(row.problem_statement, "Make it work.\n");
    assert_eq!(row.image(), Some("org/img:2"));
    assert_eq!(row.install_config.log_parser, "harbor");
    let second = write_task(&dir.path().join("out"), &row).unwrap();
    same(&first, &second);
    let mode = |path: &str| std::fs::metadata(second.join(path)).unwrap().permissions().mode();
    assert_eq!((mode("tests/test.sh") & 0o111, mode("task.toml") & 0o111), (0o111, 0));

    // What we add to such a row goes along, and comes back.
    let changed = TaskInstance { fail_to_pass: vec!["t".into()], ..row };
    let third = write_task(&dir.path().join("changed"), &changed).unwrap();
    assert!(third.join("tests/patchwright.json").exists());
    let back = read_task(&third).unwrap();
    assert_eq!(back, changed);
}

#[test]
fn directories_of_rows_that_were_edited_keep_the_edits() {
    let dir = tempfile::tempdir().unwrap();
    let task = write_task(dir.path(), &instance()).unwrap();
    put(&task, "instruction.md", "Clearer.\n");
    put(&task, "environment/Dockerfile", "FROM other\n");
    let row = read_task(&task).unwrap();
    assert_eq!(row.problem_statement, "Clearer.\n");
    assert_eq!(row.fail_to_pass, instance().fail_to_pass);
    let again = write_task(&dir.path().join("again"), &row).unwrap();
    assert_eq!(
        std::fs::read_to_string(again.join("environment/Dockerfile")).unwrap(),
        "FROM other\n"
    );
    assert_eq!(read_task(&again).unwrap(), row);
}

#[test]
fn nothing_hidden_is_where_the_agent_sees_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut row = instance();
    row.files.insert("m.py".into(), "def f():\n    return 1\n".into());
    let task = write_task(dir.path(), &row).unwrap();
    for seen in ["instruction.md", "task.toml", "environment"] {
        let grep = Command::new("grep")
            .args(["-rE", "test_two|return 2|assertEqual"])
            .arg(task.join(seen))
            .output()
            .unwrap();
        assert!(grep.stdout.is_empty(), "{seen}: {}", String::from_utf8_lossy(&grep.stdout));
    }
}

/// The scripts that are written are run: the reward is 0 before the solution and 1 after it.
#[test]
fn written_tests_give_the_reward() {
    let dir = tempfile::tempdir().unwrap();
    let task = write_task(dir.path(), &instance()).unwrap();
    let repo = dir.path().join("repo");
    put(&repo, "m.py", "def f():\n    return 1\n");
    put(&repo, "test_m.py", "an agent's own file of this name\n");
    let logs = dir.path().join("logs");
    let run = |script: &str| {
        let mut command = Command::new("bash");
        command.arg(task.join(script)).env("REPO_DIR", &repo).env("VERIFIER_DIR", &logs);
        command.env("GIT_CEILING_DIRECTORIES", dir.path()).output().unwrap()
    };
    let reward = || std::fs::read_to_string(logs.join("reward.txt")).unwrap();
    run("tests/test.sh");
    let log = std::fs::read_to_string(logs.join("tests.log")).unwrap();
    assert_eq!(reward(), "0\n", "{log}");
    std::fs::remove_file(repo.join("test_m.py")).unwrap();
    let solved = run("solution/solve.sh");
    assert!(solved.status.success(), "{}", String::from_utf8_lossy(&solved.stderr));
    run("tests/test.sh");
    let log = std::fs::read_to_string(logs.join("tests.log")).unwrap();
    assert_eq!(reward(), "1\n", "{log}");
}

#[test]
fn directories_that_are_wrong_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let check = |change: &dyn Fn(&Path), expected: &str| {
        let task = dir.path().join("t");
        foreign(&task);
        change(&task);
        let error = read_task(&task).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        std::fs::remove_dir_all(&task).unwrap();
    };
    check(&|t| std::fs::remove_file(t.join("instruction.md")).unwrap(), "instruction.md: missing");
    check(&|t| put(t, "task.toml", "[verifier\n"), "task.toml: ");
    check(&|t| put(t, "instruction.md", [0xff]), "instruction.md: not UTF-8");
    check(&|t| put(t, "tests/patchwright.json", "{}"), "tests/patchwright.json: missing field");
    let link = |t: &Path| std::os::unix::fs::symlink("/etc/passwd", t.join("tests/x")).unwrap();
    check(&link, "tests/x: it is a link");
    check(
        &|t| put(t, "tests/big", vec![0; super::MAX_FILE_BYTES as usize + 1]),
        "tests/big: a file",
    );

    let mut row = instance();
    row.files.insert("../../escape".into(), "x".into());
    let error = write_task(&dir.path().join("out"), &row).unwrap_err().to_string();
    assert!(error.contains("no path below the task's directory"), "{error}");
}

#[test]
fn directories_of_tasks_are_found() {
    let dir = tempfile::tempdir().unwrap();
    foreign(&dir.path().join("set/b"));
    foreign(&dir.path().join("set/a"));
    foreign(&dir.path().join("set/broken"));
    std::fs::remove_file(dir.path().join("set/broken/instruction.md")).unwrap();
    let reader = TaskReader::open(&[dir.path().to_owned()], Format::Auto).unwrap();
    let items: Vec<_> = reader.collect();
    assert_eq!(items[0].as_ref().unwrap().instance_id, "a");
    assert_eq!(items[1].as_ref().unwrap().instance_id, "b");
    let bad = items[2].as_ref().unwrap_err().to_string();
    assert!(bad.ends_with("set/broken: instruction.md: missing"), "{bad}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    /// Whatever the files of a task hold, it is read or refused, and what is read survives.
    #[test]
    fn no_directory_stops_us(
        instruction in "\\PC{0,20}",
        toml in "(\\[task\\]\n|\\[metadata\\]\n|name = \"a/b\"\n|repo = 7\n|instance_id = \"..\"\n|\\PC){0,5}",
        row in prop::collection::vec(any::<u8>(), 0..8),
        config in "(\\{|\\}|\"instance_id\":\"x\"|,|\\PC){0,6}",
    ) {
        let dir = tempfile::tempdir().unwrap();
        let task = dir.path().join("t");
        put(&task, "instruction.md", instruction);
        put(&task, "task.toml", toml);
        put(&task, "tests/config.json", config);
        if row.len() == 7 {
            put(&task, "tests/patchwright.json", row);
        }
        if let Ok(row) = read_task(&task) {
            let again = write_task(&dir.path().join("out"), &row).unwrap();
            prop_assert_eq!(read_task(&again).unwrap(), row);
        }
    }
}
