"""Gaits: demonstrations of locomotion by a clock and linear feedback, found once by evolution.

    action = W [1, sin phase, cos phase, sin 2 phase, cos 2 phase, what the body feels]     phase = 2 pi hz t

An episode costs little more than its steps, and what is done is nearly a function of what is observed. W and hz are in
gaits.safetensors, a few kB, and come from here:

    python -m envs.gaits og-ant og-ant-mazes jumper-jump    # anew: some minutes each

search     separable CMA-ES over W and log hz; the value of a candidate is its return in a few starts
planar     feels its observation
ant        OGBench's; feels tilt, height, velocities, joints, and how far it is turned from its way. It looks the same
           after a quarter turn, so the four ways to walk are one: the legs swap their roles. And it looks the same in
           a mirror: the right legs do what the left ones would half a period later
mazes      the way is that to the next cell, antball: that round the ball, then through it to the marker. Once what has
           to be there is there, the ant lies down

Source: an open-loop baseline for locomotion (arXiv 2310.05808), linear policies (arXiv 1803.07055), separable CMA-ES
(Ros and Hansen 2008).
Test: pytest tests/test_gaits.py
"""

import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

import envs

MAZES = ("arena", "maze", "bottleneck", "circle", "spiral")
FILE = Path(__file__).with_name("gaits.safetensors")
CLOCK = 5  # features of the clock, with the constant one


class Gait(NamedTuple):
    """How a gait was searched."""

    hz: float  # of the clock at first
    rounds: int
    steps: int = 200  # agent steps of a trial
    starts: int = 2  # trials per candidate, the same for all of a round
    sigma: float = 0.3
    start: str = ""  # the gait it starts from; "": standing still
    width: int = 20  # candidates per round
    task: str = ""  # in which it is searched, if not the one of its own name
    hold: int = 1  # ... where each action is held for that many steps
    # 0: the result is the middle of the last round. More: the best candidate of all, each round's best being judged by
    # that many whole episodes; two good ways to jump have none between them.
    keep: int = 0


GAITS = {
    "og-ant": Gait(1.25, 54, starts=1),
    "og-ant-mazes": Gait(0, 40, steps=100, starts=1, sigma=0.15, start="og-ant", task="og-ant", hold=2),
    "jumper-jump": Gait(1, 60, starts=1, keep=3),
}
# Which gait plays a task: those whose episodes are accepted (demo_maker.py) and better than what planning gets.
TASKS = {
    "og-ant": "og-ant",
    "og-antball": "og-ant",
    "jumper-jump": "jumper-jump",
} | dict.fromkeys([f"og-ant-{maze}" for maze in MAZES], "og-ant-mazes")


# ---- bodies: what they feel, and how features and actions are laid out ----


class Planar:
    """Feels the observation as it is."""

    def __init__(self, env):
        self.shape = env.action_space.shape[0], CLOCK + env.observation_space.shape[0]  # of W

    def feel(self, obs) -> np.ndarray:
        return obs

    def act(self, weights, features) -> np.ndarray:
        return weights @ features


LEGS = np.array([3, 0, 1, 2])  # legs are numbered counter-clockwise from the front left one; motors start with the last
BENT = np.array([1, -1, -1, 1])  # which way a leg's ankle turns
MIRROR = np.array([3, 2, 1, 0])  # left legs <-> right legs


