def parse(picture):
    """Set of (row, column) of the living cells of a drawing."""
    return {
        (row, col)
        for row, line in enumerate(picture.split("/"))
        for col, char in enumerate(line)
        if char == "#"
    }


def neighbours(cell, alive):
    """How many of the eight cells around the given one are alive."""
    row, col = cell
    count = 0
    for r in (row - 1, row, row + 1):
        for c in (col - 1, col, col + 1):
            if (r, c) != cell and (r, c) in alive:
                count += 1
    return count


def step(alive):
    """Next generation: birth with three neighbours, survival with two or three."""
    near = (-1, 0, 1)
    candidates = {(r + i, c + j) for r, c in alive for i in near for j in near}
    following = set()
    for cell in candidates:
        count = neighbours(cell, alive)
        if count == 3 or (count == 2 and cell in alive):
            following.add(cell)
    return following


def draw(alive):
    """Smallest drawing that holds all the living cells; rows are joined by '/'."""
    if not alive:
        return ""
    rows = [r for r, _ in alive]
    cols = [c for _, c in alive]
    lines = []
    for r in range(min(rows), max(rows) + 1):
        across = range(min(cols), max(cols) + 1)
        lines.append("".join("#" if (r, c) in alive else "." for c in across))
    return "/".join(lines)


def run(picture, generations):
    """Drawing after the given number of generations."""
    alive = parse(picture)
    for _ in range(generations):
        alive = step(alive)
    return draw(alive)
