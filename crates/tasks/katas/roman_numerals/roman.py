SYMBOLS = [
    (1000, "M"), (900, "CM"), (500, "D"), (400, "CD"),
    (100, "C"), (90, "XC"), (50, "L"), (40, "XL"),
    (10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"),
]
VALUES = {text: value for value, text in SYMBOLS if len(text) == 1}


def to_roman(number):
    """Spell the number, taking the largest symbol that still fits each time."""
    out = ""
    for value, text in SYMBOLS:
        while number >= value:
            out += text
            number -= value
    return out


def from_roman(numeral):
    """Read a numeral; a letter before a larger one is subtracted."""
    total = 0
    previous = 0
    for letter in reversed(numeral.upper()):
        value = VALUES[letter]
        if value < previous:
            total -= value
        else:
            total += value
            previous = value
    return total


def is_canonical(numeral):
    """True if writing the numeral's value again gives the very same numeral."""
    return to_roman(from_roman(numeral)) == numeral


def add(left, right):
    """Add two numerals and return the sum as a numeral."""
    return to_roman(from_roman(left) + from_roman(right))
