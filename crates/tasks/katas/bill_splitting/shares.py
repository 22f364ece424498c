def split_evenly(amount, people):
    """Share per person; odd cents go one by one to the first people of the list."""
    each, extra = divmod(amount, len(people))
    return {
        person: each + (1 if index < extra else 0)
        for index, person in enumerate(people)
    }


def balances(expenses):
    """What each person gets back (positive) or owes (negative), sorted by name."""
    result = {}
    for payer, amount, people in expenses:
        result[payer] = result.get(payer, 0) + amount
        for person, share in split_evenly(amount, people).items():
            result[person] = result.get(person, 0) - share
    return dict(sorted(result.items()))
