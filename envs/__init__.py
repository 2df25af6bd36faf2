"""The tasks: one table, one maker. `envs.make("walker-walk")` is a standard gymnasium.Env.

Contract of every environment here:
    obs      float32 (obs_dim,); action float32 (action_dim,) in [-1, 1]: the task's true sizes, nothing is padded
    reset    reset(seed=s) makes everything after it reproducible; random draws come from `env.np_random` only
    step     truncates at `episode_length` agent steps, never terminates; stepping on without a reset raises
    info     on every reset and step: success, 0.0 or 1.0; score, a float in [0, 1], at the last step the episode's
    state    get_state() is a dict of numpy arrays and numbers, set_state(it) continues exactly from there
    name     the task's
    render   (224, 224, 3) uint8; OpenGL is loaded at the first frame, so training on states needs none
    frames   full, or fast: where MuJoCo draws, without shadows, reflections and multisampling; set before the first one
Tasks of your own (envs/custom.py) may end earlier, for good (terminated) or not (truncated), and have no score: NaN.
Simulators are imported inside their maker: a missing one only matters for its own tasks.

Source: the task table of Newt's benchmark (tasks.csv: 200 training and 34 held-out tasks; the instructions are our own
words). To add a suite: a file with `make(task, seed, render_mode)` and one line in MAKERS.
Run:  python -m envs --help
Test: pytest tests/test_envs.py
"""

import csv
import difflib
import importlib
import os
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path

import machine  # noqa: F401  refuses a Python that lacks the packages below

import gymnasium as gym

from envs.camera import import_without_gl


@dataclass(frozen=True)
class Task:
    """One row of tasks.csv. The order of the rows is the canonical order: it numbers the tasks."""

    name: str
    split: str  # train or heldout; own for those of envs/custom.py
    domain: str  # the suite, a key of MAKERS
    obs_dim: int  # 0: not known (held-out names that have a row but no published environment)
    action_dim: int
    episode_length: int  # agent steps; every episode has exactly this length, one of an own task at most
    action_repeat: int  # simulator steps per agent step
    discount: float
    discount_explicit: bool  # False: the discount follows from episode_length
    score_formula: str  # of the last step; R is the return of the episode
    success_defined: bool  # False: success is always 0. An own task's is NaN where it isn't
    needs_download: bool  # the simulator's pip package lacks some of this task's assets
    is_new_in_mmbench: bool
    implemented_in_reference: bool
    instruction: str
    embodiment: str

    @property
    def sentence(self) -> str:
        """What the language encoder reads."""
        return f"{self.embodiment}. {self.instruction}."


class Table(dict):
    """Task name -> Task. A name with a colon (envs/custom.py) gets its row when asked for, by making it once."""

    def __missing__(self, name: str) -> Task:
        if ":" not in name:
            raise KeyError(name)
        self[name] = Task(**importlib.import_module(f"{__name__}.custom").describe(name))
        return self[name]


def _read_table() -> Table:
    parse = {str: str, int: lambda text: int(text or 0), float: float, bool: {"y": True, "n": False}.__getitem__}
    with open(Path(__file__).with_name("tasks.csv"), newline="", encoding="utf-8") as file:
        rows = [Task(**{f.name: parse[f.type](row[f.name]) for f in fields(Task)}) for row in csv.DictReader(file)]
    return Table((task.name, task) for task in rows)


TASKS = _read_table()
MAKERS = {  # suite -> (module in this folder, pip package); one line per suite
    "dmcontrol": ("dmcontrol", "dm_control"),
    "dmcontrol-ext": ("dmcontrol_ext", "dm_control"),
    "metaworld": ("metaworld", "metaworld"),
    "maniskill": ("maniskill", "mani_skill"),
    "mujoco": ("mujoco", "gymnasium[mujoco]"),
    "box2d": ("box2d", "Box2D"),
    "robodesk": ("robodesk", "robodesk"),
    "ogbench": ("ogbench", "ogbench"),
    "miniarcade": ("arcade", "pygame-ce"),
    "atari": ("atari", "ale-py"),
}


