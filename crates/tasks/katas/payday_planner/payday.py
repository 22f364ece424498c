from weekday import index_of


def payday(year, month, day=25):
    """Salaries are due on the given day, or on the Friday before a weekend."""
    weekday = index_of(year, month, day)
    if weekday > 4:
        day -= weekday - 4
    return (year, month, day)


def workdays(year, month, first, last):
    """Number of Mondays to Fridays from the first to the last day, both included."""
    return sum(
        1 for day in range(first, last + 1) if index_of(year, month, day) < 5
    )
