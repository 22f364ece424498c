//! Hidden tests of every shape: an honest patch passes them, and their twins accuse nobody.

use patchwright_core::{RepoSource, TaskInstance, patch};

use crate::common::{BUGGY, change, files, task};
use crate::world::{all_are_solved, fixed, patch_to, row};

/// Bodies of a test class, and the names of its tests.
const SHAPES: &[(&str, &str, &[&str])] = &[
    ("one equality", "def test_a(self):\n    self.assertEqual(sums.total([]), 0)", &["test_a"]),
    (
        "expected value first",
        "def test_a(self):\n    self.assertEqual(0, sums.total([]))",
        &["test_a"],
    ),
    ("a plain assert", "def test_a(self):\n    assert sums.total([]) == 0", &["test_a"]),
    ("a bare truth", "def test_a(self):\n    assert not sums.total([])", &["test_a"]),
    ("assertTrue", "def test_a(self):\n    self.assertTrue(sums.total([]) == 0)", &["test_a"]),
    (
        "two computed values",
        "def test_a(self):\n    self.assertEqual(sums.total([1]), sum([1]))",
        &["test_a"],
    ),
    (
        "a list",
        "def test_a(self):\n    self.assertEqual([sums.total([i]) for i in range(3)], [0, 1, 2])",
        &["test_a"],
    ),
    (
        "a dict",
        "def test_a(self):\n    self.assertDictEqual({'a': sums.total([])}, {'a': 0})",
        &["test_a"],
    ),
    (
        "a string",
        "def test_a(self):\n    self.assertEqual(str(sums.total([])) + 'x', '0x')",
        &["test_a"],
    ),
    (
        "an escaped string",
        "def test_a(self):\n    self.assertEqual('\\n%d' % sums.total([]), '\\n0')",
        &["test_a"],
    ),
    (
        "a float",
        "def test_a(self):\n    self.assertAlmostEqual(sums.total([0.1, 0.2]), 0.3, places=5)",
        &["test_a"],
    ),
    (
        "a negative number",
        "def test_a(self):\n    self.assertEqual(sums.total([-1]), -1)",
        &["test_a"],
    ),
    ("membership", "def test_a(self):\n    self.assertIn(sums.total([]), (0, 5))", &["test_a"]),
    (
        "a type",
        "def test_a(self):\n    self.assertIsInstance(sums.total([]), int)\n    self.assertEqual(sums.total([]), 0)",
        &["test_a"],
    ),
    ("an order", "def test_a(self):\n    self.assertLess(sums.total([]), 1)", &["test_a"]),
    (
        "an exception",
        "def test_a(self):\n    self.assertEqual(sums.total([]), 0)\n    with self.assertRaises(TypeError):\n        sums.total(['x'])",
        &["test_a"],
    ),
    (
        "any exception",
        "def test_a(self):\n    assert sums.total([]) == 0\n    with self.assertRaises(Exception):\n        sums.total(['x'])",
        &["test_a"],
    ),
    (
        "a loop over a literal",
        "def test_a(self):\n    for values, want in [([], 0), ([1], 1)]:\n        self.assertEqual(sums.total(values), want)",
        &["test_a"],
    ),
    (
        "a loop over nothing",
        "def test_a(self):\n    for value in sums.__dict__.get('none', ()):\n        self.assertEqual(value, 1)\n    self.assertEqual(sums.total([]), 0)",
        &["test_a"],
    ),
    (
        "subtests",
        "def test_a(self):\n    for n in range(3):\n        with self.subTest(n=n):\n            self.assertEqual(sums.total([n]), n)",
        &["test_a"],
    ),
    (
        "a return before the assertion",
        "def test_a(self):\n    self.assertEqual(sums.total([]), 0)\n    if sums.total([]) == 0:\n        return\n    self.fail()",
        &["test_a"],
    ),
    (
        "a return at the start",
        "def test_a(self):\n    if not sums.total([]):\n        return\n    self.assertEqual(1, 2)",
        &["test_a"],
    ),
    (
        "no assertion",
        "def test_a(self):\n    if sums.total([]):\n        raise ValueError",
        &["test_a"],
    ),
    (
        "a docstring and no assertion",
        "def test_a(self):\n    'Says nothing.'\n    [][sums.total([]):]\n    1 // (1 - sums.total([]))",
        &["test_a"],
    ),
    (
        "an assertion that is caught",
        "def test_a(self):\n    try:\n        self.assertEqual(1, 2)\n    except AssertionError:\n        pass\n    self.assertEqual(sums.total([]), 0)",
        &["test_a"],
    ),
    (
        "a helper",
        "def check(self, values, want):\n    self.assertEqual(sums.total(values), want)\ndef test_a(self):\n    self.check([], 0)\ndef test_b(self):\n    self.check([2], 2)",
        &["test_a", "test_b"],
    ),
    (
        "setUp and tearDown",
        "def setUp(self):\n    self.values = [1]\ndef tearDown(self):\n    del self.values\ndef test_a(self):\n    self.assertEqual(sums.total(self.values), 1)",
        &["test_a"],
    ),
    (
        "a fixture of the class",
        "@classmethod\ndef setUpClass(cls):\n    cls.n = sums.total([])\ndef test_a(self):\n    self.assertEqual(self.n, 0)",
        &["test_a"],
    ),
    (
        "a temporary file",
        "def test_a(self):\n    import tempfile, os\n    with tempfile.TemporaryDirectory() as d:\n        open(os.path.join(d, 'x'), 'w').write(str(sums.total([])))\n        self.assertEqual(open(os.path.join(d, 'x')).read(), '0')",
        &["test_a"],
    ),
    (
        "a file that must not exist",
        "def test_a(self):\n    import os\n    os.mkdir('/tmp/once')\n    self.assertEqual(sums.total([]), 0)",
        &["test_a"],
    ),
    (
        "state of the module",
        "def test_a(self):\n    sums.n = getattr(sums, 'n', 0) + 1\n    self.assertEqual(sums.n + sums.total([]), 1)",
        &["test_a"],
    ),
    (
        "tests that build on each other",
        "seen = []\ndef test_a(self):\n    self.seen.append(1)\n    self.assertEqual(sums.total([]), 0)\n    self.seen.append(2)\ndef test_b(self):\n    self.assertEqual(len(self.seen) + sums.total([]), 2)",
        &["test_a", "test_b"],
    ),
    (
        "a mock",
        "def test_a(self):\n    from unittest import mock\n    with mock.patch('sums.largest', return_value=4):\n        self.assertEqual(sums.largest([]) + sums.total([]), 4)",
        &["test_a"],
    ),
    (
        "a mock that equals everything",
        "def test_a(self):\n    from unittest import mock\n    self.assertEqual(mock.ANY, 3)\n    self.assertEqual(sums.total([]), 0)",
        &["test_a"],
    ),
    (
        "a subprocess",
        "def test_a(self):\n    import subprocess, sys\n    out = subprocess.check_output([sys.executable, '-S', '-c', 'import sums; print(sums.total([]))'])\n    self.assertEqual(out, b'0\\n')",
        &["test_a"],
    ),
    (
        "threads",
        "def test_a(self):\n    import threading\n    found = []\n    t = threading.Thread(target=lambda: found.append(sums.total([])))\n    t.start(); t.join()\n    self.assertEqual(found, [0])",
        &["test_a"],
    ),
    (
        "output",
        "def test_a(self):\n    import contextlib, io\n    out = io.StringIO()\n    with contextlib.redirect_stdout(out):\n        print(sums.total([]))\n    self.assertEqual(out.getvalue(), '0\\n')",
        &["test_a"],
    ),
    (
        "its own source",
        "def test_a(self):\n    import inspect\n    self.assertIn('sums', inspect.getsource(type(self)))\n    self.assertEqual(sums.total([]), 0)",
        &["test_a"],
    ),
    (
        "several lines",
        "def test_a(self):\n    self.assertEqual(\n        sums.total(\n            [1,\n             2]),\n        3,\n        'three',\n    )",
        &["test_a"],
    ),
    ("semicolons", "def test_a(self): x = sums.total([]); self.assertEqual(x, 0)", &["test_a"]),
    ("one line without assertion", "def test_a(self): 1 // (1 - sums.total([]))", &["test_a"]),
    (
        "not ASCII",
        "def test_a(self):\n    self.assertEqual('ä%dß' % sums.total([]), 'ä0ß')  # ö",
        &["test_a"],
    ),
    (
        "a coroutine",
        "def test_a(self):\n    import asyncio\n    async def f():\n        return sums.total([])\n    self.assertEqual(asyncio.run(f()), 0)",
        &["test_a"],
    ),
    (
        "an inherited test",
        "pass\n\nclass Base:\n    def test_z(self):\n        self.assertEqual(sums.total([]), 0)\n\nclass T2(Base, unittest.TestCase):\n    pass",
        &["T2.test_z"],
    ),
    (
        "an expected value with a name",
        "def test_a(self):\n    expected = {'n': [0, 'x']}\n    self.assertEqual({'n': [sums.total([]), 'x']}, expected)",
        &["test_a"],
    ),
    (
        "an expected value that is used twice",
        "def test_a(self):\n    n = 2\n    self.assertEqual(sums.total([n]), n)",
        &["test_a"],
    ),
    (
        "random values",
        "def test_a(self):\n    import random\n    n = random.random()\n    self.assertEqual(sums.total([n]), n)",
        &["test_a"],
    ),
];

