# Runs bugs of a package against its tests, quickly: pytest collects once, and every bug is a forked
# child of that process, in which the changed functions get their new code. Started as
# `python3 -s -S -B -c`; reads one JSON object, writes JSON lines to standard output (what tests
# print is dropped).
#
# {"workdir", "site_packages", "options", "targets", "mode": "map" | "bugs", "sources": [path],
#  "limits": {...}, "stable": [id], "bugs": [{"id", "changed": {path: text}, "tests": [id],
#  "seconds"}]}
#
# "map" runs every test once and says which lines of "sources" it runs: {"test", "passed",
# "seconds", "lines": {index: [first, last, first, last ...]}}; what runs before the first test is {"import": {...}}.
# "bugs" runs, for each bug, the named tests, and when some fail, all of "stable" anew: {"bug",
# "phase": 1 | 2, "failed": [test], "num": tests run}, before it {"bug", "test", "message",
# "statement", "places"} for some that fail, and at last {"bug", "end": "passes" | "fails" | reason}.
import sys

sys.path[:] = [path for path in sys.path if path]
import gc
import json
import os
import resource
import select
import signal
import threading
import time
import types

WATCHED = 5
# Exit codes of a child, and how they are told.
PASSES, FAILS, UNSUPPORTED = 20, 21, 22
ENDS = {PASSES: "passes", FAILS: "fails", UNSUPPORTED: "unsupported"}


class Lines:
    """The lines of some files that run, in parts."""

    def __init__(self, paths):
        self.index = {path: number for number, path in enumerate(paths)}
        self.hits = set()

    def start(self):
        if hasattr(sys, "monitoring"):
            tool = sys.monitoring
            tool.use_tool_id(WATCHED, "lines")
            tool.register_callback(WATCHED, tool.events.LINE, self.on_line)
            tool.set_events(WATCHED, tool.events.LINE)
        self.resume()

    def resume(self):
        """Takes the trace back from a tool of the package's own, such as coverage."""
        if not hasattr(sys, "monitoring") and sys.gettrace() != self.on_call:
            threading.settrace(self.on_call)
            sys.settrace(self.on_call)

    def on_line(self, code, line):
        number = self.index.get(code.co_filename)
        if number is not None:
            self.hits.add((number, line))
        return sys.monitoring.DISABLE

    def on_call(self, frame, event, arg):
        number = self.index.get(frame.f_code.co_filename)
        if number is None:
            return None
        add = self.hits.add

        def on_line(frame, event, arg):
            if event == "line":
                add((number, frame.f_lineno))
            return on_line

        return on_line

    def take(self):
        found = {}
        for number, line in sorted(self.hits):
            runs = found.setdefault(number, [])
            if runs and runs[-1] == line - 1:
                runs[-1] = line
            else:
                runs += [line, line]
        self.hits.clear()
        if hasattr(sys, "monitoring"):
            sys.monitoring.restart_events()
        return found


class Unsupported(Exception):
    """Changed code that cannot be put into living functions."""


def pair_codes(old, new, found):
    """Old code objects to the new ones, down to nested functions."""
    found[old] = new
    olds = [c for c in old.co_consts if isinstance(c, types.CodeType)]
    news = [c for c in new.co_consts if isinstance(c, types.CodeType)]
    if [c.co_name for c in olds] == [c.co_name for c in news]:
        for pair in zip(olds, news):
            pair_codes(*pair, found)


def put_code(path, old_source, new_source, functions):
    pairs = {}
    pair_codes(compile(old_source, path, "exec", dont_inherit=True),
               compile(new_source, path, "exec", dont_inherit=True), pairs)
    for function in functions.get(path, ()):
        new = pairs.get(function.__code__)
        if new is not None and new != function.__code__:
            if new.co_freevars != function.__code__.co_freevars:
                raise Unsupported()
            function.__code__ = new


