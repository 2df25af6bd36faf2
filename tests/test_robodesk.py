"""RoboDesk: observations, rewards and resets against the package's own environment, and formulas written down again.

Run: pytest tests/test_robodesk.py            (about half a minute on one core)
     pytest tests/test_robodesk.py -m slow    (mean returns of doing nothing, all tasks)
"""

import functools
import subprocess
import sys
from ctypes.util import find_library

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils import seeding
from gymnasium.utils.env_checker import check_env

import envs
from envs.camera import choose_backend

TASKS = ["rd-push-red", "rd-push-green", "rd-push-blue", "rd-open-slide", "rd-open-drawer", "rd-flat-block-in-bin"]

needs_gl = pytest.mark.skipif(
    sys.platform == "linux" and not find_library("EGL") and not find_library("OSMesa"),
    reason="no off-screen OpenGL library here (Debian: libegl1 or libosmesa6)",
)


@functools.cache  # one takes half a second to make; every test resets it
def make(name, number=0):
    return envs.make(name, seed=number)


@functools.cache
def package(action_repeat=1):
    """The package's environment as the benchmark makes it, but for its images. Its task can be set."""
    make(TASKS[0])  # imports it
    env = sys.modules["robodesk"].RoboDesk(
        task="push_red", reward="dense", action_repeat=action_repeat, episode_length=1001, image_size=1
    )
    env.render = lambda mode="rgb_array", resize=True: None
    return env


def reset_package(env, seed):
    """As a first reset(seed=seed): the package draws from the global generator."""
    before = np.random.get_state()
    np.random.seed(seeding.np_random(seed)[0].integers(2**32, dtype=np.uint32))
    env.reset()
    np.random.set_state(before)
    for _ in range(10 // env.action_repeat):
        obs = env.step(np.zeros(5))[0]
    return obs


def random_actions(steps, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (steps, 5)).astype(np.float32)


def rollout(env, actions, seed=None):
    """-> (T+1, O), (T,): bit patterns to compare."""
    obs, rewards = [env.reset(seed=seed)[0]], []
    for action in actions:
        step = env.step(action)
        obs.append(step[0])
        rewards.append(step[1])
    return np.stack(obs), np.array(rewards)


def run_python(code, **environ):
    """A fresh interpreter: what is imported, and in which order, matters. -> stdout; fails on any error or stderr."""
    import os

    inherited = {key: value for key, value in os.environ.items() if key != "MUJOCO_GL"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**inherited, **environ}, cwd=envs.__path__[0] + "/..", capture_output=True
    )
    assert done.returncode == 0 and not done.stderr, done.stderr.decode()
    return done.stdout.decode().strip()


# ---- the contract ----


def check_contract(name, actions):
    env = make(name)
    obs, info = env.reset(seed=1)
    for t, action in enumerate(actions, start=1):
        assert obs.shape == (73,) and obs.dtype == np.float32 and np.isfinite(obs).all()
        assert type(info["score"]) is float and info["score"] == info["success"] and info["score"] in (0, 1)
        obs, reward, terminated, truncated, info = env.step(action)
        assert type(reward) is float and 0 <= reward <= 10
        assert terminated is False and truncated is (t == 100)
    with pytest.raises(gym.error.ResetNeeded):
        env.step(action)
    env.reset()
    with pytest.raises(ValueError, match="this task takes \\(5,\\)"):
        env.step(np.zeros(6, np.float32))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")  # check_env: infinite bounds of obs
def test_contract():
    env = envs.make("rd-open-slide")
    with pytest.raises(gym.error.ResetNeeded):
        env.step(np.zeros(5, np.float32))
    check_env(env, skip_render_check=True)
    assert env.observation_space == gym.spaces.Box(-np.inf, np.inf, (73,), np.float32)
    assert env.action_space == gym.spaces.Box(-1, 1, (5,), np.float32)
    check_contract("rd-open-slide", random_actions(100))
    check_contract("rd-flat-block-in-bin", np.zeros((100, 5), np.float32))


