#!/usr/bin/env python3
"""Writes a task set that looks like SWE-rebench: 21,336 rows of about 3,400 repositories, of which
the reference's filters leave 7,249 (arXiv 2508.03501, section 4.1). How many each filter drops is
not published; the numbers in FATES are made up so that every rule has work.

    scripts/synthetic_rebench.py OUT [--rows N] [--seed S]

OUT/rows.jsonl, OUT/rows.parquet (with pyarrow), OUT/validation.jsonl (a report of
`patchwright tasks validate`) and OUT/expected.json (the funnel). Same arguments, same bytes of
JSONL.
"""

import argparse
import json
import pathlib
import random
import sys

ROWS = 21_336
REPOS = 3_400
# What drops a row, in the order of the rules; the rest is kept.
FATES = {
    "invalid_references": 5_974,
    "modified_files": 2_000,
    "modified_lines": 1_068,
    "llm_score": 3_456,
    "flaky": 1_589,
}
WORDS = """value index cache config parser token buffer client server handler request response
session stream record field schema model layer branch commit merge report result error warning
timeout retry queue worker thread batch frame column series matrix vector array string number
integer float date time zone offset length width height color image audio video path file folder
import export module package class method function argument option default setting""".split()


def sentence(rng, words):
    return " ".join(rng.choices(WORDS, k=words)).capitalize() + "."


def hunk(removed, added, start):
    lines = [f"-    {line}\n" for line in removed] + [f"+    {line}\n" for line in added]
    head = f"@@ -{start},{len(removed) + 2} +{start},{len(added) + 2} @@\n"
    return head + " def context():\n" + "".join(lines) + "     return None\n"


def file_diff(path, removed, added, start):
    return (
        f"diff --git a/{path} b/{path}\nindex 83db48f..bf2a1c0 100644\n"
        f"--- a/{path}\n+++ b/{path}\n" + hunk(removed, added, start)
    )


def statement(rng):
    left, right, number = rng.choice(WORDS), rng.choice(WORDS), rng.randrange(1000)
    return f"print({left}_{right}, {number})"


