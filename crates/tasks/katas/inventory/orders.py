from stock import can_take, take


def fulfil(shelf, orders):
    """Serve orders one after the other; return (served order numbers, final shelf)."""
    served = []
    for number, wanted in enumerate(orders, start=1):
        if can_take(shelf, wanted):
            shelf = take(shelf, wanted)
            served.append(number)
    return served, shelf


def to_buy(shelf, targets):
    """Sorted (item, quantity) pairs needed to bring the shelf up to its targets."""
    missing = []
    for item in sorted(targets):
        gap = targets[item] - shelf.get(item, 0)
        if gap > 0:
            missing.append((item, gap))
    return missing
