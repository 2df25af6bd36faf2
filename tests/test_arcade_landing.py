"""Landing (MiniArcade): flight, ship, collisions, contact from states set by hand; steps against a plain version.

Run: pytest tests/test_arcade_landing.py
"""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.landing import player

NAME = "pygame-landing"
HOVER = -1 / 3  # carries the helicopter's weight: 0.6 * 1/3 = 0.2


def at(**state):
    """The ship is about to be at 100, its deck at 65 .. 135; the helicopter is far up."""
    env = envs.make(NAME)
    env.reset(seed=0)
    calm = {"x": 10.0, "y": 50.0, "vx": 0.0, "vy": 0.0, "sx": 99.0, "d": 1, "v": 1.0, "contact": False, "locked": False}
    env.set_state(calm | {"t": 0} | state)
    return env


# ---- reset ----


def test_reset():
    env, rows = envs.make(NAME, seed=0), []
    for _ in range(3000):
        obs, info = env.reset()
        rows.append([env.x, env.y, env.vx, env.vy, env.v, env.d])
        assert env.sx == 74 and env.contact is env.locked is False
    assert info == {"score": 0.0, "success": 0.0}
    want = env.x / 224, env.y / 224, env.vx / 10, env.vy / 10, 74 / 224, 0.84375, env.d * env.v / 5
    np.testing.assert_allclose(obs, want, rtol=1e-6)
    *numbers, d = np.array(rows).T
    for values, low, high in zip(numbers, (12, 12, -0.3, -0.3, 1.1), (36, 36, 0.3, 0.3, 1.7), strict=True):
        edge = 0.01 * (high - low)
        assert low <= values.min() < low + edge and high - edge < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 2 * edge
    assert set(d) == {-1, 1} and abs(d.mean()) < 0.06
    assert abs(np.corrcoef(rows, rowvar=False) - np.eye(6)).max() < 0.08  # six independent draws


# ---- flight and ship ----


@pytest.mark.parametrize(
    "before, action, after",
    [
        ((50, 50, 0, 0), (0, 0), (50, 50.2, 0, 0.192)),
        ((50, 50, 1, -1), (0.5, -1), (51.3, 48.6, 1.248, -1.344)),
        ((50, 50, 0, 0), (-9, 9), (49.4, 50.8, -0.576, 0.768)),
        ((1, 1, -3, -4), (0, HOVER), (0, 0, -2.88, -3.84)),  # it stops at the edge, its velocity doesn't
        ((195, 205, 3, 4), (0, HOVER), (196, 206, 2.88, 3.84)),
    ],
)
def test_flight(before, action, after):
    env = at(**dict(zip(("x", "y", "vx", "vy"), map(float, before), strict=True)))
    obs, *_ = env.step(action)
    assert (env.x, env.y, env.vx, env.vy) == pytest.approx(after, abs=1e-12)
    np.testing.assert_allclose(obs[:4], np.divide(after, (224, 224, 10, 10)), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "sx, d, v, sx_after, d_after",
    [(100, 1, 1.25, 101.25, 1), (100, -1, 1.5, 98.5, -1), (36, -1, 1, 35, 1), (36.1, -1, 1, 35.1, -1),
     (35.5, -1, 1.5, 35, 1), (188, 1, 1, 189, -1), (187.9, 1, 1, 188.9, 1), (188.5, 1, 1.5, 189, -1)],
)  # fmt: skip
def test_ship(sx, d, v, sx_after, d_after):
    env = at(sx=float(sx), d=d, v=v)
    obs, *_ = env.step([0, 0])
    assert (env.sx, env.d, env.v) == (pytest.approx(sx_after, abs=1e-12), d_after, v)
    np.testing.assert_allclose(obs[4:], (sx_after / 224, 189 / 224, d_after * v / 5), rtol=1e-6)


# ---- collisions ----


def fly_into(x, y, vx, vy, **state):
    """One step that ends at (x, y) with velocity (vx, vy), if nothing is in the way; the deck is then at 65 .. 135."""
    ux, uy = vx / 0.96, vy / 0.96
    env = at(x=x - ux, y=y - uy, vx=ux, vy=uy - 0.2, **state)
    _, reward, *_ = env.step([0, 0])
    return env, reward


