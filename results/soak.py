"""Train on many tasks while a random simulator process is killed every minute: does anything leak or get lost?

    python results/soak.py --minutes 30                          -> results/soak.png, and what it found, as text

Runs train.py on all 200 tasks without demonstrations, watches the resident memory of the learner, and ends it with
SIGTERM. Then the books must balance: episodes stored, by the buffer's count of all that were ever added, are those that
finished; those dropped are as many as the simulators reported when they were lost; and each task has finished as many
as its steps allow, less at most one for each that it lost. The replay buffer is small: it must be full, and evict,
before a third of the time is over, since memory that is written for the first time counts as growth.
"""

import json
import random
import re
import signal
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import safetensors
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import envs
import run_folder

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Soak:
    """Kill a random simulator process every minute and watch the learner."""

    minutes: float = 30
    """from the first step online"""
    tasks: str = "all"
    """which ones"""
    folder: Path = Path("runs/soak")
    """of the run; must not hold one"""
    every: float = 60
    """seconds between kills"""


def main(cfg: Soak) -> None:
    words = f"--tasks {cfg.tasks} --folder {cfg.folder} --preset laptop --demos none --seed-episodes 1 --utd 0.02 "
    words += "--steps 1000000 --eval-every 1000000 --final-episodes 1 --log-every 10 --num-samples 16 --num-elites 4 "
    words += "--num-pi 2 --iterations 1 --buffer-steps 20000"
    said = tempfile.TemporaryFile("w+")  # not a pipe: a full one would stop the training
    training = psutil.Popen([sys.executable, ROOT / "train.py", *words.split()], stderr=said)
    try:
        kills, seen = torment(training, cfg)
        training.send_signal(signal.SIGTERM)
        assert training.wait(600) == 128 + signal.SIGTERM, words_of(said)[-1000:]
    finally:
        if training.poll() is None:
            training.kill()  # its simulators end with it

    newest = run_folder.complete(cfg.folder)[-1]
    with safetensors.safe_open(newest / "rank-0.safetensors", "pt") as file:
        own = json.loads(file.metadata()["newt_rank"])
    tasks = envs.select(cfg.tasks)
    finished, dropped = ({name: own[what].get(name, 0) for name in tasks} for what in ("episodes", "dropped"))
    reported = sum(map(int, re.findall(r"; (\d+) unfinished episodes? dropped", words_of(said))))
    steps = int(newest.name) // len(tasks)
    allowed = {name: steps // envs.TASKS[name].episode_length for name in tasks}
    minutes, memory = np.array(seen).T
    late = minutes > minutes[-1] * 1 / 3  # the last 20 of 30 minutes
    lines = [line for line in map(json.loads, (cfg.folder / "metrics.jsonl").open()) if "train/updates" in line]
    grown = np.median(memory[late][-20:]) / np.median(memory[late][:20]) - 1
    print(f"{kills} workers killed in {cfg.minutes:g} minutes; {steps} steps of {len(tasks)} tasks, "
          f"{lines[-1]['train/updates']:.0f} updates")  # fmt: skip
    print(f"episodes finished {sum(finished.values())}, stored {own['buffer_episodes']}; "
          f"dropped {sum(dropped.values())}, reported {reported}; "
          f"had nothing been lost: {sum(allowed.values())} finished")  # fmt: skip
    print(f"learner {memory[late][0]:.0f} MB after a third of the time, {memory[-1]:.0f} MB at the end: {grown:+.1%}")
    draw(minutes, memory, Path(__file__).with_name("soak.png"))
    assert sum(finished.values()) == own["buffer_episodes"] and sum(dropped.values()) == reported > 0
    assert all(allowed[name] - dropped[name] <= finished[name] <= allowed[name] for name in tasks)
    assert grown < 0.02


def torment(training: psutil.Popen, cfg: Soak) -> tuple[int, list[tuple[float, float]]]:
    """Kill workers until the time is over -> how many; [(minutes, resident MB of the learner)]."""
    while not (cfg.folder / "checkpoints" / "0").exists() or not workers_of(training):  # the random policy first
        if training.poll() is not None:
            raise RuntimeError("the training ended before its first step; run it alone to see why")
        time.sleep(1)
    begin, kills, seen = time.monotonic(), 0, []
    with tqdm(total=int(cfg.minutes * 60), unit="s", desc="soak", disable=None) as bar:
        while (now := time.monotonic() - begin) < cfg.minutes * 60:
            if now > (kills + 1) * cfg.every and (workers := workers_of(training)):
                random.choice(workers).kill()
                kills += 1
            seen.append((now / 60, training.memory_info().rss / 1e6))
            bar.update(int(now) - bar.n)
            time.sleep(5)
    return kills, seen


def words_of(file) -> str:
    file.seek(0)
    return file.read()


def workers_of(training: psutil.Process) -> list[psutil.Process]:
    """Python's spawned processes, less its own resource tracker."""
    found = []
    for child in training.children():
        with suppress(psutil.NoSuchProcess):  # it ended just now
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child)
    return found


def draw(minutes: np.ndarray, memory: np.ndarray, path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 2.5), layout="constrained")
    axis.plot(minutes, memory)
    axis.set(xlabel="minutes, one worker killed in each", ylabel="learner, MB", ylim=(0, None))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Soak))
