"""Train on many tasks while a random simulator process is killed every minute: does anything leak or get lost?

    python results/soak.py --minutes 30                          -> results/soak.png, and what it found, as text

Runs train.py on all 200 tasks without demonstrations, watches the resident memory of the learner, and ends it with
SIGTERM. The checkpoint that this writes must hold exactly the episodes that ended: the counters of finished episodes,
which the loop keeps, against the buffer's own, which also counts what was evicted. Lost ones are counted beside them.
"""

import json
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import psutil
import safetensors
import tyro
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent))
import checkpoint

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
    words += "--num-pi 2 --iterations 1 --buffer-steps 200000"
    said = tempfile.TemporaryFile("w+")  # not a pipe: a full one would stop the training
    training = psutil.Popen([sys.executable, ROOT / "train.py", *words.split()], stderr=said)
    log = cfg.folder / "metrics.jsonl"
    while not (cfg.folder / "checkpoints" / "0").exists() or len(workers_of(training)) == 0:  # the random policy first
        if training.poll() is not None:
            raise RuntimeError(f"the training ended: {last_words(said)}")
        time.sleep(1)
    begin, kills, seen = time.monotonic(), 0, []
    with tqdm(total=int(cfg.minutes * 60), unit="s", desc="soak") as bar:
        while (now := time.monotonic() - begin) < cfg.minutes * 60:
            if now > (kills + 1) * cfg.every:
                random.choice(workers_of(training)).kill()
                kills += 1
            seen.append((now / 60, training.memory_info().rss / 1e6))
            bar.update(int(now) - bar.n)
            time.sleep(5)
    training.send_signal(signal.SIGTERM)
    assert training.wait(600) == 128 + signal.SIGTERM, last_words(said)

    newest = checkpoint.complete(cfg.folder)[-1]
    with safetensors.safe_open(newest / "rank-0.safetensors", "pt") as file:
        own = json.loads(file.metadata()["newt_rank"])
    finished, dropped = sum(own["episodes"].values()), sum(own["dropped"].values())
    minutes, memory = np.array(seen).T
    late = minutes > minutes[-1] * 1 / 3  # the last 20 of 30 minutes
    learned = [line for line in map(json.loads, log.open()) if "time/steps_per_s" in line]
    rates, updates = [line["time/steps_per_s"] for line in learned], max(line["train/updates"] for line in learned)
    grown = np.median(memory[late][-20:]) / np.median(memory[late][:20]) - 1
    print(
        f"{kills} workers killed in {cfg.minutes:g} minutes; {int(newest.name)} steps, {np.median(rates):.0f}/s, "
        f"{updates:.0f} updates"
    )
    print(f"episodes finished {finished}, stored {own['buffer_episodes']}, lost {dropped}")
    print(f"learner {memory[late][0]:.0f} MB after a third of the time, {memory[-1]:.0f} MB at the end: {grown:+.1%}")
    draw(minutes, memory, Path(__file__).with_name("soak.png"))
    assert finished == own["buffer_episodes"] and grown < 0.02


def last_words(file) -> str:
    file.seek(0)
    return file.read()[-1000:]


def workers_of(training: psutil.Process) -> list[psutil.Process]:
    """Python's spawned processes, less its own resource tracker."""
    return [child for child in training.children() if "spawn_main" in " ".join(child.cmdline())]


def draw(minutes: np.ndarray, memory: np.ndarray, path: Path) -> None:
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 2.5), layout="constrained")
    axis.plot(minutes, memory)
    axis.set(xlabel="minutes, one worker killed in each", ylabel="learner, MB", ylim=(0, None))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main(tyro.cli(Soak))
