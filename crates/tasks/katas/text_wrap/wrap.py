def wrap(text, width):
    """Fill lines greedily with words so that no line is longer than width."""
    lines = []
    current = []
    used = 0
    for word in text.split():
        needed = len(word) if not current else used + 1 + len(word)
        if current and needed > width:
            lines.append(" ".join(current))
            current, used = [word], len(word)
        else:
            current.append(word)
            used = needed
    if current:
        lines.append(" ".join(current))
    return lines


def shorten(text, width):
    """The text on one line, cut after a whole word with '...' if it does not fit."""
    line = " ".join(text.split())
    if len(line) <= width:
        return line
    kept = wrap(line, width - 3)[0]
    return kept + "..." if len(kept) + 3 <= width else "..."
