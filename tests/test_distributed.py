"""Two processes under torchrun against one: same losses, equal copies, a lost process, two machines (on loopback).

Run: pytest tests/test_distributed.py        (about a minute on two cores); pytest -m slow tests/test_distributed.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_train import assert_same_run, wait_for
from torch import Tensor

import distributed
import newt
from buffer import Batch

ROOT = Path(newt.__file__).parent
CFG = newt.Config(size="XS", obs_dim=6, action_dim=3, task_dim=4, batch_size=8, warmup_updates=10, lr=1e-3, num_bins=21)
PHASES = ["pretrain"] * 100 + ["online"] * 100


def agent() -> newt.Agent:
    emb = torch.randn(2, CFG.task_dim, generator=torch.Generator().manual_seed(1))
    made = newt.create(CFG, ["a", "b"], emb, [3, 2], [0.9, 0.95], seed=3)
    for name in ("emb", "mask", "discount", "guided"):
        setattr(made, name, getattr(made, name).to(torch.get_default_dtype()))
    return made


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(2)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    h, b = CFG.horizon, CFG.batch_size
    return [
        Batch(normal(h + 1, b, CFG.obs_dim), normal(h, b, CFG.action_dim).tanh(), normal(h, b),
              torch.randint(2, (b,), generator=generator)) for _ in PHASES
    ]  # fmt: skip


def learn(rank: int, world: int, dtype: torch.dtype) -> tuple[newt.Agent, list[dict[str, float]]]:
    """200 updates on this process's shares of the batches, all in numbers of this kind."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        learner, log = agent(), []
        share = CFG.batch_size // world
        for phase, batch in zip(PHASES, batches(), strict=True):
            rows = slice(rank * share, (rank + 1) * share)
            part = Batch(batch.obs[:, rows], batch.action[:, rows], batch.reward[:, rows], batch.task[rows])
            metrics = newt.update(learner, part, phase, rank=rank, world=world)
            log.append({name: float(value) for name, value in metrics.items()})
        assert all(value.dtype == dtype for value in [*learner.params.values(), *metrics.values(), learner.q_scale])
        return learner, log
    finally:
        torch.set_default_dtype(before)


def torchrun(folder: Path, *words, agents: int = 1, wait: bool = True) -> list[subprocess.Popen]:
    """Start `torchrun words` in this folder: two processes, by one torchrun or by two that meet on loopback."""
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "MUJOCO_GL": "disabled",  # no film
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    environ |= {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform.startswith("linux") else {}
    port = 29_000 + os.getpid() % 900
    meet = ["--nnodes", agents, "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{port}", "--rdzv-id", "test"]
    where = ["--standalone"] if agents == 1 else meet
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", *map(str, where), "--nproc-per-node", str(2 // agents),
             *map(str, words)],
            cwd=folder, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for _ in range(agents)
    ]  # fmt: skip
    if wait:
        for process in started:
            out, _ = process.communicate(timeout=300)
            assert process.returncode == 0, out
    return started


# ---- one update


PROGRAM = """
import json
import checkpoint, distributed, torch
from safetensors.torch import save_file
from test_distributed import learn
world = distributed.join()
assert distributed.gather(world.rank) == [0, 1] and world.size == 2
assert distributed.any_of(world.rank == 1) and not distributed.any_of(False)
for dtype in (torch.float32, torch.float64):
    learner, log = learn(world.rank, world.size, dtype)
    optim = {}
    for name, (o, v) in checkpoint._optimisers(learner).items():
        optim |= {f"{name}/{key}": x for key, x in o.state[v].items()}
    params = {k: v.detach() for k, v in learner.params.items()}
    save_file({**params, **optim, "q_scale": learner.q_scale}, f"{dtype}-{world.rank}.safetensors")
    open(f"{dtype}-{world.rank}.json", "w").write(json.dumps(log))
distributed.leave()
"""


@pytest.mark.parametrize("agents", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_two_processes_learn_what_one_does_from_all_shares(agents, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    torchrun(tmp_path, "program.py", agents=agents)
    for dtype in (torch.float32, torch.float64):
        ranks = [load_file(tmp_path / f"{dtype}-{rank}.safetensors") for rank in (0, 1)]
        assert ranks[0].keys() == ranks[1].keys() and any("exp_avg" in name for name in ranks[0])
        assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])  # 200 updates later
        logs = [json.loads((tmp_path / f"{dtype}-{rank}.json").read_text()) for rank in (0, 1)]
        assert logs[0] == logs[1] and len(logs[0]) == 200
        alone, expected = learn(0, 1, dtype)
        assert not torch.equal(alone.params["pi.0.weight"].float(), agent().params["pi.0.weight"])
        # Sums over halves round otherwise than sums over the whole, and 200 updates make more of it: in float32 only
        # the first few can be that close, in float64 all of them are.
        for ours, theirs in list(zip(logs[0], expected, strict=True))[: 5 if dtype == torch.float32 else None]:
            assert ours.keys() == theirs.keys()
            for name in theirs:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-5), name
        last = [np.mean([line["loss/model"] for line in log[-50:]]) for log in (logs[0], expected)]
        assert last[0] == pytest.approx(last[1], rel=0.02)


