PRICES = {"water": 80, "cola": 120, "juice": 150}
COINS = (100, 50, 20, 10)


def coins_for(amount):
    """The amount in coins, largest first; a rest below the smallest coin is kept."""
    coins = []
    for coin in COINS:
        count, amount = divmod(amount, coin)
        coins.extend([coin] * count)
    return coins


class Machine:
    """Stock and money of the machine; every action returns what the display says."""

    def __init__(self, stock):
        self.stock = dict(stock)
        self.credit = self.earned = 0

    def insert(self, coin):
        """Accept a coin of a known kind."""
        if coin not in COINS:
            return "rejected"
        self.credit += coin
        return "credit %d" % self.credit

    def give_back(self):
        """Pay out the credit."""
        coins = coins_for(self.credit)
        self.credit = 0
        return "coins " + " ".join(map(str, coins)) if coins else "no coins"

    def choose(self, drink):
        """Sell a drink if it is there and paid for."""
        price = PRICES.get(drink)
        if price is None:
            return "unknown"
        if self.stock.get(drink, 0) == 0:
            return "sold out"
        if self.credit < price:
            return "%d missing" % (price - self.credit)
        self.stock[drink] -= 1
        self.credit -= price
        self.earned += price
        return drink


def run(stock, events):
    """(answers to all events, earned money) for a line of events."""
    machine = Machine(stock)
    answers = []
    for event in events.split():
        if event.isdigit():
            answers.append(machine.insert(int(event)))
        elif event == "return":
            answers.append(machine.give_back())
        else:
            answers.append(machine.choose(event))
    return answers, machine.earned
