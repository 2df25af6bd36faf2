"""Demonstrations: made here, one file per task, read back, shown.

    python demos.py make --tasks all --episodes 10 --out demos/     hours; finished episodes are never made twice
    python demos.py list demos/                                     what there is, and for which tasks there is nothing
    python demos.py play demos/walker-walk.safetensors              a film of an episode, by playing it again
    python demos.py check demos/                                    do the simulators here still give those rewards?

Who acts, in this order (`--source`):

    script   a player beside its suite or game: Meta-World's packaged experts, way-finding, heuristics, feedback
    plan     sampling MPC on the true simulator (envs/mpc.py)
    search   random shooting with the emulator's own save and restore (envs/atari_search.py)
    agent    an agent of ours (`--ckpt`), only if asked for

A player is a generator, player(env, obs, number): it yields actions; `obs, info = yield action` is what came of one.
It may read the simulator's true state but leaves no trace in it; `number`, the attempt's, is its only source of chance.

Attempts are numbered, and number k of a task is always the same episode. They are judged in order: a task is done as
soon as `episodes` of the attempts so far are accepted. Accepted is an attempt that ends with a score of at least FLOOR
(where the score is success, that is success at the last step) and a return above 0.75 of the median of these (1.25 if
that is negative). Imitation would learn from the others, too.

File <task>.safetensors: obs (N, O), action (N, A), reward (N,), episode_start (E+1,), and per episode return, success,
score, seed; JSON under "newt_demos" in the header. Row t of an episode is obs_t and the action and reward that led to
it; the first row's action and reward are NaN. Replaying the actions after reset(seed=) gives the same observations.
Attempts of unfinished tasks are such files, too: attempts/<task>/<number>.safetensors.
Test: pytest tests/test_demos.py
"""

import csv
import functools
import importlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import safetensors
import tyro
from safetensors.numpy import save_file
from tqdm import tqdm

import envs
from envs import mpc
from envs.browse import in_processes
from envs.vector import episode_seed, light_spawn

FORMAT_VERSION = 1
FLOOR = 0.3  # of the score
SCRIPTS = {  # how names of tasks begin -> module with their player(env, obs, number)
    "mw-": "envs.metaworld",
    "pygame-": "envs.arcade",
    "og-point-": "envs.ogbench",
    "lunarlander-": "envs.box2d",
    "rd-push-": "envs.robodesk",
    "rd-open-slide": "envs.robodesk",
    "rd-flat-block-in-bin": "envs.robodesk",
    "ms-cartpole-": "envs.maniskill_bodies",
    "ms-reach": "envs.maniskill_players",
    "ms-pick-": "envs.maniskill_players",
    "ms-poke-cube": "envs.maniskill_players",
    "ms-push-cube": "envs.maniskill_players",
    "ms-pull-cube": "envs.maniskill_players",
    "ms-stack-cube": "envs.maniskill_players",
    "ms-place-sphere": "envs.maniskill_players",
    "ms-lift-peg": "envs.maniskill_players",
}
Source = Literal["script", "plan", "search", "agent"]
# Attempts per wanted episode at most. Scripts are nearly free, and handle-press, the worst, needs about fifty.
TRIES = {"script": 60, "plan": 3, "search": 3, "agent": 3}


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


# ---- who acts ----


def source_of(task: str, wanted: str = "auto") -> Source | None:
    """Where demonstrations of a task come from, or None: no source, or not the wanted one."""
    has = {
        "script": any(task.startswith(word) for word in SCRIPTS),
        "plan": task in mpc.PLANS,
        "search": task.startswith("atari-"),
        "agent": wanted == "agent",
    }
    return next((source for source in has if has[source] and wanted in ("auto", source)), None)


def module_of(task: str, source: Source) -> str:
    if source == "script":
        return SCRIPTS[max((word for word in SCRIPTS if task.startswith(word)), key=len)]
    return {"plan": "envs.mpc", "search": "envs.atari_search", "agent": "demos"}[source]


def ways_of(task: str, source: Source) -> int:
    """How many ways of acting a player has: the length of its module's WAYS, if it has one. Attempt k is k % ways."""
    return len(getattr(importlib.import_module(module_of(task, source)), "WAYS", "1"))


