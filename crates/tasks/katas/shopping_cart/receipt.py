from cart import combine, total


def money(cents):
    """Cents as text with two decimals."""
    return "%d.%02d" % (cents // 100, cents % 100)


def receipt(lines, code=""):
    """Printed lines: each article, then the total."""
    printed = [
        "%d x %s @ %s" % (quantity, name, money(price))
        for name, price, quantity in combine(lines)
    ]
    return printed + ["total " + money(total(lines, code))]