@pytest.mark.parametrize(
    "before, after",
    [
        # from above: up to the deck's top, sideways speed a tenth less; in contact, so mixed with the ship's
        ((90, 170, 2, 1.5), (90, 165, 0.7 * 1.8 + 0.3, 0)),
        ((90, 176, 2, -1.5), (90, 165, 0.7 * 1.8 + 0.3, -1.5)),  # center 185 is still above 189
        # from below: center 190
        ((90, 181, 2, -1.5), (90, 195, 2, 0)), ((90, 181, 2, 1.5), (90, 195, 2, 1.5)),
        # from the left and from the right: a few columns into a deck of 12 rows
        ((40, 180, 2, 0.5), (37, 180, 0, 0.5)), ((40, 180, -2, 0.5), (37, 180, -2, 0.5)),
        ((132, 180, -2, 0.5), (135, 180, 0, 0.5)), ((132, 180, 2, 0.5), (135, 180, 2, 0.5)),
        # equal depths, 5 and 5: upwards
        ((42, 170, 2, 0.5), (42, 165, None, 0)), ((42, 171, 2, 0.5), (37, 171, 0, 0.5)),
        # touching is not overlapping; numbers are truncated first
        ((90, 165.9, 2, 0.5), (90, 165.9, None, 0.5)), ((37.9, 180, 2, 0.5), (37.9, 180, 2, 0.5)),
        ((135, 180, 2, 0.5), (135, 180, 2, 0.5)), ((90, 195, 2, 0.5), (90, 195, 2, 0.5)),
    ],
)  # fmt: skip
def test_deck_is_solid(before, after):
    env, _ = fly_into(*before)
    for value, want in zip((env.x, env.y, env.vx, env.vy), after, strict=True):
        assert want is None or value == pytest.approx(want, abs=1e-9)


# ---- contact and lock ----


@pytest.mark.parametrize(
    "x, y, contact",
    [
        (90, 161.9, False), (90, 162, True), (90, 165, True),
        (41, 163, False), (42, 163, True),  # right end 70 is beyond 65 + 4
        (131, 163, False), (130, 163, True),  # left end 130 is before 135 - 4
    ],
)  # fmt: skip
def test_contact_starts_three_pixels_above_the_deck(x, y, contact):
    env, _ = fly_into(float(x), float(y), 0.5, 0.3)
    assert env.contact is contact and env.locked is False and env.y == pytest.approx(y)
    assert env.vx == pytest.approx(0.7 * 0.5 + 0.3 if contact else 0.5)


@pytest.mark.parametrize(
    "vx, vy, locked",
    [
        (1.0, 0.19, True), (1.0, -0.19, True), (1.0, 0.21, False), (1.0, -0.21, False),
        (1.28, 0.1, True), (1.29, 0.1, False), (0.72, 0.1, True), (0.71, 0.1, False),  # 0.7 of it counts
    ],
)  # fmt: skip
def test_lock(vx, vy, locked):
    env, _ = fly_into(90.0, 163.0, vx, vy)
    assert env.contact and env.locked is locked
    if locked:
        assert env.y == 165 and env.vx == pytest.approx(1) and env.vy == pytest.approx(min(0, vy))
    else:
        assert env.y == pytest.approx(163) and env.vy == pytest.approx(vy)


def test_lock_lasts_while_there_is_contact():
    env, _ = fly_into(90.0, 163.0, 3.0, -2.0, locked=True, contact=True)
    assert env.locked and (env.y, env.vx, env.vy) == (165, 1, pytest.approx(-2))
    env, _ = fly_into(90.0, 160.0, 3.0, -2.0, locked=True, contact=True)
    assert not env.locked and not env.contact and env.y == pytest.approx(160)


def test_ship_turns_and_takes_the_helicopter_along():
    env = at(x=175.0, y=165.0, vx=1.5, sx=188.5, v=1.5, contact=True, locked=True)
    env.step([0, HOVER])
    assert env.d == -1 and env.vx == -1.5 and env.locked
    env.step([0, HOVER])
    assert env.x == pytest.approx(175 + 1.5 - 1.5)


