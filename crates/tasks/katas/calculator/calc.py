from tokens import tokenize

PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "%": 2, "^": 3}


def to_postfix(tokens):
    """Reverse Polish order by the shunting-yard method; ^ groups to the right."""
    output = []
    stack = []
    for token in tokens:
        if token.isdigit():
            output.append(token)
        elif token == "(":
            stack.append(token)
        elif token == ")":
            while stack[-1] != "(":
                output.append(stack.pop())
            stack.pop()
        else:
            own = PRECEDENCE[token] + (1 if token == "^" else 0)
            while stack and PRECEDENCE.get(stack[-1], 0) >= own:
                output.append(stack.pop())
            stack.append(token)
    return output + stack[::-1]


def run(postfix):
    """Value of a reverse Polish token list; None on division by zero."""
    stack = []
    for token in postfix:
        if token.isdigit():
            stack.append(int(token))
            continue
        right, left = stack.pop(), stack.pop()
        if token in "/%" and right == 0:
            return None
        stack.append({
            "+": lambda: left + right,
            "-": lambda: left - right,
            "*": lambda: left * right,
            "/": lambda: left // right,
            "%": lambda: left % right,
            "^": lambda: left ** right,
        }[token]())
    return stack[0]


def evaluate(text):
    """Value of a formula."""
    return run(to_postfix(tokenize(text)))