# ---- shares


def test_every_process_gets_demonstrations_and_an_equal_share():
    names, cost = [f"task{i}" for i in range(12)], [9.0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 5]
    shares = distributed.share_out(names, ["task1", "task0", "task7"], cost, 3)
    assert sorted(sum(shares, [])) == sorted(names)
    assert all(set(share) & {"task0", "task1", "task7"} for share in shares)
    loads = sorted(sum(cost[names.index(name)] for name in share) for share in shares)
    assert loads == [7, 8, 9]  # task0 alone is 9 of 24
    assert all(share == sorted(share, key=names.index) for share in shares)
    assert distributed.share_out(names, [], cost, 1) == [names]
    assert all(distributed.share_out(["a", "b"], [], [9.0, 0.0], 2))


def test_alone_nothing_is_said():
    x = torch.arange(3.0)
    distributed.average([x])
    assert x.tolist() == [0, 1, 2] and distributed.gather("me") == ["me"] and distributed.any_of(True)
    assert not distributed.any_of(False) and distributed.World() == (0, 1, 0, 1)
    distributed.leave()


# ---- train.py


SMALL = (
    "--preset laptop --tasks mw-reach,mw-push,og-point-arena --demos none --folder run --steps 250 "
    "--seed-episodes 1 --eval-every 100 --eval-episodes 1 --final-episodes 1 --log-every 2 --utd 0.05 --batch-size 16 "
    "--num-samples 16 --num-elites 4 --num-pi 2 --iterations 2 --buffer-steps 4000 --workers 1"
).split()


def children_of_run(process: subprocess.Popen) -> list[int]:
    """Pids of the processes that torchrun started, in the order of ranks."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = [int(pid) for pid in path.read_text().split()]
    ranks = {}
    for pid in found:
        words = dict(w.split("=", 1) for w in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in w)
        if "RANK" in words:
            ranks[int(words["RANK"])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
@pytest.mark.parametrize("agents", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_lost_process_costs_nothing_but_time(agents, tmp_path):
    """Kill one rank: torchrun starts all of them again, and the run ends like one that nobody disturbed."""
    for name in ("whole", "cut"):
        (tmp_path / name).mkdir()
    script = [ROOT / "train.py", *SMALL]
    torchrun(tmp_path / "whole", *script)
    run = tmp_path / "cut" / "run"
    started = torchrun(tmp_path / "cut", "--max-restarts", 1, *script, agents=agents, wait=False)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "300").exists():  # 100 steps of three environments
        assert time.monotonic() < deadline and all(process.poll() is None for process in started)
        time.sleep(0.02)
    time.sleep(0.3)
    os.kill(children_of_run(started[-1])[-1], signal.SIGKILL)
    outs = [process.communicate(timeout=250)[0] for process in started]
    assert all(process.returncode == 0 for process in started), outs
    assert_same_run(tmp_path / "whole" / "run", run, ranks=2)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc")
def test_a_lost_process_ends_the_job_with_a_clear_line(tmp_path):
    (process,) = torchrun(tmp_path, ROOT / "train.py", *SMALL, wait=False)
    run = tmp_path / "run"
    wait_for(process, (run / "checkpoints" / "0").exists, 200)
    pids = children_of_run(process)
    os.kill(pids[1], signal.SIGKILL)
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "error: another process of this run has ended" in out and "--resume" in out
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    other = subprocess.run(
        [sys.executable, ROOT / "train.py", "--resume", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert other.returncode == 2 and "was written by 2 processes and can't go on in 1" in other.stderr


@pytest.mark.parametrize("words, message", [
    (["--batch-size", "15"], "batch_size 15 can't be shared equally by 2 processes"),
    (["--tasks", "mw-reach"], "2 processes need at least as many tasks, not 1"),
])  # fmt: skip
def test_bad_input(words, message, tmp_path):
    (process,) = torchrun(tmp_path, ROOT / "train.py", *SMALL, *words, wait=False)
    out, _ = process.communicate(timeout=100)
    assert process.returncode != 0 and f"error: {message}" in out and not (tmp_path / "run").exists()
