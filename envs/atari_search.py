"""Scripted players for the 27 Atari games: search with the emulator's own save and restore.

A plan is up to `horizon` steps of moves, each held for `hold` steps, with the console's state after each; it ends early
where a life is lost. Before each hold it is tried to better it `branches` times: go back to a random place in it and go
on, half the time with random moves, half the time with the plan's own but for a stretch of one move. What comes before
the branch isn't simulated again.

    worth     sum_t discount^t (reward_t - life * (largest reward seen) [a life is lost at t]) + novel * news
              + toward * (progress at the plan's end) - calm * (smallest reward seen) * unrest
    news      how many (byte of the RAM, value) pairs the plan comes by that the episode hasn't had
    progress  only where a game has a measure of it, see PROGRESS
    unrest    how often the move changes, and RESTLESS times how many holds aren't at rest

The last term is for those who imitate and see the RAM only: a stick that is moved for no reason is noise to them. Where
nothing else makes a difference, the last move goes on, and where it makes none for long, the stick comes to rest. For
the same reason a move is held. A tie goes to the plan that is there already.
NOTE: the search plays on the environment's own console and puts it back before each action; then nothing is left of it.
The emulator has no noise, so what the search saw is what happens; only `number` makes two episodes differ.
Source: planning in the emulator as in ALE (arXiv 1207.4708), news as in IW(1) on the RAM (Lipovetzky, Ramirez and
Geffner, IJCAI 2015), held moves as in "Frame skip is a powerful parameter" (Braylan et al., AAAI workshop 2015), what
bytes of the RAM mean from OCAtari (arXiv 2306.08649), checked by playing; the branching plan and its price of unrest
are our own.
Test: pytest tests/test_atari_search.py
"""

from typing import NamedTuple

import numpy as np

from envs.atari import stick

RESTLESS = 0.25  # unrest of one hold that isn't at rest; a change of the move is 1


class Search(NamedTuple):
    """How to search in one game. An episode costs about 1000 branches horizon / 2 hold steps of 0.15 to 0.4 ms."""

    hold: int = 4  # steps that a move is held at least: it changes at multiples of this
    branches: int = 12
    horizon: int = 96  # steps; 15 are a second
    repeat: float = 2.0  # mean holds that a random move lasts
    life: float = 10.0  # price of a lost life, in units of the largest reward seen so far
    novel: float = 0.0  # worth of one piece of news, in points
    toward: float = 0.0  # worth of one unit of the game's PROGRESS, in points
    discount: float = 0.99  # a step
    calm: float = 0.05  # price of unrest, in units of the smallest reward seen so far


class Hold(NamedTuple):
    """One move, held for `Search.hold` steps, and what came of it."""

    move: int
    state: object  # of the console, afterwards
    reward: float
    lost: bool  # a life, or the game: a plan's last hold
    ram: np.ndarray


QUICK = Search(hold=2, branches=10, horizon=60)  # where four steps are too long to react
SETTINGS = {  # where the default isn't enough, or reward is far away
    "asterix": Search(branches=24),
    "double-dunk": Search(branches=16, horizon=120, repeat=3.0, novel=0.02, discount=0.995, calm=0.005),
    "gopher": QUICK,
    "kangaroo": Search(branches=14, horizon=128, repeat=4.0, life=1.0, toward=3000.0, calm=0.01),
    "krull": Search(life=2.0),
    "pong": QUICK,
    "robotank": Search(branches=10, horizon=120, life=2.0, discount=0.995),
    "seaquest": QUICK,
    "tutankham": QUICK,
}


def upstairs(ram: np.ndarray) -> float:
    """Kangaroo: how far it has come on its way to the joey, in floors.

    Byte 16 is how low it stands: 18 on the ground, 6 less on each floor. Byte 17 is how far to the right: in the first
    house (byte 36) the ladders are at the right end and at the left one in turns. No search finds that by chance.
    """
    floor, climbed = divmod(max(20 - int(ram[16]), 0), 6)  # it ducks, too
    walked = min(ram[17] / 118, 1.0) if floor % 2 == 0 else 1 - min(ram[17] / 118, 1.0)
    return floor + climbed / 12 + (walked / 2 if ram[36] == 0 else 0.0)


PROGRESS = {"kangaroo": upstairs}
REST = 0  # the first of POSITIONS, without fire
# (a0, a1) well inside the regions of the four words that can be held with STICK_BACK = 0.5; fire doubles them. Down
# left is the stick at rest: Pong, which reads the deflection, then lets the paddle stand; and on the way from one
# position to another that borders on it there are only these two, so that an imitator's hesitation is one of them.
POSITIONS = {"DOWNLEFT": (-1, 0.25), "UPLEFT": (1, 0.583), "UPRIGHT": (1, 0.25), "DOWNRIGHT": (1, -0.083)}


def search_of(task: str) -> Search:
    return SETTINGS.get(task.removeprefix("atari-"), Search())


