def common(old, new):
    """A longest common subsequence of the two lists."""
    lengths = [[0] * (len(new) + 1) for _ in range(len(old) + 1)]
    for i in range(len(old) - 1, -1, -1):
        for j in range(len(new) - 1, -1, -1):
            if old[i] == new[j]:
                lengths[i][j] = lengths[i + 1][j + 1] + 1
            else:
                lengths[i][j] = max(lengths[i + 1][j], lengths[i][j + 1])
    kept = []
    i = j = 0
    while i < len(old) and j < len(new):
        if old[i] == new[j]:
            kept.append(old[i])
            i += 1
            j += 1
        elif lengths[i + 1][j] >= lengths[i][j + 1]:
            i += 1
        else:
            j += 1
    return kept


def diff(old, new):
    """Lines with a mark: ' ' kept, '-' removed, '+' added; removals come first."""
    out = []
    i = j = 0
    for line in common(old, new) + [None]:
        while i < len(old) and old[i] != line:
            out.append("-" + old[i])
            i += 1
        while j < len(new) and new[j] != line:
            out.append("+" + new[j])
            j += 1
        if line is not None:
            out.append(" " + line)
            i += 1
            j += 1
    return out


def apply(marked, reverse=False):
    """The new list from a diff, or the old one if reverse is set."""
    dropped = "+" if reverse else "-"
    return [line[1:] for line in marked if line[0] != dropped]


def summary(old, new):
    """Text like '+2 -1' for the number of added and removed lines."""
    marks = [line[0] for line in diff(old, new)]
    return "+%d -%d" % (marks.count("+"), marks.count("-"))
