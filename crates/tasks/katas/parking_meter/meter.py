OPEN, CLOSE = 8 * 60, 20 * 60
DAY = 24 * 60


def minutes(clock):
    """Minutes since midnight of 'HH:MM'."""
    hours, mins = clock.split(":")
    return int(hours) * 60 + int(mins)


def charged_minutes(arrive, leave):
    """Minutes between 08:00 and 20:00; leaving earlier than arriving is overnight."""
    start, end = minutes(arrive), minutes(leave)
    if end < start:
        end += DAY
    total = 0
    for day_start in (0, DAY):
        first = max(start, day_start + OPEN)
        last = min(end, day_start + CLOSE)
        total += max(0, last - first)
    return total


def fee(arrive, leave, rate=50, cap=900):
    """Cents for the stay: the rate per begun half hour, at most the cap."""
    half_hours = -(-charged_minutes(arrive, leave) // 30)
    return min(half_hours * rate, cap)


def until(arrive, cents, rate=50):
    """Clock time until which the money lasts; nights are skipped for free."""
    now = minutes(arrive)
    for _ in range(cents // rate):
        if now % DAY < OPEN:
            now += OPEN - now % DAY
        elif now % DAY >= CLOSE:
            now += DAY - now % DAY + OPEN
        now += 30
    return "%02d:%02d" % (now // 60 % 24, now % 60)
