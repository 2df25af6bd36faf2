"""Evaluate a saved agent: return, success and score per task and per suite, as a table, JSON and videos.

    python eval.py --ckpt agent.safetensors                              all tasks of the checkpoint, 10 episodes each
    python eval.py --ckpt agent.safetensors --tasks mw-reach --video out/ --planner off

The checkpoint is one file and holds everything needed: settings, tasks, sentence embeddings, weights. Episode k of a
task starts from the same state in every evaluation with the same seed, and all noise has its own generator, so the
same command prints the same numbers and never disturbs a training run.
Test: pytest tests/test_eval.py
"""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import machine

import tyro

import command


@dataclass(frozen=True)
class Eval:
    """Evaluate a checkpoint."""

    ckpt: Path
    """checkpoint written by train.py (agent.safetensors)"""
    tasks: str = ""
    """tasks to evaluate, all known to the checkpoint: names with commas between, or a suite; default: all of them"""
    episodes: int = 10
    """episodes per task"""
    seed: int = 0
    """same seed, same numbers"""
    planner: Literal["on", "off", "auto"] = "on"
    """off: act by the policy prior's mean, without planning (much faster); auto: for each task what did best in a few
    episodes before: no planner, or one of two kinds (elite sample or sure, agent_config.py)"""
    json: Path | None = None
    """also write the table and every episode to this file"""
    video: Path | None = None
    """also write one mp4 per task into this folder"""
    image_weights: Path | None = None
    """weights of dinov2, for agents that see with it (vision.py)"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    workers: int = 0
    """simulator processes; 0: one per core"""
    require_real_assets: bool = False
    """refuse tasks whose assets are stand-ins here, with the command that downloads the real ones"""


RANGES = {"episodes": (1, 10**6), "seed": (0, 2**32 - 1), "workers": (0, 4096)}


if __name__ == "__main__":
    given = command.start(tyro.cli, Eval)

# Only now what takes seconds to load: --help and wrong words are answered above.
import numpy as np
import torch
from tqdm import tqdm

import agent_file
import envs
import newt
import observe
from command import run

Policy = Literal["planner", "policy", "random"]
TRIED_EPISODES = 4  # of each way, for --planner auto
ENVS_AT_ONCE = 64  # environments held in memory and planned for together


class Episode(NamedTuple):
    ret: float  # undiscounted sum of rewards
    success: float  # at the last step; like score, NaN where a task of one's own doesn't define it
    score: float  # in [0, 1], at the last step
    length: int = 0  # agent steps


def share_cores(size: str) -> None:
    """Give small networks one torch thread on a CPU, others as many as this process has cores at most.

    Unless OMP_NUM_THREADS says otherwise. Small matrix products can't be shared: cores that wait for each other lose
    more than they gain, most of all where other programs run. Planning uses all cores all the same, for different
    environments.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1 if size in ("XS", "S") else min(torch.get_num_threads(), machine.cores()))


