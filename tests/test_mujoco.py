"""MuJoCo suite: against rewards and observations written out here by hand, on a bare MuJoCo simulation.

Run: pytest tests/test_mujoco.py
"""

import subprocess
import sys
from ctypes.util import find_library
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import envs

needs_gl = pytest.mark.skipif(
    sys.platform == "linux" and not find_library("EGL") and not find_library("OSMesa"), reason="no off-screen OpenGL"
)
NAMES = envs.select("mujoco")
ASSETS = Path(gym.__file__).parent / "envs/mujoco/assets"
# Gymnasium's model, simulator steps per control step, control steps per action, control at action 1
SETUP = {
    "mujoco-ant": ("ant.xml", 5, 2, 1),
    "mujoco-halfcheetah": ("half_cheetah.xml", 5, 1, 1),
    "mujoco-hopper": ("hopper.xml", 4, 2, 1),
    "mujoco-inverted-pendulum": ("inverted_pendulum.xml", 2, 2, 3),
    "mujoco-reacher": ("reacher.xml", 2, 1, 1),
    "mujoco-walker": ("walker2d.xml", 4, 2, 1),
}


def observe(name, data):
    q, v = data.qpos, data.qvel
    if name == "mujoco-ant":
        return [*q[2:15], *v[:14]]
    if name == "mujoco-inverted-pendulum":
        return [*q, *v]
    if name == "mujoco-reacher":
        gap = data.body("fingertip").xpos - data.body("target").xpos
        return [*np.cos(q[:2]), *np.sin(q[:2]), *q[2:4], *v[:2], *gap]
    return [*q[1:], *(v if name == "mujoco-halfcheetah" else v.clip(-10, 10))]


def reference(name, qpos, qvel, actions, pushes):
    """-> obs (T+1, O), rewards (T,), what was met on the way. pushes: step -> velocities added before it."""
    xml, frames, repeat, gain = SETUP[name]
    model = mujoco.MjModel.from_xml_path(str(ASSETS / xml))
    data = mujoco.MjData(model)
    data.qpos[:], data.qvel[:] = qpos, qvel
    mujoco.mj_forward(model, data)
    seconds, over, met = frames * model.opt.timestep, False, set()
    obs, rewards = [observe(name, data)], []
    for t, action in enumerate(actions):
        if t in pushes:
            data.qvel[:] += pushes[t]
            mujoco.mj_forward(model, data)
        total, a = 0.0, (np.float32(gain) * action).astype(np.float64)
        for _ in range(repeat):
            torso = data.body("torso").xpos[0].copy() if name == "mujoco-ant" else data.qpos[0].copy()
            if name == "mujoco-reacher":  # paid for where it was
                r = -np.linalg.norm(data.body("fingertip").xpos - data.body("target").xpos) - (a**2).sum()
            data.ctrl[:] = a
            for _ in range(frames):
                mujoco.mj_step(model, data)
            z, angle = data.qpos[1:3] if model.nq > 2 else (0, 0)
            if name == "mujoco-ant":
                alive = 0.2 <= data.qpos[2] <= 1.0
                r = (data.body("torso").xpos[0] - torso) / seconds + alive - 0.5 * (a**2).sum()
                met.add(bool(alive))
            elif name == "mujoco-halfcheetah":
                r = (data.qpos[0] - torso) / seconds - 0.1 * (a**2).sum()
            elif name in ("mujoco-hopper", "mujoco-walker"):
                if name == "mujoco-hopper":
                    rest = np.concatenate([data.qpos[2:], data.qvel])
                    alive = z > 0.7 and abs(angle) < 0.2 and (np.abs(rest) < 100).all()
                else:
                    alive = 0.8 < z < 2 and abs(angle) < 1
                r = (data.qpos[0] - torso) / seconds + 1 - 0.001 * (a**2).sum()
                met.add((bool(alive), bool(r < 0)))
                r = max(0, r) if alive else -1
            elif name == "mujoco-inverted-pendulum":
                over |= abs(data.qpos[1]) > 0.2
                r = 0.0 if over else 1.0
                met.add((bool(over), bool(abs(data.qpos[1]) > 0.2)))
            total += r
        obs.append(observe(name, data))
        rewards.append(total)
    return np.array(obs), np.array(rewards), met


