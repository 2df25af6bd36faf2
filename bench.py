"""How fast are the parts here? Update, decision, replay and simulators, each timed alone on this machine.

    python bench.py                          size XS, CPU
    python bench.py --size L --batch-size 256 --device cuda
    python bench.py envs                     every task: steps/s, creation time, and what our wrapping costs; memory
Medians over repeats. OMP_NUM_THREADS=1 in front for figures of one core.
"""

import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import tyro

import envs
import newt
from buffer import Buffer, gigabytes
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


if __name__ == "__main__":
    if sys.argv[1:2] == ["envs"]:
        run(main_envs, tyro.cli(EnvBench, args=sys.argv[2:], prog="bench.py envs"))
    else:
        run(main, tyro.cli(Bench))
