def gcd(a, b):
    """Greatest common divisor by Euclid's method, never negative."""
    while b:
        a, b = b, a % b
    return abs(a)


def reduce(top, bottom):
    """Lowest terms with a positive denominator; None for a zero denominator."""
    if bottom == 0:
        return None
    if bottom < 0:
        top, bottom = -top, -bottom
    common = gcd(top, bottom)
    return top // common, bottom // common


def add(x, y):
    """Sum of two fractions."""
    return reduce(x[0] * y[1] + y[0] * x[1], x[1] * y[1])


def divide(x, y):
    """Quotient of two fractions; None when dividing by zero."""
    return reduce(x[0] * y[1], x[1] * y[0])
