"""Bird attack (MiniArcade): each rule from a position set by hand, and whole steps against a second, plain version.

Run: pytest tests/test_arcade_bird_attack.py
"""

import math

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs
from envs.arcade.bird_attack import player

NAME = "pygame-bird-attack"
# One bird far from everything: without any, every step pays.
CALM = {"birds": [[100, 30, 2]], "bird_dir": 1, "agent_bullets": [], "bird_bullets": [], "t": 0}


def at(**state):
    env = envs.make(NAME)
    env.reset(seed=0)
    env.set_state(CALM | state)
    return env


def without_fire(env):
    """The birds' shots fall far apart: a generator state whose next step has none of them."""
    while True:
        before = env.np_random.bit_generator.state
        quiet = (env.np_random.random(16) > 0.0075).all()
        env.np_random.bit_generator.state = before
        if quiet:
            return env
        env.np_random.random()


def step(env, action=(0.0, 0.0)):
    return without_fire(env).step(np.array(action))


# ---- reset ----


def test_reset_is_always_the_same():
    env = envs.make(NAME, seed=0)
    before = env.np_random.bit_generator.state
    obs, info = env.reset()
    assert env.np_random.bit_generator.state == before
    assert info == {"score": 0.0, "success": 0.0}
    want = np.zeros(55)
    want[[0, 2, 19]] = 105 / 224, 1, 60 / 224
    want[3:19] = np.tile(np.arange(40, 200, 20), 2) / 224
    np.testing.assert_allclose(obs, want, rtol=1e-6)
    state = env.get_state()
    assert [bird[1:] for bird in state["birds"]] == [[40, 2]] * 8 + [[60, 2]] * 8
    assert (state["reload"], state["stun"], state["kills"], state["bird_dir"]) == (0, 0, 0, 1)
    assert state["agent_bullets"] == state["bird_bullets"] == [] and state["boss_bullet"] is None
    assert state["boss_active"] is False and state["boss_center"] is None


# ---- agent ----


@pytest.mark.parametrize(
    "x, stun, action, end",
    [(105, 0, 1, 111), (105, 0, -0.5, 102), (105, 0, 7, 111), (105, 3, 1, 106.2), (105, 1, -1, 103.8),
     (187, 0, 1, 190), (23, 0, -1, 20), (189, 5, 1, 190)],
)  # fmt: skip
def test_agent_moves(x, stun, action, end):
    env = at(agent_x=float(x), stun=stun)
    obs, *_ = step(env, (action, 0))
    assert env.agent_x == pytest.approx(end, abs=1e-12) and env.stun == max(0, stun - 1)
    assert obs[0] == pytest.approx(end / 224) and obs[50] == pytest.approx(max(0, stun - 1) / 10)


def test_fire_every_eighth_step():
    env, shots, reloads = at(agent_x=160.0), [], []
    for t in range(20):
        had = len(env.agent_bullets)
        step(env, (0, 0.01))
        shots += [t] * (len(env.agent_bullets) > had)
        reloads.append(env.reload)
    assert shots == [0, 8, 16] and reloads[:9] == [7, 6, 5, 4, 3, 2, 1, 0, 7]
    assert env.agent_bullets[0] == [167, 178 - 7 * 20] and env.agent_bullets[2] == [167, 178 - 7 * 4]


def test_no_fire_without_the_trigger_or_while_reloading():
    for action, reload in (((0, 0), 0), ((0, -1), 0), ((0, 1), 1), ((0, 1), 16)):
        env = at(reload=reload)
        obs = step(env, action)[0]
        assert env.agent_bullets == [] and env.reload == max(0, reload - 1)
        assert obs[1] == pytest.approx(max(0, reload - 1) / 5)


def test_bullet_leaves_from_the_new_position_and_moves_at_once():
    env = at(agent_x=105.0)
    step(env, (1, 1))
    assert env.agent_bullets == [[118, 171]]


def test_agent_bullets_end_at_the_top():
    env = at(agent_bullets=[[180, 27], [180, 28], [180, 100]])
    step(env)
    assert env.agent_bullets == [[180, 21], [180, 93]]  # y > 20 stays


# ---- flock ----


