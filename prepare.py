"""Getting a run ready: what its phases work on (Run), made out of its settings or of its newest checkpoint.

`prepare` reads downwards: check all, make or load the agent, say what will happen, make the demonstrations that are
missing, share the tasks out, fill replay.
Test: pytest tests/test_train.py
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import machine

import numpy as np
import torch
from tqdm import tqdm

import agent_file
import checkpoint
import command
import compiled
import demo_features
import demo_format
import demo_maker
import distributed
import envs
import eval as evaluation
import language
import losses
import newt
import observe
import precision
import run_folder
from buffer import Buffer
from clock import Clock, describe, estimate
from distributed import World
from envs.vector import STEP_MS
from metrics import Log
from train_config import PUBLISHED, Setup, Train, check, demo_folder, fit, inputs, made_here

DECISION_MS = 2.0  # besides STEP_MS, what a task costs the process that owns it: only for sharing tasks out


@dataclass
class Run:
    """What the phases of a run work on; all but `state`, `own` and what agent and buffers hold stays as it is."""

    setup: Setup
    world: World
    device: torch.device
    workers: int
    agent: newt.Agent
    state: checkpoint.State  # counters, the same in every process
    own: checkpoint.Own  # counters and random streams of this one
    mine: list[str]  # tasks of this process
    demo: Buffer | None  # demonstrations of these
    online: Buffer
    log: Log
    interruption: command.Interruption
    compiling: Callable[[], str]  # waits for the compiler, and says what it has to complain about
    clock: Clock = field(default_factory=Clock)
    clipped: set[str] = field(default_factory=set)  # tasks that were warned of

    @property
    def environments(self) -> int:
        """Of all processes."""
        return len(self.setup.tasks) * self.setup.cfg.envs_per_task

    @property
    def step(self) -> int:
        """Environment steps so far, of all processes."""
        return self.state.vector_step * self.environments

    @property
    def left(self) -> int:
        return self.setup.cfg.steps * self.environments - self.step


def prepare(setup: Setup, world: World, interruption: command.Interruption) -> Run:
    """Check all, say what will happen, make demonstrations that are missing, fill replay.

    A resumed run goes on from its newest checkpoint, with the demonstrations that it began with.
    """
    cfg, tasks, paths = setup
    check(setup, world.size, world.local_size)
    envs.require_real_assets(cfg.require_real_assets)
    if world.rank == 0:
        observe.try_frames(cfg.agent, tasks)
    device = evaluation.pick_device(cfg.device)
    workers = cfg.workers or max(1, machine.cores() // world.local_size)
    seeds = np.random.SeedSequence([cfg.seed, world.rank]).generate_state(2)
    own = checkpoint.Own(
        torch.Generator().manual_seed(int(seeds[0])), torch.Generator(device=device).manual_seed(int(seeds[1]))
    )
    if cfg.resume:
        agent, state = checkpoint.load(cfg.folder, device, own, world)
        if agent.tasks != tuple(tasks):
            raise ValueError(f"the newest checkpoint in {cfg.folder} is of other tasks than its config.json")
        open_eyes(agent, cfg)
        nearby, features = demo_folder(cfg.demos), agent.cfg.features
        files, moved = checkpoint.find_demos(cfg.folder, state.demos, nearby, features)
    else:
        agent, state, moved = create_agent(setup, device), checkpoint.State(phase="pretrain"), ""
        open_eyes(agent, cfg)
        given = {name: path for name, path in paths.items() if path.is_file() and not to_be_seen(cfg, name)}
        files = {name: demo_features.load(path, name, agent.cfg.features) for name, path in given.items()}
    evaluation.share_cores(agent.cfg.size)
    share = agent.cfg.batch_size // world.size
    low, products = precision.choose(cfg.precision, agent.device, agent.cfg.size, share * agent.cfg.horizon)
    cfg = replace(cfg, precision="float32" if distributed.any_of(not low) else "bf16")
    agent.precision = precision.DTYPES[cfg.precision]
    hours = estimate(agent, cfg.steps, len(tasks) * cfg.envs_per_task, cfg.utd) / world.size
    compiles, reason = compiled.choose(cfg.compile, agent.device, agent.cfg.size, hours)
    cfg = replace(cfg, compile="on" if distributed.any_of(compiles) else "off")
    setup = setup._replace(cfg=cfg)
    if world.rank == 0:
        announce(setup, agent, world, workers, hours)
        print(f"precision: {cfg.precision} ({products})")
        print(f"compile: {cfg.compile}{', in the background' * (cfg.compile == 'on')} ({reason})")
        if moved:
            print(moved)
    compiling = str  # which says nothing
    if cfg.compile == "on":
        learns_first = state.phase == "pretrain" and (paths or state.demos)
        before = {"imitate": cfg.imitation_updates, "pretrain": cfg.pretrain_updates} if learns_first else {}
        phases = (*(phase for phase, updates in before.items() if updates), "online")
        environments = len(tasks) * cfg.envs_per_task // world.size
        compiling = compiled.begin(agent, phases, share, environments)

    if not cfg.resume:
        files |= make_demos(cfg, paths, world, agent.cfg.features)
        state.demos = {name: file.ret[: cfg.demo_episodes].tolist() for name, file in files.items()}
        if agent.cfg.obs_norm != "none":
            known = agent_file.load(cfg.ckpt, device)[0] if cfg.ckpt else None
            agent.obs_stats = observe.statistics(agent.cfg, tasks, files, known).to(device)
    without = [name for name in tasks if name not in files]
    if files and without and world.rank == 0:
        print(f"no demonstrations of {', '.join(without)}: online only (`python demos.py make --tasks ...` makes some)")
    if 0 < len(files) < world.size:
        raise ValueError(f"{len(files)} tasks with demonstrations can't be shared out among {world.size} processes")
    cost = [STEP_MS.get(envs.TASKS[name].domain, 1.0) + DECISION_MS for name in tasks]
    mine = distributed.share_out(tasks, list(files), cost, world.size)[world.rank]
    own_files = {name: file for name, file in files.items() if name in mine}

    sizes = {"obs_dim": agent.cfg.obs_dim, "action_dim": agent.cfg.action_dim, "feature_dim": agent.cfg.feature_dim}
    online = Buffer(cfg.buffer_steps // world.size, **sizes)
    demo = None
    if own_files:
        rows = sum(int(file.episode_start[-1]) for file in own_files.values())
        demo = Buffer(rows, **sizes)
        fill(demo, own_files, tasks, cfg.demo_episodes, agent.cfg)
    if cfg.resume:
        checkpoint.load_buffer(cfg.folder, online, own, world, len(tasks))
    else:
        fill(online, own_files, tasks, cfg.demo_episodes, agent.cfg)
        checkpoint.begin(cfg.folder, asdict(cfg), paths, files, agent, state, own, online, world)
    log = Log(cfg.folder, state.log_size, state.vector_step * len(tasks) * cfg.envs_per_task, world)
    if cfg.resume and world.rank == 0:  # the next --resume, without words, must not end where this run was first to end
        run_folder.set_steps(cfg.folder, cfg.steps)
    if not state.log_size:  # also where a run was killed before its first lines were safe
        log.write(0, **{f"demo/{name}/{key}": np.mean(getattr(file, key)[: cfg.demo_episodes])
                        for name, file in files.items() for key in ("ret", "score")})  # fmt: skip
    r = Run(setup, world, device, workers, agent, state, own, mine, demo, online, log, interruption, compiling)
    for name, file in own_files.items():
        for start, end in zip(file.episode_start[:-1] + 1, file.episode_start[1:], strict=True):
            warn_if_clipped(r, name, file.reward[start:end])
    return r


def announce(setup: Setup, agent: newt.Agent, world: World, workers: int, hours: float) -> None:
    """Print what will happen, with all settings as they were chosen, and how long it will take."""
    cfg, n = setup.cfg, len(setup.tasks) * setup.cfg.envs_per_task
    together = f", {world.size} processes" if world.size > 1 else ""
    size = newt.wm.num_params(agent.params) / 1e6
    print(f"{len(setup.tasks)} tasks, {n} environments, {size:.1f}M parameters, {agent.device}{together}")
    print(f"settings: {cfg.why}" if cfg.why else "settings:")
    for name, value in {**asdict(cfg), **asdict(agent.cfg), "device": agent.device, "workers": workers}.items():
        if name not in ("agent", "why"):
            print(f"  {name:20} {value}")
    print(f"acting and learning online will take about {describe(hours)} here; everything is written to {cfg.folder}/")
    if cfg.preset == "laptop" and agent.device.type != "cuda" and len(setup.tasks) > 20:
        full = fit(replace(PUBLISHED, tasks=cfg.tasks), PUBLISHED)
        weeks = estimate(create_agent(Setup(full, setup.tasks, setup.demos), agent.device), full.steps, n, full.utd)
        print(f"(preset laptop; the published preset would take about {describe(weeks)} here: use a GPU for that)")


def open_eyes(agent: newt.Agent, cfg: Train) -> None:
    """The encoder of an agent that sees; from now on its settings say which weights these are."""
    agent.eyes = observe.open_eyes(agent.cfg, cfg.image_weights, agent.device)
    if agent.eyes and not agent.cfg.image_hash:
        agent.cfg = replace(agent.cfg, image_hash=agent.eyes.weights)


def to_be_seen(cfg: Train, task: str) -> bool:
    """Whether features of its demonstrations are made here where they are missing: as demonstrations are."""
    return bool(cfg.agent.feature_dim) and made_here(cfg.demos, task)


def make_demos(cfg: Train, paths: dict[str, Path], world: World, features: str) -> dict[str, demo_format.Demos]:
    """Those that are recorded or played by scripts. What is there already isn't made again."""
    here = [name for name in paths if made_here(cfg.demos, name)]
    if world.rank == 0:
        demo_maker.make_all(here, cfg.demo_episodes, demo_folder(cfg.demos), cfg.seed, cfg.workers or None)
        if features:
            demo_features.make_all(here, demo_folder(cfg.demos), features, cfg.image_weights, cfg.workers)
    distributed.gather(None)
    return {name: demo_features.load(paths[name], name, features) for name in here if paths[name].is_file()}


