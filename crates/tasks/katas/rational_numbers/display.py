from ratio import add, reduce


def mixed(x):
    """As a mixed number: '7/3' is '2 1/3', whole numbers stand alone."""
    top, bottom = x
    sign = "-" if top < 0 else ""
    whole, rest = divmod(abs(top), bottom)
    if rest == 0:
        return sign + str(whole)
    part = "%d/%d" % (rest, bottom)
    return sign + (str(whole) + " " + part if whole else part)


def parse(text):
    """Read '3', '-2/4' or '0.125' as a fraction."""
    if "/" in text:
        top, bottom = text.split("/")
        return reduce(int(top), int(bottom))
    whole, _, decimals = text.partition(".")
    return reduce(int(whole + decimals), 10 ** len(decimals))


def total(texts):
    """Sum of several written fractions, as a mixed number."""
    result = (0, 1)
    for text in texts:
        result = add(result, parse(text))
    return mixed(result)
