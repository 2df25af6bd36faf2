"""Your own tasks beside the benchmark's: `gym:<id>` and `module:function`.

    gym:Pendulum-v1       any registered Gymnasium environment with Box actions; observations are flattened
    my_robot:make_reach   make_reach(render_mode=...) -> gymnasium.Env; the module is in the current folder or installed

The environment is adapted to the contract at the top of envs/__init__.py, except for its ends: an episode is over when
the environment says so, and lasts at most `max_episode_steps` of its spec (or its attribute `episode_length`). Actions
of [-1, 1] are scaled to the environment's; where those are whole numbers, to the nearest one.

What success means is the environment's to say, as `is_success` or `success` in info at an episode's last step. Score is
that success; or, if the environment has an attribute `score_range = (low, high)`, where between these the return is.
Without either, both are NaN: such a task is judged by its return.
Test: pytest tests/test_tasks.py -k custom
"""

import importlib
import os
import sys

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs.camera import import_without_gl, packages_draw


def imported(name: str):
    """The function behind `module:function`; the module is in the current folder or installed."""
    if os.getcwd() not in sys.path:  # of this program and of its workers, which start in the same folder
        sys.path.append(os.getcwd())
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def open_env(name: str, render_mode: str | None) -> gym.Env:
    """The environment behind a name, flattened. ValueError, one line, if it cannot be a task."""
    kind, _, rest = name.partition(":")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # pygame draws, but looks for a display, and complains
    with packages_draw() if render_mode else import_without_gl():
        try:
            if kind == "gym":
                env = gym.make(rest, render_mode=render_mode, disable_env_checker=True)
            else:
                env = imported(name)(render_mode=render_mode)
        except Exception as error:  # whatever a maker raises
            what = f"{type(error).__name__}: {error}"
            raise ValueError(f"task {name!r} cannot be made: {' '.join(what.split())}") from error
    if not isinstance(env, gym.Env):
        kind = env if isinstance(env, type) else type(env)
        what = f"{'the class' * (kind is env)} {kind.__module__}.{kind.__qualname__}".strip()
        raise ValueError(f"task {name!r} cannot be made: it gives {what}, not an environment of gymnasium")
    space = env.action_space
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1 or not space.shape[0]:
        raise ValueError(f"task {name!r} has the action space {space}; a task needs a Box of one dimension")
    low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
    if not (space.is_bounded() and np.isfinite(high - low).all() and (low <= high).all()):
        raise ValueError(f"task {name!r} has actions without bounds, {space}; they cannot be scaled")
    if not env.observation_space.is_np_flattenable:
        raise ValueError(f"task {name!r} has observations that cannot be made one vector: {env.observation_space}")
    return gym.wrappers.FlattenObservation(env)


def episode_length(name: str, env: gym.Env) -> int:
    """Steps that an episode lasts at most. ValueError if the environment does not say."""
    spec = env.spec
    length = (spec and spec.max_episode_steps) or getattr(env.unwrapped, "episode_length", None)
    if not length:
        raise ValueError(f"task {name!r} has no episode length: register it with max_episode_steps, or give the "
                         "environment an attribute episode_length")  # fmt: skip
    return int(length)


def score_range(name: str, env: gym.Env) -> tuple[float, float] | None:
    """Returns that score 0 and 1, or None if the environment names none. ValueError if they are no range."""
    bounds = getattr(env.unwrapped, "score_range", None)
    if bounds is None:
        return None
    try:
        low, high = map(float, bounds)
    except (TypeError, ValueError):
        low = high = np.nan
    if not -np.inf < low < high < np.inf:
        raise ValueError(f"task {name!r} has score_range {bounds!r}, not (low, high), the returns that score 0 and 1")
    return low, high


def describe(name: str) -> dict:
    """The fields of a row of the task table, found by making the environment once."""
    env = open_env(name, None)
    length, bounds = episode_length(name, env), score_range(name, env)
    obs_dim, action_dim = env.observation_space.shape[0], env.action_space.shape[0]
    env.close()
    horizon = length / 5  # the benchmark's rule for the discount
    return {
        "name": name, "split": "own", "domain": "own", "obs_dim": obs_dim, "action_dim": action_dim,
        "episode_length": length, "action_repeat": 1, "discount": min(max((horizon - 1) / horizon, 0.95), 0.995),
        "discount_explicit": False, "success_defined": True, "needs_download": False,
        "score_formula": f"clip01((R-{bounds[0]:g})/{bounds[1] - bounds[0]:g})" if bounds else "success",
        "is_new_in_mmbench": False, "implemented_in_reference": True,
        "instruction": name.partition(":")[2].replace("-", " ").replace("_", " "), "embodiment": "A simulated system",
    }  # fmt: skip


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: the row of `describe`; the rest as in envs.make."""
    return Custom(task, seed, render_mode)


class Custom(gym.Env):
    """One environment of yours, with actions in [-1, 1] and a score."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}

    def __init__(self, task, seed: int, render_mode: str | None):
        self._env = open_env(task.name, render_mode)
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode, self._length, self._steps = render_mode, task.episode_length, task.episode_length
        self._score_range = score_range(task.name, self._env)
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        # The inner environment gets a seed at every reset, so that its whole future follows from ours.
        obs, info = self._env.reset(seed=int(self.np_random.integers(2**31)))
        self._steps, self._return = 0, 0.0
        return np.asarray(obs, np.float32), self._judge(info)

    def _judge(self, info: dict) -> dict[str, float]:
        success = float(info.get("is_success", info.get("success", np.nan)))
        success = success if np.isnan(success) else float(bool(success))
        if not self._score_range:
            return {"score": success, "success": success}
        low, high = self._score_range
        return {"score": float(np.clip((self._return - low) / (high - low), 0, 1)), "success": success}

    def _scaled(self, action: np.ndarray) -> np.ndarray:
        """From [-1, 1] to the environment's own range, and its own type; one that has a single value gets that."""
        space = self._env.action_space
        low, high = (bound.astype(np.float64) for bound in (space.low, space.high))
        action = np.clip(low + (high - low) * (action.astype(np.float64) + 1) / 2, low, high)
        return (action if np.issubdtype(space.dtype, np.floating) else np.rint(action)).astype(space.dtype)

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        obs, reward, terminated, truncated, info = self._env.step(self._scaled(action))
        self._steps += 1
        self._return += float(reward)
        terminated, truncated = bool(terminated), bool(truncated) or self._steps == self._length
        if terminated or truncated:
            self._steps = self._length
        return np.asarray(obs, np.float32), float(reward), terminated, truncated, self._judge(info)

    def render(self) -> np.ndarray:
        with packages_draw():
            try:
                frame = self._env.render()
            except Exception as error:  # also MuJoCo's FatalError, which is no RuntimeError
                raise RuntimeError(f"no frames: {type(error).__name__}: {' '.join(str(error).split())}") from error
        if frame is None:
            raise RuntimeError("no frames: make the environment with render_mode='rgb_array'")
        rows, columns = (np.linspace(0, side - 1, 224).astype(int) for side in frame.shape[:2])
        return np.ascontiguousarray(frame[rows][:, columns], np.uint8)

    def close(self):
        self._env.close()
