"""Demonstrations: made here from packaged experts, one file per task, and read back.

    python demos.py make --tasks metaworld --episodes 10 --out demos/
    python demos.py list demos/

Source so far: Meta-World's scripted experts (`metaworld.policies`). They are asked once per agent step. Many keep
moving after success and lose it again, so each attempt follows one of five ways of going on from there, in turn:

    continue   the expert as it is                  zero      no motion, gripper as it was
    position   hold the hand where it succeeded     repeat    the last action again
    while      no motion only while it is a success, the expert again when that is lost

An attempt is accepted if it ends in success with a return above 0.75 of the median of the successful attempts of the
best way: without that bar, ways that end well but do badly before would be imitated too. A way counts as the best only
if a fifth of the successes are its own: two lucky attempts must not rule out everything else.

File <task>.safetensors: obs (N, O), action (N, A), reward (N,), episode_start (E+1,), and per episode return, success,
score, seed; JSON under "newt_demos" in the header. Row t of an episode is obs_t and the action and reward that led to
it; the first row's action and reward are NaN. Replaying the actions after reset(seed=) gives the same observations.
Test: pytest tests/test_demos.py
"""

import json
import multiprocessing
import os
import sys
import threading
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors
import tyro
from safetensors.numpy import save_file
from tqdm import tqdm

import envs
from envs.vector import episode_seed, light_spawn

FORMAT_VERSION = 1
SOURCES = ("metaworld",)  # suites that demonstrations can be made for
WAYS = ("position", "zero", "while", "continue", "repeat")
TRIES = 60  # attempts per wanted episode; handle-press, the worst, needs about fifty


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


class Attempt(NamedTuple):
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    success: float
    score: float
    seed: int
    way: str


def attempt(env, expert, seed: int, way: str) -> Attempt:
    """One episode of an expert in an environment; `way` is how it goes on after its first success."""
    obs, info = env.reset(seed=seed)
    rows, actions, rewards = [obs], [np.full(env.action_space.shape, np.nan)], [np.nan]
    held, truncated = None, False  # the hand's position at the first success
    while not truncated:
        action = np.clip(expert.get_action(obs.astype(np.float64)), -1, 1)
        still = np.append(np.zeros(3), actions[-1][3])  # action: hand motion 3, gripper 1
        if held is not None and way == "position":
            action = np.append(np.clip(10 * (held - obs[:3]), -1, 1), actions[-1][3])
        elif held is not None and way == "zero" or info["success"] and held is not None and way == "while":
            action = still
        elif held is not None and way == "repeat":
            action = actions[-1]
        action = action.astype(np.float32)
        obs, reward, _, truncated, info = env.step(action)
        if info["success"] and held is None:
            held = obs[:3].astype(np.float64)
        rows.append(obs), actions.append(action), rewards.append(reward)
    arrays = (np.asarray(x, dtype=np.float32) for x in (rows, actions, rewards))
    return Attempt(*arrays, info["success"], info["score"], seed, way)


def accept(tried: list[Attempt], episodes: int) -> list[Attempt]:
    """The rule in the file's head: at most `episodes`, in the order they were tried."""
    good = [a for a in tried if a.success == 1]
    returns = {way: [np.nansum(a.reward) for a in good if a.way == way] for way in WAYS}
    medians = [np.median(values) for values in returns.values() if values and 5 * len(values) >= len(good)]
    return [a for a in good if np.nansum(a.reward) > 0.75 * max(medians)][:episodes]


