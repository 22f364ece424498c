def parse(sheet):
    """Pins per roll from a score sheet: X strike, / spare, - miss, spaces ignored."""
    rolls = []
    for mark in sheet.replace(" ", ""):
        if mark == "X":
            rolls.append(10)
        elif mark == "/":
            rolls.append(10 - rolls[-1])
        elif mark == "-":
            rolls.append(0)
        else:
            rolls.append(int(mark))
    return rolls


def frames(rolls):
    """Score of each finished frame, bonus rolls of strikes and spares included."""
    scores = []
    i = 0
    while len(scores) < 10 and i < len(rolls):
        strike = rolls[i] == 10
        spare = not strike and sum(rolls[i:i + 2]) == 10
        needed = 3 if strike or spare else 2
        if i + needed > len(rolls):
            break
        scores.append(sum(rolls[i:i + needed]))
        i += 1 if strike else 2
    return scores


def total(sheet):
    """Final score of a sheet."""
    return sum(frames(parse(sheet)))


def running(sheet):
    """Cumulated score after each frame."""
    sums = []
    for score in frames(parse(sheet)):
        sums.append(score + (sums[-1] if sums else 0))
    return sums
