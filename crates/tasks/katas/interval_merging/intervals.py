def merge(intervals):
    """Join overlapping or touching intervals; empty ones vanish; sorted result."""
    merged = []
    for start, end in sorted(intervals):
        if start >= end:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def total(intervals):
    """How much is covered by at least one interval."""
    return sum(end - start for start, end in merge(intervals))


def gaps(intervals, start, end):
    """Free intervals between start and end."""
    free = []
    position = start
    for busy_start, busy_end in merge(intervals):
        if busy_start > position:
            free.append((position, min(busy_start, end)))
        position = max(position, busy_end)
        if position >= end:
            break
    if position < end:
        free.append((position, end))
    return free


def most_at_once(intervals):
    """Largest number of intervals that hold at the same time."""
    events = []
    for start, end in intervals:
        events.append((start, 1))
        events.append((end, -1))
    level = highest = 0
    for _, change in sorted(events):
        level += change
        highest = max(highest, level)
    return highest
