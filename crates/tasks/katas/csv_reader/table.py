from csvline import split_line


def read(text):
    """Rows as dictionaries keyed by the header line; short rows are padded with ''."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return []
    header = split_line(lines[0])
    rows = []
    for line in lines[1:]:
        fields = split_line(line)
        fields += [""] * (len(header) - len(fields))
        rows.append(dict(zip(header, fields)))
    return rows


def column_sum(text, column):
    """Sum of a column's whole numbers; empty fields count as zero."""
    return sum(int(row[column] or 0) for row in read(text))
