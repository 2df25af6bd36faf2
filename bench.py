"""How fast are the parts here? Update, decision, replay and simulators, each timed alone on this machine.

    python bench.py                          size XS, CPU
    python bench.py --size L --batch-size 256 --device cuda
    python bench.py envs                     every task: steps/s, creation time, and what our wrapping costs; memory
    python bench.py vector --count 150       all tasks in few processes; then 150 of them, and in one process for each
    python bench.py overlap                  200 tasks online: what learning while the simulators step saves
Medians over repeats. OMP_NUM_THREADS=1 in front for figures of one core.
Test: pytest tests/test_bench.py
"""

import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.resource_tracker import ensure_running
from typing import Literal, NamedTuple

import machine

import tyro

import command


@dataclass(frozen=True)
class Bench:
    """Time the parts of Newt."""

    size: Literal["XS", "S", "B", "L", "XL"] = "XS"
    """network size"""
    batch_size: int = 128
    """slices per update"""
    envs: int = 8
    """environments that decide at once"""
    tasks: str = "walker-walk,mw-reach"
    """tasks whose stepping is timed, `--envs` copies of each"""
    workers: int = 0
    """simulator processes; 0: one per core"""
    buffer_steps: int = 500_000
    """transitions in the replay buffer that is sampled, 1024 slices at a time"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""


@dataclass(frozen=True)
class EnvBench:
    """Time every task alone, and weigh every suite, each in a process of its own."""

    tasks: str = "all,heldout"
    """which ones"""
    steps: int = 200
    """agent steps of a measurement, which is taken five times or for two seconds; the best counts"""


@dataclass(frozen=True)
class VectorBench:
    """Step all tasks together, at random: few processes for many environments against one process for each.

    The latter is gymnasium's AsyncVectorEnv. All of them live at once and take turns, with the same actions. If memory
    is too small for that (--count), ours step all tasks before, alone.
    """

    tasks: str = "all"
    """which ones"""
    count: int = 0
    """so many of them, evenly spread, get a process each, which takes 100 MB or more; 0: all"""
    workers: tuple[int, ...] = (1, 2)
    """processes of our vector environment, one measurement for each of these numbers"""
    start: Literal["fork", "spawn"] = "fork"
    """how AsyncVectorEnv starts its processes; fork (Linux only) takes less time and memory. Ours are spawned"""
    concurrency: int = 0
    """how many of AsyncVectorEnv's processes may step at once; 0: all, its default"""
    steps: int = 100
    """steps of all tasks in a turn; the median of the turns counts"""
    turns: int = 3
    """of each"""


@dataclass(frozen=True)
class OverlapBench:
    """The online loop of train.py, preset laptop: updates while the simulators step, and after they have stepped."""

    tasks: str = "all"
    """which ones"""
    utd: float | None = None
    """updates per environment step, counted over all environments; default: the preset's"""
    workers: int = 0
    """simulator processes; 0: one per core"""
    steps: int = 5
    """steps of all tasks in a turn"""
    turns: int = 4
    """of each way; the median over all their steps counts"""


COMMANDS = {"": Bench, "envs": EnvBench, "vector": VectorBench, "overlap": OverlapBench}

if __name__ == "__main__":
    chosen = sys.argv[1] if sys.argv[1:] and sys.argv[1] in COMMANDS else ""
    words, name = sys.argv[1 + bool(chosen) :], f"bench.py {chosen}".rstrip()
    given = command.start(lambda: tyro.cli(COMMANDS[chosen], args=words, prog=name))

# Only now what takes seconds to load: --help and wrong words are answered above.
import numpy as np
import psutil
import torch
from gymnasium.spaces import Box
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers import TransformAction, TransformObservation

import envs
import newt
from buffer import Buffer, gigabytes, sample_mixed
from envs.browse import time_suite
from envs.processes import light_spawn
from envs.vector import VectorEnv, episode_seed
from eval import pick_device, share_cores
from train_config import LAPTOP

OBS_DIM, ACTION_DIM = newt.Config.obs_dim, newt.Config.action_dim  # the common shape of all tasks
LEAST_FREE_GB = 3.0  # of main memory, or `bench.py vector` ends before the operating system kills what it likes


