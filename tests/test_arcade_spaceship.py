"""Spaceship (MiniArcade): each rule from a position set by hand, and whole steps against scalar arithmetic.

Run: pytest tests/test_arcade_spaceship.py
     pytest tests/test_arcade_spaceship.py -m slow     (the player; half a minute)
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.spaceship import player

NAME = "pygame-spaceship"
CALM = {"x": 40.0, "y": 112.0, "vx": 0.0, "vy": 0.0, "coins": [[400, 30, True]], "asteroid": None, "t": 0}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    env.set_state(CALM | state)
    return env


def step(action=(0.0, 0.0), **state):
    env = at(**state)
    obs, reward, *_ = env.step(np.array(action))
    return env, obs, reward


# ---- rows of coins ----


def check_rows(rows):
    """[[x, y, available], ..] each: 2..4 coins, 27 px apart, level (40 %) or 18 px higher or lower than the last."""
    sizes, starts, heights, steps = [], [], [], []
    for row in rows:
        sizes.append(len(row))
        starts.append(row[0][0] - 224)
        heights.append(row[0][1])
        assert all(coin[2] is True and 20 <= coin[1] <= 204 for coin in row)
        for (x, y, _), (x2, y2, _) in zip(row, row[1:], strict=False):
            assert x2 - x == 27
            if 40 <= y <= 184:  # else the limits may cut it
                steps.append(y2 - y)
    assert all(abs(sizes.count(n) / len(rows) - 1 / 3) < 0.08 for n in (2, 3, 4))
    assert min(starts) == 20 and max(starts) == 59 and abs(np.mean(starts) - 39.5) < 2
    assert min(heights) <= 33 and max(heights) >= 190 and abs(np.mean(heights) - 111.5) < 8
    assert min(heights) >= 30 and max(heights) <= 193
    shares = {step: steps.count(step) / len(steps) for step in set(steps)}
    assert shares == {
        0: pytest.approx(0.4, abs=0.06),
        18: pytest.approx(0.3, abs=0.06),
        -18: pytest.approx(0.3, abs=0.06),
    }


def check_asteroids(rows, rocks):
    """Half the time; 2 coin spacings +- 30 px behind the row's end; never on a coin."""
    found = [(row, rock) for row, rock in zip(rows, rocks, strict=True) if rock is not None]
    assert abs(len(found) / len(rocks) - 0.5) < 0.08
    offsets = [rock[0] - row[0][0] - 27 * (len(row) + 2) for row, rock in found]
    assert min(offsets) >= -30 and max(offsets) <= 30 and np.ptp(offsets) > 55 and abs(np.mean(offsets)) < 5
    heights = [rock[1] for _, rock in found]
    assert min(heights) >= 40 and max(heights) <= 183 and min(heights) < 45 and max(heights) > 178
    assert all(height == int(height) for height in heights)
    for row, (ax, ay) in found:
        assert not any(boxes_overlap(int(ax - 18), ay - 18, 36, 36, x - 9, y - 9, 18, 18) for x, y, _ in row)


def boxes_overlap(l1, t1, w1, h1, l2, t2, w2, h2):
    return l1 < l2 + w2 and l2 < l1 + w1 and t1 < t2 + h2 and t2 < t1 + h1


def test_reset():
    env, rows, rocks = envs.make(NAME, seed=0), [], []
    for seed in range(500):
        obs, info = env.reset(seed=seed)
        assert info == {"score": 0.0, "success": 0.0}
        np.testing.assert_allclose(obs[:4], [40 / 224, 0.5, 0, 0], atol=1e-7)
        rows.append(env.coins)
        rocks.append(env.asteroid)
        want = np.full((5, 2), -1.0)
        want[: len(env.coins)] = np.array(env.coins)[:, :2] / 224
        want[4] = -1 if env.asteroid is None else np.divide(env.asteroid, 224)
        np.testing.assert_allclose(obs[4:], want.ravel(), rtol=1e-6)
    check_rows(rows)
    check_asteroids(rows, rocks)


def test_next_row_comes_like_the_first():
    env, rows, rocks = at(), [], []
    for _ in range(500):
        env.set_state(CALM | {"coins": [[100, 30, False], [-5, 30, True]]})
        env.step([0, 0])  # the last one is now at -17; the new row has not moved
        rows.append(env.coins)
        rocks.append(env.asteroid)
    check_rows(rows)
    check_asteroids(rows, rocks)


