"""Experts: who acts in demonstrations, which attempts are good enough, and making a folder of them.

    script   a player beside its suite or game: Meta-World's packaged experts, way-finding, heuristics, feedback; or a
             gait (envs/gaits.py)
    plan     sampling MPC on the true simulator (envs/mpc.py)
    search   random variations of a plan, with the emulator's own save and restore (envs/atari_search.py)
    agent    an agent of ours, only if asked for; as is module:function, a player of yours

What they did is recorded (recordings.py), and playing that again costs a simulator's time only, so it comes first; a
script goes on where a recording ends. Plans, searches and agents do so only if asked for by name: they take hours.

A player is a generator, player(env, obs, number): it yields actions; `obs, info = yield action` is what came of one.
It may read the simulator's true state but leaves no trace in it; `number`, the attempt's, is its only source of chance.

Attempts are numbered, and number k of a task is always the same episode. They are judged in order: a task is done as
soon as `episodes` of the attempts so far are accepted. Accepted is an attempt that ends with a score of at least FLOOR
(where the score is success, that is success at the last step) and a return above 0.75 of the median of these (1.25 if
that is negative). Imitation would learn from the others, too. A recorded episode is judged by itself, by what the
simulator here really gives: the median is that of the recording, and what is no worse than recorded is good enough.

Attempts of unfinished tasks are files with one episode: attempts/<task>/<number>.safetensors.
Test: pytest tests/test_demos.py
"""

import functools
import hashlib
import importlib
import multiprocessing
import shutil
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import machine

import numpy as np
import safetensors
from tqdm import tqdm

import command
import envs
import recordings
from demo_format import FORMAT_VERSION, Demos, episode, join, load, place, save
from envs import gaits, mpc
from envs.atari_search import search_of
from envs.custom import imported
from envs.vector import end_with_parent, light_spawn
from recordings import Recording

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
    "ms-anymal-reach": "envs.maniskill_bodies",
    "ms-reach": "envs.maniskill_players",
    "ms-pick-": "envs.maniskill_players",
    "ms-poke-cube": "envs.maniskill_players",
    "ms-push-": "envs.maniskill_players",
    "ms-pull-cube": "envs.maniskill_players",
    "ms-stack-cube": "envs.maniskill_players",
    "ms-place-sphere": "envs.maniskill_players",
    "ms-lift-peg": "envs.maniskill_players",
}
Source = str  # script, plan, search, agent, or module:function
SOURCES = ("script", "plan", "search", "agent")
# Attempts per wanted episode at most. Scripts are nearly free, and handle-press, the worst, needs about fifty.
TRIES = {"script": 60}
OTHER_TRIES = 3


# ---- who acts ----


def source_of(task: str, wanted: str = "auto") -> Source | None:
    """Where demonstrations of a task come from, or None: no source, or not the wanted one."""
    has = {
        "script": script_of(task) is not None,
        "plan": task in mpc.PLANS,
        "search": task.startswith("atari-"),
        "agent": wanted == "agent",
    }
    return wanted if ":" in wanted else next((s for s in has if has[s] and wanted in ("auto", s)), None)


def sources_of(task: str, wanted: str = "auto", seed: int = 0) -> tuple[Recording | None, Source | None]:
    """(what is played again, who goes on after that), either may be None.

    A source that is wanted by name goes on where the recording ends only if that is its own work.
    """
    recorded, own = recordings.of(task), source_of(task, wanted)
    if recorded is None or own is None:
        return (recorded if wanted == "auto" else None), own
    if wanted == "auto":
        return recorded, own if own == "script" else None
    made_by = (recorded.meta.get("source"), recorded.meta.get("settings"), recorded.meta.get("seed"))
    return (recorded if made_by == (own, settings_of(task, own), seed) else None), own


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
    return 1 if ":" in source else len(getattr(importlib.import_module(module_of(task, source)), "WAYS", "1"))


def player_of(task: str, source: Source, ckpt: Path | None = None) -> Callable:
    """Who acts: player(env, obs, number). ValueError if a player of yours can't be had."""
    if source == "agent":
        return functools.partial(agent_player, ckpt=ckpt)
    if ":" not in source:
        return importlib.import_module(module_of(task, source)).player
    try:
        return imported(source)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--source {source} cannot be had: {error}") from error


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


def recorded_player(env, obs, number: int, actions: np.ndarray):
    """Yields what was recorded (T, A), whatever comes of it."""
    for action in actions:  # noqa: UP028 (what is sent to a `yield from` would go to the array)
        yield action


