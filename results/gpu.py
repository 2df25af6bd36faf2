"""Updates and decisions of every published size on a CUDA GPU, and a run: what results/gpu.sh starts.

    results/gpu.sh                    ten minutes; -> a table, and results/gpu.csv
    results/gpu.sh --minutes 30       everything compiled, too, and a longer run

Each piece is a process with a time limit of its own, and writes its rows as it goes: one that fails or takes too long
costs what it had not measured yet, and has a row that says so. Pieces are: replay; each size in eager; each size
compiled, into CUDA graphs (mode="reduce-overhead"); and train.py, for the minutes that are left. Of each row:

    ms       median over calls, waited for      gb    most memory that was allocated
    share    of the limit: the time in which its matrix products alone could be made, in the same precision, at the
             speed of one large product here, measured in the same process ("product"), over the time it took

float32 is exact, tf32 float32 with products of 10 bits (torch.set_float32_matmul_precision("high")), bf16 precision.py.
Test: pytest tests/test_gpu.py
"""

import csv
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

import torch
import tyro
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import command
import compiled
import metrics
import newt
from buffer import Batch, Buffer
from clock import rehearsal

ROOT = Path(__file__).parent.parent
PRECISIONS = ("bf16", "tf32", "float32")
COLUMNS = ("what", "size", "precision", "how", "ms", "gb", "tflop", "product_tflops", "share", "note")
LIMITS_S = {"replay": 60, "eager": 60, "compiled": 150}
SUITES = "dmcontrol,metaworld,mujoco,box2d,ogbench,miniarcade,atari"  # those whose simulators are fast


@dataclass(frozen=True)
class Gpu:
    """Measure a GPU."""

    minutes: float = 10
    """for all of it"""
    train_minutes: float = 3
    """of these at least so many for train.py; 0: without it"""
    train: str = f"--preset published --tasks {SUITES} --demos none --precision bf16"
    """what train.py is told"""
    sizes: tuple[Literal["S", "B", "L", "XL"], ...] = ("L", "S", "B", "XL")
    """networks, the most important one first"""
    compile: bool = True
    """also compiled"""
    batch_size: int = 1024
    """slices per update"""
    envs: int = 200
    """environments that decide at once"""
    repeats: int = 10
    """calls of each"""
    device: Literal["cuda", "cpu"] = "cuda"
    """cpu: a rehearsal"""
    out: Path = Path(__file__).parent / "gpu.csv"
    """table to write"""
    piece: str = ""
    """measure only this, in this process, and add it to the table that is there: replay, "eager L" or "compiled L" """


RANGES = {"minutes": (0, 10_000), "train_minutes": (0, 10_000), "batch_size": (1, 10**6), "envs": (1, 10**6),
          "repeats": (1, 10**6)}  # fmt: skip


def write(path: Path, **values) -> None:
    """A row at the end of the table."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(values)


# ---------------------------------------------------------------- the pieces


def milliseconds(call: Callable[[], object], cfg: Gpu) -> float:
    """Median of the calls; the first ones compile, record graphs and allocate."""

    def finished() -> float:
        if cfg.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    times = []
    for _ in range(cfg.repeats + 3):
        start = finished()
        call()
        times.append((finished() - start) * 1e3)
    return statistics.median(times[3:])


def product_tflops(dtype: torch.dtype, cfg: Gpu) -> float:
    """10^12 operations per second of one large product of matrices."""
    n = 8192 if cfg.device == "cuda" else 512
    x = torch.ones(n, n, dtype=dtype, device=cfg.device)
    return 2 * n**3 / milliseconds(lambda: x @ x, cfg) / 1e9


def graphs(device: str) -> newt.Functions:
    """Compiled; on CUDA as graphs, whose results lie where the next call writes: they are copied."""
    if device != "cuda":
        return compiled.functions()

    def kept(function: Callable) -> Callable:
        def call(*args):
            torch.compiler.cudagraph_mark_step_begin()
            return tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, function(*args))

        return call

    return newt.Functions(*map(kept, compiled.functions("reduce-overhead")))


def measure_size(cfg: Gpu, how: str, size: str) -> None:
    """Update and decision in all precisions: agent, batch and observations of the published settings, on the device."""
    settings = newt.Config(size=size, batch_size=cfg.batch_size)
    emb = torch.nn.functional.normalize(torch.randn(200, settings.task_dim), dim=1)
    dims, discounts = [settings.action_dim] * 200, [0.99] * 200
    for precision in PRECISIONS:
        torch.compiler.reset()
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        peak = product_tflops(torch.bfloat16 if precision == "bf16" else torch.float32, cfg)
        agent = newt.create(settings, [f"task-{i}" for i in range(200)], emb, dims, discounts, 0, cfg.device)
        agent.precision = torch.bfloat16 if precision == "bf16" else torch.float32
        agent, batch, inputs = rehearsal(agent, cfg.batch_size, cfg.envs)
        batch = Batch(*(torch.randn_like(x) if x.is_floating_point() else x for x in batch[:4]))
        calls = {"update": lambda a=agent, b=batch: newt.update(a, b, "online"),
                 "plan": lambda a=agent, i=inputs: newt.act(a, *i, explore=True)}  # fmt: skip
        for what, call in calls.items():
            row = {"what": what, "size": size, "precision": precision, "how": how}
            try:
                agent.compiled = None
                with FlopCounterMode(display=False) as counter:
                    call()
                tflop = counter.get_total_flops() / 1e12
                agent.compiled = graphs(cfg.device) if how == "compiled" else None
                if cfg.device == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                took = milliseconds(call, cfg)
                gb = torch.cuda.max_memory_allocated() / 1e9 if cfg.device == "cuda" else 0.0
                share = tflop / peak * 1e3 / took
                row |= {"ms": f"{took:.2f}", "gb": f"{gb:.2f}", "tflop": f"{tflop:.4g}",
                        "product_tflops": f"{peak:.4g}", "share": f"{share:.3f}"}  # fmt: skip
            except Exception as error:  # no memory, or of the compiler: the other rows are measured all the same
                row |= {"note": f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.100}"}
                if cfg.device == "cuda":
                    torch.cuda.empty_cache()
            write(cfg.out, **row)


def measure_replay(cfg: Gpu) -> None:
    """A batch, gathered on the CPU and copied as train.py does it, and gathered on the device."""
    length, rows = 500, 200_000
    for place in dict.fromkeys(("cpu", cfg.device)):
        replay, to = Buffer(rows, 128, 16, device=place), place if place == cfg.device else f"{place}, then copied"
        for k in range(rows // (length + 1)):
            replay.add(torch.zeros(length + 1, 128), torch.zeros(length + 1, 16), torch.zeros(length + 1), k % 200)

        def call(replay=replay, copied=place != cfg.device) -> None:
            for x in replay.sample(cfg.batch_size, 3):
                if copied:
                    x.pin_memory().to(cfg.device, non_blocking=True)

        write(cfg.out, what="replay", how=to, ms=f"{milliseconds(call, cfg):.2f}")


# ---------------------------------------------------------------- one after the other


def last_words(said: TextIO) -> str:
    said.seek(0)
    lines = [line.strip() for line in said.read().splitlines() if any(map(str.isalpha, line))]
    return lines[-1][-120:] if lines else ""


def run_piece(cfg: Gpu, piece: str, limit_s: float, words: list[str]) -> None:
    """Run gpu.py in another process; if it doesn't come to its end, its last words become a row."""
    what, _, size = piece.partition(" ")
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, __file__, *words, "--piece", piece], stderr=said)
        try:
            process.wait(limit_s)
            note = last_words(said) or f"exit code {process.returncode}"
        except subprocess.TimeoutExpired:
            note = f"stopped after {limit_s:.0f} s"
        finally:
            process.kill()
            process.wait()
    if process.returncode:
        write(cfg.out, what="-", size=size, how=what, note=note)


