LINES = [
    (0, 1, 2), (3, 4, 5), (6, 7, 8),
    (0, 3, 6), (1, 4, 7), (2, 5, 8),
    (0, 4, 8), (2, 4, 6),
]


def winner(board):
    """'X' or 'O' if one of them fills a line, None otherwise."""
    for a, b, c in LINES:
        if board[a] != "." and board[a] == board[b] == board[c]:
            return board[a]
    return None


def to_move(board):
    """Whose turn it is; X begins. None once the game is over."""
    if winner(board) or "." not in board:
        return None
    return "X" if board.count("X") == board.count("O") else "O"


def winning_moves(board, player):
    """Free squares (0 to 8) that complete a line for the player, in order."""
    moves = []
    for square in range(9):
        if board[square] == ".":
            after = board[:square] + player + board[square + 1:]
            if winner(after) == player:
                moves.append(square)
    return moves


def suggest(board):
    """A sensible move: win, else block, else the centre, else the first free square."""
    player = to_move(board)
    if player is None:
        return None
    rival = "O" if player == "X" else "X"
    for candidates in (winning_moves(board, player), winning_moves(board, rival)):
        if candidates:
            return candidates[0]
    if board[4] == ".":
        return 4
    return board.index(".")
