"""Box2D: grounds, starts, observations and rewards, against rules written down a second time and Gymnasium's classes.

Run: pytest tests/test_box2d.py            (about half a minute)
     pytest tests/test_box2d.py -m slow    (mean returns over 30 episodes)
"""

import math
import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.box2d import bipedal_walker, lunar_lander
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import envs
from envs import box2d

BIPEDS = [f"bipedal-walker-{ground}" for ground in ("flat", "uneven", "rugged", "hills", "obstacles")]
LANDERS = ["lunarlander-land", "lunarlander-hover", "lunarlander-takeoff"]
STEP, HEIGHT = 14 / 30, 400 / 30 / 4
SIDE = 400 / 30


def random_actions(name, steps, seed=0, bound=1.0):
    return np.random.default_rng(seed).uniform(-bound, bound, (steps, envs.TASKS[name].action_dim)).astype(np.float32)


def rollout(env, actions, seed=None):
    """-> (T+1, O), (T,): bit patterns to compare."""
    obs, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        step = env.step(action)
        obs.append(step[0])
        rewards.append(step[1])
    return np.stack(obs), np.array(rewards)


# ---- the contract ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # check_env: infinite bounds of obs
@pytest.mark.parametrize("name", BIPEDS + LANDERS)
def test_contract(name):
    task, env = envs.TASKS[name], envs.make(name)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(task.action_dim, np.float32))
    check_env(env, skip_render_check=True)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
    assert (task.obs_dim, task.action_dim) == ((24, 4) if name in BIPEDS else (8 if "land" in name[10:] else 10, 2))
    obs, info = env.reset(seed=1)
    low, high, full = (-2, 20, 250) if name in BIPEDS else (-0.5, 1, 500) if "-land" in name else (0, 2, 500)
    total = 0.0
    for t, action in enumerate(random_actions(name, 250), start=1):
        assert obs.shape == (task.obs_dim,) and obs.dtype == np.float32 and np.isfinite(obs).all()
        obs, reward, terminated, truncated, info = env.step(action)
        total += reward
        assert type(reward) is float and low <= reward <= high
        assert terminated is False and truncated is (t == 250)
        assert type(info["score"]) is float and info == {"score": min(max(total / full, 0), 1), "success": 0.0}
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    env.reset()
    with pytest.raises(ValueError, match=f"this task takes \\({task.action_dim},\\)"):
        env.step(np.zeros(task.action_dim + 1, np.float32))
    env.close()


@pytest.mark.parametrize("name", BIPEDS + LANDERS)
def test_seed_decides_everything(name):
    actions = random_actions(name, 60)
    used, fresh = envs.make(name, seed=7), envs.make(name, seed=8)
    for seed in (3, 4):  # falls and crashes of the past must not matter
        rollout(used, np.ones((80, envs.TASKS[name].action_dim), np.float32), seed=seed)
    np.random.seed(0)
    first = rollout(used, actions, seed=5)
    np.random.seed(1)
    again = rollout(fresh, actions, seed=5)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(rollout(used, actions)[0], rollout(fresh, actions)[0])  # the stream goes on
    assert (rollout(used, actions, seed=6)[0][0] != first[0][0]).any()
    np.testing.assert_array_equal(rollout(envs.make(name, seed=5), actions)[0], first[0])


# ---- state ----


@pytest.mark.parametrize("name", BIPEDS + LANDERS)
def test_state_is_restored_exactly(name):
    env, busy, unused = (envs.make(name, seed=seed) for seed in (1, 2, 3))
    before, after = np.split(random_actions(name, 110), [90])  # by then bipeds lie and landers crash
    rollout(busy, after)
    rollout(env, before)
    state = env.get_state()
    assert all(isinstance(value, (dict, bool, np.ndarray)) for value in state.values())

    def go_on(env):
        rows = [np.append((s := env.step(action))[0], [s[1], s[4]["score"]]) for action in after]
        return np.stack([*rows, np.append(env.reset()[0], [0, 0]), np.append(env.step(after[0])[0], [0, 0])])

    want = go_on(env)
    for other in (env, busy, unused, busy):
        other.set_state(state)
        np.testing.assert_array_equal(go_on(other), want)


