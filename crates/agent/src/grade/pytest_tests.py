# Runs the test files with pytest, in the child of supervisor.py, and reports each listed test.


def prepare(workdir, site_packages, given):
    global pytest, options, tests, num_tests
    number = int(given[0])
    options, tests = given[1 : 1 + number], given[1 + number :]
    num_tests = len(tests)
    if site_packages:
        sys.path.append(site_packages)
    try:
        import pytest
    except ImportError as error:
        return ("log_parser is pytest, but it cannot be imported (%s): set "
                "install_config.site_packages to a directory that holds it" % error)


def run_tests(say):
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

        @pytest.hookimpl(trylast=True)
        def pytest_runtest_logreport(self, report):
            test = report.nodeid
            if report.outcome != "passed" or hasattr(report, "wasxfail"):
                self.spoiled.add(test)
            elif report.when == "call":
                self.passed.add(test)
            if report.when == "teardown" and test in self.index:
                good = test in self.passed and test not in self.spoiled
                say("%d %d" % (self.index[test], good))

    files = dict.fromkeys(test.split("::")[0] for test in tests)
    arguments = options + ["-p", "no:cacheprovider", "--rootdir=" + workdir] + list(files)
    try:
        pytest.main(arguments, plugins=[Plugin()])
    except BaseException as error:
        print("pytest: %s: %s" % (type(error).__name__, error), file=sys.stderr, flush=True)


start()
