"""Coinrun (MiniArcade): jumps and coins from positions set by hand, and whole steps against a second, plain version.

Run: pytest tests/test_arcade_coinrun.py
"""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.coinrun import player

NAME = "pygame-coinrun"
FULL = [11, 21, 30, 38, 45, 51, 56, 60, 63, 65, 66, 66, 65]  # pixels above the ground after a full jump


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    env.set_state({"coins": [[2000, 83, True]]} | state)
    return env


# ---- reset and rows ----


def check_row(coins):
    x, y, active = zip(*coins, strict=True)
    assert 2 <= len(coins) <= 5 and all(active)
    assert 244 <= x[0] <= 283 and set(np.diff(x)) == {27}
    assert set(y) <= {83, 101, 119, 137, 155, 173} and y[0] in (101, 119, 137, 155)
    assert set(np.diff(y)) <= {-18, 0, 18}


def test_reset_and_rows():
    env, rows = envs.make(NAME, seed=0), []
    for _ in range(4000):
        obs, info = env.reset()
        assert (env.y, env.vy) == (154, 0)
        check_row(env.coins)
        rows.append(env.coins)
    assert info == {"score": 0.0, "success": 0.0} and obs[0] == obs[1] == 0
    lengths = np.bincount([len(row) for row in rows])
    assert (abs(lengths[2:] - 1000) < 110).all()
    first = np.bincount([row[0][0] for row in rows])[244:]
    assert len(first) == 40 and first.min() > 55
    levels = np.unique([row[0][1] for row in rows], return_counts=True)[1]
    assert len(levels) == 4 and (abs(levels - 1000) < 110).all()
    steps = np.array([b[1] - a[1] for row in rows for a, b in zip(row, row[1:], strict=False) if 83 < a[1] < 173])
    for step, want in ((-18, 0.3), (0, 0.4), (18, 0.3)):
        assert abs((steps == step).mean() - want) < 0.02
    # at the upper end of the range a step up is no step
    top = np.array([b[1] - a[1] for row in rows for a, b in zip(row, row[1:], strict=False) if a[1] == 83])
    assert abs((top == 0).mean() - 0.7) < 0.1 and set(top) == {0, 18}


# ---- jump ----


def test_full_jump_and_its_late_landing():
    env = at()
    heights, speeds = [], []
    for t in range(25):
        obs, *_ = env.step([1.0 if t == 0 else 0.0])
        heights.append(154 - env.y)
        speeds.append(env.vy)
        np.testing.assert_allclose(obs[:2], ((env.y - 154) / 224, env.vy / 10), rtol=1e-6, atol=1e-7)
    assert heights[:13] == FULL and heights[22:] == [0, 0, 0]
    assert speeds[:3] == [-11, -10, -9] and speeds[21:] == [10, 11, 0, 0]  # down, but not landed until the next step


def test_jump_right_after_the_touchdown():
    env = at(y=154.0, vy=11.0)
    env.step([0.5])
    assert (env.y, env.vy) == (149, -5)


@pytest.mark.parametrize(
    "y, action, y_after, vy_after",
    [
        (154, 1, 143, -11), (154, 0.5, 149, -5), (154, 1 / 12, 154, 0), (154, 0.05, 154, 0), (154, 0.1, 153.8, -0.2),
        (154, 0, 154, 0), (154, -1, 154, 0), (154, 5, 143, -11), (153.9995, 0.5, 148.9995, -5), (153.9, 1, 154, 0),
    ],
)  # fmt: skip
def test_first_step_of_a_jump(y, action, y_after, vy_after):
    env = at(y=float(y), vy=0.0)
    env.step([action])
    assert (env.y, env.vy) == pytest.approx((y_after, vy_after), abs=1e-9)


def test_no_jump_in_the_air():
    env = at(y=100.0, vy=-3.0)
    env.step([1])
    assert (env.y, env.vy) == (98, -2)


# ---- coins ----


def test_coins_scroll():
    env = at(coins=[[200, 119, True], [227, 137, False]])
    obs, reward, *_ = env.step([0])
    assert env.coins == [[190, 119, True], [217, 137, False]] and reward == 0
    np.testing.assert_allclose(obs[2:], [190 / 224, 119 / 224] + [-1] * 8, rtol=1e-6)


@pytest.mark.parametrize(
    "coins, replaced",
    [
        ([[1, 83, True]], False),  # moves to -9: still there
        ([[0, 83, True]], True),
        ([[0, 83, True], [27, 83, True]], False),
        ([[0, 83, True], [27, 83, False]], True),
        ([[200, 83, False], [227, 83, False]], True),
    ],
)
def test_next_row(coins, replaced):
    env = at(coins=coins)
    env.step([0])
    if replaced:
        check_row(env.coins)
    else:
        assert env.coins == [[x - 10, y, active] for x, y, active in coins]


