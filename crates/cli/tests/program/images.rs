//! Images: what is loaded is listed, run and removed; a row that names one runs from it.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::support::{patchwright, shown};

fn python(script: &str) -> String {
    let output = Command::new("python3").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The host's python3 and shell, with what they load, as a tree below `root`.
fn system(root: &Path) {
    let script = "import sys, sysconfig; print(sysconfig.get_paths()['stdlib']); \
                  print(sys.executable); print('%d.%d' % sys.version_info[:2])";
    let text = python(script);
    let [stdlib, program, version] = text.lines().collect::<Vec<_>>()[..] else { panic!("{text}") };
    let mut files: Vec<PathBuf> = Vec::new();
    for name in ["bash", "sh", "cat", "ls", "git"] {
        let found = ["/bin", "/usr/bin"].map(|dir| Path::new(dir).join(name));
        files.extend(found.into_iter().find(|path| path.exists()));
    }
    let program = std::fs::canonicalize(program).unwrap();
    files.push(program.clone());
    let mut libraries = files.clone();
    for entry in std::fs::read_dir(Path::new(stdlib).join("lib-dynload")).unwrap() {
        libraries.push(entry.unwrap().path());
    }
    let listed = Command::new("ldd").args(&libraries).output().unwrap();
    for word in String::from_utf8_lossy(&listed.stdout).split_whitespace() {
        if word.starts_with('/') && !word.ends_with(':') {
            files.push(word.into());
        }
    }
    for file in files {
        let to = root.join(file.strip_prefix("/").unwrap());
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(&file, &to).unwrap();
    }
    // Where conda has it in images of SWE-bench; only with it activated is there a python3.
    let bin = root.join("opt/miniconda3/envs/testbed/bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::os::unix::fs::symlink(&program, bin.join("python3")).unwrap();
    let copied = Command::new("cp").arg("-r").arg("--parents").arg(stdlib).arg(root).status();
    assert!(copied.unwrap().success());
    let copied = root.join(stdlib.strip_prefix('/').unwrap());
    for unused in ["test", "site-packages", "dist-packages", "idlelib", "ensurepip"] {
        let _ = std::fs::remove_dir_all(copied.join(unused));
    }
    let usual = root.join(format!("usr/lib/python{version}"));
    assert!(usual.exists() || copied.exists());
}

fn tar(dir: &Path, out: &Path) {
    let status = Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(out).arg(".").status();
    assert!(status.unwrap().success());
}

/// What `docker save` writes of an image with two layers: the system, and the repository.
fn archive(dir: &Path) {
    let (base, top, save) = (dir.join("base"), dir.join("top"), dir.join("save"));
    system(&base);
    for (path, text) in [
        ("testbed/calc.py", "def add(a, b):\n    return a - b\n"),
        ("testbed/test_calc.py", "import unittest\n"),
        ("testbed/secret.txt", "to be removed\n"),
    ] {
        let path = top.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    std::fs::create_dir_all(&save).unwrap();
    tar(&base, &save.join("base.tar"));
    tar(&top, &save.join("top.tar"));
    let last = dir.join("last");
    std::fs::create_dir_all(last.join("testbed")).unwrap();
    std::fs::write(last.join("testbed/.wh.secret.txt"), "").unwrap();
    tar(&last, &save.join("last.tar"));
    let digest = |name: &str| {
        let output = Command::new("sha256sum").arg(save.join(name)).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        format!("sha256:{}", text.split(' ').next().unwrap())
    };
    let layers = ["base.tar", "top.tar", "last.tar"];
    let config = json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Env": ["PATH=/usr/bin:/bin", "FROM_IMAGE=yes"], "WorkingDir": "/testbed"},
        "rootfs": {"type": "layers", "diff_ids": layers.map(digest)},
    });
    std::fs::write(save.join("config.json"), config.to_string()).unwrap();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["local/testbed:v1"],
        "Layers": layers}]);
    std::fs::write(save.join("manifest.json"), manifest.to_string()).unwrap();
    tar(&save, &dir.join("image.tar"));
}

const TEST_PATCH: &str = "diff --git a/test_calc.py b/test_calc.py\n\
    --- a/test_calc.py\n+++ b/test_calc.py\n@@ -1 +1,8 @@\n import unittest\n+\n+import calc\n+\n+\n\
    +class Calc(unittest.TestCase):\n+    def test_add(self):\n\
    +        self.assertEqual(calc.add(2, 3), 5)\n";

#[test]
fn a_row_that_names_an_image_runs_from_it() {
    let dir = tempfile::tempdir().unwrap();
    archive(dir.path());
    let run = |args: &[&str]| patchwright(dir.path(), args);
    let loaded = run(&["images", "load", "image.tar"]);
    assert_eq!(loaded.status.code(), Some(0), "{}", shown(&loaded));
    let listed = run(&["images", "list", "--json"]);
    let list: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(list["images"][0]["references"][0], "docker.io/local/testbed:v1");

    let row = |id: &str| {
        json!({"instance_id": id, "repo": "org/not-cloned", "base_commit": "0123abc",
            "image_name": "local/testbed:v1", "problem_statement": "add subtracts",
            "patch": "", "test_patch": TEST_PATCH, "FAIL_TO_PASS": ["test_calc.Calc.test_add"],
            "PASS_TO_PASS": [], "install_config": {"log_parser": "unittest"}})
        .to_string()
    };
    let rows = format!("{}\n{}\n", row("fixed"), row("idle"));
    std::fs::write(dir.path().join("t.jsonl"), rows).unwrap();
    let command = |text: &str| format!("```command\n{text}\n```");
    let fix = "test \"$FROM_IMAGE\" = yes && test ! -e secret.txt && test \"$PWD\" = /testbed && \
               printf 'def add(a, b):\\n    return a + b\\n' > calc.py && python3 -c 'import calc'";
    let script = json!({"fixed": [command(fix), command("submit")], "idle": [command("submit")]});
    std::fs::write(dir.path().join("s.json"), script.to_string()).unwrap();
    let output = run(&["rollout", "--tasks", "t.jsonl", "--script", "s.json", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", shown(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0]["solved"], true, "{text}");
    assert_eq!(lines[1]["solved"], false, "{text}");

    let removed = run(&["images", "rm", "local/testbed:v1"]);
    assert_eq!(removed.status.code(), Some(0), "{}", shown(&removed));
    let none = run(&["images", "list", "--json"]);
    assert_eq!(serde_json::from_slice::<Value>(&none.stdout).unwrap()["images"], json!([]));
}

#[test]
fn mistakes_are_told_in_a_line() {
    let dir = tempfile::tempdir().unwrap();
    for (args, code, text) in [
        (vec!["images", "pull", "Not An Image"], 2, "no image reference"),
        (vec!["images", "load", "none.tar"], 2, "none.tar"),
        (vec!["images", "rm", "debian:12"], 2, "no such image here"),
        (vec!["images", "gc", "--keep-bytes", "many"], 2, "20G"),
        (vec!["images", "pull", "a", "--platform", "x"], 2, "OS/ARCH"),
    ] {
        let mut args = args;
        args.extend(["--store", "store"]);
        let output = shown(&patchwright(dir.path(), &args));
        assert!(output.starts_with(&format!("exit code {code}")), "{args:?}: {output}");
        assert!(output.contains(text), "{args:?}: {output}");
    }
}
