LIMITS = ((90, "A"), (80, "B"), (70, "C"), (60, "D"))


def letter(points):
    """Letter for a score out of 100; anything under the lowest limit is an F."""
    for limit, name in LIMITS:
        if points >= limit:
            return name
    return "F"


def curve(scores, top=100):
    """Shift all scores by the same amount so that the best one reaches the top."""
    if not scores:
        return {}
    shift = top - max(scores.values())
    return {name: points + shift for name, points in scores.items()}


def drop_lowest(points):
    """Mean without the single lowest score, to one decimal; None if nothing is left."""
    kept = sorted(points)[1:]
    if not kept:
        return None
    return round(sum(kept) / len(kept), 1)


def ranking(scores):
    """(place, name) pairs, best first; equal scores share a place, names break ties."""
    ordered = sorted(scores, key=lambda name: (-scores[name], name))
    places = []
    for position, name in enumerate(ordered, start=1):
        if places and scores[places[-1][1]] == scores[name]:
            places.append((places[-1][0], name))
        else:
            places.append((position, name))
    return places
