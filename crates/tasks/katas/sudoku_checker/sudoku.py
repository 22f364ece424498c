SIZE = 4


def peers(index):
    """Indices of all other fields in the same row, column or 2x2 box."""
    row, col = divmod(index, SIZE)
    found = []
    for other in range(SIZE * SIZE):
        r, c = divmod(other, SIZE)
        same_box = r // 2 == row // 2 and c // 2 == col // 2
        if other != index and (r == row or c == col or same_box):
            found.append(other)
    return found


def candidates(grid, index):
    """Digits that could stand in the field, as a string."""
    used = {grid[other] for other in peers(index)}
    return "".join(digit for digit in "1234" if digit not in used)


def is_valid(grid):
    """True if no digit appears twice among peers; empty fields do not matter."""
    for index, digit in enumerate(grid):
        if digit != "." and digit not in candidates(grid, index):
            return False
    return True


def solve(grid):
    """First solution in digit order by trying out, None if there is none."""
    if not is_valid(grid):
        return None
    index = grid.find(".")
    if index == -1:
        return grid
    for digit in candidates(grid, index):
        solved = solve(grid[:index] + digit + grid[index + 1:])
        if solved:
            return solved
    return None
