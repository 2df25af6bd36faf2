"""Open loop: the agent looks only every K steps, and in between believes its own model. How well, and how wrong it is.

    python eval.py --ckpt agent.safetensors --open-loop 8                      every 8 steps; 1 is what others are
    python eval.py --ckpt agent.safetensors --open-loop 1,2,4,8,16,24,48 --json r.json     a table; the plot is r.png

At a look z_t = h(o_t); after it z_{t+1} = d(z_t, a_t), and the planner goes on from that. In the same episodes, at each
number of steps since the look:

    latent    mean over Z of (z_t - h(o_t))^2, as in the consistency loss
    reward    |R(z_t, a_t) - r_t|
    return    |sum of R(z, a) since the look - sum of r|

Paper: Newt (arXiv 2511.19584), which reports 48 steps, 16 times the horizon, on eight tasks.
Test: pytest tests/test_open_loop.py
"""

from pathlib import Path

import numpy as np
import torch

import newt
import world_model as wm

ERRORS = ("latent", "reward", "return")


class Ahead:
    """What the model believes of n environments that step together while it isn't shown them, and how wrong it is.

    Each step: `look` and `predict` for groups of rows, in any order, then `compare` with what came.
    """

    def __init__(self, agent: newt.Agent, names: list[str], every: int):
        n, latent = len(names), agent.params["dynamics.2.weight"].shape[0]
        self.agent, self.every = agent, every
        self.task = torch.tensor([agent.tasks.index(name) for name in names], device=agent.device)
        self.z = torch.zeros(n, latent, device=agent.device)
        self.bins = wm.make_bins(agent.cfg.num_bins, device=agent.device)
        self.promised, self.off, self.size = np.zeros(n), np.zeros(n), np.zeros(n)
        self.sums, self.count = np.zeros((n, len(ERRORS), every)), np.zeros((n, every))

    def _tables(self, rows: list[int]) -> wm.Task:
        task = self.task[rows]
        return wm.Task(self.agent.emb[task], self.agent.mask[task], torch.arange(len(rows), device=task.device))

    def look(self, rows: list[int], x: torch.Tensor, t: int) -> torch.Tensor:
        """x (R, O) -> latents to decide from (R, Z): the observations' at every K-th step, else the predicted ones."""
        x, ahead = newt.standardised(self.agent, x, self.task[rows]), t % self.every
        seen = wm.encode(self.agent.params, x, self._tables(rows))
        z = self.z[rows] if ahead else seen
        self.sums[rows, 0, ahead] += (z - seen).square().mean(1).cpu().numpy()  # a row that comes twice counts once
        return z

    def predict(self, rows: list[int], z: torch.Tensor, action: torch.Tensor, t: int) -> None:
        """z (R, Z), action (R, A): what comes next, as the model has it."""
        params, task = self.agent.params, self._tables(rows)
        self.promised[rows] = wm.decode(wm.reward(params, z, action, task), self.bins).cpu().numpy()
        self.z[rows] = wm.dynamics(params, z, action, task)

    def compare(self, running: np.ndarray, reward: np.ndarray, t: int) -> None:
        """running (n,) bool: of which environments these rewards (n,) are."""
        ahead, error = t % self.every, self.promised - reward
        self.off = np.where(ahead, self.off, 0) + error
        self.sums[running, 1, ahead] += np.abs(error)[running]
        self.sums[running, 2, ahead] += np.abs(self.off)[running]
        self.count[running, ahead] += 1
        self.size[running] += np.abs(reward)[running]

    def errors(self, i: int) -> dict:
        """Of environment i's episode: mean error of each kind, by steps since the look; mean |reward|."""
        known = self.count[i] > 0
        means = self.sums[i][:, known] / self.count[i][known]
        rows = {name: [float(f"{x:.6g}") for x in row] for name, row in zip(ERRORS, means, strict=True)}
        return rows | {"mean_reward": float(f"{self.size[i] / self.count[i].sum():.6g}")}


def parse(words: str, shortest: int) -> list[int]:
    """The counts K in "8" or "1,2,4". ValueError, one line: no whole number, or not from 1 to the shortest episode."""
    counts = []
    for word in words.split(","):
        if not word.strip().isdecimal() or not 1 <= int(word) <= shortest:
            raise ValueError(f"open-loop takes numbers of steps from 1 to {shortest}, the shortest of these tasks' "
                             f"episodes, with commas between; got {word.strip()!r:.40}")  # fmt: skip
        counts.append(int(word))
    return sorted({*counts})


