"""Reacher (MiniArcade): each rule against its formula, worked out here once more.

Run: pytest tests/test_arcade_reacher.py
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.reacher import player

EASY, HARD = TASKS = ["pygame-reacher-easy", "pygame-reacher-hard"]
LIMIT = math.radians(160)
every_task = pytest.mark.parametrize("name", TASKS)


def at(name=EASY, q=(0.0, 0.0), w=(0.0, 0.0), target=(-0.1, 0.1), **state):
    env = envs.make(name)
    env.reset(seed=0)
    env.set_state({"q": np.array(q, float), "w": np.array(w, float), "target": np.array(target, float), "t": 0} | state)
    return env


def joint(q, w, a, g, drag, quadratic):
    w = w + 0.02 * (g * min(1, max(-1, a)) - drag * w - quadratic * abs(w) * w)
    w = min(30, max(-30, w))
    return q + 0.02 * w, w


def scalar_step(q, w, action):
    (q1, w1), (q2, w2) = joint(q[0], w[0], action[0], 90, 4, 1.2), joint(q[1], w[1], action[1], 180, 38, 0.05)
    if abs(q2) > LIMIT:
        q2, w2 = math.copysign(LIMIT, q2), 0
    return (q1, q2), (w1, w2)


def fingertip(q1, q2):
    return 0.11 * math.cos(q1) + 0.11 * math.cos(q1 + q2), 0.11 * math.sin(q1) + 0.11 * math.sin(q1 + q2)


# ---- one step ----


@pytest.mark.parametrize("name, radius", [(EASY, 0.04), (HARD, 0.025)])
def test_steps_rewards_and_observations_follow_the_formulas(name, radius):
    rng, env, rewards, stops = np.random.default_rng(0), at(name), [], 0
    for k in range(300):
        q, w = rng.uniform((-9, -LIMIT), (9, LIMIT)), rng.uniform(-12, 12, 2)
        action = rng.uniform(-1.3, 1.3, 2)
        if k % 4 == 0:  # near the stop
            q[1] = math.copysign(LIMIT - rng.uniform(0, 0.1), q[1])
        (q1, q2), (w1, w2) = scalar_step(q, w, action)
        x, y = fingertip(q1, q2)
        target = np.array([x, y]) + rng.uniform(-0.04, 0.04, 2)
        env.set_state({"q": q, "w": w, "target": target, "t": 0})
        obs, reward, *_, info = env.step(action)
        np.testing.assert_allclose(obs, [q1, q2, target[0] - x, target[1] - y, w1, w2], rtol=1e-6, atol=1e-6)
        assert reward == float(math.hypot(target[0] - x, target[1] - y) <= radius) and info["success"] == 0
        rewards.append(reward)
        stops += w2 == 0
    assert 50 < sum(rewards) < 298 and stops > 10


def test_a_step_in_numbers():
    env = at()
    obs = env.step([1, -1])[0]  # from rest: w = 0.02 * 90 and -0.02 * 180
    np.testing.assert_allclose(obs[[0, 1, 4, 5]], [0.036, -0.072, 1.8, -3.6], rtol=1e-6)
    env.step([0, 0])  # 1.8 - 0.02 (7.2 + 1.2 * 3.24), -3.6 + 0.02 (136.8 + 0.05 * 12.96)
    np.testing.assert_allclose(env.w, [1.57824, -0.85104], atol=1e-12)


def test_steady_speeds():
    env = at()
    for _ in range(150):
        env.step([1, 1])
        env.set_state({"q": np.zeros(2)})  # away from the stop
    np.testing.assert_allclose(env.w, [7.15, 4.71], atol=0.005)


def test_second_joint_stops_and_first_turns_on():
    env = at(q=(3.1, 2.78), w=(5.0, 4.0))
    obs = env.step([1, 1])[0]
    assert obs[1] == np.float32(LIMIT) and obs[5] == 0 and obs[0] > 3.19  # past pi
    env = at(q=(-3.1, -2.78), w=(-5.0, -4.0))
    obs = env.step([-1, -1])[0]
    assert obs[1] == np.float32(-LIMIT) and obs[5] == 0 and obs[0] < -3.19


def test_speed_limit():
    env = at(w=(100.0, -100.0))
    env.step([0, 0])  # 100 - 0.02 (400 + 12000) = -148; -100 + 0.02 (3800 + 500) = -14
    np.testing.assert_allclose(env.w, [-30, -14], atol=1e-9)


@pytest.mark.parametrize("name, radius", [(EASY, 0.04), (HARD, 0.025)])
def test_reward_radius(name, radius):
    for distance, want in ((radius - 1e-6, 1), (radius + 1e-6, 0)):
        for way in ((1, 0), (0, -1), (0.6, 0.8)):
            target = np.array([0.22, 0]) + distance * np.array(way)
            assert at(name, target=target).step([0, 0])[1] == want


# ---- reset and score ----


@every_task
def test_reset(name):
    env, starts, targets = envs.make(name, seed=0), [], []
    for _ in range(500):
        obs, info = env.reset()
        assert info == {"score": 0.0, "success": 0.0} and not obs[4:].any()
        x, y = fingertip(*obs[:2].astype(float))
        starts.append(obs[:2])
        targets.append((obs[2] + x, obs[3] + y))
    starts, targets = np.array(starts), np.array(targets)
    for values, edge in zip(starts.T, (math.pi, LIMIT), strict=True):
        assert abs(values).max() <= edge + 1e-6
        np.testing.assert_allclose(
            np.quantile(values, (0, 0.25, 0.5, 0.75, 1)) / edge, (-1, -0.5, 0, 0.5, 1), atol=0.13
        )
    radius = np.hypot(*targets.T)  # uniform itself, not in area
    np.testing.assert_allclose(
        np.quantile(radius, (0, 0.25, 0.5, 0.75, 1)), (0.05, 0.0875, 0.125, 0.1625, 0.2), atol=0.01
    )
    assert radius.min() >= 0.05 - 1e-6 and radius.max() <= 0.2 + 1e-6
    assert abs(np.exp(1j * np.arctan2(*targets.T)).mean()) < 0.12


def test_score_is_the_return_over_200():
    env = at(target=(0.22, 0.0), ret=99.0)
    assert env.step([0, 0])[4] == {"score": pytest.approx(0.5), "success": 0.0}


# ---- contract, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@every_task
def test_gymnasium_checks_it(name):
    check_env(envs.make(name), skip_render_check=True)


@every_task
def test_state_is_exact(name):
    env, used, fresh = envs.make(name, seed=1), envs.make(name, seed=2), envs.make(name, seed=3)
    env.reset()
    used.reset()
    for _ in range(50):
        env.step(env.action_space.sample())
        used.step(used.action_space.sample())
    state, actions, rows = env.get_state(), np.random.default_rng(0).uniform(-1, 1, (100, 2)), []
    for again in (env, env, used, fresh):
        again.set_state(state)
        rows.append([np.append((s := again.step(a))[0], s[1]) for a in actions] + [again.reset()[0]])
    for row in rows[1:]:
        for a, b in zip(row, rows[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name, radius", [(EASY, 15), (HARD, 9)])
def test_picture_shows_the_arm_and_the_target(name, radius):
    env = at(name, q=(0.0, math.pi / 2), target=(-0.1, 0.1))
    frame = env.render().astype(int)  # elbow at 112 + 41, fingertip as far above it: y is upwards
    assert (frame[112, 130] == 180).all() and (frame[112, 112] == 160).all()
    assert (frame[90, 153] == (255, 140, 0)).all() and (frame[70, 153] == 230).all()
    red = np.argwhere((frame[:, :, 0] > 200) & (frame[:, :, 1] < 90) & (frame[:, :, 2] < 90))
    np.testing.assert_allclose(red.mean(axis=0), [112 - 37.6, 112 - 37.6], atol=1)
    assert np.ptp(red, axis=0).tolist() == [2 * radius - 1, 2 * radius - 1]
    assert (frame[20, 112] == (60, 220, 255)).all() and (frame[23, 112] == (255, 70, 200)).all()


@pytest.mark.parametrize("name, mean", [(EASY, 189), (HARD, 188)])
def test_player(name, mean):
    """Such a player made 189 +- 6 and 188 +- 6 on the original, never below 179."""
    env, totals = envs.make(name), []
    for seed in range(20):
        env.reset(seed=seed)
        totals.append(sum(env.step(player(env))[1] for _ in range(200)))
    assert abs(np.mean(totals) - mean) < 4 and min(totals) > 165