def test_rows_stay_on_the_screen():
    env, cut = at(), 0
    for seed in range(1500):
        env.reset(seed=seed)
        ys = [coin[1] for coin in env.coins]
        cut += any(b in (20, 204) and abs(b - a) not in (0, 18) for a, b in zip(ys, ys[1:], strict=False))
        assert min(ys) >= 20 and max(ys) <= 204
    assert cut > 5


def test_asteroid_never_on_a_coin_nor_replaced():
    env = at()
    for _ in range(100):
        env.set_state(CALM | {"coins": [[0, 30, False]], "asteroid": [150.5, 60]})
        env.step([0, 0])
        assert env.asteroid == [138.5, 60] and len(env.coins) >= 2


@pytest.mark.parametrize(
    "coins, replaced",
    [
        ([[3, 30, True]], False),  # then at -9
        ([[2, 30, True]], True),
        ([[300, 30, False]], True),
        ([[300, 30, False], [2, 60, True]], True),
        ([[2, 30, True], [300, 30, True]], False),
        ([[-60, 30, True], [30, 60, False], [57, 60, True]], False),
    ],
)
def test_row_is_replaced_when_nothing_of_it_is_left(coins, replaced):
    env, obs, reward = step(coins=coins, y=180.0)
    assert reward == 0
    if replaced:
        assert len(env.coins) >= 2 and env.coins[0][0] >= 244 and all(coin[2] for coin in env.coins)
    else:
        assert env.coins == [[x - 12, y, available] for x, y, available in coins]
        want = [v / 224 if coin[2] else -1 for coin in env.coins for v in coin[:2]]
        np.testing.assert_allclose(obs[4 : 4 + len(want)], want, rtol=1e-6)  # missed ones too, left of the screen


def test_last_coin_is_followed_one_step_later():
    env, obs, reward = step(coins=[[60, 120, True]])
    assert reward == 1 and env.coins == [[48, 120, False]] and (obs[4:12] == -1).all()
    obs, reward, *_ = env.step([0, 0])
    assert reward == 0 and env.coins[0][0] >= 244 and obs[4] > 1


# ---- ship ----


@pytest.mark.parametrize(
    "state, action, end, velocity",
    [
        ((40, 112, 0, 0), (1, -0.4), (40.65, 111.74), (0.6175, -0.247)),
        ((40, 112, 4, -2), (0, 0), (44, 110), (3.8, -1.9)),
        ((40, 112, 0, 0), (9, -9), (40.65, 111.35), (0.6175, -0.6175)),
        ((1, 112, -3, 0), (0, 0), (0, 112), (-2.85, 0)),  # the edge stops it, its velocity goes on
        ((195, 112, 3, 0), (0, 0), (196, 112), (2.85, 0)),
        ((40, 1, 0, -3), (0, 0), (40, 0), (0, -2.85)),
        ((40, 205, 0, 3), (0, 0), (40, 206), (0, 2.85)),
    ],
)
def test_ship(state, action, end, velocity):
    env, obs, _ = step(action, **dict(zip(("x", "y", "vx", "vy"), map(float, state), strict=True)))
    np.testing.assert_allclose([env.x, env.y, env.vx, env.vy], [*end, *velocity], rtol=0, atol=1e-9)
    np.testing.assert_allclose(obs[:4], [*np.divide(end, 224), *np.divide(velocity, 10)], rtol=1e-6, atol=1e-9)


def test_terminal_velocity():
    env = at()
    for _ in range(300):
        env.step([0, 1])
        env.set_state({"y": 100.0})
    assert env.vy + 0.65 == pytest.approx(13, abs=1e-3)  # when it moves


# ---- overlaps ----


@pytest.mark.parametrize(
    "coin, taken",
    [
        # The ship covers 40..68, 112..130; a coin reaches 9 px to all sides, after it moved by 12 px.
        ((60, 120), True), ((88, 120), True), ((89, 120), False), ((44, 120), True), ((43, 120), False),
        ((60, 104), True), ((60, 103), False), ((60, 138), True), ((60, 139), False),
    ],
)  # fmt: skip
def test_coin_is_taken(coin, taken):
    env, _, reward = step(coins=[[*coin, True], [300, 30, True]])
    assert reward == taken and env.coins == [[coin[0] - 12, coin[1], not taken], [288, 30, True]]
    if taken:
        assert env.step([0, 0])[1] == 0  # only once


