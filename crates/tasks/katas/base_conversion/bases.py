DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def to_base(number, base):
    """Digits of the number in the base, with a minus sign if it is negative."""
    if number < 0:
        return "-" + to_base(-number, base)
    if number < base:
        return DIGITS[number]
    return to_base(number // base, base) + DIGITS[number % base]


def from_base(text, base):
    """Value of the digits; None if one of them does not exist in the base."""
    negative = text.startswith("-")
    value = 0
    for char in text.lower().lstrip("-"):
        digit = DIGITS.find(char)
        if digit < 0 or digit >= base:
            return None
        value = value * base + digit
    return -value if negative else value


def group(digits, size, separator="_"):
    """Group digits from the right: ('1234567', 3) gives '1_234_567'."""
    head = len(digits) % size
    parts = [digits[:head]] if head else []
    parts += [digits[i:i + size] for i in range(head, len(digits), size)]
    return separator.join(parts)


def ones(number):
    """How many ones the binary form has."""
    count = 0
    while number:
        number &= number - 1
        count += 1
    return count


def twos_complement(number, bits):
    """Binary digits of a signed number in the given width; None if it does not fit."""
    half = 2 ** (bits - 1)
    if not -half <= number < half:
        return None
    return to_base(number % 2 ** bits, 2).rjust(bits, "0")
