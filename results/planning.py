"""What planning adds to the policy, and what the model promised: variants of the planner on one finished agent.

    python train.py --folder runs/starter
    python results/planning.py runs/starter/agent.safetensors      -> results/planning.csv, results/planning.png

A variant is a list of settings of the agent (agent_config.py) that differ from its file's, or `policy`: no planner.
Episodes of all variants begin alike and have noise of their own. In each, at a few moments of its first half, two
plans are judged: the chosen one, and the policy's own without noise. Of both the model's prediction is compared with
what the simulator really gives for these actions and then for the policy's (from the state saved there):

    predicted       sum_{t<H} gamma^t R(z_t, a_t) + gamma^H V(z_H)         latents of the model from the present one
    real            sum_{t<H} gamma^t r_t + gamma^H (the policy's discounted return from there)
    predicted - real = errors of  reward    sum gamma^t [R(h(s_t), a_t) - r_t]
                                  dynamics  sum gamma^t [R(z_t, a_t) - R(h(s_t), a_t)] + gamma^H [V(z_H) - V(h(s_H))]
                                  value     gamma^H [V(h(s_H)) - real return from there]

V is the mean of all heads at the policy's action without noise. What lies behind an episode's end is worth V, as in
training. Over-estimation is (predicted - real) / |return of the episode|.
"""

import csv
import functools
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

import agent_file
import command
import envs
import eval as evaluation
import newt
import observe
import planner
import tables
import world_model as wm

HERE = Path(__file__).parent
FREE = "constraint_start=0,constraint_duration=0"  # the search starts from the shifted plan and std_max
VARIANTS = ("policy", "elite=sample", "elite=sure", f"elite=sample,{FREE}", f"elite=sure,{FREE}")


@dataclass(frozen=True)
class Planning:
    """Measure variants of the planner."""

    ckpt: tyro.conf.Positional[Path]
    """agent.safetensors"""
    tasks: str = ""
    """of the agent; default: all of them"""
    variants: tuple[str, ...] = VARIANTS
    """settings with commas between, as elite=sure,caution=3; or policy"""
    episodes: int = 10
    """per task and variant"""
    moments: int = 3
    """judged in each episode; 0 for tasks of your own, whose state can't be saved"""
    seed: int = 1000
    """of starts and noise"""
    workers: int = 0
    """processes; 0: one per core"""
    name: str = "planning"
    """of the files in results/"""


RANGES = {"episodes": (1, 10**6), "moments": (0, 1000), "seed": (0, 2**31), "workers": (0, 4096)}


def variant(cfg: newt.Config, words: str) -> newt.Config:
    """An agent's settings with some changed. ValueError for one that isn't there."""
    changed = {}
    for word in [] if words == "policy" else words.split(","):
        key, _, value = word.partition("=")
        if not hasattr(cfg, key):
            raise ValueError(f"{words!r} names no setting of the agent: {key}")
        changed[key] = type(getattr(cfg, key))(value)
    cfg = replace(cfg, **changed)
    newt.check(cfg)
    return cfg


class Judge:
    """One task's model and simulator, and what they say of a plan."""

    def __init__(self, agent: newt.Agent, name: str):
        self.agent, self.row, self.env = agent, envs.TASKS[name], envs.make(name)
        self.index = torch.tensor([agent.tasks.index(name)])
        self.task = wm.Task(agent.emb[self.index], agent.mask[self.index], torch.zeros(1, 1, dtype=torch.long))
        self.model = newt.planner_model(agent.params, self.task, wm.make_bins(agent.cfg.num_bins))
        self.gamma, self.zero = float(agent.discount[self.index]), torch.zeros(1, 1, agent.cfg.action_dim)

    def padded(self, obs: np.ndarray) -> torch.Tensor:
        return observe.padded(self.agent, self.env, obs)

    def encode(self, obs: np.ndarray) -> torch.Tensor:
        x = newt.standardised(self.agent, self.padded(obs), self.index)
        return wm.encode(self.agent.params, x.unsqueeze(1), self.task)  # (1, 1, Z)

    def value(self, z: torch.Tensor) -> float:
        return float(self.model.q_heads(z, self.model.pi(z, self.zero)).mean())

    def step(self, action: torch.Tensor) -> tuple:
        return self.env.step(action.flatten()[: self.row.action_dim].numpy())

    def judge(self, obs: np.ndarray, t: int, plan: torch.Tensor) -> dict[str, float]:
        """plan (H, A) from the simulator's present state, at step t of the episode; the state is as before after it."""
        state, length, gamma = self.env.get_state(), self.row.episode_length, self.gamma
        z, errors, predicted, real, factor = self.encode(obs), dict.fromkeys(("reward", "dynamics"), 0.0), 0.0, 0.0, 1.0
        for action in plan:
            action = action.view(1, 1, -1)
            promised, seen = (float(self.model.reward(x, action)) for x in (z, self.encode(obs)))
            z = self.model.next(z, action)
            obs, reward, *_ = self.step(action)
            errors["reward"] += factor * (seen - reward)
            errors["dynamics"] += factor * (promised - seen)
            predicted, real, factor = predicted + factor * promised, real + factor * reward, factor * gamma
        end = factor * self.value(z)
        seen, tail, t = factor * self.value(self.encode(obs)), 0.0, t + len(plan)
        while t < length and factor > 0.01:
            obs, reward, *_ = self.step(self.model.pi(self.encode(obs), self.zero))
            tail, factor, t = tail + factor * reward, factor * gamma, t + 1
        tail += factor * self.value(self.encode(obs))
        self.env.set_state(state)
        errors["dynamics"] += end - seen
        return {"predicted": predicted + end, "real": real + tail, **errors, "value": seen - tail}


