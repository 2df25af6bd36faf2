"""OGBench: every task against the package's own environment, reset by reset and step by step; rewards by hand.

The package's classes draw their goals from numpy's global generator. Here that generator is replaced by one that the
test seeds, so that the package's own reset and ours can be compared number by number.

Run: pytest tests/test_ogbench.py            (about 25 seconds on one core)
     pytest tests/test_ogbench.py -m slow    (whole episodes of all tasks, returns of random actions)
"""

import collections
import functools
import os
import subprocess
import sys
from ctypes.util import find_library
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import envs
import experts
from envs.camera import choose_backend, import_without_gl
from envs.ogbench import cells_to, player

with import_without_gl():
    mujoco = pytest.importorskip("mujoco")
    pytest.importorskip("ogbench")
    from ogbench.locomaze.maze import make_maze_env
    from ogbench.online_locomotion.ant import AntEnv
    from ogbench.online_locomotion.ant_ball import AntBallEnv
    from ogbench.online_locomotion.wrappers import GymXYWrapper

    from envs.ogbench import MAPS, pairs

TASKS = envs.select("ogbench") + ["og-point-var1", "og-point-var2"]
MAZES = [name for name in TASKS if name.count("-") == 2]

# The published maps, 1 is wall; row i at y = 4 i - 4, column j at x = 4 j - 4.
MAP_DIGITS = {
    "arena": "11111111 10000001 10000001 10000001 10000001 10000001 10000001 11111111",
    "bottleneck": "11111111 10011001 10011001 10000001 10000001 10011001 10011001 11111111",
    "circle": "11111111 11000011 10011001 10111101 10111101 10011001 11000011 11111111",
    "spiral": "11111111 10000001 10101101 10100001 10000101 10110101 10000001 11111111",
    "maze": "11111111 10011001 10010001 11000111 10010001 10100101 10001001 11111111",
    "var1": "11110011 11000011 10000000 10110100 00100101 10000000 11000011 11011111",
    "var2": "00110011 10000001 10011000 10000001 00000001 00011000 10010001 11010011",
}
# start -> goal of the maze the package calls medium: the package's five with two cells changed, and five more
MEDIUM = [
    ((1, 1), (6, 6)), ((6, 1), (1, 6)), ((5, 3), (2, 4)), ((2, 2), (6, 1)), ((2, 6), (1, 1)),
    ((2, 1), (4, 5)), ((6, 5), (4, 6)), ((2, 2), (4, 4)), ((6, 1), (2, 1)), ((6, 3), (3, 3)),
]  # fmt: skip
ROOMS = [(1, 1), (1, 2), (2, 1), (2, 2), (5, 5), (5, 6), (6, 5), (6, 6), (1, 5), (2, 5), (1, 6), (2, 6), (5, 1), (6, 1),
         (5, 2), (6, 2), (3, 3), (3, 4), (4, 3), (4, 4)]  # fmt: skip
RING = [(2, 1), (1, 2), (2, 2), (3, 1), (1, 3), (4, 1), (5, 1), (5, 2), (6, 2), (6, 3), (6, 4), (6, 5), (5, 5), (5, 6),
        (4, 6), (1, 4), (1, 5), (2, 5), (2, 6), (3, 6)]  # fmt: skip
WINDING = [(1, 1), (1, 2), (2, 1), (1, 6), (2, 6), (1, 5), (6, 1), (6, 2), (5, 1), (6, 6), (5, 6), (6, 5), (3, 3),
           (3, 4), (4, 3), (4, 4)]  # fmt: skip
CELLS = {"bottleneck": ROOMS, "var2": ROOMS, "circle": RING, "var1": RING, "spiral": WINDING}

needs_gl = pytest.mark.skipif(
    sys.platform == "linux" and not find_library("EGL") and not find_library("OSMesa"),
    reason="no off-screen OpenGL library here (Debian: libegl1 or libosmesa6)",
)


def walls(maze):
    return np.array([[int(digit) for digit in row] for row in MAP_DIGITS[maze].split()])


def expected_pairs(maze):
    if maze == "maze":
        return MEDIUM
    cells = CELLS.get(maze, [(i, j) for i in (2, 3, 4) for j in (2, 3, 4)])
    gap = 2 if maze == "arena" else 3
    return [(a, b) for a in cells for b in cells if abs(a[0] - b[0]) + abs(a[1] - b[1]) >= gap]


# ---- the package's environments, under the benchmark's rules ----


