from heap import pop, push


def treatment_order(patients):
    """Names of (name, urgency) patients as they are called; 1 is the most urgent."""
    waiting = []
    for arrival, (name, urgency) in enumerate(patients):
        push(waiting, (urgency, arrival, name))
    order = []
    while waiting:
        order.append(pop(waiting)[2])
    return order


def sort(values):
    """Heap sort, smallest first; the input is left alone."""
    heap = []
    for value in values:
        push(heap, value)
    return [pop(heap) for _ in range(len(values))]