class Ant:
    """Feels up (2), turned (1), height (1), velocity (3), spin (3), hips (4), ankles (4), their speeds (8)  ->  26.

    All as seen by a body whose front is the side that looks most along the way.
    """

    # What changes its sign in a mirror; hips and their speeds and legs are dealt with in `mirrored`.
    FLIP = np.array([1, -1, -1, 1, 1, -1, 1, -1, 1, -1.0])

    def __init__(self, env):
        self.shape = 4, CLOCK + 26  # hips and ankles of the two left legs
        self._env, self._side = env, 0

    def feel(self, obs) -> np.ndarray:
        data = self._env._body.data
        (w, x, y, z), (vx, vy, vz), spin = data.qpos[3:7], data.qvel[:3], data.qvel[3:6]
        joints, speeds = data.qpos[7:15].reshape(4, 2), data.qvel[6:14].reshape(4, 2)
        way = WAYS[self._env.name](self._env)
        facing = np.arctan2(2 * (x * y + w * z), 1 - 2 * (y * y + z * z))
        turn = np.arctan2(way[1], way[0]) - facing
        if abs(wrap(turn - self._side * np.pi / 2)) > 0.3 * np.pi:  # a little more than an eighth: no dithering
            self._side = round(turn / (np.pi / 2)) % 4
        front = facing + self._side * np.pi / 2
        up = self._turned([2 * (x * z - w * y), 2 * (y * z + w * x)], self._side)
        c, s = np.cos(front), np.sin(front)
        legs = np.roll(np.arange(4), -self._side)
        joints, speeds = joints[legs], speeds[legs]
        bent = BENT[legs]
        return np.concatenate([
            up, [np.sin(turn - self._side * np.pi / 2), 2 * (data.qpos[2] - 0.5)],
            [c * vx + s * vy, c * vy - s * vx, vz], self._turned(spin[:2], self._side), spin[2:],
            joints[:, 0], bent * joints[:, 1] - 0.9, speeds[:, 0] / 5, bent * speeds[:, 1] / 5,
        ])  # fmt: skip

    @staticmethod
    def _turned(xy, quarters: int) -> np.ndarray:
        """As seen by one who turned by that many quarters."""
        x, y = xy
        return np.array([(x, y), (y, -x), (-x, -y), (-y, x)][quarters])

    def act(self, weights, features) -> np.ndarray:
        left, right = (weights @ features).reshape(2, 2), (weights @ self.mirrored(features)).reshape(2, 2)
        legs = np.stack([left[0], left[1], right[1] * [-1, 1], right[0] * [-1, 1]])  # (4, 2): hip, ankle
        legs = np.roll(legs, self._side, 0)
        legs[:, 1] *= BENT
        return legs[LEGS].ravel()

    def mirrored(self, features) -> np.ndarray:
        clock, torso, joints = np.split(features, [CLOCK, CLOCK + 10])
        hips, ankles, hip_speeds, ankle_speeds = joints.reshape(4, 4)[:, MIRROR]
        return np.concatenate([clock * [1, -1, -1, 1, 1], torso * self.FLIP, -hips, ankles, -hip_speeds, ankle_speeds])


def wrap(angle: float) -> float:
    return (angle + np.pi) % (2 * np.pi) - np.pi


def dribble(env) -> np.ndarray:
    """Round the ball to where it lies before the goal, then straight on: it rolls between the two front legs."""
    ant, ball = env._body.data.qpos[:2], env._body.data.qpos[15:17]
    forward = (env._goal - ball) / max(np.linalg.norm(env._goal - ball), 1e-6)
    left = np.array([-forward[1], forward[0]])
    ahead, aside = (ball - ant) @ forward, (ball - ant) @ left  # of the ball, as the ant sees it
    if ahead > 0.2 and abs(aside) < 0.2 + 0.4 * ahead:
        return forward + 1.5 * aside * left
    side = -1 if aside > 0 else 1  # of the ball, on which the ant is
    if ahead < 0.8 and abs(aside) < 1.0:
        return side * left - (0.7 if abs(aside) > 0.6 else 0) * forward
    return (ball - 1.2 * forward - ant) + (side * left if ahead < 0.4 else 0)


WAYS = {  # ant -> where to from here, in metres, (2,)
    "og-ant": lambda env: env._goal,
    "og-antball": dribble,
} | dict.fromkeys([f"og-ant-{maze}" for maze in MAZES], lambda env: env.waypoint() - env._body.get_xy())
NEAR = 0.35  # metres


def there(env) -> bool:
    """Is what has to be at the marker near it?"""
    if env.name == "og-antball":
        return env._distances()[0] < NEAR
    return hasattr(env, "waypoint") and np.linalg.norm(env._body.get_xy() - env._goal) < NEAR


def body_of(env):
    return (Ant if env.name in WAYS else Planar)(env)


# ---- walking ----


def walk(env, obs, weights: np.ndarray, hz: float) -> Iterator[np.ndarray]:
    """A player: yields actions, gets (obs, info)."""
    body, step = body_of(env), 2 * np.pi * hz * seconds(env)
    phase = 0.0
    while True:
        if there(env):
            action = np.zeros(env.action_space.shape)
        else:
            action = body.act(weights, np.concatenate([clock(phase), body.feel(obs)]))
        obs, _ = yield action
        phase += step


def clock(phase: float) -> np.ndarray:
    return np.array([1, np.sin(phase), np.cos(phase), np.sin(2 * phase), np.cos(2 * phase)])


def seconds(env) -> float:
    """Of an agent step."""
    task = envs.TASKS[env.name]
    if task.domain == "ogbench":
        return 0.1 * task.action_repeat
    return env._env.control_timestep() * task.action_repeat


def player(env, obs, number):
    """Yields actions for a task of TASKS; experts.py says what a player is."""
    found, name = load_file(FILE), TASKS[env.name]
    return walk(env, obs, found[name], found[f"{name}.hz"].item())


def fingerprint(task: str) -> int:
    """Of the numbers that a task is played with."""
    found, name = load_file(FILE), TASKS[task]
    return zlib.crc32(found[name].tobytes() + found[f"{name}.hz"].tobytes())


# ---- search ----


