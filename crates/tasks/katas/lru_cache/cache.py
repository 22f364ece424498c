class Cache:
    """Keeps at most `capacity` keys; reading or writing a key makes it the newest."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.items = {}

    def get(self, key):
        """The value stored under the key, or None."""
        if key not in self.items:
            return None
        value = self.items.pop(key)
        self.items[key] = value
        return value

    def put(self, key, value):
        """Store the value; return the key that had to be forgotten, or None."""
        self.items.pop(key, None)
        self.items[key] = value
        if len(self.items) > self.capacity:
            oldest = next(iter(self.items))
            del self.items[oldest]
            return oldest
        return None
