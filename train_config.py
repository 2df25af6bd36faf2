"""What a run is to do: every setting of train.py, where its default comes from, and what a run is made of.

A setting's default is that of its preset, or of the run to go on with, and then what the user gave counts. What a run
is made of (Setup) is decided here, once, before anything that takes time to load: train.py only carries it out.
Test: pytest tests/test_train_config.py tests/test_command.py
"""

import argparse
import ctypes
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal, NamedTuple

import psutil
import tyro

import agent_config
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
    image_weights: Path | None = None
    """weights of --image-encoder dinov2: Meta's dinov2_vitb14_pretrain.pth, or Hugging Face's model.safetensors"""
    instruction: str = ""
    """what to do, in your own words; for a single task, instead of the table's instruction"""
    seed: int = 0
    """of everything: network, noise, environments"""
    device: str = "auto"
    """auto, cpu, cuda or mps"""
    workers: int = 0
    """simulator processes; 0: one per core"""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile updates and decisions, which takes minutes (compiled.py); auto: of small networks on a CPU, where
    there is a C++ compiler and the run is long enough to pay it back. A resumed run does as it began"""
    precision: Literal["auto", "float32", "bf16"] = "float32"
    """bf16: matrix products of hidden layers in bf16, the rest in float32; auto: where that is clearly faster here
    (precision.py). A resumed run does as it began"""
    require_real_assets: bool = False
    """refuse tasks whose assets are stand-ins here, with the command that downloads the real ones"""

    demos: str = "auto"
    """auto: in demos/, made there where they are recorded or a script can (minutes), others are used if `demos.py make`
    made them; none; or a folder, in which tasks may be missing: they take part online only"""
    demo_episodes: int = 10
    """demonstrations per task"""
    imitation_updates: int = 0
    """updates of encoder and policy alone on demonstrations, before those of the whole model: seven times cheaper, and
    in short pretraining what makes the policy exact enough to grasp (results/imitated.csv). The learning rate falls"""
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

    @property
    def offline_updates(self) -> int:
        """On demonstrations alone, before any environment step."""
        return self.imitation_updates + self.pretrain_updates


RANGES = {  # of every number above: smallest and largest value
    "seed": (0, 2**32 - 1),
    "workers": (0, 4096),
    **dict.fromkeys(("steps", "eval_every", "checkpoint_updates", "log_every"), (1, 10**12)),
    **dict.fromkeys(("demo_episodes", "seed_episodes", "eval_episodes", "final_episodes"), (1, 10**6)),
    **dict.fromkeys(("imitation_updates", "pretrain_updates"), (0, 10**12)),
    "envs_per_task": (1, 10**9),
    "utd": (0, 1000),
    "lr_end": (0, 100),
    "buffer_steps": (1, 10**15),
}

# Chosen by measuring, on two CPU cores (results/README.md): the published planner and network would take weeks there.
# Sampling by task: by episode those with long episodes would get a small share of the online samples. More imitation, a
# narrower search and falling learning rates: so few updates don't make the values good enough to leave the
# demonstrations, and with constant rates single tasks came and went between evaluations. For the same reason plans
# that are executed in an evaluation must be surely better than the policy's own. Most of pretraining is imitation
# alone, of standardised observations, with the encoder as fast as the rest: the starter after it scores 0.88 instead of
# 0.80, in less time.
LAPTOP = Train(
    preset="laptop",
    demo_episodes=40,
    imitation_updates=8_000,
    pretrain_updates=4_000,
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
        obs_norm="demos",
        batch_size=128,
        enc_lr_scale=1.0,
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
SCRATCH_AGENT = replace(LAPTOP.agent, obs_norm="none", enc_lr_scale=0.3, std_min=0.1, elite="sample")
FROM_SCRATCH = replace(LAPTOP, demos="none", utd=1.0, lr_end=1.0, agent=SCRATCH_AGENT)
PUBLISHED = Train(preset="published")
# Of a single task: a smaller network and ten environments. The pull to the policy fades between the same shares of all
# steps as with 200 tasks, 2 % and 12 %: it would be there to the end by those numbers of steps.
SINGLE_AGENT = Config(size="B", constraint_start=100_000, constraint_duration=500_000)
SINGLE = replace(PUBLISHED, envs_per_task=10, agent=SINGLE_AGENT)
PRESETS = {"published": PUBLISHED, "laptop": LAPTOP}


def on_gpu() -> bool:
    """Whether there is a CUDA GPU. Where no driver is, nobody waits seconds for torch to find none."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        if not Path("/dev/kfd").exists():  # an AMD GPU, which torch calls cuda, too
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


class Setup(NamedTuple):
    """What a run is made of, decided once."""

    cfg: Train
    tasks: list[str]
    demos: dict[str, Path]  # task -> file of its demonstrations, there or to be made; empty when going on: a run knows


