"""Runs many variants of small repositories, each in a forked child, and reports as JSON lines.

Input (JSON on stdin): {"limits": {...}, "repos": [{"files": {path: text}, "tests": [module]}],
"jobs": [{"id": n, "repo": index, "changed": {path: text}, "calls": [[module, function, args]]}]}.
A job with "calls" evaluates them; one without runs the repository's test modules.

Output (stdout), one object a line: {"job", "test", "passed", "returned" | "raised" | "cut"},
{"job", "call", "value" | "raised" | "cut" | "unstable"}, and {"job", "end"} once a job is over:
"ok", or what stopped it. Children speak to this process over a pipe; their own output is dropped.
"""
import gc, importlib, importlib.machinery, json, os, re, resource, select, signal, sys, time
import unittest

ROOT = "/testbed/"
# Of one job's report: the host takes 16 MiB from one run of at most 128 jobs.
MAX_BYTES = 120 << 10
CODE = {}
# Loaded once, before any fork, if some repository imports them.
PRELOAD = set(
    "abc bisect collections copy csv dataclasses datetime decimal enum fractions functools hashlib"
    " heapq io itertools json math operator random re statistics string textwrap time typing"
    " unicodedata".split()
)
IMPORT = re.compile(r"^[ \t]*(?:import|from)[ \t]+([a-z_]+)", re.MULTILINE)


class Cut(BaseException):
    """The budget of lines is used up. No `except Exception` of the tested code catches it."""


def compiled(path, source):
    key = (path, source)
    if key not in CODE:
        CODE[key] = compile(source, ROOT + path, "exec", dont_inherit=True)
    return CODE[key]


class Modules:
    """Imports modules from a dict of path to text."""

    def __init__(self, files):
        self.files = files

    def find_spec(self, name, path=None, target=None):
        base = name.replace(".", "/")
        for file, package in ((base + "/__init__.py", True), (base + ".py", False)):
            if file in self.files:
                spec = importlib.machinery.ModuleSpec(name, self, origin=ROOT + file, is_package=package)
                spec.has_location = True
                spec.loader_state = file
                return spec
        if any(file.startswith(base + "/") for file in self.files):
            spec = importlib.machinery.ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [ROOT + base]
            return spec
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        file = module.__spec__.loader_state
        exec(compiled(file, self.files[file]), module.__dict__)


class Budget:
    """Counts the lines that the repository's code runs, and stops it past the limit: an endless
    loop ends at the same point on every machine."""

    def __init__(self, limit):
        self.limit = limit
        self.used = 0

    def start(self):
        self.used = 0
        sys.settrace(self.trace)

    def stop(self):
        sys.settrace(None)

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename.startswith(ROOT):
            return self.line(frame, event, arg)
        return None

    def line(self, frame, event, arg):
        self.used += 1
        if self.used > self.limit:
            raise Cut("lines")
        return self.line

    def over(self, error):
        return self.used > self.limit or isinstance(error, (Cut, MemoryError))


def bounded_repr(value, limit):
    text = repr(value)
    return text if len(text) <= limit else None


class Results(unittest.TestResult):
    def __init__(self, emit, budget, limits):
        super().__init__()
        self.emit, self.budget, self.repr_chars = emit, budget, limits["repr_chars"]

    def startTest(self, test):
        test.observed = None
        self.budget.start()

    def stopTest(self, test):
        self.budget.stop()

    def addSuccess(self, test):
        self.budget.stop()
        if self.budget.over(None):
            self.emit(test=test.id(), passed=False, cut="lines")
        else:
            self.emit(test=test.id(), passed=True)

    def addFailure(self, test, error):
        self.budget.stop()
        if self.budget.over(error[1]):
            self.emit(test=test.id(), passed=False, cut="lines")
        elif test.observed is None:
            self.emit(test=test.id(), passed=False)
        else:
            text = bounded_repr(test.observed[0], self.repr_chars)
            self.emit(test=test.id(), passed=False, returned=text)

    def addError(self, test, error):
        self.budget.stop()
        if self.budget.over(error[1]):
            self.emit(test=test.id(), passed=False, cut="lines or memory")
        else:
            self.emit(test=test.id(), passed=False, raised=error[0].__name__)


def assert_equal(self, first, second, msg=None):
    # As unittest's, without the search for the prettiest difference; keeps what was observed.
    self.observed = (first,)
    if not first == second:
        raise self.failureException("not equal")


def run_tests(names, emit, limits):
    unittest.TestCase.assertEqual = assert_equal
    results = Results(emit, Budget(limits["lines"]), limits)
    for name in names:
        unittest.defaultTestLoader.loadTestsFromName(name).run(results)


def run_calls(calls, emit, limits):
    budget = Budget(limits["lines"])
    for index, (module, function, args) in enumerate(calls):
        top = module.split(".")[0]
        if top in sys.stdlib_module_names:
            emit(call=index, cut="the module's name is taken by the standard library")
            continue
        try:
            importlib.import_module(module)
            code = compile(f"{module}.{function}({args})", "<call>", "eval")
            budget.start()
            try:
                value = eval(code, {top: sys.modules[top]})
            finally:
                budget.stop()
            text = bounded_repr(value, limits["repr_chars"])
            again = text is not None and eval(text, {}) == value
        except BaseException as error:
            if budget.over(error):
                emit(call=index, cut="lines or memory")
            else:
                emit(call=index, raised=type(error).__name__)
            continue
        if budget.over(None):
            emit(call=index, cut="lines")
        elif again:
            emit(call=index, value=text)
        else:
            emit(call=index, unstable=True)


def child(job, repo, limits, fd):
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for kind, soft in (
        (resource.RLIMIT_CPU, limits["cpu_seconds"]),
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, 1 << 20),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (soft, soft))
    write = os.write

    def emit(**fields):
        line = json.dumps({"job": job["id"], **fields}).encode() + b"\n"
        while line:
            line = line[write(fd, line):]

    files = {**repo["files"], **job["changed"]}
    sys.meta_path.insert(0, Modules(files))
    if "calls" in job:
        run_calls(job["calls"], emit, limits)
    else:
        run_tests(repo["tests"], emit, limits)


def run_job(job, repo, limits, out):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(reader)
            os.close(out)
            child(job, repo, limits, writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    received, end = b"", None
    deadline = time.monotonic() + limits["wall_seconds"]
    while True:
        wait = deadline - time.monotonic()
        if wait <= 0 or not select.select([reader], [], [], wait)[0]:
            end = "time"
            break
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            break
        received += chunk
        if len(received) > MAX_BYTES:
            end = "output"
            break
    os.close(reader)
    if end:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if end is None:
        end = "ok" if status == 0 else f"status {status}"
    # A line that was cut off in the middle is no result.
    received = received[: received.rfind(b"\n") + 1]
    report = received + json.dumps({"job": job["id"], "end": end}).encode() + b"\n"
    while report:
        report = report[os.write(out, report):]


def main():
    batch = json.load(sys.stdin.buffer)
    out = os.dup(1)
    for repo in batch["repos"]:
        for path, source in repo["files"].items():
            if path.endswith(".py"):
                for name in PRELOAD.intersection(IMPORT.findall(source)):
                    importlib.import_module(name)
                try:
                    compiled(path, source)
                except (SyntaxError, ValueError):
                    pass
    gc.collect()
    gc.freeze()
    for job in batch["jobs"]:
        run_job(job, batch["repos"][job["repo"]], batch["limits"], out)


main()
