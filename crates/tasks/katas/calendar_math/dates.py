MONTH_LENGTHS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def is_leap(year):
    """Every fourth year is a leap year, except centuries not divisible by 400."""
    if year % 400 == 0:
        return True
    return year % 4 == 0 and year % 100 != 0


def days_in_month(year, month):
    """Number of days in the month; months count from 1."""
    if month == 2 and is_leap(year):
        return 29
    return MONTH_LENGTHS[month - 1]


def day_of_year(date):
    """Position of the date in its year: the first of January is 1."""
    year, month, day = date
    return sum(days_in_month(year, m) for m in range(1, month)) + day


def next_day(date):
    """The date one day later."""
    year, month, day = date
    if day < days_in_month(year, month):
        return (year, month, day + 1)
    if month < 12:
        return (year, month + 1, 1)
    return (year + 1, 1, 1)


def days_between(start, end):
    """Days from start to end; negative if end comes first."""
    if start > end:
        return -days_between(end, start)
    days = day_of_year(end) - day_of_year(start)
    for year in range(start[0], end[0]):
        days += 366 if is_leap(year) else 365
    return days
