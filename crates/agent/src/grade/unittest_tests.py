# Runs the listed tests with unittest, in the child of supervisor.py.


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


def prepare(workdir, site_packages, given):
    global triples, num_tests, unittest, paths
    # unittest imports them for messages and for its command line: a third of the start-up.
    for name in ("difflib", "pprint", "argparse", "traceback", "signal"):
        load_later(name)
    import unittest

    # Each test is three fields: its file, its class, its method.
    triples = list(zip(given[0::3], given[1::3], given[2::3]))
    num_tests = len(triples)
    paths = [workdir]
    source = os.path.join(workdir, "src")
    if os.path.isdir(source):
        paths.append(source)
    if site_packages:
        sys.path.append(site_packages)


def complain(test, err):
    try:
        if isinstance(err, tuple):
            err = "%s: %s" % (err[0].__name__, err[1])
        print(("%s: %s" % (test, err))[:500], file=sys.__stderr__, flush=True)
    except BaseException:
        pass


def run_tests(say):
    sys.path[:0] = paths
    sys.argv[:] = ["unittest"]

    class Result(unittest.TestResult):
        """Says which test passed; whatever is not a plain success is none."""

        def startTest(self, test):
            self.testsRun += 1
            self.clean, self.success = True, False

        def stopTest(self, test):
            index = getattr(test, "_index", None)
            if index is not None:
                say("%d %d" % (index, self.clean and self.success))

        def spoil(self, test, err=None):
            self.clean = False
            complain(test, err)

        def addSuccess(self, test):
            self.success = True

        def addSubTest(self, test, subtest, err):
            if err is not None:
                self.spoil(subtest, err)

        addError = addFailure = addExpectedFailure = spoil
        addSkip = addUnexpectedSuccess = spoil

    suite = unittest.TestSuite()
    # The order is that of unittest's own loader, so that fixtures of modules and classes run once.
    for (path, case, method), index in sorted(zip(triples, range(num_tests))):
        name = path[: -len(".py")].replace("/", ".")
        if name.endswith(".__init__"):
            name = name[: -len(".__init__")]
        try:
            __import__(name)
            module = sys.modules[name]
            # A package may not stand in for the test file.
            if os.path.realpath(module.__file__) != os.path.realpath(os.path.join(workdir, path)):
                raise ImportError("%s is not %s" % (name, path))
            cls = getattr(module, case)
            if not issubclass(cls, unittest.TestCase):
                raise TypeError("%s is no TestCase" % case)
            test = cls(method)
            test._index = index
        except BaseException as error:
            complain("%s::%s::%s" % (path, case, method), (type(error), error))
            continue
        suite.addTest(test)
    try:
        suite.run(Result())
    except BaseException as error:
        complain("tests", (type(error), error))


start()
