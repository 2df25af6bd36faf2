"""Many environments, few processes: step them all with one call. Imports numpy only.

Each worker process holds many environments and steps them one after the other; observations, actions and rewards pass
through shared memory, and one short message per step and worker through a pipe says "go" and "done". `send` and `recv`
are separate so that the caller can compute while the simulators step. An environment that ends its episode is reset at
once; the observation it ended with is kept in `final_obs`.

    with VectorEnv(["walker-walk", "mw-reach"], seed=0) as vector:
        obs = vector.reset()                                # (2, 128), padded with zeros
        step = vector.step(np.zeros((2, 16), np.float32))

Seeds: environment i's k-th episode starts from SeedSequence([seed, i, k]), so the numbers do not depend on how many
workers share the work. Workers are fresh interpreters (spawn): a simulator's threads and OpenGL do not survive a fork.
Nothing outlives the program: a worker ends when its pipe closes, which even kill -9 of the program does, and the shared
memory loses its name as soon as every worker holds it, so there is nothing left to remove.
Test: pytest tests/test_vector.py
"""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import types
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import wait
from multiprocessing.shared_memory import SharedMemory
from typing import NamedTuple, NoReturn

import numpy as np

import envs

# Milliseconds per agent step of one core, median over tasks with random actions: only for sharing out the work.
STEP_MS = {"dmcontrol": 0.2, "dmcontrol-ext": 0.2, "metaworld": 0.6, "maniskill": 5, "mujoco": 0.15, "box2d": 0.15,
           "robodesk": 8, "ogbench": 0.7, "miniarcade": 0.1, "atari": 0.4}  # fmt: skip
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


class Step(NamedTuple):
    """What a step of n environments gave; the caller owns the arrays."""

    obs: np.ndarray  # (n, O) float32, what the next action answers to: after an end, the next episode's first one
    reward: np.ndarray  # (n,) float32
    done: np.ndarray  # (n,) bool, the episode ended with this step
    final_obs: np.ndarray  # (n, O) float32, what the action led to; differs from obs only where done
    score: np.ndarray  # (n,) float32, of this step; at the end, the episode's
    success: np.ndarray  # (n,) float32, 0 or 1


def _views(memory: SharedMemory, n: int, obs_dim: int, action_dim: int) -> dict[str, np.ndarray]:
    """The shared arrays, one behind the other. All float32: a bool would leave the rest unaligned."""
    shapes = {"obs": (n, obs_dim), "final_obs": (n, obs_dim), "action": (n, action_dim)}
    shapes |= dict.fromkeys(("reward", "done", "score", "success"), (n,))
    views, start = {}, 0
    for name, shape in shapes.items():
        views[name] = np.ndarray(shape, np.float32, memory.buf, 4 * start)
        start += int(np.prod(shape))
    return views


def episode_seed(seed: int, i: int, k: int) -> int:
    """Seed of environment i's k-th episode."""
    return int(np.random.SeedSequence([seed, i, k]).generate_state(1)[0])


def share_out(tasks: Sequence[str], workers: int) -> list[list[int]]:
    """Indices of the environments of each worker: the longest first, to the worker with least to do."""
    cost = [STEP_MS.get(envs.TASKS[task].domain, 1.0) if task in envs.TASKS else 1.0 for task in tasks]
    load, shares = [0.0] * workers, [[] for _ in range(workers)]
    for i in sorted(range(len(tasks)), key=lambda i: -cost[i]):
        worker = load.index(min(load))
        load[worker] += cost[i]
        shares[worker].append(i)
    return [sorted(share) for share in shares]