def test_moving_on_the_deck_and_taking_off():
    env = at(x=86.0, y=165.0, vx=1.0, contact=True, locked=True)
    for k in range(1, 6):
        env.step([0.5, HOVER])
        assert env.x == pytest.approx(86 + 1.3 * k) and env.locked and env.y == 165
    # -0.4 per step: it gets 3 px high in one step only once it is fast enough
    speed, steps = env.vy, 0
    while env.locked:
        env.step([0, -1])
        steps += 1
    for _ in range(steps):
        speed = (speed - 0.4) * 0.96
    assert env.vy == pytest.approx(speed) and env.y == pytest.approx(165 + speed / 0.96)
    assert speed / 0.96 <= -3 < speed / 0.96**2 + 0.4 and steps >= 8  # trunc(162) is still contact


# ---- reward ----


def test_on_the_middle_of_the_deck():
    env = at(x=85.0, y=165.0, vx=1.0, sx=99.0, contact=True, locked=True)
    for _ in range(20):
        _, reward, *_ = env.step([0, HOVER])
        assert reward == pytest.approx(0.1 + 0.9 + 0.025 + 0.1 * (1 - 15 / 224), abs=1e-9)  # 1.118


@pytest.mark.parametrize("vy, penalty", [(0.5, 1.0), (3.0, 6.0), (4.9, 9.8), (6.0, 10), (-0.5, 0)])
def test_impact_costs_once(vy, penalty):
    rewards = []
    for before in (False, True):
        env, reward = fly_into(86.0, 165.0, 1.0, vy, contact=before)
        assert env.contact
        rewards.append(reward)
    assert rewards[1] - rewards[0] == pytest.approx(penalty, abs=1e-9)
    # Deeper, so that the deck stops it: the speed before that counts.
    if vy > 0:
        hard, soft = (fly_into(86.0, 168.0, 1.0, vy, contact=before)[1] for before in (False, True))
        assert soft - hard == pytest.approx(penalty, abs=1e-9)


def plain_step(s, action):
    """-> state, reward by the rules as written down, scalars only."""
    ax, ay = (max(-1, min(1, a)) for a in action)
    vx, vy = s["vx"] + 0.6 * ax, s["vy"] + 0.6 * ay + 0.2
    x, y = max(0, min(196, s["x"] + vx)), max(0, min(206, s["y"] + vy))
    vx, vy = vx * 0.96, vy * 0.96
    sx, d = s["sx"] + s["d"] * s["v"], s["d"]
    if sx - 35 <= 0:
        sx, d = 35, 1
    elif sx + 35 >= 224:
        sx, d = 189, -1
    left, impact, u = int(sx - 35), vy, d * s["v"]
    hl, ht = int(x), int(y)
    if hl < left + 70 and left < hl + 28 and ht < 195 and 183 < ht + 18:
        pen_x, pen_y = min(hl + 28 - left, left + 70 - hl), min(ht + 18 - 183, 195 - ht)
        if pen_y <= pen_x and ht + 9 < 189:
            y, vy, vx = 165, min(0, vy), vx * 0.9
        elif pen_y <= pen_x:
            y, vy = 195, max(0, vy)
        elif hl + 14 < left + 35:
            x, vx = left - 28, min(0, vx)
        else:
            x, vx = left + 70, max(0, vx)
        hl, ht = int(x), int(y)
    contact = hl + 28 > left + 4 and hl < left + 66 and 180 <= ht + 18 <= 186
    locked = contact and s["locked"]
    if contact:
        vx = 0.7 * vx + 0.3 * u
        locked = locked or (abs(vy) < 0.2 and abs(vx - u) < 0.2)
    if locked:
        vx, vy, y = u, min(0, vy), 165
    n = min(1, abs(hl + 14 - left - 35) / 35)
    reward = 0.1 + 0.9 * (1 - n) if contact else 0
    if vy > 0:
        reward -= 0.001 * vy
    if contact and not s["contact"]:
        reward -= min(10, 2 * max(0, impact))
    if ht + 9 > 183:
        reward -= 0.5
    else:
        reward += 0.025 * (1 - n) + 0.1 * (1 - min(1, abs(ht + 9 - 189) / 224))
    return (x, y, vx, vy, sx, d, contact, locked), reward