def gold_patch(rng, package, files, lines, new_name):
    """A patch of exactly so many files and lines."""
    share = [lines // files + (1 if i < lines % files else 0) for i in range(files)]
    diffs = []
    for i, count in enumerate(share):
        body = [statement(rng) for _ in range(count)]
        if i == 0 and new_name:
            body[-1] = f"def {new_name}(value):"
        removed = body[: count // 3]
        path = f"{package}/{WORDS[i % len(WORDS)]}_{i}.py"
        diffs.append(file_diff(path, removed, body[count // 3 :], rng.randrange(1, 900)))
    return "".join(diffs)


def test_patch(rng, package, new_name):
    added = [f"assert check({rng.randrange(1000)})" for _ in range(rng.randrange(4, 40))]
    if new_name:
        added[0] = f"from {package}.{WORDS[0]}_0 import {new_name}"
    return file_diff(f"tests/test_{package}.py", [], added, rng.randrange(1, 400))


def score(rng, bad):
    """Language-model scores; 3.0 is the one that is dropped."""
    names = ["difficulty_score", "issue_text_score", "test_score"]
    scores = {name: float(rng.choice([0, 0, 1, 1, 2])) for name in names}
    if bad:
        scores[rng.choice(names)] = 3.0
    return scores


def row(rng, number, repo, fate):
    # A row that is kept, or dropped by a later rule, passes the rules before it; what the rules
    # after it would say is chance.
    order = list(FATES)
    place = order.index(fate) if fate else len(order)

    def has(defect, chance):
        mine = order.index(defect)
        return mine == place or (mine > place and rng.random() < chance)

    defects = {
        "invalid_references": has("invalid_references", 0.0),
        "modified_files": has("modified_files", 0.13),
        "modified_lines": has("modified_lines", 0.10),
        "llm_score": has("llm_score", 0.28),
        "flaky": has("flaky", 0.18),
    }
    org, name = repo.split("/")
    package = name.replace("-", "_")
    files = rng.randrange(8, 30) if defects["modified_files"] else rng.randrange(1, 8)
    lines = rng.randrange(500, 1500) if defects["modified_lines"] else rng.randrange(8 * files, 500)
    if not defects["modified_lines"] and rng.random() < 0.8:
        lines = min(lines, 8 * files + rng.randrange(40))
    lines = max(lines, 3 * files)
    new_name = f"make_{rng.choice(WORDS)}_{number}" if defects["invalid_references"] else None
    tests = [
        f"tests/test_{package}.py::Test{rng.choice(WORDS).capitalize()}::test_{i}_{w}"
        for i, w in enumerate(rng.choices(WORDS, k=rng.randrange(5, 160)))
    ]
    cut = rng.randrange(1, min(6, len(tests)))
    year, month, day = rng.randrange(2015, 2026), rng.randrange(1, 13), rng.randrange(1, 29)
    if year == 2025:
        month = rng.randrange(1, 7)
    requirements = "".join(f"{w}=={rng.randrange(9)}.{i}.0\n" for i, w in enumerate(WORDS[:40]))
    return {
        "instance_id": f"{org}__{name}-{number}",
        "repo": repo,
        "base_commit": f"{rng.getrandbits(160):040x}",
        "patch": gold_patch(rng, package, files, lines, new_name),
        "test_patch": test_patch(rng, package, new_name),
        "problem_statement": "\n".join(sentence(rng, 14) for _ in range(rng.randrange(4, 30))),
        "hints_text": sentence(rng, 40) if rng.random() < 0.4 else "",
        "created_at": f"{year}-{month:02}-{day:02} 10:{rng.randrange(60):02}:29",
        "version": f"{rng.randrange(4)}.{rng.randrange(20)}",
        "environment_setup_commit": f"{rng.getrandbits(160):040x}",
        "FAIL_TO_PASS": tests[:cut],
        "PASS_TO_PASS": tests[cut:],
        "FAIL_TO_FAIL": [],
        "PASS_TO_FAIL": [],
        "meta": {
            "commit_name": "head_commit",
            "failed_lite_validators": rng.choice(
                [[], ["has_short_problem_statement"], ["has_many_modified_files", "has_hyperlinks"]]
            ),
            "has_test_patch": True,
            "is_lite": rng.random() < 0.3,
            "llm_score": score(rng, defects["llm_score"]),
            "num_modified_files": files,
        },
        "install_config": {
            "python": rng.choice(["3.7", "3.9", "3.10"]),
            "install": "pip install -e .[dev]",
            "pre_install": ["apt-get update"] if rng.random() < 0.2 else None,
            "packages": "requirements.txt",
            "pip_packages": ["pytest", "pytest-cov"],
            "reqs_path": ["requirements/base.txt"],
            "env_yml_path": None,
            "env_vars": None,
            "no_use_env": None,
            "log_parser": "parse_log_pytest",
            "test_cmd": "pytest --no-header -rA --tb=line --color=no -p no:cacheprovider",
        },
        "requirements": requirements,
        "environment": "name: testbed\nchannels:\n- defaults\ndependencies:\n" + requirements,
        "license_name": rng.choice(["MIT License", "Apache License 2.0"]),
        "docker_image": f"swerebench/sweb.eval.x86_64.{org}_1776_{name}-{number}",
        "image_name": None,
    }, defects["flaky"]


def verdict(rng, task, flaky):
    tests = task["FAIL_TO_PASS"] + task["PASS_TO_PASS"]
    return {
        "schema_version": 1,
        "instance_id": task["instance_id"],
        "verdict": "flaky" if flaky else "valid",
        "flaky_tests": sorted(rng.sample(tests, 1)) if flaky else [],
        "failing_tests": [],
        "num_repeats": 50,
        "num_tests": len(tests),
        "seconds": round(rng.uniform(5, 90), 1),
        "reason": "",
    }


def fates(rng, rows):
    """The fate of each row, with the shares of FATES."""
    drawn = []
    for fate, count in FATES.items():
        drawn += [fate] * (count * rows // ROWS)
    drawn += [None] * (rows - len(drawn))
    rng.shuffle(drawn)
    return drawn


def parquet_writer(path, first):
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        print("no pyarrow: rows.parquet is left out", file=sys.stderr)
        return None
    text = pa.string()
    texts = pa.list_(text)
    schema = pa.schema(
        [(k, texts if isinstance(v, list) else text) for k, v in first.items()]
    )
    meta = {
        "commit_name": text,
        "failed_lite_validators": texts,
        "has_test_patch": pa.bool_(),
        "is_lite": pa.bool_(),
        "llm_score": pa.struct([(k, pa.float64()) for k in first["meta"]["llm_score"]]),
        "num_modified_files": pa.int64(),
    }
    lists = {"pre_install", "pip_packages", "reqs_path", "env_yml_path"}
    config = {k: texts if k in lists else text for k in first["install_config"]}
    for name, fields in [("meta", meta), ("install_config", config)]:
        field = pa.field(name, pa.struct(list(fields.items())))
        schema = schema.set(schema.get_field_index(name), field)
    writer = pq.ParquetWriter(path, schema, compression="snappy")
    return lambda rows: (
        writer.write_table(pa.Table.from_pylist(rows, schema=schema)) if rows else writer.close()
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    count = max(1, REPOS * args.rows // ROWS)
    repos = [f"{rng.choice(WORDS)}{i}/{rng.choice(WORDS)}-{rng.choice(WORDS)}" for i in range(count)]
    drawn = fates(rng, args.rows)
    write, group = None, []
    with (
        open(args.out / "rows.jsonl", "w", encoding="utf-8") as jsonl,
        open(args.out / "validation.jsonl", "w", encoding="utf-8") as report,
    ):
        for number, fate in enumerate(drawn):
            # Every repository once, then by chance: some have one task, some have many.
            repo = repos[number] if number < count else repos[int(count * rng.random() ** 2)]
            task, flaky = row(rng, number, repo, fate)
            jsonl.write(json.dumps(task) + "\n")
            report.write(json.dumps(verdict(rng, task, flaky)) + "\n")
            if number == 0:
                write = parquet_writer(args.out / "rows.parquet", task)
            group.append(task)
            if write and len(group) == 1000:
                write(group)
                group = []
            elif not write:
                group = []
    if write:
        write(group)
        write([])
    expected = {"num_in": args.rows, "num_kept": drawn.count(None)}
    expected["dropped"] = {fate: drawn.count(fate) for fate in FATES}
    (args.out / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")
    print(json.dumps(expected))


if __name__ == "__main__":
    main()
