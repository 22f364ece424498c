def column_number(letters):
    """A is 1, Z is 26, AA is 27."""
    number = 0
    for letter in letters.upper():
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


def column_letters(number):
    """The inverse of column_number."""
    letters = ""
    while number > 0:
        number, rest = divmod(number - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def split_address(address):
    """'AA10' as (column number, row number)."""
    letters = address.rstrip("0123456789")
    return column_number(letters), int(address[len(letters):])


def expand(cell_range):
    """All addresses of a range such as 'A1:B2', row by row; corners in any order."""
    first, _, second = cell_range.partition(":")
    col_a, row_a = split_address(first)
    col_b, row_b = split_address(second or first)
    left, right = sorted((col_a, col_b))
    return [
        column_letters(col) + str(row)
        for row in range(min(row_a, row_b), max(row_a, row_b) + 1)
        for col in range(left, right + 1)
    ]


def shift(address, columns, rows):
    """Move an address; None if it would leave the sheet on the left or at the top."""
    column, row = split_address(address)
    column += columns
    row += rows
    if column < 1 or row < 1:
        return None
    return column_letters(column) + str(row)
