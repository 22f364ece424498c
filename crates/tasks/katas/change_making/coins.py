def greedy(amount, coins):
    """Take the largest coin that fits until all is paid; None if that gets stuck."""
    given = []
    for coin in sorted(coins, reverse=True):
        while coin <= amount:
            given.append(coin)
            amount -= coin
    return given if amount == 0 else None


def fewest(amount, coins):
    """Smallest possible number of coins for the amount, -1 if it cannot be paid."""
    best = [0] + [None] * amount
    for target in range(1, amount + 1):
        for coin in coins:
            if coin <= target and best[target - coin] is not None:
                candidate = best[target - coin] + 1
                if best[target] is None or candidate < best[target]:
                    best[target] = candidate
    return -1 if best[amount] is None else best[amount]


def ways(amount, coins):
    """In how many ways the amount can be paid; the order of coins does not matter."""
    counts = [1] + [0] * amount
    for coin in coins:
        for target in range(coin, amount + 1):
            counts[target] += counts[target - coin]
    return counts[amount]


def pay_out(amount, till):
    """Greedy change from a till {coin: how many}; returns (given, left in the till).

    If the till cannot pay the exact amount, nothing is given and it stays as it was.
    """
    given = {}
    for coin in sorted(till, reverse=True):
        number = min(amount // coin, till[coin])
        if number > 0:
            given[coin] = number
            amount -= coin * number
    if amount > 0:
        return {}, till
    return given, {coin: till[coin] - given.get(coin, 0) for coin in till}
