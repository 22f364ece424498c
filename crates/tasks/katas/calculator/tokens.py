def tokenize(text):
    """Numbers and single-character operators, in order; spaces are skipped."""
    tokens = []
    in_number = False
    for char in text:
        if char.isdigit() and in_number:
            tokens[-1] += char
        elif not char.isspace():
            tokens.append(char)
        in_number = char.isdigit()
    return tokens
