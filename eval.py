"""Evaluate saved agents: return, success and score per task and per suite, as a table, JSON, films and a page.

    python eval.py --ckpt agent.safetensors                              all tasks of the checkpoint, 10 episodes each
    python eval.py --ckpt agent.safetensors --tasks mw-reach --video out/ --planner off
    python eval.py --ckpt agent.safetensors --tasks heldout              tasks it has never seen: their sentence is read
    python eval.py --ckpt agent.safetensors --tasks mw-reach --instruction "Push the red puck"
    python eval.py --ckpt agent.safetensors --episodes 100 --until 0.02 --json r.json      killed? the same goes on
    python eval.py --ckpt agent.safetensors --open-loop 1,2,4,8        it looks only every so many steps (open_loop.py)
    python eval.py --ckpt a.safetensors b.safetensors --report out/      a page, out/index.html (report.py)

The checkpoint is one file and holds everything needed: settings, tasks, sentence embeddings, weights. An episode is the
same in every evaluation with the same seed (episodes.py), and never disturbs a training run. A task that the checkpoint
was not trained on has a + behind its name. Score is the benchmark's; success is told at the last step, as the benchmark
has it, and at any step, as most papers on Meta-World do. Intervals are of 95 % (intervals.py). Beside them stand what
chance and the demonstrations score (results/); what imitation alone does, says --planner off on an agent that was only
pretrained.
Test: pytest tests/test_eval.py tests/test_eval_command.py
"""

import os
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import machine

import tyro

import command