def test_two_coins_in_one_step():
    env, obs, reward = step(coins=[[55, 112, True], [82, 130, True], [109, 130, True]])
    assert reward == 2 and [coin[2] for coin in env.coins] == [False, False, True]
    np.testing.assert_allclose(obs[4:10], [-1, -1, -1, -1, 97 / 224, 130 / 224], rtol=1e-6)


@pytest.mark.parametrize(
    "rock, crash",
    [
        ((66, 120), True), ((97, 120), True), ((98, 120), False), ((35, 120), True), ((34.9, 120), False),
        ((97.9, 120), True),  # 85.9 - 18 is truncated to 67
        ((66, 95), True), ((66, 94), False), ((66, 147), True), ((66, 148), False),
    ],
)  # fmt: skip
def test_asteroid_costs(rock, crash):
    # Half its box is 18; after it moved by 12 px it must reach into 40..68, 112..130.
    env, _, reward = step(asteroid=list(rock))
    assert reward == (-2 if crash else 0)
    assert env.asteroid == [rock[0] - 12, rock[1]]


def test_asteroid_costs_in_every_step():
    env = at(asteroid=[96.0, 120])
    assert [env.step([0, 0])[1] for _ in range(7)] == [-2, -2, -2, -2, -2, -2, 0]  # at 84, 72, .., 24; not at 12


def test_asteroid_leaves_at_the_left():
    for ax, gone in ((-6.0, False), (-6.1, True)):
        env, obs, _ = step(asteroid=[ax, 60])
        assert (env.asteroid is None) is gone
        np.testing.assert_allclose(obs[12:], (-1, -1) if gone else ((ax - 12) / 224, 60 / 224), rtol=1e-6)


def test_box_is_truncated_towards_zero():
    assert step(x=0.0, asteroid=[-5.1, 120])[2] == -2  # -17.1 - 18 counts as -35: it ends at 1
    assert step(x=0.0, asteroid=[-6.0, 120])[2] == 0  # -36: it ends at 0


# ---- what outlives an episode ----


def test_asteroid_survives_a_reset_but_not_a_seed():
    env = at(asteroid=[150.0, 60])
    obs, _ = env.reset()
    assert env.asteroid == [150.0, 60]
    np.testing.assert_allclose(obs[12:], [150 / 224, 60 / 224], rtol=1e-6)
    seen = set()
    for seed in range(20):
        env.set_state({"asteroid": [150.0, 60]})
        env.reset(seed=seed)
        assert env.asteroid != [150.0, 60]
        seen.add(env.asteroid is None)
    assert seen == {True, False}


