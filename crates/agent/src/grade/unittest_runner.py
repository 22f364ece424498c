# Runs the tests that standard input names with unittest, and reports each over the channel.
# Started as `python3 -s -S -B -c`: quick, and nothing of the repository is imported before the
# channel is set up. The file is data of the grader; it is never written into a sandbox.
import sys

# The working directory, which `-c` puts first, comes back below, once unittest is loaded.
sys.path[:] = [path for path in sys.path if path]
import os


class Later(type(sys)):
    """A module that is loaded when something of it is first used."""

    def __getattr__(self, name):
        spec = self.__dict__.pop("_later", None)
        if spec is None:
            raise AttributeError(name)
        self.__class__ = type(sys)
        spec.loader.exec_module(self)
        return getattr(self, name)


def load_later(name):
    spec = sys.meta_path[-1].find_spec(name)
    module = Later(name)
    module.__spec__ = module._later = spec
    module.__loader__, module.__file__ = spec.loader, spec.origin
    sys.modules[name] = module


# unittest imports them for messages and for its command line: a third of the start-up.
for name in ("difflib", "pprint", "argparse", "traceback"):
    load_later(name)

import unittest


def main():
    given = b""
    while chunk := os.read(0, 1 << 16):
        given += chunk
    nonce, workdir, site_packages, *tests = given.decode().split("\0")
    # What the tests print goes to standard error; standard output is the channel.
    channel = os.dup(1)
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)

    def report(message):
        os.write(channel, f"\n{nonce} {message}\n".encode())

    sys.path[:0] = [workdir]
    source = os.path.join(workdir, "src")
    if os.path.isdir(source):
        sys.path[1:1] = [source]
    if site_packages:
        sys.path.append(site_packages)
    sys.argv[:] = ["unittest"]
    report("ready")

    class Result(unittest.TestResult):
        """Says which test passed; whatever is not a plain success is none."""

        def startTest(self, test):
            self.testsRun += 1
            self.clean, self.success = True, False

        def stopTest(self, test):
            index = getattr(test, "_index", None)
            if index is not None:
                report(f"{index} {int(self.clean and self.success)}")

        def spoil(self, test, err=None):
            self.clean = False
            say(test, err)

        def addSuccess(self, test):
            self.success = True

        def addSubTest(self, test, subtest, err):
            if err is not None:
                self.spoil(subtest, err)

        addError = addFailure = addExpectedFailure = spoil
        addSkip = addUnexpectedSuccess = spoil

    def say(test, err):
        try:
            if isinstance(err, tuple):
                err = f"{err[0].__name__}: {err[1]}"
            print(f"{test}: {err}"[:500], file=sys.__stderr__, flush=True)
        except BaseException:
            pass

    suite = unittest.TestSuite()
    # Each test is three fields: its file, its class, its method. The order is that of
    # unittest's own loader, so that fixtures of modules and classes run once.
    triples = zip(tests[0::3], tests[1::3], tests[2::3])
    for (path, case, method), index in sorted(zip(triples, range(len(tests)))):
        name = path[: -len(".py")].replace("/", ".")
        if name.endswith(".__init__"):
            name = name[: -len(".__init__")]
        try:
            __import__(name)
            module = sys.modules[name]
            # A package may not stand in for the test file.
            if os.path.realpath(module.__file__) != os.path.realpath(os.path.join(workdir, path)):
                raise ImportError(f"{name} is not {path}")
            cls = getattr(module, case)
            if not issubclass(cls, unittest.TestCase):
                raise TypeError(f"{case} is no TestCase")
            test = cls(method)
            test._index = index
        except BaseException as error:
            say(f"{path}::{case}::{method}", (type(error), error))
            continue
        suite.addTest(test)
    try:
        suite.run(Result())
    except BaseException as error:
        say("tests", (type(error), error))
    report("done")
    # No exit handlers, no waiting for threads that tests left.
    os._exit(0)


main()