def push(env, change):
    env._env.set_state(env._env.data.qpos.copy(), env._env.data.qvel + change)


@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_formulas(name):
    env, draw, met = envs.make(name), np.random.default_rng(0), set()
    steps = 50
    for seed, size in ((0, 1.0), (1, 0.3), (2, 0.0), (3, 1.2)):  # beyond the box, too: nothing clips the cost
        obs = [env.reset(seed=seed)[0]]
        start = env._env.data.qpos.copy(), env._env.data.qvel.copy()
        kick = 0 * start[1]
        kick[0] = -4.0 if seed else 2.0  # backwards while healthy: the reward would be negative
        if name == "mujoco-inverted-pendulum":
            kick[:] = 0.0, (2.0, 0.0, -0.5, 0.0)[seed]
        pushes = {3: kick, 30: -kick}
        actions = draw.uniform(-size, size, (steps, *env.action_space.shape)).astype(np.float32)
        rewards = []
        for t, action in enumerate(actions):
            if t in pushes:
                push(env, pushes[t])
            step = env.step(action)
            obs.append(step[0])
            rewards.append(step[1])
        want_obs, want_rewards, seen = reference(name, *start, actions, pushes)
        met |= seen
        np.testing.assert_allclose(obs, want_obs, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(rewards, want_rewards, rtol=0, atol=2e-6)
        low, high = {"mujoco-reacher": (-50, 0), "mujoco-halfcheetah": (0, 15000)}.get(name, (0, 5000))
        high = 1000 if name == "mujoco-inverted-pendulum" else high
        score = min(max((want_rewards.sum() - low) / (high - low), 0), 1)
        assert step[4] == {"score": pytest.approx(score, abs=1e-6), "success": 0.0}
    if name == "mujoco-ant":
        assert True in met
    elif name in ("mujoco-hopper", "mujoco-walker"):
        assert met >= {(True, False), (True, True), (False, False)}
    elif name == "mujoco-inverted-pendulum":
        assert met >= {(False, False), (True, True)}


@pytest.mark.parametrize("name", NAMES)
def test_starts(name):
    """Ranges of the start, and that they are used in full."""
    env = envs.make(name, seed=0)
    rest = mujoco.MjModel.from_xml_path(str(ASSETS / SETUP[name][0])).qpos0
    rest[2:] *= name != "mujoco-reacher"  # its last two are the target, which is drawn around the middle
    starts = []
    for _ in range(60):
        assert env.reset()[1]["score"] == (1.0 if name == "mujoco-reacher" else 0.0)  # of a return of 0
        starts.append((env._env.data.qpos - rest, env._env.data.qvel.copy()))
    q, v = (np.array(part) for part in zip(*starts, strict=True))
    if name == "mujoco-reacher":
        assert 0.15 < np.linalg.norm(q[:, 2:], axis=1).max() < 0.2 and (v[:, 2:] == 0).all()
        q, v = q[:, :2], v[:, :2]
    wide = 0.1 if name in ("mujoco-ant", "mujoco-halfcheetah", "mujoco-reacher") else 0.005
    wide = 0.01 if name == "mujoco-inverted-pendulum" else wide
    assert 0.85 * wide < np.abs(q).max() <= wide
    if name in ("mujoco-ant", "mujoco-halfcheetah"):
        assert v.std() == pytest.approx(0.1, rel=0.15)  # a normal
    else:
        assert np.abs(v).max() <= (0.01 if name == "mujoco-inverted-pendulum" else 0.005)


@pytest.mark.filterwarnings("ignore::UserWarning")  # check_env: infinite bounds of obs
@pytest.mark.parametrize("name", NAMES)
def test_contract(name):
    task, env = envs.TASKS[name], envs.make(name)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(task.action_dim, np.float32))
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="this task takes"):
        env.step(np.zeros(task.action_dim + 1, np.float32))
    total = 0.0
    for t in range(1, task.episode_length + 1):
        obs, reward, terminated, truncated, info = env.step(np.zeros(task.action_dim, np.float32))
        assert obs.shape == (task.obs_dim,) and obs.dtype == np.float32 and type(reward) is float
        assert terminated is False and truncated is (t == task.episode_length)
        total += reward
    with pytest.raises(gym.error.ResetNeeded, match="call reset"):
        env.step(np.zeros(task.action_dim, np.float32))
    if name == "mujoco-ant":  # paid for standing: about 1000 for an episode of doing nothing
        assert 0.17 < info["score"] < 0.21
    if name in ("mujoco-hopper", "mujoco-walker"):  # long on the ground: -2 per step
        assert reward == -2 and total < -700 and info["score"] == 0


