"""envs/vector.py against a plain loop over the same environments; seeds, padding, failures, nothing left behind.

Run: pytest tests/test_vector.py        (about 20 seconds on one core)
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import envs
from envs import vector as vector_module
from envs.vector import Step, VectorEnv, episode_seed, share_out

ROOT = Path(envs.__path__[0]).parent


class Counter(gym.Env):
    """Obs: (clock, a number drawn at reset, last action); ends after `length` steps; the name says what goes wrong."""

    def __init__(self, name: str, seed: int):
        self.kind, length = name.split("-")
        if self.kind == "unmakeable":
            raise OSError("no such robot")
        self.length = int(length)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.drawn = 0, self.np_random.random()
        obs = [0, self.drawn, 0]
        if self.kind == "spy":  # what this process is like
            obs = ["torch" in sys.modules, os.environ["OMP_NUM_THREADS"] == "1", os.getpid()]
        return np.array(obs, np.float32), {"score": 0.0, "success": 0.0}

    def step(self, action):
        assert action.shape == (2,)
        self.t += 1
        if self.kind == "raises" and self.t == 2:
            raise ArithmeticError("the simulator exploded")
        if self.kind == "ends" and self.t == 2:  # the error that a closed pipe gives, too
            raise EOFError("no more data")
        if self.kind == "hangs" and self.t == 2:
            time.sleep(60)
        if self.kind == "slow":
            time.sleep(0.5)
        if self.kind == "dies" and self.t == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        obs = np.array([self.t, self.drawn, action[1]], np.float32)
        score = self.t / self.length
        return obs, float(10 * action[0]), False, self.t == self.length, {"score": score, "success": float(score == 1)}

    def render(self):
        return np.full((224, 224, 3), self.t, np.uint8)


def make(name, seed, render_mode=None):
    return Counter(name, seed)


def vector(tasks, seed=0, workers=None, **options) -> VectorEnv:
    return VectorEnv(tasks, seed, workers, 5, 4, make=make, **options)


def random_actions(steps, n, dims=4):
    return np.random.default_rng(1).uniform(-1, 1, (steps, n, dims)).astype(np.float32)


def defined_seed(seed, i, k):
    """Of environment i's k-th episode: written again here, so that the tests do not believe the program."""
    return int(np.random.SeedSequence([seed, i, k]).generate_state(1)[0])


def plain_loop(tasks, actions, seed, make_one, dims, first_episode=0):
    """The definition: step and reset each environment by itself. -> list of dicts of rows, one per step."""
    made = [make_one(task) for task in tasks]
    episode = [first_episode + 1] * len(tasks)
    obs = [env.reset(seed=defined_seed(seed, i, first_episode))[0] for i, env in enumerate(made)]
    steps = [obs]
    for action in actions:
        row = []
        for i, env in enumerate(made):
            final, reward, _, done, info = env.step(action[i, : dims[i]])
            after = final
            if done:
                after = env.reset(seed=defined_seed(seed, i, episode[i]))[0]
                episode[i] += 1
            row.append((after, reward, done, final, info["score"], info["success"]))
        steps.append(row)
    return steps


def test_seeds_are_as_defined():
    for triple in ((0, 0, 0), (7, 1, 2), (7, 2, 1)):
        assert episode_seed(*triple) == defined_seed(*triple)


def check(step: Step, row) -> None:
    for i, (obs, reward, done, final, score, success) in enumerate(row):
        np.testing.assert_array_equal(step.obs[i, : len(obs)], obs)
        np.testing.assert_array_equal(step.final_obs[i, : len(obs)], final)
        assert not step.obs[i, len(obs) :].any() and not step.final_obs[i, len(obs) :].any()  # padding
        assert step.reward[i] == np.float32(reward) and step.done[i] == done
        assert step.score[i] == np.float32(score) and step.success[i] == success
    numbers = (step.obs, step.final_obs, step.reward, step.score, step.success)
    assert step.done.dtype == bool and all(x.dtype == np.float32 for x in numbers)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_same_as_a_plain_loop_for_any_number_of_workers(workers):
    tasks = ["ok-3", "ok-5", "ok-3", "ok-1"]
    actions = random_actions(12, 4)
    expected = plain_loop(tasks, actions, 7, lambda task: Counter(task, 0), [2] * 4)
    with vector(tasks, seed=7, workers=workers) as v:
        obs = v.reset()
        np.testing.assert_array_equal(obs[:, :3], expected[0])
        assert obs.shape == (4, 5) and not obs[:, 3:].any()
        for action, row in zip(actions, expected[1:], strict=True):
            check(v.step(action), row)