def mean_errors(played: list) -> dict[str, np.ndarray]:
    """Over a task's episodes, each (K,): latent as it is; reward and return as shares of what a step's reward is.

    return: the error of the sum over so many steps, as a share of the sum. All 0 where no reward was ever seen.
    """
    longest = max(len(e.model_error["latent"]) for e in played)
    rows = {}
    for name in ERRORS:
        x = np.full((len(played), longest), np.nan)
        for row, e in zip(x, played, strict=True):
            row[: len(e.model_error[name])] = e.model_error[name]
        rows[name] = np.nanmean(x, 0)
    size = np.mean([e.model_error["mean_reward"] for e in played]) or np.inf
    return rows | {"reward": rows["reward"] / size, "return": rows["return"] / size / np.arange(1, longest + 1)}


def mean(played: list, field: str) -> float:
    return float(np.mean([getattr(e, field) for e in played]))


def table(results: dict[int, dict[str, list]]) -> str:
    """Return and score of each task by K, then the mean score; scores as shares of closed loop, if that's there.

    results: K -> task -> episodes. A share is of K = 1, and shown where its score is above 0.
    """
    counts, tasks = list(results), list(next(iter(results.values())))
    width = max(len(task) for task in [*tasks, "steps without looking"]) + 2

    def lines(title: str, rows: dict[str, list[float]], digits: int) -> list[str]:
        head = f"{title:{width}}" + "".join(f"{k:>10}" for k in counts)
        cells = {name: "".join(f"{x:10.{digits}f}" for x in row).replace("nan", "  -") for name, row in rows.items()}
        return [head, *(f"{name:{width}}{row}" for name, row in cells.items())]

    returns = {task: [mean(results[k][task], "ret") for k in counts] for task in tasks}
    scores = {task: [mean(results[k][task], "score") for k in counts] for task in tasks}
    known = [row for row in scores.values() if not np.isnan(row).all()]
    average = {"mean of tasks": np.mean(known, 0).tolist()} if known else {}
    text = ["return; steps from look to look:", *lines("task", returns, 1)]
    text += ["", "score (0 to 1)", *lines("task", scores | average, 3)]
    if 1 in results:
        shares = {task: [x / row[0] for x in row] for task, row in (scores | average).items() if row[0] > 0}
        text += ["", "score as share of closed loop", *lines("task", shares, 2)]
    return "\n".join(text)


def plot(results: dict[int, dict[str, list]], path: Path) -> None:
    """Score against K, with the mean of all tasks; errors against steps since the look, at the largest K."""
    import matplotlib

    matplotlib.use("Agg")  # files only: no display is needed
    import matplotlib.pyplot as plt

    counts, last = list(results), results[max(results)]
    figure, axes = plt.subplots(1, 4, figsize=(15, 3.6), layout="constrained")
    for task in last:
        scores = [mean(results[k][task], "score") for k in counts]
        (line,) = axes[0].plot(counts, scores, "o-", markersize=3, label=task)
        errors = mean_errors(last[task])
        for axis, name in zip(axes[1:], ERRORS, strict=True):
            axis.plot(np.arange(len(errors[name])), errors[name], color=line.get_color(), linewidth=1)
    scores = [[mean(results[k][task], "score") for task in last] for k in counts]
    axes[0].plot(counts, [np.nanmean(row) if not np.isnan(row).all() else np.nan for row in scores], "k-", linewidth=2)
    axes[0].set(xscale="log", xlabel="steps from look to look", title="score (black: mean)", ylim=(-0.05, 1.05))
    axes[0].set_xticks(counts, counts)
    axes[0].minorticks_off()
    units = {"latent": "mean square", "reward": "share of the mean reward", "return": "share of the sum"}
    for axis, name in zip(axes[1:], ERRORS, strict=True):
        axis.set(xlabel="steps since the look", title=f"error of the {name} ({units[name]})", yscale="symlog")
        axis.set_yscale("symlog", linthresh=1e-3)
        axis.title.set_fontsize(9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
