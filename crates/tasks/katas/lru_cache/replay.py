from cache import Cache


def replay(capacity, script):
    """Run a script like 'put a 1; get a' and return the result of every command."""
    cache = Cache(capacity)
    results = []
    for command in script.split(";"):
        words = command.split()
        if not words:
            continue
        if words[0] == "put":
            results.append(cache.put(words[1], words[2]))
        elif words[0] == "get":
            results.append(cache.get(words[1]))
        elif words[0] == "keys":
            results.append(list(cache.items))
        else:
            results.append("unknown: " + words[0])
    return results


def hits(capacity, keys):
    """How many of the requested keys are cached already when they are asked for."""
    cache = Cache(capacity)
    found = 0
    for key in keys:
        if cache.get(key) is None:
            cache.put(key, True)
        else:
            found += 1
    return found