def test_tipped_pendulum_earns_nothing_until_the_next_episode():
    env = envs.make("mujoco-inverted-pendulum")
    for _ in range(2):
        env.reset(seed=0)
        assert env.step(np.zeros(1, np.float32))[1] == 2
        env._env.set_state(np.array([0, 0.25]), np.zeros(2))
        assert env.step(np.zeros(1, np.float32))[1] == 0
        env._env.set_state(np.zeros(2), np.zeros(2))
        state = env.get_state()
        assert env.step(np.zeros(1, np.float32))[1] == 0  # upright again
    other = envs.make("mujoco-inverted-pendulum")
    other.set_state(state)
    assert other.step(np.zeros(1, np.float32))[1] == 0


def go_on(env, actions):
    rows = []
    for action in actions:
        obs, reward, _, truncated, info = env.step(action)
        rows.append([*obs, reward, truncated, info["score"]])
    rows.append([*env.reset()[0], 0, 0, 0])
    rows.append([*env.step(actions[0])[0], 0, 0, 0])
    return np.array(rows)


@pytest.mark.parametrize("name", NAMES)
def test_state_is_restored_exactly(name):
    length = min(envs.TASKS[name].episode_length, 60)
    actions = np.random.default_rng(0).uniform(-1, 1, (length, envs.TASKS[name].action_dim)).astype(np.float32)
    never_saved, env = envs.make(name, seed=1), envs.make(name, seed=1)
    for each in (never_saved, env):
        each.reset()
        for action in actions[:20]:
            each.step(action)
    state = env.get_state()
    want = go_on(never_saved, actions[20:])
    np.testing.assert_array_equal(go_on(env, actions[20:]), want)  # saving changes nothing
    fresh, busy = envs.make(name, seed=2), envs.make(name, seed=3)  # one never reset, one in an episode of its own
    busy.reset()
    busy.step(actions[0])
    for other in (env, fresh, busy):
        for _ in range(2):
            other.set_state(state)
            np.testing.assert_array_equal(go_on(other, actions[20:]), want)


def test_same_numbers_in_another_process():
    code = f"""
import envs, numpy as np
for name in {NAMES}:
    env = envs.make(name, seed=4)
    actions = np.random.default_rng(0).uniform(-1, 1, (20, *env.action_space.shape)).astype(np.float32)
    print(env.reset()[0].tobytes().hex(), *(env.step(a)[0].tobytes().hex() for a in actions))
"""
    root = Path(envs.__file__).parents[1]
    runs = [subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True) for _ in range(2)]
    assert runs[0].returncode == 0 and not runs[0].stderr, runs[0].stderr  # Gymnasium's word on v4 doesn't show
    assert runs[0].stdout == runs[1].stdout and len(set(runs[0].stdout.split())) == 6 * 21


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ImportError, match=r"pip install gymnasium\[mujoco\]"):
        envs.make("mujoco-ant")


@needs_gl
@pytest.mark.parametrize("name", NAMES)
def test_frame_shows_the_model_and_changes_nothing(name):
    plain, drawn = envs.make(name, seed=1), envs.make(name, seed=1, render_mode="rgb_array")
    a, b, frames = plain.reset()[0], drawn.reset()[0], []
    for action in np.random.default_rng(0).uniform(-1, 1, (4, *plain.action_space.shape)).astype(np.float32):
        frames.append(drawn.render())
        np.testing.assert_array_equal(a, b)
        a, b = plain.step(action)[0], drawn.step(action)[0]
    np.testing.assert_array_equal(a, b)
    assert all(f.shape == (224, 224, 3) and f.dtype == np.uint8 and f.std() > 10 for f in frames)
    assert (frames[0] != frames[-1]).any()
    np.testing.assert_array_equal(plain.render(), drawn.render())  # also where the first frame comes late
    plain.close()
    drawn.close()