def parse(args: list[str]) -> Setup:
    """Command line -> settings: defaults of the preset or of the run to continue, then what the user gave."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--preset", default="auto")
    early.add_argument("--resume", type=Path)
    early.add_argument("--demos", default="auto")
    early.add_argument("--ckpt")
    early.add_argument("--tasks", default="")
    known, _ = early.parse_known_args(args)
    if known.resume:
        return go_on(known.resume, known.tasks, args)
    tasks = envs.select(known.tasks or STARTER)
    demos = demo_files(known.demos, tasks)
    default = choose(known.preset, tasks, bool(demos), bool(known.ckpt))
    cfg = replace(tyro.cli(Train, default=default, args=args), preset=default.preset)
    return Setup(fit(replace(cfg, folder=cfg.folder or run_folder_of(cfg.tasks)), default), tasks, demos)


def go_on(folder: Path, tasks: str, args: list[str]) -> Setup:
    """The settings of the run in a folder, but for --steps and --workers. tasks: as the user named them, if so."""
    import run_folder

    # As runs were that don't know these words.
    stored = {"compile": "off", "precision": "float32", "imitation_updates": 0, **run_folder.read_config(folder)}
    try:
        before = Train(**{**stored, "agent": Config(**stored["agent"])})
        before = replace(before, resume=folder, folder=folder, ckpt=before.ckpt and Path(before.ckpt))
        before = replace(before, image_weights=before.image_weights and Path(before.image_weights))
        agent_config.check(before.agent)
        command.check_fields(before, RANGES)
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"{folder} was written by another version of this program, or is damaged: {error!s:.200}"
        ) from error
    envs.require_named(before.tasks.split(","), tasks, folder / "config.json")
    cfg = tyro.cli(Train, default=before, args=args)
    changed = [f.name for f in fields(Train) if getattr(cfg, f.name) != getattr(before, f.name)]
    if set(changed) - {"steps", "workers", "image_weights"}:
        raise ValueError(f"--resume continues {folder} as it is; it can't change {', '.join(changed)}")
    return Setup(cfg, envs.select(cfg.tasks), {})


def inputs(rows: list[envs.Task], obs: str) -> dict[str, int]:
    """The sizes that an agent of these tasks needs. Own tasks may terminate, which takes one more input (buffer.py)."""
    obs_dim = max(t.obs_dim * (obs != "rgb") + (":" in t.name) for t in rows)
    return {"obs_dim": obs_dim, "action_dim": max(t.action_dim for t in rows)}


def fit(cfg: Train, default: Train) -> Train:
    """Own tasks may be larger and longer than the benchmark's: sizes of a new agent grow, and so does a default."""
    rows = [envs.TASKS[name] for name in envs.select(cfg.tasks)]
    if cfg.agent.obs == "rgb":
        cfg = replace(cfg, agent=replace(cfg.agent, obs_dim=0))
    if not any(":" in t.name for t in rows):
        return cfg
    if not cfg.ckpt:
        needed = inputs(rows, cfg.agent.obs)
        sizes = {name: max(getattr(cfg.agent, name), least) for name, least in needed.items()}
        cfg = replace(cfg, agent=replace(cfg.agent, **sizes))
    if cfg.eval_every == default.eval_every:
        cfg = replace(cfg, eval_every=max(cfg.eval_every, *(t.episode_length for t in rows)))
    return cfg


def run_folder_of(tasks: str) -> Path:
    """Where a run goes if --folder doesn't say."""
    return Path("runs") / ("starter" if tasks == STARTER else envs.file_name(tasks.replace(",", "+")))[:60]


def demo_folder(demos: str) -> Path:
    return Path("demos" if demos == "auto" else demos)


def made_here(demos: str, task: str) -> bool:
    """Recordings and scripts take seconds; others take hours, so they are only used if they are there."""
    recorded, own = experts.sources_of(task)
    return demos == "auto" and (recorded is not None or own == "script")


def demo_files(demos: str, tasks: list[str]) -> dict[str, Path]:
    """Where the demonstrations of each task are, or will be made. FileNotFoundError if a given folder has none."""
    if demos == "none":
        return {}
    paths = {name: demo_format.place(demo_folder(demos), name) for name in tasks}
    paths = {name: path for name, path in paths.items() if path.is_file() or made_here(demos, name)}
    if not paths and demos != "auto":
        raise FileNotFoundError(
            f"no demonstrations in {demos} for {', '.join(tasks)}; make them with `python demos.py make`, "
            "or use --demos auto or none"
        )
    return paths


def check(setup: Setup, processes: int, local: int) -> None:
    """Everything that can be known to fail before the first minute of work: ValueError, one line.

    processes, local: how many there are, and how many of them on this machine
    """
    from buffer import gigabytes

    (cfg, tasks, _), a = setup, setup.cfg.agent
    agent_config.check(a)
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
    if cfg.agent.batch_size % processes:
        raise ValueError(f"batch_size {cfg.agent.batch_size} can't be shared equally by {processes} processes")
    if len(tasks) < processes:
        raise ValueError(f"{processes} processes need at least as many tasks, not {len(tasks)}")
    if cfg.buffer_steps // processes <= longest:
        raise ValueError(f"a process's share of buffer_steps, {cfg.buffer_steps // processes}, can't hold one episode")
    count = len(tasks) * cfg.envs_per_task // processes * local
    needed = {
        "the buffer": (cfg.buffer_steps // processes * local, "--buffer-steps", a.obs_dim, a.feature_dim),
        "unfinished episodes of all environments": (count * (longest + 1), "--envs-per-task", a.input_dim, 0),
    }
    free = psutil.virtual_memory().available / 1e9
    for what, (rows, setting, obs_dim, feature_dim) in needed.items():
        size = gigabytes(rows, obs_dim, a.action_dim, feature_dim=feature_dim)
        if size > free:
            raise ValueError(f"{size:.1f} GB are needed for {what}, {free:.1f} GB are free; lower {setting}")
        free -= size