@functools.cache
def agent_of(ckpt: Path):
    import torch

    import agent_file

    torch.set_num_threads(1)  # one process per core is there already
    return agent_file.load(ckpt, torch.device("cpu"))[0]


@functools.lru_cache(maxsize=1)
def _environment(task: str):
    """Kept from one attempt to the next: some take a second to make."""
    return envs.make(task)


def play(env, player, seed: int, number: int) -> Demos:
    """One episode from reset(seed=): player(env, obs, number) acts."""
    obs, info = env.reset(seed=seed)
    rows, actions, rewards = [obs], [np.full(env.action_space.shape, np.nan)], [np.nan]
    script, terminated, truncated = player(env, obs, number), False, False
    action = next(script)
    while not (terminated or truncated):
        action = np.clip(action, -1, 1).astype(np.float32)
        obs, reward, terminated, truncated, info = env.step(action)
        rows.append(obs), actions.append(action), rewards.append(reward)
        if not (terminated or truncated):
            action = script.send((obs, info))
    arrays = [np.asarray(x, dtype=np.float32) for x in (rows, actions, rewards)]
    ends = [np.array([x], np.float32) for x in (np.nansum(arrays[2]), info["success"], info["score"])]
    meta = {"terminated": [True]} if terminated else {}
    return Demos(*arrays, np.array([0, len(rows)]), *ends, np.array([seed]), meta)


def attempt(
    origin: dict, number: int, path: Path, ckpt: Path | None = None, again: tuple[int, np.ndarray] | None = None
) -> None:
    """Play attempt `number` of a task and write it as a file with one episode.

    origin  its `provenance`
    again   seed and actions (T, A) of a recording; without, the origin's source acts
    """
    start, task, source = time.process_time(), origin["task"], origin["source"]
    if again:
        start_seed, actions = again
        player = functools.partial(recorded_player, actions=actions)
    else:
        # The place in the table of a task that has one: own ones must not depend on what was looked up before them.
        index = zlib.crc32(task.encode()) if ":" in task else list(envs.TASKS).index(task)
        start_seed = np.random.SeedSequence([origin["seed"], index, number]).generate_state(1)[0]
        player = player_of(task, source, ckpt)
    one = play(_environment(task), player, int(start_seed), number)
    spent = round(time.process_time() - start, 2)
    save(path, one._replace(meta=origin | one.meta | {"numbers": [number], "cpu_seconds": [spent]}))


def settings_of(task: str, source: Source, ckpt: Path | None = None) -> str:
    if source == "agent" and ckpt:  # by its content: a path says nothing elsewhere
        return f"{ckpt.name}, sha256 {hashlib.sha256(ckpt.read_bytes()).hexdigest()}"
    if source == "script" and task in gaits.TASKS:
        return f"{module_of(task, source)} {gaits.fingerprint(task)}"
    if ":" in source:
        return source
    own = {"plan": mpc.PLANS.get(task), "search": search_of(task)}.get(source)
    return repr(own) if own else module_of(task, source)


def provenance(task: str, source: Source, settings: str, seed: int) -> dict:
    """What an attempt depends on besides its number. Attempts with another one are made again."""
    package = envs.MAKERS.get(envs.TASKS[task].domain, ("", ""))[1].partition("[")[0]
    packages = {name: version(name) for name in sorted({package, "mujoco", "numpy"} - {""})}
    return {"version": FORMAT_VERSION, "task": task, "source": source, "settings": settings, "seed": seed,
            "packages": packages}  # fmt: skip


# ---- which attempts are good ----


def enough(ret: float, median: float) -> bool:
    """Above 0.75 of the median, 1.25 if that is negative; reached is enough where 0 is the best return: all are 0."""
    return ret > median - 0.25 * abs(median) or ret >= median


def accept(tried: list[Demos], episodes: int, ways: int = 1) -> list[Demos]:
    """The rule in the file's head -> at most `episodes`, in the order they were tried.

    With several ways the bar is that of the best one: a way that ends well but does badly before would be imitated,
    too. It counts as the best only if a fifth of the good ones are its own: luck must not rule out everything else.
    """
    good = [a for a in tried if not a.score[0] < FLOOR]  # an own task may have no score: NaN
    returns = [[float(a.ret[0]) for a in good if a.meta["numbers"][0] % ways == way] for way in range(ways)]
    medians = [np.median(values) for values in returns if values and 5 * len(values) >= len(good)]
    return [a for a in good if enough(a.ret[0], max(medians, default=0.0))][:episodes]


