def parse_heading(line):
    """(level, title) of a heading line such as '## Title', None for any other line."""
    level = len(line) - len(line.lstrip("#"))
    if not 1 <= level <= 6 or line[level:level + 1] != " ":
        return None
    return level, line[level:].strip(" #")


def headings(text):
    """All headings in order; lines inside ``` fences are not headings."""
    found = []
    fenced = False
    for line in text.split("\n"):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced:
            heading = parse_heading(line)
            if heading:
                found.append(heading)
    return found
