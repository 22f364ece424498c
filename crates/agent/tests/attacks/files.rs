//! Attacks by files, and by what an agent leaves behind: 23, 28 to 32.

use std::time::Duration;

use patchwright_agent::git::base_commit_only;
use patchwright_agent::grade::Defences;
use patchwright_agent::grade::filter::MAX_FILE_BYTES;
use patchwright_agent::sandbox_spec;
use patchwright_core::{
    ExecOutput, ExecRequest, ExecStatus, RepoSource, Sandbox, SandboxLimits, SandboxProvider, patch,
};

use crate::common::{BUGGY, TESTS, WORKDIR, provider};
use crate::world::{fixed, grade_all, grader, patch_to, row, world};

/// Sections of a patch that a diff of text cannot say, that lead out of the tree, or that no
/// source file is like; and why each is left out.
fn sections() -> Vec<(&'static str, String, &'static str)> {
    let new = |path: &str, mode: &str, body: &str| {
        format!(
            "diff --git a/{path} b/{path}\nnew file mode {mode}\n--- /dev/null\n+++ b/{path}\n\
             @@ -0,0 +1 @@\n+{body}\n"
        )
    };
    let huge = patch_to(BUGGY, &[("huge.txt", &"x\n".repeat(MAX_FILE_BYTES / 2 + 1))]);
    vec![
        ("a symbolic link", new("test_sums.py", "120000", "/etc/passwd"), "a symbolic link"),
        ("a link to a folder", new("src", "120000", "/tmp"), "a symbolic link"),
        (
            "a link made of a file",
            "diff --git a/README.md b/README.md\nold mode 100644\nnew mode 120000\n".to_owned(),
            "a symbolic link",
        ),
        ("a submodule", new("vendor", "160000", "Subproject commit 0000"), "a submodule"),
        (
            "a submodule that moves",
            "diff --git a/v b/v\nindex 1111111..2222222 160000\n--- a/v\n+++ b/v\n@@ -1 +1 @@\n\
             -Subproject commit 1\n+Subproject commit 2\n"
                .to_owned(),
            "a submodule",
        ),
        ("a device", new("x", "060000", "x"), "mode"),
        (
            "a binary file",
            "diff --git a/sums.so b/sums.so\nnew file mode 100755\nBinary files /dev/null and \
             b/sums.so differ\n"
                .to_owned(),
            "a binary file",
        ),
        (
            "a binary patch",
            "diff --git a/s.so b/s.so\nnew file mode 100644\nGIT binary patch\nliteral 4\nLcmZQz\n\n"
                .to_owned(),
            "a binary file",
        ),
        ("zeros", new("x.dat", "100644", "a\0b"), "a binary file"),
        ("out of the tree", new("../x", "100644", "x"), ".."),
        ("an absolute path", new("/etc/x", "100644", "x"), "/etc/x"),
        (".git", new(".git/config", "100644", "x"), ".git"),
        ("a git hook", new(".git/hooks/pre-commit", "100755", "x"), ".git"),
        ("git in capitals", new(".GIT/config", "100644", "x"), ".GIT"),
        ("a huge file", huge, "too large"),
        ("compiled code", new("__pycache__/sums.cpython-311.pyc", "100644", "x"), "compiled"),
        ("the hidden tests", new("test_sums.py", "100644", "x = 1"), "hidden tests"),
    ]
}

