"""Cowboy (MiniArcade): jumps, landings and contacts from positions set by hand, whole steps against a plain version.

Run: pytest tests/test_arcade_cowboy.py
"""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.cowboy import player

NAME = "pygame-cowboy"
SIZES = [(15, 25), (20, 40), (40, 40)]


def box(left, width, height):
    return {"left": left, "top": 184 - height, "width": width, "height": height}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    env.set_state({"obstacle": box(200, 20, 40)} | state)
    return env


# ---- reset and obstacles ----


def test_reset_and_obstacles():
    env, seen = envs.make(NAME, seed=0), []
    for _ in range(4000):
        obs, info = env.reset()
        assert (env.y, env.vy, env.stuck) == (154, 0, False)
        assert env.obstacle["left"] == 264 and env.obstacle["top"] + env.obstacle["height"] == 184
        seen.append((env.obstacle["width"], env.obstacle["height"], env.small_first))
    assert info == {"score": 0.0, "success": 0.0}
    np.testing.assert_allclose(obs, (0, 0, 264 / 224), rtol=1e-6)
    for size, small_first in ((SIZES[0], False), (SIZES[1], False), (SIZES[2], True), (SIZES[2], False)):
        assert abs(seen.count((*size, small_first)) - 1000) < 110


@pytest.mark.parametrize("width, height", SIZES)
def test_next_obstacle_when_the_whole_of_it_is_past_the_edge(width, height):
    env = at(obstacle=box(10 - width, width, height))
    env.step([0])
    assert env.obstacle == box(-width, width, height)  # its right edge is at 0
    obs, reward, *_ = env.step([0])
    assert env.obstacle["left"] == 264 and reward == 1 and obs[2] == pytest.approx(264 / 224)  # not moved yet


# ---- running and jumping ----


def test_full_jump_and_its_late_landing():
    env, heights, speeds = at(obstacle=box(2000, 20, 40)), [], []
    for t in range(25):
        obs, reward, *_ = env.step([1.0 if t == 0 else 0.0])
        heights.append(154 - env.y)
        speeds.append(env.vy)
        assert reward == 1 and env.obstacle["left"] == 2000 - 10 * (t + 1)
        want = (env.y - 154) / 224, env.vy / 10, env.obstacle["left"] / 224
        np.testing.assert_allclose(obs, want, rtol=1e-6, atol=1e-7)
    assert heights[:13] == [11, 21, 30, 38, 45, 51, 56, 60, 63, 65, 66, 66, 65] and heights[22:] == [0, 0, 0]
    assert speeds[21:] == [10, 11, 0, 0]
    assert min(heights[4:18]) >= 40  # what the player relies on


@pytest.mark.parametrize(
    "y, action, y_after, vy_after",
    [(154, 1, 143, -11), (154, 0.5, 149, -5), (154, 1 / 12, 154, 0), (154, -1, 154, 0), (154, 9, 143, -11),
     (153.9995, 0.5, 148.9995, -5), (153.9, 1, 154, 0), (120, 1, 121, 1)],
)  # fmt: skip
def test_first_step_of_a_jump(y, action, y_after, vy_after):
    env = at(y=float(y), vy=0.0)
    env.step([action])
    assert (env.y, env.vy) == pytest.approx((y_after, vy_after), abs=1e-9)


# ---- contact ----


@pytest.mark.parametrize(
    "left, width, height, y, stuck",
    [
        (58, 20, 40, 154, False), (57, 20, 40, 154, True), (20, 20, 40, 154, False), (21, 20, 40, 154, True),
        (45, 20, 40, 112, False), (45, 20, 40, 115.9, True), (45, 20, 40, 114.9, False),  # 114.9 counts as 114
        (45, 15, 25, 129, False), (45, 15, 25, 130, True),
    ],
)  # fmt: skip
def test_contact_holds_the_world(left, width, height, y, stuck):
    env = at(y=float(y), vy=-1.0 if y < 154 else 0.0, obstacle=box(left, width, height))
    obs, reward, _, _, info = env.step([0])
    assert env.y == y and env.stuck is stuck and reward == (-1 if stuck else 1)
    assert env.obstacle == box(left - 10 * (not stuck), width, height)
    assert obs[2] == pytest.approx(env.obstacle["left"] / 224)
    assert info == {"score": 0.0 if stuck else 1 / 500, "success": 0.0}


def test_without_a_jump_he_stays_at_the_first_cactus():
    env, rewards = envs.make(NAME), []
    for seed in range(8):
        env.reset(seed=seed)
        rewards.append([env.step([0])[1] for _ in range(500)])
    assert rewards == [[1] * 21 + [-1] * 479] * 8  # 264 - 210 = 54 is the first overlap with 40 .. 58


