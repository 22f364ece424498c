def normalize(path):
    """Resolve '.', '..' and doubled slashes; an absolute path never climbs over '/'."""
    absolute = path.startswith("/")
    parts = []
    for part in path.split("/"):
        if part in ("", "."):
            continue
        if part != "..":
            parts.append(part)
        elif parts and parts[-1] != "..":
            parts.pop()
        elif not absolute:
            parts.append("..")
    joined = "/".join(parts)
    return "/" + joined if absolute else joined or "."


def join(base, *more):
    """Append paths one after the other; an absolute one starts afresh."""
    result = base
    for path in more:
        result = path if path.startswith("/") else result + "/" + path
    return normalize(result)


def relative(target, start):
    """How to reach the target from the directory start; both are absolute."""
    to = [part for part in normalize(target).split("/") if part]
    origin = [part for part in normalize(start).split("/") if part]
    shared = 0
    while shared < min(len(to), len(origin)) and to[shared] == origin[shared]:
        shared += 1
    steps = [".."] * (len(origin) - shared) + to[shared:]
    return "/".join(steps) or "."


def split_name(path):
    """(directory, stem, extension); a leading dot of the name starts no extension."""
    folder, _, name = path.rpartition("/")
    dot = name.rfind(".")
    if dot <= 0:
        return folder, name, ""
    return folder, name[:dot], name[dot + 1:]
