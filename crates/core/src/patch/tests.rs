use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

use super::{FileChange, Patch, PatchError, render};

fn change(path: &str, old: Option<&str>, new: Option<&str>) -> FileChange {
    FileChange {
        path: path.to_owned(),
        old: old.map(|t| t.as_bytes().to_vec()),
        new: new.map(|t| t.as_bytes().to_vec()),
        executable: false,
    }
}

fn apply(patch: &str, files: &[(&str, &str)]) -> Result<Vec<FileChange>, PatchError> {
    let files: BTreeMap<_, _> = files.iter().copied().collect();
    Patch::parse(patch)?.apply(&mut |path| files.get(path).map(|t| t.as_bytes().to_vec()))
}

fn apply_error(patch: &str, files: &[(&str, &str)]) -> String {
    apply(patch, files).unwrap_err().to_string()
}

#[test]
fn render_is_the_format_of_git() {
    let changes = [
        change("a.py", Some("1\n2\n3\n4\n5\n6\n"), Some("1\n2\n3\n4\nfive\n6\n")),
        change("gone.py", Some("x\n"), None),
        change("n w.py", None, Some("x")),
        change("z/ä.py", None, Some("")),
    ];
    // `git diff --cached` of the same trees, byte for byte.
    let expected = "diff --git a/a.py b/a.py
index b414108..bfb5145 100644
--- a/a.py
+++ b/a.py
@@ -2,5 +2,5 @@
 2
 3
 4
-5
+five
 6
diff --git a/gone.py b/gone.py
deleted file mode 100644
index 587be6b..0000000
--- a/gone.py
+++ /dev/null
@@ -1 +0,0 @@
-x
diff --git a/n w.py b/n w.py
new file mode 100644
index 0000000..c1b0730
--- /dev/null
+++ b/n w.py\t
@@ -0,0 +1 @@
+x
\\ No newline at end of file
diff --git \"a/z/\\303\\244.py\" \"b/z/\\303\\244.py\"
new file mode 100644
index 0000000..e69de29
";
    assert_eq!(render(&changes), expected);
    let patch = Patch::parse(expected).unwrap();
    assert_eq!(patch.paths(), ["a.py", "gone.py", "n w.py", "z/ä.py"]);
    let applied = apply(expected, &[("a.py", "1\n2\n3\n4\n5\n6\n"), ("gone.py", "x\n")]).unwrap();
    assert_eq!(applied, changes);
}

#[test]
fn modes_survive() {
    let script = FileChange { executable: true, ..change("run", Some("a\n"), Some("b\n")) };
    let new = FileChange { executable: true, ..change("new", None, Some("b\n")) };
    let chmod = FileChange { executable: true, ..change("mode", Some("a\n"), Some("a\n")) };
    let text = render(&[chmod.clone(), new.clone(), script.clone()]);
    assert!(text.contains("old mode 100644\nnew mode 100755\n"), "{text}");
    assert_eq!(apply(&text, &[("run", "a\n"), ("mode", "a\n")]).unwrap(), [chmod, new, script]);
}

#[test]
fn plain_diffs_and_mail_around_them() {
    let patch = "From: someone\n\nSubject: a fix\n---\n a.py | 2 +-\n
--- a.py.orig\t2024-01-01 00:00:00\n+++ a.py\t2024-01-02 00:00:00\n@@ -1,2 +1,2 @@ def f():\n-x\n+y\n \n-- \n2.40\n";
    assert_eq!(apply(patch, &[("a.py", "x\n \n")]).unwrap_err().to_string().lines().count(), 1);
    // An empty context line stands for itself with or without its space.
    assert_eq!(
        apply(patch, &[("a.py", "x\n\n")]).unwrap(),
        [change("a.py", Some("x\n\n"), Some("y\n\n"))]
    );
    assert_eq!(
        apply(&patch.replace("+y\n \n", "+y\n\n"), &[("a.py", "x\n\n")]).unwrap(),
        [change("a.py", Some("x\n\n"), Some("y\n\n"))]
    );
}

#[test]
fn renames_copies_and_swaps() {
    let rename = "diff --git a/a b/b\nsimilarity index 50%\nrename from a\nrename to b\n--- a/a\n+++ b/b\n@@ -1 +1 @@\n-x\n+y\n";
    assert_eq!(
        apply(rename, &[("a", "x\n")]).unwrap(),
        [change("a", Some("x\n"), None), change("b", None, Some("y\n"))]
    );
    assert_eq!(Patch::parse(rename).unwrap().paths(), ["b"]);
    assert!(apply_error(rename, &[("a", "x\n"), ("b", "")]).contains("already exists"));
    let copy = "diff --git a/a b/b\nsimilarity index 100%\ncopy from a\ncopy to b\n";
    assert_eq!(apply(copy, &[("a", "x\n")]).unwrap(), [change("b", None, Some("x\n"))]);
    let swap = "diff --git a/a b/b\nrename from a\nrename to b\ndiff --git a/b b/a\nrename from b\nrename to a\n";
    assert_eq!(
        apply(swap, &[("a", "1\n"), ("b", "2\n")]).unwrap(),
        [change("a", Some("1\n"), Some("2\n")), change("b", Some("2\n"), Some("1\n"))]
    );
}