def train(cfg: Gpu, seconds: float) -> None:
    """train.py for so long: its speed, and where the time went, by its own last line of metrics."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as said:
        words = [*cfg.train.split(), "--folder", f"{folder}/run", "--steps", "1000000", "--eval-every", "1000000"]
        words += ["--final-episodes", "1", "--seed-episodes", "1", "--log-every", "5", "--buffer-steps", "1000000"]
        command = [sys.executable, str(ROOT / "train.py"), *words, "--device", cfg.device]
        process = subprocess.Popen(command, stderr=said, stdout=subprocess.DEVNULL, cwd=ROOT)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.send_signal(signal.SIGINT)  # it ends its simulators
            with suppress(subprocess.TimeoutExpired):
                process.wait(30)
        finally:
            process.kill()
            process.wait()
        note = f"no step with updates in {seconds:.0f} s; {last_words(said)}"
        with suppress(OSError, ValueError):
            seen = metrics.read(Path(folder, "run/metrics.jsonl"))
            if "time/steps_per_s" in seen:
                shares = {k: seen[f"time/{k}"][-1][1] for k in ("plan", "update", "wait", "log")}
                note = f"{seen['time/steps_per_s'][-1][1]:.0f} steps/s"
                note += "".join(f", {k} {share:.0%}" for k, share in shares.items())
        write(cfg.out, what="train", how="train.py", note=f"{note} ({cfg.train})")


def main(cfg: Gpu) -> None:
    command.check_fields(cfg, RANGES)
    if cfg.device == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("torch finds no CUDA GPU here; --device cpu rehearses")
    if cfg.piece:
        what, _, size = cfg.piece.partition(" ")
        return measure_replay(cfg) if what == "replay" else measure_size(cfg, what, size)
    command.try_file(cfg.out)
    end = time.monotonic() + 60 * cfg.minutes
    name = torch.cuda.get_device_name() if cfg.device == "cuda" else "CPU, a rehearsal: nothing here says anything"
    with open(cfg.out, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerow(COLUMNS)
    write(cfg.out, what="machine", note=f"{name}; torch {torch.__version__}")
    pieces = ["replay", *(f"eager {size}" for size in cfg.sizes)]
    pieces += [f"compiled {size}" for size in cfg.sizes] if cfg.compile else []
    words = ["--device", cfg.device, "--batch-size", str(cfg.batch_size), "--envs", str(cfg.envs)]
    words += ["--repeats", str(cfg.repeats), "--out", str(cfg.out.resolve())]
    for piece in tqdm(pieces, unit="piece", disable=None):
        what, _, size = piece.partition(" ")
        left = end - time.monotonic() - 60 * cfg.train_minutes
        if left < 5:
            write(cfg.out, what="-", size=size, how=what, note="no time was left")
        else:
            run_piece(cfg, piece, min(LIMITS_S[what], left), words)
    if cfg.train_minutes:
        train(cfg, max(60 * cfg.train_minutes, end - time.monotonic()) - 30)
    show(cfg.out)


def show(path: Path) -> None:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS) - 1)]  # notes come last
    for row in rows:
        print("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())
    print(f"table  {path}")


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, Gpu))
