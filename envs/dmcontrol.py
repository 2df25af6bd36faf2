"""DeepMind Control Suite: 21 tasks, dm_control's own definitions unchanged, as gymnasium environments.

    ctrl   = lo + (hi - lo) / 2 * (action + 1)     per actuator; differs from the action only for the quadruped
    reward = r(first control step) + r(second)     the same action twice, observation after the second; 0..2
    score  = return so far / 1000                  an episode is 1000 control steps that pay 0..1; success is always 0

Source: dm_control (arXiv 2006.12983), package 1.0.28; action repeat, score and cameras as in Newt's benchmark.
Differs from upstream: seeds go through reset(seed=) and numpy's new generator, so equal seeds give other (equally
distributed) starts; actions are float32.
Test: pytest tests/test_envs.py -k "not mw"; pytest tests/test_dmcontrol_ext.py (get_state, set_state)
"""

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs.camera import Camera

DOMAINS = {"cup": "ball_in_cup"}  # the benchmark's word for the part before the first "-", where dm_control has another
CAMERAS = {"quadruped": 2}  # its view from the side; for every other model that is camera 0


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. Raises ImportError without dm_control."""
    from dm_control import suite

    domain, _, name = task.name.partition("-")
    env = suite.load(DOMAINS.get(domain, domain), name.replace("-", "_"))
    return DMControl(task, env, seed, render_mode, CAMERAS.get(domain, 0))


class DMControl(gym.Env):
    """One task. What the wrapper adds to dm_control is in the header, what it promises in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # of videos; agent steps last 0.02 to 0.08 s

    def __init__(self, task, env, seed: int, render_mode: str | None, camera: int = 0):
        """env: dm_control's environment (dm_control.rl.control.Environment); camera: index in its model."""
        self._env = env
        spec = env.action_spec()
        self._low, self._scale = spec.minimum, (spec.maximum - spec.minimum) / 2
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode = render_mode
        self._camera_index, self._camera = camera, None
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._steps, self._return = self._length, 0.0  # as after an episode: reset comes first
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        # dm_control draws from an old-style RandomState. This one shares the bit generator of np_random: one stream. A
        # new one each time: a RandomState keeps the second number of a pair of normals, which would survive a new seed.
        self._env.task._random = np.random.RandomState(self.np_random.bit_generator)
        self._steps, self._return = 0, 0.0
        return _flat(self._env.reset().observation), {"score": 0.0, "success": 0.0}

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float64)
        if action.shape != self._low.shape:  # numpy would let a single number drive all actuators
            raise ValueError(f"action has shape {action.shape}, this task takes {self._low.shape}")
        ctrl = self._low + self._scale * (action + 1)
        reward = 0.0
        for _ in range(self._repeat):
            time_step = self._env.step(ctrl)
            reward += float(time_step.reward)
        self._steps += 1
        self._return += reward
        info = {"score": self._return / 1000, "success": 0.0}
        return _flat(time_step.observation), reward, False, self._steps == self._length, info

    def get_state(self) -> dict:
        """Everything the future depends on, as copies: the simulator, what a reset moved in its model, the wrapper."""
        import mujoco

        model, data = self._env.physics.model, self._env.physics.data
        physics = np.empty(mujoco.mj_stateSize(model.ptr, mujoco.mjtState.mjSTATE_INTEGRATION))
        mujoco.mj_getState(model.ptr, data.ptr, physics, mujoco.mjtState.mjSTATE_INTEGRATION)
        return {"physics": physics, "geom_pos": model.geom_pos.copy(), "site_pos": model.site_pos.copy(),
                "steps": self._steps, "return": self._return, "rng": self.np_random.bit_generator.state}  # fmt: skip

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task."""
        import mujoco

        if self._steps >= self._length:  # dm_control's first reset gives the model its target sizes and damping, and
            self.reset()  # after an episode its environment would answer a step with a reset
        model, data = self._env.physics.model, self._env.physics.data
        model.geom_pos[:], model.site_pos[:] = state["geom_pos"], state["site_pos"]
        mujoco.mj_setState(model.ptr, data.ptr, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_step1(model.ptr, data.ptr)  # dm_control's steps begin with the second half, MuJoCo's mj_step2
        self._env._step_count = self._repeat * state["steps"]
        self._steps, self._return = state["steps"], state["return"]
        self.np_random.bit_generator.state = state["rng"]

    def render(self) -> np.ndarray:
        physics = self._env.physics
        self._camera = self._camera or Camera(physics.model.ptr, self._camera_index, self.frames)
        return self._camera.frame(physics.data.ptr)

    def close(self):
        if self._camera:
            self._camera.close()
            self._camera = None


def _flat(observation: dict) -> np.ndarray:
    """dm_control's entries one after the other, in its order  ->  (obs_dim,) float32."""
    return np.concatenate([np.ravel(entry) for entry in observation.values()], dtype=np.float32)
