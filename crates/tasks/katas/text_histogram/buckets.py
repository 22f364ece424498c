def bucket_start(value, width):
    """Lower end of the value's bucket; buckets start at the multiples of the width."""
    return value // width * width


def count(values, width):
    """(start, count) of every bucket from the lowest to the highest, empty ones too."""
    if not values:
        return []
    tally = {}
    for value in values:
        start = bucket_start(value, width)
        tally[start] = tally.get(start, 0) + 1
    return [
        (start, tally.get(start, 0))
        for start in range(min(tally), max(tally) + 1, width)
    ]
