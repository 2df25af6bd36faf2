"""Recordings: demonstrations as seeds and actions, one small file per suite in recordings/, part of the project.

A simulator that is given the same seed and the same actions gives the same episode, so nothing else needs to be kept:
all 200 tasks fit into a few megabytes where their observations take hundreds. experts.py plays them again; what the
simulator really gives there is what an agent learns from.

File <suite>.safetensors, and in it for each task

    <task>/seed (E,) int64, <task>/length (E,) int64, <task>/return (E,) float32
    <task>/action (N, A) float32 in [-1, 1], all episodes one behind the other; or, where at most 256 actions differ (a
    joystick), <task>/choice (N,) uint8 and <task>/action (P, A), the actions to choose from

JSON under "newt_recordings" in the header: format version, suite, and per task where it comes from: source, settings,
seed, package versions, attempts' numbers and cost. The same demonstrations give the same bytes.
Test: pytest tests/test_recordings.py
"""

import functools
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors

import demo_format
import envs

FORMAT_VERSION = 1
FOLDER = Path(__file__).parent / "recordings"
ORIGIN = ("source", "settings", "seed", "packages", "numbers", "tried", "tried_cpu_seconds")  # kept of a file's JSON
NUMBERS = ("seed", "length", "return", "action")


class Recording(NamedTuple):
    """Recorded episodes of one task: E episodes, N steps in all."""

    seed: np.ndarray  # (E,) int64, for env.reset
    length: np.ndarray  # (E,) int64, steps of each
    ret: np.ndarray  # (E,) float32
    action: np.ndarray  # (N, A) float32 in [-1, 1]
    meta: dict  # ORIGIN

    def actions(self, e: int) -> np.ndarray:
        """(T, A) of episode e."""
        end = int(self.length[: e + 1].sum())
        return self.action[end - int(self.length[e]) : end]


def of(task: str) -> Recording | None:
    """The recorded episodes of a task, or None. Raises ValueError as `load` does."""
    row = envs.TASKS[task]
    path = FOLDER / f"{row.domain}.safetensors"
    return load(path).get(task) if path.is_file() else None


@functools.cache
def load(path: Path) -> dict[str, Recording]:
    """Read and check one suite's file -> task: its recording.

    Raises ValueError, one line that names the file: truncated, foreign, of tasks that the suite lacks, wrong shapes or
    types, numbers that are not finite, actions beyond [-1, 1], episodes of another length than the task's.
    """
    suite = path.stem
    try:
        with safetensors.safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("newt_recordings", "null")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error}); fetch it again") from error
    try:
        meta = json.loads(text)
    except json.JSONDecodeError:
        meta = None
    if not isinstance(meta, dict) or (meta.get("version"), meta.get("suite")) != (FORMAT_VERSION, suite):
        raise ValueError(f"{path} holds no recordings of {suite} in format {FORMAT_VERSION}; fetch it again")
    tasks = meta.get("tasks")
    if not isinstance(tasks, dict) or not all(isinstance(origin, dict) for origin in tasks.values()):
        raise ValueError(f"{path}: its header doesn't say where its tasks come from")
    if {name.split("/")[0] for name in arrays} != set(tasks):
        raise ValueError(f"{path}: arrays and header name different tasks")
    return {task: _check(path, suite, task, arrays, origin) for task, origin in tasks.items()}


