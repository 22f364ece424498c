def initials(text):
    """First letters of all words, in upper case, each with a dot."""
    return "".join(word[0].upper() + "." for word in text.split())


def plural(text):
    """A rough English plural: box -> boxes, city -> cities, cat -> cats."""
    if text.endswith(("s", "x", "ch", "sh")):
        return text + "es"
    if text.endswith("y") and text[-2:-1] not in ("a", "e", "i", "o", "u"):
        return text[:-1] + "ies"
    return text + "s"


FILTERS = {
    "upper": str.upper,
    "trim": str.strip,
    "initials": initials,
    "plural": plural,
}