@pytest.mark.parametrize(
    "xs, direction, moved, direction_after",
    [
        ([100, 150], 1, (1, 0), 1), ([100, 150], -1, (-1, 0), -1),
        ([100, 189], 1, (1, 0), 1), ([100, 190], 1, (0, 4), -1),  # 190 + 14 is the wall
        ([21, 100], -1, (-1, 0), -1), ([20, 100], -1, (0, 4), 1),
    ],
)  # fmt: skip
def test_flock_turns_and_drops(xs, direction, moved, direction_after):
    env = at(birds=[[x, 50 + i, 2] for i, x in enumerate(xs)], bird_dir=direction)
    obs = step(env)[0]
    want = [[x + moved[0], 50 + i + moved[1], 2] for i, x in enumerate(xs)]
    assert env.birds == want and env.bird_dir == direction_after
    np.testing.assert_allclose(obs[3:19], np.array([bird[0] for bird in want] + [0] * 14) / 224, rtol=1e-6)
    assert obs[19] == pytest.approx((51 + moved[1]) / 224) and obs[2] == pytest.approx(2 / 16)


def test_every_bird_fires_on_its_own():
    env, fired = at(), np.zeros(16)
    for _ in range(5000):
        env.set_state(CALM | {"birds": [[30 + 10 * k, 60, 2] for k in range(16)]})
        env.step([0, 0])
        for x, y in env.bird_bullets:
            assert (x - 38) % 10 == 0 and y == 60 + 12 + 7
            fired[(x - 38) // 10] += 1
    assert abs(fired.sum() - 600) < 75  # 16 * 5000 * 0.0075, and three standard deviations
    assert (abs(fired - 37.5) < 25).all()


def test_bird_bullets_end_at_the_bottom():
    env = at(bird_bullets=[[30, 196], [30, 197], [30, 100]], agent_x=150.0)
    step(env)
    assert env.bird_bullets == [[30, 203], [30, 107]]


# ---- hits ----


@pytest.mark.parametrize(
    "bullet, hit",
    [((107, 70), True), ((100.5, 70), True), ((100, 70), False), ((114, 70), False), ((113.9, 70), True),
     ((107, 64.5), True), ((107, 64), False), ((107, 76), False), ((107, 75.9), True)],
)  # fmt: skip
def test_bullet_hits_bird(bullet, hit):
    """A bird at (100, 64) after its move: |bx - 107| < 7 and |by - 70| < 6."""
    for hits_left in (2, 1):
        env = at(birds=[[99, 64, hits_left], [30, 30, 2]], agent_bullets=[[bullet[0], bullet[1] + 7]])
        _, reward, *_ = step(env)
        assert len(env.agent_bullets) == (not hit)
        assert reward == env.kills == (1 if hit and hits_left == 1 else 0)
        assert env.birds[0] == ([31, 30, 2] if reward else [100, 64, 2 - hit] if hits_left == 2 else [100, 64, 1])


def test_one_bullet_per_bird_and_step_the_oldest_first():
    env = at(birds=[[99, 64, 2], [30, 30, 2]], agent_bullets=[[105, 77], [107, 77], [109, 77]])
    assert step(env)[1] == 0
    assert env.agent_bullets == [[107, 70], [109, 70]] and env.birds[0][2] == 1


def test_birds_are_served_in_their_order():
    env = at(birds=[[99, 64, 1], [103, 64, 1], [30, 30, 2]], agent_bullets=[[108, 77]])
    assert step(env)[1] == 1
    assert [bird[0] for bird in env.birds] == [104, 31]
    env = at(birds=[[99, 64, 1], [103, 64, 1], [30, 30, 2]], agent_bullets=[[108, 77], [108, 77]])
    assert step(env)[1] == 2 and env.kills == 2


@pytest.mark.parametrize(
    "bullet, hit",
    [((107, 188), True), ((100, 188), False), ((100.1, 188), True), ((114, 188), False), ((113.9, 188), True),
     ((107, 184), False), ((107, 184.1), True), ((107, 192), False), ((107, 191.9), True)],
)  # fmt: skip
def test_bullet_hits_agent(bullet, hit):
    for stun in (0, 9):  # being stunned already doesn't help
        env = at(agent_x=100.0, bird_bullets=[[bullet[0], bullet[1] - 7]], stun=stun, reload=3)
        obs, reward, *_ = step(env)
        assert reward == (-2 if hit else 0) and len(env.bird_bullets) == (not hit)
        assert (env.stun, env.reload) == ((16, 16) if hit else (max(0, stun - 1), 2))
        assert obs[50] == pytest.approx(env.stun / 10)


@pytest.mark.parametrize("hits, reward", [("x", -2), ("xx", -2), ("xxx", -4), ("x.x", -4), (".xx", -2), ("xxxx", -4)])
def test_bullet_after_a_hit_is_skipped(hits, reward):
    bullets = [[107 if c == "x" else 150, 181 - i / 10] for i, c in enumerate(hits)]
    env = at(agent_x=100.0, bird_bullets=bullets)
    assert step(env)[1] == reward
    assert len(env.bird_bullets) == len(hits) + reward / 2


def test_stun_in_full():
    env, xs = at(agent_x=100.0, bird_bullets=[[107, 181]]), []
    step(env, (0, 1))
    for _ in range(18):
        xs.append(env.agent_x)
        step(env, (1, 1))
    np.testing.assert_allclose(np.diff(xs), [1.2] * 16 + [6], atol=1e-9)
    assert env.agent_bullets[-1][1] == 178 - 7 * 2  # fires again in the 17th step


# ---- boss ----


def test_boss_appears_after_250_steps():
    env = at(t=249)
    step(env)
    assert env.boss_active is False
    fades, timers, centers = [], [], []
    for _ in range(8):
        step(env)
        fades.append(env.boss_fade)
        timers.append(env.boss_timer)
        centers.append(env.boss_center)
    assert fades == [4, 3, 2, 1, 0, 0, 0, 0] and timers == [50, 50, 50, 50, 50, 49, 48, 47]
    assert all(list(center) == [112, 40] for center in centers[:5]) and list(centers[5]) != [112, 40]


def test_boss_trembles_around_its_place():
    env = at(boss_active=True, boss_center=[112, 40], boss_fade=0, boss_timer=50, agent_x=30.0)
    centers = []
    for _ in range(300):
        env.set_state({"boss_timer": 50, "t": 300})
        step(env)
        centers.append(env.boss_center)
    offset = np.subtract(centers, (112, 40)) / 184
    assert (abs(offset) <= (0.03, 0.01)).all() and (abs(offset).max(axis=0) > (0.029, 0.0095)).all()
    assert (abs(offset.mean(axis=0)) < (0.004, 0.0015)).all()


@pytest.mark.parametrize("agent_x", [20.0, 105.0, 190.0])
def test_boss_fires_at_the_agent(agent_x):
    env = at(boss_active=True, boss_center=[112, 40], boss_fade=0, boss_timer=1, agent_x=agent_x, t=300)
    obs = step(env)[0]
    x, y, vx, vy = env.boss_bullet
    start = np.array(env.boss_center) + (0, 8)
    way = np.array([agent_x + 7, 188]) - start
    np.testing.assert_allclose([vx, vy], 5 * way / math.hypot(*way), atol=1e-12)
    np.testing.assert_allclose([x, y], start + (vx, vy), atol=1e-12)  # moves at once
    assert env.boss_timer == 50
    np.testing.assert_allclose(obs[51:], [x / 224, y / 224, vx / 5, vy / 5], rtol=1e-6)


def test_boss_has_one_shot_at_a_time():
    env = at(boss_active=True, boss_center=[112, 40], boss_fade=0, boss_timer=1, boss_bullet=[100.0, 60, 0, 5], t=300)
    step(env)
    assert env.boss_bullet == [100, 65, 0, 5] and env.boss_timer == 0
    env.set_state({"boss_bullet": None})
    step(env)
    assert env.boss_bullet is not None and env.boss_timer == 50


@pytest.mark.parametrize(
    "shot, after",
    [
        ([100, 100, 3, 4], [103, 104, 3, 4]),
        ([33, 100, -4, 3], [29, 103, 4, 3]),  # turned, not moved back
        ([34, 100, -4, 3], [30, 103, -4, 3]),
        ([191, 100, 4, 3], [195, 103, -4, 3]), ([190, 100, 4, 3], [194, 103, 4, 3]),
        ([25, 100, 3, 4], [28, 104, -3, 4]),  # still outside: turned again
        ([150, 209, 3, 4], [153, 213, 3, 4]), ([150, 210, 3, 4], None),  # y - 10 >= 204
    ],
)  # fmt: skip
def test_boss_shot_flies(shot, after):
    env = at(boss_bullet=list(map(float, shot)), agent_x=60.0)
    obs, reward, *_ = step(env)
    assert env.boss_bullet == after and reward == 0
    scaled = np.zeros(4) if after is None else np.divide(after, (224, 224, 5, 5))
    np.testing.assert_allclose(obs[51:], scaled, rtol=1e-6)


@pytest.mark.parametrize(
    "shot, hit",
    [((107, 188), True), ((90, 188), False), ((90.1, 188), True), ((124, 188), False), ((123.9, 188), True),
     ((107, 174), False), ((107, 174.1), True), ((107, 202), False), ((107, 201.9), True)],
)  # fmt: skip
def test_boss_shot_hits_agent(shot, hit):
    env = at(agent_x=100.0, boss_bullet=[shot[0], shot[1] - 5, 0.0, 5.0])
    _, reward, *_ = step(env)
    assert reward == (-2 if hit else 0) and (env.boss_bullet is None) is hit
    assert (env.stun, env.reload) == ((16, 16) if hit else (0, 0))


def test_boss_cannot_be_hit():
    env = at(boss_active=True, boss_center=[112, 40], boss_fade=0, boss_timer=50, agent_bullets=[[112, 47]], t=300)
    env.set_state({"birds": [[30, 100, 2]]})
    assert step(env)[1] == 0 and env.agent_bullets == [[112, 40]] and env.boss_active


# ---- end of the flock ----


def test_pay_without_birds():
    env = at(birds=[[99, 64, 1]], agent_bullets=[[107, 77]], t=300)
    assert step(env)[1] == 2  # the bird, and the first step without one
    obs, reward, *_ = step(env)
    assert reward == 1 and obs[2] == 0 and (obs[3:19] == 0).all() and obs[19] == pytest.approx(20 / 224)
    env.set_state({"agent_x": 100.0, "boss_bullet": [107.0, 183.0, 0.0, 5.0]})
    assert step(env)[1] == -1
    assert env.boss_active  # it came all the same


# ---- observation and whole steps ----


def test_observation_of_bullets():
    mine, theirs = [[k + 30, 160 - 9 * k] for k in range(7)], [[150 + k, 40 + 5 * k] for k in range(12)]
    obs = step(at(agent_bullets=mine, bird_bullets=theirs, agent_x=30.0))[0]
    np.testing.assert_allclose(obs[20:30], np.ravel([[x, y - 7] for x, y in mine[:5]]) / 224, rtol=1e-6)
    np.testing.assert_allclose(obs[30:50], np.ravel([[x, y + 7] for x, y in theirs[:10]]) / 224, rtol=1e-6)
    obs = step(at(agent_bullets=mine[:1], bird_bullets=theirs[:2], agent_x=30.0))[0]
    assert (obs[22:30] == 0).all() and (obs[34:50] == 0).all() and obs[33] == pytest.approx(52 / 224)


def test_observation_of_the_boss_shot_is_clipped():
    obs = step(at(boss_bullet=[-8.0, 100.0, -5.0, 6.0]))[0]
    np.testing.assert_allclose(obs[51:], [0, 106 / 224, 1, 1], rtol=1e-6)


def plain_step(s, x, move, fire):
    """Everything but the birds' shots and the boss: s is a state, x where the agent has got to -> reward."""
    for bullet in s["agent_bullets"]:
        bullet[1] -= 7
    if fire > 0 and s["reload"] == 0:
        s["agent_bullets"].append([x + 7, 171])
        s["reload"] = 8
    s["reload"] = max(0, s["reload"] - 1)
    s["agent_bullets"] = [b for b in s["agent_bullets"] if b[1] > 20]
    edges = [b[0] + s["bird_dir"] for b in s["birds"]]
    turn = any(e < 20 or e + 14 > 204 for e in edges)
    for bird in s["birds"]:
        bird[turn] += 4 if turn else s["bird_dir"]
    s["bird_dir"] *= -1 if turn else 1
    s["bird_bullets"] = [[bx, by + 7] for bx, by in s["bird_bullets"] if by + 7 < 204]
    reward = 0
    for bird in s["birds"]:
        touching = [b for b in s["agent_bullets"] if -7 < b[0] - bird[0] - 7 < 7 and -6 < b[1] - bird[1] - 6 < 6]
        if touching:
            s["agent_bullets"].remove(touching[0])
            bird[2] -= 1
            reward += bird[2] == 0
    s["birds"] = [b for b in s["birds"] if b[2]]
    for bullet in s["bird_bullets"]:  # taking out of a list that is being walked through: skips the next
        if -7 < bullet[0] - x - 7 < 7 and -4 < bullet[1] - 188 < 4:
            s["bird_bullets"].remove(bullet)
            s["stun"] = s["reload"] = 16
            reward -= 2
    return reward + (s["birds"] == [])


def test_steps_follow_the_rules():
    rng, env, rewards = np.random.default_rng(0), at(), []
    for _ in range(300):
        birds = [[int(x), int(y), int(h)] for x, y, h in rng.integers((20, 20, 1), (191, 120, 3), (rng.integers(5), 3))]
        mine = rng.uniform((30, 20), (200, 150), (6, 2)).tolist()
        mine += [[b[0] + rng.uniform(-1, 14), b[1] + rng.uniform(-1, 22)] for b in birds]
        theirs = rng.uniform((20, 20), (200, 204), (4, 2)).tolist()
        x = rng.uniform(20, 190)
        theirs += [[x + rng.uniform(-8, 22), rng.uniform(174, 192)] for _ in range(3)]
        env.set_state(
            {"t": 0, "birds": birds, "bird_dir": int(rng.choice([-1, 1])), "agent_bullets": mine, "agent_x": x}
            | {"bird_bullets": theirs, "reload": int(rng.integers(3)), "stun": int(rng.integers(3)), "kills": 0}
        )
        action = rng.uniform(-1, 1, 2)
        state = without_fire(env).get_state()
        _, reward, *_ = env.step(action)
        x = min(190, max(20, x + action[0] * (1.2 if state["stun"] else 6)))
        assert env.agent_x == pytest.approx(x, abs=1e-12)
        state["stun"] = max(0, state["stun"] - 1)
        assert reward == plain_step(state, x, *action)
        for name in ("birds", "bird_dir", "bird_bullets", "reload", "stun"):
            assert getattr(env, name) == state[name], name
        np.testing.assert_allclose(env.agent_bullets, state["agent_bullets"], atol=1e-12)
        assert env.kills == len(birds) - len(env.birds)
        rewards.append(reward)
    assert len(set(rewards)) >= 6


# ---- contract, score, frame, player ----


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_gymnasium_checks_it():
    check_env(envs.make(NAME), skip_render_check=True)


def test_state_is_exact():
    env, other = envs.make(NAME, seed=1), envs.make(NAME, seed=2)
    env.reset()
    other.reset()
    for t in range(310):  # the boss is there and its shot on the way
        env.step([np.sin(t / 9), 1])
    assert env.boss_bullet is not None
    state, rows = env.get_state(), []
    for again in (env, env, other):
        again.set_state(state)
        rows.append([np.append((s := again.step([np.cos(t / 9), 1]))[0], s[1]) for t in range(190)])
    np.testing.assert_array_equal(rows[0], rows[1])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert state["boss_bullet"] is not None and state["t"] == 310


def test_score_is_the_return_over_16():
    env = at(birds=[[99, 64, 1], [150, 30, 2]], agent_bullets=[[107, 77]], ret=3.0)
    assert step(env)[4] == {"score": pytest.approx(4 / 16), "success": 0.0}
    for ret, want in ((-1.0, 0), (17.0, 1)):
        env.set_state({"ret": ret})
        assert step(env)[4]["score"] == want


def test_picture():
    env = at(agent_x=100.0, birds=[[60, 50, 2], [90, 50, 1]], agent_bullets=[[150, 100]], bird_bullets=[[170, 100]])
    frame = env.render()
    assert (frame[188, 107] == (255, 140, 0)).all() and (frame[180, 107] == (255, 140, 0)).all()
    assert (frame[54, 67] == 200).all() and (frame[51, 97] == 200).all() and not frame[54, 97].any()  # full, outline
    assert (frame[97, 150] == (255, 140, 0)).all() and (frame[103, 170] == 200).all()
    assert (frame[100, 20] == 255).all() and not frame[100, 100].any()
    env.set_state({"stun": 16, "boss_active": True, "boss_center": [112, 40], "boss_fade": 5})
    red = env.render()[100, 100].astype(int)
    assert (abs(red - np.array((220, 30, 10)) * 140 / 255) <= 1.5).all() and not env.render()[48, 112][2] > 100
    env.set_state({"stun": 0, "boss_fade": 0, "boss_bullet": [180.0, 150.0, 1, 1]})
    assert (env.render()[48, 112] == 200).all() and (env.render()[150, 180] == 200).all()


def test_player():
    env, totals = envs.make(NAME), []
    for seed in range(10):
        env.reset(seed=seed)
        for _ in range(500):
            info = env.step(player(env))[4]
        totals.append(env.ret)
        assert info == {"score": 1.0, "success": 0.0}
    assert 130 < np.mean(totals) < 175  # such a player got 151 +- 14 on the original


def test_doing_nothing_is_hit_now_and_then():
    env = envs.make(NAME, seed=0)
    env.reset()
    for _ in range(500):
        reward = env.step([0, 0])[1]
        assert reward <= 0 and reward % 2 == 0
    assert env.ret < 0 and env.kills == 0
