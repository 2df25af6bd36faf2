"""Making a folder of demonstrations: which attempts of the experts are good enough, and all of them on all cores.

Attempts (experts.py) are judged in order: a task is done as soon as `episodes` of those so far are accepted. Accepted
is an attempt that ends with a score of at least FLOOR (where the score is success, that is success at the last step)
and a return above 0.75 of the median of these (1.25 if that is negative). Imitation would learn from the others, too.
Disturbed attempts (experts.py) are compared with each other: to come back costs time, and is what they are there for.
A recorded episode is judged by itself, by what the simulator here really gives: the median is that of the recording,
and what is no worse than recorded is good enough.

Attempts of unfinished tasks are files with one episode: attempts/<task>/<number>.safetensors.
Test: pytest tests/test_demos.py
"""

import functools
import multiprocessing
import shutil
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

import machine

import numpy as np
import safetensors
from tqdm import tqdm

import command
import envs
from demo_format import Demos, episode, join, load, place, save
from envs.processes import end_with_parent, light_spawn
from experts import Source, attempt, is_disturbed, provenance, settings_of, sources_of, ways_of
from recordings import Recording

FLOOR = 0.3  # of the score
# Attempts per wanted episode at most. Scripts are nearly free, and handle-press, the worst, needs about fifty.
TRIES = {"script": 60}
OTHER_TRIES = 3


# ---- which attempts are good ----


def enough(ret: float, median: float) -> bool:
    """Above 0.75 of the median, 1.25 if that is negative; reached is enough where 0 is the best return: all are 0."""
    return ret > median - 0.25 * abs(median) or ret >= median


def accept(
    tried: list[Demos], episodes: int, ways: int = 1, disturbed: Callable[[int], bool] = lambda number: False
) -> list[Demos]:
    """The rule in the file's head -> at most `episodes`, in the order they were tried.

    With several ways the bar is that of the best one: a way that ends well but does badly before would be imitated,
    too. It counts as the best only if a fifth of the good ones are its own: luck must not rule out everything else.
    """
    good = [a for a in tried if not a.score[0] < FLOOR]  # an own task may have no score: NaN

    def bar(alike: list[Demos]) -> float:
        returns = [[float(a.ret[0]) for a in alike if a.meta["numbers"][0] % ways == way] for way in range(ways)]
        medians = [np.median(values) for values in returns if values and 5 * len(values) >= len(alike)]
        return max(medians, default=0.0)

    bars = {how: bar([a for a in good if disturbed(a.meta["numbers"][0]) == how]) for how in (False, True)}
    return [a for a in good if enough(a.ret[0], bars[disturbed(a.meta["numbers"][0])])][:episodes]


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
            ways = ways_of(self.task, self.source)
            noisy = functools.partial(is_disturbed, ways=ways) if self.source == "script" else lambda number: False
            good += accept(own, self.episodes - len(good), ways, noisy)
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
    # What takes seconds first: nobody waits for it behind hours of planning.
    todo.sort(key=lambda work: (not work.recorded or len(work.recorded.seed) < episodes, work.source != "script"))
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
