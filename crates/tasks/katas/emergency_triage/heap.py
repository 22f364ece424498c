def push(heap, item):
    """Add an item to the heap list; the smallest item is always at index 0."""
    heap.append(item)
    child = len(heap) - 1
    while child > 0:
        parent = (child - 1) // 2
        if heap[parent] <= heap[child]:
            break
        heap[parent], heap[child] = heap[child], heap[parent]
        child = parent
    return heap


def pop(heap):
    """Remove and return the smallest item."""
    last = heap.pop()
    if not heap:
        return last
    smallest, heap[0] = heap[0], last
    parent = 0
    while True:
        child = 2 * parent + 1
        if child >= len(heap):
            break
        if child + 1 < len(heap) and heap[child + 1] < heap[child]:
            child += 1
        if heap[parent] <= heap[child]:
            break
        heap[parent], heap[child] = heap[child], heap[parent]
        parent = child
    return smallest
