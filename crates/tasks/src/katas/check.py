"""Reads katas as JSON from standard input and prints what is wrong with them, one finding a line.

The last line is `checked N`, N being the number of examples that were run.
"""
import ast
import importlib
import importlib.abc
import importlib.util
import json
import sys


class InMemory(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports the modules of one kata from their text."""

    def __init__(self, files):
        self.files = files

    def find_spec(self, name, path=None, target=None):
        if name + ".py" in self.files:
            return importlib.util.spec_from_loader(name, self)
        return None

    def get_source(self, name):
        return self.files[name + ".py"]


def run(kata):
    """Yield what is wrong with the examples' values."""
    modules = [path[:-3] for path in kata["files"] if path.endswith(".py")]
    finder = InMemory(kata["files"])
    sys.meta_path.insert(0, finder)
    for example in kata["examples"]:
        call = "%(module)s.%(function)s(%(args)s)" % example
        try:
            value = repr(eval(call, {example["module"]: importlib.import_module(example["module"])}))
        except Exception as error:
            value = "%s: %s" % (type(error).__name__, error)
        if value != example["expected"]:
            yield "%s is %s, not %s" % (call, value, example["expected"])
    sys.meta_path.remove(finder)
    for module in modules:
        sys.modules.pop(module, None)


def functions(tree):
    """All functions and methods below a syntax tree, except constructors."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name != "__init__":
            yield node


def inspect(kata):
    """Yield what is wrong with the sources."""
    calls = [(example["module"], example["function"]) for example in kata["examples"]]
    public = 0
    for path, source in kata["files"].items():
        if not path.endswith(".py"):
            continue
        module, lines = path[:-3], source.splitlines()
        if module in getattr(sys, "stdlib_module_names", ()):
            yield "%s hides a module of the standard library" % path
        tree = ast.parse(source, feature_version=(3, 8))
        for node in functions(tree):
            around = " ".join(lines[max(0, node.lineno - 2):node.lineno])
            if ast.get_docstring(node) is None and "#" not in around:
                yield "%s: %s does not say what it is for" % (path, node.name)
            if node in tree.body and not node.name.startswith("_"):
                public += 1
                if calls.count((module, node.name)) < 2:
                    yield "%s: %s has fewer than two examples" % (path, node.name)
    if public < 2:
        yield "fewer than two public functions"


checked = 0
for kata in json.load(sys.stdin):
    for finding in (*run(kata), *inspect(kata)):
        print("%s: %s" % (kata["name"], finding))
    checked += len(kata["examples"])
print("checked %d" % checked)
