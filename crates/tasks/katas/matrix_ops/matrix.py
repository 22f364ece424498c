def shape(matrix):
    """Rows and columns of the matrix; an empty one is (0, 0)."""
    if not matrix:
        return (0, 0)
    return (len(matrix), len(matrix[0]))


def transpose(matrix):
    """Swap rows and columns."""
    return [list(column) for column in zip(*matrix)]


def multiply(left, right):
    """The matrix product, or None if the inner sizes differ."""
    if shape(left)[1] != shape(right)[0]:
        return None
    columns = transpose(right)
    return [
        [sum(a * b for a, b in zip(row, column)) for column in columns]
        for row in left
    ]


def minor(matrix, row, col):
    """The matrix without the given row and column."""
    return [
        [value for j, value in enumerate(line) if j != col]
        for i, line in enumerate(matrix)
        if i != row
    ]


def determinant(matrix):
    """Determinant by expansion along the first row; None if not square."""
    rows, cols = shape(matrix)
    if rows != cols:
        return None
    if rows == 0:
        return 1
    total = 0
    for col, value in enumerate(matrix[0]):
        sign = 1 if col % 2 == 0 else -1
        total += sign * value * determinant(minor(matrix, 0, col))
    return total