def agent_player(env, obs, number: int, ckpt: Path):
    """Yields the actions of an agent of ours that plans; env: of a task that it knows."""
    import torch

    import newt

    agent = _agent(ckpt)
    cfg, task = agent.cfg, torch.tensor([agent.tasks.index(env.name)])
    generator, mean = torch.Generator().manual_seed(number), torch.zeros(1, cfg.horizon, cfg.action_dim)
    first = torch.ones(1, dtype=torch.bool)
    while True:
        x = torch.zeros(1, cfg.obs_dim)
        x[0, : len(obs)] = torch.from_numpy(obs)
        plan = newt.act(agent, x, task, mean, first, generator=generator)
        mean, first = plan.mean, torch.zeros_like(first)
        obs, _ = yield plan.action[0, : env.action_space.shape[0]].numpy()


@functools.cache
def _agent(ckpt: Path):
    import torch

    import newt

    torch.set_num_threads(1)  # one process per core is there already
    return newt.load(ckpt, torch.device("cpu"))[0]


@functools.lru_cache(maxsize=1)
def _environment(task: str):
    """Kept from one attempt to the next: some take a second to make."""
    return envs.make(task)


def attempt(task: str, number: int, source: Source, seed: int, path: Path, ckpt: Path | None = None) -> None:
    """Play attempt `number` of a task and write it as a file with one episode."""
    start, env = time.process_time(), _environment(task)
    if source == "agent":
        player = functools.partial(agent_player, ckpt=ckpt)
    else:
        player = importlib.import_module(module_of(task, source)).player
    reset_seed = episode_seed(seed, list(envs.TASKS).index(task), number)
    obs, info = env.reset(seed=reset_seed)
    rows, actions, rewards = [obs], [np.full(env.action_space.shape, np.nan)], [np.nan]
    script, truncated = player(env, obs, number), False
    action = next(script)
    while not truncated:
        action = np.clip(action, -1, 1).astype(np.float32)
        obs, reward, _, truncated, info = env.step(action)
        rows.append(obs), actions.append(action), rewards.append(reward)
        if not truncated:
            action = script.send((obs, info))
    arrays = [np.asarray(x, dtype=np.float32) for x in (rows, actions, rewards)]
    ends = [np.array([x], np.float32) for x in (np.nansum(arrays[2]), info["success"], info["score"])]
    meta = provenance(task, source, seed, ckpt) | {"numbers": [number]}
    meta["cpu_seconds"] = [round(time.process_time() - start, 2)]
    save(path, Demos(*arrays, np.array([0, len(rows)]), *ends, np.array([reset_seed]), meta))


def provenance(task: str, source: Source, seed: int, ckpt: Path | None) -> dict:
    """What an attempt depends on besides its number. Attempts with another one are made again."""
    package = envs.MAKERS.get(envs.TASKS[task].domain, ("", ""))[1].partition("[")[0]
    settings = {"plan": repr(mpc.PLANS.get(task)), "agent": str(ckpt)}.get(source, module_of(task, source))
    packages = {name: version(name) for name in sorted({package, "mujoco", "numpy"} - {""})}
    return {"version": FORMAT_VERSION, "task": task, "source": source, "settings": settings, "seed": seed,
            "packages": packages}  # fmt: skip


# ---- which attempts are good ----


def accept(tried: list[Demos], episodes: int, ways: int = 1) -> list[Demos]:
    """The rule in the file's head -> at most `episodes`, in the order they were tried.

    With several ways the bar is that of the best one: a way that ends well but does badly before would be imitated,
    too. It counts as the best only if a fifth of the good ones are its own: luck must not rule out everything else.
    """
    good = [a for a in tried if a.score[0] >= FLOOR]
    returns = [[float(a.ret[0]) for a in good if a.meta["numbers"][0] % ways == way] for way in range(ways)]
    medians = [np.median(values) for values in returns if values and 5 * len(values) >= len(good)]
    bar = max(medians, default=0.0)  # reached is enough there: where 0 is the best return, all are 0
    return [a for a in good if a.ret[0] > bar - 0.25 * abs(bar) or a.ret[0] >= bar][:episodes]