@torch.no_grad()
def measure(name: str, cfg: Planning) -> list[dict]:
    """A row for each variant on one task."""
    torch.set_num_threads(1)
    agent, _ = agent_file.load(cfg.ckpt)
    judge, stored, rows = Judge(agent, name), agent.cfg, []
    horizon, length = stored.horizon, judge.row.episode_length
    for words in cfg.variants:
        agent.cfg = variant(stored, words)
        played, judged = [], []
        for episode in range(cfg.episodes):
            seed = cfg.seed + episode
            generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
            moments = set(rng.choice(np.arange(1, length // 2), cfg.moments, replace=False).tolist())
            obs, _ = judge.env.reset(seed=seed)
            warm, total = torch.zeros(1, horizon, stored.action_dim), 0.0
            for t in range(length):
                plan = newt.act(agent, judge.padded(obs), judge.index, warm, torch.tensor([t == 0]),
                                use_planner=words != "policy", generator=generator)  # fmt: skip
                if t in moments:
                    quiet = torch.zeros(1, horizon, 1, stored.action_dim)
                    own = planner.policy_plans(judge.model, judge.encode(obs), quiet)[0, :, 0]
                    chosen = own if words == "policy" else plan.chosen[0]
                    row = judge.judge(obs, t, chosen)
                    row |= {f"policy_{key}": value for key, value in judge.judge(obs, t, own).items()}
                    away = (chosen - own)[:, : judge.row.action_dim].square().mean().sqrt()
                    judged.append(row | {"distance": float(away)})
                warm = plan.mean
                obs, reward, terminated, truncated, info = judge.step(plan.action)
                total += reward
                if terminated or truncated:
                    break
            played.append((total, info["success"], info["score"]))
        ret, success, score = np.mean(played, 0)
        success = success if judge.row.success_defined else np.nan
        row = {"task": name, "variant": words, "episodes": cfg.episodes, "return": ret, "success": success}
        row |= {"score": score} | {key: np.mean([row[key] for row in judged]) for key in (judged or [{}])[0]}
        for who in ("", "policy_") if judged else ():
            row[f"{who}overestimation"] = (row[f"{who}predicted"] - row[f"{who}real"]) / abs(ret)
        rows.append({key: round(float(x), 4) if isinstance(x, float) else x for key, x in row.items()})
    return rows


def draw(rows: list[dict], path: Path) -> None:
    """Scores per task and variant; what is over-estimated, split, per variant (median over tasks)."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tasks, variants = (list(dict.fromkeys(row[key] for row in rows)) for key in ("task", "variant"))
    names = {words: words.replace(FREE, "free").replace("elite=", "") for words in variants}
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 4), width_ratios=(2, 1), layout="constrained")
    width = 0.8 / len(variants)
    for i, words in enumerate(variants):
        scores = [next(row["score"] for row in rows if row["task"] == t and row["variant"] == words) for t in tasks]
        left.bar(np.arange(len(tasks)) + i * width, scores, width, label=f"{names[words]} ({np.mean(scores):.2f})")
    left.set_xticks(np.arange(len(tasks)) + 0.4 - width / 2, tasks, rotation=20, ha="right")
    left.set(ylabel="score", title="score (mean)")
    left.legend(fontsize=8)
    for i, part in enumerate(("reward", "dynamics", "value") if "value" in rows[0] else ()):
        sizes = [np.median([(row[part] - row[f"policy_{part}"]) / abs(row["return"]) for row in rows
                            if row["variant"] == words]) for words in variants]  # fmt: skip
        right.barh(np.arange(len(variants)) + 0.25 * i, sizes, 0.25, label=part)
    right.set_yticks(np.arange(len(variants)) + 0.25, [names[words] for words in variants])
    right.set(title="promised beyond what came, more than the policy's\n(share of the return, median of tasks)")
    right.title.set_fontsize(9)
    right.legend(fontsize=8)
    right.invert_yaxis()
    figure.savefig(path, dpi=100)


def main(cfg: Planning) -> None:
    command.check_fields(cfg, RANGES)
    for ending in ("csv", "png"):
        command.try_file(HERE / f"{cfg.name}.{ending}")
    agent, _ = agent_file.load(cfg.ckpt)
    names = evaluation.tasks_of(agent, cfg.tasks, cfg.ckpt)
    for words in cfg.variants:
        variant(agent.cfg, words)
    with ProcessPoolExecutor(cfg.workers or machine.cores(), multiprocessing.get_context("spawn")) as pool:
        parts = pool.map(functools.partial(measure, cfg=cfg), names)
        rows = [row for part in tqdm(parts, total=len(names), desc="tasks", disable=None) for row in part]
    with open(HERE / f"{cfg.name}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, HERE / f"{cfg.name}.png")
    print(f"{'variant':56}{'success':>9}{'score':>9}{'gain in return':>16}{'over-estimation':>17}")
    base = {row["task"]: row["return"] for row in rows if row["variant"] == cfg.variants[0]}  # the first one's
    for words in cfg.variants:
        own = [row for row in rows if row["variant"] == words]
        success = tables.mean_of_defined([r["success"] for r in own])
        gain = np.mean([(r["return"] - base[r["task"]]) / abs(base[r["task"]]) for r in own])
        over = np.mean([r.get("overestimation", np.nan) for r in own])
        print(f"{words:56}{success:9.3f}{np.mean([r['score'] for r in own]):9.3f}{gain:16.4f}{over:17.3f}")


if __name__ == "__main__":
    command.run(main, command.start(tyro.cli, Planning))