#[test]
fn attacks_30_and_31_what_a_patch_may_not_hold_is_left_out_and_named() {
    let (task, repo) = world();
    let good = patch_to(&fixed(), &[]);
    let sections = sections();
    let mut rows = Vec::new();
    for (name, section, _) in &sections {
        rows.push(row(&format!("{name}, alone"), section.clone()));
        rows.push(row(&format!("{name}, with the fix"), format!("{section}{good}")));
        rows.push(row(&format!("{name}, after the fix"), format!("{good}{section}")));
    }
    let grades = grade_all(&grader(Defences::default()), &task, &repo, &rows);
    for (grades, (name, _, why)) in grades.chunks(3).zip(&sections) {
        assert!(!grades[0].solved, "{name}: {:?}", grades[0]);
        for grade in grades {
            assert_eq!(grade.dropped.len(), 1, "{name}: {:?}", grade.dropped);
            assert!(grade.dropped[0].contains(why), "{name}: {:?}", grade.dropped);
        }
        assert!(grades[1].solved && grades[2].solved, "{name}: {:?}", grades[1]);
    }
    let many: Vec<(String, String)> =
        (0..5_001).map(|i| (format!("f{i}"), "x\n".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(p, t)| (p.as_str(), t.as_str())).collect();
    let grade =
        grader(Defences::default()).grade(&task, &repo, &patch_to(&fixed(), &many)).unwrap();
    assert!(!grade.solved && grade.detail.contains("5002 files"), "{}", grade.detail);
}

fn agent() -> Box<dyn Sandbox> {
    let (task, repo) = world();
    let spec = sandbox_spec(&task, &repo, WORKDIR, SandboxLimits::default());
    provider().create(&spec).expect("a sandbox")
}

fn sh(sandbox: &mut dyn Sandbox, script: &str) -> ExecOutput {
    let request = ExecRequest::shell(script, WORKDIR, Duration::from_secs(20));
    sandbox.exec(&request).expect("the sandbox lives")
}

fn text(output: &ExecOutput) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What a grader would see that ran the tests where the agent worked, and believed the exit code.
fn believed_in_place(sandbox: &mut dyn Sandbox) -> bool {
    sandbox.write("/testbed/test_sums.py", TESTS.as_bytes()).expect("the tests");
    sh(sandbox, "python3 -m unittest -q test_sums").status == ExecStatus::Exited(0)
}

#[test]
fn attacks_25_28_29_what_is_left_in_the_agents_sandbox_is_not_graded() {
    let (task, repo) = world();
    for (name, script) in [
        (
            "28: a daemon that rewrites the tests",
            "(setsid sh -c 'while sleep 0.05; do [ -f test_sums.py ] && echo > test_sums.py; done' \
             >/dev/null 2>&1 &)",
        ),
        (
            "29: compiled code with the time stamp of the source",
            "sed 's/result = 1/result = 0/' sums.py > x.py && touch -r sums.py x.py && \
             python3 -c \"import py_compile, importlib.util as u\nd=open('x.py').read()\n\
             c=compile(d,'sums.py','exec')\nimport marshal,os,struct\nos.makedirs('__pycache__')\n\
             s=os.stat('sums.py')\nopen(u.cache_from_source('sums.py'),'wb').write(\
             u.MAGIC_NUMBER+struct.pack('<III',0,int(s.st_mtime),s.st_size)+marshal.dumps(c))\" \
             && rm x.py",
        ),
        (
            "25: a python3 of its own",
            "mkdir -p ~/bin && printf '#!/bin/sh\\nexit 0\\n' > ~/bin/python3",
        ),
        (
            "29: an installed copy",
            "mkdir -p ~/.local/lib/python3.11/site-packages && \
          sed 's/result = 1/result = 0/' sums.py > ~/.local/lib/python3.11/site-packages/sums.py",
        ),
        (
            "25: startup files",
            "echo 'import os; os._exit(0)' > ~/.pythonrc; echo 'exit 0' > ~/.bashrc",
        ),
    ] {
        let mut sandbox = agent();
        let output = sh(sandbox.as_mut(), script);
        assert_eq!(output.status, ExecStatus::Exited(0), "{name}: {output:?}");
        let patch = patch::render(&sandbox.diff().expect("a diff"));
        if name.contains("time stamp") {
            // The layer off: where the agent worked, its compiled code runs.
            assert!(believed_in_place(sandbox.as_mut()), "{name}: no attack at all");
        }
        sandbox.destroy().expect("destroyed");
        let grade = grader(Defences::default()).grade(&task, &repo, &patch).expect("a grade");
        assert!(!grade.solved, "{name}: {patch}");
    }
}

#[test]
fn attack_32_hidden_tests_are_nowhere_in_the_agents_sandbox() {
    let mut sandbox = agent();
    let found = sh(
        sandbox.as_mut(),
        "grep -rlE 'TestTotal|test_some|twins' /testbed /tmp /home /dev/shm /opt 2>/dev/null; \
         cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | \
         grep -v grep | grep -E 'TestTota[l]|test_som[e]'",
    );
    assert_eq!(text(&found), "");
    sandbox.destroy().expect("destroyed");
}

#[test]
fn attack_23_the_agents_git_holds_the_base_commit_alone() {
    let mut sandbox = agent();
    if sh(sandbox.as_mut(), "git --version").status != ExecStatus::Exited(0) {
        println!("not run: there is no git in the sandbox");
        return;
    }
    // A history with the fix in it: on a branch, under a tag, in the reflog, packed, dangling, and
    // in a stash; with a hook and a filter.
    let history = "git init -q . && git config user.name x && git config user.email x@example.org \
        && git add -A && git commit -qm base && sed -i 's/result = 1/result = 0/' sums.py \
        && git commit -qam 'the fix' && git tag fixed && git branch later && git gc -q \
        && git reset -q --hard HEAD~1 && sed -i 's/result = 1/result = 00/' sums.py && git stash -q \
        && printf '#!/bin/sh\\ntouch /tmp/hooked\\n' > .git/hooks/post-checkout \
        && chmod +x .git/hooks/post-checkout && echo '*.py filter=x' > .git/info/attributes \
        && git config filter.x.clean 'touch /tmp/filtered; cat' && git show fixed:sums.py";
    let before = sh(sandbox.as_mut(), history);
    // The layer off: the fix is there to be read.
    assert!(text(&before).contains("result = 0"), "{before:?}");
    assert!(base_commit_only(sandbox.as_mut(), WORKDIR).expect("the sandbox lives"));
    let log = sh(
        sandbox.as_mut(),
        "git log --all --oneline | wc -l; git stash list; git tag; \
        git branch -a | wc -l; git reflog --all; git fsck --unreachable --dangling --no-reflogs 2>/dev/null; \
        git remote; git cat-file --batch-all-objects --batch-check | wc -l; \
        ls .git/hooks 2>/dev/null; ls /tmp; git status --porcelain",
    );
    // One commit, one branch, one tree and two files.
    assert_eq!(text(&log).split_whitespace().collect::<Vec<_>>(), ["1", "1", "4"], "{log:?}");
    let objects = sh(
        sandbox.as_mut(),
        "git cat-file --batch-all-objects --batch | grep -a -c 'result = 0'; \
         grep -rac 'the fix' .git | grep -v ':0'",
    );
    assert_eq!(text(&objects).trim(), "0", "{objects:?}");
    // What an honest agent does with git works, and costs it nothing.
    let works = sh(
        sandbox.as_mut(),
        "sed -i 's/result = 1/result = 0/' sums.py && git diff --stat | tail -1 && git stash -q && \
         git stash pop -q && git add -A && git commit -qm mine && git log --oneline | wc -l",
    );
    assert!(text(&works).contains("1 file changed") && text(&works).ends_with("2\n"), "{works:?}");
    let (task, repo) = world();
    let patch = patch::render(&sandbox.diff().expect("a diff"));
    assert!(grader(Defences::default()).grade(&task, &repo, &patch).expect("a grade").solved);
    sandbox.destroy().expect("destroyed");
}

#[test]
fn attack_30_the_agents_git_has_no_say_in_its_diff() {
    let mut sandbox = agent();
    if !base_commit_only(sandbox.as_mut(), WORKDIR).expect("the sandbox lives") {
        println!("not run: there is no git in the sandbox");
        return;
    }
    let script = "git config core.fsmonitor 'echo >/tmp/ran' && git config diff.external 'true' && \
        echo '*.py diff=none filter=f -diff binary' > .gitattributes && \
        git config filter.f.clean 'echo result = 0' && echo 'sums.py' >> .git/info/exclude && \
        git update-index --assume-unchanged sums.py && sed -i 's/result = 1/result = 5/' sums.py && \
        git rm -q --cached README.md && rm -rf .git/objects";
    let output = sh(sandbox.as_mut(), script);
    assert_eq!(output.status, ExecStatus::Exited(0), "{output:?}");
    let changes = sandbox.diff().expect("a diff");
    let paths: Vec<&str> = changes.iter().map(|change| change.path.as_str()).collect();
    assert_eq!(paths, [".gitattributes", "sums.py"]);
    assert!(patch::render(&changes).contains("+    result = 5"));
    sandbox.destroy().expect("destroyed");
}

#[test]
fn the_same_commit_every_time() {
    let commit = || {
        let mut sandbox = agent();
        let made = base_commit_only(sandbox.as_mut(), WORKDIR).expect("the sandbox lives");
        let head = text(&sh(sandbox.as_mut(), "git rev-parse HEAD"));
        sandbox.destroy().expect("destroyed");
        made.then_some(head)
    };
    let (first, second) = (commit(), commit());
    assert_eq!(first, second);
    assert!(first.is_none_or(|head| head.trim().len() == 40));
}

#[test]
fn a_repository_inside_the_root_is_graded_from_a_pristine_sandbox() {
    use patchwright_agent::{Grader, GraderOptions, TaskRoot};
    use patchwright_core::RootFs;
    use std::sync::Arc;
    // A root of its own: the system's directories by links are the host's affair, so this only
    // shows what needs no program inside.
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::create_dir_all(dir.path().join("testbed")).expect("made");
    std::fs::write(dir.path().join("testbed/sums.py"), BUGGY).expect("written");
    let (task, _) = world();
    let without = grader(Defences::default()).grade(&task, &RepoSource::InRoot, "").unwrap_err();
    assert!(without.to_string().contains("no image was given"), "{without}");
    let layers = RootFs::Layers(vec![dir.path().to_owned()]);
    let grader =
        Grader::new(provider(), GraderOptions::default()).with_roots(Arc::new(move |_| {
            Ok(TaskRoot { root: layers.clone(), ..TaskRoot::default() })
        }));
    match grader.grade(
        &task,
        &RepoSource::InRoot,
        "--- a/sums.py\n+++ b/sums.py\n@@ -1 +1 @@\n-no\n+x\n",
    ) {
        Ok(grade) => assert!(grade.detail.contains("does not apply"), "{}", grade.detail),
        Err(error) => println!("not run: {error}"),
    }
}
