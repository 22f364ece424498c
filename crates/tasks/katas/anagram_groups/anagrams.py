def key(phrase):
    """The sorted lower-case letters of a phrase: equal for all its anagrams."""
    return "".join(sorted(char for char in phrase.lower() if char.isalpha()))


def are_anagrams(first, second):
    """True if both have the same letters but are not simply the same text."""
    return key(first) == key(second) and first.lower() != second.lower()


def groups(words):
    """Lists of two or more anagrams, in order of first appearance."""
    table = {}
    for word in words:
        table.setdefault(key(word), []).append(word)
    return [found for found in table.values() if len(found) > 1]


def can_spell(word, letters):
    """True if the word can be laid with the letter tiles; '?' stands for any letter."""
    tiles = list(letters.lower())
    jokers = tiles.count("?")
    for char in word.lower():
        if char in tiles:
            tiles.remove(char)
        elif jokers > 0:
            jokers -= 1
        else:
            return False
    return True
