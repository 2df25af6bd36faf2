"""Demonstration files: one per task, read, checked, and written so that kill -9 can't damage them.

File <task>.safetensors: obs (N, O), action (N, A), reward (N,), episode_start (E+1,), and per episode return, success,
score, seed; JSON under "newt_demos" in the header. Row t of an episode is obs_t and the action and reward that led to
it; the first row's action and reward are NaN. Where episodes may be over before their time, "terminated" in the JSON is
a list of which are. Replaying the actions after reset(seed=) gives the same observations.

Your own, of any task (`gym:...` and `module:function`, too), from obs (T+1, O), action (T, A) in [-1, 1], reward (T,):

    import demo_format
    from pathlib import Path
    episodes = [demo_format.from_arrays("gym:Pendulum-v1", obs, action, reward) for obs, action, reward in mine]
    demo = demo_format.join(episodes, episodes[0].meta)
    demo_format.save(demo_format.place(Path("demos"), "gym:Pendulum-v1"), demo)

and `train.py --tasks gym:Pendulum-v1 --demos demos/` learns from them.
Test: pytest tests/test_demos.py
"""

import json
import os
import uuid
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
from safetensors.numpy import save_file

import envs

FORMAT_VERSION = 1


class Demos(NamedTuple):
    """Demonstrations of one task, numpy arrays: N rows, E episodes."""

    obs: np.ndarray  # (N, O) float32
    action: np.ndarray  # (N, A) float32 in [-1, 1]; NaN in each episode's first row
    reward: np.ndarray  # (N,) float32, likewise
    episode_start: np.ndarray  # (E+1,) int64, first row of each episode, and N
    ret: np.ndarray  # (E,) float32
    success: np.ndarray  # (E,) float32, at the last step
    score: np.ndarray  # (E,) float32, at the last step
    seed: np.ndarray  # (E,) int64, for env.reset
    meta: dict
    feature: np.ndarray | None = None  # (N, F) float16, of each row's frame (demo_features.py)

    @property
    def terminated(self) -> list[bool]:
        """Of each episode: its last step was the end of everything, not only of the time for it."""
        return self.meta.get("terminated", [False] * len(self.ret))


def place(folder: Path, task: str) -> Path:
    """Where a task's demonstrations are in a folder."""
    return folder / f"{envs.file_name(task)}.safetensors"


def from_arrays(task: str, obs, action, reward, terminated: bool = False) -> Demos:
    """An episode of your own: obs (T+1, O), action (T, A) in [-1, 1], reward (T,); terminated: nothing comes after it.

    ValueError, one line, if these don't fit each other or the task.
    """
    obs, action, reward = (np.asarray(x, np.float32) for x in (obs, action, reward))
    if obs.ndim != 2 or action.ndim != 2 or reward.ndim != 1 or not len(obs) - 1 == len(action) == len(reward) > 0:
        shapes = f"{obs.shape}, {action.shape} and {reward.shape}"
        raise ValueError(f"{task}: obs (T+1, O), action (T, A) and reward (T,) are wanted, not {shapes}")
    action = np.pad(action, ((1, 0), (0, 0)), constant_values=np.nan)
    reward = np.pad(reward, (1, 0), constant_values=np.nan)
    unknown, meta = np.array([np.nan], np.float32), {"version": FORMAT_VERSION, "task": task, "source": "arrays"}
    meta |= {"terminated": [True]} if terminated else {}
    start, ret, no_seed = np.array([0, len(obs)]), np.nansum(reward)[None], np.array([-1])
    return check(Demos(obs, action, reward, start, ret, unknown, unknown, no_seed, meta), Path("these arrays"), task)


def save(path: Path, demo: Demos) -> None:
    """Write a file as `write` does."""
    arrays = {"obs": demo.obs, "action": demo.action, "reward": demo.reward, "return": demo.ret, "score": demo.score,
              "success": demo.success, "seed": demo.seed.astype(np.int64),
              "episode_start": demo.episode_start.astype(np.int64)}  # fmt: skip
    write(path, arrays, {"newt_demos": json.dumps(demo.meta)})