@dataclass
class Work:
    """What is left to do for one task."""

    task: str
    source: Source
    episodes: int
    folder: Path
    seed: int
    ckpt: Path | None
    tried: dict[int, Demos] = field(default_factory=dict)  # finished attempts
    running: set[int] = field(default_factory=set)
    judged: int = 0  # attempts 0..judged-1 are not enough
    kept: list[Demos] = field(default_factory=list)  # of these
    deadline: float = np.inf

    @property
    def path(self) -> Path:
        return self.folder / f"{self.task}.safetensors"

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts" / self.task

    def file(self, number: int) -> Path:
        return self.attempts / f"{number:04}.safetensors"

    @property
    def first(self) -> int:
        """Attempts before the bar is set: of cheap ones twice as many as wanted, so that a median means something."""
        return self.episodes * (2 if self.source == "script" else 1)

    def read(self) -> None:
        """Take up what an earlier run left: attempts, and the episodes of a file that was made for fewer."""
        wanted = provenance(self.task, self.source, self.seed, self.ckpt)
        if self.path.is_file():
            demo = load(self.path, self.task)
            if {name: demo.meta.get(name) for name in wanted} == wanted:
                for i, number in enumerate(demo.meta["numbers"]):
                    one = episode(demo, i)
                    self.tried[number] = one._replace(
                        meta=wanted | {name: [demo.meta[name][i]] for name in ("numbers", "cpu_seconds")}
                    )
        for path in sorted(self.attempts.glob("*.safetensors")):
            demo = load(path, self.task)
            if {name: demo.meta.get(name) for name in wanted} == wanted:
                self.tried[int(path.stem)] = demo
        self.judge()

    def judge(self) -> None:
        """Look at the attempts in order, one more at a time, as if nothing ran beside each other."""
        while len(self.kept) < self.episodes and self.judged in self.tried and self.judged < self.limit:
            self.judged += 1
            if self.judged >= self.first:
                self.kept = accept(
                    [self.tried[n] for n in range(self.judged)], self.episodes, ways_of(self.task, self.source)
                )

    @property
    def limit(self) -> int:
        """Attempts at most. If the first ones of a planner all fail, others would, too."""
        hopeless = self.source != "script" and self.judged >= self.first and not self.kept
        return self.judged if hopeless else TRIES[self.source] * self.episodes

    def next(self) -> int | None:
        """The number of an attempt that will be needed whatever comes of those that are running."""
        if time.monotonic() > self.deadline or self.finished:
            return None
        needed = min(self.limit, max(self.first, self.judged + self.episodes - len(self.kept)))
        return next((n for n in range(needed) if n not in self.tried and n not in self.running), None)

    @property
    def finished(self) -> bool:
        return len(self.kept) >= self.episodes or self.judged >= self.limit

    def close(self) -> str:
        """Write the file, if anything is good; the attempts stay as long as more could come of them."""
        kept = self.kept or accept(
            [self.tried[n] for n in range(self.judged)], self.episodes, ways_of(self.task, self.source)
        )
        tried = list(self.tried.values())
        if kept:
            meta = provenance(self.task, self.source, self.seed, self.ckpt) | {
                "numbers": [a.meta["numbers"][0] for a in kept],
                "cpu_seconds": [a.meta["cpu_seconds"][0] for a in kept],
                "wanted": self.episodes,
                "complete": self.finished,
                "tried": self.judged,
                "tried_cpu_seconds": round(sum(self.tried[n].meta["cpu_seconds"][0] for n in range(self.judged)), 2),
            }
            save(self.path, join(kept, meta))
            if self.finished:
                shutil.rmtree(self.attempts, ignore_errors=True)
        best = max((float(a.score[0]) for a in tried), default=0)
        return f"{self.task}: {len(kept)} of {self.judged} attempts kept" + ("" if kept else f", best score {best:.2f}")


# ---- files ----


def save(path: Path, demo: Demos) -> None:
    """Write a file; whatever happens, what stands at `path` is the old file or the whole new one."""
    arrays = {"obs": demo.obs, "action": demo.action, "reward": demo.reward, "return": demo.ret, "score": demo.score,
              "success": demo.success, "seed": demo.seed.astype(np.int64),
              "episode_start": demo.episode_start.astype(np.int64)}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(arrays, temporary, {"newt_demos": json.dumps(demo.meta)})
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # still there only if one of these failed


