from wrap import wrap


def spread(line, width):
    """Widen the gaps between words until the line fills the width, leftmost first."""
    words = line.split()
    gaps = len(words) - 1
    missing = width - len(line)
    if gaps == 0 or missing <= 0:
        return line
    each, extra = divmod(missing, gaps)
    out = words[0]
    for index, word in enumerate(words[1:]):
        out += " " * (1 + each + (1 if index < extra else 0)) + word
    return out


def justify(text, width):
    """Wrap the text and spread every line but the last to the full width."""
    lines = wrap(text, width)
    return [spread(line, width) for line in lines[:-1]] + lines[-1:]
