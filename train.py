"""Train an agent: demonstrations -> pretraining -> online RL, with evaluation and checkpoints on the way.

    python train.py                                            the starter: eight tasks through the whole recipe
    python train.py --tasks all                                all 200 training tasks
    python train.py --tasks walker-walk --demos none           one task from scratch
    python train.py --tasks mw-door-lock --ckpt runs/starter/agent.safetensors     finetune a saved agent
    python train.py --resume runs/starter                      go on after a kill; on a CPU bit for bit the same
    torchrun --nproc-per-node 8 train.py --tasks all           several GPUs or machines (distributed.py)

`main` reads downwards: check everything, make what is missing, pretrain, then the online loop, in which the learner
updates while the simulators step. A run folder holds config.json, metrics.jsonl (one line per event), TensorBoard
events, curves.png, videos/, agent.safetensors (newest weights) and checkpoints/. A checkpoint is complete or absent,
and the environments start afresh at each one, in an uninterrupted run too: that is what makes resuming exact.
Ctrl-C, SIGTERM and SIGHUP write a checkpoint first; such a run goes on from there, its unfinished episodes dropped.
Every process of a distributed run comes through here; only rank 0 prints, logs and draws.
Steps are agent steps. "step" in every file counts them over all environments, as published.
Test: pytest tests/test_train.py
"""

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import machine

import tyro

import command
import demo_format
import envs
import experts
from agent_config import Config

STARTER = (  # of five suites, all learned from recordings in minutes
    "mw-door-open,mw-drawer-close,mw-faucet-open,mw-window-open,"
    "mujoco-reacher,lunarlander-hover,og-point-maze,pygame-landing"
)


@dataclass(frozen=True)
class Train:
    """Train an agent. With no arguments: the starter, eight tasks on a laptop."""

    tasks: str = STARTER
    """all, heldout, a suite, or task names with commas between; gym:<id> and module:function are names, too"""
    preset: Literal["auto", "published", "laptop"] = "auto"
    """where every other default comes from; auto: published on a CUDA GPU, else laptop. Either also follows from what
    there is: the first line printed says which, and why"""
    why: tyro.conf.Suppress[str] = field(default="", compare=False)
    """that line"""
    folder: Path | None = None
    """folder to write; default: runs/<tasks>"""
    resume: Path | None = None
    """run folder to continue with its own settings; only --steps and --workers may be given besides, and --tasks
    must be for gym:<id> and module:function: no file alone makes this program run them"""
    overwrite: bool = False
    """replace a run that is already in the folder"""
    ckpt: Path | None = None
    """start from this agent: its network, then new tasks, embeddings and cold optimisers"""
    instruction: str = ""
    """what to do, in your own words; for a single task, instead of the table's instruction"""
    seed: int = 0
    """of everything: network, noise, environments"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    workers: int = 0
    """simulator processes; 0: one per core"""
    require_real_assets: bool = False
    """refuse tasks whose assets are stand-ins here, with the command that downloads the real ones"""

    demos: str = "auto"
    """auto: in demos/, made there where they are recorded or a script can (minutes), others are used if `demos.py make`
    made them; none; or a folder, in which tasks may be missing: they take part online only"""
    demo_episodes: int = 10
    """demonstrations per task"""
    pretrain_updates: int = 200_000
    """updates on demonstrations alone, before any environment step; skipped without demonstrations"""

    steps: int = 500_000
    """online steps of each environment"""
    envs_per_task: int = 1
    """environments per task"""
    utd: float = 0.075
    """updates per environment step, counted over all environments"""
    seed_episodes: int = 5
    """first episodes of each environment without planning or updates: the policy acts, or chance if it's untrained; of
    own tasks, which may end early, as many steps as such episodes have at most"""
    lr_end: float = 1.0
    """online, the learning rates fall linearly to this share: steady weights at the end, where they jitter otherwise"""
    guide: Literal["all", "demos"] = "all"
    """tasks that imitate and plan near the policy online: all (published), or those with demonstrations or --ckpt;
    without them imitating the batch means imitating oneself, and plans near an untrained policy explore little"""
    buffer_steps: int = 10_000_000
    """transitions that the online buffer holds"""
    sampling: Literal["episode", "task", "step"] = "episode"
    """what is drawn uniformly; episode (published) favours tasks with short episodes: 25 steps 40 times over 1000"""

    eval_every: int = 10_000
    """steps of each environment between evaluations; every evaluation also writes a checkpoint. The default grows with
    longer episodes of own tasks, as obs_dim and action_dim do with their sizes"""
    eval_episodes: int = 2
    """episodes per task of an evaluation"""
    final_episodes: int = 10
    """episodes per task of the table at the end: random policy, after pretraining, after online"""
    checkpoint_updates: int = 10_000
    """updates between checkpoints in pretraining"""
    log_every: int = 100
    """updates between lines of metrics"""

    agent: tyro.conf.OmitArgPrefixes[Config] = field(default_factory=Config)
    """the agent's own settings"""


