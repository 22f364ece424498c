RANKS = "23456789TJQKA"


def parse(hand):
    """(ranks, suits): ranks as numbers 2 to 14 sorted downwards, suits as letters."""
    cards = hand.split()
    ranks = sorted((RANKS.index(card[0]) + 2 for card in cards), reverse=True)
    return ranks, [card[1] for card in cards]


def groups(ranks):
    """(count, rank) pairs, largest group first, then the higher rank."""
    return sorted(((ranks.count(rank), rank) for rank in set(ranks)), reverse=True)


def straight_top(ranks):
    """Highest rank of a straight, 0 if it is none; the ace may also count as one."""
    if ranks == [14, 5, 4, 3, 2]:
        return 5
    if all(ranks[i] - 1 == ranks[i + 1] for i in range(4)):
        return ranks[0]
    return 0
