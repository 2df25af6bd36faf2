"""One learner in several processes, under torchrun: who does what, and the few things they tell each other.

    torchrun --nproc-per-node 8 train.py --tasks all                        eight GPUs, or eight shares of the cores
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py --tasks all
                                                                            the same command on each of two machines

Each process ("rank") owns a share of the tasks with simulators and a replay buffer of its own, and a whole copy of the
agent. A batch consists of equal parts from all of them; gradients are averaged, so the copies stay equal to the last
bit. Machines share the file system that the run folder is on. Started without torchrun there is one process, rank 0 of
1, and everything here returns at once.
Test: pytest tests/test_distributed.py
"""

import os
import time
import uuid
from collections.abc import Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

STEP_TIMEOUT = timedelta(minutes=30)
_STEP: dist.ProcessGroup | None = None  # everyone, with the short timeout


class World(NamedTuple):
    """Which process this is, and how many there are: in all, and on this machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def join() -> World:
    """Meet the other processes that torchrun started. NCCL between GPUs, gloo on CPUs.

    A process that died is noticed at once, as its connections close; a machine that vanished or stands still, after a
    timeout. The long one is for those who wait while rank 0 makes demonstrations, or while another one's tasks take
    longer to evaluate: all that is waited for in `gather`. In the other calls nobody is late by more than the time in
    which simulators are replaced.
    """
    global _STEP
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if not all(name in os.environ for name in names):
        return World()
    world = World(*(int(os.environ[name]) for name in names))
    if world.size > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with _lost():
            store, _, _ = next(dist.rendezvous("env://"))
            store = dist.PrefixStore(_start_number(store, world), store)
            dist.init_process_group(
                backend, timeout=timedelta(hours=12), store=store, rank=world.rank, world_size=world.size
            )
            _STEP = dist.new_group(backend=backend, timeout=STEP_TIMEOUT)
    return world


def _start_number(store: dist.Store, world: World, limit_s: float = 600) -> str:
    """Which start of this job it is; all processes get the same answer.

    torchrun keeps its store when it starts everything again, so a fast process would find the addresses of dead ones
    there. It tells no number that all its agents agree on: only the one that lost a process counts a restart. So rank 0
    opens a new number, each process answers with a word of its own, and the number holds once rank 0 has read them all.
    """
    word, end = uuid.uuid4().hex, time.monotonic() + limit_s
    if world.rank == 0:
        number = str(store.add("starts", 1))
        here = [f"{number}/here/{rank}" for rank in range(1, world.size)]
        store.set("newest", number)
        store.wait(here, timedelta(seconds=limit_s))
        store.set(f"{number}/all", " ".join(store.get(key).decode() for key in here))
        return number
    while time.monotonic() < end:
        number = store.get("newest").decode()
        store.set(f"{number}/here/{world.rank}", word)
        if store.check([f"{number}/all"]) and word in store.get(f"{number}/all").decode():
            return number
        time.sleep(0.05)
    raise RuntimeError(f"rank 0 didn't come within {limit_s:g} s")


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def _lost():
    """What gloo and NCCL say when a process is gone is long and names no remedy."""
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            f"another process of this run has ended, or the connection to it ({str(error).splitlines()[0]}); "
            "the last checkpoint is kept: go on with --resume, or let `torchrun --max-restarts` do it"
        ) from None


def share_out(names: Sequence[str], first: Sequence[str], cost: Sequence[float], size: int) -> list[list[str]]:
    """Names of each rank: first those in `first`, then the rest, the longest first, to whom has least to do.

    `first` are the tasks with demonstrations: a rank without any could not take part in pretraining.
    """
    of = dict(zip(names, cost, strict=True))
    load, shares = [0.0] * size, [[] for _ in range(size)]
    for group in (set(first), set(names) - set(first)):
        # Number before load: costs may be so unequal that the second dealt to one rank would leave another without.
        for name in sorted(group, key=lambda name: (-of[name], names.index(name))):
            rank = min(range(size), key=lambda r: (len(shares[r]) > 0, load[r], r))
            shares[rank].append(name)
            load[rank] += of[name]
    return [sorted(share, key=names.index) for share in shares]


def average(tensors: list[Tensor]) -> None:
    """Mean over all processes, in place, in one message: one per tensor would cost more than the sums."""
    if not dist.is_initialized():
        return
    flat = torch.cat([x.reshape(-1) for x in tensors])
    with _lost():
        dist.all_reduce(flat, group=_STEP)
    flat /= dist.get_world_size()
    parts = flat.split([x.numel() for x in tensors])
    torch._foreach_copy_(tensors, [part.view_as(x) for part, x in zip(parts, tensors, strict=True)])


def any_of(flag: bool) -> bool:
    """Whether any process says yes: all of them must take the same turn."""
    if not dist.is_initialized():
        return flag
    told = torch.tensor([float(flag)])  # on the CPU: asking must not wait for the GPU
    with _lost():
        dist.all_reduce(told, group=_STEP)
    return bool(told)


def gather(value: object) -> list:
    """What every process said, in the order of ranks. Also a barrier: it returns when all have come."""
    if not dist.is_initialized():
        return [value]
    told = [None] * dist.get_world_size()
    with _lost():
        dist.all_gather_object(told, value)
    return told