#[test]
fn hunks_may_have_moved_but_context_is_exact() {
    let old = "a\nb\nc\nd\ne\nf\ng\n";
    let patch = render(&[change("f", Some(old), Some("a\nb\nc\nD\ne\nf\ng\n"))]);
    // A hunk from line 1 with context behind it stays at the start, as in git.
    assert!(
        apply_error(&patch, &[("f", &format!("new\n{old}"))]).contains("not found around line 1")
    );
    let old = format!("0\n{old}h\n");
    let patch = render(&[change("f", Some(&old), Some(&old.replace('d', "D")))]);
    let moved = format!("new\nnew\n{old}");
    let applied = apply(&patch, &[("f", &moved)]).unwrap();
    assert_eq!(applied[0].new.as_deref(), Some(moved.replace('d', "D").as_bytes()));
    assert!(apply_error(&patch, &[("f", &old.replace('c', " c"))]).contains("hunk 1 (line 5"));
    // Two places fit: the nearer one is taken.
    let twice = format!("{old}{}x\n{old}", "y\n".repeat(3));
    let applied = apply(&patch, &[("f", &twice)]).unwrap();
    assert_eq!(applied[0].new.as_deref(), Some(twice.replacen('d', "D", 1).as_bytes()));
}

#[test]
fn what_cannot_be_is_refused() {
    let create = render(&[change("f", None, Some("x\n"))]);
    let delete = render(&[change("f", Some("x\n"), None)]);
    let modify = render(&[change("f", Some("x\n"), Some("y\n"))]);
    assert!(apply_error(&create, &[("f", "")]).contains("already exists"));
    assert!(apply_error(&delete, &[]).contains("does not exist"));
    assert!(apply_error(&modify, &[]).contains("does not exist"));
    assert!(apply_error(&delete, &[("f", "x\ny\n")]).contains("does not apply"));
    let binary = FileChange { new: Some(vec![0xff]), ..change("f", Some("x\n"), None) };
    assert!(apply_error(&render(&[binary]), &[("f", "x\n")]).contains("binary"));

    let parse_error = |text: &str| Patch::parse(text).unwrap_err().to_string();
    assert!(parse_error("hello").contains("no diff found"));
    assert!(parse_error(&modify.replace("@@ -1 +1 @@", "@@ -1,3 +1,3 @@")).contains("ends inside"));
    assert!(parse_error(&modify.replace("@@ -1 +1 @@", "@@ -1 +0,0 @@")).contains("more lines"));
    assert!(parse_error(&modify.replace("@@ -1 +1 @@", "@@ -2 +0,0 @@")).contains("header says"));
    assert!(parse_error(&modify.replace("@@ -1 +1 @@", "@@ -x +1 @@")).contains("expected `@@"));
    assert!(parse_error("@@ -1 +1 @@\n-x\n+y\n").contains("without a file"));
    for path in ["../f", "/etc/passwd", "x/../../f", ".git/hooks/pre-commit", "x/.GIT/config"] {
        let text = format!("--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-x\n+y\n");
        assert!(Patch::parse(&text).is_err(), "{path}");
    }
    assert!(
        parse_error("diff --git a/l b/l\nnew file mode 120000\n").contains("only regular files")
    );
    assert!(parse_error("diff --git a/l b/l\nrename from l\n").contains("cannot be read"));
    assert!(
        parse_error("diff --git a/l b/m\ndeleted file mode 100644\n").contains("cannot be read")
    );
    assert!(Patch::parse(" \n").unwrap().is_empty());
}

#[test]
fn a_costly_patch_is_refused_in_time() {
    // Thousands of hunks that nearly match at every one of thousands of lines.
    let file = "x\n".repeat(40_000);
    let hunk = format!("@@ -20000,1001 +20000,1001 @@\n{} -\n x\n", " x\n".repeat(999));
    let text = format!("--- a/f\n+++ b/f\n{}", hunk.repeat(100));
    assert!(apply_error(&text, &[("f", &file)]).contains("does not apply"));
    let hunk = format!("@@ -20000,5001 +20000,5001 @@\n{} y\n x\n", " x\n".repeat(4_999));
    let text = format!("--- a/f\n+++ b/f\n{hunk}");
    let error = apply_error(&text, &[("f", &file)]);
    assert!(error.contains("too many comparisons") || error.contains("does not apply"), "{error}");
}

