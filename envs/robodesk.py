"""RoboDesk: 6 tasks of one robot arm at a desk, the package's own definitions, as gymnasium environments.

    obs     = [hand position 3, object velocities 26, arm joints 9, object velocities 26, arm velocities 9]
    action  = [hand x, y, z, wrist: shifts by 0.01 m and 0.059 rad; gripper: -1 is closed, 1 open]    per package step
    reward  = sum over 10 package steps, the same action in each, of the package's dense reward; 0..10
    score   = success = the package's success test at the end of the step             not latched: it can be lost again

Source: RoboDesk (Kannan et al. 2021), package robodesk 1.0.0; action repeat, length and camera as in Newt's benchmark.
Differs from upstream: resets draw from `np_random`, where the package draws from numpy's global generator; no images.
NOTE: the package returns velocities under the name qpos_objects, so obs doesn't say where a block, a button, the drawer
or the slide is; and its "did not move" part of the slide's reward is always paid. Both are kept: so it is published.
Test: pytest tests/test_robodesk.py
"""

import logging
import sys

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs.camera import Camera

OBS = ("end_effector", "qpos_objects", "qpos_robot", "qvel_objects", "qvel_robot")  # of the package's dict, in order


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. Raises ImportError without robodesk."""
    return RoboDesk(task, _import_package(), seed, render_mode)


def _import_package():
    """robodesk's class. All that it uses of `gym`, which is unmaintained, gymnasium has too: it gets that instead."""
    before = {name: module for name, module in sys.modules.items() if name == "gym"}
    sys.modules["gym"] = gym
    try:
        from robodesk import RoboDesk as Package
    finally:
        del sys.modules["gym"]
        sys.modules.update(before)  # others may want the real one
    # Wherever the hand is sent out of its reach, and that is at most steps of a poor policy, dm_control's inverse
    # kinematics say so: thousands of lines amid the bars. After the import: absl makes a logger of its own kind.
    logging.getLogger("absl").setLevel(logging.ERROR)
    return Package


