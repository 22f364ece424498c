from cards import groups, parse, straight_top

NAMES = ["high card", "pair", "two pairs", "three of a kind", "straight", "flush",
         "full house", "four of a kind", "straight flush"]
SHAPES = {(2, 1): 1, (2, 2): 2, (3, 1): 3, (3, 2): 6, (4, 1): 7}


def score(hand):
    """A tuple that is greater for the better hand: category, then deciding ranks."""
    ranks, suits = parse(hand)
    flush = len(set(suits)) == 1
    top = straight_top(ranks)
    if top:
        return (8 if flush else 4, top)
    if flush:
        return (5, *ranks)
    grouped = groups(ranks)
    category = SHAPES.get((grouped[0][0], grouped[1][0]), 0)
    return (category, *(rank for _, rank in grouped))


def name(hand):
    """English name of the hand's category."""
    return NAMES[score(hand)[0]]


def best(hands):
    """Index of the winning hand, or the string 'split' if the best ones are equal."""
    scores = [score(hand) for hand in hands]
    top = max(scores)
    return scores.index(top) if scores.count(top) == 1 else "split"
