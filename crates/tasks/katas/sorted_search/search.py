def first_not_below(values, target):
    """Index of the first value that is not below the target, len(values) if none is."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if values[middle] < target:
            low = middle + 1
        else:
            high = middle
    return low


def find(values, target):
    """Index of the first appearance of the target, -1 if it is absent."""
    index = first_not_below(values, target)
    if index < len(values) and values[index] == target:
        return index
    return -1


def count(values, target):
    """How often the whole number target appears."""
    return first_not_below(values, target + 1) - first_not_below(values, target)


def nearest(values, target):
    """The value closest to the target, the smaller one on a tie; None if empty."""
    if not values:
        return None
    index = first_not_below(values, target)
    if index == 0:
        return values[0]
    if index == len(values):
        return values[-1]
    below, above = values[index - 1], values[index]
    return above if above - target < target - below else below


def whole_root(number):
    """Largest whole number whose square is not above the given one."""
    low, high = 0, number + 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle * middle <= number:
            low = middle
        else:
            high = middle
    return low
