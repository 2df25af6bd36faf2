"""Coconut dodge (MiniArcade): each rule from a position set by hand, and whole steps against a second, plain version.

Run: pytest tests/test_arcade_coconut_dodge.py
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.coconut_dodge import player

NAME = "pygame-coconut-dodge"


def coconut(x, y, vx=0.0, vy=2.0, r=7, crack_left=0):
    return {"x": x, "y": y, "vx": vx, "vy": vy, "r": r, "falling": crack_left == 0, "crack_left": crack_left}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    env.set_state({"balls": [coconut(20.0, 50.0)], "t": 0} | state)
    return env


# ---- reset and spawn ----


def check_spawn(balls, t):
    """All of these are new at time t. The limits are reached but not exceeded, so t is exact."""
    slow, fast = 0.5 * (1 + 0.6 * t / 500), 2.6 * (1 + 0.8 * t / 500)
    for ball in balls:
        assert ball["falling"] and ball["y"] == 13 + ball["r"]
        assert 12 + ball["r"] <= ball["x"] <= 212 - ball["r"]
        assert abs(ball["vx"]) <= slow and 1.4 / 2.6 * fast <= ball["vy"] <= fast
    vx, vy, r = (np.array([ball[key] for ball in balls]) for key in ("vx", "vy", "r"))
    assert vy.max() > fast - 0.003 and vx.min() < -slow + 0.003 and vx.max() > slow - 0.003
    assert sorted(set(r)) == [6, 7, 8] and (np.bincount(r)[6:] > len(r) / 4).all()
    x = np.array([(ball["x"] - 12 - ball["r"]) / (200 - 2 * ball["r"]) for ball in balls])
    assert abs(x.mean() - 0.5) < 0.03 and x.min() < 0.01 and x.max() > 0.99


def test_reset():
    env, balls = envs.make(NAME, seed=0), []
    for _ in range(3000):
        obs, info = env.reset()
        assert (env.x, env.vx, env.hit_timer, len(env.balls)) == (112, 0, 0, 1)
        balls += env.balls
    assert info == {"score": 1.0, "success": 0.0} and obs[0] == pytest.approx(0.5) and obs[1] == obs[4] == 0
    assert (obs[9:] == 0).all()
    check_spawn(balls, 0)


def test_shell_is_replaced_in_place_with_the_speed_of_the_time_before_the_step():
    env, balls = at(), []
    for _ in range(3000):
        env.set_state({"t": 150, "balls": [coconut(50.0, 205.0, crack_left=1), coconut(60.0, 100.0)]})
        env.step([0])
        assert len(env.balls) == 2 and env.balls[1]["x"] == 60
        balls.append(env.balls[0])  # at its start: it did not move yet
    check_spawn(balls, 150)


def test_one_more_coconut_every_100_steps():
    env, balls = at(), []
    for t, want in ((0, 1), (98, 1), (99, 2), (198, 2), (199, 3), (299, 4), (399, 5), (498, 5), (499, 6)):
        env.set_state({"t": t, "balls": [coconut(20.0, 50.0) for _ in range(max(1, want - 1))]})
        env.step([0])
        assert len(env.balls) == want, t
    for _ in range(3000):
        env.set_state({"t": 99, "balls": [coconut(20.0, 50.0)]})
        env.step([0])
        balls.append(env.balls[1])
    check_spawn(balls, 100)


# ---- traveller ----


@pytest.mark.parametrize(
    "x, vx, action, x_after, vx_after",
    [
        (100, 0, 1, 100.8245, 0.8245), (100, 1, 0, 100.97, 0.97), (100, -2, -0.5, 97.64775, -2.35225),
        (100, 4.9, 1, 105, 5), (100, -4.9, -3, 95, -5), (202, 3, 0, 203, 2.91), (22, -4, 0, 21, -3.88),
    ],
)  # fmt: skip
def test_traveller(x, vx, action, x_after, vx_after):
    env = at(x=float(x), vx=float(vx))
    obs, *_ = env.step([action])
    assert env.x == pytest.approx(x_after, abs=1e-12) and env.vx == pytest.approx(vx_after, abs=1e-12)
    np.testing.assert_allclose(obs[:2], ((x_after - 12) / 200, vx_after / 5), rtol=1e-6)


# ---- coconuts ----


@pytest.mark.parametrize(
    "before, after",
    [
        ((100, 50, 0.5, 2, 7), (100.5, 52, 0.5)),
        ((19.2, 50, -0.5, 2, 7), (19, 52, 0.5)),  # 12 + 7 is the left end
        ((19.5, 50, -0.5, 2, 7), (19, 52, -0.5)),  # exactly there is not beyond
        ((203.8, 50, 0.5, 2, 8), (204, 52, -0.5)),
        ((203.5, 50, 0.5, 2, 8), (204, 52, 0.5)),
    ],
)
def test_coconut_falls_and_bounces_off_the_walls(before, after):
    env = at(balls=[coconut(*before)])
    env.step([0])
    ball = env.balls[0]
    assert (ball["x"], ball["y"], ball["vx"], ball["vy"]) == (*after, 2) and ball["falling"]


def test_coconut_cracks_on_the_ground_and_lies_there_for_ten_steps():
    env = at(balls=[coconut(50.0, 203.0, 0.25, 2.0, 7)])
    env.step([0])
    assert env.balls == [coconut(50.25, 205, 0.25, 2.0, 7, crack_left=10)]  # 205 + 7 is the ground
    for left in range(9, 0, -1):
        env.step([0])
        assert env.balls == [coconut(50.25, 205, 0.25, 2.0, 7, crack_left=left)]
    env.step([0])
    assert env.balls[0]["falling"] and env.balls[0]["y"] == 13 + env.balls[0]["r"]
    env = at(balls=[coconut(50.0, 202.5, 0.25, 2.0, 7)])
    env.step([0])
    assert env.balls == [coconut(50.25, 204.5, 0.25, 2.0, 7)]


# ---- hits ----


@pytest.mark.parametrize("r", [6, 8])
@pytest.mark.parametrize("inside", [True, False])
def test_hit_at_the_sum_of_the_radii(r, inside):
    for angle in (0.1, 1.0, 2.5):
        far = 9 + r + (-0.01 if inside else 0.01)
        x, y = 100 + far * math.cos(angle), 200 - far * math.sin(angle)
        env = at(x=100.0, vx=0.0, balls=[coconut(x, y - 2, r=r)])
        _, reward, _, _, info = env.step([0])
        assert reward == -float(inside) and env.hit_timer == 5 * inside
        assert info == {"score": pytest.approx(1 - inside / 15), "success": 0.0}


def test_shells_are_harmless_and_two_hits_cost_as_much_as_one():
    near = coconut(100.0, 195.0)
    assert at(x=100.0, balls=[coconut(100.0, 205.0, crack_left=5)]).step([0])[1] == 0
    assert at(x=100.0, balls=[coconut(100.0, 204.0)]).step([0])[1] == 0  # it cracks in this step
    assert at(x=100.0, balls=[near, near | {"x": 104.0}]).step([0])[1] == -1
    env, rewards = at(x=100.0, balls=[coconut(100.0, 180.0, vy=2.0)]), []
    for _ in range(14):
        rewards.append(env.step([0])[1])
    assert rewards == [0, 0] + [-1] * 10 + [0, 0]  # it touches from 186 to 204, 205 is the ground


def test_a_hit_is_seen_for_five_steps():
    env = at(x=100.0, balls=[coconut(100.0, 202.0, vy=2.0)])  # one step of contact, then a shell
    assert [env.step([0])[0][4] for _ in range(7)] == [1, 1, 1, 1, 1, 0, 0]


# ---- whole steps and the observation ----


def plain_step(state, action):
    """-> state, reward, obs by the rules, without what chance decides (no shell is about to be replaced)."""
    vx = max(-5.0, min(5.0, (state["vx"] + 0.85 * max(-1, min(1, action))) * 0.97))
    x = max(21.0, min(203.0, state["x"] + vx))
    balls, hit = [], 0
    for b in state["balls"]:
        b = dict(b)
        if b["falling"]:
            b["x"], b["y"] = b["x"] + b["vx"], b["y"] + b["vy"]
            if b["x"] < 12 + b["r"]:
                b["x"], b["vx"] = 12 + b["r"], -b["vx"]
            elif b["x"] > 212 - b["r"]:
                b["x"], b["vx"] = 212 - b["r"], -b["vx"]
            if b["y"] + b["r"] >= 212:
                b["y"], b["falling"], b["crack_left"] = 212 - b["r"], False, 10
        else:
            b["crack_left"] -= 1
        if b["falling"] and (b["x"] - x) ** 2 + (b["y"] - 200) ** 2 < (9 + b["r"]) ** 2:
            hit = 1
        balls.append(b)
    timer = 5 if hit else max(0, state["hit_timer"] - 1)
    ordered = sorted(balls, key=lambda b: (b["x"] - x) ** 2 + (b["y"] - 200) ** 2)
    falling = [b for b in ordered if b["falling"]]
    obs = [(x - 12) / 200, vx / 5, 0, -1, float(timer > 0)]
    if falling:
        obs[2:4] = (falling[0]["x"] - x) / 200, (falling[0]["y"] - 200) / 200
    for b in ordered:
        obs += [(b["x"] - 12) / 200, (b["y"] - 12) / 200, b["vx"] / 5, b["vy"] / 5]
    return x, vx, balls, -hit, obs + [0] * (29 - len(obs))


def test_steps_follow_the_rules():
    rng, env, seen = np.random.default_rng(0), at(), []
    for _ in range(300):
        x, count = rng.uniform(21, 203), int(rng.integers(1, 7))
        balls = []
        for k in range(count):
            r, near = int(rng.integers(6, 9)), k % 2
            place = (x + rng.uniform(-25, 25), rng.uniform(170, 204)) if near else rng.uniform((18, 20), (206, 204))
            crack = int(rng.integers(2, 11)) * int(rng.random() < 0.3)
            balls.append(coconut(*map(float, place), rng.uniform(-0.8, 0.8), rng.uniform(1.4, 4), r, crack))
        t = 100 * count - 50  # no new coconut in this step
        env.set_state({"x": x, "vx": rng.uniform(-5, 5), "hit_timer": int(rng.integers(7)), "t": min(t, 498)})
        env.set_state({"balls": balls})
        state, action = env.get_state(), rng.uniform(-1.2, 1.2)
        if count == 6:
            env.set_state({"t": 499})
        obs, reward, *_ = env.step([action])
        x, vx, balls, want, want_obs = plain_step(state, action)
        assert (env.x, env.vx) == pytest.approx((x, vx), abs=1e-12) and env.balls == balls and reward == want
        np.testing.assert_allclose(obs, want_obs, rtol=1e-5, atol=1e-6)
        seen.append((reward, any(b["falling"] for b in balls)))
    assert len(set(seen)) == 3


# ---- contract, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    for t in range(250):
        env.step([np.sin(t / 9)])
    state, rows = env.get_state(), []
    for again in (env, env, other):  # the other was never reset
        again.set_state(state)
        rows.append([np.append((s := again.step([np.cos(t / 9)]))[0], s[1]) for t in range(250)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert len(other.balls) == 6 and len(state["balls"]) == 3
    np.testing.assert_array_equal(other.reset()[0], env.reset()[0])


def test_score_is_clipped():
    env = at()
    for ret, want in ((-20.0, 0), (-3.0, 0.8), (0.0, 1)):
        env.set_state({"ret": ret})
        assert env.step([0])[4]["score"] == pytest.approx(want)


def test_picture():
    env = envs.make(NAME)
    env.set_state(at(x=60.0, balls=[coconut(100.0, 150.0, r=8), coconut(150.0, 205.0, crack_left=1)]).get_state())
    frame = env.render()
    assert (frame[154, 100] == (133, 102, 62)).all() and not frame[5, 100].any() and not frame[100, 220].any()
    assert (frame[195, 60] == (235, 205, 170)).all() and (frame[177, 60] == (245, 220, 185)).all()  # body, head
    assert (frame[12, 30] == 230).all() and frame[14, 30, 2] > 100 > frame[98, 30, 2]  # edge, evening sky
    assert frame[205, 150].min() > 100  # sand between the halves
    env.set_state({"hit_timer": 3})
    assert (env.render() != frame).any(axis=-1).mean() > 0.9 and (env.render() == env.render()).all()


def test_player():
    env = envs.make(NAME)
    for seed in range(4):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        assert info == {"score": 1.0, "success": 0.0}  # such a player was never hit on the original


def test_standing_still_is_hit():
    env, totals = envs.make(NAME), []
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(500):
            env.step([0])
        totals.append(env.ret)
    assert -40 < np.mean(totals) < -5
