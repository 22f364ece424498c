from shares import balances


def transfers(expenses):
    """Payments (from, to, amount) that settle everything, largest balances first."""
    open_balances = balances(expenses)
    payments = []
    while any(open_balances.values()):
        debtor = min(open_balances, key=open_balances.get)
        creditor = max(open_balances, key=open_balances.get)
        amount = min(-open_balances[debtor], open_balances[creditor])
        open_balances[debtor] += amount
        open_balances[creditor] -= amount
        payments.append((debtor, creditor, amount))
    return payments


def biggest_spender(expenses):
    """Who paid the most in total, the earliest payer on a tie; None if nobody paid."""
    paid = {}
    for payer, amount, _ in expenses:
        paid[payer] = paid.get(payer, 0) + amount
    return max(paid, key=paid.get, default=None)
