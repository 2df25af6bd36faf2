"""What imitation alone gives: one agent for all tasks with demonstrations, evaluated without planner.

    python demos.py make --tasks all --episodes 50 --out demos          (minutes, where they are recorded)
    python results/pretrain.py demos                                    -> results/pretrain.csv, results/pretrain.png

The agent is the laptop preset's unless settings are given, pretrained on the first `--shown` demonstrations of each
task and never trained online; it acts by its policy prior's mean. Beside it the random policy
(results/random_policy.csv, 20 episodes a task) and the demonstrations themselves. Scores are those of the last step,
in [0, 1].
"""

import csv
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import agent_file
import command
import compiled
import demo_format
import envs
import eval as evaluation
import language
import losses
import newt
import observe
import prepare
import train_config
from buffer import Buffer, sample_mixed
from episodes import evaluate

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pretrain:
    """Pretrain on demonstrations, evaluate the policy prior, write a table and a bar chart."""

    folder: tyro.conf.Positional[Path]
    """of demonstrations (demos.py make)"""
    imitation_updates: int = 0
    """of encoder and policy alone, before all else"""
    updates: int = 20_000
    """on demonstrations"""
    shown: int = 20
    """demonstrations per task"""
    episodes: int = 3
    """evaluated per task"""
    seed: int = 0
    """of network, batches and starts"""
    ckpt: Path | None = None
    """go on from this agent, of these settings, with cold optimisers"""
    file: Path = Path("pretrained.safetensors")
    """for the agent; if it is there, it is evaluated as it is"""
    compile: bool = False
    """torch.compile its updates"""
    agent: tyro.conf.OmitArgPrefixes[newt.Config] = field(default_factory=lambda: train_config.LAPTOP.agent)
    """the agent's own settings"""


def pretrain(cfg: Pretrain, tasks: list[str]) -> newt.Agent:
    settings, rows = cfg.agent, [envs.TASKS[name] for name in tasks]
    emb = language.embed([row.sentence for row in rows])
    dims, discounts = [row.action_dim for row in rows], [row.discount for row in rows]
    paths = {name: demo_format.place(cfg.folder, name) for name in tasks}
    files = {name: demo_format.load(path, name) for name, path in paths.items() if path.is_file()}
    known = agent_file.load(cfg.ckpt)[0] if cfg.ckpt else None
    if known and (agent_file.misfits(settings, known.params) or known.cfg.obs_norm != settings.obs_norm):
        raise ValueError(f"{cfg.ckpt} has other sizes: --size {known.cfg.size} --obs-norm {known.cfg.obs_norm} ...")
    stats = None if settings.obs_norm == "none" else observe.statistics(settings, tasks, files, known)
    params, q_scale = (known.params, float(known.q_scale)) if known else (None, 1.0)
    agent = newt.create(settings, tasks, emb, dims, discounts, cfg.seed, "cpu", params, q_scale, obs_stats=stats)
    if cfg.compile:
        agent.compiled = compiled.functions()
    buffer = Buffer(sum(int(f.episode_start[-1]) for f in files.values()), settings.obs_dim, settings.action_dim)
    prepare.fill(buffer, files, tasks, cfg.shown)
    generator = torch.Generator().manual_seed(cfg.seed)
    for phase, updates in (("imitate", cfg.imitation_updates), ("pretrain", cfg.updates)):
        (size, horizon), agent.updates = losses.slices(settings, phase), 0
        with tqdm(range(updates), desc=phase, unit="update", disable=None) as bar:
            for count in bar:
                batch = sample_mixed(buffer, None, size, horizon, generator, "task")
                # The rate falls to a twentieth, as in the preset's online part: the last updates average, not wander.
                metrics = newt.update(agent, batch, phase, lr_scale=1 - 0.95 * count / updates)
                if count % 100 == 0:
                    bar.set_postfix(bc=f"{float(metrics['loss/bc']):.3f}", refresh=False)
    agent_file.save(cfg.file, agent, 0)
    return agent


def main(cfg: Pretrain) -> None:
    tasks = envs.select("all")
    if not any(demo_format.place(cfg.folder, name).is_file() for name in tasks):
        raise FileNotFoundError(f"no demonstrations in {cfg.folder}")
    evaluation.share_cores(cfg.agent.size)
    if cfg.file.is_file():
        print(f"{cfg.file} is there: it is evaluated, nothing is pretrained")
        agent = agent_file.load(cfg.file)[0]
        envs.require_named(agent.tasks, "", cfg.file)
    else:
        agent = pretrain(cfg, tasks)
    played = evaluate(agent, list(agent.tasks), cfg.episodes, cfg.seed, "policy")
    with open(HERE / "random_policy.csv", newline="") as file:
        chance = {row["task"].rstrip("*"): row for row in csv.DictReader(file) if row["policy"] == "random"}
    rows = []
    for name, episodes in played.items():
        path = demo_format.place(cfg.folder, name)
        demonstrated = {"count": 0, "demonstrated_return": 0.0, "demonstrated_score": 0.0}
        if path.is_file():
            shown = demo_format.load(path, name)
            first = slice(min(cfg.shown, len(shown.ret)))
            demonstrated = {"count": first.stop, "demonstrated_return": shown.ret[first].mean(),
                            "demonstrated_score": shown.score[first].mean()}  # fmt: skip
        rows.append({
            "task": envs.label(name), "suite": envs.TASKS[name].domain, "demonstrations": demonstrated.pop("count"),
            "random_return": float(chance[name]["return_mean"]), "random_score": float(chance[name]["score_mean"]),
            "cloned_return": np.mean([e.ret for e in episodes]), "cloned_score": np.mean([e.score for e in episodes]),
            **demonstrated,
        })  # fmt: skip
    with open(HERE / "pretrain.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    draw(rows, HERE / "pretrain.png")


def draw(rows: list[dict], path: Path) -> None:
    """Mean score per suite, three bars each; prints the same."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    suites = defaultdict(list)
    for row in rows:
        suites[row["suite"]].append([row[f"{who}_score"] for who in ("random", "cloned", "demonstrated")])
    figure, axes = plt.subplots(figsize=(11, 3.6))
    print(f"{'suite':16}{'tasks':>6}{'random':>9}{'cloned':>9}{'demonstrated':>14}")
    for i, (suite, scores) in enumerate(suites.items()):
        means = np.mean(scores, 0)
        print(f"{suite:16}{len(scores):6}{means[0]:9.3f}{means[1]:9.3f}{means[2]:14.3f}")
        for k, (mean, color) in enumerate(zip(means, ("#bbbbbb", "#1f77b4", "#2ca02c"), strict=True)):
            axes.bar(i + 0.27 * (k - 1), mean, 0.25, color=color)
    axes.set_xticks(
        range(len(suites)), [f"{suite}\n({len(scores)} tasks)" for suite, scores in suites.items()], fontsize=8
    )
    axes.set_ylabel("mean score")
    axes.set_ylim(0, 1)
    axes.legend(["random", "cloned", "demonstrated"], fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, Pretrain))