def _work(pipe, memory_name, share, tasks, n, obs_dim, action_dim, seed, make, render_mode) -> None:
    """A worker: build its environments, then answer messages until the parent closes the pipe or dies.

    Messages: ("reset", k), ("step",), ("render", i). Answers: ("ok", frame or None) or ("error", task, traceback).
    """

    def answer(*words) -> None:
        with suppress(ConnectionError):  # nobody listens any more
            pipe.send(words)

    task, memory = tasks[share[0]], None
    try:
        memory = SharedMemory(memory_name)
        views = _views(memory, n, obs_dim, action_dim)
        made, dims, episode = {}, {}, dict.fromkeys(share, 0)
        for i in share:
            task = tasks[i]
            made[i] = make(task, episode_seed(seed, i, 0), render_mode)
            dims[i] = (made[i].observation_space.shape[0], made[i].action_space.shape[0])
            if dims[i][0] > obs_dim or dims[i][1] > action_dim:
                raise ValueError(f"{task} has {dims[i]} obs and action dims, more than {(obs_dim, action_dim)}")

        def reset(i: int) -> None:
            views["obs"][i, : dims[i][0]] = made[i].reset(seed=episode_seed(seed, i, episode[i]))[0]
            episode[i] += 1

        answer("ok", None)
        while True:
            message, frame = pipe.recv(), None
            if message[0] == "reset":
                for i in share:
                    task, episode[i] = tasks[i], message[1]
                    reset(i)
            elif message[0] == "step":
                for i in share:
                    task = tasks[i]
                    # A copy: an environment may keep its action, and the shared row changes with the next send.
                    obs, reward, terminated, truncated, info = made[i].step(views["action"][i, : dims[i][1]].copy())
                    views["final_obs"][i, : dims[i][0]] = views["obs"][i, : dims[i][0]] = obs
                    done = terminated or truncated
                    row = {"reward": reward, "done": done, "score": info["score"], "success": info["success"]}
                    for name, value in row.items():
                        views[name][i] = value
                    if done:
                        reset(i)
            else:
                task = tasks[message[1]]
                frame = made[message[1]].render()
            answer("ok", frame)
    except Exception:  # a simulator's: the parent raises it with the task's name. A closed pipe's: nobody hears it
        answer("error", task, traceback.format_exc())
    finally:
        views = None  # no array may point into the memory once it is closed
        if memory is not None:
            memory.close()


