def parse_match(report):
    """(home, away, home goals, away goals); team names may have spaces."""
    left, _, right = report.partition(":")
    home, _, home_goals = left.rpartition(" ")
    away_goals, _, away = right.partition(" ")
    return home, away, int(home_goals), int(away_goals)


def points(scored, conceded):
    """Points of a single match."""
    if scored > conceded:
        return 3
    return 1 if scored == conceded else 0


def tally(reports):
    """Per team in order of appearance: [matches, points, scored, conceded]."""
    teams = {}
    for report in reports:
        home, away, hg, ag = parse_match(report)
        for team, scored, conceded in ((home, hg, ag), (away, ag, hg)):
            record = teams.setdefault(team, [0, 0, 0, 0])
            record[0] += 1
            record[1] += points(scored, conceded)
            record[2] += scored
            record[3] += conceded
    return teams


def standings(reports):
    """Teams by points, goal difference, goals scored, and at last their names."""
    teams = tally(reports)

    def rank(team):  # the best team sorts first
        _, won, scored, conceded = teams[team]
        return (-won, conceded - scored, -scored, team)

    return sorted(teams, key=rank)


def table(reports):
    """Lines such as '1. Reds 1 3 2:1'."""
    teams = tally(reports)
    return [
        "%d. %s %d %d %d:%d" % (place, team, *teams[team])
        for place, team in enumerate(standings(reports), start=1)
    ]
