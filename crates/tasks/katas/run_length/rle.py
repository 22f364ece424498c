def runs(text):
    """Group equal neighbours: a list of [character, length] in order."""
    groups = []
    for char in text:
        if groups and groups[-1][0] == char:
            groups[-1][1] += 1
        else:
            groups.append([char, 1])
    return groups


def encode(text):
    """Write each run as its length, unless that is one, and its character."""
    return "".join((str(n) if n > 1 else "") + char for char, n in runs(text))


def decode(code):
    """Undo encode. A character without a count stands for itself."""
    text = ""
    count = ""
    for char in code:
        if char.isdigit():
            count += char
        else:
            text += char * int(count or 1)
            count = ""
    return text


def longest_run(text):
    """Character and length of the longest run, the first one on a tie."""
    best = ("", 0)
    for char, length in runs(text):
        if length > best[1]:
            best = (char, length)
    return best


def saving(text):
    """How many characters encoding saves, never below zero."""
    return max(0, len(text) - len(encode(text)))
