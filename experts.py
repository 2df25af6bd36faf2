"""Experts: who acts in demonstrations, which attempts are good enough, and making a folder of them.

    script   a player beside its suite or game: Meta-World's packaged experts, way-finding, heuristics, feedback; or a
             gait (envs/gaits.py)
    plan     sampling MPC on the true simulator (envs/mpc.py)
    search   random shooting with the emulator's own save and restore (envs/atari_search.py)
    agent    an agent of ours, only if asked for

A player is a generator, player(env, obs, number): it yields actions; `obs, info = yield action` is what came of one.
It may read the simulator's true state but leaves no trace in it; `number`, the attempt's, is its only source of chance.

Attempts are numbered, and number k of a task is always the same episode. They are judged in order: a task is done as
soon as `episodes` of the attempts so far are accepted. Accepted is an attempt that ends with a score of at least FLOOR
(where the score is success, that is success at the last step) and a return above 0.75 of the median of these (1.25 if
that is negative). Imitation would learn from the others, too.

Attempts of unfinished tasks are files with one episode: attempts/<task>/<number>.safetensors.
Test: pytest tests/test_demos.py
"""

import functools
import importlib
import multiprocessing
import os
import shutil
import time
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import safetensors
from tqdm import tqdm

import envs
from demo_format import FORMAT_VERSION, Demos, episode, join, load, save
from envs import gaits, mpc
from envs.vector import end_with_parent, light_spawn

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


# ---- who acts ----


def source_of(task: str, wanted: str = "auto") -> Source | None:
    """Where demonstrations of a task come from, or None: no source, or not the wanted one."""
    has = {
        "script": script_of(task) is not None,
        "plan": task in mpc.PLANS,
        "search": task.startswith("atari-"),
        "agent": wanted == "agent",
    }
    return next((source for source in has if has[source] and wanted in ("auto", source)), None)


def script_of(task: str) -> str | None:
    """The module that plays a task by a script, if one does."""
    words = [word for word in SCRIPTS if task.startswith(word)]
    return "envs.gaits" if task in gaits.TASKS else SCRIPTS[max(words, key=len)] if words else None


def module_of(task: str, source: Source) -> str:
    if source == "script":
        return script_of(task)
    return {"plan": "envs.mpc", "search": "envs.atari_search", "agent": __name__}[source]


def ways_of(task: str, source: Source) -> int:
    """How many ways of acting a player has: the length of its module's WAYS, if it has one. Attempt k is k % ways."""
    return len(getattr(importlib.import_module(module_of(task, source)), "WAYS", "1"))


def agent_player(env, obs, number: int, ckpt: Path):
    """Yields the actions of an agent of ours that plans; env: of a task that it knows."""
    import torch

    import newt

    agent = agent_of(ckpt)
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
def agent_of(ckpt: Path):
    import torch

    import newt

    torch.set_num_threads(1)  # one process per core is there already
    return newt.load(ckpt, torch.device("cpu"))[0]


@functools.lru_cache(maxsize=1)
def _environment(task: str):
    """Kept from one attempt to the next: some take a second to make."""
    return envs.make(task)


def play(env, player, seed: int, number: int) -> Demos:
    """One episode from reset(seed=): player(env, obs, number) acts."""
    obs, info = env.reset(seed=seed)
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
    return Demos(*arrays, np.array([0, len(rows)]), *ends, np.array([seed]), {})


def attempt(task: str, number: int, source: Source, seed: int, path: Path, ckpt: Path | None = None) -> None:
    """Play attempt `number` of a task and write it as a file with one episode."""
    start = time.process_time()
    if source == "agent":
        player = functools.partial(agent_player, ckpt=ckpt)
    else:
        player = importlib.import_module(module_of(task, source)).player
    start_seed = np.random.SeedSequence([seed, list(envs.TASKS).index(task), number]).generate_state(1)[0]
    one = play(_environment(task), player, int(start_seed), number)
    meta = provenance(task, source, seed, ckpt) | {"numbers": [number]}
    meta["cpu_seconds"] = [round(time.process_time() - start, 2)]
    save(path, one._replace(meta=meta))


def provenance(task: str, source: Source, seed: int, ckpt: Path | None) -> dict:
    """What an attempt depends on besides its number. Attempts with another one are made again."""
    package = envs.MAKERS.get(envs.TASKS[task].domain, ("", ""))[1].partition("[")[0]
    settings = {"plan": repr(mpc.PLANS.get(task)), "agent": str(ckpt)}.get(source, module_of(task, source))
    if source == "script" and task in gaits.TASKS:
        settings += f" {gaits.fingerprint(task)}"
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

    @property
    def origin(self) -> dict:
        return provenance(self.task, self.source, self.seed, self.ckpt)

    def read(self) -> None:
        """Take up what an earlier run left: attempts, and the episodes of a file that was made for fewer."""
        origin = self.origin
        kept = [self.path] if self.path.is_file() else []
        for path in kept + sorted(self.attempts.glob("*.safetensors")):
            demo = load(path, self.task)
            if {name: demo.meta.get(name) for name in origin} == origin:
                for e, number in enumerate(demo.meta["numbers"]):
                    own = {name: [demo.meta[name][e]] for name in ("numbers", "cpu_seconds")}
                    self.tried[number] = episode(demo, e)._replace(meta=origin | own)
        self.judge()

    def accepted(self) -> list[Demos]:
        """Of the attempts that were looked at."""
        looked_at = [self.tried[n] for n in range(self.judged)]
        return accept(looked_at, self.episodes, ways_of(self.task, self.source))

    def judge(self) -> None:
        """Look at the attempts in order, one more at a time, as if nothing ran beside each other."""
        while len(self.kept) < self.episodes and self.judged in self.tried and self.judged < self.limit:
            self.judged += 1
            if self.judged >= self.first:
                self.kept = self.accepted()

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
        kept = self.kept or self.accepted()
        if kept:
            meta = self.origin | {
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
        best = max((float(a.score[0]) for a in self.tried.values()), default=0)
        return f"{self.task}: {len(kept)} of {self.judged} attempts kept" + ("" if kept else f", best score {best:.2f}")


# ---- making them ----


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
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
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