@contextmanager
def light_spawn():
    """Children neither import the program that was started (train.py would load torch into each) nor use threads.

    Spawn runs the file of `__main__` again in every child, if it has one; a bare module in its place has none. The
    number of threads must be in the environment before a child imports numpy: setting it there would be too late.
    """
    main, before = sys.modules["__main__"], {name: os.environ.get(name) for name in THREADS}
    sys.modules["__main__"] = types.ModuleType("__main__")
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def end_with_parent() -> None:
    """First call in each process of a pool: one whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _hidden_from_ctrl_c():
    """Children started here never get SIGINT: it reaches every process, but only the parent decides what it means.

    A mask is inherited, so it holds from a child's first moment; the caller gets a Ctrl-C when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class VectorEnv:
    """n environments in W processes. Use as a context manager, or call close()."""

    def __init__(
        self,
        tasks: Sequence[str],
        seed: int,
        workers: int | None = None,
        obs_dim: int = 128,
        action_dim: int = 16,
        make: Callable = envs.make,
        render_mode: str | None = None,
        timeout_s: float = 120,
    ):
        """Start the workers and build every environment.

        tasks      one name per environment; a name may come several times
        workers    processes, default one per core, at most one per environment
        make       make(name, seed, render_mode) -> gymnasium.Env; it must be importable by name (not from a script)
        timeout_s  longest wait for an answer
        Raises ValueError (no task, sizes below 1, make is not importable); RuntimeError if an environment cannot be
        made or a worker dies.
        """
        n = len(tasks)
        workers = min(n, (os.cpu_count() or 1) if workers is None else workers)
        if min(n, workers, obs_dim, action_dim) < 1:
            raise ValueError(f"need at least one task, worker, obs and action dim; got {n} tasks, {workers} workers")
        self.tasks, self.n = list(tasks), n
        self._action_shape, self._timeout_s, self._waiting = (n, action_dim), timeout_s, False
        self._share = share_out(tasks, workers)
        self._pipes, self._processes, self._watched = [], [], {}
        self._memory = memory = SharedMemory(create=True, size=4 * n * (2 * obs_dim + action_dim + 4))
        try:
            self._views = _views(memory, n, obs_dim, action_dim)
            for view in self._views.values():
                view[:] = 0  # the padding is never written again
            context = multiprocessing.get_context("spawn")
            with light_spawn(), _hidden_from_ctrl_c():
                try:
                    pickle.dumps(make)
                except (pickle.PicklingError, AttributeError, TypeError) as error:
                    raise ValueError(f"make must be a function of a module, not of the program: {error}") from error
                for share in self._share:
                    pipe, remote = context.Pipe()
                    sizes = (n, obs_dim, action_dim)
                    args = (remote, self._memory.name, share, self.tasks, *sizes, seed, make, render_mode)
                    process = context.Process(target=_work, args=args, daemon=True)
                    process.start()
                    remote.close()  # else a dead worker would not close the pipe
                    self._pipes.append(pipe)
                    self._processes.append(process)
            # Both: a simulator's own child may hold a dead worker's end of the pipe open.
            self._watched = {x: w for w in range(workers) for x in (self._pipes[w], self._processes[w].sentinel)}
            self._answers(range(workers))
        except BaseException:
            self.close()
            raise
        finally:
            memory.unlink()  # only the name: it stays usable for those who hold it

    @contextmanager
    def _close_unless_done(self):
        """After a failure or Ctrl-C halfway, the next answer would be one to an older question: end it instead."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _answers(self, workers: Sequence[int]) -> list:
        """One answer from each of these workers. RuntimeError if one failed, died or stays silent."""
        pending, answers, end = set(workers), {}, time.monotonic() + self._timeout_s
        while pending:
            watched = [x for x, worker in self._watched.items() if worker in pending]
            ready = wait(watched, timeout=max(0.0, end - time.monotonic()))
            if not ready:
                self._fail(f"no answer for {self._timeout_s:g} s from", pending)
            for worker in {self._watched[x] for x in ready}:
                pipe = self._pipes[worker]
                try:
                    if pipe not in ready and not pipe.poll():  # its process has ended, without a last word
                        self._fail_dead(worker)
                    answer = pipe.recv()
                except (EOFError, ConnectionError):
                    self._fail_dead(worker)
                if answer[0] == "error":
                    raise RuntimeError(f"environment {answer[1]} failed:\n{answer[2]}")
                answers[worker] = answer[1]
                pending.remove(worker)
        return [answers[w] for w in workers]

    def _fail(self, what: str, workers) -> NoReturn:
        names = sorted({self.tasks[i] for w in workers for i in self._share[w]})
        raise RuntimeError(f"{what} the environments of {', '.join(names)}") from None

    def _fail_dead(self, worker: int) -> NoReturn:
        self._processes[worker].join(1)  # else the exit code is not known yet; -9 often means: out of memory
        self._fail(f"a worker process died (exit code {self._processes[worker].exitcode}), with", [worker])

    def _require_idle(self) -> None:
        if not self._pipes:
            raise RuntimeError("this VectorEnv is closed")
        if self._waiting:
            raise RuntimeError("recv() must follow send() before anything else")

    def _tell(self, message: tuple, workers: Sequence[int]) -> None:
        for worker in workers:
            try:
                self._pipes[worker].send(message)
            except ConnectionError:
                self._fail_dead(worker)

    def reset(self, episode: int = 0) -> np.ndarray:
        """Restart all environments, counting their episodes from `episode`. -> obs (n, O)"""
        self._require_idle()
        with self._close_unless_done():
            self._tell(("reset", episode), range(len(self._share)))
            self._answers(range(len(self._share)))
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
            self._tell(("step",), range(len(self._share)))
            self._waiting = True

    def recv(self) -> Step:
        """Wait for the step that send() started. RuntimeError if a worker failed, died or is silent for timeout_s."""
        if not self._waiting:
            raise RuntimeError("send() must come before recv()" if self._pipes else "this VectorEnv is closed")
        with self._close_unless_done():
            self._waiting = False
            self._answers(range(len(self._share)))
        arrays = {name: view.copy() for name, view in self._views.items() if name != "action"}
        return Step(**arrays | {"done": arrays["done"] > 0})

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
            return self._answers([worker])[0]

    def close(self) -> None:
        """End the workers and free the memory. Safe to call twice."""
        for pipe in self._pipes:
            pipe.close()
        end = time.monotonic() + 1
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():  # hangs in its simulator
                process.kill()
                process.join()
        self._views = {}
        if self._memory is not None:
            self._memory.close()
        self._pipes, self._processes, self._watched, self._memory, self._waiting = [], [], {}, None, False

    def __enter__(self) -> "VectorEnv":
        return self

    def __exit__(self, *_) -> None:
        self.close()
