"""Look at the tasks: list, check, draw and play them, by `python -m envs`; time them, by `python bench.py envs`.

    python -m envs                                    the table: suite, sizes, length, assets, instruction
    python -m envs --check all                        one random episode of all 228 tasks, against the contract
    python -m envs --gallery tasks.png                a labelled picture of every training task
    python -m envs --play walker-walk --out walk.mp4  a film of a random policy
    python -m envs --random FILE.csv                  what chance and doing nothing are worth, every task
Test: pytest tests/test_tasks.py
"""

import csv
import multiprocessing
import textwrap
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import machine

import numpy as np
import psutil
from tqdm import tqdm

import command
import envs
from envs.atari import stick
from envs.vector import end_with_parent, light_spawn


@dataclass(frozen=True)
class Cli:
    """List, check, draw and play the tasks. Without options: the table."""

    tasks: str = "all,heldout"
    """tasks of the table"""
    check: str = ""
    """run one random episode of each of these against the contract of envs/__init__.py; all: held-out ones, too"""
    gallery: Path | None = None
    """draw the training tasks on one labelled sheet (PNG)"""
    play: str = ""
    """write a film of one episode of this task"""
    policy: Literal["random", "zero"] = "random"
    """who acts in --play"""
    out: Path = Path("play.mp4")
    """file of --play"""
    random: Path | None = None
    """write return, score and success of 20 episodes with random and 5 with zero actions, per task (CSV)"""
    seed: int = 0
    """of the start and the random actions"""
    workers: int = 0
    """processes of --check, --gallery and --random; 0: one per core"""
    require_real_assets: bool = False
    """refuse tasks whose assets are stand-ins here, with the command that downloads the real ones"""


def actions(env, policy: str, seed: int, steps: int) -> np.ndarray:
    """(steps, A) float32."""
    shape = (steps, *env.action_space.shape)
    draw = np.random.default_rng(seed).uniform(-1, 1, shape)
    return (draw if policy == "random" else np.zeros(shape)).astype(np.float32)


def in_processes(call: Callable, names: list[str], workers: int, title: str) -> Iterator:
    """call(name) for each in fresh processes (simulators don't survive a fork), in order, with a bar."""
    context = multiprocessing.get_context("spawn")
    with light_spawn(), ProcessPoolExecutor(workers or machine.cores(), context, end_with_parent) as pool:
        yield from tqdm(pool.map(call, names), total=len(names), desc=title, unit="task", disable=None)


def check_task(name: str, seed: int = 0) -> tuple[str, list[str]]:
    """One random episode -> (a line to print, what broke the contract)."""
    row, problems, start = envs.TASKS[name], [], time.perf_counter()

    def require(condition: bool, what: str) -> None:
        if not condition and what not in problems:
            problems.append(what)

    try:
        env = envs.make(name, seed)
        made = time.perf_counter() - start
        require(env.observation_space.shape == (row.obs_dim,), f"obs {env.observation_space.shape}, not {row.obs_dim}")
        require(env.action_space.shape == (row.action_dim,), f"action {env.action_space.shape}, not {row.action_dim}")
        obs, info = env.reset(seed=seed)
        start, total, asset, own = time.perf_counter(), 0.0, info.get("asset", ""), ":" in name
        for t, action in enumerate(actions(env, "random", seed, row.episode_length), start=1):
            require(obs.dtype == np.float32 and obs.shape == (row.obs_dim,), "obs has another shape or type")
            obs, reward, terminated, truncated, info = env.step(action)
            total += reward
            require(bool(np.isfinite(obs).all()), "obs is not finite")
            require(bool(np.isfinite(reward)), "reward is not finite")
            require(0 <= info["score"] <= 1 or own and np.isnan(info["score"]), f"score {info['score']}")
            require(info["success"] in (0.0, 1.0) or own and np.isnan(info["success"]), f"success {info['success']}")
            require(own or not terminated, "it terminated")
            over = bool(terminated or truncated)
            require(over == (t == row.episode_length) or own and over, f"truncated {truncated} at step {t}")
            if over:
                break
        env.close()
    except Exception as error:
        return f"{name:32} {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", ["it raised"]
    speed = t / (time.perf_counter() - start)
    score = f"{info['score']:.3f}".replace("nan", "-")
    line = (f"{name:32} {row.domain:14} obs {row.obs_dim:3} action {row.action_dim:2} length {t:4}  "
            f"return {total:10.2f} score {score}  {speed:6.0f} steps/s, made in {made:.2f} s {asset}"
            ).rstrip()  # fmt: skip
    return line + "".join(f"\n    FAILED: {problem}" for problem in problems), problems


