SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def parse(text):
    """Seconds of '1h 30m', '45s', '1:02:03' or '2:15' (minutes:seconds)."""
    if ":" in text:
        total = 0
        for part in text.split(":"):
            total = total * 60 + int(part)
        return total
    total = 0
    number = ""
    for char in text.lower():
        if char.isdigit():
            number += char
        elif char in SECONDS and number:
            total += int(number) * SECONDS[char]
            number = ""
    return total


def clock(seconds):
    """H:MM:SS, or M:SS below one hour."""
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return "%d:%02d:%02d" % (hours, minutes, seconds)
    return "%d:%02d" % (minutes, seconds)


def spoken(seconds):
    """The two largest units in words: '1 hour 30 minutes'."""
    parts = []
    for name, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, seconds = divmod(seconds, size)
        if count:
            parts.append("%d %s%s" % (count, name, "" if count == 1 else "s"))
    return " ".join(parts[:2]) or "no time"


def total(texts):
    """Sum of written durations as a clock."""
    return clock(sum(map(parse, texts)))