def test_next_row_comes_one_step_after_the_last_coin():
    env = at(coins=[[70, 173, True]])
    obs, reward, *_ = env.step([0])
    assert reward == 1 and env.coins == [[60, 173, False]] and (obs[2:] == -1).all()
    obs, reward, *_ = env.step([0])
    check_row(env.coins)
    assert reward == 0 and obs[2] == pytest.approx(env.coins[0][0] / 224)


@pytest.mark.parametrize(
    "y, x, cy, taken",
    [
        (154, 66, 173, 1), (154, 67, 173, 0), (154, 32, 173, 1), (154, 31, 173, 0),
        (154, 49, 155, 1), (154, 49, 145, 0), (154, 49, 146, 1), (154, 49, 137, 0),
        (100.9, 49, 92, 1), (100.9, 49, 91, 0), (100.9, 49, 138, 1), (100.9, 49, 139, 0),  # 100.9 counts as 100
    ],
)  # fmt: skip
def test_touch(y, x, cy, taken):
    env = at(y=y, vy=-1.0 if y < 154 else 0.0, coins=[[x + 10, cy, True]])
    _, reward, _, _, info = env.step([0])
    assert env.y == y and reward == taken and env.coins == [[x, cy, not taken]]
    assert info == {"score": pytest.approx(taken / 50), "success": 0.0}


def test_two_at_once_and_each_once():
    env = at(coins=[[50, 155, True], [77, 173, True], [104, 119, True]])
    assert [env.step([0])[1] for _ in range(3)] == [1, 1, 0]
    env = at(coins=[[45, 155, True], [72, 173, True], [104, 119, True]])
    assert env.step([0])[1] == 2


# ---- whole steps ----


def test_steps_follow_the_rules():
    rng, env, rewards = np.random.default_rng(0), at(), []
    for k in range(300):
        on_ground = k % 3 == 0
        y, vy = (154.0, 0.0) if on_ground else (rng.uniform(88, 154), rng.uniform(-11, 11))
        count = int(rng.integers(1, 6))
        coins = [[int(rng.integers(30, 90)), int(rng.choice(range(83, 174, 18))), True] for _ in range(count)]
        coins += [[300, 83, bool(rng.integers(2))]] * (count < 5)
        coins = [[x, cy, bool(active and rng.random() < 0.8)] for x, cy, active in coins] + [[2000, 83, True]]
        coins = coins[-5:]
        action = rng.uniform(-0.5, 1.2)
        env.set_state({"y": y, "vy": vy, "coins": coins, "t": 0})
        obs, reward, *_ = env.step([action])
        if action > 0 and on_ground:
            vy = -12 * min(1, action)
        vy, y = vy + 1, y + vy + 1
        if y > 154:
            y, vy = 154, 0
        want, slots = 0, []
        for x, cy, active in coins:
            x -= 10
            if active and 31 < x < 67 and int(y) - 9 < cy < int(y) + 39:
                want, active = want + 1, False
            slots += [x / 224, cy / 224] if active else [-1, -1]
        assert reward == want
        np.testing.assert_allclose(obs, [(y - 154) / 224, vy / 10, *slots, *[-1] * (10 - len(slots))], rtol=1e-5)
        rewards.append(reward)
    assert len(set(rewards)) >= 4


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    for t in range(100):
        env.step([np.sin(t)])
    state, rows = env.get_state(), []
    for again in (env, env, other):  # the other was never reset
        again.set_state(state)
        rows.append([np.append((s := again.step([np.cos(t)]))[0], s[1]) for t in range(400)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert np.sum(rows[0], axis=0)[-1] > 5  # some coins, so also new rows


def test_score_is_clipped():
    env = at()
    for ret, want in ((0.0, 0), (25.0, 0.5), (60.0, 1)):
        env.set_state({"ret": ret})
        assert env.step([0])[4]["score"] == want


def test_picture():
    env = envs.make(NAME)
    env.set_state(at(coins=[[120, 101, True], [147, 119, False]]).get_state())
    frame = env.render()
    assert (frame[101, 115] == (255, 215, 0)).all() and (frame[119, 147] != (255, 215, 0)).any()
    assert (frame[159, 49] == (222, 184, 135)).all() and (frame[174, 49] == (139, 69, 19)).all()  # face, dress
    assert (frame[0, 2] == (173, 216, 230)).all() and (abs(frame[223, 100] - (112.0, 170, 112)) <= 2).all()
    env.set_state({"y": 100.0})
    assert (env.render()[105, 49] == (222, 184, 135)).all()


def test_player():
    env, totals = envs.make(NAME), []
    for seed in range(12):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        totals.append(env.ret)
        assert info == {"score": 1.0, "success": 0.0}
    assert 60 < np.mean(totals) < 65  # such a player got 62.3 +- 2.2 on the original


def test_player_without_coins_does_nothing():
    assert player(at(coins=[[60, 173, False]])) == 0
