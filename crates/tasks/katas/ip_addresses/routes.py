from ipv4 import contains


def next_hop(table, address, default="drop"):
    """Target of the most specific network that holds the address.

    The table is a list of (network, target); of equally specific ones the first wins.
    """
    best = default
    best_bits = -1
    for network, target in table:
        bits = int(network.partition("/")[2] or 32)
        if bits > best_bits and contains(network, address):
            best, best_bits = target, bits
    return best
