def moving_average(series, window):
    """Mean of every run of `window` neighbours, so window - 1 fewer than values."""
    if window < 1 or window > len(series):
        return []
    total = sum(series[:window])
    means = [total / window]
    for index in range(window, len(series)):
        total += series[index] - series[index - window]
        means.append(total / window)
    return means


def exponential(series, weight):
    """Exponential smoothing: weight for the new value, the rest for the past."""
    smooth = []
    for value in series:
        previous = smooth[-1] if smooth else value
        smooth.append(weight * value + (1 - weight) * previous)
    return smooth


def peaks(series):
    """Indices of values greater than both of their neighbours; ends do not count."""
    return [
        i for i in range(1, len(series) - 1)
        if series[i - 1] < series[i] > series[i + 1]
    ]


def jumps(series, limit):
    """(index, change) wherever the step from the value before exceeds the limit."""
    found = []
    for index, (before, after) in enumerate(zip(series, series[1:]), start=1):
        if abs(after - before) > limit:
            found.append((index, after - before))
    return found