def test_steps_follow_the_rules():
    rng, env, seen = np.random.default_rng(0), at(), []
    for k in range(1000):
        sx = rng.uniform(35, 189)
        far = k % 4 == 0
        x, y = rng.uniform((0, 0), (196, 206)) if far else (sx + rng.uniform(-70, 42), rng.uniform(158, 200))
        vx, vy = rng.uniform(-4, 4, 2) if k % 3 else (rng.uniform(-2, 2), rng.uniform(-0.3, 0.3))
        state = {"x": min(196.0, max(0.0, x)), "y": y, "vx": vx, "vy": vy, "sx": sx, "d": int(rng.choice([-1, 1]))}
        state |= {"v": rng.uniform(1.1, 1.7), "contact": bool(rng.integers(2)), "locked": bool(rng.integers(2))}
        env.set_state(state | {"t": 0})
        action = rng.uniform(-1.3, 1.3, 2)
        obs, reward, *_ = env.step(action)
        (x, y, vx, vy, sx, d, contact, locked), want = plain_step(state, action)
        assert reward == pytest.approx(want, abs=1e-9)
        numbers = env.x, env.y, env.vx, env.vy, env.sx, env.d
        assert numbers == pytest.approx((x, y, vx, vy, sx, d), abs=1e-9)
        assert (env.contact, env.locked) == (contact, locked)
        want_obs = x / 224, y / 224, vx / 10, vy / 10, sx / 224, 0.84375, d * state["v"] / 5
        np.testing.assert_allclose(obs, want_obs, rtol=1e-5, atol=1e-6)
        seen.append((contact, locked, reward < -0.4))
    assert len(set(seen)) == 6  # no contact, contact, lock; each also with a bad reward


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    while not env.locked:
        env.step(player(env))
    state, rows = env.get_state(), []
    count = 200 - env.t
    for again in (env, env, other):  # the other was never reset
        again.set_state(state)
        rows.append([np.append((s := again.step([np.cos(t), np.sin(t / 7)]))[0], s[1]) for t in range(count)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(other.reset()[0], env.reset()[0])
    assert count > 100


def test_score_is_the_return_over_200():
    for ret, want in ((-5.0, 0), (100.0, 0.5), (230.0, 1)):
        env = at(ret=ret)
        _, reward, _, _, info = env.step([0, 0])
        assert 0 < reward < 0.2
        assert info == {"score": pytest.approx(want and min(1, want + reward / 200)), "success": 0.0}


def test_picture():
    env = envs.make(NAME)
    env.set_state(at(x=100.0, y=60.0, sx=110.0).get_state())
    frame = env.render()
    assert (frame[69, 118] == (180, 200, 220)).all() and (frame[57, 110] == (50, 50, 50)).all()  # body, rotor
    assert (frame[186, 120] == (240, 240, 240)).all() and (frame[203, 110] == (120, 120, 140)).all()  # deck, hull
    assert (frame[220, 5] == (50, 120, 200)).all() and (frame[175, 114] == (220, 40, 40)).all()  # water, pennant
    assert (frame[189, 150] == (240, 240, 240)).all() and (frame[189, 70] == (50, 120, 200)).all()  # bow
    env.set_state({"d": -1})
    assert (env.render()[189, 70] == (240, 240, 240)).all() and (env.render()[189, 150] == (50, 120, 200)).all()
    env.set_state({"contact": True})
    want = np.array((50, 120, 200)) + (np.array((80, 220, 120)) - (50, 120, 200)) * 40 / 255
    assert (abs(env.render()[220, 5] - want) < 2).all()


def test_player():
    env, totals = envs.make(NAME), []
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(200):
            info = env.step(player(env))[4]
        totals.append(env.ret)
        assert info["score"] == pytest.approx(env.ret / 200) and info["success"] == 0
    assert 185 < np.mean(totals) < 189 and min(totals) > 183  # such a player got 187 +- 1.2 on the original
