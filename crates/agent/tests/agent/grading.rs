//! Grading in real sandboxes: honest patches, limits, and attempts to cheat.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use patchwright_agent::grade::Defences;
use patchwright_agent::{Grade, GradeCache, GradeError, Grader, GraderOptions};
use patchwright_core::{
    RepoSource, Sandbox, SandboxError, SandboxLimits, SandboxProvider, SandboxSpec, TaskInstance,
    patch,
};

use crate::common::{BUGGY, TESTS, change, files, provider, task};

fn grader() -> Grader {
    let options = GraderOptions { timeout: Duration::from_secs(20), ..GraderOptions::default() };
    Grader::new(provider(), options)
}

fn fixed() -> String {
    BUGGY.replace("result = 1", "result = 0")
}

/// The patch that turns `sums.py` into `text`, with further files.
fn patch_to(text: &str, more: &[(&str, &str)]) -> String {
    let mut changes = vec![change("sums.py", Some(BUGGY), Some(text))];
    changes.extend(more.iter().map(|(path, text)| change(path, None, Some(text))));
    patch::render(&changes)
}

fn grade(patch: &str) -> Grade {
    let (task, repo) = task();
    grader().grade(&task, &repo, patch).unwrap()
}

#[test]
fn the_fix_is_solved_and_other_patches_are_not() {
    let solved = grade(&patch_to(&fixed(), &[]));
    assert!(solved.solved, "{solved:?}");
    assert_eq!(solved.results.len(), 3);
    assert_eq!(solved.detail, "");

    let nothing = grade("");
    assert!(!nothing.solved);
    let passed: Vec<bool> = nothing.results.values().copied().collect();
    assert_eq!(passed, [true, false, false]);

    let wrong = grade(&patch_to(&BUGGY.replace("result = 1", "result = 2"), &[]));
    assert_eq!(wrong.results, nothing.results);
    assert!(wrong.detail.starts_with("2 of 3 tests failed"), "{}", wrong.detail);
    assert!(wrong.detail.contains("AssertionError"), "{}", wrong.detail);

    let breaks_another = fixed().replace("max(values)", "min(values)");
    let broken = grade(&patch_to(&breaks_another, &[]));
    assert!(!broken.solved);
    assert!(broken.results["test_sums.TestTotal.test_some"]);
    assert!(!broken.results["test_sums.TestLargest.test_largest"]);
}

#[test]
fn a_file_may_go_and_another_come() {
    let changes = [
        change("sums.py", Some(BUGGY), None),
        change("sums/__init__.py", None, Some("from .inner import largest, total\n")),
        change("sums/inner.py", None, Some(&fixed())),
    ];
    let grade = grade(&patch::render(&changes));
    assert!(grade.solved, "{grade:?}");
}

