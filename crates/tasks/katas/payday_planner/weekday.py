NAMES = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
OFFSETS = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4]


def index_of(year, month, day):
    """Day of the week by Sakamoto's method; Monday is 0."""
    if month < 3:
        year -= 1
    leaps = year // 4 - year // 100 + year // 400
    return (year + leaps + OFFSETS[month - 1] + day + 6) % 7


def name_of(year, month, day):
    """Three-letter English name of the weekday."""
    return NAMES[index_of(year, month, day)]


def unlucky_months(year):
    """Months of the year that have a Friday the 13th."""
    return [month for month in range(1, 13) if name_of(year, month, 13) == "Fri"]
