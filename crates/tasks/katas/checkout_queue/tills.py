def earliest(free_at):
    """Index of the till that is free first, the leftmost one on a tie."""
    best = 0
    for index, time in enumerate(free_at):
        if time < free_at[best]:
            best = index
    return best


def waits(customers, tills=1):
    """Waiting time of each customer; everybody takes the till that is free first."""
    free_at = [0] * tills
    result = []
    for arrival, service in customers:
        till = earliest(free_at)
        start = max(arrival, free_at[till])
        free_at[till] = start + service
        result.append(start - arrival)
    return result


def closing_time(customers, tills=1):
    """When the last customer leaves; 0 if nobody comes."""
    waited = waits(customers, tills)
    leaving = [a + w + s for (a, s), w in zip(customers, waited)]
    return max(leaving, default=0)


def longest_line(customers):
    """Most customers standing at a single till at once, the one served included."""
    longest = 0
    leaving = []
    for (arrival, service), wait in zip(customers, waits(customers)):
        leaving = [time for time in leaving if time > arrival]
        leaving.append(arrival + wait + service)
        longest = max(longest, len(leaving))
    return longest


def tills_needed(customers, patience):
    """Smallest number of tills at which nobody waits longer than the patience."""
    tills = 1
    while max(waits(customers, tills), default=0) > patience:
        tills += 1
    return tills
