"""Demonstrations, from the command line: make, list, play and check them.

    python demos.py make --tasks all --out demos/                   minutes, where they are recorded
    python demos.py list demos/                                     what there is, and for which tasks there is nothing
    python demos.py play demos/walker-walk.safetensors              a film of an episode, by playing it again
    python demos.py features demos/                                 what agents see in them, for train.py --obs
    python demos.py check demos/                                    do the simulators here still give those rewards?
    python demos.py pack demos/                                     record them, for everybody: recordings/

Who acts (`--source`), experts.py; what is kept, and how: demo_maker.py. The files: demo_format.py, recordings.py.
Test: pytest tests/test_demos.py
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import machine  # noqa: F401  refuses a Python that lacks the packages below

import numpy as np
import tyro

import command
import demo_features
import demo_maker
import envs
import experts
import recordings
from demo_format import episode, join, load, place
from envs.browse import film, in_processes


def overview(folder: Path) -> list[dict]:
    """A row for each task with a file, and for each of which attempts are left that came to nothing."""
    rows = []
    files = {p.stem for p in folder.glob("*.safetensors")} | {p.name for p in folder.glob("attempts/*")}
    for name in sorted(map(envs.task_name, files)):
        path = place(folder, name)
        if path.is_file():
            demo = load(path, name)
            kept, tried = len(demo.ret), demo.meta.get("tried", len(demo.ret))
            cpu = demo.meta.get("tried_cpu_seconds", np.nan) / kept  # older files don't say
        else:
            files = sorted((folder / "attempts" / envs.file_name(name)).glob("*.safetensors"))
            if not files:
                continue
            demo = join(parts := [load(file, name) for file in files], parts[0].meta)
            kept, tried, cpu = 0, len(files), sum(part.meta.get("cpu_seconds", [np.nan])[0] for part in parts)
        suite = "own" if ":" in name else envs.TASKS[name].domain
        row = {"task": envs.label(name), "suite": suite, "source": demo.meta["source"], "kept": kept,
               "tried": tried, "return": demo.ret.mean(), "score": demo.score.mean(), "success": demo.success.mean(),
               "cpu_seconds_per_kept": cpu}  # fmt: skip
        rows.append(row)
    return rows


@dataclass(frozen=True)
class Make:
    """Make demonstrations; what is there already is kept, what was begun goes on."""

    tasks: str = "metaworld"
    """all, heldout, a suite, or task names with commas between"""
    episodes: int = 10
    """per task"""
    out: Path = Path("demos")
    """folder to write to"""
    source: str = "auto"
    """who acts: auto, script, plan, search, agent, or module:function, a player of yours (experts.py). auto: what is
    recorded, then a script, and where nothing is recorded also plan or search (hours); a source by its name goes on
    where its own recording ends"""
    ckpt: Path | None = None
    """agent.safetensors that acts, for --source agent"""
    minutes_per_task: float = 0
    """then a task's file holds what there is, and the next run goes on; 0: no limit"""
    seed: int = 0
    """same seed, same episodes"""
    workers: int = 0
    """processes; 0: one per core"""


@dataclass(frozen=True)
class List:
    """What a folder of demonstrations holds. A task with 0 episodes was tried in vain: means over its attempts."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""
    csv: Path | None = None
    """also write the table to this file"""


@dataclass(frozen=True)
class Play:
    """Write a film of a demonstration: its actions are played again from its seed."""

    file: tyro.conf.Positional[Path]
    """<task>.safetensors"""
    episode: int = 0
    """which one"""
    out: Path | None = None
    """film to write; default: <task>.mp4 here"""


@dataclass(frozen=True)
class Features:
    """Features of every frame of demonstrations, by playing them again, for agents that see. What is there is kept."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""
    tasks: str = ""
    """only of these; own tasks (gym:<id>, module:function) must be named"""
    encoder: Literal["lite0", "dinov2"] = "lite0"
    """frozen network"""
    image_weights: Path | None = None
    """its weights, of dinov2 (vision.py)"""
    frames: Literal["fast", "full"] = "fast"
    """how MuJoCo draws: as the agent will see it"""
    workers: int = 0
    """processes; 0: one per core"""
    device: str = "cpu"
    """of the encoder; each process has its own copy"""


