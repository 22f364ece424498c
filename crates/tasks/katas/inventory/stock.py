"""The shelf is a dictionary from item name to quantity, never changed in place."""


def receive(shelf, item, quantity):
    """A new shelf with the delivered quantity added; unknown items start at zero."""
    updated = dict(shelf)
    updated[item] = updated.get(item, 0) + quantity
    return updated


def can_take(shelf, wanted):
    """True if the shelf holds at least the wanted quantity of every item."""
    return all(shelf.get(item, 0) >= count for item, count in wanted.items())


def take(shelf, wanted):
    """A new shelf without the wanted items; items that reach zero disappear."""
    left = {}
    for item, count in shelf.items():
        remaining = count - wanted.get(item, 0)
        if remaining > 0:
            left[item] = remaining
    return left