def main():
    given = b""
    while chunk := os.read(0, 1 << 16):
        given += chunk
    job = json.loads(given)
    workdir = job["workdir"]
    out = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    os.close(nothing)

    def say(to=out, **fields):
        line = json.dumps(fields).encode() + b"\n"
        while line:
            line = line[os.write(to, line) :]

    sys.path.append(job["site_packages"])
    import pytest

    sources = [os.path.join(workdir, path) for path in job["sources"]]
    watcher = Lines(sources)

    class Results:
        """What each test did, as the suite's runner has it."""

        def __init__(self):
            self.begin()

        def begin(self):
            self.state = {}

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logreport(self, report):
            state = self.state.setdefault(report.nodeid, [False, True, 0.0, None])
            state[2] += report.duration
            if report.outcome != "passed" or hasattr(report, "wasxfail"):
                state[1] = False
                if report.outcome == "failed" and state[3] is None:
                    state[3] = report
            elif report.when == "call":
                state[0] = True

        def of(self, test):
            called, clean, seconds, failure = self.state.pop(test, (False, False, 0.0, None))
            return called and clean, seconds, failure

    results = Results()

    def shown(report, test):
        crash = getattr(report.longrepr, "reprcrash", None)
        message = crash.message if crash is not None else str(report.longrepr)
        entries = getattr(getattr(report.longrepr, "reprtraceback", None), "reprentries", ())
        places, statement = [], ""
        own = test.split("::")[0]
        for entry in entries:
            place = getattr(entry, "reprfileloc", None)
            if place is None:
                continue
            places.append(f"{place.path}:{place.lineno}")
            if str(place.path).endswith(own):
                marked = [line[1:].strip() for line in entry.lines if line.startswith(">")]
                statement = " ".join(marked)[:400] or statement
        return {"message": message[:1200], "statement": statement, "places": places[-12:]}

    class Mapper:
        def pytest_load_initial_conftests(self):
            paths = [workdir, os.path.join(workdir, "src")]
            sys.path[:0] = [path for path in paths if os.path.isdir(path)]
            if job["mode"] == "map":
                watcher.resume()

        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session):
            say(**{"import": watcher.take()})
            for index, item in enumerate(session.items):
                after = session.items[index + 1] if index + 1 < len(session.items) else None
                watcher.resume()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                passed, seconds, _ = results.of(item.nodeid)
                say(test=item.nodeid, passed=passed, seconds=seconds, lines=watcher.take())
            say(done=True)
            return True

    class Bugs(Mapper):
        @pytest.hookimpl(tryfirst=True)
        def pytest_runtestloop(self, session):
            functions = {}
            watched = set(sources)
            for thing in gc.get_objects():
                if type(thing) is types.FunctionType and thing.__code__.co_filename in watched:
                    functions.setdefault(thing.__code__.co_filename, []).append(thing)
            old = {}
            for path in sources:
                with open(path, encoding="utf-8", newline="") as file:
                    old[path] = file.read()
            gc.collect()
            gc.freeze()
            for bug in job["bugs"]:
                self.run(session, bug, functions, old)
            say(done=True)
            return True

        def run(self, session, bug, functions, old):
            changed = {os.path.join(workdir, p): text for p, text in bug["changed"].items()}
            # Processes that tests start, and modules that are not loaded yet, see the bug as well.
            for path, text in changed.items():
                with open(path, "w", encoding="utf-8", newline="") as file:
                    file.write(text)
            end = "fails"
            for phase, tests in ((1, bug["tests"]), (2, job["stable"])):
                if end != "fails":
                    break
                reader, writer = os.pipe()
                pid = os.fork()
                if pid == 0:
                    code = 1
                    try:
                        os.close(reader)
                        os.close(out)
                        failed = self.child(session, bug, phase, tests, changed, functions, old,
                                            writer)
                        code = FAILS if failed else PASSES
                    except Unsupported:
                        code = UNSUPPORTED
                    finally:
                        os._exit(code)
                os.close(writer)
                seconds = bug["seconds"] if phase == 1 else job["seconds"]
                end = self.follow(pid, reader, seconds)
            for path in changed:
                with open(path, "w", encoding="utf-8", newline="") as file:
                    file.write(old[path])
            say(bug=bug["id"], end=end)

        def follow(self, pid, reader, seconds):
            end, deadline, size = None, time.monotonic() + 20 * seconds + 60, 0
            pending = b""
            while end is None:
                wait = deadline - time.monotonic()
                if wait <= 0 or not select.select([reader], [], [], wait)[0]:
                    end = "time"
                    break
                chunk = os.read(reader, 1 << 16)
                if not chunk:
                    break
                size += len(chunk)
                if size > job["limits"]["output_bytes"]:
                    end = "output"
                    break
                whole, feed, pending = (pending + chunk).rpartition(b"\n")
                whole += feed
                while whole:
                    whole = whole[os.write(out, whole) :]
            os.close(reader)
            # The child leads a group: what its tests started ends with it.
            try:
                os.killpg(pid, signal.SIGKILL)
            except OSError:
                pass
            if end:
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            if end is None:
                end = ENDS.get(os.waitstatus_to_exitcode(status), "stopped")
            return end

        def child(self, session, bug, phase, tests, changed, functions, old, pipe):
            """Whether some of the tests fail."""
            os.setpgid(0, 0)
            # CPU time, so that an endless loop ends alike on a busy machine; an even harder bound
            # stands behind it.
            seconds = 0.5 + 3 * (bug["seconds"] if phase == 1 else job["seconds"])
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, seconds)
            resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 2, int(seconds) + 3))
            memory = job["limits"]["memory_bytes"]
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for path, text in changed.items():
                put_code(path, old[path], text, functions)
            wanted = set(tests)
            items = [item for item in session.items if item.nodeid in wanted]
            failed = []
            for index, item in enumerate(items):
                after = items[index + 1] if index + 1 < len(items) else None
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                passed, _, failure = results.of(item.nodeid)
                if passed:
                    continue
                if failure is not None and phase == 1 and len(failed) < job["limits"]["shown"]:
                    say(pipe, bug=bug["id"], test=item.nodeid, **shown(failure, item.nodeid))
                failed.append(item.nodeid)
            say(pipe, bug=bug["id"], phase=phase, failed=failed, num=len(items))
            return bool(failed)

    if job["mode"] == "map":
        plugin = Mapper()
        watcher.start()
    else:
        plugin = Bugs()
    # Output is captured in memory: a file would be shared with the children.
    arguments = [*job["options"], "-p", "no:cacheprovider", "-p", "no:terminalreporter",
                 "--tb=long", "--capture=sys", f"--rootdir={workdir}", *job["targets"]]
    try:
        code = int(pytest.main(arguments, plugins=[plugin, results]))
    except BaseException as error:
        say(refused=f"{type(error).__name__}: {error}")
        os._exit(0)
    say(code=code)
    os._exit(0)


main()