def test_seed_decides_everything():
    actions, episodes = random_actions(4), []
    used, fresh = make("rd-push-red"), make("rd-push-red", 5)
    rollout(used, random_actions(10, seed=1), seed=3)  # its past must not matter
    for env, global_seed in ((used, 0), (fresh, 1)):
        np.random.seed(global_seed)
        before = np.random.get_state()
        first = rollout(env, actions, seed=5)
        episodes.append((*first, rollout(env, actions)[0]))  # the stream goes on
        after = np.random.get_state()
        assert before[2:] == after[2:]
        np.testing.assert_array_equal(before[1], after[1])
    for a, b in zip(*episodes, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (episodes[0][0][0] != episodes[0][2][0]).any()
    assert (used.reset(seed=6)[0] != episodes[0][0][0]).any()
    np.testing.assert_array_equal(envs.make("rd-push-red", seed=5).reset()[0], episodes[0][0][0])


# ---- against the package ----


@pytest.mark.parametrize("name", TASKS)
def test_same_numbers_as_the_package(name):
    reference = package(action_repeat=10)
    reference.task = name[3:].replace("-", "_")
    for seed in (0, 11):
        obs, rewards = rollout(make(name), random_actions(6, seed), seed)
        want_obs, want_rewards = [reset_package(reference, seed)], []
        for action in random_actions(6, seed):
            step = reference.step(action)
            want_obs.append(step[0])
            want_rewards.append(step[1])
        keys = "end_effector", "qpos_objects", "qpos_robot", "qvel_objects", "qvel_robot"
        assert sorted(want_obs[0]) == ["end_effector", "image", *keys[1:]]
        # end_effector is a window into the simulator: of the package's own observations only the last one is right
        want = np.stack([np.concatenate([entry[key] for key in keys]) for entry in want_obs]).astype(np.float32)
        np.testing.assert_array_equal(obs[:, 3:], want[:, 3:])
        np.testing.assert_array_equal(obs[-1], want[-1])
        np.testing.assert_allclose(rewards, want_rewards, rtol=0, atol=1e-9)


def test_episode_is_as_long_as_the_packages():
    reference = package(action_repeat=10)
    reset_package(reference, 0)
    done = [reference.step(np.zeros(5, np.float32))[2] for _ in range(100)]
    assert done == [False] * 99 + [True]


def formula(name, physics):
    """(reward, success) of a package step."""
    q, data = (lambda joint: physics.named.data.qpos[joint][0]), physics.named.data

    def near(point):
        return min(max(1 - np.linalg.norm(data.site_xpos["end_effector"] - point), 0), 1)

    if name.startswith("rd-push"):
        color = name.rpartition("-")[2]
        s = q(f"{color}_light") < -0.00453
        reward = 0.25 * s + 0.75 * near(data.xpos[f"{color}_button"])
    elif name == "rd-open-slide":
        s = q("slide_joint") > 0.55
        handle = near(data.site_xpos["slide_handle"] - [0.15, 0, 0])
        reward = 0.9 * (0.75 * q("slide_joint") / 0.6 + 0.25 * handle) + 0.1
    elif name == "rd-open-drawer":
        s = q("drawer_joint") < -0.2
        reward = 0.75 * abs(q("drawer_joint")) / 0.3 + 0.25 * near(data.geom_xpos["drawer_handle"])
    else:
        (x, y, z) = block = data.xpos["flat_block"]
        s = 0.28 < x < 0.52 and 0.38 < y < 0.62 and 0 < z < 0.4
        reward = 0.5 * near(block) + 0.5 * s
    return min(max(reward, 0), 1), float(s)


DONE = {  # one number that makes the task done: joint -> value
    "rd-push-red": ("red_button", -0.005),
    "rd-push-green": ("green_button", -0.005),
    "rd-push-blue": ("blue_button", -0.005),
    "rd-open-slide": ("slide_joint", 0.58),
    "rd-open-drawer": ("drawer_joint", -0.25),
    "rd-flat-block-in-bin": ("flat_block", (0.4, 0.5, 0.3)),
}


@pytest.mark.parametrize("name", TASKS)
def test_reward_and_success_follow_the_formulas(name):
    """Random motion, then the task's end put in by hand, then its start again: success is not latched."""
    env, single = make(name), package(action_repeat=1)
    single.task = name[3:].replace("-", "_")
    env.reset(seed=2)
    reset_package(single, 2)
    joint, value = DONE[name]
    start = single.physics.named.data.qpos[joint].copy()
    hit, missed = [], []
    for t, action in enumerate(random_actions(12, seed=3)):
        if t in (5, 9):
            for physics in (env._env.physics, single.physics):
                physics.named.data.qpos[joint][: np.size(value)] = value if t == 5 else start[: np.size(value)]
                if name.startswith("rd-push"):  # held down, or let go
                    physics.named.data.qfrc_applied[joint] = -40 if t == 5 else 0
                physics.forward()
        obs, reward, _, _, info = env.step(action)
        rewards = []
        for _ in range(10):
            single.step(action)
            want, success = formula(name, single.physics)
            rewards.append(want)
        np.testing.assert_array_equal(env._env.physics.data.qpos, single.physics.data.qpos)
        assert reward == pytest.approx(sum(rewards), abs=1e-9)
        assert info == {"score": success, "success": success}
        (hit if 5 <= t < 9 else missed).append(success)
    assert any(hit) and not all(missed)
    if name != "rd-flat-block-in-bin":  # the block falls on
        assert not missed[-1]


def test_observation_holds_no_object_position():
    env = make("rd-open-drawer")
    obs = env.reset(seed=4)[0]
    for action in random_actions(3):
        obs = env.step(action)[0]
    data = env._env.physics.data
    site = env._env.physics.named.data.site_xpos["end_effector"]
    want = [*site, *data.qvel[9:35], *data.qpos[:9], *data.qvel[9:35], *data.qvel[:9]]
    np.testing.assert_array_equal(obs, np.array(want, np.float32))
    assert env._env.physics.model.ptr.joint("drawer_joint").qposadr == 9  # positions from 9 on are not in it


def test_actions_move_the_hand_the_wrist_and_the_gripper():
    env = make("rd-push-green")
    for axis, index in (("x", 0), ("y", 1), ("z", 2)):
        obs = env.reset(seed=0)[0]
        action = np.zeros(5, np.float32)
        action[index] = 1
        moved = env.step(action)[0][:3] - obs[:3]
        assert np.argmax(np.abs(moved)) == index and moved[index] > 0.01, axis
    obs = env.reset(seed=0)[0]
    for _ in range(3):
        turned = env.step(np.array([0, 0, 0, 1, 1], np.float32))[0]
    assert turned[35] - obs[35] > 0.3 and turned[36:38] == pytest.approx([0.04, 0.04], abs=5e-3)
    for _ in range(3):
        closed = env.step(np.array([0, 0, 0, 0, -1], np.float32))[0]
    assert closed[36:38] == pytest.approx([0, 0], abs=5e-3)


def test_starts_cover_their_range():
    env = make("rd-push-blue")
    starts = []
    for seed in range(25):
        env.reset(seed=seed)
        data = env._env.physics.named.data.qpos
        starts.append([data["drawer_joint"][0], data["slide_joint"][0], *data["flat_block"][:2], data["ball"][0]])
    starts = np.array(starts)
    low, high = np.array([-0.1, 0, 0.15, 0.63, -0.4]), np.array([0, 0.2, 0.45, 0.70, 0.08])
    spread = np.ptp(starts, axis=0)
    assert (spread > 0.6 * (high - low)).all() and (spread[:4] < 1.5 * (high - low)[:4]).all()
    assert (starts[:, :2] >= low[:2] - 0.02).all() and (starts[:, :2] <= high[:2] + 0.02).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, mean, sd", zip(TASKS, (357, 473, 530, 318, 246, 319), (122, 104, 51, 73, 68, 46), strict=True)
)
def test_mean_return_of_doing_nothing(name, mean, sd):
    returns = [rollout(make(name), np.zeros((100, 5), np.float32), seed)[1].sum() for seed in range(8)]
    assert np.mean(returns) == pytest.approx(mean, abs=1.2 * sd)  # sd over episodes: more than 3 errors of the mean