def test_state_before_the_first_and_after_the_last_step():
    env, other = envs.make("lunarlander-hover", seed=1), envs.make("lunarlander-hover", seed=2)
    state = env.get_state()
    want = env.reset()[0]
    other.reset()
    other.set_state(state)
    with pytest.raises(gym.error.ResetNeeded):
        other.step(np.zeros(2, np.float32))
    np.testing.assert_array_equal(other.reset()[0], want)
    other.set_state(env.get_state())  # reset, no step yet
    action = np.ones(2, np.float32)
    np.testing.assert_array_equal(env.step(action)[0], other.step(action)[0])
    action[:] = -1  # the environment kept a copy
    for _ in range(249):
        truncated = env.step(action)[3]
    assert truncated and env.get_state()["actions"][:2].tolist() == [[1, 1], [-1, -1]]
    other.set_state(env.get_state())
    with pytest.raises(gym.error.ResetNeeded):
        other.step(action)


# ---- the biped ----


def ground_rule(name, rng):
    """The rules a second time  ->  heights (200,), boxes (N, 4): left, bottom, right, top."""
    x, boxes = np.arange(200) * STEP, []
    if name == "flat":
        return np.full(200, HEIGHT), boxes
    if name == "hills":
        base, amplitude, wavelength = HEIGHT + rng.uniform(-1, -0.8), rng.uniform(0.4, 0.8), rng.uniform(7, 14)
        return np.clip(base + amplitude * np.sin(2 * np.pi * x / wavelength), 1, 5.5), boxes
    y, v = [HEIGHT], 0.0
    decay, pull, gain, floor = {
        "uneven": (0.8, 0.011, 1, 1),
        "rugged": (0.75, 0.015, 2.25, 1),
        "obstacles": (0.8, 0.01, 1, 1.5),
    }[name]

    def walk(i):
        nonlocal v
        v = decay * v + pull * ((y[-1] < HEIGHT) - (y[-1] > HEIGHT)) + (gain * rng.uniform(-1, 1) / 15 if i > 20 else 0)
        y.append(min(max(y[-1] + v, floor), 5.5))

    if name != "obstacles":
        for i in range(200):
            walk(i)
        return np.array(y[1:]), boxes
    for i in range(20):
        walk(i)
    rng.integers(5, 10)  # the length of a piece that is no grass is drawn and then drawn again
    while len(y) <= 200:
        is_stump, i, size = rng.integers(1, 3) == 1, len(y) - 1, rng.integers(2, 4)
        left, level = i * STEP, y[-1]
        if is_stump:
            boxes.append((left, level, left + size * STEP, level + 0.75 * size * STEP))
            y += [level] * size
        else:
            for edge in (left, left + size * STEP):
                boxes.append((edge, level - 3 * STEP, edge + STEP, level))
            y += [level, *[level - 3 * STEP] * size, level]
        if len(y) > 200:
            break
        grass = rng.integers(5, 10)
        y.append(level)  # the first point of grass is as high as the last of the obstacle
        for i in range(len(y) - 1, min(len(y) - 2 + grass, 200)):
            walk(i)
        if len(y) <= 200:
            rng.integers(5, 10)
    return np.array(y[1:201]), boxes


class Published(bipedal_walker.BipedalWalker):
    """Gymnasium's class on a ground given by ground_rule."""

    def _generate_terrain(self, hardcore):
        heights, boxes = ground_rule(self.ground_name, self.np_random)
        self.terrain, self.terrain_poly = [], []
        for left, bottom, right, top in boxes:
            self.fd_polygon.shape.vertices = [(left, top), (right, top), (right, bottom), (left, bottom)]
            self.terrain.append(self.world.CreateStaticBody(fixtures=self.fd_polygon))
        for i in range(199):
            self.fd_edge.shape.vertices = [(i * STEP, heights[i]), ((i + 1) * STEP, heights[i + 1])]
            self.terrain.append(self.world.CreateStaticBody(fixtures=self.fd_edge))
        self.terrain.reverse()