@functools.cache
def package_maze(body, maze):
    """The package's own maze class with another map and other start-goal pairs: it has hooks for both."""
    plain = make_maze_env(body, "maze", maze_type="arena")

    class Custom(type(plain)):
        def update_tree(self, tree):
            self.maze_map = walls(maze)
            super().update_tree(tree)

        def set_tasks(self):
            self.task_infos = [{"init_ij": init, "goal_ij": goal} for init, goal in our_order(maze)]

    custom = Custom(maze_type="arena")
    for env in (plain, custom):
        os.unlink(env.fullpath)  # the package leaves its file behind
    return custom


def our_order(maze):
    """The pairs (whose set test_pairs checks) in the order in which our environment numbers them."""
    return [tuple(tuple(map(int, cell)) for cell in pair) for pair in pairs(maze)]


class BallWithoutGL(AntBallEnv):
    """The package's class draws a frame in its constructor, to reach the camera."""

    def render(self):
        self.mujoco_renderer = SimpleNamespace(viewer=SimpleNamespace(cam=mujoco.MjvCamera()), close=lambda: None)


class Reference:
    """An environment of the package, its draws replaced, its observation and reward by the benchmark's formulas.

    Stands beside ours: reset(seed) and step(action) return what ours must.
    """

    def __init__(self, name, monkeypatch):
        self.task, self.patch = envs.TASKS[name], monkeypatch
        _, self.body, self.maze = (name + "-").split("-")[:3]
        if self.maze:
            self.env = package_maze(self.body, self.maze)
        else:
            self.env = GymXYWrapper(AntEnv()) if self.body == "ant" else BallWithoutGL()
            if self.body == "antball":
                os.unlink(self.env.fullpath)
        self.bare = self.env.unwrapped

    def reset(self, seed):
        draw = seeding.np_random(seed)[0]
        ranges = iter([(-1, 1), (-2, 2), (-3, 3)])  # ant, ball, goal: the package draws the goal from (-12, 12)

        def uniform(low, high, size=None):
            low, high = next(ranges) if self.body == "antball" else (low, high)
            return draw.uniform(low, high, size)

        with self.patch.context() as patch:
            patch.setattr(np.random, "uniform", uniform)
            patch.setattr(np.random, "randint", lambda low, high: low + draw.integers(high - low))
            patch.setattr(np.random, "randn", draw.standard_normal)
            if self.maze:
                # Resets twice: at the goal, then five steps, then the real one, which must see our generator.
                self.bare.np_random, self.left = np.random.default_rng(99), 5
                patch.setattr(self.bare, "action_space", SimpleNamespace(sample=lambda: self.sample(draw)))
            else:
                self.bare.np_random = draw
            obs, _ = self.env.reset()
            assert not self.maze or self.left == 0
        self.draw, self.total = draw, 0.0
        if self.maze:
            obs = self.maze_obs(np.zeros(2))
        return obs.astype(np.float32)

    def sample(self, draw):
        self.left -= 1
        if self.left == 0:
            self.bare.np_random = draw
        return np.zeros(self.task.action_dim)

    def maze_obs(self, moved):
        data, goal = self.bare.data, np.array(self.bare.cur_goal_xy)
        xy = data.qpos[:2]
        own = [xy, moved] if self.body == "point" else [data.qpos, data.qvel, xy]
        distance = np.sqrt(((xy - goal) ** 2).sum())
        return np.concatenate([*own, goal, xy - goal, [distance]]) / 20

    def step(self, action):
        """-> obs, reward, success, score"""
        action = action.astype(np.float64)
        with self.patch.context() as patch:
            patch.setattr(np.random, "randn", self.draw.standard_normal)
            for _ in range(self.task.action_repeat):
                obs, reward, _, _, info = self.env.step(action)
        if self.maze:
            xy, before, goal = info["xy"], info["prev_qpos"][:2], np.array(self.bare.cur_goal_xy)
            p = 0.025 * np.hypot(*(xy - before)) if self.body == "point" else 0.001 * np.sqrt((info["qvel"] ** 2).sum())
            l1, l2 = np.abs(xy - goal).sum(), np.hypot(*(xy - goal))
            reward = info["success"] - (0.5 * l1 + 0.5 * l2 + p) / 20
            assert info["success"] == (l2 <= (1.0 if self.body == "point" else 0.5))
            obs = self.maze_obs(xy - before)
        self.total += reward
        success = 0.0 if self.body == "ant" and not self.maze else info["success"]
        score = np.clip(self.total, 0, 250) / 250 if self.body == "ant" and not self.maze else success
        return obs.astype(np.float32), reward, success, score


