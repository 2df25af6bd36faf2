"""What an agent's knowledge is worth for tasks it has never seen: random, zero-shot, finetuned, and from scratch.

    python results/transfer.py --ckpt runs/starter/agent.safetensors     -> results/transfer.csv, results/transfer.png

For each task and seed: the random policy; the agent as it is, told the task's sentence; the agent finetuned on the
demonstrations that are in the box (where there are some) and online steps; a fresh agent with the same demonstrations,
updates and steps. All four play the same episodes of a seed: they begin alike. Finetuning is train.py, in folders of
its own under --folder. Killed, the same command goes on: finished rows are in the table, runs in their folders.
Published (20 tasks, 100,000 steps): 0.192 zero-shot, 0.868 finetuned, 0.480 from scratch.
Paper: Newt (arXiv 2511.19584).
"""

import csv
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import matplotlib
import numpy as np
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import agent_file
import command
import envs
import eval as evaluation
import evaluation_file
import run_folder
from buffer import replacing
from episodes import evaluate
from intervals import Estimate, interval, mean_of

HERE = Path(__file__).parent
STAGES = ("random", "zero-shot", "finetuned", "scratch")
FIELDS = ("task", "suite", "seed", "stage", "episodes", "return", "score", "low", "high", "success", "success_any",
          "minutes", "agent", "demos", "imitation", "updates", "steps")  # fmt: skip


@dataclass(frozen=True)
class Transfer:
    """Run the transfer protocol; resumable."""

    ckpt: Path
    """agent.safetensors"""
    tasks: str = "heldout"
    """as eval.py takes them; such as the agent was not trained on"""
    seeds: int = 2
    """repetitions, of training and of the episodes that are compared"""
    episodes: int = 20
    """of each task, seed and stage"""
    demos: int = 10
    """demonstrations of each task at most"""
    imitation: int = 4_000
    """updates of imitation alone on them"""
    updates: int = 2_000
    """of pretraining on them, after that"""
    steps: int = 10_000
    """online steps"""
    preset: Literal["laptop", "published"] = "laptop"
    """of training"""
    folder: Path = Path("runs/transfer")
    """where the runs are"""
    name: str = "transfer"
    """of the files in results/"""


RANGES = {"seeds": (1, 1000), "episodes": (1, 10**6), "demos": (1, 10**6), "steps": (1, 10**12)}
RANGES |= dict.fromkeys(("imitation", "updates"), (0, 10**9))


def settings(cfg: Transfer) -> dict[str, str]:
    """What all rows of a table must share."""
    agent = evaluation_file.fingerprint(cfg.ckpt)[:12]
    of_training = {name: str(getattr(cfg, name)) for name in ("demos", "imitation", "updates", "steps", "episodes")}
    return {"agent": agent, **of_training}


