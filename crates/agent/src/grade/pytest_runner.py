# Runs the test files that standard input names with pytest, and reports each listed test over the
# channel. Started as `python3 -s -B -c` (with -S if the task brings its packages). The file is
# data of the grader; it is never written into a sandbox.
import sys

# The working directory, which `-c` puts first, comes back below, once pytest is loaded.
sys.path[:] = [path for path in sys.path if path]
import os


def main():
    given = b""
    while chunk := os.read(0, 1 << 16):
        given += chunk
    nonce, workdir, site_packages, num_options, *rest = given.decode().split("\0")
    options, tests = rest[: int(num_options)], rest[int(num_options) :]
    # What the tests print goes to standard error; standard output is the channel.
    channel = os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def report(message):
        os.write(channel, f"\n{nonce} {message}\n".encode())

    if site_packages:
        sys.path.append(site_packages)
    try:
        import pytest
    except ImportError as error:
        report(f"refused log_parser is pytest, but it cannot be imported ({error}): "
               "set install_config.site_packages to a directory that holds it")
        os._exit(0)

    class Plugin:
        """Says which listed test passed all its phases; whatever is not a plain pass is none."""

        def __init__(self):
            self.index = {test: index for index, test in enumerate(tests)}
            self.spoiled = set()
            self.passed = set()

        @pytest.hookimpl(tryfirst=True)
        def pytest_load_initial_conftests(self):
            # After plugins are found, so that none comes from the repository's metadata.
            paths = [workdir, os.path.join(workdir, "src")]
            sys.path[:0] = [path for path in paths if os.path.isdir(path)]
            report("ready")

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logreport(self, report):
            test = report.nodeid
            if report.outcome != "passed" or hasattr(report, "wasxfail"):
                self.spoiled.add(test)
            elif report.when == "call":
                self.passed.add(test)
            if report.when == "teardown" and test in self.index:
                good = test in self.passed and test not in self.spoiled
                say(f"{self.index[test]} {int(good)}")

    say = report
    files = dict.fromkeys(test.split("::")[0] for test in tests)
    arguments = [*options, "-p", "no:cacheprovider", f"--rootdir={workdir}", *files]
    try:
        pytest.main(arguments, plugins=[Plugin()])
    except BaseException as error:
        print(f"pytest: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    report("done")
    # No exit handlers, no waiting for threads that tests left.
    os._exit(0)


main()
