"""Prints 1 when all tests that must pass did, else 0; a result that is missing is a failure.

Reads the lines of `pytest -rA` (PASSED path::test) and of `unittest -v` (test (id) ... ok).
"""

import json
import re
import sys

row = json.load(open(sys.argv[1], encoding="utf-8"))
passed, failed = set(), set()
for line in open(sys.argv[2], encoding="utf-8", errors="replace"):
    line = line.rstrip("\n")
    summary = re.match(r"(PASSED|FAILED|ERROR|XPASS|XFAIL) (.+)$", line)
    verbose = re.match(r"(\w+) \(([\w.]+)\)(?:.*) \.\.\. (ok|FAIL|ERROR|skipped.*)$", line)
    if summary:
        name = summary[2] if summary[1] == "PASSED" else summary[2].split(" - ")[0]
        (passed if summary[1] in ("PASSED", "XFAIL") else failed).add(name)
    elif verbose:
        test, place, result = verbose.groups()
        names = {place, f"{place}.{test}", f"{test} ({place})"}
        (passed if result == "ok" else failed).update(names)
wanted = set(row["FAIL_TO_PASS"]) | set(row["PASS_TO_PASS"])
print(int(bool(row["FAIL_TO_PASS"]) and wanted <= passed - failed))
