"""Balance of an account from its list of entries."""


def signed(entry):
    """Return the entry's amount: positive for money in, negative for money out."""
    kind, amount = entry
    if kind == "in":
        return amount
    return -amount


def balance(entries, opening=0):
    """Return the balance after all entries, starting from the opening balance."""
    total = opening
    for entry in entries:
        total += signed(entry)
    return total


def lowest_point(entries, opening=0):
    """Return the smallest balance the account ever had, the opening one included."""
    lowest = current = opening
    for entry in entries:
        current += signed(entry)
        if current < lowest:
            lowest = current
    return lowest
