ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen "
    "fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = ". . twenty thirty forty fifty sixty seventy eighty ninety".split()


def spell(number):
    """English words of a number, with 'and' after the hundreds."""
    if number < 0:
        return "minus " + spell(-number)
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return TENS[tens] + ("-" + ONES[ones] if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return ONES[hundreds] + " hundred" + (" and " + spell(rest) if rest else "")
    thousands, rest = divmod(number, 1000)
    words = spell(thousands) + " thousand"
    if not rest:
        return words
    return words + (" and " if rest < 100 else " ") + spell(rest)


def read(words):
    """The number that the words mean; the opposite of spell."""
    total = current = 0
    sign = 1
    for word in words.replace("-", " ").split():
        if word == "minus":
            sign = -1
        elif word in ONES:
            current += ONES.index(word)
        elif word in TENS:
            current += 10 * TENS.index(word)
        elif word == "hundred":
            current *= 100
        elif word == "thousand":
            total += current * 1000
            current = 0
    return sign * (total + current)


def ordinal(number):
    """Short ordinal: 1st, 2nd, 3rd, 4th, 11th."""
    if 11 <= number % 100 <= 13:
        return "%dth" % number
    return "%d%s" % (number, {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th"))
