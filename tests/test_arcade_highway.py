"""Highway (MiniArcade): each rule from a position set by hand, and whole steps against a second, plain version.

Run: pytest tests/test_arcade_highway.py
     pytest tests/test_arcade_highway.py -m slow     (the player's average; 20 seconds)
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.highway import player

NAME = "pygame-highway"
CENTERS = [36.8, 74.4, 112.0, 149.6, 187.2]
TOPS = [27, 65, 103, 140, 178]  # of the cars' boxes


def car(x, lane, kind="blue", timer=0):
    length = {"blue": 28, "yellow": 28, "truck": 56}[kind]
    return {"active": True, "x": x, "lane": lane, "kind": kind, "len": length, "timer": timer, "respawn": 0}


def free(respawn=100):
    return car(0.0, 0) | {"active": False, "respawn": respawn}


def at(*cars, **state):
    """The agent is in lane 4 at the left edge, out of everything's way; slots not given stay free."""
    env = envs.make(NAME)
    env.reset(seed=0)
    put(env, *cars, **state)
    return env


def put(env, *cars, **state):
    calm = {"x": 0.0, "y": 178.2, "vx": 0.0, "vy": 0.0, "sticky": None, "flash": 0, "t": 0}
    env.set_state(calm | {"cars": [*cars, *(free() for _ in range(4 - len(cars)))]} | state)


# ---- reset and spawn ----


def test_reset():
    env, lanes, rows = envs.make(NAME, seed=0), [], []
    for _ in range(2000):
        obs, info = env.reset()
        assert 20 <= env.x <= 60 and abs(env.vx) <= 0.2 and abs(env.vy) <= 0.2
        assert (env.sticky, env.flash) == (None, 0)
        lanes.append(int(np.argmin(abs(np.array(CENTERS) - env.y - 9))))
        assert env.y == pytest.approx(CENTERS[lanes[-1]] - 9, abs=1e-9)
        first, *others = env.cars
        assert first["active"] and first["x"] == 264 and first["respawn"] == first["timer"] == 0
        assert not any(other["active"] for other in others) and all(o["respawn"] in range(7) for o in others)
        rows.append([env.x, env.vx, first["lane"], first["len"], *(o["respawn"] for o in others)])
    assert info == {"score": 0.0, "success": 0.0} and obs[4] == 0 and (obs[15:] == -1).all()
    x, vx, lane, length, *respawn = np.array(rows).T
    assert abs(x.mean() - 40) < 1 and x.min() < 20.2 and x.max() > 59.8 and vx.min() < -0.19 and vx.max() > 0.19
    assert (abs(np.bincount(lanes)[1:] - 667) < 90).all() and (abs(np.bincount(lane.astype(int)) - 400) < 80).all()
    assert abs((length == 56).mean() - 1 / 3) < 0.04
    assert all((abs(np.bincount(r.astype(int)) - 2000 / 7) < 70).all() for r in respawn)


def test_new_cars():
    env, seen = at(), []
    for _ in range(3000):
        put(env, free(1))
        env.step([0, 0])
        new = env.cars[0]
        assert new["active"] and new == car(new["x"], new["lane"], new["kind"])  # not moved yet
        seen.append((new["x"], new["lane"], new["kind"]))
    x, lanes, kinds = zip(*seen, strict=True)
    assert 244 <= min(x) < 244.2 and 283.8 < max(x) <= 284 and abs(np.mean(x) - 264) < 1
    assert (abs(np.bincount(lanes) - 600) < 90).all()
    assert all(abs(kinds.count(kind) - 1000) < 110 for kind in ("blue", "yellow", "truck"))