def _check(path: Path, suite: str, task: str, arrays: dict[str, np.ndarray], origin: dict) -> Recording:
    def require(condition: bool, what: str) -> None:
        if not condition:
            raise ValueError(f"{path}: {task}: {what}; fetch the file again")

    require(task in envs.TASKS.keys() and envs.TASKS[task].domain == suite, f"no task of {suite}")
    row = envs.TASKS[task]
    own = {name.split("/", 1)[1]: array for name, array in arrays.items() if name.split("/")[0] == task}
    require(set(own) - {"choice"} == set(NUMBERS), f"its arrays are not {', '.join(NUMBERS)}")
    types = {"seed": "i8", "length": "i8", "return": "f4", "action": "f4", "choice": "u1"}
    require(all(array.dtype == types[name] for name, array in own.items()), "arrays of another type than the format's")
    seed, length, ret, action = (own[name] for name in NUMBERS)
    require(seed.ndim == 1 and len(seed) > 0 and seed.shape == length.shape == ret.shape,
            "seed, length and return differ in how many episodes they have")  # fmt: skip
    require(action.ndim == 2 and action.shape[1] == row.action_dim, f"actions are not (N, {row.action_dim})")
    require(bool((np.abs(action) <= 1).all()), "actions that are not in [-1, 1]")  # NaN is not, either
    require(bool(np.isfinite(ret).all()), "returns that are not finite")
    require(bool((seed >= 0).all()), "seeds below 0")
    require(bool((length == row.episode_length).all()), f"episodes that don't last {row.episode_length} steps")
    if "choice" in own:
        choice = own["choice"]
        require(choice.ndim == 1 and bool((choice < len(action)).all()), "choices beyond its actions")
        action = action[choice]
    require(len(action) == length.sum(), "not as many actions as steps")
    numbers = origin.get("numbers")
    require(isinstance(origin.get("source"), str), "its header doesn't say its source")
    require(isinstance(numbers, list) and len(set(map(str, numbers))) == len(numbers) == len(seed)
            and all(type(n) is int and n >= 0 for n in numbers), "its header doesn't number its episodes")  # fmt: skip
    return Recording(seed, length, ret, action, origin)


def record(demo: demo_format.Demos) -> Recording:
    """What is needed to play demonstrations again. ValueError if they don't say from which seeds they start."""
    if (demo.seed < 0).any():
        raise ValueError(f"{demo.meta['task']} can't be packed: it doesn't say its seeds (converted files don't)")
    first = np.zeros(len(demo.obs), bool)
    first[demo.episode_start[:-1]] = True
    origin = {name: demo.meta[name] for name in ORIGIN if name in demo.meta}
    return Recording(demo.seed, np.diff(demo.episode_start) - 1, demo.ret, demo.action[~first], origin)


def save(path: Path, tasks: dict[str, Recording]) -> None:
    """Write a suite's file as demo_format.write does."""
    arrays = {}
    for task in sorted(tasks):
        one = tasks[task]
        arrays |= {f"{task}/seed": one.seed, f"{task}/length": one.length.astype(np.int64), f"{task}/return": one.ret}
        # Told apart by their bits: -0.0 is another action than 0.0 as far as the last bit of a simulator goes.
        bits, choice = np.unique(one.action.view(np.uint32), axis=0, return_inverse=True)
        if len(bits) <= 256:
            arrays |= {f"{task}/choice": choice.ravel().astype(np.uint8), f"{task}/action": bits.view(np.float32)}
        else:
            arrays[f"{task}/action"] = one.action
    meta = {"version": FORMAT_VERSION, "suite": path.stem, "tasks": {task: tasks[task].meta for task in sorted(tasks)}}
    arrays = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    demo_format.write(path, arrays, {"newt_recordings": json.dumps(meta, sort_keys=True)})


def pack(demos: Path, out: Path) -> list[str]:
    """Record every task's demonstrations in folder `demos`; other tasks' recordings in `out` stay -> lines to print."""
    paths = sorted(demos.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no demonstrations in {demos}")
    suites: dict[str, dict[str, Recording]] = {}
    lines = []
    for path in paths:
        task = path.stem
        if task not in envs.TASKS.keys():
            raise ValueError(f"{path}: only tasks of envs/tasks.csv can be packed")
        suites.setdefault(envs.TASKS[task].domain, {})[task] = record(demo_format.load(path, task))
    for suite, tasks in suites.items():
        path = out / f"{suite}.safetensors"
        before = load(path) if path.is_file() else {}
        for task, one in tasks.items():
            old = before.get(task)
            if old is not None and old.meta != one.meta:
                lines.append(f"{task}: {len(old.seed)} episodes, return {old.ret.mean():.1f}, were replaced by "
                             f"{len(one.seed)}, return {one.ret.mean():.1f}")  # fmt: skip
        save(path, before | tasks)
        load.cache_clear()
        now = load(path)
        episodes = sum(len(one.seed) for one in now.values())
        lines.append(f"{path}: {len(now)} tasks, {episodes} episodes, {path.stat().st_size / 1e6:.2f} MB")
    return lines
