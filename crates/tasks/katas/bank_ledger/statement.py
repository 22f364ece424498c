from ledger import balance, signed


def lines(entries, opening=0):
    """One text line per entry: its number, signed amount and the balance after it."""
    result = []
    for position, entry in enumerate(entries):
        after = balance(entries[:position + 1], opening)
        result.append("%d. %+d -> %d" % (position + 1, signed(entry), after))
    return result


def overdraft_fee(entries, opening=0, fee=5):
    """Charge the fee once for every entry that leaves the account below zero."""
    count = 0
    for end in range(1, len(entries) + 1):
        if balance(entries[:end], opening) < 0:
            count += 1
    return count * fee