def write(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """safetensors; whatever happens and whoever else writes it, at `path` is the old file or a whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777  # as umask says; save_file's would be its owner's alone
        save_file(arrays, temporary, metadata)
        os.chmod(temporary, mode)
        with open(temporary, "r+b") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only if one of these failed


def join(parts: list[Demos], meta: dict) -> Demos:
    """Episodes one behind the other; meta is that of the whole, but for "terminated"."""
    ends = [end for part in parts for end in part.terminated]
    meta = {**meta, "terminated": ends} if any(ends) else {k: v for k, v in meta.items() if k != "terminated"}
    lengths = [len(part.obs) for part in parts]
    names = ("obs", "action", "reward", "ret", "success", "score", "seed")
    names += ("feature",) * (parts[0].feature is not None)
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Demos(**arrays, episode_start=np.cumsum([0, *lengths]), meta=meta)


def episode(demo: Demos, e: int) -> Demos:
    """One episode alone; its meta is that of the whole, but for "terminated"."""
    rows = slice(int(demo.episode_start[e]), int(demo.episode_start[e + 1]))
    ends = (getattr(demo, name)[e : e + 1] for name in ("ret", "success", "score", "seed"))
    start = np.array([0, rows.stop - rows.start])
    meta = demo.meta | ({"terminated": [demo.terminated[e]]} if "terminated" in demo.meta else {})
    feature = None if demo.feature is None else demo.feature[rows]
    return Demos(demo.obs[rows], demo.action[rows], demo.reward[rows], start, *ends, meta, feature)


def check(demo: Demos, path: Path, task: str) -> Demos:
    """The same, if it fits the task. ValueError, one line that names the file: wrong shapes, NaN elsewhere, actions
    beyond [-1, 1]."""
    row, n, start = envs.TASKS.get(task), len(demo.obs), demo.episode_start
    # An own task that nobody has named in this program is not made (that runs code) to ask for its sizes.
    sizes = (row.obs_dim, row.action_dim) if row else (demo.obs.shape[1], demo.action.shape[1])
    shapes = {"obs": (n, sizes[0]), "action": (n, sizes[1]), "reward": (n,)}
    shapes |= dict.fromkeys(("ret", "success", "score", "seed"), (len(start) - 1,))
    wrong = [name for name, shape in shapes.items() if getattr(demo, name).shape != shape]
    # No negative ones: with them the differences could wrap around.
    if wrong or len(start) < 2 or start[0] != 0 or start[-1] != n or start.min() < 0 or (np.diff(start) < 2).any():
        raise ValueError(f"{path}: shapes do not fit {task} or each other ({', '.join(wrong) or 'episode_start'})")
    if not isinstance(demo.terminated, list) or [type(x) for x in demo.terminated] != [bool] * (len(start) - 1):
        raise ValueError(f"{path}: \"terminated\" must be a list of true and false, one for each of its episodes")
    first = np.zeros(n, bool)
    first[start[:-1]] = True
    numbers = np.concatenate([demo.action, demo.reward[:, None]], 1)
    sound = np.isnan(numbers[first]).all() and np.isfinite(numbers[~first]).all()
    if not (sound and np.isfinite(demo.obs).all() and np.isfinite(demo.ret).all()):
        raise ValueError(f"{path}: {task}: numbers that are not finite, or a first row that has an action")
    if (np.abs(demo.action[~first]) > 1).any():
        raise ValueError(f"{path}: {task}: actions beyond [-1, 1]")
    return demo


def load(path: Path, task: str) -> Demos:
    """Read and check one task's file.

    Raises FileNotFoundError or ValueError, one line that names the file: missing, truncated, foreign, of another task,
    wrong shapes, or NaN anywhere but in the first rows.
    """
    path = Path(path)
    if task not in envs.TASKS and ":" not in task:
        raise ValueError(f"unknown task {task!r} for {path}; all names are in envs/tasks.csv")
    if not path.is_file():
        raise FileNotFoundError(f"no demonstrations of {task} at {path}; make them with `python demos.py make`")
    try:
        with safetensors.safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("newt_demos", "null")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error!s:.200})") from error
    try:
        meta = json.loads(text)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} holds no demonstrations (no readable 'newt_demos' in its header)")
    if (meta.get("version"), meta.get("task")) != (FORMAT_VERSION, task):
        found = " ".join(f"format {meta.get('version')!s:.40} of {meta.get('task')!s:.60}".split())
        raise ValueError(f"{path} is {found}, expected is format {FORMAT_VERSION} of {task}")
    names = ("obs", "action", "reward", "episode_start", "return", "success", "score", "seed")
    if set(names) != set(arrays):
        raise ValueError(f"{path} lacks or has other arrays than {', '.join(names)}")
    dtypes = {name: arrays[name].dtype == ("i8" if name in ("episode_start", "seed") else "f4") for name in names}
    flat = all(arrays[name].ndim == (2 if name in ("obs", "action") else 1) for name in names)
    if not (flat and all(dtypes.values())):
        raise ValueError(f"{path}: arrays of another shape or type than the format's")
    if not isinstance(meta.get("source"), str):
        raise ValueError(f"{path} doesn't say its source in its header")
    for name in ("numbers", "cpu_seconds"):  # of the attempts, in files that were made here (experts.py)
        values = meta.get(name, [0] * len(arrays["return"]))
        if type(values) is not list or len(values) != len(arrays["return"]) or {*map(type, values)} - {int, float}:
            raise ValueError(f"{path}: {name} in its header is no list of a number per episode")
    return check(Demos(*(arrays[name] for name in names), meta), path, task)