# ---- state ----


def press(env, steps):
    """Actions that bring the hand down on the red button, with noise; plays them."""
    actions = []
    for noise in np.random.default_rng(0).normal(0, 0.2, (steps, 5)):
        data = env._env.physics.named.data
        way = data.xpos["red_button"] + [0, 0, 0.02] - data.site_xpos["end_effector"]
        action = np.append(way / 0.05, [0.0, -1.0]) + noise
        actions.append(action.clip(-1, 1).astype(np.float32))
        env.step(actions[-1])
    return actions


@pytest.mark.parametrize("name", ["rd-push-red", "rd-open-slide"])
def test_state_is_restored_exactly(name):
    env, busy, unused = make(name), make(name, 5), envs.make(name, seed=2)
    env.reset(seed=1)
    press(env, 12)
    assert env._env.physics.data.ncon > 0
    state = env.get_state()
    kept = state["physics"].copy()

    def go_on(env):
        rows = [np.append((s := env.step(action))[0], [s[1], s[4]["score"]]) for action in actions]
        return np.stack([*rows, np.append(env.reset()[0], [0, 0]), np.append(env.step(actions[0])[0], [0, 0])])

    actions = press(env, 12)
    np.testing.assert_array_equal(state["physics"], kept)
    env.reset(seed=1)
    press(env, 12)
    want = go_on(env)  # of an environment that was never set
    rollout(busy, random_actions(6), seed=9)
    for other in (unused, busy, env, busy):
        other.set_state(state)
        np.testing.assert_array_equal(go_on(other), want)


