"""Point maze (MiniArcade): each rule from a position set by hand, and whole steps against scalar arithmetic.

Run: pytest tests/test_arcade_point_maze.py
     pytest tests/test_arcade_point_maze.py -m slow     (the player; ten seconds)
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.point_maze import player

TASKS = [f"pygame-point-maze-var{i}" for i in (1, 2, 3, 4)]
MAZES = {  # 1: wall; rows from the top
    "1": [1, 0, 1, 1, 0,  0, 0, 1, 0, 0,  1, 0, 0, 0, 1,  0, 0, 1, 0, 0,  0, 1, 1, 0, 1],
    "2": [0, 1, 1, 0, 0,  0, 0, 0, 0, 1,  0, 1, 1, 0, 0,  0, 0, 1, 1, 0,  1, 0, 0, 0, 0],
    "3": [0, 1, 1, 1, 0,  0, 0, 1, 0, 0,  0, 0, 1, 0, 0,  1, 0, 0, 0, 1,  1, 1, 1, 1, 1],
    "4": [1, 1, 0, 1, 1,  1, 0, 0, 0, 1,  0, 0, 0, 0, 0,  1, 0, 0, 0, 1,  1, 1, 0, 1, 1],
}  # fmt: skip
L = [20, 57, 94, 130, 167]
FORCES = [(0, -2), (2, 0), (0, 2), (-2, 0)]  # up, right, down, left
every_task = pytest.mark.parametrize("name", TASKS)
FAR = {"gx": 40.0, "gy": 75.0, "force_cell": [0, 4], "force_dir": 0, "vx": 0.0, "vy": 0.0, "t": 0}  # nothing near


def at(name=TASKS[0], **state):
    env = envs.make(name)
    env.reset(seed=0)
    env.set_state(FAR | state)
    return env


def walls(name):
    return [(L[i // 5], L[i % 5]) for i, cell in enumerate(MAZES[name[-1]]) if cell]  # top, left


def in_wall(name, x, y):
    x, y = int(x), int(y)
    return any(left - 6 <= x < left + 43 and top - 6 <= y < top + 43 for top, left in walls(name))


def pushed(x, y, cell, direction):
    inside = L[cell[1]] <= int(x) < L[cell[1]] + 37 and L[cell[0]] <= int(y) < L[cell[0]] + 37
    return FORCES[direction] if inside else (0, 0)


def scalar_step(name, s, action):
    """-> x, y, vx, vy"""
    fx, fy = pushed(s["x"], s["y"], s["force_cell"], s["force_dir"])
    vx, vy = (5 * min(1, max(-1, a)) + f for a, f in zip(action, (fx, fy), strict=True))
    x, y = s["x"], s["y"]
    new = min(197, max(27, x + vx))
    x = x if in_wall(name, new, y) else new
    new = min(197, max(27, y + vy))
    y = y if in_wall(name, x, new) else new
    return x, y, vx, vy


def observation(name, x, y, vx, vy, s):
    obs = [x / 224, y / 224, s["gx"] / 224, s["gy"] / 224, vx / 5, vy / 5]
    grid = list(MAZES[name[-1]])
    grid[5 * s["force_cell"][0] + s["force_cell"][1]] = -1
    obs += grid + [float(s["force_dir"] == d) for d in range(4)]
    dx, dy = (s["gx"] - x) / 184, (s["gy"] - y) / 184
    fx, fy = pushed(x, y, s["force_cell"], s["force_dir"])
    obs += [dx, dy, math.sqrt(dx * dx + dy * dy), math.hypot(s["gx"] - x, s["gy"] - y) <= 12, (fx, fy) != (0, 0)]
    row, column = (min(4, max(0, math.floor(5 * (v - 20) / 184))) for v in (y, x))
    return obs + [fx / 5, fy / 5, row / 4, column / 4]


@every_task
def test_steps_rewards_and_observations_follow_the_rules(name):
    rng, env, blocked, forced, solved = np.random.default_rng(0), at(name), 0, 0, 0
    free = [(i // 5, i % 5) for i, cell in enumerate(MAZES[name[-1]]) if not cell]
    while env.t == 0 or blocked < 100 or forced < 60 or solved < 20:
        x, y, gx, gy = rng.uniform(27, 197, 4).tolist()
        if in_wall(name, x, y):
            continue
        if rng.random() < 0.2:
            gx, gy = x + rng.uniform(-12, 12), y + rng.uniform(-12, 12)
        cell = list(free[rng.integers(len(free))])
        if rng.random() < 0.3:
            cell = [min(4, int((v - 20) // 37)) for v in (y, x)]
        s = {"x": x, "y": y, "gx": gx, "gy": gy, "force_cell": cell, "force_dir": int(rng.integers(4)), "t": 0}
        env.set_state(s)
        action = rng.uniform(-1.3, 1.3, 2)
        obs, reward, *_, info = env.step(action)
        new = scalar_step(name, s, action)
        np.testing.assert_allclose([env.x, env.y, env.vx, env.vy], new, rtol=0, atol=1e-9)
        np.testing.assert_allclose(obs, observation(name, *new, s), rtol=1e-6, atol=1e-6)
        distance = math.hypot(gx - new[0], gy - new[1])
        assert reward == pytest.approx(1 - min(1, distance / 184), abs=1e-9)
        assert info == {"score": float(distance <= 12), "success": float(distance <= 12)}
        blocked += new[0] == x or new[1] == y
        forced += pushed(x, y, cell, s["force_dir"]) != (0, 0)
        solved += distance <= 12


# ---- one rule at a time; var1: column 1 is free from row 0 to row 3, (0, 0), (2, 0), (1, 2) and (3, 2) are walls ----


@pytest.mark.parametrize(
    "start, action, end",
    [
        ((75, 75), (1, -0.5), (80, 72.5)),
        ((85, 75), (1, 0), (85, 75)),  # 90 >= 94 - 6: no sliding up to the wall
        ((83, 75), (1, 0), (83, 75)),  # 88 is the first blocked pixel
        ((82.9, 75), (1, 0), (87.9, 75)),
        ((85, 75), (1, 1), (85, 80)),  # the other axis goes on
        ((68, 110), (-1, 0), (63, 110)),  # (2, 0) ends at 57, 6 px more are blocked: 62 is the last one
        ((67.9, 110), (-1, 0), (67.9, 110)),
        ((30, 75), (-1, 0), (27, 75)),  # the arena
        ((110, 196), (0, 1), (110, 196)),
        ((40, 194), (0, 1), (40, 197)),
    ],
)
def test_moves_and_walls(start, action, end):
    start = tuple(map(float, start))
    env = at(x=start[0], y=start[1])
    obs = env.step(np.array(action))[0]
    np.testing.assert_allclose([env.x, env.y], end, rtol=0, atol=1e-9)
    np.testing.assert_allclose(obs[4:6], action, atol=1e-6)  # as commanded, even if blocked


def test_x_moves_first():
    # At a wall's corner both orders are possible: sideways first is free (y = 87 is above 88), then y is blocked.
    env = at(x=62.0, y=87.0)
    env.step([-1, 1])
    assert (env.x, env.y) == (57, 87)


@pytest.mark.parametrize("direction, way", enumerate([(0, -2), (2, 0), (0, 2), (-2, 0)]))
def test_force(direction, way):
    env = at(x=70.0, y=75.0, force_cell=[1, 1], force_dir=direction)
    obs = env.step([0, 0])[0]
    assert (env.x, env.y) == (70 + way[0], 75 + way[1])
    np.testing.assert_allclose(obs[[4, 5, 39, 40, 41]], [way[0] / 5, way[1] / 5, 1, way[0] / 5, way[1] / 5], atol=1e-7)
    assert obs[31:35].tolist() == [float(d == direction) for d in range(4)]
    assert obs[6 + 6] == -1


def test_force_is_felt_by_the_old_position_and_seen_at_the_new_one():
    env = at(x=94.5, y=110.0, force_cell=[2, 1], force_dir=2)  # the cell ends at 94
    obs = env.step([-1, 0])[0]
    assert (env.x, env.y) == (89.5, 110) and obs[39] == 1 and obs[5] == 0
    obs = env.step([1, 0])[0]
    assert (env.x, env.y) == (94.5, 112) and obs[39] == 0 and obs[5] == np.float32(0.4)


def test_success_is_of_this_step_only():
    env = at(x=70.0, y=75.0, gx=87.0, gy=75.0)
    seen = [env.step([a, 0])[4]["success"] for a in (0.99, 1, -0.9, -1)]
    assert seen == [0, 1, 1, 0]  # distances 12.05, 7.05, 11.55, 16.55


def test_success_radius():
    for x, want in ((75.0, 1.0), (74.99, 0.0)):
        env = at(x=x, y=75.0, gx=87.0, gy=75.0)
        obs, *_, info = env.step([0, 0])
        assert obs[38] == info["success"] == info["score"] == want


# ---- reset ----


@every_task
def test_reset(name):
    env, cells, directions, positions = envs.make(name, seed=0), [], [], []
    free = {(i // 5, i % 5) for i, cell in enumerate(MAZES[name[-1]]) if not cell}
    for _ in range(400):
        obs, info = env.reset()
        assert info == {"score": 0.0, "success": 0.0}
        assert not in_wall(name, env.x, env.y) and not in_wall(name, env.gx, env.gy)
        assert 36.8 <= math.hypot(env.gx - env.x, env.gy - env.y) <= 128.8
        assert all(28 <= v <= 196 for v in (env.x, env.y, env.gx, env.gy)) and env.vx == env.vy == 0
        np.testing.assert_allclose(obs, observation(name, env.x, env.y, 0, 0, env.get_state()), rtol=1e-6, atol=1e-6)
        cells.append(tuple(env.force_cell))
        directions.append(env.force_dir)
        positions.append(obs[:4])
    assert set(cells) == free and set(directions) == {0, 1, 2, 3}
    assert max(cells.count(cell) for cell in free) < 2 * 400 / len(free)
    assert all(70 < directions.count(d) < 130 for d in range(4))
    low, high = np.min(positions, axis=0) * 224, np.max(positions, axis=0) * 224
    for axis in (0, 1):  # as far as the free cells reach
        edge = min(L[cell[1 - axis]] for cell in free), max(L[cell[1 - axis]] + 37 for cell in free)
        for k in (axis, axis + 2):
            assert low[k] < max(28, edge[0] + 6) + 8 and high[k] > min(196, edge[1] - 6) - 8


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


def test_picture():
    env = at(x=75.0, y=110.0, gx=110.0, gy=110.0, force_cell=[1, 1], force_dir=1)
    frame = env.render().astype(int)
    assert (frame[110, 75] == (255, 180, 80)).all() and (frame[110, 110] == (80, 220, 120)).all()
    assert (frame[75, 112] == (180, 180, 190)).all() and (frame[20, 60] == (180, 180, 190)).all()
    assert (frame[5, 5] == (6, 8, 10)).all()
    assert frame[110, 125, 1] > frame[110, 145, 1] + 10  # the glow
    assert frame[60, 60, 2] > frame[110, 60, 2] + 10  # the force cell
    arrows = [column for t in range(8, 19) for column in bright_columns(env, t)]
    assert arrows and arrows == sorted(arrows) and arrows[-1] > arrows[0] + 8  # run to the right
    assert 57 + 6 <= min(arrows) and max(arrows) <= 94 - 6


def bright_columns(env, t):
    env.set_state({"t": t})
    columns = np.nonzero(env.render()[75, 57:94, 2] > 140)[0]
    return [] if not len(columns) else [57 + columns.mean()]


def test_trail_shows_where_it_was():
    env = at(x=75.0, y=80.0)
    plain = env.render().astype(int)
    env.trail = []
    for _ in range(10):
        env.step([0, 1])
    frame = env.render().astype(int)
    assert frame[110, 75, 0] > plain[110, 75, 0] + 20 and abs(frame[110, 60] - plain[110, 60]).max() < 2
    env.reset()
    assert env.trail == []


@every_task
def test_player_stays_at_the_goal(name):
    env = envs.make(name)
    for seed in range(3):
        env.reset(seed=seed)
        infos = [env.step(player(env))[4] for _ in range(200)]
        assert infos[-1] == {"score": 1.0, "success": 1.0}
        assert all(info["success"] for info in infos[80:])


@pytest.mark.slow
@pytest.mark.parametrize("name, mean", zip(TASKS, (195.5, 195.6, 193.3, 197.7), strict=True))
def test_player_return(name, mean):
    """Means of 20 episodes of such a player on the original."""
    env, totals = envs.make(name), []
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(200):
            info = env.step(player(env))[4]
        totals.append(env.ret)
        assert info["score"] == 1
    assert abs(np.mean(totals) - mean) < 3
