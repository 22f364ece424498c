from headings import headings


def section_numbers(text):
    """Headings with numbers such as '1.2 Title'; skipped levels count as 0."""
    counters = []
    numbered = []
    for level, title in headings(text):
        counters = counters[:level] + [0] * (level - len(counters))
        counters[level - 1] += 1
        numbered.append(".".join(map(str, counters)) + " " + title)
    return numbered


def contents(text, depth=2):
    """Indented list of the headings down to the given level."""
    lines = []
    for level, title in headings(text):
        if level <= depth:
            anchor = "".join(c for c in title.lower() if c.isalnum() or c == " ")
            link = "[%s](#%s)" % (title, anchor.replace(" ", "-"))
            lines.append("  " * (level - 1) + "- " + link)
    return lines