@pytest.mark.parametrize("workers", [1, 2])
def test_same_as_a_plain_loop_for_real_tasks(workers):
    tasks = ["mw-drawer-open", "reacher-easy"]
    actions = random_actions(105, 2, 16)  # past the end of the Meta-World episode
    dims = [envs.TASKS[task].action_dim for task in tasks]
    expected = plain_loop(tasks, actions, 3, envs.make, dims)
    with VectorEnv(tasks, 3, workers) as v:
        obs = v.reset()
        for i, first in enumerate(expected[0]):
            np.testing.assert_array_equal(obs[i, : len(first)], first)
        for action, row in zip(actions, expected[1:], strict=True):
            check(v.step(action), row)


def test_reset_counts_episodes_from_where_it_is_told():
    with vector(["ok-2", "ok-2"], seed=5) as v:
        drawn = {k: v.reset(episode=k)[:, 1] for k in (0, 1, 9, 0)}
        assert len({float(x) for row in drawn.values() for x in row}) == 6
        v.reset()
        v.step(np.zeros((2, 4), np.float32))
        step = v.step(np.zeros((2, 4), np.float32))
        np.testing.assert_array_equal(step.obs[:, 1], drawn[1])  # the next episode after number 0
        np.testing.assert_array_equal(step.final_obs[:, 1], drawn[0])


def test_results_belong_to_the_caller():
    with vector(["ok-9"]) as v:
        obs = v.reset()
        first = v.step(np.ones((1, 4), np.float32))
        kept = [x.copy() for x in (obs, *first)]
        v.step(-np.ones((1, 4), np.float32))
        assert all(np.array_equal(a, b) for a, b in zip(kept, (obs, *first), strict=True))


def test_frames_come_from_the_right_environment():
    with vector(["ok-9", "ok-9", "ok-1"], workers=2) as v:
        v.reset()
        v.step(np.zeros((3, 4), np.float32))
        assert v.render(1).max() == 1 and v.render(2).max() == 0  # the third one has begun anew
        for i in (3, -1):
            with pytest.raises(ValueError, match=f"no environment {i}: they are 0 to 2"):
                v.render(i)


def test_work_is_shared_out_by_cost():
    tasks = ["mw-reach"] * 2 + ["walker-walk"] * 5
    shares = share_out(tasks, 2)
    assert sorted(sum(shares, [])) == list(range(7))
    assert sorted(len([i for i in share if i < 2]) for share in shares) == [1, 1]
    assert all(share == sorted(share) for share in shares)
    assert share_out(["walker-walk", "mw-reach", "cup-catch"], 2) == [[1], [0, 2]]  # the longest comes first
    assert share_out(["cup-catch"] * 5, 2) == [[0, 2, 4], [1, 3]]  # equal ones in their order


def test_learner_can_work_while_the_simulators_step():
    with vector(["slow-9"]) as v:
        v.reset()
        start = time.monotonic()
        v.send(np.full((1, 4), 0.5, np.float32))
        assert time.monotonic() - start < 0.3  # a step lasts 0.5 s
        assert v.recv().reward[0] == 5
        assert time.monotonic() - start >= 0.5


