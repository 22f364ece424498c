# (lower limit, percent on the part of the income above it)
BRACKETS = [(0, 0), (10000, 10), (30000, 25), (80000, 40)]


def tax(income):
    """Sum over the brackets of the income's part inside each, times its rate."""
    owed = 0
    for index, (lower, percent) in enumerate(BRACKETS):
        if income <= lower:
            break
        upper = BRACKETS[index + 1][0] if index + 1 < len(BRACKETS) else income
        owed += (min(income, upper) - lower) * percent
    return owed // 100


def marginal_rate(income):
    """Percent taken from the next unit of money earned."""
    rate = 0
    for lower, percent in BRACKETS:
        if income >= lower:
            rate = percent
    return rate