def test_a_full_jump_frees_him():
    for width, height in SIZES:
        env, stuck = at(obstacle=box(54, width, height)), []
        for t in range(6):
            env.step([1.0 if t == 0 else 0.0])
            stuck.append(env.stuck)
        rises = [11, 21, 30, 38, 45, 51]
        assert stuck == [rise < height for rise in rises]


# ---- landing on top ----


@pytest.mark.parametrize(
    "left, width, height, y, vy, landed",
    [
        (48, 20, 40, 113, 2, True),  # shares 10 of 18
        (49, 20, 40, 113, 2, False),  # 9 of 18 is not more than half
        (48, 20, 40, 150, 1, True),  # from any depth
        (30, 20, 40, 113, 2, True), (29, 20, 40, 113, 2, False),
        (42, 15, 25, 128, 3, True),  # 15 of 18
        (48, 20, 40, 120, -5, False),  # on his way up
        (48, 20, 40, 120, -1, False),  # vy is 0 after gravity
        (48, 20, 40, 108, 2, False),  # above it
    ],
)  # fmt: skip
def test_landing(left, width, height, y, vy, landed):
    env = at(y=float(y), vy=float(vy), obstacle=box(left, width, height))
    _, reward, *_ = env.step([0])
    if landed:
        assert (env.y, env.vy, reward) == (184 - height - 30, 0, 1) and env.obstacle["left"] == left - 10
    else:
        assert (env.y, env.vy) == (y + vy + 1, vy + 1)
        assert reward == (-1 if env.y + 30 > 184 - height else 1)


def test_riding_on_top_and_no_jump_from_there():
    env, rewards, ys = at(y=114.0, vy=0.0, obstacle=box(48, 40, 40)), [], []
    for _ in range(7):
        rewards.append(env.step([1])[1])
        ys.append(env.y)
    # From left = 8 on no more than half of him stands on it. He sinks in, and is held until he can jump free.
    assert ys == [114, 114, 114, 114, 115, 117, 120] and rewards == [1] * 4 + [-1] * 3
    assert env.obstacle["left"] == 8 and env.stuck


# ---- whole steps ----


def test_steps_follow_the_rules():
    rng, env, seen = np.random.default_rng(0), at(), []
    for k in range(400):
        y, vy = (154.0, 0.0) if k % 4 == 0 else (rng.uniform(88, 154), rng.uniform(-11, 11))
        width, height = SIZES[rng.integers(3)]
        left, action = int(rng.integers(-20, 75)), rng.uniform(-0.5, 1.2)
        env.set_state({"y": y, "vy": vy, "obstacle": box(left, width, height), "t": 0, "stuck": bool(rng.integers(2))})
        obs, reward, *_ = env.step([action])
        if action > 0 and y == 154:
            vy = -12 * min(1, action)
        vy, y = vy + 1, y + vy + 1
        if y > 154:
            y, vy = 154, 0
        shared = min(58, left + width) - max(40, left)
        landed = shared > 9 and vy > 0 and int(y) + 30 > 184 - height
        if landed:
            y, vy = 154 - height, 0
        stuck = shared > 0 and int(y) + 30 > 184 - height
        if not stuck:
            left = left - 10 if left - 10 + width >= 0 else 264
        assert env.stuck is stuck and reward == (-1 if stuck else 1)
        np.testing.assert_allclose(obs, ((y - 154) / 224, vy / 10, left / 224), rtol=1e-5, atol=1e-6)
        seen.append((stuck, landed, left == 264))
    assert len(set(seen)) == 4


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
    lefts = np.array(rows[0])[:, 2]
    assert (np.diff(lefts) > 0.5).sum() >= 3  # new obstacles: chance went on from the same place


def test_score_is_clipped():
    env = at()
    for ret, want in ((-20.0, 0), (249.0, 0.5), (600.0, 1)):
        env.set_state({"ret": ret})
        assert env.step([0])[4]["score"] == want


def test_picture():
    env = envs.make(NAME)
    env.set_state(at(obstacle=box(100, 40, 40), small_first=True).get_state())
    green = (108, 138, 72)
    frame = env.render()
    assert (frame[170, 105] == green).all() and (frame[150, 130] == green).all() and (frame[150, 105] != green).any()
    assert (frame[159, 49] == (222, 184, 135)).all() and (frame[170, 49] == (139, 69, 19)).all()  # face, coat
    assert (frame[155, 45] == 0).all()  # hat
    env.set_state({"small_first": False, "stuck": True})
    red = env.render()
    assert red[150, 105, 1] > red[150, 105, 2] and (abs(red.astype(int) - frame) > 2).any(axis=-1).mean() > 0.9
    env.set_state({"stuck": False, "obstacle": box(100, 15, 25)})
    frame = env.render()
    assert (frame[170, 105] == green).all() and (frame[150, 130] != green).any()


def test_player():
    env = envs.make(NAME)
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        assert env.ret == 500 and info == {"score": 1.0, "success": 0.0}
