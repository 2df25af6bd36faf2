"""MuJoCo suite: 6 tasks, Gymnasium's own v4 environments without their early ends.

    control            action * high, unclipped: 3 for the pendulum, 1 elsewhere; `repeat` times (tasks.csv)
    hopper, walker     r = max(0, r) while healthy, else -1        per simulator step; fallen costs for the rest
    inverted pendulum  r = 0 once it tipped over (0.2 rad), until the episode ends, though it may swing back
    score              (return so far - LOW) / (HIGH - LOW), clipped to 0..1     see MODELS; success is always 0

Source: Gymnasium (arXiv 2407.17032), package 1.4.0; repeat, rewards, score and cameras as in Newt's benchmark.
Differs from upstream: seeds go through reset(seed=); frames are drawn at 224 pixels, not shrunk from 480; the view of
the two models without a camera (pendulum, reacher) is that of their rest position, not of the first frame drawn.
NOTE: v5 is not the same: its ant sees contact forces, its walker has another foot, its reacher is paid after the step.
Test: pytest tests/test_mujoco.py
"""

import importlib

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs.camera import Camera

KEEP_ON = {"terminate_when_unhealthy": False}
MODELS = {  # task -> module, class, its arguments, LOW and HIGH: the returns of score 0 and 1
    "ant": ("ant_v4", "AntEnv", KEEP_ON, 0, 5000),
    "halfcheetah": ("half_cheetah_v4", "HalfCheetahEnv", {}, 0, 15000),
    "hopper": ("hopper_v4", "HopperEnv", KEEP_ON, 0, 5000),
    "inverted-pendulum": ("inverted_pendulum_v4", "InvertedPendulumEnv", {}, 0, 1000),
    "reacher": ("reacher_v4", "ReacherEnv", {}, -50, 0),
    "walker": ("walker2d_v4", "Walker2dEnv", KEEP_ON, 0, 5000),
}


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. Raises ImportError without mujoco."""
    return MuJoCo(task, seed, render_mode)


class MuJoCo(gym.Env):
    """One task. What the wrapper adds to Gymnasium is in the header, what it promises in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # of videos; agent steps last 0.016 to 0.1 s

    def __init__(self, task, seed: int, render_mode: str | None):
        import mujoco  # before Gymnasium asks for it: its own error doesn't count as a missing module

        self._mujoco, self._name = mujoco, task.name.removeprefix("mujoco-")
        module, cls, arguments, self._low, self._high = MODELS[self._name]
        # The class and not gym.make: its wrappers would complain about v4 and about steps after the inner end.
        self._env = getattr(importlib.import_module(f"gymnasium.envs.mujoco.{module}"), cls)(**arguments)
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode = render_mode
        self._camera = None
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._steps, self._return, self._tipped = self._length, 0.0, False  # as after an episode: reset comes first
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self._env.np_random = self.np_random
        self._steps, self._return, self._tipped = 0, 0.0, False
        return self._env.reset()[0].astype(np.float32), self._info()

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float32)  # stays float32: the control cost is computed in it
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        obs, total = self._advance(action)
        self._steps += 1
        self._return += total
        return obs.astype(np.float32), total, False, self._steps == self._length, self._info()

    def _advance(self, action) -> tuple[np.ndarray, float]:
        total = 0.0
        for _ in range(self._repeat):
            obs, reward, terminated, _, _ = self._env.step(action * self._env.action_space.high)
            if self._name in ("hopper", "walker"):
                reward = max(0.0, reward) if self._env.is_healthy else -1.0
            elif self._name == "inverted-pendulum":
                self._tipped |= terminated
                reward = 0.0 if self._tipped else reward
            total += float(reward)
        return obs, total

    def _info(self) -> dict:
        score = (self._return - self._low) / (self._high - self._low)
        return {"score": min(max(score, 0.0), 1.0), "success": 0.0}

    def get_state(self) -> dict:
        """Everything the future depends on, as copies."""
        model, data, kind = self._env.model, self._env.data, self._mujoco.mjtState.mjSTATE_INTEGRATION
        physics = np.empty(self._mujoco.mj_stateSize(model, kind))
        self._mujoco.mj_getState(model, data, physics, kind)
        # Body positions lag behind the joints by one simulator step, and ant and reacher are paid by them.
        return {"physics": physics, "xpos": data.xpos.copy(), "steps": self._steps, "return": self._return,
                "tipped": self._tipped, "rng": self.np_random.bit_generator.state}  # fmt: skip

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task."""
        model, data = self._env.model, self._env.data
        self._mujoco.mj_setState(model, data, state["physics"], self._mujoco.mjtState.mjSTATE_INTEGRATION)
        self._mujoco.mj_fwdPosition(model, data)  # for a frame before the next step
        data.xpos[:] = state["xpos"]
        self._steps, self._return, self._tipped = state["steps"], state["return"], state["tipped"]
        self.np_random.bit_generator.state = state["rng"]

    def render(self) -> np.ndarray:
        if self._camera is None:
            model, mujoco = self._env.model, self._mujoco
            self._camera = Camera(model, model.camera("track").id if model.ncam else -1, self.frames)
            if not model.ncam:  # look from above at the middle of the model
                rest, view = mujoco.MjData(model), self._camera.view
                mujoco.mj_kinematics(model, rest)
                view.type, view.lookat = mujoco.mjtCamera.mjCAMERA_FREE, np.median(rest.geom_xpos, axis=0)
                view.distance = self._env.mujoco_renderer.default_cam_config.get("distance", model.stat.extent)
        return self._camera.frame(self._env.data)

    def close(self):
        if self._camera:
            self._camera.close()
            self._camera = None