def test_new_cars_keep_their_distance():
    """A car at 306 leaves room for short cars up to x = 260 (28 + 18 apart), a truck at 320 only up to 246."""
    env, near, truck, failed = at(), [], [], 0
    for _ in range(3000):
        put(env, car(312.0, 0), car(326.0, 1, "truck"), car(264.0, 2), free(0), t=499)  # they move by 6 first
        env.step([0, 0])
        new = env.cars[3]
        if not new["active"]:
            failed += 1
            assert new["respawn"] == 1
        elif new["lane"] == 0:
            assert new["kind"] != "truck" and new["x"] <= 260
            near.append(new["x"])
        elif new["lane"] == 1:
            assert new["x"] <= 246
            truck.append(new["x"])
        else:
            assert new["lane"] != 2
    assert max(near) > 258 and max(truck) > 245 and {len(near) > 100, len(truck) > 20} == {True}
    # All 8 tries fail: lanes 3 and 4 missed and no luck in 0 and 1; short cars and trucks differ.
    short = 3 / 5 - 16 / 40 / 5 - 2 / 40 / 5
    long = 3 / 5
    assert failed / 3000 == pytest.approx(2 / 3 * short**8 + 1 / 3 * long**8, abs=0.006)


@pytest.mark.parametrize("t, limit", [(0, 1), (166, 1), (167, 2), (332, 2), (333, 3), (498, 3), (499, 4)])
def test_more_cars_later(t, limit):
    for slots in range(4):
        env = at(*(car(100.0, lane) for lane in range(slots)), free(1), t=t)
        env.step([0, 0])
        assert env.cars[slots]["active"] is (slots < limit)
        assert env.cars[slots]["respawn"] == 0  # it runs down all the same


def test_only_slots_before_count():
    env = at(free(0), car(100.0, 1), free(0), free(0))
    env.step([0, 0])
    assert [c["active"] for c in env.cars] == [True, True, False, False]
    env = at(free(3), free(1), free(2), car(100.0, 1))
    env.step([0, 0])
    assert [c["active"] for c in env.cars] == [False, True, False, True]
    assert [c["respawn"] for c in env.cars] == [2, 0, 1, 0]


# ---- agent ----


@pytest.mark.parametrize(
    "before, action, after",
    [
        ((50, 100, 0, 0), (1, -1), (50.65, 99.35, 0.6175, -0.6175)),
        ((50, 100, 2, -1), (0, 0.5), (52, 99.325, 1.9, -0.64125)),
        ((50, 100, 0, 0), (4, 0), (50.65, 100, 0.6175, 0)),
        ((195, 187, 3, 4), (0, 0), (196, 188, 2.85, 3.8)),  # it stops, its velocity doesn't
        ((1, 19, -3, -4), (0, 0), (0, 18, -2.85, -3.8)),
    ],
)
def test_agent(before, action, after):
    env = at(**dict(zip(("x", "y", "vx", "vy"), map(float, before), strict=True)))
    obs, *_ = env.step(action)
    x, y, vx, vy = after
    assert (env.x, env.y, env.vx, env.vy) == pytest.approx(after, abs=1e-12)
    np.testing.assert_allclose(obs[:4], (x / 224, (y + 9) / 224, vx / 10, vy / 10), rtol=1e-6, atol=1e-9)


# ---- traffic ----


@pytest.mark.parametrize(
    "cars, moved",
    [
        ([car(100.0, 0)], [6]), ([car(100.0, 0, "truck")], [6]), ([car(100.0, 0, "yellow")], [7.2]),
        # a leader in a later slot, 28 ahead or farther, then a truck and its length
        ([car(150.0, 0, "yellow"), car(94.0, 0)], [6, 6]), ([car(150.1, 0, "yellow"), car(94.0, 0)], [7.2, 6]),
        ([car(200.0, 0, "yellow"), car(88.0, 0, "truck")], [6, 6]),
        ([car(200.1, 0, "yellow"), car(88.0, 0, "truck")], [7.2, 6]),
        ([car(150.0, 0, "yellow"), car(94.0, 1)], [7.2, 6]),  # another lane
        ([car(94.0, 0, "yellow"), car(150.0, 0)], [7.2, 6]),  # behind
        ([car(110.0, 0, "yellow"), car(94.0, 0)], [7.2, 6]),  # overlapping: no leader
        ([car(150.0, 0), car(94.0, 0)], [6, 6]),
        ([car(125.0, 0, "yellow"), car(94.0, 0)], [2, 6]),  # stops 1 behind 94 + 28
        ([car(122.0, 0, "yellow"), car(94.0, 0)], [-1, 6]),
        ([car(94.0, 0), car(125.0, 0, "yellow")], [6, 6]),  # the leader has moved already
        ([car(94.0, 0), car(123.0, 0, "yellow")], [6, 6]),
        ([car(150.0, 0, "yellow"), car(100.0, 0), car(60.0, 0)], [6, 6, 6]),  # the nearest leads
    ],
)  # fmt: skip
def test_speed(cars, moved):
    env = at(*cars)
    env.step([0, 0])
    for before, now, step in zip(cars, env.cars, moved, strict=False):
        assert now == before | {"x": pytest.approx(before["x"] - step, abs=1e-9)}


