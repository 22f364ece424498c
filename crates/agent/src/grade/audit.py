# Changes one expectation in each test, so that it contradicts what the test said before: where a
# test passed honestly, its twin must fail. Run by supervisor.py in a process of its own. Positions
# come from the syntax tree, so that all else in the file stays where it is. Python 3.8 and later.
import os

OPPOSITES = {
    "assertEqual": "assertNotEqual", "assertTrue": "assertFalse", "assertIn": "assertNotIn",
    "assertIs": "assertIsNot", "assertIsNone": "assertIsNotNone", "assertLess": "assertGreaterEqual",
    "assertGreater": "assertLessEqual", "assertIsInstance": "assertNotIsInstance",
    "assertRegex": "assertNotRegex", "assertAlmostEqual": "assertNotAlmostEqual",
}
OPPOSITES.update([(right, left) for left, right in OPPOSITES.items()])
EQUALITIES = set("assertEqual assertListEqual assertTupleEqual assertDictEqual assertSetEqual "
                 "assertSequenceEqual assertCountEqual assertMultiLineEqual".split())


class Dice:
    """Numbers from a seed, the same on every Python."""

    def __init__(self, seed):
        self.state = int(seed)

    def below(self, n):
        self.state = (self.state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        return (self.state >> 33) % n


def kind(node):
    return type(node).__name__


def parts(node):
    for field in node._fields:
        value = getattr(node, field, None)
        for part in value if isinstance(value, list) else [value]:
            if hasattr(part, "_fields"):
                yield part


def holds(node, kinds):
    if kind(node) in kinds:
        return True
    if kind(node) in ("FunctionDef", "AsyncFunctionDef", "Lambda", "ClassDef"):
        return False
    return any(holds(part, kinds) for part in parts(node))


class Source:
    def __init__(self, text):
        # Columns count bytes of UTF-8, without a byte order mark.
        if text.startswith(b"\xef\xbb\xbf") or b"coding" in text[:200]:
            raise ValueError
        text.decode("utf-8")
        self.text = text
        self.tree = compile(text, "tests", "exec", 0x400, True)
        self.starts = [0]
        for line in text.splitlines(True):
            self.starts.append(self.starts[-1] + len(line))

    def span(self, node):
        return (self.starts[node.lineno - 1] + node.col_offset,
                self.starts[node.end_lineno - 1] + node.end_col_offset)

    def of(self, node):
        start, end = self.span(node)
        return self.text[start:end]

    def function(self, path):
        body, node = self.tree.body, None
        for name in path:
            node = None
            for child in body:
                # The last definition is the one that counts.
                if getattr(child, "name", None) == name:
                    node = child
            if node is None:
                return None
            body = node.body
        return node if kind(node) in ("FunctionDef", "AsyncFunctionDef") else None

    def leaves(self, node):
        """Constants of a literal; `None` where it is not all literal."""
        if kind(node) == "Constant":
            return [node]
        if kind(node) in ("List", "Tuple", "Set", "Dict"):
            found = []
            for part in parts(node):
                if kind(part) in ("Load", "Store"):
                    continue
                inner = self.leaves(part)
                if inner is None:
                    return None
                found += inner
            return found
        return None

    def changed(self, node, dice):
        """Another constant of the same length, or `None`."""
        value, text = node.value, self.of(node)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            places = [0] if text.replace(b".", b"").isdigit() else []
        elif isinstance(value, (str, bytes)) and b"\\" not in text:
            places = [i for i, c in enumerate(text) if i and chr(c).isalnum() and c < 128]
        else:
            places = []
        for _ in range(min(len(places), 4)):
            at = places[dice.below(len(places))]
            old = text[at]
            first = b"0" if 48 <= old < 58 else b"a" if old >= 97 else b"A"
            size = 10 if first == b"0" else 26
            new = (old - first[0] + 1 + dice.below(size - 1)) % size + first[0]
            if at == 0 and new == 48:
                new = 49 if old != 49 else 50
            other = text[:at] + bytes([new]) + text[at + 1 :]
            try:
                again = compile(b"(" + other + b")", "", "eval", 0x400, True).body
            except (SyntaxError, ValueError):
                continue
            if kind(again) == "Constant" and type(again.value) is type(value) and again.value != value:
                return other
        return None

    def literal_edits(self, sides, dice):
        literal = [(side, self.leaves(side)) for side in sides]
        literal = [found for _, found in literal if found]
        # With two literals the test is of no code; with none there is nothing to change.
        if len(literal) != 1:
            return []
        leaf = literal[0][dice.below(len(literal[0]))]
        other = self.changed(leaf, dice)
        return [] if other is None else [(self.span(leaf), other)]

    def know_names(self, function):
        """Which names hold what a test is given, and which a literal that is used once."""
        arguments = function.args
        self.given = set(a.arg for a in arguments.args + arguments.kwonlyargs) - {"self", "cls"}
        self.literals, used = {}, {}
        nodes = list(function.body)
        for node in nodes:
            nodes.extend(parts(node))
            if kind(node) == "For":
                self.given.update(n.id for n in [node.target, *parts(node.target)] if kind(n) == "Name")
            elif kind(node) == "Assign" and kind(node.targets[0]) == "Name" and self.leaves(node.value):
                self.literals[node.targets[0].id] = node.value
            if kind(node) == "Name":
                used[node.id] = used.get(node.id, 0) + 1
        for name in list(self.literals):
            if used[name] != 2:
                self.given.add(name)
                del self.literals[name]

    def name_edits(self, stmt, sides, dice):
        """A change of what an expected value's name holds, so that who looks it up is misled."""
        for side in sides:
            name = side.id if kind(side) == "Name" else None
            if name in self.literals:
                leaves = self.leaves(self.literals[name])
                leaf = leaves[dice.below(len(leaves))]
                other = self.changed(leaf, dice)
                if other is not None:
                    return [(self.span(leaf), other)]
            if name in self.given:
                start = self.span(stmt)[0]
                if not self.text[self.starts[stmt.lineno - 1] : start].strip():
                    return [((start, start), ("%s = (%s, 0); " % (name, name)).encode())]
        return []

    def call_edits(self, stmt, dice):
        call = stmt.value
        name = getattr(call.func, "attr", None)
        if name is None or getattr(call.func.value, "id", None) != "self":
            return []
        edits = []
        if name in EQUALITIES and len(call.args) >= 2:
            sides = call.args[:2]
            edits += self.literal_edits(sides, dice) or self.name_edits(stmt, sides, dice)
        # A literal in an assertAlmostEqual may change too little.
        if not edits and name in OPPOSITES:
            start, end = self.span(call.func)
            edits.append(((end - len(name), end), OPPOSITES[name].encode()))
        return edits

    def raises_edits(self, stmt):
        for item in stmt.items:
            call = item.context_expr
            name = getattr(getattr(call, "func", None), "attr", None)
            if name in ("assertRaises", "assertRaisesRegex", "raises") and call.args:
                return [(self.span(call.args[0]), b"BufferError")]
        return []

    def edits(self, body, dice):
        found = []
        for stmt in body:
            if holds(stmt, ("Return", "Break", "Continue")):
                break
            if kind(stmt) == "Expr" and kind(stmt.value) == "Call":
                found += self.call_edits(stmt, dice)
            elif kind(stmt) == "Assert":
                test, here = stmt.test, []
                if kind(test) == "Compare" and [kind(op) for op in test.ops] == ["Eq"]:
                    sides = [test.left, test.comparators[0]]
                    here = self.literal_edits(sides, dice) or self.name_edits(stmt, sides, dice)
                found += here or [(self.span(test), b"not (" + self.of(test) + b")")]
            elif kind(stmt) == "With":
                here = self.raises_edits(stmt)
                names = [getattr(getattr(item.context_expr, "func", None), "attr", "")
                         for item in stmt.items]
                found += here or (self.edits(stmt.body, dice) if names == ["subTest"] else [])
            elif kind(stmt) == "For" and kind(stmt.iter) in ("List", "Tuple") and stmt.iter.elts:
                found += self.edits(stmt.body, dice)
        return found

    def twin(self, function, dice):
        """One edit that makes the test contradict itself."""
        self.know_names(function)
        if not holds_any(function.body, ("Yield", "YieldFrom")):
            found = self.edits(function.body, dice)
            if found:
                return found[dice.below(len(found))]
        # Nothing to contradict: it fails at once.
        first = function.body[0]
        if kind(first) == "Expr" and kind(first.value) == "Constant" and len(function.body) > 1:
            first = function.body[1]
        start = self.starts[first.lineno - 1]
        if getattr(first, "decorator_list", None) or self.text[start : start + first.col_offset].strip():
            return None
        indent = self.text[start : start + first.col_offset]
        return ((start, start), indent + b"assert 0 == 1\n")


def holds_any(body, kinds):
    return any(holds(stmt, kinds) for stmt in body)


def change(workdir, fields, say):
    dice, twins, by_file = Dice(fields[0]), [], {}
    # A test is its index, a mark, and its file and names, parted by two colons. With the mark `!`
    # (FAIL_TO_PASS) it has a twin; of the others, half have.
    for field in fields[1:]:
        index, mark, name = field.split(" ", 2)
        file, *path = name.split("::")
        those = by_file.setdefault(file, {}).setdefault(tuple(path), ([], []))
        those[0].append(int(index))
        those[1].append(mark)
    for file, functions in by_file.items():
        full = os.path.join(workdir, file)
        try:
            before = os.stat(full)
            with open(full, "rb") as stream:
                text = stream.read()
            source = Source(text)
        except (OSError, SyntaxError, ValueError, TypeError):
            continue
        edits, indices = [], []
        for path, (those, marks) in functions.items():
            function = source.function(path)
            if function is None or ("!" not in marks and dice.below(2)):
                continue
            try:
                edit = source.twin(function, dice)
            except (AttributeError, IndexError):
                continue
            if edit is not None:
                edits.append(edit)
                indices += those
        changed = text
        for (start, end), new in sorted(edits, reverse=True):
            changed = changed[:start] + new + changed[end:]
        try:
            compile(changed, "tests", "exec", 0, True)
        except (SyntaxError, ValueError):
            continue
        with open(full, "wb") as stream:
            stream.write(changed)
        os.utime(full, ns=(before.st_atime_ns, before.st_mtime_ns))
        twins += indices
    say("twins " + " ".join(str(index) for index in twins))
