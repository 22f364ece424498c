def split_line(line):
    """Split a line into fields. Quotes protect commas; a doubled quote is a quote."""
    fields = []
    field = ""
    quoted = False
    i = 0
    while i < len(line):
        char = line[i]
        if quoted and char == '"' and line[i + 1:i + 2] == '"':
            field += '"'
            i += 1
        elif char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            fields.append(field)
            field = ""
        else:
            field += char
        i += 1
    fields.append(field)
    return fields


def join_line(fields):
    """Write fields as one line, quoting only those that need it."""
    def protect(field):  # quotes inside are doubled
        if "," in field or '"' in field:
            return '"' + field.replace('"', '""') + '"'
        return field
    return ",".join(protect(field) for field in fields)