@pytest.mark.parametrize("name", BIPEDS)
def test_biped_is_gymnasiums_with_three_constants_overwritten(name, monkeypatch):
    """The benchmark sets them after the import of Gymnasium's module; here nobody else's module is touched."""
    episodes, alive = [], 0
    for seed in (0, 1):
        env, heuristic = envs.make(name), bipedal_walker.BipedalWalkerHeuristics()
        obs, rows = env.reset(seed=seed)[0], []
        heuristic.a = np.zeros(4)
        for noise in random_actions(name, 120, seed, bound=0.6):
            action = (heuristic.step_heuristic(obs * np.where(np.arange(24) == 2, 1.34, 1)) + noise).astype(np.float32)
            step = env.step(action)
            obs = step[0]
            rows.append((action, obs, step[1]))
        episodes.append((seed, env.np_random.bit_generator.state, rows))
    assert bipedal_walker.SCALE == 30 and bipedal_walker.VIEWPORT_W == 600

    for constant, value in (("SCALE", 15.0), ("VIEWPORT_W", 224), ("VIEWPORT_H", 224)):
        monkeypatch.setattr(bipedal_walker, constant, value)
    for seed, generator, rows in episodes:
        reference = Published()
        reference.ground_name = name.rpartition("-")[2]
        reference.reset(seed=seed)
        for action, obs, reward in rows:
            steps = [reference.step(action) for _ in range(2)]
            np.testing.assert_allclose(obs, steps[1][0], rtol=0, atol=1e-7)
            assert reward == pytest.approx(sum(np.clip(step[1], -1, 10) for step in steps), abs=2e-6)
            alive += not steps[1][2]
        assert reference.np_random.bit_generator.state == generator
    assert alive >= 50


@pytest.mark.parametrize("name", BIPEDS)
def test_ground_follows_its_rule_and_is_what_the_world_is_made_of(name):
    ground = name.rpartition("-")[2]
    for seed in range(40):
        heights, boxes = box2d.GROUNDS[ground](np.random.default_rng(seed))
        want_heights, want_boxes = ground_rule(ground, np.random.default_rng(seed))
        np.testing.assert_allclose(heights, want_heights, rtol=0, atol=1e-12)
        extents = [(*np.min(box, axis=0), *np.max(box, axis=0)) for box in boxes]
        np.testing.assert_allclose(np.reshape(extents, (-1, 4)), np.reshape(want_boxes, (-1, 4)), atol=1e-12)
    env = envs.make(name)
    env.reset(seed=3)
    heights, boxes = ground_rule(ground, seeding.np_random(3)[0])
    static = [body for body in env._env.world.bodies if body.mass == 0]
    assert len(static) == 199 + len(boxes)
    fixtures = [fixture for body in static for fixture in body.fixtures]
    assert all(fixture.friction == 2.5 and fixture.filterData.categoryBits == 1 for fixture in fixtures)
    edges = sorted(fixture.shape.vertices for fixture in fixtures if len(fixture.shape.vertices) == 2)
    points = np.stack([np.arange(200) * STEP, heights], 1)
    np.testing.assert_allclose(edges, np.stack([points[:-1], points[1:]], 1), atol=1e-5)


@pytest.mark.parametrize(
    "ground, mean, sd, low, high",
    [("uneven", 3.34, 0.42, 1, 5.5), ("rugged", 3.34, 0.92, 1, 5.5), ("hills", 2.44, 0.44, 1.5, 3.3),
     ("obstacles", 3.20, 0.62, 0.1, 5.5)],
)  # fmt: skip
def test_ground_has_the_published_statistics(ground, mean, sd, low, high):
    rng = np.random.default_rng(0)
    y = np.array([box2d.GROUNDS[ground](rng)[0] for _ in range(200)])
    assert y.mean() == pytest.approx(mean, abs=0.06) and y.std() == pytest.approx(sd, abs=0.06)
    assert y.min() >= low - 0.05 and y.max() <= high + 0.05
    if ground in ("uneven", "rugged", "obstacles"):
        assert (y[:, :20] == HEIGHT).all()


def test_obstacles_come_in_both_kinds_and_sizes():
    rng = np.random.default_rng(0)
    corners = [np.array(box) for _ in range(20) for box in box2d.obstacles(rng)[1]]
    sizes = {tuple(np.round(np.ptp(box, axis=0) / STEP, 6)) for box in corners}
    assert sizes == {(1, 3), (2, 1.5), (3, 2.25)}  # wall of a pit, the two stumps
    assert min(box[:, 0].min() for box in corners) == pytest.approx(20 * STEP)


