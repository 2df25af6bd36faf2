"""Signals and faults in a run: nothing hangs, nothing is damaged, no process is left, and it goes on.

Run: pytest tests/test_faults.py        (about a minute on one core; with -m slow, killed at five random moments)
"""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from test_train import SMALL, assert_same_run, command, wait_for

import checkpoint
import run_folder
from command import Interruption
from distributed import World

SHORT = [*SMALL, "--folder", "cut", "--final-episodes", "1"]


def start(folder: Path, *words: str) -> subprocess.Popen:
    """A run in a process group of its own, as a shell starts it, with Ctrl-C on (it is off in background jobs)."""
    options = command(folder, *words)
    on = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with open(folder / "site" / "sitecustomize.py", "a") as file:
        file.write(on)
    return subprocess.Popen(**options, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def no_process_left(group: int) -> bool:
    """Also none that waits to be collected by init, which may take a moment."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def resumable(run: Path, folder: Path, *words: str) -> bool:
    return subprocess.run(**command(folder, "--resume", run.name, *words), capture_output=True).returncode == 0


@pytest.mark.parametrize("number, moment", [
    (signal.SIGTERM, "online"), (signal.SIGINT, "pretraining"), (signal.SIGINT, "twice"),
])  # fmt: skip
def test_signals_write_a_checkpoint(number, moment, tmp_path):
    online = moment == "online"
    words = "--pretrain-updates 2 --steps 5000 --eval-every 5000" if online else "--pretrain-updates 100000"
    process = start(tmp_path, *SHORT, *words.split())
    run, log = tmp_path / "cut", tmp_path / "cut" / "metrics.jsonl"
    if online:
        wait_for(process, lambda: log.is_file() and "train/updates" in log.read_text())
    else:
        wait_for(process, lambda: (run / "checkpoints" / "pretrain-8").exists())
    before = {path.name for path in run_folder.complete(run)}
    os.killpg(process.pid, number)  # as a terminal does: to the program and to its workers
    if moment == "twice":
        time.sleep(0.02)
        os.killpg(process.pid, number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number and no_process_left(process.pid)
    assert "Traceback" not in errors
    if moment != "twice":  # the second one may come before the checkpoint or after it
        assert "stopping after this step" in errors and "go on with: python train.py --resume cut" in errors
    own = checkpoint.Own(torch.Generator(), torch.Generator())
    _, state = checkpoint.load(run, torch.device("cpu"), own, World())
    assert state.phase == ("online" if online else "pretrain")
    if online:
        assert {path.name for path in run_folder.complete(run)} - before and state.vector_step > 100
        assert resumable(run, tmp_path, "--steps", str(state.vector_step + 50))
    else:
        assert state.updates > 4


def test_a_closed_terminal_asks_for_a_checkpoint(monkeypatch):
    """As SIGTERM does, though nothing can be printed any more; but not under nohup."""
    if not hasattr(signal, "SIGHUP"):
        return  # Windows
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        interruption = Interruption()
        monkeypatch.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "no terminal")))
        with interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interruption.code == 129
            with pytest.raises(SystemExit):
                os.kill(os.getpid(), signal.SIGHUP)
                time.sleep(1)
        interruption.restore()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        interruption = Interruption()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        interruption.restore()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_full_disk(tmp_path):
    """No file may grow beyond 4 MB: the checkpoint that doesn't fit is the only thing that is lost."""
    import resource

    options = command(tmp_path, *SHORT, "--steps", "100")
    limit = (4_000_000, resource.RLIM_INFINITY)  # the weights fit (3 MB), the optimisers (5 MB after updates) do not
    done = subprocess.run(
        **options, capture_output=True, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    )
    run = tmp_path / "cut"
    assert done.returncode == 2, done.stderr
    error = done.stderr.strip().splitlines()[-1]
    assert error.startswith("error: can't write") and "pretrain-0 is kept" in error and "--resume cut" in error
    assert [path.name for path in run_folder.complete(run)] == ["pretrain-0"]
    assert not [path for path in run.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert resumable(run, tmp_path)


def test_training_goes_on_when_simulators_are_lost(tmp_path):
    process = start(tmp_path, *SHORT, "--steps", "500", "--eval-every", "500")
    run, log = tmp_path / "cut", tmp_path / "cut" / "metrics.jsonl"
    wait_for(process, lambda: log.is_file() and "train/updates" in log.read_text())
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    workers = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and no_process_left(process.pid), errors
    assert "no task at fault: a worker process died" in errors or "mw-reach: a worker process died" in errors
    assert [path.name for path in run_folder.complete(run)][-1] == "500"
    assert '"train/mw-reach/dropped": 1' in log.read_text()


FRAGILE = """
from pathlib import Path
import gymnasium as gym
import numpy as np

class Fragile(gym.Env):
    episode_length = 200
    observation_space = gym.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.t += 1
        if self.t == 150 and Path("cut/checkpoints/0").exists() and not Path("failed").exists():
            Path("failed").touch()
            raise ArithmeticError("the simulator exploded")
        return np.full(3, self.t / 200, np.float32), 1.0, False, False, {}

def make(render_mode=None):
    return Fragile()
"""


def test_a_lost_first_episode_does_not_hold_up_learning(tmp_path):
    """One task finishes episodes of 100 steps; the other loses its first in step 150, and its second lasts on."""
    words = "--tasks mw-reach,fragile:make --demos none --steps 300 --eval-every 300".split()
    options = command(tmp_path, *SHORT, *words)
    (tmp_path / "site" / "fragile.py").write_text(FRAGILE)
    done = subprocess.run(**options, capture_output=True)
    assert done.returncode == 0 and "fragile:make: ArithmeticError: the simulator exploded" in done.stderr, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    updates = [(line["step"], line["train/updates"]) for line in lines if "train/updates" in line]
    assert 2 * 150 <= updates[0][0] < 2 * 175
    assert updates[-1][1] == 30  # a tenth of the 2 * 150 steps that were left


# ---- killed at any moment

FOUR = (
    "--preset laptop --tasks mw-reach,pygame-landing,ms-push-cube,og-point-arena,mujoco-reacher --demo-episodes 2 "
    "--pretrain-updates 40 --checkpoint-updates 10 --steps 900 --seed-episodes 1 --eval-every 200 --eval-episodes 1 "
    "--final-episodes 1 --log-every 5 --utd 0.05 --batch-size 16 --num-samples 16 --num-elites 4 --num-pi 2 "
    "--iterations 2 --buffer-steps 3000 --workers 2"
).split()


@pytest.mark.slow
def test_killed_at_five_random_moments(tmp_path):
    """The whole process group, five times in one run, once while a checkpoint is being written; five suites."""
    whole, cut, random = tmp_path / "whole", tmp_path / "cut", np.random.default_rng(0)
    begin = time.monotonic()
    done = subprocess.run(**command(tmp_path, *FOUR, "--folder", "whole"), capture_output=True)
    took = time.monotonic() - begin
    assert done.returncode == 0, done.stderr
    kills, words = 0, [*FOUR, "--folder", "cut"]
    while kills < 5:
        before = set((cut / "checkpoints").glob(".*"))
        process = start(tmp_path, *words)
        if kills == 2:  # a hidden folder is a checkpoint in the making
            wait_for(process, lambda before=before: set((cut / "checkpoints").glob(".*")) - before, 300)
        else:
            time.sleep(random.uniform(0.2, 0.35) * took)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"
        kills += 1
        if (cut / "config.json").is_file():
            words = ["--resume", "cut"]
    done = subprocess.run(**command(tmp_path, *words), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert_same_run(cut, whole)
