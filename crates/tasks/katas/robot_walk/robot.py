HEADINGS = "NESW"
STEPS = {"N": (0, 1), "E": (1, 0), "S": (0, -1), "W": (-1, 0)}


class Robot:
    """Where the robot stands, which way it looks, and how often it hit a wall."""

    def __init__(self, walls=()):
        self.x = 0
        self.y = 0
        self.heading = "N"
        self.walls = set(walls)
        self.bumps = 0

    def turn(self, quarters):
        """Turn right by so many quarters of a circle; left if negative."""
        index = (HEADINGS.index(self.heading) + quarters) % 4
        self.heading = HEADINGS[index]

    def move(self, distance):
        """One step forward (1) or back (-1), unless a wall stands there."""
        dx, dy = STEPS[self.heading]
        target = (self.x + dx * distance, self.y + dy * distance)
        if target in self.walls:
            self.bumps += 1
        else:
            self.x, self.y = target

    def obey(self, letter):
        """Carry out one command."""
        if letter == "L":
            self.turn(-1)
        elif letter == "R":
            self.turn(1)
        elif letter == "F":
            self.move(1)
        elif letter == "B":
            self.move(-1)


def walk(commands, walls=()):
    """(x, y, heading, bumps) after the commands; unknown letters are ignored."""
    robot = Robot(walls)
    for letter in commands:
        robot.obey(letter)
    return robot.x, robot.y, robot.heading, robot.bumps


def first_revisit(commands):
    """First position, other than by standing still, that is reached a second time."""
    robot = Robot()
    seen = {(0, 0)}
    for letter in commands:
        robot.obey(letter)
        position = (robot.x, robot.y)
        if letter in "FB":
            if position in seen:
                return position
            seen.add(position)
    return None