RANGES = {  # of every number above: smallest and largest value
    "seed": (0, 2**32 - 1),
    "workers": (0, 4096),
    **dict.fromkeys(("steps", "eval_every", "checkpoint_updates", "log_every"), (1, 10**12)),
    **dict.fromkeys(("demo_episodes", "seed_episodes", "eval_episodes", "final_episodes"), (1, 10**6)),
    "pretrain_updates": (0, 10**12),
    "envs_per_task": (1, 10**9),
    "utd": (0, 1000),
    "lr_end": (0, 100),
    "buffer_steps": (1, 10**15),
}

# Chosen by measuring, on two CPU cores (results/README.md): the published planner and network would take weeks there.
# Sampling by task: by episode those with long episodes would get a small share of the online samples. More imitation, a
# narrower search and falling learning rates: so few updates don't make the values good enough to leave the
# demonstrations, and with constant rates single tasks came and went between evaluations. For the same reason plans
# that are executed in an evaluation must be surely better than the policy's own.
LAPTOP = Train(
    preset="laptop",
    demo_episodes=40,
    pretrain_updates=8_000,
    steps=2_000,
    utd=0.5,
    seed_episodes=1,
    lr_end=0.05,
    guide="demos",
    buffer_steps=500_000,
    sampling="task",
    eval_every=1_000,
    final_episodes=20,
    checkpoint_updates=2_000,
    agent=Config(
        size="XS",
        batch_size=128,
        warmup_updates=500,
        online_bc_coef=3.0,
        num_samples=128,
        num_elites=16,
        num_pi=8,
        iterations=4,
        std_min=0.03,
        elite="sure",
    ),
)
# With neither demonstrations nor a checkpoint there is no good plan to refine yet: search wider, learn twice as often
# per step (cartpole-swingup at 20,000 steps: 850 instead of 510), and to the end. The planner is ahead of its policy
# (845 against 587), which being sure would hold on to (597).
FROM_SCRATCH = replace(
    LAPTOP, demos="none", utd=1.0, lr_end=1.0, agent=replace(LAPTOP.agent, std_min=0.1, elite="sample")
)
PUBLISHED = Train(preset="published")
# Of a single task: a smaller network and ten environments. The pull to the policy fades between the same shares of all
# steps as with 200 tasks, 2 % and 12 %: it would be there to the end by those numbers of steps.
SINGLE_AGENT = Config(size="B", constraint_start=100_000, constraint_duration=500_000)
SINGLE = replace(PUBLISHED, envs_per_task=10, agent=SINGLE_AGENT)
PRESETS = {"published": PUBLISHED, "laptop": LAPTOP}


def on_gpu() -> bool:
    """Whether there is a CUDA GPU. Where no driver is, --help need not wait for torch to find none."""
    if {"-h", "--help"} & {*sys.argv} and not shutil.which("nvidia-smi"):
        return False
    import torch

    return torch.cuda.is_available()


def choose(preset: str, tasks: list[str], shown: bool, ckpt: bool) -> Train:
    """Defaults that suit what there is: device, one task or many, and whether there is anything to learn from."""
    why = "as asked"
    if preset not in PRESETS:
        preset, why = ("published", "a CUDA GPU") if on_gpu() else ("laptop", "no CUDA GPU")
    default, start = PRESETS[preset], "demonstrations" if shown else "--ckpt" if ckpt else "no demonstrations"
    if preset == "published" and len(tasks) == 1:
        default, start = SINGLE, f"its single-task form: one task, {start}"
    elif preset == "laptop" and not (shown or ckpt):
        default, start = FROM_SCRATCH, "its from-scratch form: neither demonstrations nor --ckpt"
    return replace(default, why=f"preset {preset} ({why}), {start}")