def fill(
    buffer: Buffer, files: dict[str, demo_format.Demos], tasks: list[str], episodes: int, cfg: newt.Config | None = None
) -> None:
    """Add the first `episodes` demonstrations of each task, as an agent with these settings observes them."""
    for name, demo in files.items():
        ends = zip(demo.episode_start[:-1], demo.episode_start[1:], demo.terminated, strict=True)
        for first, end, terminated in list(ends)[:episodes]:
            rows = slice(int(first), int(end))
            sees = cfg is not None and cfg.feature_dim
            obs = observe.join(cfg, demo.obs[rows], demo.feature[rows]) if sees else demo.obs[rows]
            buffer.add(obs, demo.action[rows], demo.reward[rows], tasks.index(name), terminated)


def create_agent(setup: Setup, device: torch.device) -> newt.Agent:
    """A fresh agent, or the saved one's network with this run's tasks and embeddings."""
    cfg, tasks, shown = setup
    rows = [envs.TASKS[name] for name in tasks]
    settings, params, q_scale = cfg.agent, None, 1.0
    if cfg.ckpt:
        source, _ = agent_file.load(cfg.ckpt, device)
        # The network's shape is the checkpoint's; how to learn and to plan is this run's.
        kept = ("size", "obs_dim", "obs_norm", "action_dim", "task_dim", "num_bins", "image_hash")
        shape = {name: getattr(source.cfg, name) for name in kept}
        params, q_scale = start_from(source, settings, cfg.ckpt), float(source.q_scale)
        settings = replace(settings, **shape)
    small = [f"{name} is {getattr(settings, name)}, these tasks need {needed}"
             for name, needed in inputs(rows, settings.obs).items()
             if getattr(settings, name) < needed]  # fmt: skip
    if small:
        raise ValueError(f"{cfg.ckpt}: " * bool(cfg.ckpt) + "; ".join(small))
    emb = torch.zeros(len(tasks), 0)
    if cfg.ckpt and settings.task_dim not in (0, language.DIM):  # published agents: language.py can't make such
        unknown = [name for name in tasks if name not in source.tasks]
        if unknown or cfg.instruction:
            raise ValueError(
                f"{cfg.ckpt} reads embeddings of {settings.task_dim} numbers, which can't be made here: it can only be "
                f"finetuned on its own tasks and instructions, not on {', '.join(unknown) or 'another instruction'}"
            )
        emb = source.emb[[source.tasks.index(name) for name in tasks]]
    elif settings.task_dim:
        if cfg.instruction:
            language.embed([cfg.instruction])  # words by themselves, too, which blanks behind an embodiment aren't
        emb = language.embed([f"{row.embodiment}. {cfg.instruction or row.instruction}." for row in rows])
    dims, discounts = [row.action_dim for row in rows], [row.discount for row in rows]
    guided = [cfg.guide == "all" or bool(cfg.ckpt) or name in shown for name in tasks]
    return newt.create(settings, tasks, emb, dims, discounts, cfg.seed, device, params, q_scale, guided)


