def convert(text):
    """Turn the text of a value into a bool, an int, or leave it a string."""
    lowered = text.lower()
    if lowered in ("true", "yes", "on"):
        return True
    if lowered in ("false", "no", "off"):
        return False
    digits = text[1:] if text.startswith("-") else text
    if digits.isdigit():
        return int(text)
    return text


def parse_line(line):
    """Return (key, value) of a line, or None for blanks, comments and broken lines."""
    line = line.split("#", 1)[0].strip()
    if "=" not in line:
        return None
    key, _, value = line.partition("=")
    if not key.strip():
        return None
    return key.strip(), convert(value.strip())


def parse(text):
    """Parse a file; keys inside a [section] become 'section.key', the last one wins."""
    settings = {}
    prefix = ""
    for raw in text.splitlines():
        line = raw.strip()
        if line.startswith("[") and line.endswith("]"):
            name = line[1:-1].strip()
            prefix = name + "." if name else ""
            continue
        pair = parse_line(line)
        if pair is not None:
            settings[prefix + pair[0]] = pair[1]
    return settings


def overlay(base, changes):
    """Settings of base, replaced by those of changes; a value of None removes a key."""
    merged = dict(base)
    for key, value in changes.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged
