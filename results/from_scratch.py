"""Evaluation curves of finished runs, as one CSV and one picture: one panel per task, one line per seed.

    for task in walker-walk reacher-easy; do python train.py --preset laptop --tasks $task --demos none \
        --envs-per-task 2 --steps 25000 --eval-every 2500 --eval-episodes 4 --seed 0 --folder runs/$task-0; done
    python results/from_scratch.py from_scratch runs/walker-walk-0 runs/reacher-easy-0

    python train.py --preset laptop --tasks gym:Hopper-v5 --demos none --steps 50000 --eval-every 2500 \
        --eval-episodes 5 --seed 0 --folder runs/hopper-0
    python results/from_scratch.py own_tasks runs/hopper-0             # tasks of one's own, whose episodes may end

The first word names the files: results/<word>.csv and .png.
"""

import csv
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

FOLDER = Path(__file__).parent
GOALS = {"cartpole-swingup": 750, "reacher-easy": 850, "walker-walk": 850}  # return to reach within 50,000 steps

name, rows = sys.argv[1], []
for run in map(Path, sys.argv[2:]):
    config = json.loads((run / "config.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    key = f"eval/{config['tasks']}/ret"
    for line in [line for line in lines if key in line]:
        rows.append((config["tasks"], config["seed"], line["step"], round(line[key], 2)))
with open(FOLDER / f"{name}.csv", "w", newline="") as file:
    csv.writer(file).writerows([("task", "seed", "agent_steps", "return"), *rows])

tasks = sorted({row[0] for row in rows})
figure, axes = plt.subplots(1, len(tasks), figsize=(4 * len(tasks), 3), squeeze=False, layout="constrained")
for task, axis in zip(tasks, axes.flat, strict=True):
    for seed in sorted({row[1] for row in rows if row[0] == task}):
        points = [row[2:] for row in rows if row[:2] == (task, seed)]
        axis.plot(*zip(*points, strict=True), "o-", markersize=3, label=f"seed {seed}")
    axis.set(title=task, xlabel="agent steps", ylabel="return")
    if ":" not in task:
        axis.axhline(GOALS.get(task, 1000), color="grey", linestyle=":")
        axis.set_ylim(0, 1000)
    axis.legend()
figure.savefig(FOLDER / f"{name}.png", dpi=110)