def start_from(source: newt.Agent, settings: newt.Config, ckpt: Path) -> newt.wm.Params:
    """The parameters of another agent, for one with these settings; ValueError, one line, if it observes other things.

    An agent of states may begin to see: columns of zeros for the features, so that at first it does what it did.
    """
    was, now = source.cfg, settings
    if (was.obs, now.obs) == ("state", "state+rgb"):
        state, emb = source.params["encoder.0.weight"].split([was.obs_dim, was.task_dim], 1)
        none = state.new_zeros(len(state), now.feature_dim)
        return source.params | {"encoder.0.weight": torch.cat([state, none, emb], 1)}
    if was.obs != now.obs:
        raise ValueError(f"{ckpt} was trained with --obs {was.obs} and can't go on with --obs {now.obs}")
    if was.feature_dim and (was.image_encoder, was.frames) != (now.image_encoder, now.frames):
        raise ValueError(f"{ckpt} was trained with --image-encoder {was.image_encoder} --frames {was.frames}; other "
                         "features mean nothing to it")  # fmt: skip
    return source.params


def warn_if_clipped(r: Run, name: str, reward: np.ndarray) -> None:
    value = losses.largest_value(reward, envs.TASKS[name].discount)
    if value > losses.VALUE_LIMIT and name not in r.clipped:
        r.clipped.add(name)
        tqdm.write(f"{name}: values reach {value:,.0f}, but the networks' range ends at {losses.VALUE_LIMIT:,.0f}: "
                   f"what is beyond is clipped; divide its rewards by {value / losses.VALUE_LIMIT * 2:.0f}",
                   file=sys.stderr)  # fmt: skip