def test_the_agent_is_no_leader():
    env = at(car(60.0, 4, "yellow"))
    env.step([0, 0])
    assert env.cars[0]["x"] == pytest.approx(52.8)


def test_car_leaves():
    env, respawn = at(), set()
    put(env, car(-22.0, 0))
    env.step([0, 0])
    assert env.cars[0] == car(-28.0, 0)  # its end is at 0
    for _ in range(300):
        put(env, car(-22.1, 0), car(-50.0, 1, "truck"))
        env.step([0, 0])
        assert not env.cars[0]["active"] and env.cars[1]["active"]
        respawn.add(env.cars[0]["respawn"])
    assert respawn == set(range(4, 11))
    put(env, car(-25.0, 0, timer=2))
    env.step([0, 0])
    assert env.cars[0] == car(-31.0, 0, timer=2)  # not while it is in a collision


# ---- collisions ----


@pytest.mark.parametrize("lane", range(5))
def test_collision_is_about_whole_pixels(lane):
    other = (lane + 3) % 5
    for x, y, hit in (
        (100, TOPS[lane], True), (100, TOPS[lane] + 17.9, True), (100, TOPS[lane] + 18, False),
        (100, TOPS[lane] - 17, True), (100, TOPS[lane] - 17.1, False),
        (127.9, TOPS[lane], True), (128, TOPS[lane], False), (73, TOPS[lane], True), (72.9, TOPS[lane], False),
    ):  # fmt: skip
        if 18 <= y <= 188:
            env = at(car(150.0, other), car(106.0, lane), t=300, x=float(x), y=float(y))
            obs, reward, *_ = env.step([0, 0])
            assert (env.sticky, env.flash, env.cars[1]["timer"]) == ((1, 3, 5) if hit else (None, 0, 0))
            assert (reward < -0.9) is hit and obs[4] == float(hit)


def test_drag_lasts_five_steps():
    env = at(car(106.0, 2), x=90.0, y=103.0, vx=0.0, vy=1.0)
    env.step([0, 0])
    assert env.sticky == 0 and env.cars[0]["x"] == 100 and env.x == 90
    xs, rewards, speeds = [], [], []
    for _ in range(4):
        _, reward, *_ = env.step([0, 0])
        xs.append((env.cars[0]["x"], env.x))
        rewards.append(reward)
        speeds.append(env.vy)
    # the agent stays 27 before the car's front; the first pull brings it there
    assert xs == [(94, 67), (88, 61), (82, 55), (76, 49)]
    assert min(rewards) > -0.1 and env.cars[0]["timer"] == 1 and speeds[3] == pytest.approx(0.95**5)
    env.step([0, 0])
    assert env.sticky is None and not env.cars[0]["active"] and env.cars[0]["timer"] == 0
    assert (env.x, env.vx, env.vy) == (43, 0, 0) and 3 <= env.cars[0]["respawn"] <= 9


@pytest.mark.parametrize(
    "x, car_x, ends",
    [
        (50, 60, False), (50, 33, False), (50, 32.9, True),  # want: 33 - 6 - 27 = 0
        (6, 33, False), (5.9, 40, True), (10, 60, False),
    ],
)  # fmt: skip
def test_drag_ends_at_the_left_edge(x, car_x, ends):
    env = at(car(float(car_x), 2, timer=4), x=float(x), y=103.0, vx=0.0, vy=1.0, sticky=0)
    env.step([0, 0])
    if ends:
        assert env.sticky is None and not env.cars[0]["active"] and env.cars[0]["timer"] == 0
        assert (env.x, env.vx, env.vy) == (x, 0, 0)
    else:
        assert env.sticky == 0 and env.cars[0]["x"] == car_x - 6 and env.cars[0]["timer"] == 3
        assert env.x == min(x - 6, car_x - 33)