def evolve(value: Callable, mean: np.ndarray, sigma: float, width: int, rng) -> Iterator[tuple]:
    """Separable CMA-ES upwards: yields the mean, the best candidate and its value, of each round.

    value(x, round) -> float
    """
    n, half = len(mean), width // 2
    weights = np.log(half + 0.5) - np.log(np.arange(1, half + 1))
    weights /= weights.sum()
    mass = 1 / (weights**2).sum()
    c_path, c_step = 4 / (n + 4), (mass + 2) / (n + mass + 3)
    c_one = 2 / ((n + 1.3) ** 2 + mass) * (n + 2) / 3
    c_many = min(1 - c_one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass) * (n + 2) / 3)
    damping = 1 + c_step + 2 * max(0, np.sqrt((mass - 1) / (n + 1)) - 1)
    length = np.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
    variance, path, step_path, k = np.ones(n), np.zeros(n), np.zeros(n), 0
    while True:
        draws = rng.standard_normal((width, n))
        candidates = mean + sigma * np.sqrt(variance) * draws
        values = np.array([value(x, k) for x in candidates])
        order = np.argsort(-values, kind="stable")
        best = draws[order[:half]]
        k += 1
        move = weights @ best
        mean = mean + sigma * np.sqrt(variance) * move
        step_path = (1 - c_step) * step_path + np.sqrt(c_step * (2 - c_step) * mass) * move
        path = (1 - c_path) * path + np.sqrt(c_path * (2 - c_path) * mass) * np.sqrt(variance) * move
        variance = (1 - c_one - c_many) * variance + c_one * path**2 + c_many * variance * (weights @ best**2)
        sigma *= np.exp(c_step / damping * (np.linalg.norm(step_path) / length - 1))
        yield mean, candidates[order[0]], values[order[0]]


def trial(env, weights: np.ndarray, hz: float, seed: int, steps: int, hold: int = 1) -> float:
    """The return of the first steps of an episode."""
    obs, _ = env.reset(seed=seed)
    script, total = walk(env, obs, weights, hz * hold), 0.0
    action = next(script)
    for _ in range(steps):
        for _ in range(hold):
            obs, reward, _, truncated, info = env.step(np.clip(action, -1, 1).astype(np.float32))
            total += reward
        if truncated:
            break
        action = script.send((obs, info))
    return total


def spread_of(env, rng) -> np.ndarray:
    """Of what a body feels: how much each of it varies when it moves at random; 1 for ants."""
    if env.name in WAYS:
        return np.ones(body_of(env).shape[1])
    env.reset(seed=0)
    seen = [env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0] for _ in range(100)]
    return np.append(np.ones(CLOCK), np.std(seen, 0).clip(0.1))


def search(name: str, found: dict[str, np.ndarray], seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Yields a gait after each round: W and hz under their names in the file. found: what it may start from."""
    gait = GAITS[name]
    env, rng = envs.make(gait.task or name), np.random.default_rng(seed)
    spread, shape, hz = spread_of(env, rng), body_of(env).shape, gait.hz
    start = np.zeros(shape)
    if gait.start:
        start, hz = found[gait.start] * spread, found[f"{gait.start}.hz"].item()

    def parts(x) -> tuple[np.ndarray, float]:
        return x[1:].reshape(shape) / spread, hz * np.exp(x[0])

    def numbers(x) -> tuple[np.ndarray, np.ndarray]:  # as they are in the file
        weights, now = parts(x)
        return weights.round(3).astype(np.float32), np.array([now], np.float32).round(3)

    def value(x, k: int) -> float:
        starts = [seed + gait.starts * k + i for i in range(gait.starts)]
        return float(np.mean([trial(env, *parts(x), s, gait.steps, gait.hold) for s in starts]))

    length, kept, record = envs.TASKS[env.name].episode_length, None, -np.inf
    bar = tqdm(evolve(value, np.append(0, start), gait.sigma, gait.width, rng), total=gait.rounds, desc=name)
    for k, (mean, best, value_of_best) in enumerate(bar):
        if gait.keep:
            weights, now = numbers(best)
            result = np.mean([trial(env, weights, now.item(), 10**6 + s, length) for s in range(gait.keep)])
            if result > record:
                kept, record = best, result
        weights, now = numbers(mean if kept is None else kept)
        bar.set_postfix_str(f"best return {max(value_of_best, record):.1f}, {now.item():.2f} Hz")
        yield {name: weights, f"{name}.hz": now}
        if k + 1 == gait.rounds:
            break


def known() -> dict[str, np.ndarray]:
    return load_file(FILE) if FILE.exists() else {}


if __name__ == "__main__":
    names = sys.argv[1:]
    if unknown := [name for name in names if name not in GAITS] or not names:
        what = f"no gait is called {', '.join(unknown)}" if names else "which gait?"
        print(f"error: {what}; one or several of {', '.join(GAITS)}", file=sys.stderr)
        raise SystemExit(2)
    for name in names:
        for gait in search(name, known()):  # after each round, so that it may be stopped at any
            save_file(known() | gait, FILE)
