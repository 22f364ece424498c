LETTERS = dict(zip(
    "abcdefghijklmnopqrstuvwxyz",
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- "
    ".--. --.- .-. ... - ..- ...- .-- -..- -.-- --..".split(),
))


def digit_code(digit):
    """Five signs: 1 is '.----', 5 is '.....', 6 is '-....', 0 is '-----'."""
    if digit <= 5:
        dots = digit
        return "." * dots + "-" * (5 - dots)
    dashes = digit - 5
    return "-" * dashes + "." * (5 - dashes)


CODES = dict(LETTERS)
for _digit in range(10):
    CODES[str(_digit)] = digit_code(_digit)
CODES["0"] = "-----"
SIGNS = {code: char for char, code in CODES.items()}


def encode(text):
    """Morse code of the text; characters without a code are left out."""
    words = []
    for word in text.lower().split():
        codes = [CODES[char] for char in word if char in CODES]
        if codes:
            words.append(" ".join(codes))
    return " / ".join(words)


def decode(code):
    """Text of a Morse message in lower case; an unknown code gives '#'."""
    words = code.split("/")
    return " ".join("".join(SIGNS.get(c, "#") for c in word.split()) for word in words)


def duration(code):
    """Time units: dot 1, dash 3, pauses 1 in a letter, 3 between letters, 7 words."""
    units = 0
    for word in code.split(" / "):
        for letter in word.split(" "):
            signs = [3 if sign == "-" else 1 for sign in letter]
            units += sum(signs) + len(signs) - 1 + 3
        units += 4
    return units - 7