def pushes(name, steps, seed=0, hold=8):
    """Actions that stay the same for a while: bodies get somewhere and into walls."""
    draw = np.random.default_rng(seed)
    held = draw.uniform(-1, 1, (steps // hold + 1, envs.TASKS[name].action_dim)).repeat(hold, 0)[:steps]
    return (held + draw.normal(0, 0.1, held.shape)).clip(-1, 1).astype(np.float32)


def check_against_package(name, steps, monkeypatch):
    env, reference = envs.make(name), Reference(name, monkeypatch)
    for seed in (0, 11):
        obs, info = env.reset(seed=seed)
        np.testing.assert_array_equal(obs, reference.reset(seed), err_msg=name)
        assert info == {"score": 0.0, "success": 0.0}
        for action in pushes(name, steps, seed):
            obs, reward, _, _, info = env.step(action)
            want_obs, want_reward, success, score = reference.step(action)
            np.testing.assert_array_equal(obs, want_obs, err_msg=name)
            assert reward == pytest.approx(want_reward, abs=1e-12) and info["success"] == success
            assert info["score"] == pytest.approx(score, abs=1e-12)


@pytest.mark.parametrize("name", TASKS)
def test_same_numbers_as_the_package(name, monkeypatch):
    # og-ant for long enough that its direction changes twice
    check_against_package(name, {"og-ant": 220, "og-antball": 100}.get(name, 60), monkeypatch)


@pytest.mark.slow
def test_same_numbers_as_the_package_whole_episodes(monkeypatch):
    for name in TASKS:
        check_against_package(name, envs.TASKS[name].episode_length, monkeypatch)


@pytest.mark.parametrize("name", TASKS)
def test_model_is_the_packages(name, monkeypatch):
    ours, theirs = envs.make(name)._body.model, Reference(name, monkeypatch).bare.model
    fields = [field for field in dir(ours) if isinstance(getattr(ours, field), np.ndarray)]
    assert len(fields) > 300
    for field in fields:
        # The marker moves (below); a camera that nobody uses has another name in og-antball, which shifts the names.
        if field not in ("geom_pos", "_sizes") and not field.startswith("name"):
            np.testing.assert_array_equal(getattr(ours, field), getattr(theirs, field), err_msg=field)
    for geom in range(ours.ngeom):
        if ours.geom(geom).name != "target":
            np.testing.assert_array_equal(ours.geom(geom).pos, theirs.geom(geom).pos)


# ---- maps and pairs ----


def test_maps():
    assert MAPS.keys() == MAP_DIGITS.keys()
    for maze in MAPS:
        np.testing.assert_array_equal(MAPS[maze], walls(maze) == 1, err_msg=maze)
    for maze, maze_type in (("arena", "arena"), ("maze", "medium")):
        package = make_maze_env("point", "maze", maze_type=maze_type)
        os.unlink(package.fullpath)
        np.testing.assert_array_equal(MAPS[maze], package.maze_map, err_msg=maze)
    closed = [maze for maze in MAPS if MAPS[maze][[0, -1]].all() and MAPS[maze][:, [0, -1]].all()]
    assert closed == ["arena", "maze", "bottleneck", "circle", "spiral"]


@pytest.mark.parametrize("maze", MAP_DIGITS)
def test_pairs(maze):
    count = {"arena": 48, "maze": 10, "bottleneck": 312, "var2": 312, "circle": 300, "var1": 300, "spiral": 204}[maze]
    assert len(our_order(maze)) == len(set(our_order(maze))) == count
    assert set(our_order(maze)) == set(expected_pairs(maze))
    free = {(i, j) for i in range(8) for j in range(8) if not walls(maze)[i, j]}
    for start, goal in expected_pairs(maze):
        reached, border = {start}, [start]
        while border:
            i, j = border.pop()
            new = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free - reached
            reached |= new
            border += new
        assert start in free and goal in reached


def test_starts_cover_all_pairs_evenly():
    """Bottleneck: the cell of each is known from where the body and the marker are; 312 pairs, 12 resets for each."""
    env, counts, offsets = envs.make("og-point-bottleneck", seed=0), collections.Counter(), []
    for _ in range(312 * 12):
        obs = env.reset()[0].astype(np.float64) * 20
        xy = np.stack([obs[:2], obs[4:6]])
        columns_rows = np.rint((xy + 4) / 4).astype(int)
        offsets.append(xy - (4 * columns_rows - 4))
        counts[tuple((int(i), int(j)) for j, i in columns_rows)] += 1
    assert set(counts) == set(expected_pairs("bottleneck"))
    chi2 = sum((n - 12) ** 2 / 12 for n in counts.values())
    assert chi2 < 311 + 5 * np.sqrt(2 * 311)
    offsets = np.array(offsets).reshape(-1, 4)
    assert np.abs(offsets).max() <= 1 + 1e-5 and (np.abs(offsets).max(0) > 0.99).all()
    np.testing.assert_allclose(offsets.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(offsets.var(0), 1 / 3, atol=0.02)  # of U(-1, 1)
    assert np.abs(np.corrcoef(offsets.T) - np.eye(4)).max() < 0.08


def test_ball_starts():
    env = envs.make("og-antball", seed=0)
    rows = []
    for _ in range(1000):
        obs = env.reset()[0]
        ant, ball = env._body.data.qpos[:2], env._body.data.qpos[15:17]
        rows.append([*ant, *ball, *env._goal])
        np.testing.assert_allclose(obs[-4:], [*(ball - ant), *(env._goal - ball)], atol=1e-6)
        np.testing.assert_array_equal(env._body.model.geom("target").pos[:2], env._goal)
        assert 2.9 <= obs[13] <= 3.1  # it is dropped
    bound = np.array([1, 1, 2, 2, 3, 3])
    rows = np.array(rows) / bound
    assert np.abs(rows).max() <= 1 and (np.abs(rows).max(0) > 0.98).all()
    np.testing.assert_allclose(rows.var(0), 1 / 3, atol=0.05)


# ---- rewards at chosen states ----


def place(env, **changes):
    """Moves the body and the goal of an environment; changes are what get_state's parts become."""
    data, model = env._body.data, env._body.model
    mujoco.mj_resetData(model, data)
    data.qpos[: len(changes["qpos"])] = changes["qpos"]
    mujoco.mj_forward(model, data)
    state = env.get_state()
    env.set_state(state | {"goal": np.array(changes["goal"], np.float64)})


@pytest.mark.parametrize("maze", ["arena", "circle", "var2"])
def test_point_reward_by_hand(maze):
    """60 states around the goal and over the whole maze, in cells without a wall nearby: the motion is known, too."""
    env, draw = envs.make(f"og-point-{maze}"), np.random.default_rng(3)
    env.reset(seed=0)
    free = np.argwhere(walls(maze) == 0)
    reached = 0
    for k in range(60):
        i, j = free[draw.integers(len(free))]
        xy = np.array([4 * j - 4, 4 * i - 4]) + draw.uniform(-0.3, 0.3, 2)
        goal = xy + draw.uniform(-2, 2, 2) if k % 2 else draw.uniform(0, 20, 2)
        action = draw.uniform(-1, 1, 2).astype(np.float32)
        place(env, qpos=xy, goal=goal)
        obs, reward, _, _, info = env.step(action)
        moved = 0.2 * action.astype(np.float64)  # per raw step; four of them, 1.1 m at most: no wall is that near
        if np.abs(4 * moved).max() > 0.9:
            continue
        d = xy + 4 * moved - goal
        far = np.hypot(*d)
        s = float(far <= 1)
        want = s - (0.5 * np.abs(d).sum() + 0.5 * far + 0.025 * np.hypot(*moved)) / 20
        assert reward == pytest.approx(want, abs=1e-9)
        assert info == {"score": s, "success": s}
        row = np.array([*(xy + 4 * moved), *moved, *goal, *d, far]) / 20
        np.testing.assert_allclose(obs, row, atol=1e-6)
        reached += s
    assert reached > 5


def test_ant_maze_reward_by_hand():
    """60 states: what follows from the observation alone, which has everything the reward reads."""
    env, draw = envs.make("og-ant-arena"), np.random.default_rng(4)
    env.reset(seed=0)
    successes = 0
    for _ in range(60):
        xy = draw.uniform(2, 18, 2)
        place(env, qpos=[*xy, 0.75, *draw.normal(size=4)], goal=xy + draw.uniform(-1, 1, 2))
        obs, reward, _, _, info = env.step(draw.uniform(-1, 1, 8).astype(np.float32))
        qvel, d = obs[15:29] * 20.0, obs[33:35] * 20.0
        s = float(np.hypot(*d) <= 0.5)
        want = s - (0.5 * np.abs(d).sum() + 0.5 * np.hypot(*d) + 0.001 * np.linalg.norm(qvel)) / 20
        assert reward == pytest.approx(want, abs=1e-5) and info == {"score": s, "success": s}
        successes += s
    assert 5 < successes < 55


@pytest.mark.parametrize("name, tolerance", [("og-point-arena", 1.0), ("og-ant-arena", 0.5)])
def test_success_at_the_edge_is_inclusive_and_not_latched(name, tolerance):
    env = envs.make(name)
    env.reset(seed=0)
    env._goal = np.array([10.0, 10.0])
    for offset, want in ((0.0, 1), (tolerance, 1), (tolerance + 1e-9, 0), (0.3, 1), (3.0, 0)):
        env._body.data.qpos[:2] = 10 + offset, 10
        env._body.data.qvel[:] = 0
        env._body.step = lambda action: None  # stand still: only the place counts
        *_, terminated, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
        assert info == {"score": float(want), "success": float(want)} and terminated is False


def test_ball_reward_by_hand():
    """60 states, some with the ball on the goal: the reward from positions before and after."""
    env, draw = envs.make("og-antball"), np.random.default_rng(5)
    env.reset(seed=0)
    successes = 0
    for _ in range(60):
        ant, ball = draw.uniform(-3, 3, 2), draw.uniform(-3, 3, 2)
        goal = ball + draw.uniform(-0.8, 0.8, 2)
        place(env, qpos=[*ant, 0.6, 1, 0, 0, 0, *[0, 1, 0, -1, 0, -1, 0, 1], *ball, 0.25, 1, 0, 0, 0], goal=goal)
        env._body.data.qvel[:2], env._body.data.qvel[14:16] = draw.normal(size=2), draw.normal(0, 3, 2)
        obs, reward, _, _, info = env.step(draw.uniform(-1, 1, 8).astype(np.float32))
        to_ball, to_goal = obs[-4:-2].astype(np.float64), obs[-2:].astype(np.float64)
        want = 10 * (
            2.5 * (np.hypot(*(ball - goal)) - np.hypot(*to_goal)) + np.hypot(*(ant - ball)) - np.hypot(*to_ball)
        )
        assert reward == pytest.approx(want, abs=1e-4) and abs(want) > 1e-3
        s = float(np.hypot(*to_goal) <= 0.5)
        assert info == {"score": s, "success": s}
        successes += s
    assert 10 < successes < 50


def test_direction_reward_and_redraw():
    env = envs.make("og-ant")
    obs, info = env.reset(seed=0)
    directions, total = [obs[27:]], 0.0
    for t in range(1, 1001):
        before, z = env._body.data.qpos[:2].copy(), obs[27:].astype(np.float64)
        assert np.hypot(*z) == pytest.approx(1, abs=1e-6)
        obs, reward, _, truncated, info = env.step(np.full(8, 0.3 * (-1) ** (t // 7), np.float32))
        assert reward == pytest.approx((env._body.data.qpos[:2] - before) @ z, abs=1e-6)
        total += reward
        assert info["success"] == 0 and info["score"] == pytest.approx(min(max(total, 0), 250) / 250, abs=1e-9)
        assert (obs[27:] != directions[-1]).any() == (t % 100 == 0)
        if t % 100 == 0:
            directions.append(obs[27:])
    assert truncated and len({tuple(z) for z in directions}) == 11


def test_direction_score_is_cut():
    env = envs.make("og-ant")
    env.reset(seed=0)
    for total, score in ((-3.0, 0.0), (100.0, 0.4), (251.0, 1.0)):
        env.set_state(env.get_state() | {"return": total})
        assert env.step(np.zeros(8, np.float32))[4]["score"] == pytest.approx(score, abs=1e-3)


# ---- motion ----


def test_walls_stop_the_point_and_gaps_do_not():
    env = envs.make("og-point-arena")
    env.reset(seed=0)
    for direction in ([1, 0], [0, 1], [-1, 0], [0, -1], [1, 1]):
        for _ in range(19):
            obs = env.step(np.array(direction, np.float32))[0]
            assert (-2 < obs[:2] * 20).all() and (obs[:2] * 20 < 22).all()  # inner faces of the outer wall
    env = envs.make("og-point-var1")
    env.reset(seed=0)
    place(env, qpos=[12, 0], goal=[0, 0])  # cell (1, 4); (0, 4) below it is a gap in the outer wall
    for _ in range(20):
        obs, reward, terminated, _, _ = env.step(np.array([0, -1], np.float32))
    np.testing.assert_allclose(obs[:2] * 20, [12, -16], atol=1e-5)  # 0.8 m a step, nothing in the way
    assert not terminated and reward < -0.9


def test_point_action_is_cut_to_the_box():
    env = envs.make("og-point-arena")
    env.reset(seed=0)
    place(env, qpos=[8, 8], goal=[0, 0])
    obs = env.step(np.array([5, -5], np.float32))[0]
    np.testing.assert_allclose(obs[:4] * 20, [8.8, 7.2, 0.2, -0.2], atol=1e-5)


def test_ant_on_its_back_goes_on():
    env = envs.make("og-ant")
    env.reset(seed=0)
    env._body.data.qpos[2:7] = 0.3, 0, 1, 0, 0  # upside down, on the floor
    lowest = 1.0
    for _ in range(60):
        obs, _, terminated, truncated, _ = env.step(np.zeros(8, np.float32))
        lowest = min(lowest, obs[0])
        assert not terminated and not truncated and np.isfinite(obs).all()
    assert lowest < 0.3  # the torso lies where the legs would never let it: within 0.25 of the floor and margin


# ---- the contract ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # check_env: infinite bounds of obs
@pytest.mark.parametrize("name", ["og-ant", "og-antball", "og-point-circle", "og-ant-spiral", "og-point-var2"])
def test_contract(name):
    task, env = envs.TASKS[name], envs.make(name)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(task.action_dim, np.float32))
    check_env(env, skip_render_check=True)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
    obs, info = env.reset(seed=1)
    for t, action in enumerate(pushes(name, task.episode_length), start=1):
        assert obs.shape == (task.obs_dim,) and obs.dtype == np.float32 and np.isfinite(obs).all()
        assert type(info["score"]) is type(info["success"]) is float and info["success"] in (0, 1)
        obs, reward, terminated, truncated, info = env.step(action)
        assert type(reward) is float and terminated is False and truncated is (t == task.episode_length)
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(action)
    env.reset()
    for shape in ((task.action_dim + 1,), (1,), ()):
        with pytest.raises(ValueError, match=f"this task takes \\({task.action_dim},\\)"):
            env.step(np.zeros(shape, np.float32))


def test_steps_and_lengths_are_the_published_ones():
    for name in TASKS:
        task = envs.TASKS[name]
        want = (100, 4) if "point" in name else (200, 2) if name in MAZES else (200, 1) if "ball" in name else (1000, 1)
        assert (task.episode_length, task.action_repeat) == want
        env = envs.make(name)
        env.reset(seed=0)
        env.step(np.zeros(task.action_dim, np.float32))
        assert env._body.data.time == pytest.approx(0.1 * task.action_repeat)


@pytest.mark.parametrize("name", TASKS)
def test_seed_decides_everything(name):
    used, fresh, actions = envs.make(name, seed=7), envs.make(name, seed=8), pushes(name, 10)
    used.reset(seed=3)
    for action in pushes(name, 12, seed=5):  # its past must not matter
        used.step(action)
    before = np.random.get_state()[1].copy()
    for seed in (5, None):  # the next episode goes on with the same stream
        np.testing.assert_array_equal(used.reset(seed=seed)[0], fresh.reset(seed=seed)[0])
        for action in actions:
            (a, reward, *_), (b, same, *_) = used.step(action), fresh.step(action)
            np.testing.assert_array_equal(a, b)
            assert reward == same
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # the global generator is left alone
    assert (used.reset(seed=5)[0] != used.reset(seed=6)[0]).any()
    np.testing.assert_array_equal(envs.make(name, seed=5).reset()[0], used.reset(seed=5)[0])


@pytest.mark.parametrize("name", TASKS)
def test_state_is_restored_exactly(name):
    """Over a change of og-ant's direction, the end of an episode and the draws of the next."""
    length = envs.TASKS[name].episode_length
    env, other = envs.make(name, seed=1), envs.make(name, seed=2)
    env.reset()
    for action in pushes(name, 30):
        env.step(action)
    env.set_state(env.get_state() | {"steps": length - 15 if name != "og-ant" else 895})
    state, actions, ends = env.get_state(), pushes(name, 15, seed=1), []
    kept = {key: np.copy(value) for key, value in state.items() if key != "rng"}
    for which in (env, env, other):
        which.set_state(state)
        rows = []
        for action in actions:
            obs, reward, _, truncated, info = which.step(action)
            rows.append([*obs.astype(np.float64), reward, info["score"], info["success"], truncated])
        rows.append([*which.reset()[0], 0, 0, 0, 0])
        rows.append([*which.step(actions[0])[0], 0, 0, 0, 0])
        ends.append(np.array(rows, np.float64))
    np.testing.assert_array_equal(ends[0], ends[1])
    np.testing.assert_array_equal(ends[0], ends[2])
    assert all((kept[key] == state[key]).all() for key in kept)  # stepping on left the copy alone
    assert state["rng"] != env.get_state()["rng"]
    if "target" in [env._body.model.geom(k).name for k in range(env._body.model.ngeom)]:
        other.set_state(state)
        np.testing.assert_array_equal(other._body.model.geom("target").pos[:2], state["goal"])


def run_python(code, **environ):
    """A fresh interpreter -> stdout; fails on any error or stderr."""
    inherited = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environ}, cwd=envs.__path__[0] + "/..", capture_output=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout.decode().strip()


def test_states_need_no_gl_and_are_the_same_in_another_process():
    code = f"""
import hashlib, sys
import numpy as np, envs
digest = hashlib.sha256()
for name in {TASKS}:
    env = envs.make(name)
    digest.update(env.reset(seed=3)[0].tobytes())
    for k in range(5):
        digest.update(env.step(np.full(env.action_space.shape, 0.2 * k - 0.5, np.float32))[0].tobytes())
print("OpenGL" in sys.modules, digest.hexdigest())
"""
    first, second = run_python(code), run_python(code, PYTHONHASHSEED="1", MUJOCO_GL="disabled")
    assert first == second and first.startswith("False ")


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    """No file and no open descriptor per environment: trainers make hundreds."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = "og-antball", "og-ant-spiral", "og-point-maze"
    kept = [envs.make(name) for name in names]
    assert not list(tmp_path.iterdir())
    if sys.platform == "linux":
        before = len(os.listdir("/proc/self/fd"))
        kept += [envs.make(name) for name in names for _ in range(3)]
        assert len(os.listdir("/proc/self/fd")) == before


def test_missing_package_is_named(monkeypatch):
    for module in [m for m in sys.modules if m == "ogbench" or m.startswith("ogbench.")]:
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("og-ant", "og-antball", "og-point-maze"):
        with pytest.raises(ImportError, match=f"task '{name}' needs `pip install ogbench`"):
            envs.make(name)


# ---- frames ----


@needs_gl
def test_frames_are_those_of_the_packages():
    """Same simulation state, the package's own renderer: mazes, the tracking camera, the ball from 8 m."""
    code = """
import numpy as np, mujoco, ogbench.online_locomotion
from ogbench.locomaze.maze import make_maze_env
from ogbench.online_locomotion.ant import AntEnv
from ogbench.online_locomotion.ant_ball import AntBallEnv
import envs
size = {"width": 224, "height": 224}
ball = AntBallEnv(render_mode="rgb_array", **size)
view = ball.mujoco_renderer.viewer.cam
assert abs(view.lookat[2] - 0.75) < 0.15  # where the ant's parts were when the package made its camera
view.lookat[2], view.distance = 0.75, 8
for name, ref in (
    ("og-point-arena", make_maze_env("point", "maze", maze_type="arena", **size)),
    ("og-ant-maze", make_maze_env("ant", "maze", maze_type="medium", **size)),
    ("og-ant", AntEnv(render_mode="rgb_array", camera_name="track", **size)),
    ("og-antball", ball),
):
    env = envs.make(name)
    env.reset(seed=1)
    for k in range(12):
        env.step(env.action_space.sample())
    ref.reset()
    kind = mujoco.mjtState.mjSTATE_INTEGRATION
    state = env.get_state()
    mujoco.mj_setState(ref.model, ref.data, state["physics"], kind)
    if name != "og-ant":
        ref.set_goal(goal_xy=state["goal"])
    mujoco.mj_forward(ref.model, ref.data)
    env.set_state(state)
    frame, want = env.render(), ref.render()
    print(bool((frame == want).mean() > 0.99 and frame.std() > 5 and len(np.unique(frame)) > 20), end=" ", flush=True)
    env.close()
import os; os._exit(0)  # the packages' renderers complain when Python ends
"""
    assert run_python(code, MUJOCO_GL=choose_backend()) == "True True True True"


@needs_gl
@pytest.mark.parametrize("name", ["og-ant", "og-antball", "og-point-bottleneck", "og-ant-circle"])
def test_frame_changes_nothing(name):
    plain, drawn = envs.make(name, seed=1), envs.make(name, seed=1, render_mode="rgb_array")
    a, b, frames = plain.reset()[0], drawn.reset()[0], []
    for k, action in enumerate(pushes(name, 12)):
        if k % 4 == 0:
            frames.append(drawn.render())
        np.testing.assert_array_equal(a, b)
        a, b = plain.step(action)[0], drawn.step(action)[0]
    np.testing.assert_array_equal(a, b)
    assert frames[0].shape == (224, 224, 3) and frames[0].dtype == np.uint8 and (frames[0] != frames[-1]).any()
    drawn.close()
    drawn.close()
    np.testing.assert_array_equal(drawn.render(), plain.render())  # opens a new one


@needs_gl
def test_frame_shows_the_map_and_the_marker():
    """From above: white walls where the map has them, the red marker at the goal; the first row is at the bottom."""
    env = envs.make("og-point-spiral")
    env.reset(seed=0)
    place(env, qpos=[0, 0], goal=[20, 4])  # the marker in cell (2, 6)
    frame = env.render().astype(int)
    bright = frame.min(-1)
    pixel = 224 / (2 * 30 * np.tan(np.deg2rad(45 / 2)))  # per metre on the floor; MuJoCo's field of view is 45 degrees

    def at(i, j):
        return int(round(112 - (4 * i - 4 - 10) * pixel)), int(round(112 + (4 * j - 4 - 10) * pixel))

    # The outer wall is out of sight: 30 m up, half the picture is 12.4 m.
    cells = [(i, j) for i in range(1, 7) for j in range(1, 7) if (i, j) not in ((1, 1), (2, 6))]
    wall = [bright[at(i, j)] for i, j in cells if walls("spiral")[i, j]]
    floor = [bright[at(i, j)] for i, j in cells if not walls("spiral")[i, j]]
    assert min(wall) > max(floor) + 30
    red, green, _ = frame[at(2, 6)]
    assert red > green + 50
    env.close()


# ---- returns of random actions ----


@pytest.mark.slow
def test_returns_of_uniform_random_actions():
    """The recorded means of 20 episodes: from -46 (arena) to -95 for the point, -94 (arena) to -192 for the ant.

    Ours come from other 20 episodes: the difference of two such means is within 4 of its standard errors.
    """
    recorded = {"og-ant": (0.8, 0.8), "og-antball": (-7, -7)}
    recorded |= {"og-point-arena": (-46, -46), "og-ant-arena": (-94, -94)}
    for name in TASKS:
        env, returns = envs.make(name, seed=0), []
        env.action_space.seed(0)
        for _ in range(20):
            env.reset()
            returns.append(sum(env.step(env.action_space.sample())[1] for _ in range(envs.TASKS[name].episode_length)))
        low, high = recorded.get(name, (-192, -94) if name.startswith("og-ant") else (-95, -46))
        slack = 4 * np.sqrt(2) * np.std(returns) / np.sqrt(20)
        assert low - slack < np.mean(returns) < high + slack, (name, np.mean(returns), slack)
        assert name != "og-ant" or np.std(returns) == pytest.approx(2.1, rel=0.5)


# ---- the way through a maze ----


def test_cells_to_by_hand():
    walls = np.array([[c == "#" for c in row] for row in ("#####", "#..##", "##.##", "##..#", "#####")])
    assert cells_to(walls, (3, 3)) == {(3, 3): 0, (3, 2): 1, (2, 2): 2, (1, 2): 3, (1, 1): 4}


def test_waypoint_by_hand():
    """The arena is empty: from row 2, column 2 to a goal three columns on, the next cell is one column on."""
    env = envs.make("og-point-arena")
    env.reset(seed=0)
    env._body.set_xy(np.array([4.0, 4.0]))  # x = 4 j - 4
    env._goal = np.array([16.5, 4.5])
    np.testing.assert_array_equal(env.waypoint(), [8, 4])
    env._body.set_xy(np.array([15.0, 3.0]))
    np.testing.assert_array_equal(env.waypoint(), [16.5, 4.5])  # in its cell: the goal itself


@pytest.mark.parametrize("maze", ["arena", "maze", "bottleneck", "circle", "spiral"])
def test_player_finds_the_goal(maze):
    env = envs.make(f"og-point-{maze}")
    for number in range(10):
        assert experts.play(env, player, number, number).success[0] == 1
