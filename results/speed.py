"""An update and a decision here and in another state of this project, alternating in one run, one thread each.

    git worktree add ../before 454886d
    python results/speed.py ../before                 eager against eager, then compiled against eager
    python results/speed.py . --no-compile --bf16     this state against itself, then with products in bf16

Processes, one for each column, take turns; only one works at a time. Times are CPU time of the process, in which
other programs' share of the machine doesn't count, medians over --repeats turns; the ratio is that of the medians, with
the quartiles of the ratios of single turns: above 1, this tree is faster.
"""

import multiprocessing
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro
from tqdm import tqdm

HERE = Path(__file__).resolve().parent.parent
CASES = {  # what is timed -> (size, batch or environments, samples, iterations)
    "update XS 128": ("update", "XS", 128, {}),
    "update S 256": ("update", "S", 256, {}),
    "update B 256": ("update", "B", 256, {}),
    "decide XS 128 x 4, 8 envs": ("act", "XS", 8, {"num_samples": 128, "num_elites": 16, "num_pi": 8, "iterations": 4}),
    "decide XS 128 x 4, 1 env": ("act", "XS", 1, {"num_samples": 128, "num_elites": 16, "num_pi": 8, "iterations": 4}),
    "decide S 512 x 6, 1 env": ("act", "S", 1, {}),
    "decide B 512 x 6, 1 env": ("act", "B", 1, {}),
}


@dataclass(frozen=True)
class Speed:
    """Time this tree against another one."""

    before: tyro.conf.Positional[Path]
    """folder of the other one"""
    cases: tuple[str, ...] = tuple(CASES)
    """which ones"""
    repeats: int = 20
    """turns"""
    compile: bool = True
    """also this tree compiled"""
    bf16: bool = False
    """also this tree with matrix products in bf16, not compiled"""


def work(tree: str, cases: tuple[str, ...], how: str, pipe) -> None:
    """In a process: makes what the cases need out of a tree, then times the one whose name comes through the pipe."""
    sys.path.insert(0, tree)
    import torch

    torch.set_num_threads(1)
    import newt
    from buffer import Batch

    if hasattr(newt, "CORES"):
        newt.CORES = 1  # groups of environments one after the other
    calls = {}
    for name in cases:
        kind, size, count, settings = CASES[name]
        cfg = newt.Config(size=size, batch_size=count, task_dim=384, **settings)
        torch.manual_seed(0)
        agent = newt.create(cfg, ["task"], torch.randn(1, 384), [6], [0.99])
        h, zeros = cfg.horizon, torch.zeros(count, dtype=torch.long)
        if how == "compiled":
            import compiled

            agent.compiled = compiled.functions()
        if how == "bf16":
            agent.precision = torch.bfloat16
        if kind == "update":
            obs, action = torch.randn(h + 1, count, cfg.obs_dim), torch.rand(h, count, cfg.action_dim)
            batch = Batch(obs, action * agent.mask[0], torch.randn(h, count), zeros)
            calls[name] = lambda agent=agent, batch=batch: newt.update(agent, batch, "online")
        else:
            inputs = torch.randn(count, cfg.obs_dim), zeros, torch.zeros(count, h, cfg.action_dim), zeros == 1
            calls[name] = lambda agent=agent, inputs=inputs: newt.act(agent, *inputs)
        for _ in range(3):  # compiles, allocates
            calls[name]()
    pipe.send(None)
    while (name := pipe.recv()) is not None:
        start = time.process_time()
        calls[name]()
        pipe.send((time.process_time() - start) * 1e3)


def main(cfg: Speed) -> None:
    context, workers = multiprocessing.get_context("spawn"), {}
    trees = {"before": cfg.before, "eager": HERE}
    trees |= {"compiled": HERE} if cfg.compile else {}
    trees |= {"bf16": HERE} if cfg.bf16 else {}
    for label, tree in trees.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=work, args=(str(tree.resolve()), cfg.cases, label, theirs), daemon=True)
        process.start()
        theirs.close()  # so that a process that failed is noticed
        ours.recv()
        workers[label] = ours
    times = {(name, label): [] for name in cfg.cases for label in workers}
    for name in tqdm(cfg.cases, disable=None):
        for _ in range(cfg.repeats):
            for label, pipe in workers.items():
                pipe.send(name)
                times[name, label].append(pipe.recv())
    for pipe in workers.values():
        pipe.send(None)
    print(f"{'CPU ms, one thread':28}" + "".join(f"{label:>10}" for label in workers) + "   times faster (quartiles)")
    for name in cfg.cases:
        medians = {label: statistics.median(times[name, label]) for label in workers}
        line = f"{name:28}" + "".join(f"{value:10.1f}" for value in medians.values())
        for label in list(workers)[1:]:
            ratios = [a / b for a, b in zip(times[name, "before"], times[name, label], strict=True)]
            low, _, high = statistics.quantiles(ratios, n=4)
            line += f"   {label} {medians['before'] / medians[label]:.2f} ({low:.2f}-{high:.2f})"
        print(line)


if __name__ == "__main__":
    main(tyro.cli(Speed))
