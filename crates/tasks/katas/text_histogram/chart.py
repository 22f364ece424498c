from buckets import count


def bar(amount, largest, size):
    """A bar of '#' in proportion to the largest amount; a non-zero amount shows one."""
    if amount == 0 or largest == 0:
        return ""
    return "#" * max(1, amount * size // largest)


def draw(values, width, size=10):
    """Lines like '  10 | ### 3' for each bucket."""
    counted = count(values, width)
    largest = max((amount for _, amount in counted), default=0)
    lines = []
    for start, amount in counted:
        parts = [str(start).rjust(4), "|", bar(amount, largest, size), str(amount)]
        lines.append(" ".join(part for part in parts if part))
    return lines


def mode(values, width):
    """Start of the fullest bucket, the lowest one on a tie; None without values."""
    best = None
    for start, amount in count(values, width):
        if best is None or amount > best[1]:
            best = (start, amount)
    return best[0] if best else None
