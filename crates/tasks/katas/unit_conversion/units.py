# How many base units (metre, gram, millilitre) one of each unit is.
FACTORS = {
    "mm": ("length", 0.001), "cm": ("length", 0.01), "m": ("length", 1.0),
    "km": ("length", 1000.0), "in": ("length", 0.0254), "ft": ("length", 0.3048),
    "g": ("weight", 1.0), "kg": ("weight", 1000.0), "lb": ("weight", 453.59237),
    "ml": ("volume", 1.0), "l": ("volume", 1000.0), "cup": ("volume", 240.0),
    "tbsp": ("volume", 15.0), "tsp": ("volume", 5.0),
}


def convert(value, source, target):
    """Convert to the target unit; None if a unit is unknown or the kinds differ."""
    if source not in FACTORS or target not in FACTORS:
        return None
    source_kind, source_factor = FACTORS[source]
    target_kind, target_factor = FACTORS[target]
    if source_kind != target_kind:
        return None
    return round(value * source_factor / target_factor, 4)


def celsius(fahrenheit):
    """Temperature in degrees Celsius, to one decimal."""
    return round((fahrenheit - 32) * 5 / 9, 1)
