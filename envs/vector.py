"""Many environments, few processes: step them all with one call. Imports numpy only.

Each worker process holds many environments and steps them one after the other; observations, actions and rewards pass
through shared memory, and one short message per step and worker through a pipe says "go" and "done". `send` and `recv`
are separate so that the caller can compute while the simulators step. An environment that ends its episode is reset at
once; the observation it ended with is kept in `final_obs`.

    with VectorEnv(["walker-walk", "mw-reach"], seed=0) as vector:
        obs = vector.reset()                                # (2, 128), padded with zeros
        step = vector.step(np.zeros((2, 16), np.float32))

Seeds: the k-th episode of a task's c-th copy starts from SeedSequence([seed, crc32(name), c, k]), so it depends neither
on the other tasks nor on how the work is shared out. Workers are fresh interpreters (spawn): a simulator's threads and
OpenGL do not survive a fork. Nothing outlives the program: a worker ends when its pipe closes, or with its parent, even
by kill -9, and the shared memory is a file without a name, whose descriptor the workers inherit.

Faults: an environment that raises or gives numbers that are not finite is made anew by its worker; a worker that dies
or stays silent is replaced, with all its environments. What was begun is lost (`Step.dropped`), the next episode begins
at once, and one line on stderr says so. A task that fails MAX_FAILURES times before it finishes an episode ends it all.
Test: pytest tests/test_vector.py tests/test_frames.py
"""

import ctypes
import math
import multiprocessing
import os
import pickle
import signal
import sys
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import NamedTuple

import machine

import numpy as np

import envs
from envs.processes import end_all, end_with_parent, hidden_from_signals, light_spawn

# Milliseconds per agent step of one core, median over tasks with random actions: only for sharing out the work.
STEP_MS = {"dmcontrol": 0.2, "dmcontrol-ext": 0.2, "metaworld": 0.6, "maniskill": 5, "mujoco": 0.15, "box2d": 0.15,
           "robodesk": 8, "ogbench": 0.7, "miniarcade": 0.1, "atari": 0.4}  # fmt: skip
# The same of a fast frame (camera.py), and 3 for the rest. One encoded by the learner takes 35 besides.
FRAME_MS = {"dmcontrol": 5, "dmcontrol-ext": 5, "metaworld": 12, "maniskill": 55, "mujoco": 5, "robodesk": 22,
            "ogbench": 6}  # fmt: skip
FRAME = 224  # pixels, both sides
MAX_FAILURES = 3  # of one task without a finished episode in between; then the run ends
BUILD_TIMEOUT_S = 300  # a worker's first answer comes after it has imported its simulators and built its environments
NO_FRAMES = "no frames: "  # how messages begin that name the library which is missing: not the place in a program


class Step(NamedTuple):
    """What a step of n environments gave; the caller owns the arrays."""

    obs: np.ndarray  # (n, O) float32, what the next action answers to: after an end, the next episode's first one
    reward: np.ndarray  # (n,) float32
    done: np.ndarray  # (n,) bool, the episode ended with this step
    final_obs: np.ndarray  # (n, O) float32, what the action led to; differs from obs only where done
    score: np.ndarray  # (n,) float32, of this step; at the end, the episode's
    success: np.ndarray  # (n,) float32, 0 or 1; like score, NaN where a task of one's own doesn't define it
    dropped: np.ndarray  # (n,) bool, a fault lost the unfinished episode: obs begins a new one, all else is 0 or False
    terminated: np.ndarray  # (n,) bool, done, and nothing comes after it; where done without it, time was up


def _views(memory, n: int, obs_dim: int, action_dim: int, workers: int) -> dict[str, np.ndarray]:
    """The shared arrays, one behind the other. All float32: a bool would leave the rest unaligned."""
    shapes = {"obs": (n, obs_dim), "final_obs": (n, obs_dim), "action": (n, action_dim)}
    shapes |= dict.fromkeys(("reward", "done", "terminated", "score", "success"), (n,))
    shapes["at"] = (workers,)  # the environment that a worker is busy with, -1 if none: who is to blame if it dies
    views, start, flat = {}, 0, np.frombuffer(memory, np.float32)
    for name, shape in shapes.items():
        views[name] = flat[start : start + math.prod(shape)].reshape(shape)
        start += math.prod(shape)
    return views


