"""What makes imitation of many tasks work: one thing changed at a time, on twenty tasks of all ten suites.

    python demos.py make --tasks $(python results/imitation.py --names) --episodes 20 --out demos
    python results/imitation.py demos                                    -> results/imitation.csv, results/imitation.png

Every variant pretrains an agent with the laptop preset's settings on the same demonstrations and plays the same
episodes by its policy prior's mean. What is finished stays in the table, so that an interrupted run goes on, and
`--variants` adds more to it. What the winners became is in the settings of train.py.
"""

import csv
import sys
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

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
import prepare
import train_config
import world_model as wm
from buffer import Buffer, sample_mixed
from episodes import evaluate

HERE = Path(__file__).parent
TASKS = [
    "walker-walk", "reacher-hard", "cartpole-swingup", "cup-spin", "walker-walk-backward", "mw-push", "mw-hammer",
    "ms-push-cube", "ms-pick-cube", "ms-stack-cube", "mujoco-reacher", "lunarlander-hover", "bipedal-walker-flat",
    "rd-push-red", "rd-open-slide", "og-point-maze", "og-antball", "pygame-landing", "pygame-pong", "atari-pong",
]  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """What is different from the laptop preset's pretraining."""

    agent: dict = field(default_factory=dict)
    """settings of the agent"""
    updates: float = 1.0
    """times as many"""
    episodes: int = 20
    """demonstrations per task"""
    by: str = "task"
    """what is drawn uniformly"""
    obs: str = "raw"
    """raw, symlog, or by mean and standard deviation of its demonstrations: per task, or of all tasks of its body"""
    emb: str = "1"
    """length of the sentence embedding; or centred, of length 1 or 16 after the tasks' mean is taken away; or
    orthogonal, a random direction per task"""
    error: str = "sample"
    """sample or mean: the policy's action that is compared with the demonstration"""


VARIANTS = {
    "preset": Variant(),
    "standard by task": Variant(obs="standard by task"),
    "standard by body": Variant(obs="standard by body"),
    "symlog": Variant(obs="symlog"),
    "emb 4": Variant(emb="4"),
    "emb 16": Variant(emb="16"),
    "emb centred": Variant(emb="centred"),
    "emb centred 16": Variant(emb="centred 16"),
    "emb orthogonal 16": Variant(emb="orthogonal 16"),
    "mean error": Variant(error="mean"),
    "standard by task, emb 16": Variant(obs="standard by task", emb="16"),
    "standard by task, emb centred 16": Variant(obs="standard by task", emb="centred 16"),
    "size S": Variant(agent={"size": "S"}),
    "twice the updates": Variant(updates=2),
    "half the updates": Variant(updates=0.5),
    "batch 256": Variant(agent={"batch_size": 256}),
    "10 demonstrations": Variant(episodes=10),
    "3 demonstrations": Variant(episodes=3),
    "by step": Variant(by="step"),
    "by episode": Variant(by="episode"),
    "encoder's rate 1": Variant(agent={"enc_lr_scale": 1.0}),
    "imitation 10": Variant(agent={"bc_coef": 10.0}),
    "lr 1e-3": Variant(agent={"lr": 1e-3}),
    "all": Variant(obs="standard by task", agent={"lr": 1e-3, "enc_lr_scale": 1.0, "bc_coef": 10.0}),
    "all, twice the updates": Variant(
        obs="standard by task", agent={"lr": 1e-3, "enc_lr_scale": 1.0, "bc_coef": 10.0}, updates=2
    ),
}


@dataclass(frozen=True)
class Imitation:
    """Pretrain variants on demonstrations of twenty tasks, evaluate the policy prior."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """of demonstrations (demos.py make)"""
    variants: str = ""
    """names of some, with semicolons between; default: all"""
    updates: int = 6_000
    """on demonstrations"""
    episodes: int = 10
    """evaluated per task"""
    seed: int = 0
    """of network, batches and starts"""
    names: bool = False
    """print the tasks and end"""
    table: Path = HERE / "imitation.csv"
    """to go on with"""


def statistics(files: dict[str, demo_format.Demos], width: int, by: str) -> Tensor:
    """Mean and standard deviation of each task's observations, (2, S, O); by: task, or body, all tasks of one together."""
    stats = torch.zeros(2, len(files), width)
    stats[1] = 1
    for i, name in enumerate(files):
        row = envs.TASKS[name]
        alike = [k for k in files if (envs.TASKS[k].embodiment, envs.TASKS[k].obs_dim) == (row.embodiment, row.obs_dim)]
        obs = np.concatenate([files[k].obs for k in (alike if by == "body" else [name])])
        stats[0, i, : row.obs_dim] = torch.from_numpy(obs.mean(0))
        stats[1, i, : row.obs_dim] = torch.from_numpy(obs.std(0)).clamp(min=1e-2)
    return stats


