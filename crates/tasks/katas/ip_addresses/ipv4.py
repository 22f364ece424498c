def to_number(address):
    """The address as one 32-bit number; None if it is malformed."""
    parts = address.split(".")
    if len(parts) != 4:
        return None
    number = 0
    for part in parts:
        if not part.isdigit() or int(part) > 255:
            return None
        number = number * 256 + int(part)
    return number


def to_text(number):
    """Dotted notation of a 32-bit number."""
    return ".".join(str(number >> shift & 255) for shift in (24, 16, 8, 0))


def network_range(network):
    """(first, last) address of a network, as text."""
    address, _, bits = network.partition("/")
    size = 2 ** (32 - int(bits or 32))
    first = to_number(address) // size * size
    return to_text(first), to_text(first + size - 1)


def contains(network, address):
    """True if the address lies in the network."""
    number = to_number(address)
    if number is None:
        return False
    first, last = map(to_number, network_range(network))
    return first <= number <= last