def test_workers_are_separate_processes_with_one_thread_each(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    main = sys.modules["__main__"]
    with vector(["spy-9", "spy-9", "spy-9"], workers=2) as v:
        torch, threads, pid = v.reset()[:, :3].T
        assert not torch.any() and threads.all()
        assert pid[0] == pid[2] != pid[1] and os.getpid() not in pid
    assert os.environ["OMP_NUM_THREADS"] == "7" and sys.modules["__main__"] is main  # as before


@pytest.mark.parametrize(
    "task, message",
    [("raises-9", "environment raises-9 failed:(.|\n)*the simulator exploded"), ("dies-9", "died.*dies-9"),
     ("ends-9", "ends-9 failed(.|\n)*no more data"), ("hangs-9", "no answer for 1 s from.*hangs-9"),
     ("unmakeable-9", "unmakeable-9 failed(.|\n)*no such robot")],
)  # fmt: skip
def test_failures_name_the_task_and_leave_nothing(task, message, monkeypatch):
    start, made = time.monotonic(), []

    class Memory(vector_module.SharedMemory):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            made.append(self.name)

    monkeypatch.setattr(vector_module, "SharedMemory", Memory)
    with pytest.raises(RuntimeError, match=message):
        # Building takes longer than a second: only the steps have to be quick.
        with vector([task, "ok-9"], workers=1, timeout_s=20) as v:  # the wrong one is not the last that was touched
            v._timeout_s = 1
            v.reset()
            processes = v._processes
            for _ in range(2):
                v.step(np.zeros((2, 4), np.float32))
    assert time.monotonic() - start < 15
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        vector_module.SharedMemory(*made)  # one was made, and it is gone
    if task != "unmakeable-9":
        assert not any(process.is_alive() for process in processes)
        with pytest.raises(RuntimeError, match="closed"):
            v.reset()


@pytest.mark.parametrize("while_stepping", [False, True])
def test_a_killed_worker_is_noticed_at_once(while_stepping):
    with vector(["slow-9", "ok-9", "ok-8"], workers=3, timeout_s=30) as v:
        v.reset()
        if while_stepping:
            v.send(np.zeros((3, 4), np.float32))
        os.kill(v._processes[0].pid, signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"died \(exit code -9\), with the environments of slow-9$"):
            v.recv() if while_stepping else v.step(np.zeros((3, 4), np.float32))
        assert time.monotonic() - start < 5


@pytest.fixture
def ctrl_c_on():
    """As in a terminal: a shell's background job (`pytest &`) starts with Ctrl-C turned off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_after_ctrl_c_no_answer_belongs_to_another_question(ctrl_c_on):
    with vector(["slow-9"]) as v:
        v.reset()
        v.send(np.zeros((1, 4), np.float32))
        ctrl_c = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        ctrl_c.start()
        with pytest.raises(KeyboardInterrupt):
            v.recv()
        with pytest.raises(RuntimeError, match="closed"):
            v.reset()


def test_misuse():
    with vector(["ok-9"]) as v:
        v.reset()
        with pytest.raises(RuntimeError, match="send.. must come before"):
            v.recv()
        with pytest.raises(ValueError, match=r"shape \(1, 4\), got \(1, 2\)"):
            v.send(np.zeros((1, 2), np.float32))
        with pytest.raises(ValueError, match=r"environment 0 \(ok-9\) is not finite"):
            v.send(np.full((1, 4), np.nan, np.float32))
        v.send(np.zeros((1, 4), np.float32))
        for call in (v.reset, lambda: v.send(np.zeros((1, 4), np.float32))):
            with pytest.raises(RuntimeError, match="recv.. must follow"):
                call()
        v.recv()
    v.close()  # a second time
    for call in (v.reset, v.recv, lambda: v.send(np.zeros((1, 4), np.float32)), lambda: v.render(0)):
        with pytest.raises(RuntimeError, match="closed"):
            call()
    with pytest.raises(ValueError, match="function of a module"):
        VectorEnv(["ok-9"], 0, make=lambda name, seed, render_mode: Counter(name, seed))
    with pytest.raises(ValueError, match="at least one task"):
        vector([])
    with pytest.raises(ValueError, match="0 workers"):
        vector(["ok-9"], workers=0)
    with pytest.raises(RuntimeError, match="more than"):
        VectorEnv(["ok-9"], 0, 1, 2, 4, make=make)


# What a user starts: it imports torch and steps slow environments, so that it is always stopped halfway through a step.
PROGRAM = """
import signal, sys, time
assert __name__ == "__main__", "the program was imported again by a worker"
signal.signal(signal.SIGINT, signal.default_int_handler)  # off in a shell's background jobs (`pytest &`)
import torch
import numpy as np
from envs.vector import VectorEnv
from test_vector import make
v = VectorEnv(["slow-999", "spy-9"], 0, 2, 5, 4, make=make)
torch_loaded = int(v.reset()[1, 0])
v.send(np.zeros((2, 4), np.float32))
print(torch_loaded, v._memory.name, *(process.pid for process in v._processes), flush=True)
if "return" not in sys.argv:
    while True:
        v.recv()
        v.send(np.zeros((2, 4), np.float32))
"""


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"  # not reaped


@pytest.mark.parametrize("how", ["ctrl-c", "kill", "return"])
def test_workers_are_light_and_end_with_the_program(how, tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", how], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": path}, start_new_session=True,
    )  # fmt: skip
    torch_loaded, memory, *workers = process.stdout.readline().split()
    assert torch_loaded == "0" and len(workers) == 2
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and to its workers
    if how == "kill":
        process.kill()
    _, errors = process.communicate(timeout=20)  # ends when the last process that could write has ended
    assert errors.count("Traceback") == (how == "ctrl-c") and "leaked" not in errors  # workers have nothing to say
    end = time.monotonic() + 10
    while not all(gone(int(pid)) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(gone(int(pid)) for pid in workers)
    with pytest.raises(FileNotFoundError):
        vector_module.SharedMemory(memory)
