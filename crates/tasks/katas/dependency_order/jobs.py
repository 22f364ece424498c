def all_names(needs):
    """Every job mentioned, sorted, even those that only others mention."""
    names = set(needs)
    for required in needs.values():
        names.update(required)
    return sorted(names)


def stages(needs):
    """Lists of jobs that can run together; None if some of them need each other."""
    waiting = {name: set(needs.get(name, [])) for name in all_names(needs)}
    result = []
    while waiting:
        ready = [name for name, required in waiting.items() if not required]
        if not ready:
            return None
        result.append(ready)
        for name in ready:
            del waiting[name]
        for required in waiting.values():
            required.difference_update(ready)
    return result


def order(needs):
    """One flat order, or None on a cycle."""
    grouped = stages(needs)
    if grouped is None:
        return None
    return [name for stage in grouped for name in stage]


def needed_for(target, needs):
    """Everything the target needs, directly or not, sorted; also works on cycles."""
    found = set()
    stack = list(needs.get(target, []))
    while stack:
        name = stack.pop()
        if name not in found:
            found.add(name)
            stack.extend(needs.get(name, []))
    return sorted(found)
