def find(maze, mark):
    """(row, column) of the first cell with the mark, None if there is none."""
    for row, line in enumerate(maze):
        col = line.find(mark)
        if col >= 0:
            return row, col
    return None


def open_neighbours(maze, cell):
    """Cells reachable in one step: up, right, down, left, in this order."""
    row, col = cell
    result = []
    for r, c in ((row - 1, col), (row, col + 1), (row + 1, col), (row, col - 1)):
        if 0 <= r < len(maze) and 0 <= c < len(maze[r]) and maze[r][c] != "#":
            result.append((r, c))
    return result
