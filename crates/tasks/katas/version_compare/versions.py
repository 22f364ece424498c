def parse(version):
    """Split into (numbers, tag); a leading 'v' is ignored and '1.2' equals '1.2.0'."""
    if version[:1] in ("v", "V"):
        version = version[1:]
    core, _, tag = version.partition("-")
    numbers = [int(part) for part in core.split(".")]
    while len(numbers) < 3:
        numbers.append(0)
    return numbers, tag


def compare(left, right):
    """-1, 0 or 1. A version with a tag comes before the same one without."""
    left_numbers, left_tag = parse(left)
    right_numbers, right_tag = parse(right)
    if left_numbers != right_numbers:
        return -1 if left_numbers < right_numbers else 1
    if left_tag == right_tag:
        return 0
    if not left_tag:
        return 1
    if not right_tag:
        return -1
    return -1 if left_tag < right_tag else 1


def newest(versions):
    """The greatest version of a list, None if it is empty."""
    best = None
    for version in versions:
        if best is None or compare(version, best) > 0:
            best = version
    return best


def compatible(version, wanted):
    """Same major number, not older than wanted, and a finished release."""
    numbers, tag = parse(version)
    same_major = numbers[0] == parse(wanted)[0][0]
    return same_major and not tag and compare(version, wanted) >= 0


def bump(version, part):
    """Raise 'major', 'minor' or 'patch' by one and reset the numbers after it."""
    numbers, _ = parse(version)
    index = ("major", "minor", "patch").index(part)
    numbers[index] += 1
    for later in range(index + 1, len(numbers)):
        numbers[later] = 0
    return ".".join(str(number) for number in numbers)