def test_drag_behind_a_leader():
    """The yellow car stops 1 behind its leader; where the agent goes is as if it had not."""
    env = at(car(100.0, 2, "yellow", timer=4), car(70.0, 2), x=90.0, y=103.0, sticky=0)
    env.step([0, 0])
    assert env.cars[0]["x"] == 99 and env.x == 100 - 6 - 27 and env.cars[1]["x"] == 64
    env = at(car(100.0, 2, "yellow", timer=4), x=90.0, y=103.0, sticky=0)
    env.step([0, 0])
    assert env.cars[0]["x"] == pytest.approx(92.8) and env.x == pytest.approx(100 - 7.2 - 27)


def test_the_car_that_drags_counts_and_moves_once():
    env = at(car(100.0, 2, timer=4), free(0), x=70.0, y=103.0, sticky=0)
    env.step([0, 0])
    assert env.cars[0]["x"] == 94 and not env.cars[1]["active"]


def test_one_collision_at_a_time():
    env = at(car(106.0, 2), car(104.0, 2), t=300, x=90.0, y=103.0)
    _, reward, *_ = env.step([0, 0])
    assert env.sticky == 0 and -1.1 < reward < -0.9 and env.cars[1] == car(98.0, 2)
    for k in range(4):
        _, reward, *_ = env.step([0, 0])
        assert reward > -0.1 and env.cars[1]["x"] == 92 - 6 * k
    _, reward, *_ = env.step([0, 0])  # the first is gone, now the second hits
    assert env.sticky == 1 and reward < -0.9


def test_flash_stays():
    """As in the original without pictures, and pictures don't change it."""
    env = at(car(106.0, 2), x=90.0, y=103.0)
    env.render_mode = "rgb_array"
    for _ in range(20):
        obs, *_ = env.step([0, 0])
        before = env.get_state()
        env.render()
        assert obs[4] == 1 and env.get_state() == before
    assert env.reset()[0][4] == 0


# ---- reward and observation ----


@pytest.mark.parametrize(
    "cars, reward",
    [
        ([], 0.02), ([car(118.0, 4)], 0.01 + 0.005),  # 112 - 28 = 84 ahead
        ([car(117.0, 4)], 0.01 - 0.02 * (1 - 83 / 84)), ([car(76.0, 4)], 0.01 - 0.01),
        ([car(76.0, 3)], 0.02), ([car(76.0, 4), car(60.0, 4)], 0.01 - 0.02 * (1 - 26 / 84)),
    ],
)  # fmt: skip
def test_reward(cars, reward):
    assert at(*cars).step([0, 0])[1] == pytest.approx(reward, abs=1e-12)


def test_reward_for_the_lane_and_against_force():
    env = at(y=150.0)  # 159 is 9.4 below the centre of lane 3
    assert env.step([0, 0])[1] == pytest.approx(0.01 * math.exp(-0.25) + 0.01, abs=1e-12)
    env = at(y=178.2)
    assert env.step([-0.4, 0])[1] == pytest.approx(0.02 - 0.0005 * 0.16, abs=1e-12)
    env = at(y=188.0, x=0.0)
    want = 0.01 * math.exp(-((9.8 / 18.8) ** 2)) + 0.01 - 0.001
    assert env.step([-7, 7])[1] == pytest.approx(want, abs=1e-12)  # clipped


