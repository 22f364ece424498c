"""Turns pairs of unpacked source releases into task rows.

usage: release_tasks.py DIR < PAIRS     (each line: package buggy fixed tests)

The repository of a row is the buggy release as it is; `patch` is the difference of Python sources
outside the tests, `test_patch` that of the tests. Both sides run the fixed release's tests twice;
what fails on the buggy side and passes on the fixed side, both times, is FAIL_TO_PASS, and what
passes on both is PASS_TO_PASS. A test without a result counts as failed.

Beside tasks.jsonl stand three scripts for `patchwright rollout --script`: `fix.json` writes the fixed
release's sources, `nothing.json` submits at once, `tests-only.json` writes its tests and nothing
else. Only the first may be graded solved.
"""

import difflib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

PLUGIN = '''
import json, os

outcomes = {}

def pytest_runtest_logreport(report):
    plain = report.outcome == "passed" and not hasattr(report, "wasxfail")
    called = report.when == "call"
    seen = outcomes.setdefault(report.nodeid, {"clean": True, "called": False})
    seen["clean"] &= plain
    seen["called"] |= called and plain

def pytest_sessionfinish():
    with open(os.environ["RESULTS"], "w") as file:
        json.dump([test for test, seen in outcomes.items() if all(seen.values())], file)
'''


def tree(root, keep):
    """Files below `root` that `keep` wants, as path to bytes."""
    files = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.is_file() and "__pycache__" not in name and keep(name):
            files[name] = path.read_bytes()
    return files


def lines(data):
    """Lines as `diff` sees them: only a line feed ends one."""
    text = data.decode()
    parts = text.split("\n")
    return [part + "\n" for part in parts[:-1]] + ([parts[-1]] if parts[-1] else [])


def diff(old, new):
    """A git-style unified diff between two trees."""
    out = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        out.append(f"diff --git a/{name} b/{name}\n")
        if before is None:
            out.append("new file mode 100644\n")
        if after is None:
            out.append("deleted file mode 100644\n")
        source = "/dev/null" if before is None else f"a/{name}"
        target = "/dev/null" if after is None else f"b/{name}"
        for line in difflib.unified_diff(lines(before or b""), lines(after or b""), source, target):
            out.append(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n")
    return "".join(out)


def run_tests(root, tests, site_packages):
    """Ids of the tests that pass."""
    with tempfile.TemporaryDirectory() as scratch:
        pathlib.Path(scratch, "outcomes_plugin.py").write_text(PLUGIN)
        results = pathlib.Path(scratch, "results.json")
        path = os.pathsep.join([scratch, str(root), str(root / "src"), str(site_packages)])
        # The same interpreter and settings as the grader's: its own packages, nothing random.
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": path,
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "RESULTS": str(results),
        }
        command = [sys.executable, "-s", "-S", "-m", "pytest", "-q", "-p", "outcomes_plugin",
                   "-p", "no:cacheprovider", f"--rootdir={root}", tests]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
        if not results.exists():
            sys.exit(f"pytest did not run in {root}:\n{done.stdout}{done.stderr}")
        # A test whose id names the directory it ran in is another test everywhere else.
        return {test for test in json.loads(results.read_text()) if str(root) not in test}


def task(root, package, buggy, fixed, tests):
    old_root, new_root = root / f"{package}-{buggy}", root / f"{package}-{fixed}"
    site_packages = root / "site-packages"

    def is_test(name):
        return name.startswith(tests + "/")

    def is_source(name):
        return name.endswith(".py") and not is_test(name) and "egg-info" not in name

    patch = diff(tree(old_root, is_source), tree(new_root, is_source))
    new_tests = tree(new_root, is_test)
    test_patch = diff(tree(old_root, is_test), new_tests)

    passing = {}
    for side, source in (("old", old_root), ("new", new_root)):
        with tempfile.TemporaryDirectory() as scratch:
            copy = pathlib.Path(scratch, "repo")
            shutil.copytree(source, copy)
            shutil.rmtree(copy / tests)
            shutil.copytree(new_root / tests, copy / tests)
            runs = [run_tests(copy, tests, site_packages) for _ in range(2)]
            passing[side] = runs[0] & runs[1]
            passing[side + " ever"] = runs[0] | runs[1]
    fail_to_pass = sorted(passing["new"] - passing["old ever"])
    pass_to_pass = sorted(passing["new"] & passing["old"])
    if not fail_to_pass:
        sys.exit(f"{package} {buggy} -> {fixed}: no test tells the two apart")
    names = "\n".join(f"- {test}" for test in fail_to_pass)
    return {
        "instance_id": f"{package}-{fixed}",
        "repo": str(old_root),
        "base_commit": "",
        "patch": patch,
        "test_patch": test_patch,
        "problem_statement": f"{package} {buggy} has a bug that {fixed} corrects. "
                             f"These tests of {fixed} fail:\n{names}\n",
        "hints_text": "",
        "version": buggy,
        "FAIL_TO_PASS": fail_to_pass,
        "PASS_TO_PASS": pass_to_pass,
        "install_config": {
            "test_cmd": "pytest",
            "log_parser": "pytest",
            "site_packages": str(site_packages),
        },
    }


def writing(root, old, new, keep):
    """Turns that write the files that differ between two releases, and submit."""
    before, after = (tree(root / side, keep) for side in (old, new))
    turns = []
    for name, data in after.items():
        if before.get(name) != data:
            text = data.decode()
            text += "" if text.endswith("\n") else "\n"
            turns.append(f"```command\ncat > {name} <<'END_OF_FILE'\n{text}END_OF_FILE\n```")
    return [*turns, SUBMIT]


SUBMIT = "```command\nsubmit\n```"


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    root = pathlib.Path(sys.argv[1]).resolve()
    rows = []
    scripts = {"fix": {}, "nothing": {}, "tests-only": {}}
    for pair in sys.stdin.read().splitlines():
        package, buggy, fixed, tests = pair.split()
        row = task(root, package, buggy, fixed, tests)
        old, new = f"{package}-{buggy}", f"{package}-{fixed}"

        def is_test(name):
            return name.startswith(tests + "/") and name.endswith(".py")

        def is_source(name):
            return name.endswith(".py") and not name.startswith(tests + "/")

        scripts["fix"][row["instance_id"]] = writing(root, old, new, is_source)
        scripts["nothing"][row["instance_id"]] = [SUBMIT]
        scripts["tests-only"][row["instance_id"]] = writing(root, old, new, is_test)
        num_fail, num_pass = len(row["FAIL_TO_PASS"]), len(row["PASS_TO_PASS"])
        print(f"{row['instance_id']}: FAIL_TO_PASS {num_fail}, PASS_TO_PASS {num_pass}")
        rows.append(json.dumps(row) + "\n")
    for name, script in scripts.items():
        (root / f"{name}.json").write_text(json.dumps(script))
    part = root / "tasks.jsonl.part"
    part.write_text("".join(rows))
    part.rename(root / "tasks.jsonl")


main()
