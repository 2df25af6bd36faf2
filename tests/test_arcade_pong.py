"""Pong (MiniArcade): each rule from a position set by hand, and whole steps against scalar arithmetic.

Run: pytest tests/test_arcade_pong.py
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.pong import player

NAME = "pygame-pong"
# Ball left of the middle, flying level: the computer sleeps, nothing is hit.
CALM = {"bx": 60.0, "by": 112.0, "vx": 8.0, "vy": 0.0, "ya": 92.0, "yo": 92.0, "aware": False, "delay": 0, "t": 0}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    env.set_state(CALM | state)
    return env


def step(action=0.0, **state):
    env = at(**state)
    obs, reward, *_ = env.step([action])
    return env, obs, reward


# ---- launch ----


def check_launches(launches):
    """(bx, by, vx, vy): from the middle, speed 8, angle uniform within +-90 degrees, either side."""
    launches = np.array(launches)
    assert (launches[:, :2] == 112).all()
    np.testing.assert_allclose(np.hypot(*launches[:, 2:].T), 8, atol=1e-9)
    angle, right = np.arcsin(launches[:, 3] / 8), launches[:, 2] > 0
    assert abs(angle).max() <= math.pi / 2 and 0.4 < right.mean() < 0.6
    for edge in (-1, -0.5, 0, 0.5, 1):  # cumulative shares of a uniform angle
        assert abs((angle < edge).mean() - (0.5 + edge / math.pi)) < 0.08
    assert abs(np.corrcoef(angle, right)[0, 1]) < 0.15


def test_reset():
    env, launches = envs.make(NAME, seed=0), []
    assert env.aware is False and env.delay == 0
    for _ in range(400):
        obs, info = env.reset()
        assert info == {"score": 0.5, "success": 0.0}
        np.testing.assert_allclose(obs[[0, 1, 4, 5]], [0.5, 0.5, 92 / 224, 92 / 224], atol=1e-7)
        launches.append((env.bx, env.by, env.vx, env.vy))
    check_launches(launches)


@pytest.mark.parametrize("bx, vx, reward", [(200.0, 5.0, 1), (24.0, -5.0, -1)])
def test_point(bx, vx, reward):
    env, launches = at(), []
    for k in range(300):
        env.set_state(CALM | {"bx": bx, "vx": vx, "ya": 40.0, "yo": 140.0, "by": 100.0, "ret": 0.0})
        env.set_state({"aware": True, "delay": 2, "agent_points": k, "opp_points": 7})
        obs, got, *_, info = env.step([0])
        assert got == reward and info["score"] == pytest.approx((reward + 3) / 6)
        assert (env.agent_points, env.opp_points) == ((k + 1, 7) if reward > 0 else (k, 8))
        assert (env.ya, env.yo) == (40, 140)  # paddles stay
        assert (env.aware, env.delay) == ((True, 1) if bx > 100 else (False, 2))  # so does the attention
        np.testing.assert_allclose(obs[:4], [0.5, 0.5, env.vx / 8, env.vy / 8], rtol=1e-6)  # of the new ball
        launches.append((env.bx, env.by, env.vx, env.vy))
    check_launches(launches)


def test_point_needs_the_centre_beyond_the_line():
    for bx, vx, want in ((199, 5, 0), (199, 5.01, 1), (25, -5, 0), (25, -5.01, -1)):
        assert step(bx=float(bx), vx=vx, ya=164.0, yo=164.0, by=60.0)[2] == want


# ---- paddles ----


@pytest.mark.parametrize(
    "ya, action, end", [(92, 1, 100.5), (92, -0.4, 88.6), (92, 9, 100.5), (25, -1, 20), (160, 1, 164)]
)
def test_agent(ya, action, end):
    env, obs, _ = step(action, ya=float(ya))
    assert env.ya == pytest.approx(end, abs=1e-6) and obs[4] == pytest.approx(end / 224, abs=1e-7)


def move(p):
    return 8.5 * (0.5 + 0.35 * min(1, max(0, (p - 0.3) / 0.65)))


@pytest.mark.parametrize(
    "bx, by, yo, way",
    [
        (80, 150, 92, 1), (80, 100, 92, -1), (80, 112, 92, -1),  # level with it: up
        (80, 112.1, 92, 1), (140, 150, 92, 1), (140, 60, 92, -1), (194.8, 150, 92, 1), (203, 60, 92, -1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("vx", [3.0, -3.0])
def test_opponent_step(bx, by, yo, way, vx):
    env, *_ = step(bx=float(bx), by=float(by), yo=float(yo), vx=vx, vy=0.0, aware=True)
    assert env.yo == pytest.approx(yo + way * move((bx - 20) / 184), abs=1e-9)
    assert env.aware is True and env.delay == 0


def test_opponent_speeds_in_numbers():
    assert step(bx=194.8, by=60.0, vx=-1.0, aware=True)[0].yo == pytest.approx(92 - 7.225)  # 0.85 at 95 % of the court
    assert step(bx=203.0, by=60.0, vx=-1.0, aware=True)[0].yo == pytest.approx(92 - 7.225)  # and not faster
    assert step(bx=75.21, by=60.0, vx=-1.0, aware=True)[0].yo == pytest.approx(92 - 4.25, abs=1e-3)


def test_opponent_stays_on_the_court():
    assert step(bx=150.0, by=200.0, yo=160.0, vx=1.0, aware=True)[0].yo == 164
    assert step(bx=150.0, by=30.0, yo=22.0, vx=1.0, aware=True)[0].yo == 20


def test_opponent_sleeps_on_the_left():
    for aware in (True, False):
        env, *_ = step(bx=75.19, by=150.0, vx=5.0, aware=aware, delay=3)  # 0.2999 of the court, before it moves
        assert (env.yo, env.aware, env.delay) == (92, False, 3)


def test_opponent_reaction_time():
    env, delays = at(), []
    for _ in range(400):
        env.set_state(CALM | {"bx": 76.0, "by": 150.0, "aware": False})
        env.step([0])
        assert env.yo == 92 and env.aware is True
        delays.append(env.delay)
    assert set(delays) == {1, 2, 3, 4, 5} and min(delays.count(d) for d in range(1, 6)) > 50
    env.set_state(CALM | {"bx": 100.0, "by": 150.0, "vx": 0.1, "aware": True, "delay": 2})
    heights = []
    for _ in range(4):
        env.step([0])
        heights.append((env.yo, env.delay))
    assert heights[:2] == [(92, 1), (92, 0)] and 92 < heights[2][0] < heights[3][0]


# ---- ball ----


@pytest.mark.parametrize(
    "by, vy, end, end_vy",
    [
        (32, -6, 26, 6), (33, -6, 27, -6), (192, 6, 198, -6), (191, 6, 197, 6),  # 7 px before the wall; not moved back
        (25, 1, 26, -1),  # turns even on its way back
    ],
)  # fmt: skip
def test_walls(by, vy, end, end_vy):
    env, obs, reward = step(by=float(by), vy=float(vy), vx=5.0)
    assert (env.by, env.vy, env.bx, env.vx, reward) == (end, end_vy, 65, 5, 0)
    np.testing.assert_allclose(obs[:4], [65 / 224, end / 224, 5 / 8, end_vy / 8], rtol=1e-6)


@pytest.mark.parametrize(
    "bx, by, vx, hit",
    [
        (44, 112, -5, True),  # then from 35.5 to 42.5: truncated to 35
        (44.5, 112, -5, False),  # from 36
        (32, 112, -5, False),  # from 23.5 to 30: touches from behind
        (32.5, 112, -4, True),
        (44, 75, -5, False),  # from 71.5 to 78.5: above the paddle (92)
        (44, 88.4, -5, False),  # 84 + 7 = 91
        (44, 89.4, -5, False),  # 85 + 7 = 92: touches
        (44, 89.5, -5, True),
        (44, 135.4, -5, True),  # 131 < 132
        (44, 135.5, -5, False),
        (30, 112, 5, False),  # flies to the right already
    ],
)
def test_agent_paddle(bx, by, vx, hit):
    env, *_ = step(bx=float(bx), by=float(by), vx=float(vx))
    assert env.vx == (-vx if hit else vx) and env.vy == 0 and env.bx == bx + vx


def test_agent_paddle_is_truncated():
    for ya, hit in ((92.9, True), (93.0, False)):
        assert (step(bx=44.0, by=89.5, vx=-5.0, ya=ya)[0].vx == 5) is hit  # ball from 86 to 93


@pytest.mark.parametrize(
    "bx, by, vx, hit",
    [
        (180.4, 112, 5, False),  # then from 181.9 to 188.9: truncated to 181, it only touches
        (180.5, 112, 5, True),
        (192.4, 112, 5, True),  # 193 < 194
        (192.5, 112, 5, False),
        (185, 150, 5, False),  # below the paddle
        (190, 112, -5, False),
    ],
)
def test_opponent_paddle(bx, by, vx, hit):
    env, *_ = step(bx=float(bx), by=float(by), vx=float(vx), aware=True, delay=5)
    assert env.vx == (-vx if hit else vx) and env.bx == bx + vx


# ---- attention between episodes ----


def test_attention_survives_a_reset_but_not_a_seed():
    env = at(aware=True, delay=4)
    env.reset()
    assert (env.aware, env.delay) == (True, 4)
    env.reset(seed=1)
    assert (env.aware, env.delay) == (False, 0)


# ---- whole steps ----


def overlap(l1, t1, w1, h1, l2, t2, w2, h2):
    return l1 < l2 + w2 and l2 < l1 + w1 and t1 < t2 + h2 and t2 < t1 + h1


def scalar_step(s, action):
    """With an aware or sleeping computer -> bx, by, vx, vy, ya, yo, reward."""
    ya = min(164, max(20, s["ya"] + 8.5 * min(1, max(-1, action))))
    yo, p = s["yo"], (s["bx"] - 20) / 184
    if p > 0.3 and s["delay"] == 0:
        yo = min(164, max(20, yo + (1 if s["by"] - 20 > yo else -1) * move(p)))
    bx, by, vx, vy = s["bx"] + s["vx"], s["by"] + s["vy"], s["vx"], s["vy"]
    if by - 7 < 20 or by + 7 > 204:
        vy = -vy
    ball = int(bx - 3.5), int(by - 3.5), 7, 7
    if overlap(*ball, 30, int(ya), 6, 40) and vx < 0:
        vx = -vx
    if overlap(*ball, 188, int(yo), 6, 40) and vx > 0:
        vx = -vx
    return bx, by, vx, vy, ya, yo, -1 if bx < 20 else 1 if bx > 204 else 0


def test_steps_and_observations_follow_the_rules():
    rng, env, rewards, hits = np.random.default_rng(0), at(), [], 0
    for k in range(1500):
        angle = rng.uniform(0, 2 * math.pi)
        s = {"bx": rng.uniform(20, 204), "by": rng.uniform(20, 204), "ya": rng.uniform(20, 164), "aware": True, "t": 0}
        if k % 3:
            s["bx"] = (rng.uniform(20, 50), rng.uniform(175, 204))[k % 2]
        s |= {
            "yo": rng.uniform(20, 164),
            "vx": 8 * math.cos(angle),
            "vy": 8 * math.sin(angle),
            "delay": int(k % 4 == 0),
        }
        env.set_state(s)
        action = rng.uniform(-1.2, 1.2)
        obs, reward, *_ = env.step([action])
        bx, by, vx, vy, ya, yo, want = scalar_step(s, action)
        assert reward == want
        rewards.append(reward)
        np.testing.assert_allclose([env.ya, env.yo], [ya, yo], rtol=0, atol=1e-9)
        if not reward:
            np.testing.assert_allclose(
                obs, [bx / 224, by / 224, vx / 8, vy / 8, ya / 224, yo / 224], rtol=1e-6, atol=1e-9
            )
            hits += vx != s["vx"]
    assert rewards.count(1) > 20 and rewards.count(-1) > 20 and hits > 50


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_equal_seeds_are_equal_after_any_past():
    rows = []
    for past in (0, 37, 200):
        env = envs.make(NAME, seed=past)
        env.reset()
        for _ in range(past):
            env.step(env.action_space.sample())
        env.reset(seed=4)
        rows.append([env.step(player(env))[0] for _ in range(300)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])


def test_state_is_exact():
    env, used, fresh = envs.make(NAME, seed=1), envs.make(NAME, seed=2), envs.make(NAME, seed=3)
    env.reset()
    used.reset()
    for _ in range(50):
        env.step(env.action_space.sample())
        used.step(used.action_space.sample())
    state, actions, rows = env.get_state(), np.random.default_rng(0).uniform(-1, 1, (300, 1)), []
    for again in (env, env, used, fresh):
        again.set_state(state)
        first = [np.append((s := again.step(a))[0], s[1]) for a in actions]
        again.reset()
        rows.append(first + [again.step(a)[0] for a in actions])  # the attention goes on with it
    for row in rows[1:]:
        for a, b in zip(row, rows[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_score():
    for ret, want in ((0.0, 0.5), (1.0, 4 / 6), (-3.0, 0), (-9.0, 0), (3.0, 1), (9.0, 1)):
        assert at(ret=ret).step([0])[4] == {"score": pytest.approx(want), "success": 0.0}


def test_picture():
    env = at(bx=100.0, by=60.0, ya=50.0, yo=120.0, agent_points=0, opp_points=0)
    frame = env.render()
    ball = (frame == 255).all(axis=-1)[24:200, 24:200]
    assert np.argwhere(ball).min(axis=0).tolist() == [56 - 24, 96 - 24] and ball.sum() == 49
    paddles = [np.argwhere((frame[21:] == color).all(axis=-1)) + (21, 0) for color in ((255, 140, 0), (180, 180, 180))]
    assert [p.min(axis=0).tolist() for p in paddles] == [[50, 30], [120, 188]]
    assert [p.max(axis=0).tolist() for p in paddles] == [[89, 35], [159, 193]]
    assert (frame[20, 20:204] == 255).all() and not frame[10, 100].any()
    env.set_state({"agent_points": 3})
    changed = np.argwhere((env.render() != frame).any(axis=-1))
    assert changed[:, 0].max() < 20 and changed[:, 1].max() < 60  # the left number


def test_player_concedes_nothing():
    env, totals = envs.make(NAME), []
    for seed in range(40):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        assert env.opp_points == 0 and env.ret == env.agent_points
        totals.append(env.ret)
    assert info["success"] == 0
    assert 0.1 < np.mean(totals) < 0.7  # 0.40 +- 0.62 on the original


def test_angles_that_beat_the_computer():
    for degrees, points in ((35, 1), (-35, 1), (5, 0), (-5, 0)):
        angle = math.radians(degrees)
        env = at(bx=112.0, by=112.0, vx=-8 * math.cos(angle), vy=8 * math.sin(angle), ret=0.0)
        total = 0.0
        for _ in range(200):
            total += env.step(player(env))[1]
            if total:
                break
        assert total == points
