from discounts import bulk, coupon


def combine(lines):
    """Join lines of the same name and price, keeping the order of first appearance."""
    joined = {}
    for name, price, quantity in lines:
        key = (name, price)
        joined[key] = joined.get(key, 0) + quantity
    return [(*key, quantity) for key, quantity in joined.items() if quantity > 0]


def total(lines, code=""):
    """Amount to pay with all discounts; delivery is 490 below 3000 cents."""
    goods = sum(bulk(price, count) for _, price, count in combine(lines))
    goods = coupon(goods, code)
    if 0 < goods < 3000:
        goods += 490
    return goods