def _check(name: str) -> Task:
    """The row of a task that can be made here, or a ValueError that helps."""
    if ":" in name:
        return TASKS[name]
    if name not in TASKS:
        close = difflib.get_close_matches(name, ["all", "heldout", *MAKERS, *TASKS], n=5)
        hint = f"did you mean {', '.join(close)}?" if close else "all names are in envs/tasks.csv"
        raise ValueError(f"unknown task {name!r}: {hint}")
    task = TASKS[name]
    if not task.implemented_in_reference:
        raise ValueError(f"task {name!r} is only a name: the benchmark never defined it")
    return task


def select(names: str) -> list[str]:
    """Task names behind a command-line word, checked before any work starts.

    names   "all" (200 training tasks), "heldout" (28), a suite (its training tasks), a task, or "a,b,c" of these; also
            gym:<id> and module:function (envs/custom.py)
    return  names in the order asked for, each once; "all" and suites in canonical order
    Raises ValueError, one line: unknown name (lists close ones), one that was never defined, or nothing selected.
    """
    suites: dict[str, list[str]] = {}
    for task in TASKS.values():
        if task.split == "train":
            suites.setdefault("all", []).append(task.name)
            suites.setdefault(task.domain, []).append(task.name)
        elif task.split == "heldout" and task.implemented_in_reference:
            suites.setdefault("heldout", []).append(task.name)
    words = [word.strip() for word in names.split(",") if word.strip()]
    if not words:
        raise ValueError(f"no task in {names!r}: give all, a suite ({', '.join(MAKERS)}) or names with commas between")
    chosen = dict.fromkeys(name for word in words for name in suites.get(word, [word]))
    return [_check(name).name for name in chosen]


def require_named(names: Iterable[str], asked: str, source: object) -> None:
    """Making a task with a colon imports what it names. Out of a file (`source`) comes no such task unasked.

    asked: the user's own words for the tasks. ValueError, one line, if they lack such a name.
    """
    words = {word.strip() for word in asked.split(",")}
    foreign = [name for name in names if ":" in name and name not in words]
    if foreign:
        raise ValueError(f"{source} holds the task {foreign[0]}, which is code outside of this program: it is only run "
                         "if you name it yourself, with --tasks")  # fmt: skip


def label(name: str) -> str:
    """A task's name in tables: with a * where stand-ins replace the simulator's own assets on this machine."""
    if ":" in name or not TASKS[name].needs_download:
        return name
    return name + "*" * (importlib.import_module(f"{__name__}.maniskill_assets").asset(name) == "stand-in")


def file_name(task: str) -> str:
    """A task's name as that of a file or folder, on every system: own tasks' have colons, and may have slashes."""
    return task.translate(str.maketrans(":/", "=@"))


def task_name(file_name: str) -> str:
    """The task whose `file_name` that is; neither sign is part of a Gymnasium id or a Python name."""
    return file_name.translate(str.maketrans("=@", ":/"))


def require_real_assets(required: bool) -> None:
    """From now on, here and in child processes, make() refuses stand-ins with the command that downloads the rest."""
    if required:
        os.environ["NEWT_REQUIRE_REAL_ASSETS"] = "1"


STAND_IN_NOTE = "* with stand-ins for assets that aren't on this machine (envs/maniskill_assets.py): not comparable"


def make(name: str, seed: int = 0, render_mode: str | None = None, frames: str = "full") -> gym.Env:
    """One environment that keeps the contract at the top of this file.

    name         a key of TASKS
    seed         seeds `env.np_random` as reset(seed=) does: a first reset() without a seed is reproducible too
    render_mode  None or "rgb_array"; with both, render() draws
    frames       full or fast, see above
    Raises ValueError (unknown task, bad render_mode or frames), ImportError that names the pip package of a missing
    simulator.
    """
    task = _check(name)
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode is None or 'rgb_array', not {render_mode!r}")
    if frames not in ("full", "fast"):
        raise ValueError(f"frames are full or fast, not {frames!r}")
    module, package = MAKERS.get(task.domain, ("custom", "the packages that it imports"))
    try:
        with import_without_gl() if task.split != "own" else nullcontext():  # those draw by themselves
            env = importlib.import_module(f"{__name__}.{module}").make(task, seed, render_mode)
    except ModuleNotFoundError as error:
        raise ImportError(f"task {name!r} needs `pip install {package}` ({error})") from error
    env.name, env.frames = name, frames
    return env


for _task in TASKS.values():
    if _task.implemented_in_reference:
        gym.register(f"mmbench/{_task.name}-v0", entry_point=f"{__name__}:make", kwargs={"name": _task.name})
