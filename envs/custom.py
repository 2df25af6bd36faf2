"""Your own tasks beside the benchmark's: `gym:<id>` and `module:function`.

    gym:Pendulum-v1       any registered Gymnasium environment with Box actions; observations are flattened
    my_robot:make_reach   make_reach(render_mode=...) -> gymnasium.Env, from a module that Python can import

The environment is adapted to the contract at the top of envs/__init__.py: actions are rescaled to [-1, 1], an episode
lasts `max_episode_steps` of the environment's spec (or its attribute `episode_length`), and one that terminates earlier
stands still, paying nothing, until then: the agent's world model knows no ends. What success means is the
environment's to say, as `is_success` or `success` in info; score is that success, or 0.
Test: pytest tests/test_envs.py -k custom
"""

import importlib

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding


def open_env(name: str, render_mode: str | None) -> gym.Env:
    """The environment behind a name, flattened and rescaled. ValueError, one line, if it cannot be a task."""
    kind, _, rest = name.partition(":")
    try:
        if kind == "gym":
            env = gym.make(rest, render_mode=render_mode, disable_env_checker=True)
        else:
            env = getattr(importlib.import_module(kind), rest)(render_mode=render_mode)
    except (gym.error.Error, ModuleNotFoundError, AttributeError, TypeError) as error:
        raise ValueError(f"task {name!r} cannot be made: {error}") from error
    if not isinstance(env.action_space, gym.spaces.Box) or len(env.action_space.shape) != 1:
        raise ValueError(f"task {name!r} has the action space {env.action_space}; a task needs a Box of one dimension")
    if not (np.isfinite(env.action_space.low).all() and np.isfinite(env.action_space.high).all()):
        raise ValueError(f"task {name!r} has actions without bounds, {env.action_space}; they cannot be scaled")
    if not env.observation_space.is_np_flattenable:
        raise ValueError(f"task {name!r} has observations that cannot be made one vector: {env.observation_space}")
    return gym.wrappers.RescaleAction(gym.wrappers.FlattenObservation(env), np.float32(-1), np.float32(1))


def episode_length(name: str, env: gym.Env) -> int:
    """Steps of an episode. ValueError if the environment does not say."""
    spec = env.spec
    length = (spec and spec.max_episode_steps) or getattr(env.unwrapped, "episode_length", None)
    if not length:
        raise ValueError(f"task {name!r} has no episode length: register it with max_episode_steps, or give the "
                         "environment an attribute episode_length")  # fmt: skip
    return int(length)


def describe(name: str) -> dict:
    """The fields of a row of the task table, found by making the environment once."""
    env = open_env(name, None)
    length = episode_length(name, env)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    env.close()
    horizon = length / 5  # the benchmark's rule for the discount
    return {
        "name": name, "split": "own", "domain": "own", "obs_dim": obs_dim, "action_dim": action_dim,
        "episode_length": length, "action_repeat": 1, "discount": min(max((horizon - 1) / horizon, 0.95), 0.995),
        "discount_explicit": False, "score_formula": "success", "success_defined": True, "needs_download": False,
        "is_new_in_mmbench": False, "implemented_in_reference": True,
        "instruction": name.partition(":")[2].replace("-", " ").replace("_", " "), "embodiment": "A simulated system",
    }  # fmt: skip


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: the row of `describe`; the rest as in envs.make."""
    return Custom(task, seed, render_mode)


class Custom(gym.Env):
    """One environment of yours, with episodes of one length."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, task, seed: int, render_mode: str | None):
        self._env = open_env(task.name, render_mode)
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode, self._length, self._steps = render_mode, task.episode_length, task.episode_length
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        # The inner environment gets a seed at every reset, so that its whole future follows from ours.
        obs, info = self._env.reset(seed=int(self.np_random.integers(2**31)))
        self._steps, self._ended = 0, False
        self._obs, self._success = np.asarray(obs, np.float32), self._read(info)
        return self._obs, {"score": self._success, "success": self._success}

    @staticmethod
    def _read(info: dict) -> float:
        return float(bool(info.get("is_success", info.get("success", False))))

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        reward = 0.0
        if not self._ended:
            obs, reward, terminated, truncated, info = self._env.step(action)
            self._obs, self._success = np.asarray(obs, np.float32), self._read(info)
            self._ended = terminated or truncated
        self._steps += 1
        info = {"score": self._success, "success": self._success}
        return self._obs, float(reward), False, self._steps == self._length, info

    def render(self) -> np.ndarray:
        frame = self._env.render()
        if frame is None:
            raise RuntimeError("no frames: make the environment with render_mode='rgb_array'")
        rows, columns = (np.linspace(0, side - 1, 224).astype(int) for side in frame.shape[:2])
        return np.ascontiguousarray(frame[rows][:, columns], np.uint8)

    def close(self):
        self._env.close()