def read(path: Path, cfg: Transfer) -> list[dict]:
    """Rows that are finished. ValueError, one line, if they are of another agent or protocol."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        other = [key for key, value in settings(cfg).items() if row.get(key) != value]
        if other:
            raise ValueError(f"{path} holds rows with another value of {', '.join(other)}: choose another --name")
    return rows


def write(path: Path, rows: list[dict]) -> None:
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        writer.writerows(rows)


def trained(cfg: Transfer, task: str, seed: int, stage: str, size: str) -> Path:
    """The agent of a run that is finetuned or from scratch: begun, or gone on with. RuntimeError if it fails."""
    folder = cfg.folder / f"{envs.file_name(task)}-{seed}-{stage}"
    program, named = [sys.executable, str(HERE.parent / "train.py")], ["--tasks", task]
    if run_folder.is_run(folder):
        words = ["--resume", str(folder), *(named if ":" in task else [])]
    else:
        longest = max(cfg.steps, envs.TASKS[task].episode_length)  # one evaluation, at the end
        words = [*named, "--preset", cfg.preset, "--seed", str(seed), "--folder", str(folder)]
        words += ["--steps", str(cfg.steps), "--demo-episodes", str(cfg.demos), "--pretrain-updates", str(cfg.updates)]
        words += ["--imitation-updates", str(cfg.imitation)]
        words += ["--envs-per-task", "1", "--eval-every", str(longest), "--eval-episodes", "1", "--final-episodes", "1"]
        words += ["--ckpt", str(cfg.ckpt)] if stage == "finetuned" else ["--size", size]  # as large as the other
    done = subprocess.run([*program, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{stage} on {task}, seed {seed}: {done.stderr.strip().splitlines()[-1:]}")
    return folder / "agent.safetensors"


def measure(cfg: Transfer, task: str, seed: int, stage: str) -> dict:
    """One row of the table."""
    start = time.perf_counter()
    agent, meta = agent_file.load(path := cfg.ckpt, evaluation.pick_device("auto"))
    if stage in ("finetuned", "scratch"):
        path = trained(cfg, task, seed, stage, agent.cfg.size)
        agent, meta = agent_file.load(path, evaluation.pick_device("auto"))
    evaluation.share_cores(agent.cfg.size)
    agent, _ = evaluation.told(agent, evaluation.tasks_of(agent, task, path, others=True), None, path)
    policy = "random" if stage == "random" else "planner"
    played = evaluate(agent, [task], cfg.episodes, 1000 + seed, policy, meta["step"], title=f"{task} {stage}")[task]
    score = interval([e.score for e in played], rate=True)
    row = {"task": task, "suite": envs.TASKS[task].domain, "seed": seed, "stage": stage,
           "return": np.mean([e.ret for e in played]), "score": score.mean, "low": score.low, "high": score.high,
           "success": np.mean([e.success for e in played]), "success_any": np.mean([e.success_any for e in played]),
           "minutes": (time.perf_counter() - start) / 60}  # fmt: skip
    row = {key: round(float(x), 4) if isinstance(x, float) else x for key, x in row.items()}
    return {key: str(value) for key, value in (row | settings(cfg)).items()}


def estimates(rows: list[dict]) -> dict[str, dict[str, Estimate]]:
    """task -> stage -> mean score over the seeds; under "mean", over the tasks that have all stages."""
    found = {}
    for row in rows:
        found.setdefault(row["task"], {}).setdefault(row["stage"], []).append(
            Estimate(*(float(row[key]) for key in ("score", "low", "high")))
        )
    found = {task: {stage: mean_of(parts) for stage, parts in stages.items()} for task, stages in found.items()}
    whole = [stages for stages in found.values() if len(stages) == len(STAGES)]
    return found | {"mean": {stage: mean_of(stages[stage] for stages in whole) for stage in STAGES}}


def draw(rows: list[dict], path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    found = estimates(rows)
    figure, axis = plt.subplots(figsize=(max(6, 0.9 * len(found)), 3.8), layout="constrained")
    for i, stage in enumerate(STAGES):
        parts = [stages.get(stage, Estimate(*[np.nan] * 3)) for stages in found.values()]
        mean, low, high = np.array(parts).T
        ends = np.nan_to_num([mean - low, high - mean]).clip(0)
        places = np.arange(len(found)) + 0.2 * i
        axis.bar(places, np.nan_to_num(mean), 0.2, yerr=ends, label=stage, error_kw={"lw": 0.8})
    axis.set_xticks(np.arange(len(found)) + 0.3, list(found), rotation=25, ha="right", fontsize=8)
    axis.set(ylabel="score", ylim=(0, 1.05))
    axis.legend(ncols=len(STAGES), fontsize=8, frameon=False, loc="upper left")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(cfg: Transfer) -> None:
    command.check_fields(cfg, RANGES)
    path = HERE / f"{cfg.name}.csv"
    command.try_file(path)
    command.try_file(path.with_suffix(".png"))
    agent, _ = agent_file.load(cfg.ckpt)
    tasks = evaluation.tasks_of(agent, cfg.tasks, cfg.ckpt, others=True)
    known = [name for name in tasks if name in agent.tasks]
    if known:
        raise ValueError(f"{cfg.ckpt} was trained on {', '.join(known)}: that is no transfer")
    evaluation.told(agent, tasks, None, cfg.ckpt)  # can it be told at all?
    rows = read(path, cfg)
    done = {(row["task"], row["seed"], row["stage"]) for row in rows}
    todo = [(task, seed, stage) for task in tasks for seed in range(cfg.seeds) for stage in STAGES]
    todo = [(task, seed, stage) for task, seed, stage in todo if (task, str(seed), stage) not in done]
    for task, seed, stage in tqdm(todo, desc="transfer", unit="row", disable=None):
        rows.append(measure(cfg, task, seed, stage))
        write(path, rows)
    draw(rows, path.with_suffix(".png"))
    for task, stages in estimates(rows).items():
        print(f"{task:28}" + "".join(f"{stage:>12}{stages[stage].mean:8.3f}" for stage in STAGES if stage in stages))


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, Transfer))
