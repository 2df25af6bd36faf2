"""Whole episodes of many tasks, each the same whoever else plays: what evaluations are made of.

    results = evaluate(agent, ["walker-walk", "mw-reach"], episodes=10, seed=0)     task -> [Episode, ...]

Episode k of a task begins in the same state and has noise of its own, from (seed, task, k). Which tasks are evaluated
besides, how many at once, with how many workers and after how many interruptions changes nothing. The same sums in
another order would: a matrix product of three environments' rows and one of four differ in their last bits, and after
a hundred steps in everything. So on a CPU decisions are always made for the same number of environments (`together`),
the last ones' places taken by copies. Which Q heads an iteration asks is the same for all at the same step, as in
training. A GPU decides for all at once: there, numbers are the same to rounding.
Test: pytest tests/test_episodes.py
"""

from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import machine

import numpy as np
import torch
from tqdm import tqdm

import envs
import newt
import observe
import planner
from envs.vector import episode_seed
from intervals import Estimate, interval
from open_loop import Ahead

Policy = Literal["planner", "policy", "random"]
ENVS_AT_ONCE = 64  # environments held in memory
UNTIL_FROM = 10  # episodes before any interval is believed to be narrow


class Episode(NamedTuple):
    ret: float  # undiscounted sum of rewards
    success: float  # at the last step; like score, NaN where a task of one's own doesn't define it
    score: float  # in [0, 1], at the last step
    length: int = 0  # agent steps
    success_any: float = np.nan  # at any step
    number: int = 0  # k: where it began, and its noise
    model_error: dict | None = None  # open_loop.Ahead.errors


Results = dict[str, list[Episode]]