def pick_device(name: str) -> torch.device:
    """auto: cuda, else mps, else cpu."""
    if name != "auto":
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def evaluate(
    agent: newt.Agent,
    tasks: list[str],
    episodes: int,
    seed: int = 0,
    policy: Policy = "planner",
    step: int = 0,
    workers: int | None = None,
    title: str = "evaluate",
) -> dict[str, list[Episode]]:
    """Run `episodes` whole episodes of every task; many environments at once, tasks of equal length together.

    tasks: names known to the agent. step: environment steps trained so far (constrained planning). An episode that says
    nothing of success, of a task of which another does, had none.
    """
    groups = defaultdict(list)
    for name in tasks:
        groups[envs.TASKS[name].episode_length].append(name)
    # Rounds of `copies` episodes of every task at once; what the last round has too many of is dropped.
    rounds = -(-episodes // max(1, ENVS_AT_ONCE // len(tasks)))
    copies = -(-episodes // rounds)
    results: dict[str, list[Episode]] = {name: [] for name in tasks}
    generator = torch.Generator(device=agent.device).manual_seed(seed)
    random = np.random.default_rng(seed)
    total = sum(length * len(group) for length, group in groups.items()) * copies * rounds
    with tqdm(total=total, desc=title, unit="step", unit_scale=True, leave=False, disable=None) as bar:
        for length, group in sorted(groups.items()):
            names = [name for name in group for _ in range(copies)]
            with observe.environments(agent, names, seed, workers, blind=policy == "random") as vector:
                number = 0
                while min(len(results[name]) for name in group) < episodes:  # `rounds` times, without faults
                    obs = vector.reset(episode=number)
                    played = _play(agent, vector, names, obs, length, policy, step, generator, random, bar)
                    for name, episode in zip(names, played, strict=True):
                        results[name] += [episode] if episode else []
                    number += 1
    results = {name: played[:episodes] for name, played in results.items()}
    for name, played in results.items():
        for field in ("success", "score"):
            values = [getattr(e, field) for e in played]
            if not np.isnan(values).all():
                results[name] = [e._replace(**{field: float(np.nan_to_num(getattr(e, field)))}) for e in results[name]]
    return results


def _play(agent, vector, names, obs, length, policy, step, generator, random, bar) -> list[Episode | None]:
    """One episode in each environment, of at most `length` steps; None if a fault of the simulator cut it off.

    Where one ends early, the environment goes on with its next one, of which nothing counts.
    """
    cfg, device, n = agent.cfg, agent.device, len(names)
    task = torch.tensor([agent.tasks.index(name) for name in names], device=device)
    mask = agent.mask[task].cpu().numpy()
    warm = torch.zeros(n, cfg.horizon, cfg.action_dim, device=device)
    first, returns, played = torch.ones(n, dtype=torch.bool, device=device), np.zeros(n), [None] * n
    running = np.ones(n, bool)
    for t in range(length):
        if policy == "random":
            action = random.uniform(-1, 1, (n, cfg.action_dim)).astype(np.float32) * mask
        else:
            x = torch.as_tensor(obs, device=device)
            plan = newt.act(agent, x, task, warm, first, step, use_planner=policy == "planner", generator=generator)
            action, warm = plan.action.cpu().numpy(), plan.mean
        result = vector.step(action)
        obs, returns, first = result.obs, returns + result.reward, torch.as_tensor(result.done | result.dropped)
        first = first.to(device)
        for i in np.flatnonzero(running & result.done):
            played[i] = Episode(*(float(x[i]) for x in (returns, result.success, result.score)), t + 1)
        running &= ~(result.done | result.dropped)
        bar.update(n)
        if not running.any():
            break
    bar.update(n * (length - t - 1))
    return played


def summarise(values: list[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval (normal approximation; 0 for a single value)."""
    x = np.asarray(values, dtype=np.float64)
    return float(x.mean()), float(1.96 * x.std(ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0


def mean_of_defined(rows: list) -> np.ndarray:
    """Mean over the first axis, of those that aren't NaN; NaN where all are."""
    x = np.asarray(rows, dtype=np.float64)
    return np.nansum(x, 0) / np.where(np.isnan(x).all(0), np.nan, (~np.isnan(x)).sum(0))


def table(results: dict[str, list[Episode]]) -> str:
    """Per task, per suite and overall, as text. A suite's row is the mean over its tasks.

    What isn't defined is shown as "-" and in no mean. Own tasks may end early, so their episodes' length is shown.
    """
    timed = any(":" in name for name in results)
    width = max([len(envs.label(name)) for name in results] + [len("mean of suites")]) + 2
    lines = [f"{'task':{width}}{'return':>18}{'success':>16}{'score':>16}" + f"{'length':>16}" * timed]
    suites = defaultdict(list)
    for name, episodes in results.items():
        cells = [summarise([getattr(e, field) for e in episodes]) for field in Episode._fields]
        row = f"{cells[0][0]:10.1f} ±{cells[0][1]:6.1f}" + "".join(f"{m:9.3f} ±{h:5.3f}" for m, h in cells[1:3])
        row = re.sub("nan ±.{5}", "  -       ", row) + f"{cells[3][0]:9.1f} ±{cells[3][1]:5.1f}" * timed
        lines.append(f"{envs.label(name):{width}}{row}")
        suites[envs.TASKS[name].domain].append(np.array([c[0] for c in cells[:3]]))
    means = {suite: mean_of_defined(rows) for suite, rows in suites.items()}
    lines.append("-" * len(lines[0]))
    for suite, (ret, success, score) in means.items():
        row = f"{ret:10.1f}        {success:9.3f}       {score:9.3f}"
        lines.append(f"{f'{suite} ({len(suites[suite])})':{width}}{row.replace('nan', '  -')}")
    every = mean_of_defined([row for rows in suites.values() for row in rows])
    row = f"{'':18}{every[1]:9.3f}       {every[2]:9.3f}\n{'mean of suites':{width}}{'':18}{'':16}"
    row += f"{mean_of_defined([m[2] for m in means.values()]):9.3f}"
    lines.append(f"{'mean of tasks':{width}}{row.replace('nan', '  -')}")
    return "\n".join(lines + [envs.STAND_IN_NOTE] * any(envs.label(name) != name for name in results))


def compare(stages: dict[str, dict[str, list]]) -> str:
    """Random policy, after pretraining, after online training side by side: score and return of every task.

    stages: name -> task -> episodes as (return, success, score, length). The rows at the end are means over the
    tasks of each suite, if there are several, and over all tasks. What isn't defined is shown as "-" and in no mean.
    """
    tasks = list(next(iter(stages.values())))
    width = max(len(envs.label(task)) for task in tasks) + 2
    timed = any(":" in task for task in tasks)  # own tasks may end early
    head = f"{'':{width}}" + "".join(
        f"{what:>{12 * len(stages)}}" for what in ["score (0 to 1)", "return"] + ["length"] * timed
    )
    lines = [f"{head}\n{'task':{width}}" + "".join(f"{stage:>12}" for stage in stages) * (2 + timed)]
    score, ret, success, *length = (
        {stage: {task: np.mean([e[field] for e in played[task]]) for task in tasks} for stage, played in stages.items()}
        for field in (2, 0, 1, 3)[: 3 + timed]
    )
    for task in tasks:
        cells = [f"{score[s][task]:12.3f}".replace("nan", "  -") for s in stages]
        cells += [f"{x[s][task]:12.1f}" for x in (ret, *length) for s in stages]
        lines.append(f"{envs.label(task):{width}}" + "".join(cells))
    lines.append("-" * len(lines[-1]))
    suites = defaultdict(list)
    for task in tasks:
        suites[envs.TASKS[task].domain].append(task)
    for suite, members in suites.items() if len(suites) > 1 else ():
        means = "".join(f"{mean_of_defined([score[s][task] for task in members]):12.3f}" for s in stages)
        lines.append(f"{f'{suite} ({len(members)})':{width}}{means.replace('nan', '  -')}")
    means = "".join(f"{mean_of_defined(list(score[s].values())):12.3f}" for s in stages)
    lines.append(f"{'mean':{width}}{means.replace('nan', '  -')}")
    defined = [task for task in tasks if not all(np.isnan(success[s][task]) for s in stages)]
    judged = [task for task in defined if envs.TASKS[task].success_defined]
    if judged:
        means = "".join(f"{mean_of_defined([success[s][task] for task in judged]):12.3f}" for s in stages)
        means = means.replace("nan", "  -")
        lines.append(f"{'success':{width}}{means}   (mean over the {len(judged)} tasks that define it)")
    return "\n".join(lines + [envs.STAND_IN_NOTE] * any(envs.label(task) != task for task in tasks))


def record(agent: newt.Agent, tasks: list[str], path: Path, seed: int = 0, step: int = 0, planner: bool = True) -> None:
    """One episode of each task side by side in a grid, as mp4, with a bar. Those that end early hold their last frame.

    Raises RuntimeError, one line, where no OpenGL is installed (the message names the Debian package), and whatever
    simulators and encoders of films raise.
    """
    import imageio.v2 as imageio

    generator = torch.Generator(device=agent.device).manual_seed(seed)
    clips = []
    total, title = sum(envs.TASKS[name].episode_length for name in tasks), "film" if len(tasks) > 1 else tasks[0]
    with tqdm(total=total, desc=title, unit="step", leave=False, disable=None) as bar:
        for name in tasks:
            env = envs.make(name, seed, render_mode="rgb_array", frames=agent.cfg.frames if agent.eyes else "full")
            obs, _ = env.reset(seed=seed)
            task = torch.tensor([agent.tasks.index(name)], device=agent.device)
            warm = torch.zeros(1, agent.cfg.horizon, agent.cfg.action_dim, device=agent.device)
            first, frames, over = torch.ones(1, dtype=torch.bool, device=agent.device), [], False
            while not over:
                frames.append(env.render()[:: 2 if len(tasks) > 1 else 1, :: 2 if len(tasks) > 1 else 1])
                x = observe.padded(agent, env, obs)
                plan = newt.act(agent, x, task, warm, first, step, use_planner=planner, generator=generator)
                warm, first = plan.mean, torch.zeros_like(first)
                obs, _, *ends, _ = env.step(plan.action[0, : env.action_space.shape[0]].cpu().numpy())
                over = any(ends)
                bar.update()
            env.close()
            clips.append(np.stack(frames))
    side = int(np.ceil(np.sqrt(len(clips))))
    length, columns = max(map(len, clips)), min(range(side, 2 * side), key=lambda n: (-len(clips) % n, n))  # no gaps
    clips = [np.concatenate([c, np.repeat(c[-1:], length - len(c), 0)]) for c in clips]
    clips += [np.zeros_like(clips[0])] * (-len(clips) % columns)
    rows = [np.concatenate(clips[i : i + columns], 2) for i in range(0, len(clips), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    # macro_block_size 1: 224 is a multiple of 16, so players are happy without imageio resizing the picture.
    imageio.mimwrite(path, np.concatenate(rows, 1), fps=30, macro_block_size=1)


WAYS = ("off", "sample", "sure")  # to decide: by the policy alone, or by the planner with this `elite`


def with_way(agent: newt.Agent, way: str) -> newt.Agent:
    """The same agent, deciding in one of WAYS; as its own settings say for "on", and for "off", which needs none."""
    return replace(agent, cfg=replace(agent.cfg, elite=way)) if way in ("sample", "sure") else agent


def play(agent: newt.Agent, ways: dict[str, str], episodes: int, seed: int, step: int, workers: int | None) -> dict:
    """Evaluate each task in a way of its own: one of WAYS, or "on". As `evaluate` does."""
    results = {}
    for way in dict.fromkeys(ways.values()):
        tasks, policy = [task for task in ways if ways[task] == way], "policy" if way == "off" else "planner"
        title = f"evaluate, planner {way}"
        results |= evaluate(with_way(agent, way), tasks, episodes, seed, policy, step, workers, title)
    return {task: results[task] for task in ways}


def choose_ways(agent: newt.Agent, tasks: list[str], seed: int, step: int, workers: int | None) -> dict[str, str]:
    """The way to decide that each task did best with, by score and then by return, in episodes that begin alike.

    Which one is best isn't known beforehand: after demonstrations the policy knows what the model only believes, and a
    policy from scratch may lag far behind its planner (results/README.md, Planning).
    """
    tried = {way: play(agent, dict.fromkeys(tasks, way), TRIED_EPISODES, seed + 1, step, workers) for way in WAYS}

    def worth(task: str, way: str) -> tuple[float, float]:
        score, ret = (np.mean([getattr(e, field) for e in tried[way][task]]) for field in ("score", "ret"))
        return (0.0 if np.isnan(score) else score), ret

    return {task: max(WAYS, key=lambda way: worth(task, way)) for task in tasks}


def tasks_of(agent: newt.Agent, words: str, ckpt: Path) -> list[str]:
    """What an agent out of a file is asked to do: the tasks named, or all of its own. ValueError if it cannot."""
    if not words:
        envs.require_named(agent.tasks, "", ckpt)
    tasks = envs.select(words or ",".join(agent.tasks))
    missing = [name for name in tasks if name not in agent.tasks]
    if missing:
        raise ValueError(f"{ckpt} was not trained on {', '.join(missing)}; it knows {', '.join(agent.tasks)}")
    for name in tasks:
        row, dims = envs.TASKS[name], int(agent.mask[agent.tasks.index(name)].sum())
        if (row.obs_dim > agent.cfg.obs_dim and agent.cfg.obs != "rgb") or row.action_dim != dims:
            sizes = f"{agent.cfg.obs_dim} observations and {dims} actions of {name}"
            raise ValueError(f"{ckpt} is for {sizes}, which has {row.obs_dim} and {row.action_dim}")
    return tasks


def main(cfg: Eval) -> None:
    command.check_fields(cfg, RANGES)
    if cfg.json:
        command.try_file(cfg.json)
    if cfg.video:
        command.try_folder(cfg.video)
    envs.require_real_assets(cfg.require_real_assets)
    agent, meta = agent_file.load(cfg.ckpt, pick_device(cfg.device), cfg.seed)
    share_cores(agent.cfg.size)
    tasks = tasks_of(agent, cfg.tasks, cfg.ckpt)
    agent.eyes = observe.open_eyes(agent.cfg, cfg.image_weights, agent.device)
    observe.try_frames(agent.cfg, tasks)
    workers, ways = cfg.workers or None, dict.fromkeys(tasks, cfg.planner)
    if cfg.planner == "auto":
        ways = choose_ways(agent, tasks, cfg.seed, meta["step"], workers)
    results = play(agent, ways, cfg.episodes, cfg.seed, meta["step"], workers)
    try:
        if cfg.json:  # before anything is printed, which may fail, too
            report = {
                "ckpt": str(cfg.ckpt), "step": meta["step"], "seed": cfg.seed, "planner": ways,
                "tasks": {  # JSON has no NaN
                    name: [{k: None if np.isnan(x) else x for k, x in e._asdict().items()} for e in episodes]
                    for name, episodes in results.items()
                },
            }  # fmt: skip
            cfg.json.write_text(json.dumps(report, indent=1))
    finally:
        title = f"step {meta['step']}  {cfg.episodes} episodes per task  seed {cfg.seed}  planner {cfg.planner}"
        print(f"{cfg.ckpt}  {title}\n{table(results)}", flush=True)
        if cfg.planner == "auto":
            groups = {way: [task for task in tasks if ways[task] == way] for way in WAYS}
            said = "; ".join(f"{way}: {', '.join(group)}" for way, group in groups.items() if group)
            print(f"planner, by {TRIED_EPISODES} episodes of each before: {said}")
    failed = []
    for name in tasks if cfg.video else ():
        try:
            path = cfg.video / f"{envs.file_name(name)}.mp4"
            record(with_way(agent, ways[name]), [name], path, cfg.seed, meta["step"], ways[name] != "off")
        except Exception as error:  # costs this film, not the others
            failed.append(f"{name}: {error}")
    if failed:
        raise RuntimeError("no film of " + "; ".join(failed))


if __name__ == "__main__":
    run(main, given)