def test_state_remembers_the_length_of_the_episode():
    env, other = make("rd-push-red"), make("rd-push-red", 5)
    env.reset(seed=1)
    env._steps = 99
    other.reset(seed=2)
    other.set_state(env.get_state())
    assert other.step(np.zeros(5, np.float32))[3] is True
    with pytest.raises(gym.error.ResetNeeded):
        other.step(np.zeros(5, np.float32))


# ---- frames, packages ----


@needs_gl
def test_frame_shows_the_scene_and_changes_nothing():
    plain, drawn = make("rd-push-red"), make("rd-push-red", 5)
    a, b, frames = plain.reset(seed=1)[0], drawn.reset(seed=1)[0], []
    for action in random_actions(3):
        frames.append(drawn.render())
        np.testing.assert_array_equal(a, b)
        a, b = plain.step(action)[0], drawn.step(action)[0]
    np.testing.assert_array_equal(a, b)
    for frame in frames:
        assert frame.shape == (224, 224, 3) and frame.dtype == np.uint8 and frame.std() > 10
    assert (frames[0] != frames[-1]).any()
    drawn.close()
    drawn.close()


@needs_gl
def test_frame_is_that_of_the_packages_camera():
    code = """
import os, sys, gymnasium
sys.modules["gym"] = gymnasium
import robodesk
from dm_control import mujoco
import envs
env = envs.make("rd-push-red")
env.reset(seed=1)
camera = mujoco.Camera(env._env.physics, height=224, width=224, camera_id=-1)
view = camera._render_camera
view.distance, view.azimuth, view.elevation, view.lookat[:] = 1.4, 90, -60, [0, 0.535, 1.1]
frame, want = env.render(), camera.render()
print((abs(frame.astype(int) - want) <= 2).mean() > 0.99, flush=True)
os._exit(0)  # dm_control's renderer complains at exit about a display that is closed
"""
    assert run_python(code, MUJOCO_GL=choose_backend()) == "True"


def test_needs_neither_gym_nor_gl():
    code = """
import sys, os
sys.modules["gym"] = None  # as if it weren't installed
import envs
env = envs.make("rd-push-red")
env.reset()
env.step(env.action_space.sample())
print(sys.modules["gym"], "OpenGL" in sys.modules, os.environ.get("MUJOCO_GL"))
"""
    assert run_python(code) == "None False None"


def test_a_hand_out_of_reach_says_nothing():
    """Inverse kinematics that do not converge are ordinary here, and not for a newcomer's screen."""
    code = (
        "import envs; env = envs.make('rd-push-red'); env.reset(seed=0); a = env.action_space.high.copy(); "
        "[env.step(a) for _ in range(20)]"
    )
    run_python(code)


def test_missing_package_is_named():
    code = """
import sys
sys.modules["robodesk"] = None
import envs
try:
    envs.make("rd-push-red")
except ImportError as error:
    print(error, "gym" in sys.modules)
"""
    assert run_python(code).startswith("task 'rd-push-red' needs `pip install robodesk`")
    assert run_python(code).endswith("False")
