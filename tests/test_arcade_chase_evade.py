"""Chase and evade (MiniArcade): each rule from a position set by hand, and whole steps against scalar arithmetic.

Run: pytest tests/test_arcade_chase_evade.py
     pytest tests/test_arcade_chase_evade.py -m slow     (the player; half a minute)
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.chase_evade import player

NAME = "pygame-chase-evade"
C = np.array([112.0, 118.0])
POSTS = {"base_angles": np.array([0.0, 2 * math.pi / 3, 4 * math.pi / 3]), "spin": 1, "t": 0}  # the first: C + (40, 0)
CALM = POSTS | {"switching": False, "switch_count": 0, "agent_is_evader": False}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    put(env, **(CALM | state))
    return env


def put(env, **state):
    """Pairs are positions relative to the centre, or velocities."""
    for key, value in state.items():
        if isinstance(value, tuple):
            state[key] = np.array(value, float) + (0 if key.endswith("vel") else C)
    env.set_state(state)


def close(a, b, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# ---- reset ----


def test_reset():
    env, angles, phases, evader, spins = envs.make(NAME, seed=0), [], [], [], []
    for _ in range(300):
        obs, info = env.reset()
        assert info == {"score": 0.5, "success": 0.0} and env.switching is False and env.switch_count == 0
        out = env.agent - C
        assert math.hypot(*out) == pytest.approx(75)
        close(env.opp, C)
        close(obs[[2, 3, 6, 7]], 0)
        assert obs[8] == env.agent_is_evader
        around = np.unwrap([math.atan2(y - 118, x - 112) for x, y in obs[9:].reshape(3, 2).astype(float) * 224])
        close(np.hypot(*(obs[9:].reshape(3, 2).astype(float) * 224 - C).T), 40, 1e-4)
        close(np.diff(around) % (2 * math.pi), 2 * math.pi / 3, 1e-5)
        angles.append(math.atan2(out[1], out[0]))
        phases.append(around[0])
        evader.append(env.agent_is_evader)
        spins.append(env.spin)
    assert 110 < sum(evader) < 190 and 110 < spins.count(1) < 190 and set(spins) == {-1, 1}
    for values in (angles, phases):
        assert abs(np.exp(1j * np.array(values)).mean()) < 0.15  # all around
    assert abs(np.corrcoef(evader, spins)[0, 1]) < 0.2


# ---- agent ----


@pytest.mark.parametrize("evader, speed", [(False, 3.5), (True, 3.325)])
def test_agent_moves_per_component(evader, speed):
    for action in ((1, 0), (0, -1), (1, 1), (0.5, -0.3), (4, -4)):
        env = at(agent=(0.0, 10.0), opp=(0.0, -60.0), agent_is_evader=evader)
        obs = env.step(np.array(action))[0]
        velocity = speed * np.clip(action, -1, 1)
        close(env.agent, C + (0, 10) + velocity)
        close(obs[2:4], velocity / 3.5)


def test_agent_stays_within_78_of_the_centre():
    env = at(agent=(0.0, 77.0), opp=(0.0, -60.0))
    obs = env.step([0, 1])[0]
    close(env.agent, C + (0, 78))
    assert obs[3] == pytest.approx(1)  # the velocity is the commanded one
    env = at(agent=(0.0, 70.0), opp=(0.0, -60.0))
    env.step([0, 1])
    close(env.agent, C + (0, 73.5))


def test_agent_is_pushed_out_of_a_post_and_its_velocity_mirrored():
    env = at(agent=(19.0, 0.0), opp=(-60.0, 0.0))  # the post at (40, 0): contact below 20
    obs = env.step([1, 0.5])[0]
    # At (22.5, 1.75): 17.5 and 1.75 away from the post.
    d = math.hypot(17.5, 1.75)
    n = np.array([17.5, -1.75]) / d
    close(env.agent, C + (22.5, 1.75) - n * (20 - d + 0.5))
    v = np.array([3.5, 1.75])
    close(obs[2:4] * 3.5, v - 2 * (v @ n) * n)


def test_velocity_away_from_a_post_stays():
    env = at(agent=(25.0, 0.0), opp=(-60.0, 0.0))
    obs = env.step([-1, 0])[0]
    close(env.agent, C + (40 - 20.5, 0))
    close(obs[2:4], (-1, 0))


def test_posts_turn():
    for spin in (1, -1):
        env = at(agent=(0.0, 70.0), opp=(0.0, 0.0), spin=spin)
        for t in range(4):  # unchanged in the first step
            posts = env.step([0, 0])[0][9:].reshape(3, 2) * 224
            angles = np.array([0, 2, 4]) * math.pi / 3 + spin * 0.01 * t
            close(posts, C + 40 * np.stack([np.cos(angles), np.sin(angles)], axis=-1), 1e-4)


# ---- opponent ----


def test_pursuing_opponent_goes_straight_for_the_agent():
    env = at(agent=(0.0, 70.0), opp=(0.0, -70.0), agent_is_evader=True)
    before = env.np_random.bit_generator.state
    obs = env.step([1, 0])[0]
    way = np.array([3.325, 140])
    close(obs[6:8], way / math.hypot(*way), 1e-6)  # towards the agent's new position
    close(env.opp, C + (0, -70) + 3.5 * way / math.hypot(*way))
    env.np_random.bit_generator.state = before
    put(env, **CALM | {"agent": (0.0, 70.0), "opp": (0.0, -70.0), "agent_is_evader": True})
    env.np_random.random()  # another stream, the same pursuit
    np.testing.assert_array_equal(env.step([1, 0])[0], obs)


def test_pursuing_opponent_is_pushed_off_near_posts():
    env = at(agent=(-70.0, 0.0), opp=(70.0, 1.0), agent_is_evader=True)
    obs = env.step([0, 0])[0]
    way, off = np.array([-140, -1]), np.array([30, 1])
    heading = way / math.hypot(*way) + off / math.hypot(*off) * (36 - math.hypot(*off)) / 36
    close(obs[6:8], heading / math.hypot(*heading))
    env = at(agent=(-70.0, 0.0), opp=(76.5, 0.0), agent_is_evader=True)  # 36.5 from the post: straight
    close(env.step([0, 0])[0][6:8], (-1, 0))


def fleeing_headings(env, agent, opp, n=100):
    seen = []
    for _ in range(n):
        put(env, **CALM | {"agent": agent, "opp": opp})
        obs = env.step([0, 0])[0]
        seen.append(np.round(obs[6:8].astype(float) * 3.5 / 3.325, 5))
    return np.unique(seen, axis=0)


def test_evading_opponent_runs_away():
    (heading,) = fleeing_headings(at(), (0.0, 10.0), (0.0, -40.0))  # no post between, not at the rim: straight
    close(heading, (0, -1), 1e-4)
    env = at(agent=(0.0, 10.0), opp=(0.0, -40.0))
    env.step([0, 0])
    close(env.opp, C + (0, -43.325))


def test_evading_opponent_turns_in_at_the_rim():
    """Beyond 72: minus half the outward direction."""
    (heading,) = fleeing_headings(at(), (8.0, -38.0), (-6.0, -73.0))
    way, out = np.array([-14, -35]), np.array([-6, -73])
    want = way / math.hypot(*way) - 0.5 * out / math.hypot(*out)
    close(heading, want / math.hypot(*want), 1e-4)


def test_evading_opponent_hides_behind_posts():
    """(agent - o) . (opp - o) < 0: plus 0.02 (o - opp), not normalised."""
    (heading,) = fleeing_headings(at(), (20.0, 50.0), (60.0, -20.0))
    want = np.array([40, -70]) / math.hypot(40, -70)
    used = 0
    for angle in POSTS["base_angles"]:
        post = 40 * np.array([math.cos(angle), math.sin(angle)])
        if ((20, 50) - post) @ ((60, -20) - post) < 0:
            want = want + 0.02 * (post - (60, -20))
            used += 1
    assert used == 1
    close(heading, want / math.hypot(*want), 1e-4)


def test_evading_opponent_zigzags_when_close():
    """Below 36: 0.2 q per axis with independent signs, q the unit vector at right angles to the escape."""
    agent, opp = (0.0, 20.0), (12.0, -5.0)
    delta = np.subtract(opp, agent)
    q = np.array([-delta[1], delta[0]]) / math.hypot(*delta)
    want = []
    for sx in (-1, 1):
        for sy in (-1, 1):
            h = delta / math.hypot(*delta) + 0.2 * q * (sx, sy)
            for angle in POSTS["base_angles"]:
                post = 40 * np.array([math.cos(angle), math.sin(angle)])
                if (agent - post) @ (opp - post) < 0:
                    h = h + 0.02 * (post - opp)
            want.append(h / math.hypot(*h))
    close(fleeing_headings(at(), agent, opp), sorted(map(tuple, want)), 1e-4)
    assert len(fleeing_headings(at(), (0.0, 30.0), (0.0, -6.5))) == 1  # 36.5 apart


# ---- catch, change of roles ----


@pytest.mark.parametrize("evader", [True, False])
def test_catch_swaps_roles_and_the_new_ones_are_paid(evader):
    env = at(agent=(0.0, 70.0), opp=(0.0, 56.0), agent_is_evader=evader)
    _, reward, *_ = env.step([0, -1 if not evader else 0])
    distance = math.hypot(*(env.agent - env.opp))
    assert distance < 16 and env.agent_is_evader is not evader and env.switching is True and env.switch_count == 0
    assert reward == pytest.approx(0.1 * distance / 90 * (-1 if evader else 1))


def test_no_catch_at_16():
    ray = np.array([0.5, math.sqrt(0.75)])  # between two posts, far from both
    for start, caught in ((50.49, False), (50.51, True)):  # 70 - 50.5 - 3.5 = 16
        env = at(agent=tuple(70 * ray), opp=tuple(start * ray), agent_is_evader=True)
        env.step([0, 0])
        assert env.agent_is_evader is not caught and env.switching is caught


@pytest.mark.parametrize("evader", [True, False])
def test_change_of_roles(evader):
    """Pursuer to the centre, evader outwards up to 67, actions ignored, velocities stale, reward paid."""
    env = at(agent=(0.0, 30.0), opp=(30.0, 0.0), agent_is_evader=evader, switching=True)
    put(env, agent_vel=(1.0, 2.0), opp_vel=(3.0, -1.0))
    name = {True: ("agent", "opp"), False: ("opp", "agent")}[evader]
    for k in range(1, 10):
        obs, reward, *_ = env.step([1, -1])
        out, inwards = (math.hypot(*(getattr(env, who) - C)) for who in name)
        assert out == pytest.approx(30 + 3.325 * k)
        # 30 - 8 * 3.5 = 2 after 8 steps, then it walks over the centre: 1.5 on the other side.
        assert inwards == pytest.approx(abs(30 - 3.5 * k))
        assert env.switch_count == k and env.switching is (k < 9)
        close(obs[[2, 3, 6, 7]] * 3.5, (1, 2, 3, -1))
        assert reward == pytest.approx(math.hypot(*(env.agent - env.opp)) * 0.1 / 90 * (1 if evader else -1))
    env.step([0, 0])
    close(env.agent_vel, 0)  # a usual step again


def test_change_of_roles_takes_at_least_five_steps():
    env = at(agent=(60.0, 0.0), opp=(1.0, 0.0), agent_is_evader=True, switching=True)
    for k in range(1, 6):
        env.step([0, 0])
        close(env.opp, C + (1, 0))  # closer than 1.5: stays
        close(env.agent, C + (min(67, 60 + 3.325 * k), 0), 1e-5)
        assert env.switching is (k < 5)


def test_pursuer_walks_over_the_centre_from_beyond_1_5():
    for start, end in ((1.49, 1.49), (1.51, -1.99), (1.6, -1.9)):
        env = at(agent=(60.0, 0.0), opp=(start, 0.0), agent_is_evader=True, switching=True)
        env.step([0, 0])
        close(env.opp, C + (end, 0))


def test_change_of_roles_ends_within_2_of_the_centre():
    for start, ends in ((1.49, True), (1.51, True), (5.49, True), (5.51, False)):
        env = at(agent=(60.0, 0.0), opp=(start, 0.0), agent_is_evader=True, switching=True, switch_count=4)
        env.step([0, 0])
        assert env.switching is not ends


def test_evader_at_the_centre_stays_there():
    env = at(agent=(0.0, 0.0), opp=(50.0, 0.0), agent_is_evader=True, switching=True)
    env.step([1, 0])
    close(env.agent, C)


def test_posts_turn_but_do_not_stop_anyone_during_the_change():
    env = at(agent=(45.0, 0.0), opp=(60.0, 1.0), agent_is_evader=True, switching=True, t=7)
    obs = env.step([0, 0])[0]
    close(env.agent, C + (48.325, 0))
    close(obs[9:11] * 224, C + 40 * np.array([math.cos(0.07), math.sin(0.07)]), 1e-4)


# ---- whole steps ----


def scalar_resolve(p, v, posts):
    (x, y), (vx, vy) = p, v
    for ox, oy in posts:
        d = math.sqrt((ox - x) ** 2 + (oy - y) ** 2)
        if d < 20:
            nx, ny = (ox - x) / (d + 1e-8), (oy - y) / (d + 1e-8)
            x, y = x - nx * (20.5 - d), y - ny * (20.5 - d)
            u = vx * nx + vy * ny
            if u > 0:
                vx, vy = vx - 2 * u * nx, vy - 2 * u * ny
    return (x, y), (vx, vy)


def scalar_move(p, v, posts):
    x, y = p[0] + v[0], p[1] + v[1]
    d = math.sqrt((x - 112) ** 2 + (y - 118) ** 2)
    if d > 78:
        x, y = 112 + (x - 112) * 78 / (d + 1e-8), 118 + (y - 118) * 78 / (d + 1e-8)
    return scalar_resolve((x, y), v, posts)


def scalar_heading(agent, opp, posts, pursuing, signs):
    dx, dy = opp[0] - agent[0], opp[1] - agent[1]
    d = math.sqrt(dx * dx + dy * dy)
    if pursuing:
        hx, hy = -dx / d, -dy / d
        for ox, oy in posts:
            e = math.sqrt((opp[0] - ox) ** 2 + (opp[1] - oy) ** 2)
            if e < 36:
                hx += (opp[0] - ox) / (e + 1e-8) * (36 - e) / 36
                hy += (opp[1] - oy) / (e + 1e-8) * (36 - e) / 36
    else:
        hx, hy = dx / d, dy / d
        r = math.sqrt((opp[0] - 112) ** 2 + (opp[1] - 118) ** 2)
        if r > 72:
            hx, hy = hx - 0.5 * (opp[0] - 112) / (r + 1e-8), hy - 0.5 * (opp[1] - 118) / (r + 1e-8)
        for ox, oy in posts:
            if (agent[0] - ox) * (opp[0] - ox) + (agent[1] - oy) * (opp[1] - oy) < 0:
                hx, hy = hx + 0.02 * (ox - opp[0]), hy + 0.02 * (oy - opp[1])
        if d < 36:
            hx, hy = hx - 0.2 * dy / (d + 1e-8) * signs[0], hy + 0.2 * dx / (d + 1e-8) * signs[1]
    norm = math.sqrt(hx * hx + hy * hy)
    return hx / norm, hy / norm


def test_steps_rewards_and_observations_follow_the_rules():
    rng, env, seen = np.random.default_rng(0), at(), []
    for k in range(400):
        angle, radius = rng.uniform(0, 2 * math.pi, 2), 78 * np.sqrt(rng.uniform(0, 1, 2))
        agent, opp = C + (radius * [np.cos(angle), np.sin(angle)]).T
        if k % 3 == 0:
            opp = agent + rng.uniform(-20, 20, 2)
        evader, spin, t = bool(k % 2), int(rng.choice([-1, 1])), int(rng.integers(499))
        base = rng.uniform(0, 7) + np.array([0, 2, 4]) * math.pi / 3
        put(env, agent=agent, opp=opp, agent_is_evader=evader, switching=False, base_angles=base, spin=spin, t=t)
        action = rng.uniform(-1.3, 1.3, 2)
        obs, reward, *_ = env.step(action)
        posts = [(112 + 40 * math.cos(a + spin * 0.01 * t), 118 + 40 * math.sin(a + spin * 0.01 * t)) for a in base]
        speed = 3.325 if evader else 3.5
        p, v = scalar_move(agent, [speed * min(1, max(-1, a)) for a in action], posts)
        close(env.agent, p, 1e-9)
        close(env.agent_vel, v, 1e-9)
        matches = []
        for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
            h = scalar_heading(p, opp, posts, evader, signs)
            q, w = scalar_move(opp, [(3.5 if evader else 3.325) * part for part in h], posts)
            matches.append(np.allclose([*env.opp, *env.opp_vel], [*q, *w], rtol=0, atol=1e-9))
        assert any(matches)
        q, w = env.opp, env.opp_vel
        d = math.hypot(p[0] - q[0], p[1] - q[1])
        caught = d < 16
        assert env.switching is caught and env.agent_is_evader is (evader != caught)
        assert reward == pytest.approx(0.1 * d / 90 * (1 if env.agent_is_evader else -1), abs=1e-9)
        want = [*np.divide(p, 224), *np.divide(v, 3.5), *np.divide(q, 224), *np.divide(w, 3.5), env.agent_is_evader]
        np.testing.assert_allclose(obs, [*want, *np.ravel(posts) / 224], rtol=1e-5, atol=1e-6)
        seen.append((caught, evader))
    assert len(set(seen)) == 4


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    other.reset()
    actions = np.random.default_rng(0).uniform(-1, 1, (300, 2))
    for action in actions[:100]:
        env.step(action)
    env.set_state({"agent_is_evader": True})
    state, rows = env.get_state(), []
    for again in (env, env, other):
        again.set_state(state)
        rows.append([np.append((s := again.step(a))[0], s[1]) for a in actions] + [again.reset()[0]])
    for row in rows[1:]:
        for a, b in zip(row, rows[0], strict=True):
            np.testing.assert_array_equal(a, b)
    assert len({step[8] for step in rows[0][:-1]}) == 2  # the roles changed on the way


def test_score_is_half_at_zero():
    env = at(agent=(0.0, 70.0), opp=(0.0, -70.0), ret=20.0)
    _, reward, _, _, info = env.step([0, 0])
    assert info == {"score": pytest.approx((70 + reward) / 100), "success": 0.0}
    for ret, want in ((-60.0, 0), (60.0, 1)):
        put(env, ret=ret)
        assert env.step([0, 0])[4]["score"] == want


def test_picture():
    env = at(agent=(0.0, 60.0), opp=(0.0, -60.0))
    frame = env.render()
    assert (frame[118, 152] == 130).all() and (frame[118, 80] == (40, 40, 45)).all()  # a post, the floor
    assert (frame[178, 110] == (255, 140, 0)).all() and (frame[58, 110] == (70, 160, 70)).all()  # belts
    assert (frame[110, 116] == (70, 160, 70)).all()  # the flag of the evader
    put(env, agent_is_evader=True)
    assert (env.render()[110, 116] == (255, 140, 0)).all()
    assert (env.render()[200, 5] != frame[200, 5]).any()  # the sky, too


def test_flash_fades_after_a_catch():
    env = at(agent=(0.0, 70.0), opp=(0.0, 56.0), agent_is_evader=True)
    env.step([0, 0])
    frames = []
    for _ in range(13):
        env.set_state({"switching": True, "switch_count": 4})
        frames.append(env.render()[:, 30:90].copy())
        env.step([0, 0])
    orange = [(frame == (255, 140, 0)).all(axis=-1).sum() for frame in frames]
    assert max(orange) == orange[5] > 20 and orange[12] == 0


@pytest.mark.slow
def test_player():
    env, totals = envs.make(NAME), []
    for seed in range(6):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        totals.append(env.ret)
    assert info["success"] == 0 and 49 < np.mean(totals) < 62  # such a player got 55.7 +- 3 on the original


def test_simple_player():
    """Straight at the opponent, faster on diagonals, or along the rim away from it: -1.5 +- 5 on the original."""
    env, totals = envs.make(NAME), []
    for seed in range(20):
        env.reset(seed=seed)
        for _ in range(500):
            way = env.opp - env.agent
            action = way / max(1e-9, abs(way).max())
            if env.agent_is_evader:
                rim = np.array([C[1] - env.agent[1], env.agent[0] - C[0]])
                action = (rim if rim @ way < 0 else -rim) / max(1e-9, math.hypot(*rim))
            env.step(action)
        totals.append(env.ret)
    assert -9 < np.mean(totals) < 4
