class Circles:
    """Disjoint sets of people; each set has one root person."""

    def __init__(self):
        self.parent = {}
        self.size = {}

    def root(self, person):
        """The person that stands for the whole set; newcomers stand for themselves."""
        if person not in self.parent:
            self.parent[person] = person
            self.size[person] = 1
        while self.parent[person] != person:
            person = self.parent[person]
        return person

    def join(self, first, second):
        """Merge two sets, the smaller into the larger; False if they were one."""
        a, b = self.root(first), self.root(second)
        if a == b:
            return False
        if self.size[a] < self.size[b]:
            a, b = b, a
        self.parent[b] = a
        self.size[a] += self.size[b]
        return True


def circles(pairs):
    """Sorted circles of friends, the largest first, then by the first name."""
    sets = Circles()
    for first, second in pairs:
        sets.join(first, second)
    groups = {}
    for person in sorted(sets.parent):
        groups.setdefault(sets.root(person), []).append(person)
    return sorted(groups.values(), key=lambda group: (-len(group), group))


def connected(pairs, first, second):
    """True if the two know each other over some chain of friends."""
    return any(first in group and second in group for group in circles(pairs))


def redundant(pairs):
    """The pairs that connect people who are connected already, in order."""
    sets = Circles()
    return [pair for pair in pairs if not sets.join(*pair)]


def circle_size(pairs, person):
    """How many people the person's circle has, the person included."""
    sets = Circles()
    for first, second in pairs:
        sets.join(first, second)
    return sets.size[sets.root(person)]