def milliseconds(call: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Median time of a call. The first two are not counted: they allocate and choose kernels."""

    def finished() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()  # calls return before the GPU is done
        return time.perf_counter()

    times = []
    for _ in range(repeats + 2):
        start = finished()
        call()
        times.append((finished() - start) * 1e3)
    return statistics.median(times[2:])


def filled(capacity: int, cfg: newt.Config, tasks: int, length: int = 500) -> Buffer:
    """A replay buffer with as many episodes of zeros as it holds, of all tasks in turn."""
    replay = Buffer(capacity, cfg.obs_dim, cfg.action_dim)
    obs = torch.zeros(length + 1, cfg.obs_dim)
    action, reward = torch.zeros(length + 1, cfg.action_dim), torch.zeros(length + 1)
    action[0], reward[0] = torch.nan, torch.nan
    for k in range(capacity // (length + 1)):
        replay.add(obs, action, reward, k % tasks)
    return replay


def main(cfg: Bench) -> None:
    ranges = {"batch_size": (1, 10**6), "envs": (1, 4096), "workers": (0, 4096), "buffer_steps": (1024, 10**15)}
    command.check_fields(cfg, ranges)
    names, device = envs.select(cfg.tasks), pick_device(cfg.device)
    share_cores(cfg.size)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    settings = newt.Config(size=cfg.size, batch_size=cfg.batch_size, task_dim=384)
    agent = newt.create(settings, ["task"], torch.randn(1, 384), [settings.action_dim], [0.99], device=device)
    generator = torch.Generator().manual_seed(0)
    replay = filled(cfg.buffer_steps, settings, 1)
    ms = milliseconds(lambda: replay.sample(1024, 3, generator), torch.device("cpu"), 100)
    need = gigabytes(cfg.buffer_steps, settings.obs_dim, settings.action_dim, torch.float32)
    print(f"{'buffer.sample':24} {ms:10.2f} ms   1024 slices of 3 from {replay.steps} transitions ({need:.2f} GB)")

    batch = replay.sample(cfg.batch_size, settings.horizon, generator)
    batch = type(batch)(*(x.to(device) for x in batch))
    for phase in ("pretrain", "online"):
        ms = milliseconds(lambda phase=phase: newt.update(agent, batch, phase), device)
        print(f"{'update ' + phase:24} {ms:10.2f} ms   size {cfg.size}, batch {cfg.batch_size}")

    zeros = torch.zeros(cfg.envs, dtype=torch.long, device=device)
    obs = torch.zeros(cfg.envs, settings.obs_dim, device=device)
    warm = torch.zeros(cfg.envs, settings.horizon, settings.action_dim, device=device)
    ms = milliseconds(lambda: newt.act(agent, obs, zeros, warm, zeros == 0), device, 5)
    plan = f"{settings.num_samples} plans x {settings.iterations}, {cfg.envs} environments at once"
    print(f"{'act':24} {ms / cfg.envs:10.2f} ms   per environment; size {cfg.size}, {plan}")

    for name in names:
        with VectorEnv([name] * cfg.envs, 0, cfg.workers or None, settings.obs_dim, settings.action_dim) as vector:
            vector.reset()
            action = np.zeros((cfg.envs, settings.action_dim), np.float32)
            ms = milliseconds(lambda vector=vector, action=action: vector.step(action), torch.device("cpu"), 200)
        print(f"{'step ' + name:24} {cfg.envs / ms * 1e3:10.0f} /s   agent steps, {cfg.envs} environments")


def main_envs(cfg: EnvBench) -> None:
    command.check_fields(cfg, {"steps": (1, 10**6)})
    suites: dict[str, list[str]] = {}
    for name in envs.select(cfg.tasks):
        suites.setdefault(envs.TASKS[name].domain, []).append(name)
    context = multiprocessing.get_context("spawn")
    for names in suites.values():
        queue = context.Queue()
        child = context.Process(target=time_suite, args=(names, cfg.steps, queue))
        with light_spawn():
            child.start()
        while (line := queue.get()) is not None:
            print(line, flush=True)
        child.join()


# ---------------------------------------------------------------- vector


def process_for_each(names: list[str], start: str, concurrency: int) -> AsyncVectorEnv:
    """The usual way. Padded to a common shape, since the spaces must be equal; resets as ours, within the last step."""

    def maker(name: str) -> Callable:
        def make():  # it is sent to the process as code: importing this program there would load torch
            env = envs.make(name)
            n, rest = env.action_space.shape[0], np.zeros(OBS_DIM - env.observation_space.shape[0], np.float32)
            shape = Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
            env = TransformObservation(env, lambda obs: np.concatenate((obs, rest)), shape)
            return TransformAction(env, lambda action: action[:n], Box(-1, 1, (ACTION_DIM,), np.float32))

        return make

    with light_spawn():
        return AsyncVectorEnv(
            [maker(name) for name in names], context=start, autoreset_mode=AutoresetMode.SAME_STEP,
            max_concurrency=concurrency or None,
        )  # fmt: skip


class Contender(NamedTuple):
    label: str
    vector: VectorEnv | AsyncVectorEnv
    processes: set[psutil.Process]
    built_s: float  # with the first reset


def contend(label: str, build: Callable, reset: dict) -> Contender:
    before, start = set(psutil.Process().children(recursive=True)), time.perf_counter()
    vector = build()
    vector.reset(**reset)
    return Contender(
        label, vector, set(psutil.Process().children(recursive=True)) - before, time.perf_counter() - start
    )


def memory_gb(processes: set[psutil.Process]) -> tuple[float, float]:
    """Sum of PSS, in which a page that k processes share counts 1/k in each, and of RSS, where it counts k times.

    Systems other than Linux don't tell the PSS: there, RSS takes its place.
    """
    sizes = [process.memory_full_info() for process in processes]
    return sum(getattr(size, "pss", size.rss) for size in sizes) / 1e9, sum(size.rss for size in sizes) / 1e9


@contextmanager
def memory_guard(advice: str):
    """End all children started within while LEAST_FREE_GB are still free: RuntimeError. Else the machine might end."""
    stop, hit, before = threading.Event(), threading.Event(), set(psutil.Process().children(recursive=True))

    def watch() -> None:
        while not stop.wait(0.1):
            if psutil.virtual_memory().available < LEAST_FREE_GB * 1e9:
                hit.set()
                for child in set(psutil.Process().children(recursive=True)) - before:
                    child.kill()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    except (EOFError, OSError, RuntimeError) as error:  # whoever waited for a child that was killed
        if not hit.is_set():
            raise
        raise RuntimeError(f"less than {LEAST_FREE_GB:g} GB of memory were left: stopped. {advice}") from error
    finally:
        stop.set()
        thread.join()


def main_vector(cfg: VectorBench) -> None:
    command.check_fields(cfg, {"count": (0, 4096), "concurrency": (0, 4096), "steps": (1, 10**6), "turns": (1, 10**6)})
    if not cfg.workers or min(cfg.workers) < 1:
        raise ValueError(f"workers must be numbers of at least 1, got {cfg.workers}")
    names = envs.select(cfg.tasks)
    if not 0 <= cfg.count <= len(names):
        raise ValueError(f"count must be from 0 to {len(names)}, the number of tasks; got {cfg.count}")
    n = cfg.count or len(names)
    torch.set_num_threads(1)  # forked processes inherit it, and ManiSkill's would get in each other's way
    ensure_running()  # the process that watches over shared memory is nobody's worker
    if n < len(names):
        take_turns(cfg, names, usual=False)
    take_turns(cfg, [names[i * len(names) // n] for i in range(n)], usual=True)


def take_turns(cfg: VectorBench, names: list[str], usual: bool) -> None:
    """Step these tasks in our vector environments and in the usual one, in turns, and print what that took."""
    n, random = len(names), np.random.default_rng(0)
    builds = [(f"VectorEnv, {w} worker{'s' * (w > 1)}", lambda w=w: VectorEnv(names, 0, w, OBS_DIM, ACTION_DIM), {})
              for w in cfg.workers]  # fmt: skip
    if usual:
        seeds = [episode_seed(0, name, 0, 0) for name in names]  # the first episodes are the same ones, too
        label = f"AsyncVectorEnv, {cfg.start}" + f", {cfg.concurrency} at once" * bool(cfg.concurrency)
        builds.append((label, lambda: process_for_each(names, cfg.start, cfg.concurrency), {"seed": seeds}))
    speeds: dict[str, list[float]] = {label: [] for label, _, _ in builds}
    with ExitStack() as stack:
        stack.enter_context(memory_guard(f"Take fewer than {n} tasks, for example --count {max(1, n * 3 // 4)}"))
        contenders = []
        for build in builds:
            contenders.append(contend(*build))
            stack.enter_context(closing(contenders[-1].vector))
            print(f"{contenders[-1].label}: {n} tasks, built in {contenders[-1].built_s:.1f} s", flush=True)
        for turn in range(cfg.turns + 1):
            actions = random.uniform(-1, 1, (cfg.steps, n, ACTION_DIM)).astype(np.float32)
            for label, vector, *_ in contenders:
                start = time.perf_counter()
                for action in actions:
                    vector.step(action)
                if turn:  # the first one touches what is touched only once
                    speeds[label].append(cfg.steps * n / (time.perf_counter() - start))
        sizes = {label: memory_gb(processes) for label, _, processes, _ in contenders}

    head = f"{'':34}{'processes':>10}{'tasks':>7}{'steps/s':>10}{'lowest':>9}{'highest':>9}"
    print(f"{head}{'built in s':>12}{'PSS GB':>9}{'RSS GB':>9}")
    for label, _, processes, built_s in contenders:
        all_turns, (pss, rss) = speeds[label], sizes[label]
        row = f"{label:34}{len(processes):10}{n:7}{statistics.median(all_turns):10.0f}{min(all_turns):9.0f}"
        print(f"{row}{max(all_turns):9.0f}{built_s:12.1f}{pss:9.2f}{rss:9.2f}")
    last = contenders[-1].label
    for label, *_ in contenders[:-1] if usual else ():
        faster = statistics.median(speeds[label]) / statistics.median(speeds[last])
        # Its PSS by our RSS: the most careful way to compare processes that share pages, also with the other side.
        less = sizes[last][0] / sizes[label][1]
        print(f"{label}: {faster:.2f} times the steps/s, {less:.1f} times less memory (its PSS by our RSS)")


# ---------------------------------------------------------------- overlap


def main_overlap(cfg: OverlapBench) -> None:
    ranges = {"utd": (0, 1000), "workers": (0, 4096), "steps": (1, 10**6), "turns": (1, 10**6)}
    command.check_fields(cfg, ranges)
    names, a = envs.select(cfg.tasks), LAPTOP.agent
    n, rows = len(names), [envs.TASKS[name] for name in names]
    share_cores(a.size)
    generator = torch.Generator().manual_seed(0)
    agent = newt.create(
        a, names, torch.randn(n, a.task_dim, generator=generator), [row.action_dim for row in rows],
        [row.discount for row in rows],
    )  # fmt: skip
    replay = filled(501 * max(n, 200), a, n)
    task, each = torch.arange(n), max(1, round((LAPTOP.utd if cfg.utd is None else cfg.utd) * n))
    workers = cfg.workers or machine.cores()
    with VectorEnv(names, 0, workers, a.obs_dim, a.action_dim) as vector:
        obs, first, warm = vector.reset(), task >= 0, torch.zeros(n, a.horizon, a.action_dim)
        times: dict[bool, list[np.ndarray]] = {True: [], False: []}

        def step(overlap: bool) -> np.ndarray:
            """One step of all environments -> seconds: deciding, then updating and waiting in this or that order."""
            nonlocal obs, first, warm
            marks = [time.perf_counter()]
            plan = newt.act(agent, torch.as_tensor(obs), task, warm, first, 0, True)
            warm = plan.mean
            marks.append(time.perf_counter())
            vector.send(plan.action.numpy())
            if not overlap:
                result = vector.recv()
                marks.append(time.perf_counter())
            for _ in range(each):
                newt.update(agent, sample_mixed(replay, replay, a.batch_size, a.horizon, generator, LAPTOP.sampling),
                            "online")  # fmt: skip
            if overlap:
                marks.append(time.perf_counter())
                result = vector.recv()
            marks.append(time.perf_counter())
            obs, first = result.obs, torch.as_tensor(result.done)
            return np.diff(marks)

        print(f"{n} tasks, {workers} workers, {each} updates per step of all, size {a.size}, batch {a.batch_size}, "
              f"{torch.get_num_threads()} of {machine.cores()} cores for an update", flush=True)  # fmt: skip
        step(True)
        for _ in range(cfg.turns):
            for overlap in times:
                times[overlap] += [step(overlap) for _ in range(cfg.steps)]

    (plan, update, wait), (plan_0, simulate, update_0) = (np.median(times[way], 0) * 1e3 for way in (True, False))
    wall, wall_0 = (statistics.median(x.sum() for x in times[way]) * 1e3 for way in (True, False))
    print(f"{'ms per step of all tasks':34}{'wall':>9}{'plan':>9}{'update':>9}{'wait':>9}")
    print(f"{'send, recv, update':34}{wall_0:9.0f}{plan_0:9.0f}{update_0:9.0f}{simulate:9.0f}")
    print(
        f"{'send, update, recv':34}{wall:9.0f}{plan:9.0f}{update:9.0f}{wait:9.0f}   {wall_0 / wall:.2f} times as fast"
    )
    # Together the two take at least as long as the longer one, and as all cores need for what they take from each.
    cores = machine.cores()
    busy = update_0 * min(cores, torch.get_num_threads()) + simulate * min(cores, workers)
    ideal = plan_0 + max(update_0, simulate, busy / cores)
    print(f"{'ideal':34}{ideal:9.0f}{'':27}   {wall_0 / ideal:.2f} times as fast")


if __name__ == "__main__":
    mains = {Bench: main, EnvBench: main_envs, VectorBench: main_vector, OverlapBench: main_overlap}
    command.run(mains[type(given)], given)
