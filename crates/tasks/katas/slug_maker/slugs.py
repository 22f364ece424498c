ACCENTS = {"ä": "ae", "ö": "oe", "ü": "ue", "ß": "ss", "é": "e", "è": "e", "ñ": "n"}


def slugify(title, limit=40):
    """Lower-case words joined by '-', cut between words if longer than the limit."""
    text = ""
    for char in title.lower():
        char = ACCENTS.get(char, char)
        if char.isascii() and char.isalnum():
            text += char
        elif char != "'":
            text += " "
    words = text.split()
    while len(words) > 1 and len("-".join(words)) > limit:
        words.pop()
    return "-".join(words)[:limit]


def unique(slug, taken):
    """The slug itself, or with the first free number from 2 on behind it."""
    if slug not in taken:
        return slug
    number = 2
    while "%s-%d" % (slug, number) in taken:
        number += 1
    return "%s-%d" % (slug, number)


def assign(titles):
    """Slugs of all titles in order, each one different; 'untitled' for empty ones."""
    result = []
    for title in titles:
        result.append(unique(slugify(title) or "untitled", result))
    return result


def snake_case(name):
    """'parseHTTPReply' -> 'parse_http_reply'."""
    out = ""
    for i, char in enumerate(name):
        if char.isupper() and i > 0:
            after_lower = not name[i - 1].isupper()
            before_lower = name[i + 1:i + 2].islower()
            if after_lower or before_lower:
                out += "_"
        out += char.lower()
    return out


def camel_case(name):
    """'parse_http_reply' -> 'parseHttpReply'."""
    head, *tail = name.split("_")
    return head + "".join(word.capitalize() for word in tail)
