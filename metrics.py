"""What a run writes about its learning: metrics.jsonl, one line per event, the same for TensorBoard, and curves.png.

Names are as in loss/, train/<task>/, eval/<task>/, demo/<task>/, time/, memory/.
Test: pytest tests/test_metrics.py; pytest tests/test_train.py -k "files or resume"
"""

import json
import os
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

import distributed
from distributed import World

SMOOTH = 10  # a curve's point is the mean of a tenth of the episodes so far shown, and of at least three


class Log:
    """Always local files of rank 0.

    `note` keeps a line until the next `write`, which all processes call: it also collects the notes of the others.
    A number that isn't defined (NaN) is left out: JSON has no word for it.
    """

    def __init__(self, folder: Path, size: int, step: int, world: World):
        self.notes: list[tuple[int, dict]] = []
        self.writes = world.rank == 0
        if self.writes:
            self.file = open(folder / "metrics.jsonl", "ab")
            # A resumed run drops what was written after its checkpoint, here and there.
            self.file.truncate(min(size, self.file.seek(0, 2)))
            self.file.seek(0, 2)
            self.board = SummaryWriter(str(folder), purge_step=step + 1 if size else None)

    def note(self, step: int, **values: float) -> None:
        self.notes.append((step, {name: float(value) for name, value in values.items()}))

    def write(self, step: int, durable: bool = False, **values: float) -> None:
        """durable: it must be on the disk before a checkpoint that says how long the file is."""
        everyone = distributed.gather(self.notes)
        self.notes = []
        if not self.writes:
            return
        lines = sorted((note for notes in everyone for note in notes), key=lambda note: note[0])
        if values:
            lines.append((step, {name: float(value) for name, value in values.items()}))
        for step, values in lines:
            values = {name: value for name, value in values.items() if value == value}
            self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())

    @property
    def size(self) -> int:
        return self.file.tell() if self.writes else 0


# ---------------------------------------------------------------- curves


def running(points: list[tuple[int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Episodes as (step, value) -> steps, and at each the mean and standard deviation of the last few values."""
    steps, values = np.array(points, dtype=np.float64).T
    last = [values[max(0, i + 1 - max(3, len(values) // SMOOTH)) : i + 1] for i in range(len(values))]
    return steps, np.array([x.mean() for x in last]), np.array([x.std() for x in last])


def read(path: Path) -> dict[str, list[tuple[int, float]]]:
    """metrics.jsonl, by key: (step, value) of every line that has it. OSError, or what garbage raises."""
    points = defaultdict(list)
    for line in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
        for key, value in line.items():
            points[key].append((int(line["step"]), float(value)))
    return points


def plot_curves(metrics: Path, path: Path) -> None:
    """A panel for every task, as PNG: score against environment steps, or return where that says more.

    Line and band: running mean and deviation of training's episodes, which explore. Dots: evaluations, with the 95 %
    interval of their mean. Grey: the random policy, in its evaluation. Green: the demonstrations.
    Return is drawn where a score is 0 or 1, which would be a sawtooth, or where there is none.
    """
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    points = read(metrics)
    found = (re.fullmatch("eval/(.+)/ret", key) for key in points)  # own tasks' names may have slashes
    tasks = sorted(match[1] for match in found if match)
    columns = min(4, len(tasks))
    rows = -(-len(tasks) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3 * columns, 0.8 + 2.2 * rows), squeeze=False, sharex=True, layout="constrained"
    )
    for axis in axes.flat[len(tasks) :]:
        axis.axis("off")
    shown = {}
    for task, axis in zip(tasks, axes.flat, strict=False):
        by_score = any(0 < y < 1 for _, y in points.get(f"train/{task}/score", ()))
        train, word = ("score", "score") if by_score else ("return", "ret")
        if (key := f"train/{task}/{train}") in points:
            steps, mean, deviation = running(points[key])
            shown["training, running mean"] = axis.plot(steps, mean, color="C0", linewidth=1)[0]
            axis.fill_between(steps, mean - deviation, mean + deviation, color="C0", alpha=0.2, linewidth=0)
        (_, random), *evaluated = points[f"eval/{task}/{word}"]
        if evaluated:
            half = dict(points.get(f"eval/{task}/{word}_interval", ()))
            x, y = zip(*evaluated, strict=True)
            shown["evaluation, 95 %"] = axis.errorbar(
                x, y, [half.get(step, 0.0) for step in x], fmt="o", color="C1", markersize=4, capsize=2
            )
        shown["random"] = axis.axhline(random, color="grey", linestyle=":", linewidth=1)
        if (key := f"demo/{task}/{word}") in points:
            shown["demonstrations"] = axis.axhline(points[key][0][1], color="C2", linestyle="--", linewidth=1)
        axis.set_title(f"{task} ({'score' if by_score else 'return'})", fontsize=9)
        if by_score:
            axis.set_ylim(-0.05, 1.05)
    figure.supxlabel("environment steps (all tasks together)", fontsize=9)
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
