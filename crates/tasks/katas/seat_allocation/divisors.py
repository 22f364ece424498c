def allocate(votes, seats, step=1):
    """Highest averages: divisors 1, 1+step, 1+2*step ...; step 2 is Sainte-Lague.

    The party listed first wins a tie.
    """
    won = {party: 0 for party in votes}
    for _ in range(seats):
        best = None
        for party in votes:
            quotient = votes[party] / (1 + step * won[party])
            if best is None or quotient > best[0]:
                best = (quotient, party)
        if best is not None:
            won[best[1]] += 1
    return won
