import divisors
import remainders


def over_threshold(votes, percent):
    """Only the parties with at least that share of all votes."""
    total = sum(votes.values())
    return {p: count for p, count in votes.items() if count * 100 >= percent * total}


def majority(won):
    """The party with more than half of the seats, or None."""
    total = sum(won.values())
    for party, seats in won.items():
        if seats * 2 > total:
            return party
    return None


def disputed_seats(votes, seats):
    """Seats that change hands if D'Hondt is replaced by the Hare quota."""
    first = divisors.allocate(votes, seats)
    second = remainders.allocate(votes, seats)
    return sum(abs(first[party] - second[party]) for party in votes) // 2