def check(names: list[str], workers: int) -> bool:
    failed = []
    for name, (line, problems) in zip(names, in_processes(check_task, names, workers, "check"), strict=True):
        tqdm.write(line)
        if problems:
            failed.append(name)
    print(f"{len(names)} tasks, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    return not failed


def picture(name: str) -> np.ndarray | str:
    """A frame from the middle of a random episode, or why there is none."""
    try:
        env = envs.make(name, 0, render_mode="rgb_array")
        env.reset(seed=0)
        # Early enough that a robot that falls is still there, late enough that an arcade game has begun.
        for action in actions(env, "random", 0, {"atari": 150, "miniarcade": 60}.get(envs.TASKS[name].domain, 12)):
            *_, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                break
        frame = env.render()
        env.close()
        return frame
    except (RuntimeError, ImportError) as error:
        return str(error)


def gallery(names: list[str], path: Path, workers: int, columns: int = 20, size: int = 112) -> None:
    """One cell per task, its name below. Written with a palette of 256 colours, or it would be three times as large."""
    from PIL import Image, ImageDraw

    rows, height = -(-len(names) // columns), size + 26
    sheet = Image.new("RGB", (columns * (size + 4), rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    pictures = zip(names, in_processes(picture, names, workers, "gallery"), strict=True)
    for i, (name, frame) in enumerate(pictures):
        x, y = i % columns * (size + 4) + 2, i // columns * height
        if isinstance(frame, str):
            draw.rectangle((x, y, x + size - 1, y + size - 1), fill="#e8e8e8")
            draw.multiline_text((x + 3, y + 3), "\n".join(textwrap.wrap(frame, 18)[:7]), "black", font_size=10)
        else:
            sheet.paste(Image.fromarray(frame).resize((size, size), Image.Resampling.LANCZOS), (x, y))
        label = "\n".join(textwrap.wrap(name.removeprefix("pygame-"), 20)[:2])
        draw.multiline_text((x, y + size + 1), label, "black", font_size=10, spacing=0)
    sheet.quantize(256).save(path, optimize=True)
    print(f"{len(names)} tasks: {path}, {path.stat().st_size / 1e6:.2f} MB")


def film(env, acts: np.ndarray, path: Path) -> dict:
    """Write what these actions (T, A) do from where the environment is, or as many as it takes -> the last info."""
    import imageio.v2 as imageio

    # macro_block_size 1: 224 is a multiple of 16, so players are happy without imageio resizing the picture.
    with imageio.get_writer(path, fps=env.metadata["render_fps"], macro_block_size=1) as writer:
        writer.append_data(env.render())
        for action in tqdm(acts, desc=env.name, unit="step", disable=None):
            *_, terminated, truncated, info = env.step(action)
            writer.append_data(env.render())
            if terminated or truncated:
                break
    return info


def play(name: str, path: Path, policy: str, seed: int) -> None:
    env = envs.make(name, seed, render_mode="rgb_array")
    env.reset(seed=seed)
    info = film(env, actions(env, policy, seed, envs.TASKS[name].episode_length), path)
    env.close()
    print(f"{path}: " + f"score {info['score']:.3f}".replace("nan", "-"))


EPISODES = {"random": 20, "zero": 5}  # of --random


def baseline(name: str) -> list[dict]:
    """Two rows: mean and standard deviation (over the episodes, divisor n) of a random policy and of zero actions."""
    env, rows = envs.make(name), []
    for policy, episodes in EPISODES.items():
        ends = []
        for episode in range(episodes):
            env.reset(seed=episode)
            total = 0.0
            for action in actions(env, policy, episode, envs.TASKS[name].episode_length):
                _, reward, terminated, truncated, info = env.step(action)
                total += reward
                if terminated or truncated:
                    break
            ends.append((total, info["score"], info["success"]))
        row = {"task": envs.label(name), "suite": envs.TASKS[name].domain, "policy": policy, "episodes": episodes}
        for word, values in zip(("return", "score", "success"), zip(*ends, strict=True), strict=True):
            row |= {f"{word}_mean": f"{np.mean(values):.4f}", f"{word}_sd": f"{np.std(values):.4f}"}
        rows.append(row)
    env.close()
    return rows


def baselines(names: list[str], path: Path, workers: int) -> None:
    rows = [row for pair in in_processes(baseline, names, workers, "random") for row in pair]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for policy in EPISODES:
        mean = np.mean([float(row["score_mean"]) for row in rows if row["policy"] == policy])
        print(f"{policy:7} mean score {mean:.3f} over {len(names)} tasks")
    print(path)


def _gymnasium_step(env, action) -> None:
    """The step of the class that ours is a subclass of, in our world."""
    package = next(c for c in type(env).__mro__ if c.__module__.startswith("gymnasium.envs.box2d"))
    package.step(env, action)


def _emulator_step(env, action) -> None:
    word, deflection = stick(action)
    for _ in range(env._repeat):
        env._ale.act(env._ale_py.Action.__members__[word], deflection)
    env._ale.getRAM()


# What one agent step of the task costs in its package alone: the same simulator calls, without observation, reward,
# score and checks of ours. `env` is the adapter, of which only the simulator inside is used. MiniArcade has no package.
PACKAGE_STEP = {
    "dmcontrol": lambda env, a: [env._env.step(env._low + env._scale * (a + 1)) for _ in range(env._repeat)],
    "metaworld": lambda env, a: [env._env.step(a) for _ in range(env._repeat)],
    "mujoco": lambda env, a: [env._env.step(a) for _ in range(env._repeat)],
    "ogbench": lambda env, a: [env._body.step(a) for _ in range(env._repeat)],
    "robodesk": lambda env, a: env._env.step(a),
    "maniskill": lambda env, a: [env._sim.step(a) for _ in range(env._repeat)],
    "box2d": lambda env, a: [_gymnasium_step(env._env, a) for _ in range(env._repeat)],
    "atari": _emulator_step,
}
PACKAGE_STEP["dmcontrol-ext"] = PACKAGE_STEP["dmcontrol"]


def steps_per_second(env, calls: list[Callable], steps: int) -> list[float]:
    """Of each call, per second of processor time: the best of at least five turns and two seconds.

    The calls take turns, and the best counts, as what disturbs a measurement only makes it slower.
    """
    drawn, best, rounds, spent = actions(env, "random", 0, steps), [np.inf] * len(calls), 0, 0.0
    while rounds < 5 or spent < 2:
        for i, step in enumerate(calls):
            env.reset(seed=0)
            start = time.process_time()
            for action in drawn:
                step(action)
            seconds = time.process_time() - start
            best[i], spent = min(best[i], seconds), spent + seconds
        rounds += 1
    return [steps / seconds for seconds in best]


def time_suite(names: list[str], steps: int, queue) -> None:
    """In a child: one line per task, then the memory that the suite took."""
    warnings.simplefilter("ignore")
    process, kept = psutil.Process(), []
    before = process.memory_info().rss
    for name in names:
        row = envs.TASKS[name]
        start = time.perf_counter()
        env = envs.make(name)
        made = time.perf_counter() - start
        n = min(steps, row.episode_length)
        package = PACKAGE_STEP.get(row.domain)
        alone = [lambda a, env=env, package=package: package(env, a)] if package else []

        def step_on(action, env=env) -> None:  # own tasks may end before the steps do
            *_, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

        ours, *theirs = steps_per_second(env, [step_on if ":" in name else env.step, *alone], n)
        cost = f"package alone {theirs[0]:7.0f} /s, wrapping costs {theirs[0] / ours - 1:4.0%}" if theirs else ""
        queue.put(f"{name:32} {ours:7.0f} /s   made in {made:5.2f} s   {cost}".rstrip())
        kept.append(env)
    grown = (process.memory_info().rss - before) / 2**20
    queue.put(f"{row.domain}: {grown:.0f} MiB for {len(names)} environments and their simulator\n")
    queue.put(None)


def table(names: list[str]) -> None:
    for name in names:
        row = envs.TASKS[name]
        kind = "" if not row.needs_download else "real" if envs.label(name) == name else "stand-in"
        print(f"{name:32} {row.domain:14} obs {row.obs_dim:3} action {row.action_dim:2} length {row.episode_length:4} "
              f"{row.split:8}{kind:9} {row.instruction}")  # fmt: skip


def main(cfg: Cli) -> None:
    command.check_fields(cfg, {"seed": (0, 2**32 - 1), "workers": (0, 4096)})
    envs.require_real_assets(cfg.require_real_assets)
    if cfg.check:
        names = envs.select("all,heldout" if cfg.check == "all" else cfg.check)
        raise SystemExit(0 if check(names, cfg.workers) else 1)
    for path in (cfg.gallery, cfg.random, cfg.play and cfg.out):
        if path:
            command.try_file(path)
    if cfg.gallery:
        gallery(envs.select(cfg.tasks if cfg.tasks != Cli.tasks else "all"), cfg.gallery, cfg.workers)
    elif cfg.random:
        baselines(envs.select(cfg.tasks), cfg.random, cfg.workers)
    elif cfg.play:
        if len(names := envs.select(cfg.play)) > 1:
            raise ValueError(f"--play films one task, not {len(names)}")
        play(names[0], cfg.out, cfg.policy, cfg.seed)
    else:
        table(envs.select(cfg.tasks))