#[test]
fn cheats_do_not_pass() {
    let import = |line: &str| format!("{line}\n{BUGGY}");
    let exit = import("import os; os._exit(0)");
    let quit = import("raise SystemExit(0)");
    let late = import("import atexit, os; atexit.register(os._exit, 0)");
    let printed = import(
        "import sys\nfor i in range(3):\n    print(i, 1)\n    print('ready', 'done')\n    \
         print('test_sums.TestTotal.test_some ... ok', file=sys.stderr)\nsys.stdout.flush()",
    );
    let to_every_descriptor = import(
        "import os\nfor fd in range(3, 64):\n    for i in range(3):\n        try:\n            \
         os.write(fd, b'\\n%d 1\\n\\ndone\\n' % i)\n        except OSError:\n            pass",
    );
    let skipped = import("import unittest\nraise unittest.SkipTest('not today')");
    let hang = import("while True: pass");
    let crash = import("import os; os.kill(os.getpid(), 11)");
    let own_tests = TESTS.replace("0)", "sums.total([]))").replace(", 3)", ", 4)");
    for (name, patch) in [
        ("os._exit", patch_to(&exit, &[])),
        ("SystemExit", patch_to(&quit, &[])),
        ("atexit", patch_to(&late, &[])),
        ("printing results", patch_to(&printed, &[])),
        ("writing to the channel", patch_to(&to_every_descriptor, &[])),
        ("skipping", patch_to(&skipped, &[])),
        ("hanging", patch_to(&hang, &[])),
        ("crashing", patch_to(&crash, &[])),
        ("deleting the module", patch::render(&[change("sums.py", Some(BUGGY), None)])),
        ("editing tests", patch_to(BUGGY, &[("test_sums.py", &own_tests)])),
        (
            "a package in the tests' place",
            patch_to(BUGGY, &[("test_sums/__init__.py", &own_tests)]),
        ),
        (
            "an own unittest",
            patch_to(BUGGY, &[("unittest.py", "class TestCase: pass\n"), ("traceback.py", "")]),
        ),
        (
            "site customization",
            patch_to(BUGGY, &[("sitecustomize.py", "import os; os._exit(0)\n")]),
        ),
    ] {
        let options = GraderOptions { timeout: Duration::from_secs(3), ..GraderOptions::default() };
        let (task, repo) = task();
        let grade = Grader::new(provider(), options).grade(&task, &repo, &patch).unwrap();
        assert!(!grade.solved, "{name}: {grade:?}");
        assert!(!grade.results["test_sums.TestTotal.test_some"], "{name}: {grade:?}");
    }
}

#[test]
fn an_honest_agents_own_tests_cost_it_nothing() {
    let own = patch_to(
        &fixed(),
        &[
            ("test_sums.py", "raise SystemExit\n"),
            ("test_mine.py", "assert False\n"),
            ("conftest.py", "raise SystemExit\n"),
        ],
    );
    let grade = grade(&own);
    assert!(grade.solved, "{grade:?}");
    assert_eq!(grade.dropped, ["test_sums.py: a file of the hidden tests"]);
}

#[test]
fn what_a_diff_cannot_say_is_dropped_and_named() {
    let good = patch_to(&fixed(), &[]);
    let link = "diff --git a/link b/link\nnew file mode 120000\n--- /dev/null\n+++ b/link\n\
                @@ -0,0 +1 @@\n+/etc/passwd\n\\ No newline at end of file\n";
    let out = "diff --git a/../x b/../x\nnew file mode 100644\n--- /dev/null\n+++ b/../x\n\
               @@ -0,0 +1 @@\n+x\n";
    let git = "diff --git a/.git/config b/.git/config\nnew file mode 100644\n--- /dev/null\n\
               +++ b/.git/config\n@@ -0,0 +1 @@\n+x\n";
    let binary = "diff --git a/x.bin b/x.bin\nnew file mode 100644\nBinary files /dev/null and \
                  b/x.bin differ\n";
    let grade = grade(&format!("{link}{good}{out}{git}{binary}"));
    assert!(grade.solved, "{grade:?}");
    assert_eq!(grade.dropped.len(), 4, "{:?}", grade.dropped);

    for (patch, said) in [
        ("what is this", "cannot be read"),
        ("--- a/sums.py\n+++ b/sums.py\n@@ -1 +1 @@\n-no such line\n+x\n", "does not apply"),
        ("--- a/none.py\n+++ b/none.py\n@@ -1 +1 @@\n-no such line\n+x\n", "does not apply"),
    ] {
        let grade = self::grade(patch);
        assert!(!grade.solved);
        assert!(grade.detail.contains(said), "{}", grade.detail);
    }
}

