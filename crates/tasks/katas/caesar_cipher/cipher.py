ALPHABET = "abcdefghijklmnopqrstuvwxyz"


def shift_letter(char, amount):
    """Move a letter along the alphabet, around the end; other characters stay."""
    position = ALPHABET.find(char.lower())
    if position < 0:
        return char
    moved = ALPHABET[(position + amount) % 26]
    return moved.upper() if char.isupper() else moved


def caesar(text, amount):
    """Shift every letter by the same amount; a negative amount decodes."""
    return "".join(shift_letter(char, amount) for char in text)


def vigenere(text, keyword, decode=False):
    """Shift letter by letter with the keyword, which advances only on letters."""
    sign = -1 if decode else 1
    out = []
    used = 0
    for char in text:
        if char.lower() in ALPHABET:
            amount = ALPHABET.index(keyword[used % len(keyword)])
            out.append(shift_letter(char, sign * amount))
            used += 1
        else:
            out.append(char)
    return "".join(out)


def guess_shift(secret):
    """Shift that turned 'e' into the most frequent letter, the earlier one on a tie."""
    letters = secret.lower()
    common = max(ALPHABET, key=letters.count)
    return (ALPHABET.index(common) - ALPHABET.index("e")) % 26
