from units import convert


def scale(ingredients, cooked_for, wanted_for):
    """Scale (name, amount, unit) triples to another number of people."""
    ratio = wanted_for / cooked_for
    return [
        (name, round(amount * ratio, 2), unit)
        for name, amount, unit in ingredients
    ]


def total_volume(ingredients):
    """Sum in millilitres of all ingredients measured by volume; others are skipped."""
    total = 0.0
    for _, amount, unit in ingredients:
        volume = convert(amount, unit, "ml")
        if volume is not None:
            total += volume
    return total