def plain_step(s, action):
    """One step in place by the rules -> reward; no free slot becomes due. A vanished car's respawn stays open."""
    ax, ay = (max(-1, min(1, a)) for a in action)
    s["vx"], s["vy"] = s["vx"] + 0.65 * ax, s["vy"] + 0.65 * ay
    s["x"], s["y"] = max(0, min(196, s["x"] + s["vx"])), max(18, min(188, s["y"] + s["vy"]))
    s["vx"], s["vy"] = s["vx"] * 0.95, s["vy"] * 0.95
    cars = s["cars"]

    def leader(c):
        best = None
        for o in cars:
            if o is not c and o["active"] and o["lane"] == c["lane"] and o["x"] < c["x"]:
                gap = c["x"] - (o["x"] + o["len"])
                if gap >= 0 and (best is None or gap < best[0]):
                    best = gap, o
        return best

    def speed(c):
        if c["kind"] != "yellow":
            return 6
        best = leader(c)
        return 6 if best and best[0] <= max(c["len"], best[1]["len"]) else 7.2

    def forward(c):
        nx, best = c["x"] - speed(c), leader(c)
        return max(nx, best[1]["x"] + best[1]["len"] + 1) if c["kind"] == "yellow" and best else nx

    def vanish(c):
        c["active"], c["respawn"] = False, None

    if s["sticky"] is not None:
        c = cars[s["sticky"]]
        v = speed(c)
        if s["x"] - v < 0 or c["x"] - v - 27 < 0:
            gone = True
        else:
            want, c["x"] = c["x"] - v - 27, forward(c)
            c["timer"] -= 1
            s["x"] = min(s["x"] - v, want)
            gone = c["x"] + c["len"] < 0 or c["timer"] <= 0
        if gone:
            vanish(c)
            c["timer"], s["vx"], s["vy"], s["sticky"] = 0, 0, 0, None
    left, top, reward = int(s["x"]), int(s["y"]), 0
    for i, c in enumerate(cars):
        if not c["active"]:
            if c["respawn"] is not None:
                c["respawn"] -= 1
            continue
        if i == s["sticky"]:
            continue
        c["x"] = forward(c)
        cl, ct = int(c["x"]), TOPS[c["lane"]]
        meet = cl < left + 28 and left < cl + c["len"] and ct < top + 18 and top < ct + 18
        if s["sticky"] is None and meet:
            c["timer"], s["sticky"], s["flash"], reward = 5, i, 3, -1
        if c["timer"] == 0 and c["x"] + c["len"] < 0:
            vanish(c)
    middle = s["y"] + 9
    lane = min(range(5), key=lambda k: abs(CENTERS[k] - middle))

    def dx(k):
        return min((c["x"] - s["x"] - 28 for c in cars if c["active"] and c["lane"] == k and c["x"] >= s["x"] + 28),
                   default=None)  # fmt: skip

    def norm(k):
        return -1 if dx(k) is None or not 0 <= k <= 4 else max(0, min(1, dx(k) / 224))

    def clear(k):
        return float(0 <= k <= 4 and (dx(k) is None or dx(k) > 70))

    d = dx(lane)
    reward += 0.01 * math.exp(-(((middle - CENTERS[lane]) / 18.8) ** 2)) - 0.0005 * (ax * ax + ay * ay)
    reward += 0.01 if d is None else -0.02 * (1 - d / 84) if d < 84 else 0.005
    obs = [s["x"] / 224, middle / 224, s["vx"] / 10, s["vy"] / 10, s["flash"] / 3, norm(lane)]
    obs += [clear(lane - 1), clear(lane + 1), norm(lane - 1), norm(lane + 1)]
    obs += [max(-1, min(1, (middle - CENTERS[lane]) / 18.8)), lane / 4]
    for c in cars:
        seen = [c["x"] / 224, CENTERS[c["lane"]] / 224, float(c["kind"] == "truck")]
        obs += seen if c["active"] else [-1, -1, -1]
    return reward, obs


def test_steps_follow_the_rules():
    rng, env, seen = np.random.default_rng(0), at(), []
    for _ in range(600):
        x, y = rng.uniform(0, 120), rng.uniform(18, 188)
        cars, near = [], int(np.argmin(abs(np.array(CENTERS) - y - 9)))
        for _ in range(rng.integers(5)):
            lane = near if rng.random() < 0.5 else int(rng.integers(5))
            cars.append(car(rng.uniform(-60, 280), lane, str(rng.choice(["blue", "yellow", "yellow", "truck"]))))
        cars += [free(int(rng.integers(2, 9))) for _ in range(4 - len(cars))]
        rng.shuffle(cars)
        sticky = None
        busy = [i for i, c in enumerate(cars) if c["active"]]
        if busy and rng.random() < 0.4:
            sticky = int(rng.choice(busy))
            cars[sticky].update(timer=int(rng.integers(1, 6)), x=rng.uniform(x - 5, x + 30))
        put(env, *cars, x=x, y=y, vx=rng.uniform(-5, 5), vy=rng.uniform(-5, 5), sticky=sticky, flash=0)
        state, action = env.get_state(), rng.uniform(-1.3, 1.3, 2)
        obs, reward, *_ = env.step(action)
        want, want_obs = plain_step(state, action)
        assert reward == pytest.approx(want, abs=1e-9)
        np.testing.assert_allclose(obs, want_obs, rtol=1e-5, atol=1e-5)
        assert (env.sticky, env.flash) == (state["sticky"], state["flash"])
        for c, s in zip(env.cars, state["cars"], strict=True):
            if s["respawn"] is None:
                assert 3 <= c.pop("respawn") <= 10 and s.pop("respawn") is None
            assert c | {"x": 0} == s | {"x": 0} and c["x"] == pytest.approx(s["x"], abs=1e-9)
        seen.append((reward < -0.9, sticky is not None, env.sticky is not None))
    assert len(set(seen)) == 5  # hit, not hit, dragged on, dragged to the end, to the end and hit by the next