/// A task of its own for each shape. Its repository has the bug of the others.
fn shaped(body: &str, tests: &[&str]) -> (TaskInstance, RepoSource) {
    let body: String =
        body.lines()
            .map(|line| {
                if line.starts_with("class ") {
                    format!("{line}\n")
                } else {
                    format!("    {line}\n")
                }
            })
            .collect();
    // A second class stands at the left margin, its body as it is.
    let text = match body.split_once("\nclass ") {
        Some((first, rest)) => {
            let rest: Vec<String> = rest
                .lines()
                .map(|line| line.strip_prefix("    ").unwrap_or(line).to_owned())
                .collect();
            format!("{first}\nclass {}\n", rest.join("\n"))
        }
        None => body,
    };
    let text = format!("import unittest\n\nimport sums\n\n\nclass T(unittest.TestCase):\n{text}");
    let (base, _) = task();
    let ids = tests.iter().map(|name| {
        let class = if name.contains('.') { "" } else { "T." };
        format!("test_shape.{class}{name}")
    });
    let task = TaskInstance {
        test_patch: patch::render(&[change("test_shape.py", None, Some(&text))]),
        patch: patch::render(&[change("sums.py", Some(BUGGY), Some(&fixed()))]),
        fail_to_pass: ids.collect(),
        pass_to_pass: Vec::new(),
        ..base
    };
    (task, files(&[("sums.py", BUGGY), ("README.md", "Sums.\n")]))
}

#[test]
fn tests_of_every_shape_accuse_nobody() {
    let mut num_twins = 0;
    for (name, body, tests) in SHAPES {
        let (task, repo) = shaped(body, tests);
        let rows = [
            row(&format!("{name}, the fix"), patch_to(&fixed(), &[])),
            row(
                &format!("{name}, sum"),
                patch_to(&format!("import sys\nassert sys\n{}", fixed()), &[]),
            ),
        ];
        let grades = all_are_solved(&task, &repo, &rows);
        num_twins += usize::from(grades[1].num_twins > 0);
    }
    // Nearly every shape can be contradicted.
    assert!(num_twins + 3 >= SHAPES.len(), "{num_twins} of {}", SHAPES.len());
}