@dataclass(frozen=True)
class Check:
    """Play the first episode of every file again from its seed: rewards must be those recorded, to the last bit."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""
    tasks: str = ""
    """own tasks (gym:<id>, module:function) whose files are to be checked, too: that runs their code"""
    workers: int = 0
    """processes; 0: one per core"""


@dataclass(frozen=True)
class Pack:
    """Record what a folder of demonstrations holds, as seeds and actions; recordings of other tasks stay."""

    folder: tyro.conf.Positional[Path] = Path("demos")
    """folder with one file per task"""
    out: Path = recordings.FOLDER
    """folder to write one file per suite to"""


def main_pack(cfg: Pack) -> None:
    command.try_folder(cfg.out)
    print("\n".join(recordings.pack(cfg.folder, cfg.out)))


def main_make(cfg: Make) -> None:
    ranges = {"episodes": (1, 10**6), "minutes_per_task": (0, 10**6), "seed": (0, 2**32 - 1), "workers": (0, 4096)}
    command.check_fields(cfg, ranges)
    tasks = envs.select(cfg.tasks)
    if ":" not in cfg.source and cfg.source not in ("auto", *experts.SOURCES):
        raise ValueError(f"no source {cfg.source!r}: it is auto, {', '.join(experts.SOURCES)} or module:function")
    if (cfg.source == "agent") != (cfg.ckpt is not None):
        raise ValueError("--source agent and --ckpt FILE belong together")
    if cfg.source == "agent":
        unknown = sorted(set(tasks) - set(experts.agent_of(cfg.ckpt).tasks))
        if unknown:
            raise ValueError(f"{cfg.ckpt} does not know {', '.join(unknown)}")
    if ":" in cfg.source:
        experts.player_of("", cfg.source)  # now, not after the first minutes
    without = [task for task in tasks if experts.sources_of(task, cfg.source, cfg.seed) == (None, None)]
    if len(without) == len(tasks):
        raise ValueError(f"no source of demonstrations ({cfg.source}) for {', '.join(without)}")
    if without:
        print(f"no source of demonstrations ({cfg.source}) for {', '.join(without)}")
    tasks = [task for task in tasks if task not in without]
    failed = demo_maker.make_all(tasks, cfg.episodes, cfg.out, cfg.seed, cfg.workers or None, cfg.source, cfg.ckpt,
                              cfg.minutes_per_task)  # fmt: skip
    if failed:
        raise RuntimeError(f"an attempt failed, see above, of {', '.join(failed)}")
    main_list(List(cfg.out))


def main_list(cfg: List) -> None:
    if cfg.csv:
        command.try_file(cfg.csv)
    rows = overview(cfg.folder)
    if not rows:
        raise FileNotFoundError(f"no demonstrations in {cfg.folder}")
    have = {row["task"].rstrip("*") for row in rows if row["kept"]}
    none = [name for name in envs.select("all") if name not in have]
    if cfg.csv:
        with open(cfg.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
            for name in sorted(set(none) - {row["task"].rstrip("*") for row in rows}):  # every task has a line
                writer.writerow({"task": name, "suite": envs.TASKS[name].domain, "kept": 0, "tried": 0})
    print(f"{'task':34}{'episodes':>9}{'return':>10}{'success':>9}{'score':>7}  {'source':8}{'tried':>6}{'CPU s':>7}")
    for row in rows:
        ends = f"{row['return']:10.1f}{row['success']:9.2f}{row['score']:7.2f}".replace("nan", "  -")  # undefined
        cpu = f"{row['cpu_seconds_per_kept']:7.1f}".replace("nan", "  -")
        print(f"{row['task']:34}{row['kept']:9}{ends}  {row['source']:8}{row['tried']:6}{cpu}")
    print(f"{'suite':34}{'tasks':>9}{'episodes':>10}{'score':>9}{'>= 0.5':>7}  {'CPU s per episode (median, most)'}")
    for suite in dict.fromkeys(row["suite"] for row in rows):
        kept = [row for row in rows if row["suite"] == suite and row["kept"]]
        if kept:
            score, cpu = ([row[key] for row in kept] for key in ("score", "cpu_seconds_per_kept"))
            many = f"{suite:34}{len(kept):9}{sum(row['kept'] for row in kept):10}"
            print(many + f"{np.mean(score):9.2f}{sum(x >= 0.5 for x in score):7}  {np.median(cpu):.1f}, {max(cpu):.1f}"
                  .replace("nan", "  -"))  # fmt: skip
    print(f"{len(have)} tasks" + (f"; of the 200 training tasks none for {', '.join(none)}" if none else ""))


def main_play(cfg: Play) -> None:
    task, out = envs.task_name(cfg.file.stem), cfg.out or Path(f"{cfg.file.stem}.mp4")
    demo = load(cfg.file, task)
    if not 0 <= cfg.episode < len(demo.ret):
        raise ValueError(f"{cfg.file} has episodes 0 to {len(demo.ret) - 1}, not {cfg.episode}")
    command.try_file(out)
    if demo.seed[cfg.episode] < 0:
        raise ValueError(f"{cfg.file} doesn't say from which start its actions go (converted files don't)")
    one = episode(demo, cfg.episode)
    env = envs.make(task, render_mode="rgb_array")
    env.reset(seed=int(one.seed[0]))
    info = film(env, one.action[1:], out)
    env.close()
    same = "" if np.float32(info["score"]) == one.score[0] else f", recorded was {one.score[0]:.3f}: another package?"
    print(f"{out}: score {info['score']:.3f}{same}")


def replay(path: Path) -> str:
    """What is wrong with the first episode of a file, or nothing."""
    task = envs.task_name(path.stem)
    one = episode(load(path, task), 0)
    if one.seed[0] < 0:
        return "no seed is recorded"
    env = envs.make(task)
    obs, _ = env.reset(seed=int(one.seed[0]))
    for t in range(1, len(one.obs)):
        obs, reward, *_ = env.step(one.action[t])
        if np.float32(reward) != one.reward[t] or not np.array_equal(obs, one.obs[t]):
            return f"step {t} gives reward {reward:.6g}, recorded is {one.reward[t]:.6g}"
    env.close()
    return ""


def main_features(cfg: Features) -> None:
    import vision

    command.check_fields(cfg, {"workers": (0, 4096)})
    have = [envs.task_name(path.stem) for path in sorted(cfg.folder.glob("*.safetensors"))]
    asked = envs.select(cfg.tasks) if cfg.tasks else [name for name in have if ":" not in name]
    missing = [name for name in asked if name not in have]
    if missing or not asked:
        raise FileNotFoundError(f"no demonstrations of {', '.join(missing) or 'any task'} in {cfg.folder}")
    command.try_folder(cfg.folder / "features")
    weights = vision.load(cfg.encoder, cfg.image_weights, cfg.device).weights
    features = f"{cfg.encoder} {weights} {cfg.frames}"
    words = (cfg.folder, features, cfg.image_weights, cfg.workers, cfg.device)
    failed = demo_features.make_all(asked, *words)
    print(f"{len(asked) - len(failed)} tasks have features of {features} in {cfg.folder / 'features'}")
    if failed:
        raise ValueError("; ".join(f"{task}: {why}" for task, why in failed.items()))


def main_check(cfg: Check) -> None:
    command.check_fields(cfg, {"workers": (0, 4096)})
    paths = sorted(cfg.folder.glob("*.safetensors"))
    if not paths:
        raise FileNotFoundError(f"no demonstrations in {cfg.folder}")
    named = [place(cfg.folder, task) for task in envs.select(cfg.tasks)] if cfg.tasks else []
    own = [path for path in paths if ":" in envs.task_name(path.stem) and path not in named]
    if own:
        foreign = ", ".join(envs.task_name(path.stem) for path in own)
        print(f"not played, since that runs their code: {foreign}; name them with --tasks")
        paths = [path for path in paths if path not in own]
    found = in_processes(replay, paths, cfg.workers, "check")
    wrong = [f"{path.stem}: {what}" for path, what in zip(paths, found, strict=True) if what]
    print("\n".join([*wrong, f"{len(paths)} tasks played again, {len(wrong)} differ"]))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    import demos  # by its own name: worker processes import what they are asked to run

    mains = {demos.Make: demos.main_make, demos.List: demos.main_list, demos.Play: demos.main_play}
    mains |= {demos.Check: demos.main_check, demos.Pack: demos.main_pack, demos.Features: demos.main_features}
    choice = demos.Make | demos.List | demos.Play | demos.Check | demos.Pack | demos.Features
    given = command.start(tyro.cli, tyro.conf.OmitSubcommandPrefixes[choice])
    command.run(mains[type(given)], given)
