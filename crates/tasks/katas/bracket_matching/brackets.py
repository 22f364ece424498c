PAIRS = {")": "(", "]": "[", "}": "{"}
CLOSERS = {opener: closer for closer, opener in PAIRS.items()}


def first_error(text):
    """Index of the first wrong bracket; for unclosed ones, that of the innermost.

    Returns -1 if everything matches.
    """
    stack = []
    for index, char in enumerate(text):
        if char in CLOSERS:
            stack.append(index)
        elif char in PAIRS:
            if not stack or text[stack[-1]] != PAIRS[char]:
                return index
            stack.pop()
    return stack[-1] if stack else -1


def is_balanced(text):
    """True if no bracket is wrong."""
    return first_error(text) == -1


def depth(text):
    """Deepest nesting of a balanced text; None if it is not balanced."""
    if not is_balanced(text):
        return None
    level = deepest = 0
    for char in text:
        if char in CLOSERS:
            level += 1
            deepest = max(deepest, level)
        elif char in PAIRS:
            level -= 1
    return deepest


def complete(text):
    """Append the missing closers; None if a closing bracket is already wrong."""
    waiting = []
    for char in text:
        if char in CLOSERS:
            waiting.append(CLOSERS[char])
        elif char in PAIRS:
            if not waiting or waiting.pop() != char:
                return None
    return text + "".join(reversed(waiting))