def join(parts: list[Demos], meta: dict) -> Demos:
    lengths = [len(part.obs) for part in parts]
    names = ("obs", "action", "reward", "ret", "success", "score", "seed")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    return Demos(**arrays, episode_start=np.cumsum([0, *lengths]), meta=meta)


def episode(demo: Demos, e: int) -> Demos:
    """One episode alone; its meta is that of the whole."""
    rows = slice(int(demo.episode_start[e]), int(demo.episode_start[e + 1]))
    ends = (getattr(demo, name)[e : e + 1] for name in ("ret", "success", "score", "seed"))
    start = np.array([0, rows.stop - rows.start])
    return Demos(demo.obs[rows], demo.action[rows], demo.reward[rows], start, *ends, demo.meta)


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


# ---- making them ----


def _end_with_parent() -> None:
    """Run in each process of the pool: one whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def make_all(
    tasks: list[str],
    episodes: int,
    folder: Path,
    seed: int = 0,
    workers: int | None = None,
    source: str = "auto",
    ckpt: Path | None = None,
    minutes: float = 0,
) -> list[str]:
    """Make the files that are missing, unfinished, or made for fewer episodes; others, and converted ones, stay.

    tasks    that have the source
    minutes  for each task, from its first attempt on; then its file holds what there is. 0: no limit
    Processes share the attempts; one bar per suite, in episodes. Prints what failed, and why, and returns
    those tasks; ValueError, one line, if nothing can be written or a process was killed.
    """
    folder, todo, failed = Path(folder), [], []
    for task in tasks:
        path = folder / f"{task}.safetensors"
        meta = load(path, task).meta if path.is_file() else {}
        foreign = meta and meta.get("source") not in TRIES  # converted, not made here: nothing can be added
        if not foreign and (meta.get("wanted", 0) < episodes or not meta["complete"]):
            todo.append(Work(task, source_of(task, source), episodes, folder, seed, ckpt))
            todo[-1].read()
    workers = workers or os.cpu_count() or 1
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
    running: dict[Future, tuple[Work, int]] = {}
    suites = [envs.TASKS[work.task].domain for work in todo]
    bars = {
        suite: tqdm(total=suites.count(suite) * episodes, desc=suite, unit="episode") for suite in dict.fromkeys(suites)
    }
    shown = dict.fromkeys((work.task for work in todo), 0)

    def show(work: Work, episodes: int) -> None:
        bar = bars[envs.TASKS[work.task].domain]
        bar.set_postfix_str(work.task, refresh=False)
        bar.update(max(0, episodes - shown[work.task]))
        shown[work.task] = max(shown[work.task], episodes)

    with pool:
        try:
            while todo:
                for work in [work for work in todo if not work.running and work.next() is None]:
                    line = work.close()
                    show(work, episodes)
                    if len(work.kept) < episodes:
                        tqdm.write(line)
                    todo.remove(work)
                for work in todo:  # in order: a process keeps the environment that it has
                    while len(running) < workers and (number := work.next()) is not None:
                        work.deadline = min(work.deadline, time.monotonic() + 60 * minutes if minutes else np.inf)
                        with light_spawn():
                            job = (attempt, work.task, number, work.source, seed, work.file(number), ckpt)
                            running[pool.submit(*job)] = work, number
                        work.running.add(number)
                for future in wait(running, return_when=FIRST_COMPLETED).done if running else ():
                    work, number = running.pop(future)
                    work.running.remove(number)
                    error = future.exception()
                    if isinstance(error, (OSError, BrokenExecutor, safetensors.SafetensorError)):
                        raise ValueError(f"demonstrations of {work.task} cannot be made: {error}") from error
                    if error and work in todo:  # of this task; the others go on
                        failed.append(work.task)
                        tqdm.write(f"{work.task}: {type(error).__name__}: {error}")
                        todo.remove(work)
                    elif not error:
                        work.tried[number] = load(work.file(number), work.task)
                        work.judge()
                        show(work, min(work.judged, episodes - 1))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():  # in the middle of an attempt, which may take minutes
                child.terminate()
            raise
        finally:
            for bar in bars.values():
                bar.close()
    return failed


# ---- looking at them ----


def overview(folder: Path) -> list[dict]:
    """A row for each task with a file, and for each of which attempts are left that came to nothing."""
    rows = []
    for name in sorted({p.stem for p in folder.glob("*.safetensors")} | {p.name for p in folder.glob("attempts/*")}):
        path = folder / f"{name}.safetensors"
        if path.is_file():
            demo = load(path, name)
            kept, tried = len(demo.ret), demo.meta["tried"]
            cpu = demo.meta["tried_cpu_seconds"] / kept
        else:
            files = sorted((folder / "attempts" / name).glob("*.safetensors"))
            if not files:
                continue
            demo = join(parts := [load(file, name) for file in files], parts[0].meta)
            kept, tried, cpu = 0, len(files), sum(part.meta["cpu_seconds"][0] for part in parts)
        row = {"task": envs.label(name), "suite": envs.TASKS[name].domain, "source": demo.meta["source"], "kept": kept,
               "tried": tried, "return": demo.ret.mean(), "score": demo.score.mean(), "success": demo.success.mean(),
               "cpu_seconds_per_kept": cpu}  # fmt: skip
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Make:
    """Make demonstrations; what is there already is kept, what was begun goes on."""

    tasks: str = "metaworld"
    """all, heldout, a suite, or task names with commas between"""
    episodes: int = 10
    """per task"""
    out: Path = Path("demos")
    """folder to write to"""
    source: Literal["auto", "script", "plan", "search", "agent"] = "auto"
    """who acts; auto: the first of script, plan and search that the task has"""
    ckpt: Path | None = None
    """agent.safetensors that acts, for --source agent"""
    minutes_per_task: float = 0
    """then a task's file holds what there is, and the next run goes on; 0: no limit"""
    seed: int = 0
    """same seed, same episodes"""
    workers: int = 0
    """processes; 0: one per core"""


