def digits_of(number):
    """The digits as a list; spaces and dashes are skipped; None on anything else."""
    digits = []
    for char in number:
        if char in " -":
            continue
        if not char.isdigit():
            return None
        digits.append(int(char))
    return digits


def checksum(digits):
    """Luhn sum modulo 10: every second digit from the right doubles (less 9 if > 9)."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        if place % 2 == 1:
            digit *= 2
            if digit > 9:
                digit -= 9
        total += digit
    return total % 10


def is_valid(number):
    """True for at least two digits whose checksum is zero."""
    digits = digits_of(number)
    return digits is not None and len(digits) >= 2 and checksum(digits) == 0


def check_digit(number):
    """The digit to append to make the number valid, None if it is malformed."""
    digits = digits_of(number)
    if digits is None:
        return None
    return (10 - checksum(digits + [0])) % 10


def brand(number):
    """Card brand by prefix and length, 'unknown' for the rest."""
    digits = digits_of(number) or []
    text = "".join(map(str, digits))
    if len(text) in (13, 16) and text.startswith("4"):
        return "visa"
    if len(text) == 16 and 51 <= int(text[:2]) <= 55:
        return "mastercard"
    if len(text) == 15 and text[:2] in ("34", "37"):
        return "amex"
    return "unknown"
