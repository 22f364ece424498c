from trie import END, build, collect, descend


def complete(words, prefix, limit=3):
    """Up to `limit` words that begin with the prefix."""
    node = descend(build(words), prefix)
    if node is None:
        return []
    return collect(node, prefix)[:limit]


def shortest_unique(words, word):
    """Shortest prefix of the word that no other word of the list shares."""
    root = build(words)
    for length in range(1, len(word)):
        node = descend(root, word[:length])
        if node is not None and len(collect(node, "")) == 1:
            return word[:length]
    return word


def longest_known(words, text):
    """Longest word of the list with which the text begins, '' if there is none."""
    root = build(words)
    for length in range(len(text), 0, -1):
        node = descend(root, text[:length])
        if node is not None and END in node:
            return text[:length]
    return ""