def embeddings(how: str, tasks: list[str]) -> Tensor:
    emb = language.embed([envs.TASKS[name].sentence for name in tasks])
    *words, length = how.split()
    if "orthogonal" in words:
        emb = torch.linalg.qr(torch.randn(emb.shape[1], len(tasks), generator=torch.Generator().manual_seed(0)))[0].T
    if "centred" in how:
        emb = torch.nn.functional.normalize(emb - emb.mean(0), dim=-1)
    return emb * float(length if length != "centred" else 1)


def pretrain(cfg: Imitation, variant: Variant, files: dict[str, demo_format.Demos]) -> newt.Agent:
    """An agent of all tasks, learned as `variant` says."""
    settings = replace(train_config.LAPTOP.agent, **variant.agent)
    rows = [envs.TASKS[name] for name in files]
    dims, discounts = [row.action_dim for row in rows], [row.discount for row in rows]
    agent = newt.create(settings, list(files), embeddings(variant.emb, list(files)), dims, discounts, cfg.seed)
    wm.encode = ENCODE
    if variant.obs == "symlog":
        wm.encode = lambda params, obs, task: ENCODE(params, wm.symlog(obs), task)
    elif variant.obs != "raw":
        agent.obs_stats = statistics(files, settings.obs_dim, variant.obs.split()[-1])
    losses.imitation_error = IMITATION_ERROR if variant.error == "sample" else mean_error
    buffer = Buffer(sum(int(f.episode_start[-1]) for f in files.values()), settings.obs_dim, settings.action_dim)
    prepare.fill(buffer, files, list(files), variant.episodes)
    generator, updates = torch.Generator().manual_seed(cfg.seed), int(variant.updates * cfg.updates)
    for count in tqdm(range(updates), unit="update", leave=False, disable=None):
        batch = sample_mixed(buffer, None, settings.batch_size, settings.horizon, generator, variant.by)
        metrics = newt.update(agent, batch, "pretrain", lr_scale=1 - 0.95 * count / updates)
    print({k: round(float(v), 4) for k, v in metrics.items()}, flush=True)
    return agent


ENCODE, IMITATION_ERROR = wm.encode, losses.imitation_error


def mean_error(policy: wm.Policy, action: Tensor, mask: Tensor) -> Tensor:
    return IMITATION_ERROR(policy._replace(action=policy.mean), action, mask)


def main(cfg: Imitation) -> None:
    if cfg.names:
        print(",".join(TASKS))
        return
    names = [name.strip() for name in cfg.variants.split(";")] if cfg.variants else list(VARIANTS)
    unknown = [name for name in names if name not in VARIANTS]
    if unknown:
        raise ValueError(f"unknown variants {unknown}; there are: {'; '.join(VARIANTS)}")
    files = {name: demo_format.load(cfg.folder / f"{name}.safetensors", name) for name in TASKS}
    evaluation.share_cores("XS")
    rows = []
    if cfg.table.is_file():
        with open(cfg.table, newline="") as file:
            rows = list(csv.DictReader(file))
    for name in names:
        if any((row["variant"], row["seed"], row["updates"]) == (name, str(cfg.seed), str(cfg.updates)) for row in rows):
            continue
        began = time.process_time()
        agent = pretrain(cfg, VARIANTS[name], files)
        seconds = time.process_time() - began
        played = evaluate(agent, list(files), cfg.episodes, cfg.seed, "policy", title=name)
        for task, episodes in played.items():
            rows.append({
                "variant": name, "seed": cfg.seed, "updates": cfg.updates, "task": task, "suite": envs.TASKS[task].domain,
                "return": f"{np.mean([e.ret for e in episodes]):.4f}",
                "score": f"{np.mean([e.score for e in episodes]):.4f}", "pretraining_seconds": f"{seconds:.0f}",
            })  # fmt: skip
        with open(cfg.table, "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        show(rows[-len(files) :])


def show(rows: list[dict]) -> None:
    suites = defaultdict(list)
    for row in rows:
        suites[row["suite"]].append(float(row["score"]))
    mean = np.mean([float(row["score"]) for row in rows])
    print(f"{rows[0]['variant']:26}{mean:.3f}  " + " ".join(f"{s} {np.mean(v):.2f}" for s, v in suites.items()), flush=True)


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, Imitation))
