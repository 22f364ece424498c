def clean(text):
    """Remove dashes and spaces; a final x is written X."""
    return text.replace("-", "").replace(" ", "").upper()


def valid10(code):
    """ISBN-10: digits weighted 10 down to 1 sum to a multiple of 11; X means 10."""
    if len(code) != 10:
        return False
    total = 0
    for index, char in enumerate(code):
        if char == "X" and index == 9:
            value = 10
        elif char.isdigit():
            value = int(char)
        else:
            return False
        total += (10 - index) * value
    return total % 11 == 0


def check13(first12):
    """Check digit of an ISBN-13: weights 1 and 3 in turn."""
    total = sum(int(c) * (3 if i % 2 else 1) for i, c in enumerate(first12))
    return str((10 - total % 10) % 10)


def valid13(code):
    """Thirteen digits, a known prefix, and the right check digit."""
    if len(code) != 13 or not code.isdigit():
        return False
    if code[:3] not in ("978", "979"):
        return False
    return code[12] == check13(code[:12])


def to_isbn13(text):
    """The book's ISBN-13 without dashes, from either kind; None if it is not valid."""
    code = clean(text)
    if valid13(code):
        return code
    if valid10(code):
        start = "978" + code[:9]
        return start + check13(start)
    return None