def test_normalised_gaps_at_their_limits():
    obs, *_ = at(car(300.0, 4), car(104.0, 3), car(105.0, 2), t=300).step([0, 0])
    assert obs[5] == 1 and obs[6] == 0 and obs[7] == 0  # 266 ahead; 70 ahead is not clear; no lane 5
    assert obs[8] == pytest.approx(70 / 224) and obs[9] == -1
    obs, *_ = at(car(104.1, 3)).step([0, 0])
    assert obs[6] == 1 and obs[5] == -1
    obs, *_ = at(car(33.9, 3)).step([0, 0])
    assert obs[6] == 1 and obs[8] == -1  # 27.9 is beside the agent, not ahead of it


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    while env.sticky is None:
        env.step([0, 0])
    state, rows = env.get_state(), []
    count = 500 - env.t
    for again in (env, env, other):  # the other was never reset
        again.set_state(state)
        rows.append([np.append((s := again.step([np.cos(t), np.sin(t / 7)]))[0], s[1]) for t in range(count)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    np.testing.assert_array_equal(other.reset()[0], env.reset()[0])
    assert count > 100 and state["sticky"] is not None


def test_score_is_a_tenth_of_the_return():
    env = at()
    for ret, want in ((-2.0, 0), (4.98, 0.5), (11.0, 1)):
        put(env, ret=ret)
        assert env.step([0, 0])[4] == {"score": pytest.approx(want), "success": 0.0}


def test_picture():
    env = envs.make(NAME)
    env.set_state(at(car(100.0, 0), car(60.0, 1, "yellow"), car(100.0, 2, "truck"), x=60.0, y=140.0).get_state())
    frame = env.render()
    for y, x, color in (
        (36, 114, (95, 135, 212)), (74, 74, (227, 188, 34)), (112, 150, (82, 140, 66)), (149, 74, (220, 60, 60)),
        (5, 5, (97, 133, 80)), (20, 150, (60, 60, 60)), (55, 4, (220, 220, 220)), (55, 18, (60, 60, 60)),
    ):  # fmt: skip
        assert (frame[y, x] == color).all()
    assert (abs(frame[149, 93] - (140.0, 60, 60)) < 2).all()  # the half-transparent tip in front of the agent
    frames = []
    put(env, car(106.0, 2), x=90.0, y=103.0, t=40)
    for _ in range(6):
        env.step([0, 0])
        frames.append(env.render()[5, 5, 0])
    assert [value > 97 for value in frames] == [True, True, True, False, False, False]


def test_player_drives_well():
    env, totals = envs.make(NAME), []
    for seed in range(2):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        totals.append(env.ret)
    assert min(totals) > 8 and np.mean(totals) > 8.6 and info["score"] == pytest.approx(env.ret / 10)


@pytest.mark.slow
def test_player_on_average():
    env, totals = envs.make(NAME), []
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(500):
            env.step(player(env))
        totals.append(env.ret)
    assert 8.8 < np.mean(totals) < 9.5 and min(totals) > 7  # a simpler player got 8.6 to 8.7 on the original


def test_doing_nothing():
    env, scores = envs.make(NAME), []
    for seed in range(50):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step([0, 0])[4]
        scores.append(info["score"])
    assert abs(np.mean(scores) - 0.29) < 0.1  # 0.29 on the original