class RoboDesk(gym.Env):
    """One task. What the wrapper adds to the package is in the header, what it promises in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}  # an agent step is 0.2 s

    def __init__(self, task, package, seed: int, render_mode: str | None):
        name = task.name.removeprefix("rd-").replace("-", "_")
        self._env = package(name, reward="dense", action_repeat=task.action_repeat, episode_length=None)
        # Each of its observations has an image, which costs 50 times the step and fails with today's Pillow.
        self._env.render = lambda resize: None
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode, self._camera = render_mode, None
        self._length = task.episode_length
        self._steps = self._length  # as after an episode: reset comes first
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        before = np.random.get_state()
        np.random.seed(self.np_random.integers(2**32, dtype=np.uint32))  # the package reads the global generator
        try:
            self._env.reset()
        finally:
            np.random.set_state(before)
        obs = self._env.step(np.zeros(5, np.float32))[0]  # the published first observation comes after a step at rest
        self._steps = 0
        return _flat(obs), self._info()

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        obs, reward, _, _ = self._env.step(action)
        self._steps += 1
        return _flat(obs), float(reward), False, self._steps == self._length, self._info()

    def _info(self) -> dict:
        success = float(bool(self._env._get_task_reward(self._env.task, "success")))
        return {"score": success, "success": success}

    def get_state(self) -> dict:
        """Everything the future depends on, as copies. The package's own memory is no part of it: nothing reads it."""
        import mujoco

        model, data = self._env.physics.model, self._env.physics.data
        physics = np.empty(mujoco.mj_stateSize(model.ptr, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model.ptr, data.ptr, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {"physics": physics, "steps": self._steps, "rng": self.np_random.bit_generator.state}

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task."""
        import mujoco

        if not self._env.original_pos:  # the first reset opens the package's windows to the blocks' positions
            self.reset()
        model, data = self._env.physics.model, self._env.physics.data
        mujoco.mj_setState(model.ptr, data.ptr, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_step1(model.ptr, data.ptr)  # dm_control's steps begin with the second half, MuJoCo's mj_step2
        self._env.physics_copy.data.qpos[:] = data.qpos  # where the inverse kinematics starts
        self._steps = state["steps"]
        self.np_random.bit_generator.state = state["rng"]

    def render(self) -> np.ndarray:
        import mujoco

        if self._camera is None:
            view = mujoco.MjvCamera()  # none of the model's cameras, and closer than the package's own
            view.distance, view.azimuth, view.elevation, view.lookat = 1.4, 90, -60, (0, 0.535, 1.1)
            self._camera = Camera(self._env.physics.model.ptr, view, self.frames)
        return self._camera.frame(self._env.physics.data.ptr)

    def close(self):
        if self._camera:
            self._camera.close()
            self._camera = None


def _flat(observation: dict) -> np.ndarray:
    """The package's entries one after the other, without the image  ->  (73,) float32."""
    return np.concatenate([observation[key] for key in OBS], dtype=np.float32)


# ---- scripted players ----


def player(env, obs, number):
    """The buttons, the slide, the block: yields actions; they read positions that obs lacks, and may exceed [-1, 1].

    The drawer is missing: gripped and pulled, the handle gets to y = 0.41, where joint 4 ends; success needs 0.29.
    """
    data, (job, _, what) = env._env.physics.named.data, env.name.removeprefix("rd-").partition("-")
    hand = data.site_xpos["end_effector"]  # like all positions here a view: it moves on with the simulation

    def to(target, point=hand):
        """The action that brings a point of the closed hand to the target, at full speed from 0.08 m on."""
        return np.array([*(12 * (np.asarray(target) - point)), 0, -1])

    if job == "push":
        return _push(data, to, f"{what}_button", f"{what}_light")
    return _open_slide(data, to, hand) if job == "open" else _sweep_into_bin(data, to, hand)


def _push(data, to, button: str, light: str):
    """The finger tip down on the button. Once it is lit, more would tilt the hand until it slips off."""
    top = data.xpos[button] + (0, 0, 0.03)
    while True:
        pointing = data.site_xmat["end_effector"][[2, 5, 8]]
        tip = data.site_xpos["end_effector"] + 0.045 * pointing
        above = np.hypot(*(tip - top)[:2]) < 0.03
        lit = data.qpos[light][0] < -0.0047
        yield np.array([0, 0, -0.05, 0, -1]) if lit else to(top + (0, 0, -0.06 if above else 0.05), tip)


def _open_slide(data, to, hand):
    """Past the front of the handle to its left side, then right."""
    handle = data.site_xpos["slide_handle"]
    while hand[0] > handle[0] - 0.04 or hand[1] < handle[1] - 0.04:
        yield to(handle + (-0.05, 0 if hand[0] < handle[0] - 0.03 else -0.08, 0))
    while True:
        yield to(handle + (0.15, 0, 0))


def _sweep_into_bin(data, to, hand):
    """Push the block right until it is in front of the bin, then drag it from behind over the edge of the desk."""
    block, middle = data.xpos["flat_block"], 0.4  # x of the bin's middle

    def far(x: float, y: float) -> float:
        return np.hypot(*(hand - block - (x, y, 0))[:2])

    if block[0] < middle - 0.05:
        while far(-0.14, -0.03) > 0.05:
            yield to(block + (-0.14, -0.03, 0.1))
        while block[0] < middle - 0.01:
            yield to(block + (0 if hand[2] < block[2] + 0.05 else -0.12, -0.03, 0.02))
        while hand[2] < block[2] + 0.09:
            yield to((hand[0] - 0.05, hand[1], block[2] + 0.13))
    while far(0, 0.085) > 0.03:
        yield to(block + (0, 0.085, 0.12))
    for _ in range(8):  # the hand may come to lie on something before it is as low as this
        yield to(block + (0, 0.075, 0))
    while block[2] > 0.7:
        yield to((block[0] + 2 * (middle - block[0]), block[1] - 0.1, 0.775))
    while True:
        yield to((middle, 0.5, 0.6))