def _frames(memory, n: int) -> np.ndarray:
    """(2, n, 224, 224, 3) uint8: what each environment shows now, and what it showed when it last ended."""
    return np.frombuffer(memory, np.uint8).reshape(2, n, FRAME, FRAME, 3)


def episode_seed(seed: int, task: str, copy: int, k: int) -> int:
    """Seed of the k-th episode of a task's environment; copy: how many of the same task come before it."""
    return int(np.random.SeedSequence([seed, zlib.crc32(task.encode()), copy, k]).generate_state(1)[0])


def share_out(tasks: Sequence[str], workers: int, frames: bool = False) -> list[list[int]]:
    """Indices of the environments of each worker: the longest first, to the worker with least to do.

    frames: each step is also drawn.

    ManiSkill's come before all others and go to as few workers as can hold them within a fair share of the work: its
    packages (torch, SAPIEN) take 500 MB of each process that loads them.
    """
    domain = [envs.TASKS[task].domain if task in envs.TASKS else "" for task in tasks]
    cost = [STEP_MS.get(name, 1.0) + frames * FRAME_MS.get(name, 3) for name in domain]
    each = max(1, int(sum(cost) / workers / (STEP_MS["maniskill"] + frames * FRAME_MS["maniskill"])))
    few = min(workers, math.ceil(domain.count("maniskill") / each))
    load, shares = [0.0] * workers, [[] for _ in range(workers)]
    for i in sorted(range(len(tasks)), key=lambda i: (domain[i] != "maniskill", -cost[i])):
        worker = load.index(min(load[:few] if domain[i] == "maniskill" else load))
        load[worker] += cost[i]
        shares[worker].append(i)
    return [sorted(share) for share in shares]


def _work(pipe, memory, pictures, worker, share, tasks, sizes, seed, make, render_mode, alike) -> None:
    """A worker: build its environments, then answer messages until the parent closes the pipe or dies.

    Messages: ("ready?",), ("reset", [n episode numbers]), ("step",), ("render", i). Answers: ("ok", frame or None,
    [(i, traceback) of each environment that failed and was made anew]), or ("error", traceback) and the end.
    """
    end_with_parent()  # also in the middle of a step that never ends
    if os.name != "posix":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # see hidden_from_signals
    views, made, dims, episode, faults = _views(memory, *sizes), {}, {}, {}, []
    copy = {i: 0 if alike else tasks[:i].count(tasks[i]) for i in share}
    frames = pictures and _frames(pictures, len(tasks))

    def answer(*words) -> None:
        with suppress(ConnectionError):  # nobody listens any more
            pipe.send(words)

    def build(i: int) -> None:
        views["at"][worker] = i
        made[i] = make(tasks[i], episode_seed(seed, tasks[i], copy[i], 0), render_mode)
        dims[i] = (made[i].observation_space.shape[0], made[i].action_space.shape[0])
        if dims[i][0] > sizes[1] or dims[i][1] > sizes[2]:
            raise ValueError(f"{tasks[i]} has {dims[i]} obs and action dims, more than {sizes[1:3]}")
        if pictures:  # OpenGL that is missing is no fault of an episode
            made[i].reset(seed=episode_seed(seed, tasks[i], copy[i], 0))
            draw(i, 0)

    def draw(i: int, last: int) -> None:
        """Into frames[last]: 0 what an environment shows now, 1 where its episode ended."""
        if pictures:
            frames[last, i] = made[i].render()

    def write(i: int, name: str, value, shape: tuple[int, ...] = ()) -> None:
        """Numbers of another shape would be spread over the whole row without a word."""
        value = np.asarray(value, np.float32)
        if value.shape != shape:
            raise ValueError(f"{name} has the shape {value.shape}, declared is {shape}")
        undefined = name in ("score", "success") and ":" in tasks[i] and np.isnan(value)  # envs/custom.py
        if not (undefined or np.isfinite(value).all()):
            raise ValueError(f"{name} is not finite")
        views[name][(i, slice(shape[0])) if shape else i] = value

    def begin(i: int, first: int, broken: bool = False) -> None:
        """Reset environment i to its episode `first`; whenever that fails, a new environment to the one after."""
        for number in range(first, first + MAX_FAILURES + 1):  # the parent gives up before this does
            episode[i] = number
            try:
                views["at"][worker] = i
                if broken:
                    with suppress(Exception):
                        made.pop(i).close()
                    build(i)
                obs = made[i].reset(seed=episode_seed(seed, tasks[i], copy[i], number))[0]
                write(i, "obs", obs, dims[i][:1])
                return draw(i, 0)
            except Exception:
                faults.append((i, traceback.format_exc()))
                broken = True

    def step(i: int) -> None:
        views["at"][worker] = i
        try:
            # A copy: an environment may keep its action, and the shared row changes with the next send.
            obs, reward, terminated, truncated, info = made[i].step(views["action"][i, : dims[i][1]].copy())
            done = terminated or truncated
            write(i, "obs", obs, dims[i][:1])
            write(i, "final_obs", obs, dims[i][:1])
            row = {"reward": reward, "done": done, "terminated": terminated}
            for name, value in (row | {"score": info["score"], "success": info["success"]}).items():
                write(i, name, value)
            draw(i, int(done))
        except Exception:
            faults.append((i, traceback.format_exc()))
            views["done"][i], done = False, False
            begin(i, episode[i] + 1, broken=True)
        if done:
            begin(i, episode[i] + 1)

    try:
        for i in share:
            build(i)
        while True:
            views["at"][worker] = -1
            message, frame = pipe.recv(), None
            if message[0] == "reset":
                for i in share:
                    begin(i, message[1][i])
            elif message[0] == "step":
                for i in share:
                    step(i)
            elif message[0] == "render":
                views["at"][worker] = message[1]
                frame = made[message[1]].render()
            views["at"][worker] = -1  # before the answer: from then on nobody is to blame
            answer("ok", frame, faults)
            faults.clear()
    except Exception as error:  # a simulator's: the parent hears of it. A closed pipe's: nobody does
        answer("error", str(error) if str(error).startswith(NO_FRAMES) else traceback.format_exc())


