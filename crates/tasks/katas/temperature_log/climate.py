def readings(log):
    """Only the days that have a reading, as (day number, degrees); days start at 1."""
    return [(day, value) for day, value in enumerate(log, 1) if value is not None]


def extremes(log):
    """((day, lowest), (day, highest)), the earliest on ties; None without readings."""
    known = readings(log)
    if not known:
        return None
    coldest = min(known, key=lambda pair: pair[1])
    warmest = max(known, key=lambda pair: pair[1])
    return coldest, warmest


def median(log):
    """Middle reading, or the mean of the two middle ones."""
    values = sorted(value for _, value in readings(log))
    if not values:
        return None
    half = len(values) // 2
    if len(values) % 2 == 1:
        return values[half]
    return (values[half - 1] + values[half]) / 2


def longest_frost(log):
    """Length of the longest streak of days below zero; a missing day breaks it."""
    best = streak = 0
    for value in log:
        if value is not None and value < 0:
            streak += 1
            best = max(best, streak)
        else:
            streak = 0
    return best


def fill_gaps(log):
    """Replace each missing day by the last known reading before it, if there is one."""
    filled = []
    last = None
    for value in log:
        if value is not None:
            last = value
        filled.append(last)
    return filled