def parse(args: list[str]) -> Train:
    """Command line -> settings: defaults of the preset or of the run to continue, then what the user gave."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="auto")
    early.add_argument("--resume", type=Path)
    early.add_argument("--demos", default="auto")
    early.add_argument("--ckpt")
    early.add_argument("--tasks", default="")
    known, _ = early.parse_known_args(args)
    if known.resume:
        import checkpoint
        import newt

        stored = checkpoint.read_config(known.resume)
        try:
            before = Train(**{**stored, "agent": Config(**stored["agent"])})
            before = replace(before, resume=known.resume, folder=known.resume, ckpt=before.ckpt and Path(before.ckpt))
            newt.check(before.agent)
            command.check_fields(before, RANGES)
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(
                f"{known.resume} was written by another version of this program, or is damaged: {error!s:.200}"
            ) from error
        envs.require_named(before.tasks.split(","), known.tasks, known.resume / "config.json")
        cfg = tyro.cli(Train, default=before, args=args)
        changed = [f.name for f in fields(Train) if getattr(cfg, f.name) != getattr(before, f.name)]
        if set(changed) - {"steps", "workers"}:
            raise ValueError(f"--resume continues {known.resume} as it is; it can't change {', '.join(changed)}")
        return cfg
    tasks = envs.select(known.tasks or STARTER)
    default = choose(known.preset, tasks, bool(demo_files(Train(demos=known.demos), tasks)), bool(known.ckpt))
    return fit(replace(tyro.cli(Train, default=default, args=args), preset=default.preset), default)


def inputs(rows: list[envs.Task]) -> dict[str, int]:
    """The sizes that an agent of these tasks needs. Own tasks may terminate, which takes one more input (buffer.py)."""
    return {"obs_dim": max(t.obs_dim + (":" in t.name) for t in rows), "action_dim": max(t.action_dim for t in rows)}


def fit(cfg: Train, default: Train) -> Train:
    """Own tasks may be larger and longer than the benchmark's: sizes of a new agent grow, and so does a default."""
    rows = [envs.TASKS[name] for name in envs.select(cfg.tasks)]
    if not any(":" in t.name for t in rows):
        return cfg
    if not cfg.ckpt:
        sizes = {name: max(getattr(cfg.agent, name), needed) for name, needed in inputs(rows).items()}
        cfg = replace(cfg, agent=replace(cfg.agent, **sizes))
    if cfg.eval_every == default.eval_every:
        cfg = replace(cfg, eval_every=max(cfg.eval_every, *(t.episode_length for t in rows)))
    return cfg


def demo_folder(cfg: Train) -> Path:
    return Path("demos" if cfg.demos == "auto" else cfg.demos)


def made_here(cfg: Train, task: str) -> bool:
    """Recordings and scripts take seconds; others take hours, so they are only used if they are there."""
    recorded, own = experts.sources_of(task)
    return cfg.demos == "auto" and (recorded is not None or own == "script")


def demo_files(cfg: Train, tasks: list[str]) -> dict[str, Path]:
    """Where the demonstrations of each task are, or will be made. FileNotFoundError if a given folder has none."""
    if cfg.demos == "none":
        return {}
    paths = {name: demo_format.place(demo_folder(cfg), name) for name in tasks}
    paths = {name: path for name, path in paths.items() if path.is_file() or made_here(cfg, name)}
    if not paths and cfg.demos != "auto":
        raise FileNotFoundError(
            f"no demonstrations in {cfg.demos} for {', '.join(tasks)}; make them with `python demos.py make`, "
            "or use --demos auto or none"
        )
    return paths


if __name__ == "__main__":
    given = command.start(parse, sys.argv[1:])

# Only now what takes seconds to load: --help and wrong words are answered above.
import numpy as np
import psutil
import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

import agent_file
import checkpoint
import distributed
import eval as evaluation
import language
import newt
from buffer import Batch, Buffer, Collector, gigabytes, sample_mixed
from distributed import World
from envs.vector import STEP_MS, VectorEnv

DECISION_MS = 2.0  # besides STEP_MS, what a task costs the process that owns it: only for sharing tasks out


def run_folder(tasks: str) -> Path:
    """Where a run goes if --folder doesn't say."""
    return Path("runs") / ("starter" if tasks == STARTER else envs.file_name(tasks.replace(",", "+")))[:60]