@dataclass(frozen=True)
class Eval:
    """Evaluate checkpoints."""

    ckpt: tuple[Path, ...]
    """checkpoint written by train.py (agent.safetensors); several, to compare them"""
    tasks: str = ""
    """tasks to evaluate, also such as the checkpoint was not trained on: names with commas between, a suite, heldout,
    gym:<id> or module:function; default: all of the checkpoint's"""
    episodes: int = 10
    """episodes per task"""
    until: float = 0.0
    """fewer, from 10 on, for a task whose score is known to plus or minus this; 0: never"""
    seed: int = 0
    """same seed, same numbers"""
    instruction: str | None = None
    """tell the agent this, instead of the sentence of a single task"""
    planner: Literal["on", "off", "auto"] = "on"
    """off: act by the policy prior's mean, without planning (much faster); auto: for each task what did best in a few
    episodes before: no planner, or one of two kinds (elite sample or sure, agent_config.py)"""
    open_loop: str = ""
    """look at the observation only every so many steps; with commas between, a table of all these (open_loop.py)"""
    json: Path | None = None
    """keep every finished episode in this file, from which the same command goes on after a kill"""
    video: Path | None = None
    """also write one mp4 per task, of its first episode, into this folder"""
    report: Path | None = None
    """also write a page with all results into this folder: open its index.html"""
    run: Path | None = None
    """a run's folder, whose learning curves the page shows"""
    image_weights: Path | None = None
    """weights of dinov2, for agents that see with it (vision.py)"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """bf16: matrix products of hidden layers in bf16; auto: where that is clearly faster here (precision.py)"""
    workers: int = 0
    """simulator processes; 0: one per core"""
    require_real_assets: bool = False
    """refuse tasks whose assets are stand-ins here, with the command that downloads the real ones"""


RANGES = {"episodes": (1, 10**6), "until": (0, 1), "seed": (0, 2**32 - 1), "workers": (0, 4096)}


if __name__ == "__main__":
    given = command.start(tyro.cli, Eval)

# Only now what takes seconds to load: --help and wrong words are answered above.
import numpy as np
import torch
from tqdm import tqdm

import agent_file
import envs
import evaluation_file
import language
import newt
import observe
import open_loop
import precision
import report
from command import run
from envs.vector import episode_seed
from episodes import Player, Results, evaluate
from tables import baselines, table

TRIED_EPISODES = 4  # of each way, for --planner auto


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


def record(
    agent: newt.Agent, tasks: list[str], path: Path, seed: int = 0, step: int = 0, planner: bool = True, look: int = 0
) -> None:
    """Episode 0 of each task side by side in a grid, as mp4, with a bar. Those that end early hold their last frame.

    look: steps from one look to the next, open loop.
    Raises RuntimeError, one line, where no OpenGL is installed (the message names the Debian package), and whatever
    simulators and encoders of films raise.
    """
    import imageio.v2 as imageio

    n, small = len(tasks), 2 if len(tasks) > 1 else 1
    ahead = open_loop.Ahead(agent, tasks, look) if look else None
    player = Player(agent, tasks, [0] * n, seed, "planner" if planner else "policy", step, ahead=ahead)
    rows, states, obs, clips = [], [], np.zeros((n, agent.cfg.input_dim), np.float32), [[] for _ in tasks]
    try:
        for i, name in enumerate(tasks):
            rows.append(envs.make(name, seed, "rgb_array", frames=agent.cfg.frames if agent.eyes else "full"))
            states.append(rows[i].reset(seed=episode_seed(seed, name, 0, 0))[0])
        running, title = np.ones(n, bool), "film" if n > 1 else tasks[0]
        total = max(envs.TASKS[name].episode_length for name in tasks)
        with tqdm(total=total, desc=title, unit="step", leave=False, disable=None) as bar:
            while running.any():
                for i in np.flatnonzero(running):
                    frame = rows[i].render()
                    clips[i].append(frame[::small, ::small])
                    obs[i] = observe.padded(agent, rows[i], states[i], frame)[0].cpu()
                action = player(obs, running)
                for i in np.flatnonzero(running):
                    states[i], _, *ends, _ = rows[i].step(action[i, : rows[i].action_space.shape[0]])
                    running[i] = not any(ends)
                bar.update()
    finally:
        for env in rows:
            env.close()
    clips = [np.stack(frames) for frames in clips]
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


def play(agent: newt.Agent, ways: dict[str, str], episodes: int, seed: int, step: int, workers: int | None,
         **how) -> Results:  # fmt: skip
    """Evaluate each task in a way of its own: one of WAYS, or "on". how: as `evaluate` takes it."""
    results = {}
    for way in dict.fromkeys(ways.values()):
        tasks, policy = [task for task in ways if ways[task] == way], "policy" if way == "off" else "planner"
        title = f"evaluate, planner {way}"
        results |= evaluate(with_way(agent, way), tasks, episodes, seed, policy, step, workers, title, **how)
    return {task: results[task] for task in ways}


def choose_ways(
    agent: newt.Agent, tasks: list[str], seed: int, step: int, workers: int | None, **how
) -> dict[str, str]:
    """The way to decide that each task did best with, by score and then by return, in episodes that begin alike.

    Which one is best isn't known beforehand: after demonstrations the policy knows what the model only believes, and a
    policy from scratch may lag far behind its planner (results/README.md, Planning).
    """
    tried = {way: play(agent, dict.fromkeys(tasks, way), TRIED_EPISODES, seed + 1, step, workers, **how)
             for way in WAYS}  # fmt: skip

    def worth(task: str, way: str) -> tuple[float, float]:
        score, ret = (np.mean([getattr(e, field) for e in tried[way][task]]) for field in ("score", "ret"))
        return (0.0 if np.isnan(score) else score), ret

    return {task: max(WAYS, key=lambda way: worth(task, way)) for task in tasks}


def tasks_of(agent: newt.Agent, words: str, ckpt: Path, others: bool = False) -> list[str]:
    """What an agent out of a file is asked to do: the tasks named, or all of its own. ValueError if it cannot.

    others: also tasks that it was not trained on; `told` makes an agent of it that is told them.
    """
    if not words:
        envs.require_named(agent.tasks, "", ckpt)
    tasks = envs.select(words or ",".join(agent.tasks))
    missing = [name for name in tasks if name not in agent.tasks]
    if missing and not others:
        raise ValueError(f"{ckpt} was not trained on {', '.join(missing)}; it knows {', '.join(agent.tasks)}")
    for name in tasks:
        row, most = envs.TASKS[name], agent.cfg.action_dim
        dims = min(row.action_dim, most) if name in missing else int(agent.mask[agent.tasks.index(name)].sum())
        if (row.obs_dim > agent.cfg.obs_dim and agent.cfg.obs != "rgb") or row.action_dim != dims:
            sizes = f"{agent.cfg.obs_dim} observations and {dims} actions of {name}"
            raise ValueError(f"{ckpt} is for {sizes}, which has {row.obs_dim} and {row.action_dim}")
    return tasks


def told(agent: newt.Agent, tasks: list[str], instruction: str | None, ckpt: Path) -> tuple[newt.Agent, dict[str, str]]:
    """The agent with a row for each of these tasks, and the sentence that it is told of each.

    Those that it was not trained on get sentence, mask and discount of the task table; instruction replaces the words
    of a single task, trained on or not, behind its embodiment. ValueError, one line, if it can't be told.
    """
    if instruction is not None and len(tasks) > 1:
        raise ValueError(f"--instruction is for a single task, {len(tasks)} are asked for")
    rows = {name: envs.TASKS[name] for name in tasks}
    sentences = {name: row.sentence for name, row in rows.items()}
    if instruction is not None:
        sentences = {name: f"{row.embodiment}. {instruction}.".replace(" .", "") for name, row in rows.items()}
    new = [name for name in tasks if name not in agent.tasks or instruction is not None]
    if not new:
        return agent, sentences
    what = "another instruction" if instruction is not None else ", ".join(new[:3]) + ", ..." * (len(new) > 3)
    if not agent.cfg.task_dim:
        raise ValueError(f"{ckpt} has no language: it can't be told {what}, only do what it was trained on")
    if agent.cfg.task_dim != language.DIM:
        raise ValueError(f"{ckpt} reads embeddings of {agent.cfg.task_dim} numbers, which can't be made here: it can "
                         f"be evaluated on its own tasks and sentences, not on {what}")  # fmt: skip
    old = [i for i, name in enumerate(agent.tasks) if name not in new]
    mask = torch.stack([(torch.arange(agent.cfg.action_dim) < rows[name].action_dim).float() for name in new])
    added = {
        "emb": language.embed([sentences[name] for name in new]),
        "mask": mask,
        "discount": torch.tensor([rows[name].discount for name in new]),
        "guided": torch.ones(len(new)),  # as in finetuning: what was learned of acting is in the policy
    }
    tables = {key: torch.cat([getattr(agent, key)[old], x.to(agent.device)]) for key, x in added.items()}
    names = (*(agent.tasks[i] for i in old), *new)
    if agent.obs_stats is not None:
        tables["obs_stats"] = observe.statistics(agent.cfg, names, {}, agent).to(agent.device)
    return replace(agent, tasks=names, **tables), sentences


def main(cfg: Eval) -> None:
    command.check_fields(cfg, RANGES)
    ckpts = (cfg.ckpt,) if isinstance(cfg.ckpt, Path) else cfg.ckpt
    if cfg.json and len(ckpts) > 1:
        raise ValueError("--json is for a single checkpoint; of several, --report keeps one in its folder for each")
    if cfg.json:
        command.try_file(cfg.json)
    if cfg.video:
        command.try_folder(cfg.video)
    if cfg.run and not cfg.report:
        raise ValueError("--run is for the page of --report, which shows its curves")
    if cfg.report:
        report.require_ours(cfg.report, tuple(path for path in (cfg.json, cfg.video) if path))
        command.try_folder(cfg.report)
        if cfg.run:
            report.read_curves(cfg.run)
    envs.require_real_assets(cfg.require_real_assets)
    agents = [agent_file.load(ckpt, seed=cfg.seed)[0] for ckpt in ckpts[1:]]  # the first one is about to be
    for ckpt, agent in zip(ckpts[1:], agents, strict=True):
        told(agent, tasks_of(agent, cfg.tasks, ckpt, others=True), cfg.instruction, ckpt)
    del agents
    evaluated = []
    for i, ckpt in enumerate(ckpts):
        if cfg.report:
            cfg.report.mkdir(parents=True, exist_ok=True)
        kept = cfg.json or (report.file_of(cfg.report, ckpt) if cfg.report else None)
        evaluated.append(one(cfg if i == 0 else replace(cfg, video=None), ckpt, kept))
    if cfg.report:
        for ckpt, held in zip(ckpts, evaluated, strict=True):
            evaluation_file.save(report.file_of(cfg.report, ckpt), held)
        print(f"page  {report.write(cfg.report, evaluated, cfg.video, cfg.run)}")


def one(cfg: Eval, ckpt: Path, path: Path | None) -> dict:
    """Evaluate one checkpoint: its file, its table, its films. -> what the file holds"""
    agent, meta = agent_file.load(ckpt, pick_device(cfg.device), cfg.seed)
    share_cores(agent.cfg.size)
    low, why = precision.choose(cfg.precision, agent.device, agent.cfg.size, agent.cfg.num_samples)
    products = "bf16" if low else "float32"
    agent.precision = precision.DTYPES[products]
    if cfg.precision == "auto":
        print(f"precision: {products} ({why})")
    step, tasks = meta["step"], tasks_of(agent, cfg.tasks, ckpt, others=True)
    unseen = {name for name in tasks if name not in agent.tasks}
    agent, sentences = told(agent, tasks, cfg.instruction, ckpt)
    agent.eyes = observe.open_eyes(agent.cfg, cfg.image_weights, agent.device)
    observe.try_frames(agent.cfg, tasks)
    shortest = min(envs.TASKS[name].episode_length for name in tasks)
    looks = open_loop.parse(cfg.open_loop, shortest) if cfg.open_loop else [0]
    held = evaluation_file.new(ckpt, step, cfg.seed, cfg.planner, cfg.instruction, products)
    if path:
        held = evaluation_file.go_on(path, held)
    about, known = evaluation_file.about, baselines()
    held["about"] |= {name: about(name, sentences[name], name in unseen, known[name]) for name in tasks}
    results = results_of(cfg, agent, step, tasks, looks, held, path)

    title = f"step {step}  {cfg.episodes} episodes per task  seed {cfg.seed}  planner {cfg.planner}"
    title += f"  {products}" * low
    title += f"  up to ±{cfg.until:g}" * bool(cfg.until) + f"  open loop {cfg.open_loop}" * bool(cfg.open_loop)
    title += f"  {sentences[tasks[0]]!r}" * (cfg.instruction is not None)
    if len(looks) == 1:
        print(f"{ckpt}  {title}\n{table(results[looks[0]], unseen)}", flush=True)
    else:
        print(f"{ckpt}  {title}\n{open_loop.table(results)}", flush=True)
        if path:
            open_loop.plot(results, path.with_suffix(".png"))
    ways = {name: held["planner"][name] for name in tasks}
    if cfg.planner == "auto":
        groups = {way: [task for task in tasks if ways[task] == way] for way in WAYS}
        said = "; ".join(f"{way}: {', '.join(group)}" for way, group in groups.items() if group)
        print(f"planner, by {TRIED_EPISODES} episodes of each before: {said}")
    failed = []
    for name in tasks if cfg.video else ():
        try:
            film = cfg.video / f"{envs.file_name(name)}.mp4"
            record(with_way(agent, ways[name]), [name], film, cfg.seed, step, ways[name] != "off", looks[0])
        except Exception as error:  # costs this film, not the others
            failed.append(f"{name}: {error}")
    if failed and not cfg.report:
        raise RuntimeError("no film of " + "; ".join(failed))
    for line in failed:  # the page is written all the same
        print(f"no film of {line}", file=sys.stderr)
    return held


def results_of(
    cfg: Eval, agent: newt.Agent, step: int, tasks: list[str], looks: list[int], held: dict, path: Path | None
) -> dict[int, Results]:
    """Play what is missing of the evaluation that is `held`, which is kept at `path`: steps between looks -> results.

    One bar for all of it.
    """
    ways = {name: held["planner"].get(name, cfg.planner) for name in tasks}
    untried = [name for name in tasks if ways[name] == "auto"]
    length = {name: envs.TASKS[name].episode_length for name in tasks}
    before = {k: evaluation_file.episodes(held, k) for k in looks}
    left = [length[name] * max(0, cfg.episodes - len(before[k].get(name, ()))) for k in looks for name in tasks]
    left += [length[name] * len(WAYS) * TRIED_EPISODES for name in untried]
    rest = (cfg.seed, step, cfg.workers or None)

    def keep(results: Results, k: int) -> None:
        evaluation_file.put(held, results, k)
        if path:
            evaluation_file.save(path, held)

    with tqdm(total=sum(left), unit="step", unit_scale=True, leave=False, disable=None) as bar:
        if untried:
            ways |= choose_ways(agent, untried, *rest, bar=bar)
        held["planner"] |= ways
        how = {"until": cfg.until, "bar": bar}
        results = {
            k: play(agent, ways, cfg.episodes, *rest, **how, open_loop=k, done=before[k], keep=partial(keep, k=k))
            for k in looks
        }
    if path:  # also where nothing was missing but words about it
        evaluation_file.save(path, held)
    return results


if __name__ == "__main__":
    run(main, given)