class VectorEnv:
    """n environments in W processes. Use as a context manager, or call close().

    tasks             list of str
    finished, dropped (n,) int, episodes that ended and episodes lost to faults so far; what reset() cuts off is neither
    episode           (n,) int, the number of each environment's present episode
    """

    def __init__(
        self,
        tasks: Sequence[str],
        seed: int,
        workers: int | None = None,
        obs_dim: int = 128,
        action_dim: int = 16,
        make: Callable = envs.make,
        render_mode: str | None = None,
        frames: bool = False,
        timeout_s: float = 120,
        alike: bool = False,
    ):
        """Start the workers and build every environment.

        tasks      one name per environment; a name may come several times
        workers    processes, default one per core, at most one per environment
        make       make(name, seed, render_mode) -> gymnasium.Env; it must be importable by name (not from a script)
        frames     also draw what the environments show after each reset and step: `frames`; needs render_mode
        timeout_s  a worker that is silent for so long is replaced
        alike      episode k of a task is the same in each of its copies: all are the first
        Raises ValueError (no task, sizes below 1, make is not importable); RuntimeError if an environment cannot be
        made, or a worker dies or stays silent in it for BUILD_TIMEOUT_S, twice.
        """
        n = len(tasks)
        workers = min(n, machine.cores() if workers is None else workers)
        if min(n, workers, obs_dim, action_dim) < 1:
            raise ValueError(f"need at least one task, worker, obs and action dim; got {n} tasks, {workers} workers")
        self.tasks, self.n = list(tasks), n
        self.finished, self.dropped = np.zeros(n, int), np.zeros(n, int)
        self._action_shape, self._timeout_s, self._waiting = (n, action_dim), timeout_s, False
        self._share = share_out(tasks, workers, frames)
        self._every = range(workers)
        self.episode = np.zeros(n, int)  # number of each environment's current one
        self._failures = Counter()  # of each task since it finished an episode
        self._losses = Counter()  # of each worker since it completed a step
        self._pipes, self._processes = {}, {}
        # For those who never call close(): at exit, Python would send SIGTERM, which workers do not get, and then wait.
        self._end = Finalize(self, end_all, (self._pipes, self._processes), exitpriority=0)
        context, sizes = multiprocessing.get_context("spawn"), (n, obs_dim, action_dim, workers)
        # Not SharedMemory: its name would have to live on for replacements, and after kill -9 for ever.
        self._memory = context.RawArray(ctypes.c_float, n * (2 * obs_dim + action_dim + 5) + workers)
        self._views = _views(self._memory, *sizes)  # zeros; the padding is never written
        self._pictures = context.RawArray(ctypes.c_uint8, 2 * n * FRAME * FRAME * 3) if frames else None
        # Shared: until the next send, (n, 224, 224, 3) uint8, of `obs`; and of `final_obs`, where done.
        self.frames, self.final_frames = _frames(self._pictures, n) if frames else (None, None)
        self._context, self._settings = context, (self.tasks, sizes, seed, make, render_mode, alike)
        with self._close_unless_done():
            with light_spawn():
                try:
                    pickle.dumps(make)
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    raise ValueError(f"make must be a function of a module, not of the program: {error}") from error
            lost = dict.fromkeys(self._every, "")
            while lost:
                self._start(lost)
                self._tell(("ready?",), lost)
                lost = self._answers(lost, BUILD_TIMEOUT_S)[1]
                for worker, reason in lost.items():
                    self._losses[worker] += 1
                    raises = reason.startswith(("Traceback", NO_FRAMES))  # what raised will raise again
                    if raises or self._losses[worker] > 1:
                        raise RuntimeError(self._what_failed(worker, reason))
                    line = " ".join(self._what_failed(worker, reason).split())
                    sys.stderr.write(f"{line}; a new one is started\n")

    def _start(self, workers: Iterable[int]) -> None:
        with light_spawn(), hidden_from_signals():
            for worker in workers:
                self._views["at"][worker] = -1
                pipe, remote = self._context.Pipe()
                args = (remote, self._memory, self._pictures, worker, self._share[worker], *self._settings)
                process = self._context.Process(target=_work, args=args, daemon=True)
                process.start()
                remote.close()  # else a dead worker would not close the pipe
                self._pipes[worker], self._processes[worker] = pipe, process

    @contextmanager
    def _close_unless_done(self):
        """After a failure or Ctrl-C halfway, the next answer would be one to an older question: end it instead."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _answers(self, workers: Iterable[int], limit_s: float) -> tuple[dict[int, tuple], dict[int, str]]:
        """One answer from each of these workers. -> {worker: (frame, faults)}, {lost worker, now dead: the reason}"""
        answers, lost, end = {}, {}, time.monotonic() + limit_s
        while pending := set(workers) - answers.keys() - lost.keys():
            # Both: a simulator's own child may hold a dead worker's end of the pipe open.
            watched = {x: w for w in pending for x in (self._pipes[w], self._processes[w].sentinel)}
            ready = wait(list(watched), max(0.0, end - time.monotonic()))
            if not ready:
                lost |= dict.fromkeys(pending, f"no answer for {limit_s:g} s")
            for worker in {watched[x] for x in ready}:
                try:
                    answer = self._pipes[worker].recv() if self._pipes[worker].poll() else None
                except (EOFError, OSError):
                    answer = None
                if answer is None:  # its process has ended, without a last word
                    self._processes[worker].join(1)  # else the exit code is not known yet; -9 often means: no memory
                    lost[worker] = f"a worker process died (exit code {self._processes[worker].exitcode})"
                elif answer[0] == "error":
                    lost[worker] = answer[1]
                else:
                    answers[worker] = answer[1:]
        for worker in lost:
            self._pipes[worker].close()
            self._processes[worker].kill()
            self._processes[worker].join()
        return answers, lost

    def _what_failed(self, worker: int, reason: str) -> str:
        if (i := int(self._views["at"][worker])) >= 0:
            return f"environment {self.tasks[i]} failed:\n{reason}"
        return f"{reason}, with the environments of {', '.join(sorted({self.tasks[i] for i in self._share[worker]}))}"

    def _repair(self, answers: dict[int, tuple], lost: dict[int, str], unfinished: np.ndarray) -> None:
        """Report all faults, and replace lost workers until every environment is at the beginning of an episode.

        unfinished (n,) bool: episodes that a fault would drop; False is written for those that were.
        """
        while True:
            for i, reason in [fault for _, faults in answers.values() for fault in faults]:
                self._report(i, reason, [i], unfinished)
            for worker, reason in lost.items():
                self._report(int(self._views["at"][worker]), reason, self._share[worker], unfinished)
                self._losses[worker] += 1
                if self._losses[worker] > MAX_FAILURES:
                    raise RuntimeError(f"{self._what_failed(worker, reason)}, again and again")
            if not lost:
                return
            self._start(lost)
            self._tell(("reset", self.episode.tolist()), lost)
            answers, lost = self._answers(lost, BUILD_TIMEOUT_S)

    def _report(self, i: int, reason: str, ended: list[int], unfinished: np.ndarray) -> None:
        """A fault of environment i (-1: of none) ended the episodes of these. RuntimeError if it was one too many."""
        count = int(unfinished[ended].sum())
        unfinished[ended] = False
        self.episode[ended] += 1
        task, what = self.tasks[i] if i >= 0 else "no task at fault", reason.strip().splitlines()[-1][:200]
        sys.stderr.write(f"{task}: {what}; {count} unfinished episode{'s' * (count != 1)} dropped\n")
        if i >= 0:
            self._failures[task] += 1
            if self._failures[task] >= MAX_FAILURES:
                often = f"{MAX_FAILURES} times without finishing an episode, at last"
                raise RuntimeError(f"environment {task} failed {often}:\n{reason}")

    def _require_idle(self) -> None:
        if not self._pipes:
            raise RuntimeError("this VectorEnv is closed")
        if self._waiting:
            raise RuntimeError("recv() must follow send() before anything else")

    def _tell(self, message: tuple, workers: Iterable[int]) -> None:
        for worker in workers:
            with suppress(ConnectionError):  # a dead one; _answers will find out
                self._pipes[worker].send(message)

    def reset(self, episode: int | np.ndarray = 0) -> np.ndarray:
        """Restart all environments, counting their episodes from `episode`, a number for all or of each (n,), or after
        a fault from the next. -> obs (n, O)"""
        self._require_idle()
        with self._close_unless_done():
            self.episode[:] = episode
            self._tell(("reset", self.episode.tolist()), self._every)
            self._repair(*self._answers(self._every, self._timeout_s), unfinished=np.zeros(self.n, bool))
        return self._views["obs"].copy()

    def send(self, action: np.ndarray) -> None:
        """Let the environments start a step. action (n, A) float32 in [-1, 1]; what is beyond a task's dims is ignored.

        Raises ValueError for another shape or numbers that are not finite: a simulator would not recover from them.
        """
        self._require_idle()
        action = np.asarray(action, np.float32)
        if action.shape != self._action_shape:
            raise ValueError(f"action must have shape {self._action_shape}, got {action.shape}")
        finite = np.isfinite(action).all(1)
        if not finite.all():
            i = int(np.argmin(finite))
            raise ValueError(f"the action of environment {i} ({self.tasks[i]}) is not finite")
        self._views["action"][:] = action
        with self._close_unless_done():
            self._tell(("step",), self._every)
            self._waiting = True

    def recv(self) -> Step:
        """Wait for the step that send() started, and for replacements. RuntimeError if a task failed too often."""
        if not self._waiting:
            raise RuntimeError("send() must come before recv()" if self._pipes else "this VectorEnv is closed")
        with self._close_unless_done():
            self._waiting = False
            answers, lost = self._answers(self._every, self._timeout_s)
            done = self._views["done"] > 0
            for worker in lost:
                done[self._share[worker]] = False
            for worker in answers:
                self._losses[worker] = 0
            for i in np.flatnonzero(done):
                self._failures[self.tasks[i]] = 0
            self.episode += done
            unfinished = ~done
            self._repair(answers, lost, unfinished)
        dropped = ~done & ~unfinished
        self.finished += done
        self.dropped += dropped
        arrays = {name: view.copy() for name, view in self._views.items() if name in Step._fields}
        for name in ("reward", "final_obs", "score", "success"):
            arrays[name][dropped] = 0
        return Step(**arrays | {"done": done, "dropped": dropped, "terminated": done & (arrays["terminated"] > 0)})

    def step(self, action: np.ndarray) -> Step:
        """send() and recv()."""
        self.send(action)
        return self.recv()

    def render(self, i: int) -> np.ndarray:
        """Frame of environment i, (224, 224, 3) uint8; needs render_mode="rgb_array"."""
        if not 0 <= i < self.n:
            raise ValueError(f"there is no environment {i}: they are 0 to {self.n - 1}")
        worker = next(w for w, share in enumerate(self._share) if i in share)
        self._require_idle()
        with self._close_unless_done():
            self._tell(("render", i), [worker])
            answers, lost = self._answers([worker], self._timeout_s)
            if lost:
                raise RuntimeError(self._what_failed(worker, lost[worker]))
            return answers[worker][0]

    def close(self) -> None:
        """End the workers and free the memory. Safe to call twice."""
        self._end()
        self._views, self._memory, self._waiting = {}, None, False
        self._pictures = self.frames = self.final_frames = None

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(self, *_) -> None:
        self.close()
