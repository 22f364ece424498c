END = "."


def build(words):
    """Nested dicts, one level per letter; the END key marks a finished word."""
    root = {}
    for word in words:
        node = root
        for letter in word:
            node = node.setdefault(letter, {})
        node[END] = True
    return root


def descend(node, prefix):
    """The node reached by following the prefix, None if there is none."""
    for letter in prefix:
        if letter not in node:
            return None
        node = node[letter]
    return node


def collect(node, prefix):
    """All words below a node in alphabetical order, the prefix put before them."""
    words = [prefix] if END in node else []
    for letter in sorted(node):
        if letter != END:
            words += collect(node[letter], prefix + letter)
    return words
