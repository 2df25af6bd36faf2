"""Air hockey (MiniArcade): each rule from a position set by hand, and whole steps against scalar arithmetic.

Run: pytest tests/test_arcade_air_hockey.py
     pytest tests/test_arcade_air_hockey.py -m slow     (the player; half a minute)
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.air_hockey import player

NAME = "pygame-air-hockey"
# The opponent stands at home with nothing to do: it does not move, and no chance is involved.
CALM = {"opp": (112.0, 52.0), "opp_vel": (0.0, 0.0), "opp_delay": 0, "opp_engaged": False, "agent_vel": (0.0, 0.0)}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    put(env, **state)
    return env


def put(env, **state):
    env.set_state({key: np.array(v, float) if isinstance(v, tuple) else v for key, v in state.items()})


def close(a, b, atol=1e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def agent_step(action=(0.0, 0.0), **state):
    """One step from a calm position. The agent is in the corner unless `state` says otherwise."""
    env = at(**({"agent": (60.0, 190.0)} | CALM | state))
    obs, reward, *_ = env.step(np.array(action))
    return env, obs, reward


# ---- reset and launch ----


def check_launch(velocities, direction, damped):
    """6 cos(phi) sideways, 6 |0.7 sin(phi) + 0.3| forwards, phi within 0.35 pi."""
    velocities = np.array(velocities) / (0.998 if damped else 1)
    seen = set()
    for vx, vy in velocities:
        assert 6 * math.cos(0.35 * math.pi) - 1e-9 <= abs(vx) <= 6
        sine = math.sqrt(1 - (vx / 6) ** 2)
        either = [6 * abs(0.7 * s + 0.3) for s in (sine, -sine)]
        match = [abs(abs(vy) - e) < 1e-9 for e in either]
        assert any(match) and vy * direction > 0
        seen.add((vx > 0, match[0]))
    assert len(seen) == 4  # both sides, both signs of phi


def test_reset():
    env, up, down = envs.make(NAME, seed=0), [], []
    for _ in range(300):
        obs, info = env.reset()
        assert info == {"score": 0.0, "success": 0.0}
        close(obs[[0, 1, 4, 5, 8, 9]], np.divide([112, 112, 112, 170, 112, 54], 224))
        close(obs[[6, 7, 10, 11]], 0)
        assert env.opp_delay == env.agent_goals == env.opp_goals == 0 and env.opp_engaged is False
        (up if env.puck_vel[1] < 0 else down).append(env.puck_vel)
    assert 110 < len(up) < 190
    check_launch(up, -1, damped=False)
    check_launch(down, 1, damped=False)


# ---- agent ----


@pytest.mark.parametrize(
    "start, action, end",
    [
        ((112, 150), (1, 0), (119.5, 150)), ((112, 150), (0.4, -0.2), (115, 148.5)), ((112, 150), (0, 9), (112, 157.5)),
        ((44, 150), (-1, 0), (43, 150)), ((180, 150), (1, 0), (181, 150)), ((112, 123), (0, -1), (112, 122)),
        ((112, 189), (0, 1), (112, 190)),
    ],
)  # fmt: skip
def test_agent_moves_and_is_clamped_but_its_velocity_is_not(start, action, end):
    env, obs, _ = agent_step(action, agent=tuple(map(float, start)), puck=(150.0, 100.0), puck_vel=(0.0, 0.0))
    close(env.agent, end)
    close(env.agent_vel, 7.5 * np.clip(action, -1, 1))
    close(obs[6:8], np.clip(action, -1, 1))


# ---- opponent ----


def opponent(env, n=400, **state):
    """n times one step from `state` -> mean and spread of the velocity, delays after the step."""
    velocities, delays = [], []
    for _ in range(n):
        put(env, t=0, agent=(60.0, 190.0), **state)
        before = np.array(env.opp)
        env.step([0, 0])
        velocities.append(env.opp_vel)
        delays.append(env.opp_delay)
        close(env.opp, np.clip(before + env.opp_vel, (43, 34), (181, 102)), 1e-12)
    return np.mean(velocities, axis=0), np.std(velocities, axis=0), delays


@pytest.mark.parametrize(
    "opp, puck, puck_vel, delay, target",
    [
        ((112, 54), (150, 150), (0, -1), 0, (112, 52)),  # puck too low
        ((112, 54), (150, 119), (0, 1), 0, (112, 52)),  # on its way down
        ((90, 80), (150, 60), (0, 3), 0, (112, 52)),
        ((90, 80), (150, 60), (0, -3), 2, (112, 52)),  # not yet
        ((90, 40), (150, 60), (0, -3), 0, (150, 72)),  # below the puck
        ((90, 40), (112, 119), (0, -3), 0, (112, 83)),  # not beyond its line
        ((90, 40), (40, 60), (0, -3), 0, (43, 72)),
        ((90, 40), (185, 60), (0, -3), 0, (181, 72)),
        ((148, 70), (150, 60), (0, -3), 0, (150, 72)),  # closer than a step
    ],
)
def test_opponent_target_speed_and_jitter(opp, puck, puck_vel, delay, target):
    opp, puck, puck_vel = (tuple(map(float, v)) for v in (opp, puck, puck_vel))
    env = at()
    state = {"opp": opp, "puck": puck, "puck_vel": puck_vel, "opp_delay": delay, "opp_engaged": True}
    mean, std, delays = opponent(env, **state)
    way = np.subtract(target, opp)
    close(mean, way / math.hypot(*way) * min(6.375, math.hypot(*way)), 0.05)
    assert (abs(std - 0.25) < 0.03).all()
    threat = puck[1] < 120 and puck_vel[1] < 0
    assert set(delays) == {max(0, delay - 1) if threat else delay} and env.opp_engaged is threat


def test_opponent_speed():
    """The same jitter three times; the first target is closer than a step, which tells how large it is."""
    env, velocities = at(puck=(150.0, 150.0), puck_vel=(0.0, 0.0)), []
    generator = env.get_state()["rng"]
    for way in ((0, 2), (4, 5), (-30, 40)):
        put(env, opp=(112.0 - way[0], 52.0 - way[1]), rng=generator)
        env.step([0, 0])
        velocities.append(env.opp_vel)
    close(velocities[1] - velocities[0], np.array([4, 5]) * 6.375 / math.hypot(4, 5) - (0, 2), 1e-9)
    close(velocities[2] - velocities[0], np.array([-0.6, 0.8]) * 6.375 - (0, 2), 1e-9)


@pytest.mark.parametrize(
    "speed, low, high", [(1, 5, 10), (2, 5, 10), (4, 4, 8), (6, 3, 7), (8, 2, 5), (10, 1, 4), (12, 1, 4)]
)
def test_opponent_reaction_time(speed, low, high):
    """I{int(5 - 4n) .. int(10 - 6n)}, n = clip((speed - 2) / 8, 0, 1); the first of these steps has passed already."""
    env = at()
    state = {"opp": (112.0, 52.0), "puck": (150.0, 110.0), "puck_vel": (0.0, -float(speed)), "opp_engaged": False}
    mean, _, delays = opponent(env, opp_delay=0, **state)
    assert set(delays) == set(range(low - 1, high)) and env.opp_engaged is True
    close(mean, 0)  # it waits at home


def test_opponent_at_its_target_stands_still():
    env, obs, _ = agent_step(puck=(150.0, 150.0), puck_vel=(0.0, 0.0), opp_vel=(3.0, 3.0))
    close(env.opp, (112, 52), 0)
    close(env.opp_vel, 0, 0)
    assert (obs[10:] == 0).all()


def test_opponent_clamp_leaves_its_velocity():
    env, beyond = at(), 0
    for _ in range(100):
        put(env, t=0, opp=(181.0, 60.0), puck=(185.0, 60.0), puck_vel=(0.0, -1.0), opp_engaged=True, opp_delay=0)
        env.step([0, 0])
        if env.opp_vel[0] > 0:
            beyond += 1
            assert env.opp[0] == 181
    assert 20 < beyond < 80


def test_opponent_sees_the_puck_of_the_previous_step():
    env, *_ = agent_step(puck=(150.0, 121.0), puck_vel=(0.0, -5.0))
    assert env.puck[1] == 116 and env.opp_engaged is False
    env.step([0, 0])
    assert env.opp_engaged is True


# ---- hits ----


def test_agent_strikes_the_puck():
    # Contact at distance 14: pushed by 2 + 0.5; approached with u = -3, so v = -1.9 * -3 * n + 0.35 * w, n = (0, -1).
    env, *_ = agent_step((0, -0.4), agent=(112.0, 133.0), puck=(112.0, 116.0), puck_vel=(0.0, 0.0))
    close(env.agent, (112, 130))
    close(env.puck, (112, 113.5))
    close(env.puck_vel, (0, -(1.9 * 3 + 0.35 * 3) * 0.998))


def test_strike_uses_the_commanded_velocity_at_the_wall():
    env, *_ = agent_step((0, -0.4), agent=(112.0, 122.0), puck=(112.0, 108.0), puck_vel=(0.0, 0.0))
    close(env.agent, (112, 122))
    close(env.puck, (112, 105.5))
    close(env.puck_vel, (0, -6.75 * 0.998))


def test_puck_that_moves_away_is_only_pushed():
    env, *_ = agent_step((0, 0), agent=(112.0, 130.0), puck=(112.0, 117.0), puck_vel=(0.0, -1.0))
    close(env.puck, (112, 116 - 2.5))
    close(env.puck_vel, (0, -0.998))


def test_no_contact_at_distance_16():
    env, *_ = agent_step((0, 0), agent=(112.0, 130.0), puck=(112.0, 110.0), puck_vel=(0.0, 4.0))
    close(env.puck, (112, 114))
    close(env.puck_vel, (0, 4 * 0.998))
    env, *_ = agent_step((0, 0), agent=(112.0, 130.0), puck=(112.0, 110.0), puck_vel=(0.0, 4.01))
    close(env.puck, (112, 113.5))
    close(env.puck_vel, (0, -0.9 * 4.01 * 0.998))


def test_opponent_strikes_the_puck():
    # At rest at home (112, 52): puck comes down from above and bounces, (v - w) . n = -3 along n = (0, -1).
    env, *_ = agent_step(puck=(112.0, 35.0), puck_vel=(0.0, 3.0))
    close(env.puck, (112, 38 - 2.5))
    close(env.puck_vel, (0, -0.9 * 3 * 0.998))


# ---- walls, goals, speed ----


@pytest.mark.parametrize(
    "puck, vel, end, end_vel",
    [
        ((41, 150), (-3, 1), (39, 151), (2.7, 1)),  # x - 6 < 33
        ((183, 150), (3, 1), (185, 151), (-2.7, 1)),
        ((30, 150), (2, 1), (39, 151), (-1.8, 1)),  # on its way back already: turned all the same
        ((194, 150), (-2, 1), (185, 151), (1.8, 1)),
        ((42, 150), (-3, 0), (39, 150), (-3, 0)),  # touches
        ((60, 31), (0, -2), (60, 30), (0, 1.8)),  # the end beside the mouth
        ((60, 32), (0, -2), (60, 30), (0, -2)),
        ((83.9, 30), (0, -2), (83.9, 30), (0, 1.8)),
        ((84, 30), (0, -2), (84, 28), (0, -2)),  # into the mouth
        ((140, 30), (0, -2), (140, 28), (0, -2)),
        ((140.1, 30), (0, -2), (140.1, 30), (0, 1.8)),
        ((150, 193), (0, 2), (150, 194), (0, -1.8)),
        ((150, 193), (0, 1), (150, 194), (0, 1)),
        ((112, 204), (0, 5), (112, 209), (0, 5)),
        ((112, 20), (0, -5), (112, 15), (0, -5)),
        ((40, 31), (-5, -5), (39, 30), (4.5, 4.5)),  # a corner
    ],
)
def test_walls(puck, vel, end, end_vel):
    env, obs, reward = agent_step(puck=tuple(map(float, puck)), puck_vel=tuple(map(float, vel)), opp_delay=9)
    assert reward == 0
    close(env.puck, end)
    close(env.puck_vel, np.multiply(end_vel, 0.998))
    close(obs[:4], [*np.divide(end, 224), *np.multiply(end_vel, 0.998 / 12)])


@pytest.mark.parametrize("y, vy, reward", [(18, -4, 1), (206, 4, -1)])
def test_goal(y, vy, reward):
    env, velocities = at(), []
    for k in range(100):
        put(env, t=0, **CALM | {"agent": (60.0, 150.0), "opp": (60.0, 52.0), "opp_delay": 7, "opp_engaged": True})
        put(env, puck=(112.0, float(y)), puck_vel=(0.0, float(vy)), agent_goals=3, opp_goals=k)
        obs, got, *_, info = env.step([0.5, 0.5])
        assert got == reward
        assert (env.agent_goals, env.opp_goals) == ((4, k) if reward > 0 else (3, k + 1))
        close(env.puck, (112, 112))
        close(env.agent, (112, 170))
        close(env.opp, (112, 54))
        close([env.agent_vel, env.opp_vel], 0)
        close(obs[[6, 7, 10, 11]], 0)
        velocities.append(env.puck_vel)
    check_launch(velocities, -reward, damped=True)  # upwards after +1


def test_goal_line_itself_counts():
    for y, vy, want in ((16, -2, 1), (16.1, -2, 0), (208, 2, -1), (207.9, 2, 0)):
        assert agent_step(puck=(112.0, float(y)), puck_vel=(0.0, float(vy)), opp_engaged=True, opp_delay=9)[2] == want


def test_engagement_survives_a_goal():
    env, *_ = agent_step(puck=(112.0, 18.0), puck_vel=(0.0, -4.0), opp_engaged=True, opp_delay=0)
    assert env.puck_vel[1] < 0 and env.opp_engaged is True and env.opp_delay == 0
    put(env, opp=(60.0, 60.0))
    env.step([0, 0])  # attacks at once: no new reaction time is drawn
    assert env.opp_delay == 0 and env.opp_vel[0] > 4 and env.opp_vel[1] > 1


def test_speed_cap():
    env, *_ = agent_step(puck=(112.0, 100.0), puck_vel=(9.0, 12.0))
    close(env.puck, (121, 112))
    close(env.puck_vel, (7.2, 9.6))
    env, *_ = agent_step(puck=(112.0, 100.0), puck_vel=(0.0, 12.02))
    close(env.puck_vel, (0, 12.02 * 0.998))


# ---- whole steps ----


def scalar_step(state, opp, opp_vel, action):
    """The rules in plain numbers, given where the opponent went -> puck, velocity, reward (None, None after a goal)."""
    wx, wy = (7.5 * min(1, max(-1, a)) for a in action)
    ax, ay = min(181, max(43, state["agent"][0] + wx)), min(190, max(122, state["agent"][1] + wy))
    (x, y), (vx, vy) = state["puck"], state["puck_vel"]
    x, y = x + vx, y + vy
    for mx, my, mvx, mvy in ((ax, ay, wx, wy), (*opp, *opp_vel)):
        d = math.sqrt((x - mx) ** 2 + (y - my) ** 2)
        if d >= 16:
            continue
        nx, ny = (x - mx) / (d + 1e-8), (y - my) / (d + 1e-8)
        x, y = x + nx * (16.5 - d), y + ny * (16.5 - d)
        u = (vx - mvx) * nx + (vy - mvy) * ny
        if u < 0:
            vx, vy = vx - 1.9 * u * nx + 0.35 * mvx, vy - 1.9 * u * ny + 0.35 * mvy
    if x < 39:
        x, vx = 39, -0.9 * vx
    elif x > 185:
        x, vx = 185, -0.9 * vx
    if 84 <= x <= 140:
        if y <= 14 or y >= 210:
            return None, None, 1 if y <= 14 else -1
    elif y < 30:
        y, vy = 30, -0.9 * vy
    elif y > 194:
        y, vy = 194, -0.9 * vy
    vx, vy = 0.998 * vx, 0.998 * vy
    speed = math.sqrt(vx * vx + vy * vy)
    if speed > 12:
        vx, vy = vx * 12 / (speed + 1e-8), vy * 12 / (speed + 1e-8)
    return (x, y), (vx, vy), 0


def test_steps_and_observations_follow_the_rules():
    rng, env, rewards, hits = np.random.default_rng(0), at(), [], 0
    for k in range(1000):
        box = (((30, 8), (194, 216)), ((80, 8), (144, 26)), ((80, 198), (144, 216)))[k // 3 % 3]
        puck = rng.uniform(*box)
        agent, opp = rng.uniform((43, 122), (181, 190)), rng.uniform((43, 34), (181, 102))
        if k % 3:  # near one of the mallets
            puck = (agent, opp)[k % 2] + rng.uniform(-20, 20, 2)
        put(env, t=0, puck=puck, puck_vel=rng.uniform(-9, 9, 2), agent=agent, opp=opp, opp_engaged=bool(k % 5))
        state, action = env.get_state(), rng.uniform(-1.2, 1.2, 2)
        obs, reward, *_ = env.step(action)
        puck, vel, want = scalar_step(state, env.opp, env.opp_vel, action)
        assert reward == want
        rewards.append(reward)
        if puck is None:
            continue
        close(env.puck, puck, 1e-9)
        close(env.puck_vel, vel, 1e-9)
        hits += abs(vel[0] - state["puck_vel"][0] * 0.998) > 1e-6
        scaled = [*np.divide(puck, 224), *np.divide(vel, 12)]
        for position, velocity in ((env.agent, env.agent_vel), (env.opp, env.opp_vel)):
            scaled += [position[0] / 224, position[1] / 224, velocity[0] / 7.5, velocity[1] / 7.5]
        np.testing.assert_allclose(obs, scaled, rtol=1e-6, atol=1e-9)
    assert rewards.count(1) > 5 and rewards.count(-1) > 5 and hits > 150


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    other.reset()
    for _ in range(50):
        env.step(env.action_space.sample())
    state, actions, rows = env.get_state(), np.random.default_rng(0).uniform(-1, 1, (200, 2)), []
    for again in (env, env, other):
        again.set_state(state)
        rows.append([np.append((s := again.step(a))[0], s[1]) for a in actions] + [again.reset()[0]])
    for row in rows[1:]:
        for a, b in zip(row, rows[0], strict=True):
            np.testing.assert_array_equal(a, b)


def test_score_is_the_return_over_10():
    env = at(ret=3.0, puck=(112.0, 18.0), puck_vel=(0.0, -4.0))
    info = env.step([0, 0])[4]
    assert info == {"score": pytest.approx(0.4), "success": 0.0}
    put(env, ret=-2.0)
    assert env.step([0, 0])[4]["score"] == 0
    put(env, ret=12.0)
    assert env.step([0, 0])[4]["score"] == 1


def test_picture():
    frame = at(puck=(70.0, 100.0), agent=(150.0, 150.0), opp=(150.0, 60.0)).render()
    assert (frame[100, 70] == 255).all() and (frame[150, 150] == (255, 140, 0)).all() and (frame[60, 150] == 180).all()
    assert (frame[24, 60] == 200).all() and not frame[24, 112].any() and not frame[199, 112].any()  # the mouths
    assert (frame[112, 60] == 80).all()


@pytest.mark.slow
def test_player():
    env, totals = envs.make(NAME), []
    for seed in range(5):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        totals.append(env.ret)
    assert info["success"] == 0 and np.mean(totals) > 10  # such a player made 12 +- 2.8 on the original
