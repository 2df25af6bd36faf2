"""Scripted players for the 27 Atari games: search with the emulator's own save and restore.

A plan is up to `horizon` moves with the console's state after each; it ends early where a life is lost. Every REPLAN
steps it is tried to better it `branches` times: go back to a random place in it and go on with random moves, each held
for a geometric time. Nothing is simulated twice: neither what comes before the branch nor what is left of a plan.

    worth   sum_t discount^t (reward_t - life * (largest reward seen) [a life is lost at t]) + novel * news
    news    how many (byte of the RAM, value) pairs the plan comes by that the episode hasn't had

A tie goes to the plan that is there already: what makes no difference isn't changed.
NOTE: the search plays on the environment's own console and puts it back before each action; then nothing is left of it.
The emulator has no noise, so what the search saw is what happens; only `number` makes two episodes differ.
Source: planning in the emulator as in ALE (arXiv 1207.4708), news as in IW(1) on the RAM (Lipovetzky, Ramirez and
Geffner, IJCAI 2015); the branching plan is our own.
Test: pytest tests/test_atari_search.py
"""

from typing import NamedTuple

import numpy as np

from envs.atari import stick

REPLAN = 4  # steps played between two searches
DISCOUNT = 0.99


class Search(NamedTuple):
    """How to search in one game. An episode costs about 1000 branches horizon / 2 REPLAN steps of 0.15 to 0.4 ms."""

    branches: int = 20
    horizon: int = 48  # steps; 15 are a second
    hold: float = 4.0  # mean steps that a random move is held
    life: float = 10.0  # price of a lost life, in units of the largest reward seen so far
    novel: float = 0.0  # worth of one piece of news, in points


class Step(NamedTuple):
    """One move of a plan and what came of it."""

    move: int
    state: object  # of the console, afterwards
    reward: float
    lost: bool  # a life, or the game: a plan's last step
    ram: np.ndarray


SETTINGS = {  # where the default isn't enough, or reward is far away
    "asterix": Search(branches=40),
    "bank-heist": Search(branches=12, horizon=100, hold=6.0),
    "double-dunk": Search(branches=10, horizon=120, hold=6.0),
    "kangaroo": Search(branches=14, horizon=96, hold=6.0, novel=1.0),
    "krull": Search(branches=24, horizon=72, life=2.0),
}

# (a0, a1) well inside the regions of the four words that can be held with STICK_BACK = 0.5; fire doubles them. Down
# left is the stick at rest: Pong, which reads the deflection, then lets the paddle stand; and on the way from one
# position to another that borders on it there are only these two, so that an imitator's hesitation is one of them.
POSITIONS = {"UPRIGHT": (1, 0.25), "UPLEFT": (1, 0.583), "DOWNRIGHT": (1, -0.083), "DOWNLEFT": (-1, 0.25)}


def moves(env) -> list[tuple]:
    """What to search over: (action (3,), the emulator's word, deflection) of the moves that differ here."""
    game = env.unwrapped
    used = " ".join(action.name for action in game._ale.getMinimalActionSet())
    positions, triggers = POSITIONS, (-1, 1) if "FIRE" in used else (-1,)
    if game.name != "atari-pong" and not ("UP" in used or "DOWN" in used):
        positions = {name: POSITIONS[name] for name in ("UPRIGHT", "UPLEFT")}  # up or down is the same
    vectors = [np.array([*place, trigger], np.float32) for place in positions.values() for trigger in triggers]
    meaning = [stick(vector) for vector in vectors]
    words = game._ale_py.Action.__members__
    return [(vector, words[word], deflection) for vector, (word, deflection) in zip(vectors, meaning, strict=True)]


def draw(rng: np.random.Generator, length: int, count: int, hold: float) -> list[int]:
    """Random moves out of `count`, each held for a geometric time of mean `hold`."""
    start = np.where(rng.random(length) < 1 / hold, np.arange(length), 0)
    return rng.integers(count, size=length)[np.maximum.accumulate(start)].tolist()


def simulate(ale, state, commands: list[tuple], tail: list[int]) -> list[Step]:
    """What comes of the moves `tail` from `state` on; stops at the first lost life. Leaves the console there."""
    ale.restoreState(state)
    act, had, steps = ale.act, ale.lives(), []
    for move in tail:
        word, deflection = commands[move]
        reward = act(word, deflection) + act(word, deflection) + act(word, deflection) + act(word, deflection)
        lost = ale.lives() < had or ale.game_over()
        steps.append(Step(move, ale.cloneState(), reward, lost, ale.getRAM()))
        if lost:
            break
    return steps


def player(env, obs, number: int):
    """Yields actions as every scripted player does; see the header."""
    s = SETTINGS.get(env.unwrapped.name.removeprefix("atari-"), Search())
    ale, rng, choice = env.unwrapped._ale, np.random.default_rng(number), moves(env)
    commands = [(word, deflection) for _, word, deflection in choice]
    had = np.zeros((128, 256), bool)  # values that each byte has had
    largest = 1.0  # reward

    def worth(plan):
        value = sum(DISCOUNT**t * (step.reward - s.life * largest * step.lost) for t, step in enumerate(plan))
        if s.novel:
            news = np.zeros_like(had)
            news[np.arange(128), np.array([step.ram for step in plan])] = True
            value += s.novel * (news & ~had).sum()
        return value

    def go_on(plan, cut):
        """The first `cut` steps of a plan, the rest anew."""
        tail = draw(rng, s.horizon - cut, len(choice), s.hold)
        return plan[:cut] + simulate(ale, plan[cut - 1].state if cut else start, commands, tail)

    plan = []
    while True:
        start = ale.cloneState(include_rng=True)  # to leave no trace
        if not plan or not plan[-1].lost:
            plan = go_on(plan, len(plan))
        for _ in range(s.branches):
            other = go_on(plan, int(rng.integers(len(plan))))
            largest = max(largest, *(step.reward for step in other))
            if worth(other) > worth(plan):
                plan = other
        ale.restoreState(start)
        for step in plan[:REPLAN]:
            had[np.arange(128), ale.getRAM()] = True
            yield choice[step.move][0]
        plan = plan[REPLAN:]
