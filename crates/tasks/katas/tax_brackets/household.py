from rates import tax


def allowance(children):
    """Tax-free amount: 2000 for each of the first two children, 1000 for others."""
    first = min(children, 2)
    return 2000 * first + 1000 * (children - first)


def joint_tax(incomes, children=0):
    """Couples split: the tax on the average taxable income, times the earners."""
    if not incomes:
        return 0
    taxable = max(0, sum(incomes) - allowance(children))
    return tax(taxable // len(incomes)) * len(incomes)


def payslip(yearly):
    """(gross, tax, net) of one of twelve months."""
    gross = yearly // 12
    monthly_tax = tax(yearly) // 12
    return gross, monthly_tax, gross - monthly_tax