@dataclass(frozen=True)
class List:
    """What a folder of demonstrations holds. A task with 0 episodes was tried in vain: means over its attempts."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""
    csv: Path | None = None
    """also write the table to this file"""


@dataclass(frozen=True)
class Play:
    """Write a film of a demonstration: its actions are played again from its seed."""

    file: tyro.conf.Positional[Path]
    """<task>.safetensors"""
    episode: int = 0
    """which one"""
    out: Path | None = None
    """film to write; default: <task>.mp4 here"""


@dataclass(frozen=True)
class Check:
    """Play the first episode of every file again from its seed: rewards must be those recorded, to the last bit."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""
    workers: int = 0
    """processes; 0: one per core"""


def main_make(cfg: Make) -> None:
    tasks = envs.select(cfg.tasks)
    if cfg.episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {cfg.episodes}")
    if cfg.minutes_per_task < 0:
        raise ValueError(f"minutes_per_task must be at least 0, got {cfg.minutes_per_task}")
    if (cfg.source == "agent") != (cfg.ckpt is not None):
        raise ValueError("--source agent and --ckpt FILE belong together")
    if cfg.source == "agent":
        unknown = sorted(set(tasks) - set(_agent(cfg.ckpt).tasks))
        if unknown:
            raise ValueError(f"{cfg.ckpt} does not know {', '.join(unknown)}")
    without = [task for task in tasks if source_of(task, cfg.source) is None]
    if len(without) == len(tasks):
        raise ValueError(f"no source of demonstrations ({cfg.source}) for {', '.join(without)}")
    if without:
        print(f"no source of demonstrations ({cfg.source}) for {', '.join(without)}")
    tasks = [task for task in tasks if task not in without]
    failed = make_all(tasks, cfg.episodes, cfg.out, cfg.seed, cfg.workers or None, cfg.source, cfg.ckpt,
                      cfg.minutes_per_task)  # fmt: skip
    if failed:
        raise RuntimeError(f"an attempt failed, see above, of {', '.join(failed)}")
    main_list(List(cfg.out))