def together(cfg: newt.Config) -> int:
    """Environments that a core decides for at once: as many as have 512 plans, at most 4.

    More is no faster. With 128 plans, one by one would take twice as long (results/README.md, Evaluation).
    """
    return max(1, min(4, 512 // cfg.num_samples))


class Player:
    """Decides for n environments that are at the same step of their episodes, `numbers`, each with its own noise.

    ahead: decide from what it believes instead of from observations.  Call it once for each step.
    """

    def __init__(
        self, agent: newt.Agent, names: list[str], numbers: list[int], seed: int, policy: Policy = "planner",
        step: int = 0, pool: ThreadPoolExecutor | None = None, ahead: Ahead | None = None,
    ):  # fmt: skip
        n, cfg, device = len(names), agent.cfg, agent.device
        self.agent, self.policy, self.step, self.pool, self.ahead, self.t = agent, policy, step, pool, ahead, 0
        self.task = torch.tensor([agent.tasks.index(name) for name in names], device=device)
        self.dims = agent.mask[self.task].sum(1).long().tolist()
        # What begins an episode is drawn from the first copy's seed, what is decided in it from the second's.
        seeds = [episode_seed(seed, name, 1, number) for name, number in zip(names, numbers, strict=True)]
        self.chance = [np.random.default_rng(s) for s in seeds]
        self.generators = [torch.Generator(device=device).manual_seed(s) for s in seeds]
        self.heads = torch.Generator(device=device).manual_seed(seed)
        self.settings, self.num_q = newt.plan_settings(cfg), agent.params["q.0.weight"].shape[0]
        self.warm = torch.zeros(n, cfg.horizon, cfg.action_dim, device=device)

    def __call__(self, obs: np.ndarray, running: np.ndarray) -> np.ndarray:
        """obs (n, O), running (n,) bool -> actions (n, A), 0 for those that aren't running."""
        action = np.zeros((len(obs), self.agent.cfg.action_dim), np.float32)
        rows = np.flatnonzero(running).tolist()
        if self.policy == "random":
            for i in rows:
                action[i, : self.dims[i]] = self.chance[i].uniform(-1, 1, self.dims[i])
        elif rows:
            x, on_cpu = torch.as_tensor(obs, device=self.agent.device), self.agent.device.type == "cpu"
            size = together(self.agent.cfg) if on_cpu else len(rows)
            groups = [rows[i : i + size] for i in range(0, len(rows), size)]
            heads = planner.draw_noise(self.settings, 0, action.shape[1], self.num_q, self.heads).heads
            decided = (self.pool.map if self.pool and on_cpu else map)(lambda g: self.decide(x, g, size, heads), groups)
            for group, chosen in zip(groups, decided, strict=True):
                action[group] = chosen[: len(group)].cpu().numpy()
        self.t += 1
        return action

    @torch.no_grad()  # the mode is per thread
    def decide(self, x: torch.Tensor, group: list[int], size: int, heads: torch.Tensor) -> torch.Tensor:
        """Actions (size, A) of the group, then copies of its last."""
        places = list(range(len(group))) + [len(group) - 1] * (size - len(group))
        rows, noise, z = [group[i] for i in places], None, None
        if self.policy == "planner":
            a = self.agent.cfg.action_dim
            drawn = [planner.draw_noise(self.settings, 1, a, self.num_q, self.generators[i]) for i in group]
            # Axis of the environment in each; the heads have none.
            axes = {"pi": 0, "sample": 1, "terminal": 1, "gumbel": 0, "final": 0}
            own = {k: torch.cat([getattr(drawn[i], k) for i in places], axis) for k, axis in axes.items()}
            noise = planner.Noise(heads=heads, **own)
        if self.ahead:
            z = self.ahead.look(rows, x[rows], self.t)
        first = torch.full((size,), self.t == 0, device=x.device)
        plan = newt.act(self.agent, x[rows], self.task[rows], self.warm[rows], first, self.step,
                        use_planner=self.policy == "planner", noise=noise, z=z)  # fmt: skip
        self.warm[rows] = plan.mean
        if self.ahead:
            self.ahead.predict(rows, z, plan.action, self.t)
        return plan.action


def counted(played: list[Episode], episodes: int, until: float) -> int:
    """How many episodes of a task count: `episodes`, or the first so many whose score is known to ± until.

    The first: how many more were under way depends on the company, and must not be seen.
    """
    for n in range(UNTIL_FROM, min(len(played), episodes)) if until else ():
        if interval([e.score for e in played[:n]], rate=True).half <= until:
            return n
    return episodes


def evaluate(
    agent: newt.Agent,
    tasks: list[str],
    episodes: int,
    seed: int = 0,
    policy: Policy = "planner",
    step: int = 0,
    workers: int | None = None,
    title: str = "evaluate",
    until: float = 0.0,
    open_loop: int = 0,
    done: Results | None = None,
    keep: Callable[[Results], None] = lambda results: None,
    bar: tqdm | None = None,
) -> Results:
    """Play `episodes` whole episodes of every task; many environments at once, tasks of equal length together.

    tasks: names known to the agent. step: environment steps trained so far (constrained planning). until: fewer where
    the score's interval is as narrow (`counted`). open_loop: steps from one look to the next, and then what the model
    gets wrong on the way is part of the episodes; 0: no such count. done: episodes that were played before. keep:
    called with all there are whenever some have ended. bar: one for several calls, with room for this one's steps.
    An episode that a fault of the simulator cut off is left out, and one more played. One that says nothing of success,
    of a task of which another does, had none.
    """
    results = {name: sorted((done or {}).get(name, []), key=lambda e: e.number) for name in tasks}
    lost = {name: set() for name in tasks}

    def missing(name: str) -> int:
        return max(0, counted(results[name], episodes, until) - len(results[name]))

    groups = defaultdict(list)
    for name in tasks:
        groups[envs.TASKS[name].episode_length].append(name)
    own_bar = bar is None
    if own_bar:
        total = sum(length * missing(name) for length, group in groups.items() for name in group)
        bar = tqdm(total=total, unit="step", unit_scale=True, leave=False, disable=None)
    bar.set_description(title)
    known = {name: [*played] for name, played in results.items()}

    def play_chunk(left: list[str], length: int, pool: ThreadPoolExecutor) -> None:
        """Rounds of `copies` episodes of every task at once, until one of the tasks has all that it needs."""
        most = max(min(missing(name), UNTIL_FROM) if until else missing(name) for name in left)
        copies = -(-most // -(-most // max(1, ENVS_AT_ONCE // len(left))))
        names = [name for name in left for _ in range(copies)]
        with observe.environments(agent, names, seed, workers, policy == "random", alike=True) as vector:
            while all(missing(name) for name in left):
                numbers = _next_numbers(names, results, lost, {name: missing(name) for name in left})
                ahead = Ahead(agent, names, open_loop) if open_loop else None
                player = Player(agent, names, [k or 0 for k in numbers], seed, policy, step, pool, ahead)
                for name, k, episode in zip(names, numbers, _play(vector, player, numbers, length, bar), strict=True):
                    if episode:
                        results[name] = sorted([*results[name], episode], key=lambda e: e.number)
                    elif k is not None:
                        lost[name].add(k)
                count = {name: counted(played, episodes, until) for name, played in results.items()}
                keep({name: [e for i, e in enumerate(played) if i < count[name] or e in known[name]]
                      for name, played in results.items()})  # fmt: skip
        if until:
            bar.total -= length * sum(episodes - len(results[name]) for name in left if not missing(name))

    with ThreadPoolExecutor(max(1, machine.cores() // torch.get_num_threads())) as pool:
        for length, group in sorted(groups.items()):
            for chunk in (group[i : i + ENVS_AT_ONCE] for i in range(0, len(group), ENVS_AT_ONCE)):
                while left := [name for name in chunk if missing(name)]:
                    play_chunk(left, length, pool)
    if own_bar:
        bar.close()
    return {name: defined(played[: counted(played, episodes, until)]) for name, played in results.items()}


def defined(played: list[Episode]) -> list[Episode]:
    """The same episodes of a task; one that says nothing of success, of which another does, had none."""
    for field in ("success", "score", "success_any"):
        if not np.isnan([getattr(e, field) for e in played]).all():
            played = [e._replace(**{field: float(np.nan_to_num(getattr(e, field)))}) for e in played]
    return played


def estimates(played: list[Episode], success_defined: bool) -> dict[str, Estimate]:
    """Of all that is told of a task's episodes; its success isn't defined where the flag is always 0."""
    found = {key: interval([getattr(e, key) for e in played], rate=key not in ("ret", "length"))
             for key in ("ret", "success", "success_any", "score", "length")}  # fmt: skip
    return found if success_defined else found | dict.fromkeys(("success", "success_any"), Estimate(*[np.nan] * 3))


def _next_numbers(names: list[str], results: Results, lost: dict[str, set], missing: dict[str, int]) -> list:
    """The next episode of each environment, None where there is nothing left to do."""
    numbers, taken = [], {name: {e.number for e in results[name]} | lost[name] for name in missing}
    for i, name in enumerate(names):
        number = None
        if names[:i].count(name) < missing[name]:
            number = next(k for k in range(len(taken[name]) + 1) if k not in taken[name])
            taken[name].add(number)
        numbers.append(number)
    return numbers


def _play(
    vector: observe.VectorEnv | observe.Seeing, player: Player, numbers: list, length: int, bar: tqdm
) -> list[Episode | None]:
    """One episode in each environment that has a number, of at most `length` steps; None if a fault cut it off.

    Where one ends early, the environment goes on with its next one, of which nothing counts.
    """
    n = len(numbers)
    start = np.array([number or 0 for number in numbers])
    obs = vector.reset(episode=start)
    running = np.array([number is not None for number in numbers])
    bar.total += length * int((running & (vector.episode != start)).sum())  # a fault: such a one is played later
    running &= vector.episode == start
    left = length * int(running.sum())
    returns, ever, played = np.zeros(n), np.full(n, np.nan), [None] * n
    for t in range(length):
        result = vector.step(player(obs, running))
        obs, returns = result.obs, returns + np.where(running, result.reward, 0)
        ever = np.where(running, np.fmax(ever, result.success), ever)
        if player.ahead:
            player.ahead.compare(running & ~result.dropped, result.reward, t)
        for i in np.flatnonzero(running & result.done):
            last = (float(x[i]) for x in (returns, result.success, result.score))
            errors = player.ahead.errors(i) if player.ahead else None
            played[i] = Episode(*last, t + 1, float(ever[i]), numbers[i], errors)
        bar.update(int(running.sum()))
        left -= int(running.sum())
        bar.total += length * int((running & result.dropped).sum())
        running &= ~(result.done | result.dropped)
        if not running.any():
            break
    bar.update(left)
    return played