def check(cfg: Train, tasks: list[str], world: World) -> None:
    """Everything that can be known to fail before the first minute of work: ValueError, one line."""
    newt.check(cfg.agent)
    command.check_fields(cfg, RANGES)
    if cfg.instruction and len(tasks) > 1:
        raise ValueError(f"--instruction is for a single task, --tasks names {len(tasks)}")
    rows = [envs.TASKS[name] for name in tasks]
    longest = max(t.episode_length for t in rows)
    if cfg.agent.horizon > min(t.episode_length for t in rows):
        raise ValueError(f"horizon {cfg.agent.horizon} is longer than the shortest episode of these tasks")
    if cfg.eval_every < min(longest, cfg.steps):  # environments start afresh there: such an episode would never end
        raise ValueError(f"eval_every {cfg.eval_every} is shorter than an episode of these tasks, {longest} steps")
    if cfg.buffer_steps <= longest:
        raise ValueError(f"buffer_steps {cfg.buffer_steps} cannot hold one episode of {longest} steps")
    if cfg.agent.batch_size % world.size:
        raise ValueError(f"batch_size {cfg.agent.batch_size} can't be shared equally by {world.size} processes")
    if len(tasks) < world.size:
        raise ValueError(f"{world.size} processes need at least as many tasks, not {len(tasks)}")
    if cfg.buffer_steps // world.size <= longest:
        raise ValueError(f"a process's share of buffer_steps, {cfg.buffer_steps // world.size}, can't hold one episode")
    count = len(tasks) * cfg.envs_per_task // world.size * world.local_size
    needed = {
        "the buffer": (cfg.buffer_steps // world.size * world.local_size, "--buffer-steps"),
        "unfinished episodes of all environments": (count * (longest + 1), "--envs-per-task"),
    }
    free = psutil.virtual_memory().available / 1e9
    for what, (rows, setting) in needed.items():
        size = gigabytes(rows, cfg.agent.obs_dim, cfg.agent.action_dim, torch.float32)
        if size > free:
            raise ValueError(f"{size:.1f} GB are needed for {what}, {free:.1f} GB are free; lower {setting}")
        free -= size


def fill(buffer: Buffer, files: dict[str, demo_format.Demos], tasks: list[str], episodes: int) -> None:
    """Add the first `episodes` demonstrations of each task."""
    for name, demo in files.items():
        ends = zip(demo.episode_start[:-1], demo.episode_start[1:], demo.terminated, strict=True)
        for first, end, terminated in list(ends)[:episodes]:
            rows = slice(int(first), int(end))
            buffer.add(demo.obs[rows], demo.action[rows], demo.reward[rows], tasks.index(name), terminated)


def create_agent(cfg: Train, tasks: list[str], device: torch.device) -> newt.Agent:
    """A fresh agent, or the saved one's network with this run's tasks and embeddings."""
    rows = [envs.TASKS[name] for name in tasks]
    settings, params, q_scale = cfg.agent, None, 1.0
    if cfg.ckpt:
        source, _ = agent_file.load(cfg.ckpt, device)
        # The network's shape is the checkpoint's; how to learn and to plan is this run's.
        shape = {name: getattr(source.cfg, name) for name in ("size", "obs_dim", "action_dim", "task_dim", "num_bins")}
        settings, params, q_scale = replace(settings, **shape), source.params, float(source.q_scale)
    small = [f"{name} is {getattr(settings, name)}, these tasks need {needed}" for name, needed in inputs(rows).items()
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
    shown = demo_files(cfg, tasks)
    guided = [cfg.guide == "all" or bool(cfg.ckpt) or name in shown for name in tasks]
    return newt.create(settings, tasks, emb, dims, discounts, cfg.seed, device, params, q_scale, guided)


def estimate(agent: newt.Agent, cfg: Train) -> float:
    """Hours that acting and learning online will take one process, from a timed decision and a small timed update."""
    n = len(agent.tasks) * cfg.envs_per_task
    few, small, a = min(n, 4), min(128, agent.cfg.batch_size), agent.cfg
    zeros = torch.zeros(few, dtype=torch.long, device=agent.device)
    obs, warm = zeros.new_zeros(few, a.obs_dim).float(), zeros.new_zeros(few, a.horizon, a.action_dim).float()
    scratch = newt.create(a, agent.tasks, agent.emb, [a.action_dim] * len(agent.tasks), agent.discount.tolist(), 0,
                          agent.device)  # fmt: skip
    batch = Batch(obs.new_zeros(a.horizon + 1, small, a.obs_dim), obs.new_zeros(a.horizon, small, a.action_dim),
                  obs.new_zeros(a.horizon, small), zeros.new_zeros(small))  # fmt: skip

    def seconds(call) -> float:
        times = []
        for _ in range(3):  # the first one allocates; the shortest is the one that nothing else disturbed
            start = time.perf_counter()
            float(call())  # waits for a GPU, too
            times.append(time.perf_counter() - start)
        return min(times)

    plan = seconds(lambda: newt.act(scratch, obs, zeros, warm, zeros == 0).action.sum()) / few
    step = seconds(lambda: newt.update(scratch, batch, "online")["loss/model"]) / small * a.batch_size
    return cfg.steps * n * (plan + cfg.utd * step) / 3600


def describe(hours: float) -> str:
    for limit, unit, size in ((2, "minutes", 1 / 60), (48, "hours", 1), (24 * 21, "days", 24)):
        if hours < limit:
            return f"{hours / size:.0f} {unit}"
    return f"{hours / 168:.0f} weeks"


class Log:
    """metrics.jsonl and TensorBoard: names as in loss/, train/, eval/<task>/, time/. Always local files of rank 0.

    `note` keeps a line until the next `write`, which all processes call: it also collects the notes of the others.
    A number that isn't defined (NaN) is left out: JSON has no word for it.
    """

    def __init__(self, folder: Path, size: int, step: int, world: World):
        self.notes: list[tuple[int, dict]] = []
        self.writes = world.rank == 0
        if self.writes:
            self.file = open(folder / "metrics.jsonl", "ab")
            # A resumed run drops what was written after its checkpoint, here and there.
            self.file.truncate(min(size, self.file.seek(0, 2)))
            self.file.seek(0, 2)
            self.board = SummaryWriter(str(folder), purge_step=step + 1 if size else None)

    def note(self, step: int, **values: float) -> None:
        self.notes.append((step, {name: float(value) for name, value in values.items()}))

    def write(self, step: int, durable: bool = False, **values: float) -> None:
        """durable: it must be on the disk before a checkpoint that says how long the file is."""
        everyone = distributed.gather(self.notes)
        self.notes = []
        if not self.writes:
            return
        lines = sorted((note for notes in everyone for note in notes), key=lambda note: note[0])
        if values:
            lines.append((step, {name: float(value) for name, value in values.items()}))
        for step, values in lines:
            values = {name: value for name, value in values.items() if value == value}
            self.file.write(json.dumps({"step": step, **values}).encode() + b"\n")
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        self.file.flush()
        if durable:
            os.fsync(self.file.fileno())

    @property
    def size(self) -> int:
        return self.file.tell() if self.writes else 0


class Clock:
    """Where the wall time goes: `with clock("plan"): ...`, and the shares since the last look.

    Waiting for slower processes counts as what it was that needed them: mostly "update".
    """

    def __init__(self):
        self.looked: dict[str, float] = {}
        self.restart()

    def restart(self) -> None:
        self.spent, self.start, self.done = Counter(), time.perf_counter(), 0

    @contextmanager
    def __call__(self, what: str):
        before = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - before

    def look(self, unit: str, left: float) -> dict[str, float]:
        """Shares of the wall time, speed and hours for what is left of what `done` counts; resident memory in GB.

        With nothing done since the last look, what that one said: several lines may fall into one step.
        """
        if not self.done and self.looked:
            return self.looked
        wall = time.perf_counter() - self.start
        rate = self.done / wall
        program = psutil.Process()
        sizes = []
        for child in program.children(recursive=True):
            with suppress(psutil.Error):  # it ended just now
                sizes.append(child.memory_info().rss)
        shares = {f"time/{what}": self.spent[what] / wall for what in ("plan", "update", "wait", "log")}
        memory = {"memory/learner_gb": program.memory_info().rss / 1e9, "memory/workers_gb": sum(sizes) / 1e9}
        self.restart()
        self.looked = {**shares, f"time/{unit}_per_s": rate, "time/hours_left": left / max(rate, 1e-9) / 3600, **memory}
        return self.looked


class Interruption:
    """Ctrl-C, SIGTERM and a closed terminal (SIGHUP) end the program at once, as by default, with all it started.

    But in a `with` block, the first one only asks: the loop ends after its present step, with a checkpoint.
    """

    def __init__(self):
        self.code, self.patient = 0, False
        numbers = [signal.SIGINT, signal.SIGTERM]
        if os.name == "posix" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # ignored under nohup
            numbers.append(signal.SIGHUP)
        self.before = {number: signal.signal(number, self._handle) for number in numbers}

    def _handle(self, number, _) -> None:
        at_once = self.code or not self.patient
        self.code = 128 + number
        if at_once:
            raise SystemExit(self.code)
        with suppress(OSError):  # the terminal may be gone
            print("\nstopping after this step, with a checkpoint; once more to stop at once", file=sys.stderr)

    def __enter__(self) -> None:
        self.patient = True

    def __exit__(self, *_) -> None:
        self.patient = False

    def restore(self) -> None:
        """As before; but once one came the program is ending, and another must not fall into Python's own exit."""
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if self.code else handler)


def main(cfg: Train) -> None:
    interruption = Interruption()
    try:
        world = distributed.join()
        # torchrun starts all processes again with the same words after one was lost, which means: go on. Only the
        # machine that lost it counts a restart. A run with other settings in the folder is not the one that was lost.
        again = distributed.any_of(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0)
        cfg = replace(cfg, folder=cfg.folder or run_folder(cfg.tasks))
        if again and not cfg.resume and checkpoint.is_run(cfg.folder):
            if checkpoint.read_config(cfg.folder) == checkpoint.as_stored(asdict(cfg)):
                cfg = parse(["--resume", str(cfg.folder), "--tasks", cfg.tasks])
        claim = checkpoint.claim(cfg.folder, bool(cfg.resume), cfg.overwrite) if world.rank == 0 else nullcontext()
        with claim:
            distributed.gather(None)  # the folder is in order
            run(cfg, world, interruption)
    except FloatingPointError as error:
        raise RuntimeError(
            f"{error} is not finite: the step was not taken, the last checkpoint in {cfg.folder} is kept. Lower --lr "
            "or --grad-clip"
        ) from error
    finally:
        distributed.leave()
        interruption.restore()


def run(cfg: Train, world: World, interruption: Interruption) -> None:
    # ---- check everything before the first minute of work
    tasks, folder = envs.select(cfg.tasks), cfg.folder
    speaks = world.rank == 0
    check(cfg, tasks, world)
    envs.require_real_assets(cfg.require_real_assets)
    device = evaluation.pick_device(cfg.device)
    workers = cfg.workers or max(1, machine.cores() // world.local_size)
    seeds = np.random.SeedSequence([cfg.seed, world.rank]).generate_state(2)
    own = checkpoint.Own(
        torch.Generator().manual_seed(int(seeds[0])), torch.Generator(device=device).manual_seed(int(seeds[1]))
    )
    resumed = checkpoint.load(folder, device, own, world) if cfg.resume else None
    agent, state = resumed or (create_agent(cfg, tasks, device), checkpoint.State(phase="pretrain"))
    if agent.tasks != tuple(tasks):
        raise ValueError(f"the newest checkpoint in {folder} is of other tasks than its config.json")
    if resumed:  # what was made since must not change the run
        files, moved = checkpoint.find_demos(folder, state.demos, demo_folder(cfg))
    else:
        paths = demo_files(cfg, tasks)
        files = {name: demo_format.load(path, name) for name, path in paths.items() if path.is_file()}
    evaluation.share_cores(agent.cfg.size)

    # ---- say what will happen
    n = len(tasks) * cfg.envs_per_task
    hours = estimate(agent, cfg) / world.size
    if speaks:
        together = f", {world.size} processes" if world.size > 1 else ""
        size = newt.wm.num_params(agent.params) / 1e6
        print(f"{len(tasks)} tasks, {n} environments, {size:.1f}M parameters, {device}{together}")
        print(f"settings: {cfg.why}" if cfg.why else "settings:")
        for name, value in {**asdict(cfg), **asdict(agent.cfg), "device": device, "workers": workers}.items():
            if name not in ("agent", "why"):
                print(f"  {name:20} {value}")
        print(f"acting and learning online will take about {describe(hours)} here; everything is written to {folder}/")
        if resumed and moved:
            print(moved)
        if cfg.preset == "laptop" and device.type != "cuda" and len(tasks) > 20:
            full = fit(replace(PUBLISHED, tasks=cfg.tasks), PUBLISHED)
            weeks = describe(estimate(create_agent(full, tasks, device), full))
            print(f"(preset laptop; the published preset would take about {weeks} here: use a GPU for that)")

    # ---- demonstrations, shares of the tasks, replay, log; a resumed run goes on from its newest checkpoint
    if not resumed:
        here = [name for name in paths if made_here(cfg, name)]
        if speaks:
            experts.make_all(here, cfg.demo_episodes, demo_folder(cfg), cfg.seed, cfg.workers or None)
        distributed.gather(None)
        files |= {name: demo_format.load(paths[name], name) for name in here if paths[name].is_file()}
        state.demos = {name: file.ret[: cfg.demo_episodes].tolist() for name, file in files.items()}
    without = [name for name in tasks if name not in files]
    if files and without and speaks:
        print(f"no demonstrations of {', '.join(without)}: online only (`python demos.py make --tasks ...` makes some)")
    if 0 < len(files) < world.size:
        raise ValueError(f"{len(files)} tasks with demonstrations can't be shared out among {world.size} processes")
    cost = [STEP_MS.get(envs.TASKS[name].domain, 1.0) + DECISION_MS for name in tasks]
    mine = distributed.share_out(tasks, list(files), cost, world.size)[world.rank]
    every, files = files, {name: file for name, file in files.items() if name in mine}
    longest = max(envs.TASKS[name].episode_length for name in tasks)
    online = Buffer(cfg.buffer_steps // world.size, agent.cfg.obs_dim, agent.cfg.action_dim)
    demo = None
    if files:
        rows = sum(int(file.episode_start[-1]) for file in files.values())
        demo = Buffer(rows, agent.cfg.obs_dim, agent.cfg.action_dim)
        fill(demo, files, tasks, cfg.demo_episodes)
    if resumed:
        checkpoint.load_buffer(folder, online, own, world, len(tasks))
    else:
        fill(online, files, tasks, cfg.demo_episodes)
        checkpoint.begin(folder, asdict(cfg), paths, every, agent, state, own, online, world)
    clipped: set[str] = set()  # tasks that were warned of
    log, clock = Log(folder, state.log_size, state.vector_step * n, world), Clock()
    if resumed and speaks:  # the next --resume, without words, must not end where this run was first to end
        checkpoint.set_steps(folder, cfg.steps)

    def learn(phase: newt.Phase) -> dict:
        source = (demo, online) if phase == "online" else (demo, None)
        size = agent.cfg.batch_size // world.size
        batch = sample_mixed(*source, size, agent.cfg.horizon, own.sampler, cfg.sampling)
        batch = Batch(*(x.to(device) for x in batch))
        lr_scale = 1 + (cfg.lr_end - 1) * state.vector_step / cfg.steps  # vector_step is 0 in pretraining
        return newt.update(agent, batch, phase, None, lr_scale, world.rank, world.size)

    def measure(policy: evaluation.Policy, episodes: int, title: str) -> dict:
        step = state.vector_step * n
        played = evaluation.evaluate(agent, mine, episodes, cfg.seed, policy, step, workers, title)
        played = {task: rows for part in distributed.gather(played) for task, rows in part.items()}
        played = {task: played[task] for task in tasks}
        means = {f"eval/{task}/{key}": np.mean([getattr(e, key) for e in rows])
                 for task, rows in played.items()
                 for key in ("ret", "success", "score") + ("length",) * (":" in task)}  # fmt: skip
        scores = [means[f"eval/{task}/score"] for task in tasks]
        log.write(step, **means, **{"eval/score": evaluation.mean_of_defined(scores)})
        clock.restart()
        return {task: [tuple(e) for e in rows] for task, rows in played.items()}

    def warn_if_clipped(name: str, reward: np.ndarray) -> None:
        value = newt.largest_value(reward, envs.TASKS[name].discount)
        if value > newt.VALUE_LIMIT and name not in clipped:
            clipped.add(name)
            tqdm.write(f"{name}: values reach {value:,.0f}, but the networks' range ends at {newt.VALUE_LIMIT:,.0f}: "
                       f"what is beyond is clipped; divide its rewards by {value / newt.VALUE_LIMIT * 2:.0f}",
                       file=sys.stderr)  # fmt: skip

    for name, file in files.items():
        for start, end in zip(file.episode_start[:-1] + 1, file.episode_start[1:], strict=True):
            warn_if_clipped(name, file.reward[start:end])

    def save(name: str) -> None:
        log.write(state.vector_step * n, durable=True)
        state.log_size = log.size
        checkpoint.save(folder, name, agent, state, own, online, state.vector_step * n, world)
        unit, done = ("update", state.updates) if state.phase == "pretrain" else ("step", state.vector_step * n)
        if speaks and not sys.stderr.isatty() and (rate := clock.looked.get(f"time/{unit}s_per_s")):  # logs have no bar
            left = describe(clock.looked["time/hours_left"])
            print(f"{state.phase}: {done} {unit}s, {rate:.1f} {unit}/s, {left} left", file=sys.stderr)

    def stop_if_asked(name: str) -> None:
        if distributed.any_of(bool(interruption.code)):
            save(name)
            if speaks:
                named = f" --tasks {cfg.tasks}" if ":" in cfg.tasks else ""
                with suppress(OSError):  # the terminal may be gone
                    print(f"stopped; go on with: python train.py --resume {folder}{named}", file=sys.stderr)
            raise SystemExit(interruption.code or 1)

    # ---- pretraining. A checkpoint always comes before the evaluation of the same agent: a run that is killed while
    # evaluating, which may take longer than training, does that again and nothing else.
    if "random" not in state.results:
        state.results["random"] = measure("random", cfg.final_episodes, "random policy")
    if state.phase == "pretrain" and demo is not None:
        with (
            interruption,
            tqdm(desc="pretraining", unit="update", initial=state.updates, total=cfg.pretrain_updates,
                 disable=None if speaks else True) as bar,
        ):  # fmt: skip
            while state.updates < cfg.pretrain_updates:
                with clock("update"):
                    metrics, state.updates = learn("pretrain"), state.updates + 1
                clock.done += 1
                bar.update()
                if state.updates % cfg.log_every == 0 or state.updates == cfg.pretrain_updates:
                    took = clock.look("updates", cfg.pretrain_updates - state.updates)
                    with clock("log"):
                        log.write(0, **metrics, **took, **{"train/pretrain_updates": state.updates})
                if state.updates % cfg.checkpoint_updates == 0 or state.updates == cfg.pretrain_updates:
                    with clock("log"):
                        save(f"pretrain-{state.updates}")
                stop_if_asked(f"pretrain-{state.updates}")
        if cfg.pretrain_updates:
            state.results["pretrained"] = measure("planner", cfg.final_episodes, "after pretraining")
    if state.phase == "pretrain":
        state.phase, state.updates = "online", 0
        save("0")

    # ---- online
    trained = bool(cfg.ckpt or (demo is not None and cfg.pretrain_updates))  # else the policy is no better than chance
    names = [name for name in mine for _ in range(cfg.envs_per_task)]
    task = torch.tensor([tasks.index(name) for name in names], device=device)
    mask = agent.mask[task]
    with (
        interruption,
        VectorEnv(names, cfg.seed, workers, agent.cfg.obs_dim, agent.cfg.action_dim) as vector,
        tqdm(total=cfg.steps * n, initial=state.vector_step * n, desc="online", unit="step", unit_scale=True,
             disable=None if speaks else True) as bar,
    ):  # fmt: skip
        collector = Collector(len(names), longest, agent.cfg.obs_dim, agent.cfg.action_dim, task.cpu().numpy())
        seeding, fresh = True, True
        clock.restart()
        while state.vector_step < cfg.steps:
            if fresh:  # at the start and after every checkpoint all environments begin new episodes
                if state.vector_step and state.vector_step % cfg.eval_every == 0:
                    interruption.patient = False  # the checkpoint is written
                    measure("planner", cfg.eval_episodes, "evaluate")
                    interruption.patient = True
                obs, fresh = vector.reset(episode=state.vector_step), False
                collector.start(obs)
                first = torch.ones(len(names), dtype=torch.bool, device=device)
                warm = torch.zeros(len(names), agent.cfg.horizon, agent.cfg.action_dim, device=device)
            step = state.vector_step * n
            with clock("plan"):
                if seeding:
                    due = cfg.seed_episodes * cfg.envs_per_task  # lost ones count: one bad simulator holds up nobody
                    # Own tasks may end at once, so they are counted in steps: as many as so many long episodes have.
                    had = min(
                        (state.vector_step // envs.TASKS[name].episode_length * cfg.envs_per_task if ":" in name
                         else own.episodes.get(name, 0)) + own.dropped.get(name, 0) for name in mine
                    )  # fmt: skip
                    seeding = distributed.any_of(had < due or not online.episodes)
                if seeding and not trained:
                    action = torch.rand(len(names), agent.cfg.action_dim, generator=own.sampler) * 2 - 1
                    action = action.to(device) * mask
                else:
                    x = torch.as_tensor(obs, device=device)
                    plan = newt.act(agent, x, task, warm, first, step, True, not seeding, own.actor)
                    action, warm = plan.action, plan.mean
                action = action.cpu().numpy()
            vector.send(action)

            # ---- learn while the simulators step
            if seeding and clock.done >= cfg.log_every * n:
                log.write(step, **clock.look("steps", (cfg.steps - state.vector_step) * n))
            if not seeding:
                state.learning_steps += n
                while state.updates < int(cfg.utd * state.learning_steps):
                    with clock("update"):
                        metrics, state.updates = learn("online"), state.updates + 1
                    if state.updates % cfg.log_every == 0:
                        took = clock.look("steps", (cfg.steps - state.vector_step) * n)
                        with clock("log"):
                            log.write(step, **metrics, **took, **{"train/updates": state.updates})
                        shown = {what: f"{took[f'time/{what}']:.0%}" for what in ("plan", "update", "wait")}
                        bar.set_postfix(loss=f"{float(metrics['loss/model']):.2f}", **shown, refresh=False)

            with clock("wait"):
                result = vector.recv()
            rows = (action, result.reward, result.done, result.final_obs, result.obs, result.dropped, result.terminated)
            done = collector.add(online, *rows)
            for i, ret, length in done:
                own.episodes[names[i]] = own.episodes.get(names[i], 0) + 1
                warn_if_clipped(names[i], collector.rewards(i, length))
                said = {"return": ret, "score": result.score[i]} | ({"length": length} if ":" in names[i] else {})
                log.note(step + n, **{f"train/{names[i]}/{key}": value for key, value in said.items()})
            for i in np.flatnonzero(result.dropped):
                own.dropped[names[i]] = own.dropped.get(names[i], 0) + 1
                log.note(step + n, **{f"train/{names[i]}/dropped": own.dropped[names[i]]})
            obs, first = result.obs, torch.as_tensor(result.done | result.dropped, device=device)
            state.vector_step += 1
            clock.done += n
            bar.update(n)
            fresh = state.vector_step % cfg.eval_every == 0
            if fresh or state.vector_step == cfg.steps:
                with clock("log"):
                    save(str(state.vector_step * n))
            stop_if_asked(str(state.vector_step * n))

    # ---- the end: table, curves, video
    state.results["online"] = measure("planner", cfg.final_episodes, "after online")
    if not speaks:
        return
    evaluation.plot_curves(folder / "metrics.jsonl", folder / "curves.png")
    print(evaluation.compare(state.results))
    print(f"curves {folder / 'curves.png'}\nagent  {folder / 'agent.safetensors'}")
    try:
        path = folder / "videos" / "final.mp4"
        evaluation.record(agent, tasks[:16], path, cfg.seed, state.vector_step * n)
        print(f"video  {path}")
    except Exception as error:  # of OpenGL, of a simulator, of a disk that is full: training is done all the same
        print(f"no video: {error}", file=sys.stderr)


if __name__ == "__main__":
    command.run(main, given)