def make(task: str, episodes: int, path: Path, seed: int = 0) -> None:
    """Make one task's file. Meta-World only.

    Keeps trying until `episodes` are accepted, at most TRIES times that; a partial set is saved (its header says what
    was wanted). Raises ValueError, one line: no source for the task, or nothing accepted.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    if task not in envs.TASKS or envs.TASKS[task].domain not in SOURCES:
        raise ValueError(f"no source of demonstrations for {task}; suites with one: {', '.join(SOURCES)}")
    from metaworld.policies import ENV_POLICY_MAP

    env, expert = envs.make(task), ENV_POLICY_MAP[task.removeprefix("mw-") + "-v3"]()
    number, tried, kept = list(envs.TASKS).index(task), [], []
    # Twice as many as wanted before the bar is set, so that its median means something.
    while len(kept) < episodes and len(tried) < TRIES * episodes:
        way = WAYS[len(tried) % len(WAYS)]
        tried.append(attempt(env, expert, episode_seed(seed, number, len(tried)), way))
        kept = accept(tried, episodes) if len(tried) >= 2 * episodes else []
    env.close()
    if not kept:
        raise ValueError(f"{task}: none of {len(tried)} attempts of the expert was accepted")
    starts = np.cumsum([0] + [len(a.obs) for a in kept])
    arrays = {
        **{name: np.concatenate([getattr(a, name) for a in kept]) for name in ("obs", "action", "reward")},
        "episode_start": starts.astype(np.int64),
        "return": np.array([np.nansum(a.reward) for a in kept], np.float32),
        "success": np.array([a.success for a in kept], np.float32),
        "score": np.array([a.score for a in kept], np.float32),
        "seed": np.array([a.seed for a in kept], np.int64),
    }
    packages = {name: version(name) for name in ("metaworld", "mujoco", "numpy")}
    meta = {"version": FORMAT_VERSION, "task": task, "source": "metaworld.policies", "ways": [a.way for a in kept],
            "wanted": episodes, "tried": len(tried), "seed": seed, "packages": packages}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(arrays, temporary, {"newt_demos": json.dumps(meta)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only if one of these failed


def load(path: Path, task: str) -> Demos:
    """Read and check one task's file.

    Raises FileNotFoundError or ValueError, one line that names the file: missing, truncated, foreign, of another task,
    wrong shapes, or NaN anywhere but in the first rows.
    """
    path = Path(path)
    if task not in envs.TASKS:
        raise ValueError(f"unknown task {task!r} for {path}; all names are in envs/tasks.csv")
    if not path.is_file():
        raise FileNotFoundError(f"no demonstrations of {task} at {path}; make them with `python demos.py make`")
    try:
        with safetensors.safe_open(path, "np") as file:
            text = (file.metadata() or {}).get("newt_demos", "null")
            arrays = {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file ({error})") from error
    try:
        meta = json.loads(text)
    except json.JSONDecodeError:
        meta = None
    if not isinstance(meta, dict):
        raise ValueError(f"{path} holds no demonstrations (no readable 'newt_demos' in its header)")
    if (meta.get("version"), meta.get("task")) != (FORMAT_VERSION, task):
        found = f"format {meta.get('version')} of {meta.get('task')}"
        raise ValueError(f"{path} is {found}, expected is format {FORMAT_VERSION} of {task}")
    names = ("obs", "action", "reward", "episode_start", "return", "success", "score", "seed")
    if set(names) != set(arrays):
        raise ValueError(f"{path} lacks or has other arrays than {', '.join(names)}")
    dtypes = {name: arrays[name].dtype == ("i8" if name in ("episode_start", "seed") else "f4") for name in names}
    flat = all(arrays[name].ndim == (2 if name in ("obs", "action") else 1) for name in names)
    if not (flat and all(dtypes.values())):
        raise ValueError(f"{path}: arrays of another shape or type than the format's")
    demos = Demos(*(arrays[name] for name in names), meta)
    row, n, start = envs.TASKS[task], len(demos.obs), demos.episode_start
    shapes = {"obs": (n, row.obs_dim), "action": (n, row.action_dim), "reward": (n,)}
    shapes |= dict.fromkeys(("ret", "success", "score", "seed"), (len(start) - 1,))
    wrong = [name for name, shape in shapes.items() if getattr(demos, name).shape != shape]
    if wrong or len(start) < 2 or start[0] != 0 or start[-1] != n or (np.diff(start) < 2).any():
        raise ValueError(f"{path}: shapes do not fit the task or each other ({', '.join(wrong) or 'episode_start'})")
    first = np.zeros(n, bool)
    first[start[:-1]] = True
    numbers = np.concatenate([demos.action, demos.reward[:, None]], 1)
    if not (np.isnan(numbers[first]).all() and np.isfinite(numbers[~first]).all() and np.isfinite(demos.obs).all()):
        raise ValueError(f"{path}: numbers that are not finite, or a first row that has an action")
    return demos


def _end_with_parent() -> None:
    """Run in each process of the pool: one whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_all(tasks: list[str], episodes: int, folder: Path, seed: int = 0, workers: int | None = None) -> None:
    """Make the files that are missing or were made for fewer episodes, in a few processes. Others stay as they are."""
    todo = []
    for task in tasks:
        path = Path(folder) / f"{task}.safetensors"
        if not path.is_file() or load(path, task).meta["wanted"] < episodes:
            todo.append((task, episodes, path, seed))
    if not todo:
        return
    workers = min(len(todo), workers or os.cpu_count() or 1)
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    with pool, tqdm(total=len(todo), desc="demos", unit="task") as bar:
        with light_spawn():
            futures = {pool.submit(make, *args): args[0] for args in todo}
        try:
            for future in as_completed(futures):
                try:
                    future.result()
                except (OSError, safetensors.SafetensorError, BrokenExecutor) as error:  # no folder, full disk, killed
                    raise ValueError(f"demonstrations of {futures[future]} cannot be made: {error}") from error
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


@dataclass(frozen=True)
class Make:
    """Make demonstrations; files that are there already and hold enough are kept."""

    tasks: str = "metaworld"
    """a suite, or task names with commas between"""
    episodes: int = 10
    """per task"""
    out: Path = Path("demos")
    """folder to write to"""
    seed: int = 0
    """same seed, same files"""
    workers: int = 0
    """processes; 0: one per core"""


@dataclass(frozen=True)
class List:
    """What a folder of demonstrations holds."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""


def main(cfg: Make | List) -> None:
    if isinstance(cfg, Make):
        tasks = envs.select(cfg.tasks)
        without = [task for task in tasks if envs.TASKS[task].domain not in SOURCES]
        if without or cfg.episodes < 1:
            raise ValueError(
                f"no source of demonstrations for {', '.join(without)}; suites with one: {', '.join(SOURCES)}"
                if without
                else f"episodes must be at least 1, got {cfg.episodes}"
            )
        make_all(tasks, cfg.episodes, cfg.out, cfg.seed, cfg.workers or None)
        cfg = List(cfg.out)
    paths = sorted(cfg.folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no demonstrations in {cfg.folder}")
    print(f"{'task':32}{'episodes':>9}{'return':>9}{'success':>9}{'score':>7}{'tried':>7}{'MB':>7}")
    for path in paths:
        demo = load(path, path.stem)
        means = f"{demo.ret.mean():9.1f}{demo.success.mean():9.2f}{demo.score.mean():7.2f}{demo.meta['tried']:7}"
        print(f"{path.stem:32}{len(demo.ret):9}{means}{path.stat().st_size / 1e6:7.2f}")


if __name__ == "__main__":
    import demos  # by its own name: worker processes import what they are asked to run

    try:
        demos.main(tyro.cli(tyro.conf.OmitSubcommandPrefixes[demos.Make | demos.List]))
    except (ValueError, ImportError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
