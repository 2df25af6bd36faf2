"""How fast are the parts here? Update, decision, replay and simulators, each timed alone on this machine.

    python bench.py                          size XS, CPU
    python bench.py --size L --batch-size 256 --device cuda
    python bench.py envs                     every task: steps/s, creation time, and what our wrapping costs; memory
    python bench.py vector                   all tasks at once in 1 and 2 processes, and in one process per task
    python bench.py overlap                  a vector step with and without learning while the simulators step
Medians over repeats. OMP_NUM_THREADS=1 in front for figures of one core.
"""

import functools
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import gymnasium
import numpy as np
import psutil
import torch
import tyro

import envs
import newt
import train
from buffer import Batch, Buffer, gigabytes
from envs.browse import time_suite
from envs.vector import VectorEnv, light_spawn
from eval import pick_device, run, share_cores


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
    """Step many tasks together with random actions: our few processes against one process per task.

    The latter is gymnasium's AsyncVectorEnv, with the spaces padded to a common shape. All are alive at the same time
    and take turns, so that the machine's moods hit all alike.
    """

    tasks: str = "all"
    """which ones"""
    every: int = 1
    """take only each n-th task, where memory is short"""
    workers: tuple[int, ...] = (1, 2)
    """processes of ours, one measurement each"""
    steps: int = 50
    """vector steps of a turn"""
    turns: int = 5
    """medians are over these"""
    spare_gib: float = 3.0
    """stop when less memory than this is left"""


@dataclass(frozen=True)
class OverlapBench:
    """Time a vector step of online learning: updates while the simulators step, and updates after them."""

    tasks: str = "all"
    """which ones"""
    updates: int = 5
    """per vector step"""
    steps: int = 10
    """vector steps of a turn"""
    turns: int = 5
    """medians are over these"""


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


