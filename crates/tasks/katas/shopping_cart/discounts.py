def bulk(price, quantity):
    """Price of a line: every third piece of the same thing is free."""
    return price * (quantity - quantity // 3)


def coupon(total, code):
    """Total after a coupon: TEN takes 10 percent, FIVER 500 cents from 2000 upwards."""
    if code == "TEN":
        return total - total // 10
    if code == "FIVER" and total >= 2000:
        return total - 500
    return total