#[test]
fn what_does_not_fit_is_the_patchs_fault() {
    let (mut task, repo) = task();
    // The hidden tests lie in a directory where the agent has put a file.
    task.test_patch = patch::render(&[change("hidden/test_sums.py", None, Some(TESTS))]);
    for id in task.fail_to_pass.iter_mut().chain(&mut task.pass_to_pass) {
        *id = format!("hidden.{id}");
    }
    let honest = grader().grade(&task, &repo, &patch_to(&fixed(), &[])).unwrap();
    assert!(honest.solved, "{honest:?}");
    let grade = grader().grade(&task, &repo, &patch_to(&fixed(), &[("hidden", "x\n")])).unwrap();
    assert!(!grade.solved);
    let huge = patch_to(&fixed(), &[("huge", &"x".repeat(3 << 20))]);
    let limits = SandboxLimits { disk_bytes: 2 << 20, ..SandboxLimits::default() };
    let small = Grader::new(provider(), GraderOptions { limits, ..GraderOptions::default() });
    let grade = small.grade(&task, &repo, &huge).unwrap();
    assert!(!grade.solved, "{grade:?}");
}

#[test]
fn fixtures_subtests_and_unusual_outcomes() {
    let tests = "import unittest\n\ncount = 0\n\nclass A(unittest.TestCase):\n    \
        @classmethod\n    def setUpClass(cls):\n        global count\n        count += 1\n\n    \
        def test_a(self):\n        self.assertEqual(count, 1)\n    test_b = test_a\n\n    \
        def test_sub(self):\n        for i in range(3):\n            with self.subTest(i=i):\n                \
        self.assertNotEqual(i, 1)\n\n    def test_skip(self):\n        self.skipTest('no')\n\n    \
        @unittest.expectedFailure\n    def test_xfail(self):\n        self.fail()\n\n    \
        @unittest.expectedFailure\n    def test_xpass(self):\n        pass\n\n    \
        def test_raises(self):\n        with self.assertRaises(ValueError):\n            int('x')\n\n    \
        def test_equal(self):\n        self.assertEqual([1, 2], [1, 2])\n\n\n\
        class Broken(unittest.TestCase):\n    @classmethod\n    def setUpClass(cls):\n        \
        raise ValueError\n\n    def test_never(self):\n        pass\n\n\n\
        class Torn(unittest.TestCase):\n    def tearDown(self):\n        raise ValueError\n\n    \
        def test_torn(self):\n        pass\n";
    let repo = files(&[("x.py", ""), ("tests/test_x.py", tests)]);
    let passes = ["A.test_a", "A.test_b", "A.test_raises", "A.test_equal"];
    let fails = [
        "A.test_sub",
        "A.test_skip",
        "A.test_xfail",
        "A.test_xpass",
        "Broken.test_never",
        "Torn.test_torn",
        "A.test_absent",
        "Absent.test_a",
    ];
    let ids = |names: &[&str]| names.iter().map(|n| format!("tests.test_x.{n}")).collect();
    let (base, _) = task();
    let task = TaskInstance {
        test_patch: String::new(),
        fail_to_pass: ids(&fails),
        pass_to_pass: ids(&passes),
        ..base
    };
    let patch = patch::render(&[change("y.py", None, Some("y\n"))]);
    let grade = grader().grade(&task, &repo, &patch).unwrap();
    assert!(!grade.solved);
    for (id, passed) in &grade.results {
        assert_eq!(*passed, passes.iter().any(|name| id.ends_with(name)), "{id}");
    }
}

type Spoil<'a> = &'a dyn Fn(&mut TaskInstance);

#[test]
fn rows_that_cannot_be_graded_say_which_field() {
    let (good, repo) = task();
    let no_parser = |task: &mut TaskInstance| task.install_config.log_parser = "nose".to_owned();
    let command = |task: &mut TaskInstance| task.install_config.test_cmd = "make test".to_owned();
    let no_tests = |task: &mut TaskInstance| {
        task.fail_to_pass.clear();
        task.pass_to_pass.clear();
    };
    let bad_patch = |task: &mut TaskInstance| task.test_patch = "???".to_owned();
    let stale = |task: &mut TaskInstance| {
        task.test_patch = patch::render(&[change("none.py", Some("a\n"), Some("b\n"))]);
    };
    let cases: [(Spoil, &str); 5] = [
        (&no_parser, "log_parser"),
        (&command, "test_cmd"),
        (&no_tests, "FAIL_TO_PASS"),
        (&bad_patch, "test_patch"),
        (&stale, "test_patch does not apply"),
    ];
    for (spoil, said) in cases {
        let mut task = good.clone();
        spoil(&mut task);
        let error = grader().grade(&task, &repo, "").unwrap_err();
        assert!(matches!(error, GradeError::Task { .. }));
        assert!(error.to_string().contains(said), "{error}");
    }
}