def main(cfg: Bench) -> None:
    names, device = envs.select(cfg.tasks), pick_device(cfg.device)
    share_cores(cfg.size)
    print(f"{device}, {torch.get_num_threads()} threads, torch {torch.__version__}")

    settings = newt.Config(size=cfg.size, batch_size=cfg.batch_size, task_dim=384)
    agent = newt.create(settings, ["task"], torch.randn(1, 384), [settings.action_dim], [0.99], device=device)
    generator = torch.Generator().manual_seed(0)
    replay = Buffer(cfg.buffer_steps, settings.obs_dim, settings.action_dim)
    length = 500
    for _ in range(cfg.buffer_steps // (length + 1)):
        obs = torch.zeros(length + 1, settings.obs_dim)
        action, reward = torch.zeros(length + 1, settings.action_dim), torch.zeros(length + 1)
        action[0], reward[0] = torch.nan, torch.nan
        replay.add(obs, action, reward, 0)
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


class Padded(gymnasium.Wrapper):
    """A task with the common shapes that one process per task needs; ours pads in its shared memory."""

    def __init__(self, name: str):
        super().__init__(envs.make(name))
        self.dims = self.env.action_space.shape[0]
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (128,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (16,), np.float32)

    def padded(self, obs: np.ndarray) -> np.ndarray:
        return np.pad(obs, (0, 128 - len(obs)))

    def reset(self, *, seed=None, options=None):
        obs, info = self.env.reset(seed=seed, options=options)
        return self.padded(obs), {}

    def step(self, action):
        obs, *rest, info = self.env.step(action[: self.dims])
        return self.padded(obs), *rest, {key: info[key] for key in ("score", "success")}


def memory_gib(processes: list[psutil.Process]) -> float:
    """Proportional set size: what processes share counts once. Resident size where the system doesn't tell."""
    infos = [process.memory_full_info() for process in processes]
    return sum(getattr(info, "pss", info.rss) for info in infos) / 2**30


def main_vector(cfg: VectorBench) -> None:
    names = envs.select(cfg.tasks)[:: cfg.every]
    generator = np.random.default_rng(0)

    def started(call) -> tuple[object, list[psutil.Process], float]:
        before, start = set(psutil.Process().children(recursive=True)), time.perf_counter()
        result = call()
        took = time.perf_counter() - start
        if psutil.virtual_memory().available < cfg.spare_gib * 2**30:
            raise ValueError(f"less than {cfg.spare_gib} GiB are left; use a larger --every")
        return result, list(set(psutil.Process().children(recursive=True)) - before), took

    rows, made = {}, []
    try:
        for workers in cfg.workers:
            rows[f"ours, {workers}"] = vector, *_ = started(lambda w=workers: VectorEnv(names, 0, w))
            made.append(vector)
            vector.reset()
        one = [functools.partial(Padded, name) for name in names]
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        with light_spawn():
            rows["one per task"] = vector, *_ = started(
                lambda: gymnasium.vector.AsyncVectorEnv(one, context="spawn", autoreset_mode=mode)
            )
        made.append(vector)
        vector.reset(seed=0)
        rates = {what: [] for what in rows}
        for _ in range(cfg.turns):
            for what, (vector, _, _) in rows.items():
                actions = generator.uniform(-1, 1, (cfg.steps, len(names), 16)).astype(np.float32)
                start = time.perf_counter()
                for action in actions:
                    vector.step(action)
                rates[what].append(cfg.steps * len(names) / (time.perf_counter() - start))
        print(f"{len(names)} tasks, {cfg.turns} turns of {cfg.steps} steps; memory of the simulator processes")
        print(f"{'processes':16}{'made in s':>12}{'steps/s':>10}{'GiB':>8}")
        for what, (_, processes, took) in rows.items():
            memory = memory_gib(processes)
            print(f"{what:16}{took:12.1f}{statistics.median(rates[what]):10.0f}{memory:8.2f}")
    finally:
        for vector in made:
            vector.close()


def main_overlap(cfg: OverlapBench) -> None:
    names, settings = envs.select(cfg.tasks), train.LAPTOP.agent
    share_cores(settings.size)
    rows = [envs.TASKS[name] for name in names]
    dims, discounts = [row.action_dim for row in rows], [row.discount for row in rows]
    agent = newt.create(settings, names, torch.randn(len(names), settings.task_dim), dims, discounts)
    h, b, zeros = settings.horizon, settings.batch_size, torch.zeros(len(names), dtype=torch.long)
    batch = Batch(torch.randn(h + 1, b, settings.obs_dim), torch.zeros(h, b, settings.action_dim), torch.zeros(h, b),
                  torch.randint(len(names), (b,)))  # fmt: skip
    warm = torch.zeros(len(names), h, settings.action_dim)
    spent = {what: [] for what in ("plan", "learn", "step", "overlapped", "one after the other")}

    def timed(what: str, call) -> object:
        start = time.perf_counter()
        result = call()
        spent[what].append((time.perf_counter() - start) * 1e3)
        return result

    def plan(obs: np.ndarray) -> np.ndarray:
        task = torch.arange(len(names))
        return newt.act(agent, torch.as_tensor(obs), task, warm, zeros == 0, explore=True).action.numpy()

    def learn() -> None:
        for _ in range(cfg.updates):
            newt.update(agent, batch, "online")

    with VectorEnv(names, 0, None, settings.obs_dim, settings.action_dim) as vector:
        obs = vector.reset()

        def overlapped() -> None:
            vector.send(plan(obs))
            learn()
            vector.recv()

        def one_by_one() -> None:
            action = timed("plan", lambda: plan(obs))
            timed("step", lambda: vector.step(action))
            timed("learn", learn)

        for call in (overlapped, one_by_one):  # the first ones allocate
            call()
        spent = {what: [] for what in spent}
        for _ in range(cfg.turns):
            for _ in range(cfg.steps):
                timed("overlapped", overlapped)
            for _ in range(cfg.steps):
                timed("one after the other", one_by_one)
    print(f"{len(names)} tasks, {cfg.updates} updates of size {settings.size} per vector step; medians of "
          f"{cfg.turns * cfg.steps}")  # fmt: skip
    for what, times in spent.items():
        print(f"{what:24}{statistics.median(times):10.1f} ms")


if __name__ == "__main__":
    commands = {"envs": (main_envs, EnvBench), "vector": (main_vector, VectorBench),
                "overlap": (main_overlap, OverlapBench)}  # fmt: skip
    if sys.argv[1:2] and sys.argv[1] in commands:
        function, settings = commands[sys.argv[1]]
        run(function, tyro.cli(settings, args=sys.argv[2:], prog=f"bench.py {sys.argv[1]}"))
    else:
        run(main, tyro.cli(Bench))