def moves(env) -> list[tuple]:
    """What to search over: (action (3,), the emulator's word, deflection) of the moves that differ here, rest first."""
    game = env.unwrapped
    used = " ".join(action.name for action in game._ale.getMinimalActionSet())
    positions, triggers = POSITIONS, (-1, 1) if "FIRE" in used else (-1,)
    if game.name != "atari-pong" and not ("UP" in used or "DOWN" in used):
        positions = {name: POSITIONS[name] for name in ("UPLEFT", "UPRIGHT")}  # up or down is the same
    vectors = [np.array([*place, trigger], np.float32) for place in positions.values() for trigger in triggers]
    meaning = [stick(vector) for vector in vectors]
    words = game._ale_py.Action.__members__
    return [(vector, words[word], deflection) for vector, (word, deflection) in zip(vectors, meaning, strict=True)]


def draw(rng: np.random.Generator, length: int, count: int, repeat: float) -> list[int]:
    """Random moves out of `count`, each repeated for a geometric number of holds of mean `repeat`."""
    start = np.where(rng.random(length) < 1 / repeat, np.arange(length), 0)
    return rng.integers(count, size=length)[np.maximum.accumulate(start)].tolist()


def vary(rng: np.random.Generator, own: list[int], before: int, drawn: list[int], repeat: float) -> list[int]:
    """The moves `drawn`, or `own` with a stretch at its beginning of one move: of the one before it, or a new one."""
    if rng.random() < 0.5:
        return drawn
    stretch = min(len(drawn), int(rng.geometric(1 / repeat)))
    move = before if rng.random() < 0.5 else drawn[0]
    return [move] * stretch + (own + drawn[len(own) :])[stretch:]


def unrest(moves: list[int], before: int) -> float:
    """How little like a calm player's these moves are, after the move `before`; see the header."""
    changes = sum(a != b for a, b in zip(moves, [before, *moves], strict=False))
    return changes + RESTLESS * sum(move != REST for move in moves)


def simulate(ale, state, commands: list[tuple], tail: list[int], hold: int) -> list[Hold]:
    """What comes of the moves `tail` from `state` on; stops at the first lost life. Leaves the console there."""
    ale.restoreState(state)
    act, had, holds = ale.act, ale.lives(), []
    for move in tail:
        word, deflection = commands[move]
        reward = sum(act(word, deflection) for _ in range(4 * hold))
        lost = ale.lives() < had or ale.game_over()
        holds.append(Hold(move, ale.cloneState(), reward, lost, ale.getRAM()))
        if lost:
            break
    return holds


def player(env, obs, number: int):
    """Yields actions as every scripted player does; see the header."""
    s, progress = search_of(env.unwrapped.name), PROGRESS.get(env.unwrapped.name.removeprefix("atari-"))
    ale, rng, choice = env.unwrapped._ale, np.random.default_rng(number), moves(env)
    commands = [(word, deflection) for _, word, deflection in choice]
    length, discount = s.horizon // s.hold, s.discount**s.hold
    had = np.zeros((128, 256), bool)  # values that each byte has had
    largest, smallest = 1.0, np.inf  # reward
    last = REST

    def worth(plan):
        value = sum(discount**t * (hold.reward - s.life * largest * hold.lost) for t, hold in enumerate(plan))
        value -= s.calm * (smallest if smallest < np.inf else 1) * unrest([hold.move for hold in plan], last)
        if s.toward:
            value += s.toward * progress(plan[-1].ram)
        if s.novel:
            news = np.zeros_like(had)
            news[np.arange(128), np.array([hold.ram for hold in plan])] = True
            value += s.novel * (news & ~had).sum()
        return value

    def go_on(plan, cut, tail):
        """The first `cut` holds of a plan, then the moves `tail`."""
        return plan[:cut] + simulate(ale, plan[cut - 1].state if cut else start, commands, tail, s.hold)

    plan = []
    while True:
        start = ale.cloneState(include_rng=True)  # to leave no trace
        if not plan or not plan[-1].lost:
            plan = go_on(plan, len(plan), [plan[-1].move if plan else last] * (length - len(plan)))
        for _ in range(s.branches):
            cut = int(rng.integers(len(plan)))
            own, before = [hold.move for hold in plan[cut:]], plan[cut - 1].move if cut else last
            tail = vary(rng, own, before, draw(rng, length - cut, len(choice), s.repeat), s.repeat)
            other = go_on(plan, cut, tail)
            largest = max(largest, *(hold.reward for hold in other))
            smallest = min(smallest, *(hold.reward if hold.reward > 0 else np.inf for hold in other))
            if worth(other) > worth(plan):
                plan = other
        ale.restoreState(start)
        last = plan[0].move
        for _ in range(s.hold):
            had[np.arange(128), ale.getRAM()] = True
            yield choice[last][0]
        plan = plan[1:]
