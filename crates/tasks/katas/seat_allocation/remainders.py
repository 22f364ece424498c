def allocate(votes, seats):
    """Hare quota: whole quotas first, then the largest remainders get the rest."""
    total = sum(votes.values())
    if total == 0:
        return {party: 0 for party in votes}
    won = {party: count * seats // total for party, count in votes.items()}
    left = seats - sum(won.values())
    by_remainder = sorted(votes, key=lambda p: (-(votes[p] * seats % total), p))
    for party in by_remainder[:left]:
        won[party] += 1
    return won
