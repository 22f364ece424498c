from grid import find, open_neighbours

LETTERS = {(-1, 0): "U", (0, 1): "R", (1, 0): "D", (0, -1): "L"}


def distances(maze, start):
    """Breadth-first search: steps from the start to every reachable cell."""
    steps = {start: 0}
    frontier = [start]
    while frontier:
        following = []
        for cell in frontier:
            for neighbour in open_neighbours(maze, cell):
                if neighbour not in steps:
                    steps[neighbour] = steps[cell] + 1
                    following.append(neighbour)
        frontier = following
    return steps


def route(maze):
    """Letters U, R, D, L of a shortest way from S to E, None if there is no way."""
    cell, goal = find(maze, "S"), find(maze, "E")
    left = distances(maze, goal)
    if cell not in left:
        return None
    moves = ""
    while cell != goal:
        for following in open_neighbours(maze, cell):
            if left[following] < left[cell]:
                moves += LETTERS[following[0] - cell[0], following[1] - cell[1]]
                cell = following
                break
    return moves


def unreachable(maze):
    """How many open cells nobody can reach from S."""
    open_cells = sum(len(line) - line.count("#") for line in maze)
    return open_cells - len(distances(maze, find(maze, "S")))