def test_biped_starts_at_the_same_place_on_every_ground():
    for name in BIPEDS:
        env = envs.make(name)
        for seed in range(3):
            env.reset(seed=seed)
            x, y = env._env.hull.position
            assert x == pytest.approx(10 * STEP, abs=0.02)
            assert y == pytest.approx(HEIGHT + 2 * 34 / 30, abs=0.1)  # hills are 0.8 lower; level ground lifts it a bit


def test_biped_that_falls_pays_to_the_end():
    for name, low, high in (("bipedal-walker-flat", -385, -345), ("bipedal-walker-hills", -500, -385)):
        _, rewards = rollout(envs.make(name), np.zeros((250, 4), np.float32), seed=0)
        assert low < rewards.sum() < high  # about -364 on level ground
        fallen = np.flatnonzero(rewards == -2)[0]
        assert 5 < fallen < 120 and (rewards[fallen:] == -2).all()


# ---- the lander ----


def simulator(name, seed):
    env = envs.make(name)
    env.reset(seed=seed)
    return env._env


def test_biped_begins_in_a_new_world_where_gymnasiums_remembers():
    """Three episodes, then the third alone: the same here, another one with a world that was only emptied."""

    def play(env, seed):
        env.reset(seed=seed)
        actions = random_actions("bipedal-walker-flat", 250, seed)
        return np.array([[*obs, reward] for obs, reward, *_ in map(env.step, actions)])

    class Emptied(box2d.Walker):
        def reset(self, **options):
            return bipedal_walker.BipedalWalker.reset(self, **options)

    for kind, same in ((box2d.Walker, True), (Emptied, False)):
        used, fresh = kind(box2d.flat), kind(box2d.flat)
        past = [play(used, seed) for seed in range(3)]
        assert np.array_equal(past[-1], play(fresh, 2)) == same


def test_agent_step_is_two_simulator_steps():
    for name in [*LANDERS, "bipedal-walker-rugged"]:
        env, inner = envs.make(name), simulator(name, 4)
        env.reset(seed=4)
        for action in random_actions(name, 40):
            obs, reward, *_ = env.step(action)
            steps = [inner.step(action) for _ in range(2)]
            np.testing.assert_array_equal(obs, np.array(steps[1][0], np.float32))
            assert reward == pytest.approx(steps[0][1] + steps[1][1], abs=1e-12)