def test_equal_seeds_are_equal_after_any_past():
    rows = []
    for past in (0, 23, 150):
        env = envs.make(NAME, seed=past)
        env.reset()
        for _ in range(past):
            env.step(env.action_space.sample())
        first = env.reset(seed=4)[0]
        rows.append([first] + [env.step([0, 0])[0] for _ in range(100)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


# ---- whole steps ----


def scalar_step(s, action):
    """For states whose row is not used up."""
    vx, vy = (v + 0.65 * min(1, max(-1, a)) for v, a in ((s["vx"], action[0]), (s["vy"], action[1])))
    x, y = min(196, max(0, s["x"] + vx)), min(206, max(0, s["y"] + vy))
    ship, reward, rock = (int(x), int(y), 28, 18), 0, s["asteroid"]
    if rock is not None:
        rock = [rock[0] - 12, rock[1]]
        reward -= 2 * boxes_overlap(int(rock[0] - 18), int(rock[1] - 18), 36, 36, *ship)
        rock = None if rock[0] < -18 else rock
    coins = []
    for cx, cy, available in s["coins"]:
        taken = available and boxes_overlap(cx - 12 - 9, cy - 9, 18, 18, *ship)
        reward += taken
        coins.append([cx - 12, cy, available and not taken])
    return (x, y, vx * 0.95, vy * 0.95), coins, rock, reward


def test_steps_and_observations_follow_the_rules():
    rng, env, rewards = np.random.default_rng(0), at(), []
    for k in range(600):
        s = dict(zip(("x", "y", "vx", "vy"), rng.uniform((0, 0, -9, -9), (196, 206, 9, 9)).tolist(), strict=True))
        n = rng.integers(2, 5)
        xs = (rng.integers(60, 250) + 27 * np.arange(n)).tolist()  # at least the last one is still to come
        ys = np.clip(int(s["y"]) + rng.integers(-20, 40, n), 20, 204).tolist()
        s["coins"] = [[cx, cy, bool(rng.random() < 0.7)] for cx, cy in zip(xs, ys, strict=True)]
        s["coins"][-1][2] = True
        s["asteroid"] = (
            None,
            [rng.uniform(-10, 300), int(rng.integers(40, 184))],
            [s["x"] + 26 + rng.uniform(-40, 40), int(s["y"]) + 9 + int(rng.integers(-40, 41))],
        )[k % 3]
        env.set_state(s | {"t": 0})
        action = rng.uniform(-1.2, 1.2, 2)
        obs, reward, *_ = env.step(action)
        body, coins, rock, want = scalar_step(s, action)
        assert reward == want and env.coins == coins
        rewards.append(reward)
        scaled = [body[0] / 224, body[1] / 224, body[2] / 10, body[3] / 10]
        for cx, cy, available in coins:
            scaled += [cx / 224, cy / 224] if available else [-1, -1]
        scaled += [-1] * (12 - len(scaled)) + ([-1, -1] if rock is None else [rock[0] / 224, rock[1] / 224])
        np.testing.assert_allclose(obs, scaled, rtol=1e-6, atol=1e-9)
    assert sum(r > 0 for r in rewards) > 50 and sum(r < 0 for r in rewards) > 50


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, used, fresh = envs.make(NAME, seed=1), envs.make(NAME, seed=2), envs.make(NAME, seed=3)
    env.reset()
    used.reset()
    for _ in range(100):
        env.step(env.action_space.sample())
        used.step(used.action_space.sample())
    state, actions, rows = env.get_state(), np.random.default_rng(0).uniform(-1, 1, (300, 2)), []
    for again in (env, env, used, fresh):
        again.set_state(state)
        rows.append([np.append((s := again.step(a))[0], s[1]) for a in actions] + [again.reset()[0]])
    for row in rows[1:]:
        for a, b in zip(row, rows[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_score_is_the_return_over_60():
    env = at(ret=29.0, coins=[[60, 120, True]])
    assert env.step([0, 0])[4] == {"score": pytest.approx(0.5), "success": 0.0}
    for ret, want in ((70.0, 1), (-4.0, 0)):
        env.set_state(CALM | {"ret": ret})
        assert env.step([0, 0])[4]["score"] == want


def test_picture():
    env = at(coins=[[150, 60, True], [177, 60, False]], asteroid=[120.0, 180])
    frame = env.render().astype(int)
    assert (frame[121, 50] == (180, 180, 255)).all() and (frame[60, 150] == (255, 215, 0)).all()
    assert (frame[60, 142] == (200, 160, 0)).all() and frame[60, 177, 1] != 215
    assert (frame[180, 120] == 100).all() and not frame[121, 30].any()
    env.set_state({"vx": 3.0})
    flame = env.render()[121, 20:39].astype(int)
    assert (flame[-1] == (255, 140, 0)).all() and (flame[:, 0] == 255).all() and flame[0, 2] > 50
    env.set_state({"vx": 0.0, "asteroid": [60.0, 120]})
    assert env.render()[220, 2, 0] > 25  # red all over


def test_doing_nothing_scores_about_nothing():
    env, scores = envs.make(NAME, seed=0), []
    for _ in range(30):
        env.reset()
        for _ in range(500):
            info = env.step([0, 0])[4]
        scores.append(info["score"])
    assert np.mean(scores) < 0.03  # 0.005 on the original


@pytest.mark.slow
def test_player():
    """Such a player made 52 +- 6.7 on the original, score 0.86, never below 0.63."""
    env, totals, scores = envs.make(NAME), [], []
    for seed in range(40):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        totals.append(env.ret)
        scores.append(info["score"])
    assert 48 < np.mean(totals) < 57 and min(scores) > 0.5 and math.isclose(scores[-1], min(1, totals[-1] / 60))
