LETTERS = {
    "2": "abc", "3": "def", "4": "ghi", "5": "jkl",
    "6": "mno", "7": "pqrs", "8": "tuv", "9": "wxyz",
}


def digits(text):
    """All digits of the text; letters count as the key they are printed on."""
    found = ""
    for char in text.lower():
        if char.isdigit():
            found += char
            continue
        for key, letters in LETTERS.items():
            if char in letters:
                found += key
    return found


def parse(text):
    """(country code, national number), or None if it cannot be a phone number."""
    number = digits(text)
    if text.strip().startswith("+"):
        country, national = number[:-10], number[-10:]
    elif len(number) == 11 and number[0] == "1":
        country, national = "1", number[1:]
    else:
        country, national = "1", number
    if len(national) != 10 or not 1 <= len(country) <= 3:
        return None
    if national[0] in "01":
        return None
    return country, national


def pretty(text):
    """Like '(212) 555-0199', with '+44 ' in front if foreign; or 'invalid'."""
    parsed = parse(text)
    if parsed is None:
        return "invalid"
    country, number = parsed
    prefix = "" if country == "1" else "+" + country + " "
    return "%s(%s) %s-%s" % (prefix, number[:3], number[3:6], number[6:])


def same(first, second):
    """True if both texts mean the same valid number."""
    return parse(first) is not None and parse(first) == parse(second)