fn git(dir: &Path, args: &[&str]) -> Option<String> {
    let output = Command::new("git")
        .args(["-c", "core.autocrlf=false", "-c", "core.safecrlf=false"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("HOME", dir)
        .output()
        .ok()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "git {args:?}: {stderr}");
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn write_tree(dir: &Path, files: &BTreeMap<String, String>) {
    for (path, text) in files {
        std::fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        std::fs::write(dir.join(path), text).unwrap();
    }
}

/// Real git reads what `render` writes, and `apply` reads what real git writes.
#[test]
fn agrees_with_git() {
    let Ok(dir) = tempfile::tempdir() else { panic!("no temporary directory") };
    let dir = dir.path();
    if git(dir, &["init", "-q", "."]).is_none() {
        eprintln!("NOT CHECKED: there is no git on PATH");
        return;
    }
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..12 {
        let (old, new) = (tree(), tree()).new_tree(&mut runner).unwrap().current();
        for name in old.keys().chain(new.keys()) {
            let _ = std::fs::remove_file(dir.join(name));
        }
        let changes = changes(&old, &new);
        write_tree(dir, &old);
        git(dir, &["add", "-A"]);
        std::fs::write(dir.join(".git/ours.diff"), render(&changes)).unwrap();
        if !changes.is_empty() {
            git(dir, &["apply", "--index", ".git/ours.diff"]);
        }
        for (path, text) in &new {
            assert_eq!(&std::fs::read_to_string(dir.join(path)).unwrap(), text);
        }
        let old_tree = {
            git(dir, &["read-tree", "--empty"]);
            write_tree(dir, &old);
            tree_id(dir, &old)
        };
        write_tree(dir, &new);
        let new_tree = tree_id(dir, &new);
        let theirs = git(dir, &["diff", "-M", old_tree.trim(), new_tree.trim()]).unwrap();
        let patch = Patch::parse(&theirs).unwrap();
        let applied = patch.apply(&mut |p| old.get(p).map(|t| t.clone().into_bytes())).unwrap();
        assert_eq!(applied, changes);
    }
}

fn tree_id(dir: &Path, files: &BTreeMap<String, String>) -> String {
    git(dir, &["read-tree", "--empty"]);
    for path in files.keys() {
        git(dir, &["add", "-f", "--", path]);
    }
    git(dir, &["write-tree"]).unwrap()
}

fn changes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<FileChange> {
    let paths: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).collect();
    paths
        .into_iter()
        .filter(|p| old.get(*p) != new.get(*p))
        .map(|p| change(p, old.get(p).map(String::as_str), new.get(p).map(String::as_str)))
        .collect()
}

/// Few different lines, so that hunks repeat, touch and nearly match; some without newline or with
/// a carriage return.
fn text() -> impl Strategy<Value = String> {
    let line =
        prop::sample::select(vec!["a\n", "b\n", "\n", " \n", "c\r\n", "-- x\n", "++ y\n", "ü\n"]);
    (prop::collection::vec(line, 0..24), prop::sample::select(vec!["", "", "end", "\\ No"]))
        .prop_map(|(lines, end)| lines.concat() + end)
}

fn tree() -> impl Strategy<Value = BTreeMap<String, String>> {
    let name = prop::sample::select(vec!["a.py", "d/b.py", "d/e f.py", "q\"uote\\.py", "ü.py"]);
    prop::collection::btree_map(name.prop_map(str::to_owned), text(), 0..4)
}

proptest! {
    #[test]
    fn round_trip(old in tree(), new in tree()) {
        let changes = changes(&old, &new);
        let text = render(&changes);
        prop_assert_eq!(&text, &render(&changes));
        let patch = Patch::parse(&text).unwrap();
        let applied = patch.apply(&mut |p| old.get(p).map(|t| t.clone().into_bytes())).unwrap();
        prop_assert_eq!(applied, changes);
    }

    #[test]
    fn arbitrary_text_never_panics(text in any::<String>(), file in text()) {
        if let Ok(patch) = Patch::parse(&text) {
            let _ = patch.apply(&mut |_| Some(file.clone().into_bytes()));
        }
    }

    #[test]
    fn damaged_patches_never_panic(
        old in tree(), new in tree(), at in any::<prop::sample::Index>(),
        junk in prop::sample::select(vec!["", "\n", "@@", "ü", "\\", "\"", "9", "/", "--- ", "\0"]),
        cut in 0_usize..9,
    ) {
        let text = render(&changes(&old, &new));
        let mut chars: Vec<char> = text.chars().collect();
        if !chars.is_empty() {
            let at = at.index(chars.len());
            chars.splice(at..(at + cut).min(chars.len()), junk.chars());
        }
        let text: String = chars.into_iter().collect();
        if let Ok(patch) = Patch::parse(&text) {
            let _ = patch.apply(&mut |p| old.get(p).map(|t| t.clone().into_bytes()));
        }
    }
}