def main_list(cfg: List) -> None:
    rows = overview(cfg.folder)
    if not rows:
        raise FileNotFoundError(f"no demonstrations in {cfg.folder}")
    print(f"{'task':34}{'episodes':>9}{'return':>10}{'success':>9}{'score':>7}  {'source':8}{'tried':>6}{'CPU s':>7}")
    for row in rows:
        print(f"{row['task']:34}{row['kept']:9}{row['return']:10.1f}{row['success']:9.2f}{row['score']:7.2f}  "
              f"{row['source']:8}{row['tried']:6}{row['cpu_seconds_per_kept']:7.1f}")  # fmt: skip
    print(f"{'suite':34}{'tasks':>9}{'episodes':>10}{'score':>9}{'>= 0.5':>7}  {'CPU s per episode (median, most)'}")
    for suite in dict.fromkeys(row["suite"] for row in rows):
        kept = [row for row in rows if row["suite"] == suite and row["kept"]]
        if kept:
            score, cpu = ([row[key] for row in kept] for key in ("score", "cpu_seconds_per_kept"))
            print(f"{suite:34}{len(kept):9}{sum(row['kept'] for row in kept):10}{np.mean(score):9.2f}"
                  f"{sum(x >= 0.5 for x in score):7}  {np.median(cpu):.1f}, {max(cpu):.1f}")  # fmt: skip
    have = {row["task"].rstrip("*") for row in rows if row["kept"]}
    none = [name for name in envs.select("all") if name not in have]
    print(f"{len(have)} tasks" + (f"; of the 200 training tasks none for {', '.join(none)}" if none else ""))
    if cfg.csv:
        with open(cfg.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def main_play(cfg: Play) -> None:
    import imageio.v2 as imageio

    demo, out = load(cfg.file, cfg.file.stem), cfg.out or Path(f"{cfg.file.stem}.mp4")
    if not 0 <= cfg.episode < len(demo.ret):
        raise ValueError(f"{cfg.file} has episodes 0 to {len(demo.ret) - 1}, not {cfg.episode}")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"cannot write {out}: there is no folder {out.parent}")
    if demo.seed[cfg.episode] < 0:
        raise ValueError(f"{cfg.file} doesn't say from which start its actions go (converted files don't)")
    one = episode(demo, cfg.episode)
    env = envs.make(cfg.file.stem, render_mode="rgb_array")
    env.reset(seed=int(one.seed[0]))
    with imageio.get_writer(out, fps=env.metadata["render_fps"], macro_block_size=1) as film:
        film.append_data(env.render())
        for action in tqdm(one.action[1:], desc=cfg.file.stem, unit="step"):
            info = env.step(action)[4]
            film.append_data(env.render())
    env.close()
    same = "" if np.float32(info["score"]) == one.score[0] else f", recorded was {one.score[0]:.3f}: another package?"
    print(f"{out}: score {info['score']:.3f}{same}")


def replay(path: Path) -> str:
    """What is wrong with the first episode of a file, or nothing."""
    one = episode(load(path, path.stem), 0)
    if one.seed[0] < 0:
        return "no seed is recorded"
    env = envs.make(path.stem)
    obs, _ = env.reset(seed=int(one.seed[0]))
    for t in range(1, len(one.obs)):
        obs, reward, *_ = env.step(one.action[t])
        if np.float32(reward) != one.reward[t] or not np.array_equal(obs, one.obs[t]):
            return f"step {t} gives reward {reward:.6g}, recorded is {one.reward[t]:.6g}"
    env.close()
    return ""


def main_check(cfg: Check) -> None:
    paths = sorted(cfg.folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no demonstrations in {cfg.folder}")
    found = in_processes(replay, paths, cfg.workers, "check")
    wrong = [f"{path.stem}: {what}" for path, what in zip(paths, found, strict=True) if what]
    print("\n".join([*wrong, f"{len(paths)} tasks played again, {len(wrong)} differ"]))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    import demos  # by its own name: worker processes import what they are asked to run

    cfg = tyro.cli(tyro.conf.OmitSubcommandPrefixes[demos.Make | demos.List | demos.Play | demos.Check])
    mains = {demos.Make: demos.main_make, demos.List: demos.main_list, demos.Play: demos.main_play}
    try:
        (mains | {demos.Check: demos.main_check})[type(cfg)](cfg)
    except (ValueError, ImportError, FileNotFoundError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
