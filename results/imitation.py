"""What makes imitation of many tasks work: one thing changed at a time, on twenty tasks of all ten suites.

    python demos.py make --tasks $(python results/imitation.py --names) --episodes 20 --out demos
    python results/imitation.py demos                                    -> results/imitation.csv, results/imitation.png

Every variant pretrains an agent with the laptop preset's settings on the same four fifths of the demonstrations. How
much of the actions it explains, 1 - |a - p(z)|^2 / |a - mean a|^2, is told on these and on the fifth that it has not
seen: a minute of computing a variant. With --episodes it also plays, by its policy prior's mean, which takes minutes.
What is finished stays in the table, so that an interrupted run goes on.
"""

import csv
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import command
import demo_format
import envs
import eval as evaluation
import language
import losses
import newt
import observe
import prepare
import train_config
import world_model as wm
from buffer import Buffer
from episodes import evaluate

HERE = Path(__file__).parent
TASKS = [
    "walker-walk", "reacher-hard", "cartpole-swingup", "cup-spin", "walker-walk-backward", "mw-push", "mw-hammer",
    "ms-push-cube", "ms-pick-cube", "ms-stack-cube", "mujoco-reacher", "lunarlander-hover", "bipedal-walker-flat",
    "rd-push-red", "rd-open-slide", "og-point-maze", "og-antball", "pygame-landing", "pygame-pong", "atari-pong",
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What is different from the published way to pretrain, at the laptop preset's size and batch."""

    agent: dict = field(default_factory=dict)
    """settings of the agent"""
    updates: float = 1.0
    """times as many"""
    alone: float = 0.0
    """times as many of encoder and policy alone, before"""
    shown: int = 20
    """demonstrations per task"""
    by: str = "task"
    """what is drawn uniformly"""
    symlog: bool = False
    """of observations"""
    emb: str = "1"
    """length of the sentence embedding; before it, centred: after the mean of all is taken away; or orthogonal:
    a random direction per task instead"""
    error: str = "sample"
    """sample or mean: the policy's action that is compared with the demonstration's"""


PUBLISHED = replace(train_config.LAPTOP.agent, obs_norm="none", enc_lr_scale=0.3)  # at the laptop's size and batch
NORM = {"obs_norm": "demos"}
FAST = {"lr": 1e-3, "enc_lr_scale": 1.0}
BC = {"bc_coef": 10.0}
VARIANTS = {
    "published": Variant(),
    "observations symlog": Variant(symlog=True),
    "observations standardised": Variant(NORM),
    "embedding 4": Variant(emb="4"),
    "embedding 16": Variant(emb="16"),
    "embedding centred": Variant(emb="centred 1"),
    "embedding centred 4": Variant(emb="centred 4"),
    "embedding orthogonal": Variant(emb="orthogonal 1"),
    "error of the mean": Variant(error="mean"),
    "imitation 10": Variant(BC),
    "lr 1e-3": Variant({"lr": 1e-3}),
    "encoder's lr": Variant({"enc_lr_scale": 1.0}),
    "lr 1e-3, encoder's too": Variant(FAST),
    "by episode": Variant(by="episode"),
    "by step": Variant(by="step"),
    "3 demonstrations": Variant(shown=3),
    "10 demonstrations": Variant(shown=10),
    "consistency 2": Variant({"consistency_coef": 2.0}),
    "batch 512": Variant({"batch_size": 512}),
    "three times the updates": Variant(updates=3),
    "size S": Variant({"size": "S"}),
    "standardised, lr": Variant(NORM | FAST),
    "lr, imitation 10": Variant(FAST | BC),
    "all three": Variant(NORM | FAST | BC),
    "all three, 3 demonstrations": Variant(NORM | FAST | BC, shown=3),
    "all three, 10 demonstrations": Variant(NORM | FAST | BC, shown=10),
    "all three, embedding 4": Variant(NORM | FAST | BC, emb="4"),
    "all three, error of the mean": Variant(NORM | FAST | BC, error="mean"),
    "all three, consistency 2": Variant(NORM | FAST | BC | {"consistency_coef": 2.0}),
    "all three, batch 512": Variant(NORM | FAST | BC | {"batch_size": 512}),
    "all three, three times the updates": Variant(NORM | FAST | BC, updates=3),
    "all three, imitation alone before": Variant(NORM | FAST | BC, alone=5),
    "all three, nothing but imitation": Variant(NORM | FAST | BC, updates=0, alone=10),
}


@dataclass(frozen=True)
class Imitation:
    """Pretrain variants on demonstrations of twenty tasks; how much of the actions do they explain?"""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """of demonstrations (demos.py make)"""
    variants: str = ""
    """some of them, with semicolons between; default: all"""
    updates: int = 2_000
    """on demonstrations"""
    episodes: int = 0
    """played per task"""
    seed: int = 0
    """of network, batches and starts"""
    names: bool = False
    """print the tasks and end"""
    table: Path = HERE / "imitation.csv"
    """to go on with"""


def embeddings(how: str, tasks: list[str]) -> Tensor:
    emb, (*words, length) = language.embed([envs.TASKS[name].sentence for name in tasks]), how.split()
    if "orthogonal" in words:
        emb = torch.linalg.qr(torch.randn(emb.shape[1], len(tasks), generator=torch.Generator().manual_seed(0)))[0].T
    if "centred" in words:
        emb = torch.nn.functional.normalize(emb - emb.mean(0), dim=-1)
    return emb * float(length)


def split(files: dict[str, demo_format.Demos], most: int) -> tuple[dict, dict]:
    """The first four fifths of each task's demonstrations, of which at most so many count, and the last fifth."""
    seen, unseen = {}, {}
    for name, file in files.items():
        parts = [demo_format.episode(file, e) for e in range(len(file.ret))]
        last = max(1, len(parts) // 5)
        seen[name] = demo_format.join(parts[:-last][:most], file.meta)
        unseen[name] = demo_format.join(parts[-last:], file.meta)
    return seen, unseen


def pretrain(cfg: Imitation, variant: Variant, files: dict[str, demo_format.Demos]) -> newt.Agent:
    """An agent of all tasks, learned as `variant` says."""
    settings, tasks, rows = replace(PUBLISHED, **variant.agent), list(files), map(envs.TASKS.get, files)
    dims, discounts = zip(*((row.action_dim, row.discount) for row in rows), strict=True)
    stats = None if settings.obs_norm == "none" else observe.statistics(settings, tasks, files)
    agent = newt.create(
        settings, tasks, embeddings(variant.emb, tasks), list(dims), list(discounts), cfg.seed, obs_stats=stats
    )
    newt.standardised = symlog if variant.symlog else STANDARDISED
    losses.imitation_error = mean_error if variant.error == "mean" else IMITATION_ERROR
    buffer = Buffer(sum(int(f.episode_start[-1]) for f in files.values()), settings.obs_dim, settings.action_dim)
    prepare.fill(buffer, files, tasks, variant.shown)
    generator = torch.Generator().manual_seed(cfg.seed)
    for phase, share in (("imitate", variant.alone), ("pretrain", variant.updates)):
        updates, agent.updates = int(share * cfg.updates), 0
        size, horizon = losses.slices(settings, phase)
        for count in tqdm(range(updates), desc=phase, unit="update", leave=False, disable=None):
            batch = buffer.sample(size, horizon, generator, variant.by)
            newt.update(agent, batch, phase, lr_scale=1 - 0.95 * count / updates)
    return agent


STANDARDISED, IMITATION_ERROR = newt.standardised, losses.imitation_error


def symlog(agent: newt.Agent, obs: Tensor, task: Tensor) -> Tensor:
    return wm.symlog(obs)


def mean_error(policy: wm.Policy, action: Tensor, mask: Tensor) -> Tensor:
    return IMITATION_ERROR(policy._replace(action=policy.mean), action, mask)


def explained(agent: newt.Agent, task: int, file: demo_format.Demos) -> float:
    """Share of the variance of the demonstrated actions that the policy's mean explains."""
    first = np.zeros(len(file.obs), bool)
    first[file.episode_start[:-1]] = True
    lasts = np.roll(first, -1)
    obs, action = torch.from_numpy(file.obs[~lasts]), torch.from_numpy(file.action[~first])
    obs = torch.nn.functional.pad(obs, (0, agent.cfg.obs_dim - obs.shape[1]))
    n, (h, a) = len(obs), (agent.cfg.horizon, agent.cfg.action_dim)
    which, none = torch.full((n,), task), torch.zeros(n, dtype=torch.bool)
    policy = newt.act(agent, obs, which, torch.zeros(n, h, a), none, use_planner=False).action[:, : action.shape[1]]
    return 1 - float((policy - action).square().sum() / (action - action.mean(0)).square().sum())


def main(cfg: Imitation) -> None:
    if cfg.names:
        print(",".join(TASKS))
        return
    names = [name.strip() for name in cfg.variants.split(";")] if cfg.variants else list(VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variants {', '.join(unknown)}; there are: {'; '.join(VARIANTS)}")
    files = {name: demo_format.load(cfg.folder / f"{name}.safetensors", name) for name in TASKS}
    # All variants learn from the same, however many the folder has by now.
    files = {k: demo_format.join([demo_format.episode(f, e) for e in range(min(20, len(f.ret)))], f.meta)
             for k, f in files.items()}  # fmt: skip
    evaluation.share_cores("XS")
    rows = []
    if cfg.table.is_file():
        with open(cfg.table, newline="") as file:
            rows = list(csv.DictReader(file))
    for name in names:
        key = {"variant": name, "updates": str(cfg.updates), "episodes": str(cfg.episodes), "seed": str(cfg.seed)}
        if any(key.items() <= row.items() for row in rows):
            continue
        began = time.process_time()
        seen, unseen = split(files, VARIANTS[name].shown)
        agent = pretrain(cfg, VARIANTS[name], seen)
        seconds = time.process_time() - began
        played = evaluate(agent, TASKS, cfg.episodes, cfg.seed, "policy", title=name) if cfg.episodes else {}
        for i, task in enumerate(TASKS):
            score = f"{np.mean([e.score for e in played[task]]):.4f}" if played else ""
            explains = {"seen": explained(agent, i, seen[task]), "unseen": explained(agent, i, unseen[task])}
            rows.append({**key, "task": task, "suite": envs.TASKS[task].domain, "cpu_seconds": f"{seconds:.0f}",
                         **{k: f"{v:.4f}" for k, v in explains.items()}, "score": score})  # fmt: skip
        with open(cfg.table, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        print(line(name, rows[-len(TASKS) :]), flush=True)
    draw(rows, cfg.table.with_suffix(".png"))


def line(name: str, rows: list[dict]) -> str:
    seen, unseen = (np.mean([float(row[key]) for row in rows]) for key in ("seen", "unseen"))
    scores = [float(row["score"]) for row in rows if row["score"]]
    score = f"  score {np.mean(scores):.3f}" if scores else ""
    return f"{name:36} explained: seen {seen:.3f}, unseen {unseen:.3f}{score}  ({rows[0]['cpu_seconds']} s)"


def draw(rows: list[dict], path: Path) -> None:
    """Explained variance of every variant, seen and unseen, in the table's order."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row["variant"] for row in rows))
    figure, axes = plt.subplots(figsize=(8, 0.24 * len(names) + 1))
    for key, colour, shift in (("seen", "#9ecae1", -0.2), ("unseen", "#1f77b4", 0.2)):
        means = [np.mean([float(r[key]) for r in rows if r["variant"] == name]) for name in names]
        axes.barh(np.arange(len(names)) + shift, means, 0.4, color=colour, label=f"{key} demonstrations")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("share of the actions' variance that the policy explains")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, Imitation))
