def interest(balance, rate):
    """Interest of one month on the balance; the rate is percent per year."""
    return int(balance * rate / 1200 + 0.5)


def schedule(balance, rate, payment):
    """Rows (month, interest, repaid, balance left); [] if the payment is too small."""
    if payment <= interest(balance, rate):
        return []
    rows = []
    while balance > 0:
        charged = interest(balance, rate)
        repaid = min(payment - charged, balance)
        balance -= repaid
        rows.append((len(rows) + 1, charged, repaid, balance))
    return rows


def total_interest(balance, rate, payment):
    """All interest paid over the loan; None if it is never repaid."""
    rows = schedule(balance, rate, payment)
    if not rows and balance > 0:
        return None
    return sum(row[1] for row in rows)


def months_to_save(goal, deposit, rate=0):
    """Months until monthly deposits with interest reach the goal; None without any."""
    if deposit <= 0:
        return None
    saved = months = 0
    while saved < goal:
        saved += interest(saved, rate) + deposit
        months += 1
    return months
