from filters import FILTERS


def evaluate(expression, values):
    """Value of 'name ? default | filter | filter' as text."""
    head, *names = [part.strip() for part in expression.split("|")]
    name, _, default = head.partition("?")
    text = str(values.get(name.strip(), default.strip()))
    for name in names:
        if name in FILTERS:
            text = FILTERS[name](text)
    return text


def render(template, values):
    """Replace all placeholders; one that is never closed is copied as it is."""
    out = ""
    rest = template
    while True:
        before, opener, after = rest.partition("{{")
        expression, closer, tail = after.partition("}}")
        if not closer:
            return out + rest
        out += before + evaluate(expression, values)
        rest = tail