@pytest.mark.parametrize("name", LANDERS)
def test_lander_draws_its_start_in_the_published_order(name):
    points_seen = set()
    for seed in range(12):
        env = envs.make(name)
        env.reset(seed=seed)
        inner, rng = env._env, seeding.np_random(seed)[0]
        points = int(rng.choice([7, 9]))
        points_seen.add(points)
        h = rng.uniform(0, SIDE / 2, points + 1)
        h[points // 2 - 2 : points // 2 + 3] = SIDE / 4
        smooth = 0.33 * (np.roll(h, 1) + h + np.roll(h, -1))[:points]
        edges = [fixture.shape.vertices for fixture in inner.moon.fixtures]
        edges = np.array(sorted(edge for edge in edges if edge[1] != (pytest.approx(SIDE), 0)))
        np.testing.assert_allclose(edges[:, 0, 0], np.arange(points - 1) * SIDE / (points - 1), atol=1e-5)
        np.testing.assert_allclose(edges[:, 0, 1], smooth[:-1], atol=1e-5)
        np.testing.assert_allclose(edges[:, 1, 1], smooth[1:], atol=1e-5)
        assert sum(fixture.friction == pytest.approx(0.1) for fixture in inner.moon.fixtures) == points - 1
        pad = {7: (4.4444, 8.8889), 9: (5.0, 8.3333)}[points]
        assert (inner.helipad_x1, inner.helipad_x2) == pytest.approx(pad, abs=1e-4)
        if name == "lunarlander-takeoff":
            x = rng.uniform(pad[0] + 0.25 * (pad[1] - pad[0]), pad[1] - 0.25 * (pad[1] - pad[0]))
            rng.uniform(-600, 600)
            goal = rng.uniform(0.2, 0.8) * SIDE, rng.uniform(0.6, 0.8) * SIDE
            assert tuple(inner.lander.position) == pytest.approx((x, 3.9333), abs=0.4)  # pushed into its springs
        else:
            y, x = 0.8 * SIDE * rng.uniform(0.95, 1.05), SIDE / 2 * rng.uniform(0.95, 1.05)
            push = rng.uniform(-600, 600, 2)
            bodies = [inner.lander, *inner.legs]
            momentum = sum(body.mass * np.array(body.linearVelocity) for body in bodies)
            weight = sum(body.mass for body in bodies) * 10
            np.testing.assert_allclose(momentum, (push - [0, weight]) / 50, atol=1e-3)
            velocity = np.array(inner.lander.linearVelocity)
            np.testing.assert_allclose(inner.lander.position, (x, y) + velocity / 50, atol=0.02)  # the legs pull
            goal = SIDE / 2, SIDE / 2
        if name == "lunarlander-hover":
            goal = goal + rng.uniform(-1, 1, 2)
        if name != "lunarlander-land":
            assert tuple(inner.goal) == pytest.approx(tuple(goal), abs=1e-3)
        rng.uniform(size=2 * (6 if name == "lunarlander-takeoff" else 1))  # dispersion of the engines, per step
        assert rng.bit_generator.state == env.np_random.bit_generator.state
    assert points_seen == {7, 9}


def test_takeoff_is_pushed_down_at_first():
    inner = simulator("lunarlander-takeoff", 0)
    inner.np_random = np.random.default_rng(5)
    rng = np.random.default_rng(5)
    rng.uniform()
    (x, y), push = inner.start()
    assert push == (0.5 * rng.uniform(-600, 600), -1200) and y == pytest.approx(10 / 3 + 0.6)
    assert abs(x - SIDE / 2) <= (inner.helipad_x2 - inner.helipad_x1) / 4 + 1e-9


def test_lander_is_made_of_gymnasiums_bodies():
    ours, theirs = simulator("lunarlander-land", 0), lunar_lander.LunarLander(continuous=True)
    theirs.reset(seed=0)
    assert len(ours.legs) == len(theirs.legs) == 2
    for a, b in zip([ours.lander, *ours.legs], [theirs.lander, *theirs.legs], strict=True):
        assert (a.mass, a.inertia, tuple(a.localCenter)) == (b.mass, b.inertia, tuple(b.localCenter))
        for f, g in zip(a.fixtures, b.fixtures, strict=True):
            assert f.shape.vertices == g.shape.vertices
            assert (f.density, f.friction, f.restitution) == (g.density, g.friction, g.restitution)
            assert f.filterData.categoryBits == g.filterData.categoryBits
            assert f.filterData.maskBits == g.filterData.maskBits
    for a, b in zip(ours.legs, theirs.legs, strict=True):
        for attribute in ("limits", "limitEnabled", "motorEnabled", "motorSpeed"):
            assert getattr(a.joint, attribute) == getattr(b.joint, attribute), attribute
        position = np.array(a.position) - np.array(ours.lander.position)
        np.testing.assert_allclose(position, np.array(b.position) - np.array(theirs.lander.position), atol=0.1)
    assert tuple(ours.world.gravity) == tuple(theirs.world.gravity)


def test_lander_flies_as_gymnasiums_does():
    """The same motion and engine noise from the same start, high above either ground."""
    ours, theirs = simulator("lunarlander-land", 0), lunar_lander.LunarLander(continuous=True)
    theirs.reset(seed=0)
    for a, b in zip([ours.lander, *ours.legs], [theirs.lander, *theirs.legs], strict=True):
        b.transform = a.position, a.angle
        b.linearVelocity, b.angularVelocity = a.linearVelocity, a.angularVelocity
    theirs.np_random.bit_generator.state = ours.np_random.bit_generator.state
    for action in random_actions("lunarlander-land", 40) * 0.5 + [0.3, 0]:
        ours.step(action.astype(np.float32))
        theirs.step(action.astype(np.float32))
        np.testing.assert_allclose(ours.lander.position, theirs.lander.position, atol=5e-3)
        np.testing.assert_allclose(ours.lander.linearVelocity, theirs.lander.linearVelocity, atol=2e-2)
    assert ours.np_random.bit_generator.state == theirs.np_random.bit_generator.state


def check_lander_obs(inner, obs):
    (x, y), (vx, vy) = inner.lander.position, inner.lander.linearVelocity
    want = [x / (20 / 3) - 1, (y - 10 / 3 - 0.6) / (20 / 3), 0.4 / 3 * vx, 0.4 / 3 * vy]
    want += [inner.lander.angle, 0.4 * inner.lander.angularVelocity]
    want += [inner.legs[0].ground_contact, inner.legs[1].ground_contact]
    if len(obs) == 10:
        want += [(inner.goal[0] - x) / (20 / 3), (inner.goal[1] - y) / (20 / 3)]
    np.testing.assert_allclose(obs, np.array(want, np.float32), rtol=1e-6, atol=1e-6)


def engines(action):
    a, b = np.clip(action.astype(np.float64), -1, 1)
    return (a + 1) / 2 if a > 0 else 0.0, abs(b) if abs(b) > 0.5 else 0.0


def potential(obs):
    x, y, vx, vy, angle, _, left, right = np.array(obs, np.float32).astype(np.float64)
    return -100 * (math.hypot(x, y) + math.hypot(vx, vy) + abs(angle)) + 10 * (left + right)


def test_land_reward():
    """Random flight, nothing but a fall, Gymnasium's own pilot, and one that leaves to the side."""
    noise = random_actions("lunarlander-land", 500)
    pilots = {
        "random": lambda inner, obs, t: noise[t],
        "fall": lambda inner, obs, t: np.zeros(2, np.float32),
        "pilot": lambda inner, obs, t: np.asarray(lunar_lander.heuristic(inner, obs), np.float32),
        "aside": lambda inner, obs, t: np.array([1, t < 12], np.float32),
    }
    seen = dict.fromkeys(("flight", "legs", "crash", "wreck at rest", "landed", "out of sight"), 0)
    for kind, seed in [("random", 0), ("fall", 0), ("fall", 1), ("fall", 2), ("pilot", 0), ("pilot", 1), ("aside", 0)]:
        inner = simulator("lunarlander-land", seed)
        obs = np.array(inner.observe(), np.float32)
        before = potential(obs)
        for t in range(500):
            action = pilots[kind](inner, obs, t)
            obs, reward, *_ = inner.step(action)
            main, side = engines(action)
            shaping = potential(obs)
            want, before = shaping - before - 0.3 * main - 0.03 * side, shaping
            case = "legs" if any(obs[6:]) else "flight"
            if inner.game_over or abs(obs[0]) >= 1:
                want, case = -100, "crash" if inner.game_over else "out of sight"
            if not inner.lander.awake:
                want, case = 100, "wreck at rest" if inner.game_over else "landed"
            seen[case] += 1
            assert reward == pytest.approx(np.clip(want, -5, 10) / 20, abs=3e-6), (kind, t, case)
            check_lander_obs(inner, obs)
    assert min(seen.values()) >= 5, seen


@pytest.mark.parametrize("name", LANDERS[1:])
def test_hover_and_takeoff_reward(name):
    paid = unpaid = 0
    for seed in range(4):
        inner = simulator(name, seed)
        for t, action in enumerate(random_actions(name, 150, seed)):
            if t < 110:  # a crude pilot that stays up
                down = inner.lander.linearVelocity[1] < np.clip(inner.goal[1] - inner.lander.position[1], -1, 1)
                action[0], action[1] = 1 if down else -1, action[1] * (abs(action[1]) > 0.9)
            obs, reward, *_ = inner.step(action)
            x, y = inner.lander.position
            main, side = engines(action)
            want = 1 - np.hypot(inner.goal[0] - x, inner.goal[1] - y) / 6 - 0.03 * main - 0.003 * side
            want = 0 if y < 10 / 3 + 0.6 else np.clip(want, 0, 1)
            assert reward == pytest.approx(want, abs=1e-6)
            paid, unpaid = paid + (want > 0), unpaid + (want == 0)
            check_lander_obs(inner, obs)
    assert paid > 50 and unpaid > 5


def test_takeoff_pays_nothing_on_the_pad():
    obs, rewards = rollout(envs.make("lunarlander-takeoff"), np.zeros((250, 2), np.float32), seed=0)
    assert (rewards == 0).all() and (obs[:, 1] < 0).all() and obs[:, 6:8].any()


def test_goals_cover_their_range():
    goals = {name: [] for name in LANDERS[1:]}
    for name, drawn in goals.items():
        env = envs.make(name, seed=0)
        for _ in range(60):
            env.reset()
            drawn.append(env._env.goal)
    for name, low, high in (
        ("lunarlander-hover", (5.667, 5.667), (7.667, 7.667)),
        ("lunarlander-takeoff", (2.667, 8), (10.667, 10.667)),
    ):
        drawn = np.array(goals[name])
        assert (drawn >= np.array(low) - 1e-3).all() and (drawn <= np.array(high) + 1e-3).all()
        assert (np.ptp(drawn, axis=0) > 0.8 * np.subtract(high, low)).all()


@pytest.mark.slow
def test_mean_returns_of_landing():
    env, zero, rand = envs.make("lunarlander-land"), [], []
    for seed in range(30):
        zero.append(rollout(env, np.zeros((250, 2), np.float32), seed)[1].sum())
        rand.append(rollout(env, random_actions("lunarlander-land", 250, seed), seed)[1].sum())
    assert np.mean(zero) == pytest.approx(75, abs=35)  # 22 of 30 crash, come to rest and are paid for it
    assert np.mean(rand) == pytest.approx(-106, abs=35)
    assert max(zero) < 250


# ---- frames, packages ----


@pytest.mark.parametrize("name", BIPEDS + LANDERS)
def test_frame_shows_the_scene_and_changes_nothing(name):
    actions = random_actions(name, 12)
    plain, drawn = envs.make(name, seed=1), envs.make(name, seed=1, render_mode="rgb_array")
    a, b, frames = plain.reset()[0], drawn.reset()[0], []
    for action in actions:
        frames.append(drawn.render())
        np.testing.assert_array_equal(a, b)
        a, b = plain.step(action)[0], drawn.step(action)[0]
    np.testing.assert_array_equal(a, b)
    for frame in frames:
        assert frame.shape == (224, 224, 3) and frame.dtype == np.uint8 and frame.std() > 10
    assert (frames[0] != frames[-1]).any()
    np.testing.assert_array_equal(plain.render(), drawn.render())
    other = envs.make(name)
    other.set_state(plain.get_state())
    np.testing.assert_array_equal(other.render(), plain.render())
    drawn.close()


def test_frame_is_to_scale():
    biped = envs.make("bipedal-walker-flat")
    biped.reset(seed=0)
    frame = biped.render().astype(int)
    hull = (frame[..., 2] - frame[..., 1] > 100) & (frame[..., 0] < 200)
    rows, columns = np.nonzero(hull)
    assert columns.mean() == pytest.approx(224 / 5, abs=4) and np.ptp(columns) == pytest.approx(64 / 30 * 15, abs=3)
    assert rows.mean() == pytest.approx(224 - 15 * biped._env.hull.position[1], abs=4)
    assert frame[224 - int(15 * HEIGHT) + 2, 200, 1] > frame[224 - int(15 * HEIGHT) + 2, 200, 2]  # grass, below its top
    ship = envs.make("lunarlander-hover")
    ship.reset(seed=0)
    rows, columns = np.nonzero(ship.render()[..., 2] > 200)
    upper = rows < 112
    x, y = np.array(ship._env.lander.position) * 224 / SIDE
    assert columns[upper].mean() == pytest.approx(x, abs=3) and rows[upper].mean() == pytest.approx(224 - y, abs=5)


def test_missing_package_is_named():
    code = """
import sys
sys.modules["Box2D"] = None
import envs
try:
    envs.make("lunarlander-land")
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=envs.__path__[0] + "/..", capture_output=True, text=True)
    assert done.stdout.startswith("task 'lunarlander-land' needs `pip install Box2D`") and not done.stderr
