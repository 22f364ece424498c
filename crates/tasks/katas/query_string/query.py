SAFE = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.~"
HEX = "0123456789abcdefABCDEF"


def quote(text):
    """Percent-encode all bytes but the safe ones; a space becomes '+'."""
    out = []
    for byte in text.encode("utf-8"):
        char = chr(byte)
        if char in SAFE:
            out.append(char)
        elif char == " ":
            out.append("+")
        else:
            out.append("%%%02X" % byte)
    return "".join(out)


def unquote(text):
    """Undo quote; a % that no two hex digits follow stays as it is."""
    data = bytearray()
    i = 0
    while i < len(text):
        pair = text[i + 1:i + 3]
        if text[i] == "%" and len(pair) == 2 and all(c in HEX for c in pair):
            data.append(int(pair, 16))
            i += 3
        else:
            data += (" " if text[i] == "+" else text[i]).encode("utf-8")
            i += 1
    return data.decode("utf-8", "replace")


def parse(url):
    """Parameters of the URL in order: a dict from name to the list of its values."""
    query = url.partition("?")[2].partition("#")[0]
    params = {}
    for piece in query.split("&"):
        if piece:
            name, _, value = piece.partition("=")
            params.setdefault(unquote(name), []).append(unquote(value))
    return params


def build(base, pairs):
    """Append (name, value) pairs to a base URL that may already have a query."""
    if not pairs:
        return base
    tail = "&".join(quote(name) + "=" + quote(str(value)) for name, value in pairs)
    return base + ("&" if "?" in base else "?") + tail
