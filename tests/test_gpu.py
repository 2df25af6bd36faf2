"""results/gpu.sh, rehearsed on a CPU: all rows are written, a piece that fails costs no other, no GPU is one line.

Run: pytest tests/test_gpu.py        (about 20 s on one core)
"""

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_devices import agent as agent_on_device  # noqa: F401  a fixture
from test_devices import update as update_on_device
from torch.overrides import TorchFunctionMode

import envs
import newt

ROOT = Path(newt.__file__).parent
TINY = "--device cpu --sizes S --no-compile --batch-size 8 --envs 1 --repeats 1 --train-minutes 0".split()


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # it adds to it
    spec = importlib.util.spec_from_file_location("gpu", ROOT / "results/gpu.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu", module)
    spec.loader.exec_module(module)
    return module


def script(*words: str) -> subprocess.CompletedProcess:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    return subprocess.run([ROOT / "results/gpu.sh", *words], env=environ, capture_output=True, text=True)


def rows(path: Path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_rehearsal_writes_every_row(tmp_path):
    done = script(*TINY, "--out", str(tmp_path / "gpu.csv"))
    assert done.returncode == 0, done.stderr
    machine, replay, *timed = rows(tmp_path / "gpu.csv")
    assert "a rehearsal" in machine["note"] and float(replay["ms"]) > 0
    wanted = [(what, "S", kind, "eager") for kind in ("bf16", "tf32", "float32") for what in ("update", "plan")]
    assert [(row["what"], row["size"], row["precision"], row["how"]) for row in timed] == wanted
    for row in timed:
        least = float(row["tflop"]) / float(row["product_tflops"]) * 1e3  # ms, of the products alone
        assert not row["note"] and float(row["share"]) == pytest.approx(least / float(row["ms"]), rel=0.02)
    assert all(row["what"] in done.stdout for row in timed) and "gpu.csv" in done.stdout


def test_a_plan_is_as_much_work_as_by_hand(gpu, tmp_path):
    """Products of a decision at size S with 3 plans, 2 of the policy's, 1 iteration of 1 step, by their sizes."""
    cfg = newt.Config(size="S", num_samples=3, num_elites=1, num_pi=2, iterations=1, horizon=1, task_dim=8)
    agent = newt.create(cfg, ["a"], torch.zeros(1, 8), [16], [0.9])
    with gpu.FlopCounterMode(display=False) as counter:
        newt.act(agent, torch.zeros(1, 128), torch.tensor([0]), torch.zeros(1, 1, 16), torch.tensor([True]), 10**9)
    z, d, a, e, k = 384, 256, 16, 8, 101

    def head(plans: int, latents: int, out: int, acts: bool = True, heads: int = 1) -> int:
        first = latents * z * d + e * d + (plans * a * d if acts else 0)
        return heads * (first + plans * (d * d + d * out))

    encoder = 128 * 128 + e * 128 + 128 * z
    policy = head(2, 2, 2 * a, False) + head(3, 3, 2 * a, False)  # its plans, and at the ends of all
    model = sum(head(plans, 1, out) for plans in (2, 1) for out in (k, z))  # reward and dynamics, of both kinds
    value = head(3, 3, k, heads=2)  # without what reads numbers out of bins, which is small and no matrix's
    assert counter.get_total_flops() == pytest.approx(2 * (encoder + policy + model + value), rel=1e-6)


def test_what_takes_too_long_or_fails_has_a_row(gpu, tmp_path):
    out = tmp_path / "gpu.csv"
    cfg = gpu.Gpu(device="cpu", out=out)
    out.write_text(",".join(gpu.COLUMNS) + "\n")
    gpu.run_piece(cfg, "eager S", 0.2, ["--device", "cpu", "--out", str(out)])
    gpu.run_piece(cfg, "eager XXL", 60, ["--device", "cpu", "--repeats", "1", "--out", str(out)])
    late, failed = rows(out)
    assert (late["how"], late["size"], late["note"]) == ("eager", "S", "stopped after 0 s")
    assert failed["size"] == "XXL" and "XXL" in failed["note"]


def test_no_memory_costs_one_row(gpu, tmp_path, monkeypatch):
    cfg = gpu.Gpu(device="cpu", out=tmp_path / "gpu.csv", batch_size=4, envs=1, repeats=1)
    cfg.out.write_text(",".join(gpu.COLUMNS) + "\n")

    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nMore words")

    monkeypatch.setattr(gpu.newt, "act", fail)
    gpu.measure_size(cfg, "eager", "S")
    found = rows(cfg.out)
    assert [bool(row["ms"]) for row in found] == [True, False] * 3
    assert found[1]["note"] == "OutOfMemoryError: CUDA out of memory."


@pytest.mark.parametrize("phase", ["pretrain", "online"])
def test_an_update_copies_nothing_to_the_device(agent_on_device, phase):  # noqa: F811
    """What is made of Python's numbers lies on the CPU first, and CUDA waits for the copy."""
    asked = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            asked.add(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        torch.tensor([1.0])
        assert torch.tensor in asked
        asked.clear()
        update_on_device(agent_on_device, phase)
    assert torch.nn.functional.linear in asked and not asked & {torch.tensor, torch.as_tensor, torch.from_numpy}


def test_without_a_gpu_it_is_one_line(tmp_path):
    done = script("--out", str(tmp_path / "gpu.csv"))
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    assert done.stderr == "error: torch finds no CUDA GPU here; --device cpu rehearses\n"


def test_its_run_is_one_that_train_takes(gpu):
    import train_config

    cfg = train_config.parse([*gpu.Gpu.train.split(), "--folder", "nowhere"]).cfg
    assert cfg.precision == "bf16" and cfg.preset == "published" and len(envs.select(gpu.SUITES)) > 100