/// Makes sandboxes, and counts them; the first `num_failures` fail.
struct Counting {
    num_made: AtomicUsize,
    num_failures: usize,
}

impl SandboxProvider for Counting {
    fn create(&self, spec: &SandboxSpec) -> Result<Box<dyn Sandbox>, SandboxError> {
        if self.num_made.fetch_add(1, Ordering::Relaxed) < self.num_failures {
            return Err(SandboxError::Died("killed".to_owned()));
        }
        provider().create(spec)
    }
}

fn counting(num_failures: usize) -> (Arc<Counting>, GradeCache) {
    let counting = Arc::new(Counting { num_made: AtomicUsize::new(0), num_failures });
    let provider: Arc<dyn SandboxProvider> = counting.clone();
    // A second look takes a second sandbox or not, as the machine is busy.
    let once = Defences { twins: false, ..Defences::default() };
    let grader = Grader::new(provider, GraderOptions::default()).with_defences(once);
    (counting, GradeCache::new(grader, 2))
}

#[test]
fn equal_patches_are_graded_once() {
    let (counting, cache) = counting(0);
    let (task, repo) = task();
    let num_made = || counting.num_made.load(Ordering::Relaxed);
    let patch = patch_to(&fixed(), &[]);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| assert!(cache.grade(&task, &repo, &patch).unwrap().solved));
        }
    });
    assert_eq!(num_made(), 1);
    // Another text of the same change, and one that differs in what is dropped.
    let with_tests = patch_to(&fixed(), &[("test_sums.py", "x\n")]);
    let grade = cache.grade(&task, &repo, &with_tests).unwrap();
    assert!(grade.solved && grade.dropped.len() == 1);
    assert_eq!((num_made(), cache.num_hits()), (1, 8));
    // Nothing to run: no sandbox.
    assert!(!cache.grade(&task, &repo, "").unwrap().solved);
    assert!(!cache.grade(&task, &repo, "???").unwrap().solved);
    assert_eq!(num_made(), 1);
    // Another instance is another grade; and of three grades, two are held.
    let other = TaskInstance { instance_id: "sums-2".to_owned(), ..task.clone() };
    assert!(cache.grade(&other, &repo, &patch).unwrap().solved);
    assert!(cache.grade(&task, &repo, &patch).unwrap().solved);
    assert_eq!(num_made(), 2);
    assert!(!cache.grade(&task, &repo, &patch_to("x = 1\n", &[])).unwrap().solved);
    assert!(cache.grade(&task, &repo, &patch).unwrap().solved);
    assert_eq!(num_made(), 4);
}

#[test]
fn failures_of_the_infrastructure_are_errors_and_not_remembered() {
    let (_, cache) = counting(1);
    let (task, repo) = task();
    let patch = patch_to(&fixed(), &[]);
    let error = cache.grade(&task, &repo, &patch).unwrap_err();
    assert!(matches!(error, GradeError::Sandbox { .. }), "{error}");
    assert!(cache.grade(&task, &repo, &patch).unwrap().solved);
}

#[test]
fn a_directory_is_graded_like_files() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("sums.py"), BUGGY).unwrap();
    let (task, _) = task();
    let repo = RepoSource::Directory(root.path().to_owned());
    assert!(grader().grade(&task, &repo, &patch_to(&fixed(), &[])).unwrap().solved);
    assert!(!grader().grade(&task, &repo, "").unwrap().solved);
    assert_eq!(std::fs::read_dir(root.path()).unwrap().count(), 1);
}