@dataclass
class Work:
    """What is left to do for one task: first its recording is played, then its source goes on."""

    task: str
    source: Source | None
    episodes: int
    folder: Path
    seed: int
    ckpt: Path | None
    recorded: Recording | None = None
    tried: dict[int, Demos] = field(default_factory=dict)  # finished attempts
    running: set[int] = field(default_factory=set)
    judged: int = 0  # the first so many attempts are not enough
    kept: list[Demos] = field(default_factory=list)  # of these
    deadline: float = np.inf

    @property
    def path(self) -> Path:
        return place(self.folder, self.task)

    @property
    def attempts(self) -> Path:
        return self.folder / "attempts" / envs.file_name(self.task)

    def file(self, number: int) -> Path:
        return self.attempts / f"{number:04}.safetensors"

    @functools.cached_property
    def numbers(self) -> list[int]:
        """Of the recorded episodes."""
        return self.recorded.meta["numbers"] if self.recorded else []

    def number(self, k: int) -> int:
        """Of the k-th attempt: after the recorded ones come those that were never tried."""
        return self.numbers[k] if k < len(self.numbers) else k - len(self.numbers) + max(self.numbers, default=-1) + 1

    @functools.cached_property
    def origin(self) -> dict:
        """Of a recording the packages here: they give what is written."""
        if self.recorded:
            made_by = {"source": self.source, "settings": "", "seed": 0} | self.recorded.meta
            return provenance(self.task, *(made_by[name] for name in ("source", "settings", "seed")))
        return provenance(self.task, self.source, settings_of(self.task, self.source, self.ckpt), self.seed)

    def job(self, number: int) -> tuple:
        """Arguments of `attempt`."""
        if number in self.numbers:
            e = self.numbers.index(number)
            return self.origin, number, self.file(number), None, (int(self.recorded.seed[e]), self.recorded.actions(e))
        origin = self.origin | {"source": self.source}  # a script may go on after another source's recording
        return origin, number, self.file(number), self.ckpt

    def read(self) -> None:
        """Take up what an earlier run left: attempts, and the episodes of a file that was made for fewer."""
        origin = self.origin
        kept = [self.path] if self.path.is_file() else []
        for path in kept + sorted(self.attempts.glob("*.safetensors")):
            demo = load(path, self.task)
            same = all(demo.meta.get(name) == origin[name] for name in origin if name != "source")
            same &= {"numbers", "cpu_seconds"} <= demo.meta.keys()
            if same and demo.meta["source"] in (origin["source"], self.source):
                for e, number in enumerate(demo.meta["numbers"]):
                    own = {name: [demo.meta[name][e]] for name in ("numbers", "cpu_seconds")}
                    own |= {"terminated": [True]} if demo.terminated[e] else {}
                    self.tried[number] = episode(demo, e)._replace(meta=origin | own)
        self.judge()

    def played(self) -> dict[str, list[Demos]]:
        """Recorded episodes that were looked at: with the recorded return to the last bit, another good one, or bad."""
        found = {"equal": [], "differ": [], "dropped": []}
        for e, number in enumerate(self.numbers[: self.judged]):
            one, recorded = self.tried[number], self.recorded.ret
            good = enough(one.ret[0], np.median(recorded)) or one.ret[0] >= recorded[e]
            if one.score[0] < FLOOR or not good:
                found["dropped"].append(one)
            else:
                found["equal" if one.ret[0] == recorded[e] else "differ"].append(one)
        return found

    def accepted(self) -> list[Demos]:
        """Of the attempts that were looked at."""
        dropped = {one.meta["numbers"][0] for one in self.played()["dropped"]}
        good = [self.tried[number] for number in self.numbers[: self.judged] if number not in dropped]
        own = [self.tried[self.number(k)] for k in range(len(self.numbers), self.judged)]
        if own:
            good += accept(own, self.episodes - len(good), ways_of(self.task, self.source))
        return good[: self.episodes]

    @property
    def missing(self) -> int:
        """Episodes that are left to the source."""
        return max(0, self.episodes - len(self.numbers) + len(self.played()["dropped"]))

    @property
    def first(self) -> int:
        """Attempts before the bar is set: of cheap ones twice as many as wanted, so that a median means something."""
        return len(self.numbers) + self.missing * (2 if self.source == "script" else 1)

    def judge(self) -> None:
        """Look at the attempts in order, one more at a time, as if nothing ran beside each other."""
        while len(self.kept) < self.episodes and self.number(self.judged) in self.tried and self.judged < self.limit:
            self.judged += 1
            if self.judged <= len(self.numbers) or self.judged >= self.first:
                self.kept = self.accepted()

    @property
    def limit(self) -> int:
        """Attempts at most. If the first ones of a planner all fail, others would, too."""
        if self.source is None:
            return len(self.numbers)
        hopeless = self.source != "script" and self.judged >= self.first and not self.kept
        return self.judged if hopeless else len(self.numbers) + TRIES.get(self.source, OTHER_TRIES) * self.missing

    def next(self) -> int | None:
        """The number of an attempt that will be needed whatever comes of those that are running."""
        if time.monotonic() > self.deadline or self.finished:
            return None
        needed = self.judged + self.episodes - len(self.kept)
        if self.missing:
            needed = max(needed, self.first)
        numbers = (self.number(k) for k in range(min(self.limit, needed)))
        return next((n for n in numbers if n not in self.tried and n not in self.running), None)

    @property
    def finished(self) -> bool:
        return len(self.kept) >= self.episodes or self.judged >= self.limit

    def close(self) -> str:
        """Write the file, if anything is good; the attempts stay as long as more could come of them."""
        self.kept = self.accepted()
        played = {word: len(found) for word, found in self.played().items()}
        if self.kept:
            before = self.recorded.meta if self.recorded else {}  # what it once took to find these
            own = [self.tried[self.number(k)].meta["cpu_seconds"][0] for k in range(len(self.numbers), self.judged)]
            meta = self.origin | {
                "numbers": [a.meta["numbers"][0] for a in self.kept],
                "cpu_seconds": [a.meta["cpu_seconds"][0] for a in self.kept],
                "wanted": self.episodes,
                "complete": self.finished,
                "tried": before.get("tried", 0) + len(own),
                "tried_cpu_seconds": round(before.get("tried_cpu_seconds", 0) + sum(own), 2),
                "recorded": len(self.numbers),
                "played": played,
            }
            save(self.path, join(self.kept, meta))
            if self.finished:
                shutil.rmtree(self.attempts, ignore_errors=True)
        best = max((float(a.score[0]) for a in self.tried.values() if a.score[0] >= 0), default=0)
        many = f"{len(self.kept)} of {self.judged} attempts kept"
        return f"{self.task}: {many}" + ("" if self.kept else f", best score {best:.2f}")


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

    tasks    that have the source, or are recorded
    minutes  for each task, from its first attempt on; then its file holds what there is. 0: no limit
    Processes share the attempts; one bar per suite, in episodes. Prints what failed, and why, and returns
    those tasks; ValueError, one line, if nothing can be written or a process was killed.
    """
    folder, todo, failed, played = Path(folder), [], [], Counter()
    for task in tasks:
        path = place(folder, task)
        meta = load(path, task).meta if path.is_file() else {}
        foreign = meta and "wanted" not in meta  # converted, not made here: nothing can be added
        recorded, own = sources_of(task, source, seed)
        more = len(recorded.seed) if recorded else 0
        more = len(meta.get("numbers", ())) < episodes and meta.get("recorded", 0) < more  # than when it was made
        if not foreign and (meta.get("wanted", 0) < episodes or not meta.get("complete") or more):
            todo.append(Work(task, own, episodes, folder, seed, ckpt, recorded))
            todo[-1].read()
        else:
            played.update(meta.get("played", {}))
    if todo:  # a first attempt may take minutes
        try:
            command.try_folder(folder)
        except OSError as error:
            raise ValueError(f"demonstrations of {todo[0].task} cannot be made: {error}") from error
    workers = workers or machine.cores()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), end_with_parent)
    running: dict[Future, tuple[Work, int]] = {}
    suites = [envs.TASKS[work.task].domain for work in todo]
    bars = {
        suite: tqdm(total=suites.count(suite) * episodes, desc=suite, unit="episode", disable=None)
        for suite in dict.fromkeys(suites)
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
                    played.update({word: len(found) for word, found in work.played().items()})
                    show(work, episodes)
                    no_bar = bars[envs.TASKS[work.task].domain].disable  # as in logs
                    if no_bar or len(work.kept) < min(episodes, len(work.numbers) or episodes):
                        tqdm.write(line)
                    todo.remove(work)
                for work in todo:  # in order: a process keeps the environment that it has
                    while len(running) < workers and (number := work.next()) is not None:
                        work.deadline = min(work.deadline, time.monotonic() + 60 * minutes if minutes else np.inf)
                        with light_spawn():
                            running[pool.submit(attempt, *work.job(number))] = work, number
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
    if played.total():
        print(f"recordings: {played['equal']} episodes gave what was recorded, {played['differ']} differ and are good, "
              f"{played['dropped']} were dropped")  # fmt: skip
    return failed
