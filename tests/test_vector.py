"""envs/vector.py against a plain loop over the same environments; seeds, padding, failures, nothing left behind.

Run: pytest tests/test_vector.py        (about 40 seconds on one core)
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import envs
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
        return np.array([0, self.drawn, 0], np.float32), {"score": 0.0, "success": 0.0}

    def step(self, action):
        assert action.shape == (2,)
        self.t += 1
        if self.kind == "raises" and self.t == 2:
            raise ArithmeticError("the simulator exploded")
        if self.kind == "hangs" and self.t == 2:
            time.sleep(60)
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


def plain_loop(tasks, actions, seed, make_one, dims, first_episode=0):
    """The definition: step and reset each environment by itself. -> list of dicts of rows, one per step."""
    made = [make_one(task) for task in tasks]
    episode = [first_episode + 1] * len(tasks)
    obs = [env.reset(seed=episode_seed(seed, i, first_episode))[0] for i, env in enumerate(made)]
    steps = [obs]
    for action in actions:
        row = []
        for i, env in enumerate(made):
            final, reward, _, done, info = env.step(action[i, : dims[i]])
            after = final
            if done:
                after = env.reset(seed=episode_seed(seed, i, episode[i]))[0]
                episode[i] += 1
            row.append((after, reward, done, final, info["score"], info["success"]))
        steps.append(row)
    return steps


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
        for action, row in zip(actions, expected[1:], strict=True):
            check(v.step(action), row)


def test_same_as_a_plain_loop_for_real_tasks():
    tasks = ["mw-drawer-open", "reacher-easy"]
    actions = random_actions(105, 2, 16)  # past the end of the Meta-World episode
    dims = [envs.TASKS[task].action_dim for task in tasks]
    expected = plain_loop(tasks, actions, 3, envs.make, dims)
    with VectorEnv(tasks, 3, 2) as v:
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


def test_work_is_shared_out_by_cost():
    tasks = ["mw-reach"] * 2 + ["walker-walk"] * 5
    shares = share_out(tasks, 2)
    assert sorted(sum(shares, [])) == list(range(7))
    assert sorted(len([i for i in share if i < 2]) for share in shares) == [1, 1]
    assert all(share == sorted(share) for share in shares)


def test_learner_can_work_while_the_simulators_step():
    with vector(["ok-9"]) as v:
        v.reset()
        v.send(np.full((1, 4), 0.5, np.float32))
        assert v.recv().reward[0] == 5


@pytest.mark.parametrize(
    "task, message",
    [("raises-9", "environment raises-9 failed:(.|\n)*the simulator exploded"), ("dies-9", "died.*dies-9"),
     ("hangs-9", "no answer for 1 s from.*hangs-9"), ("unmakeable-9", "unmakeable-9 failed(.|\n)*no such robot")],
)  # fmt: skip
def test_failures_name_the_task_and_leave_nothing(task, message):
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=message):
        # Building takes longer than a second: only the steps have to be quick.
        with vector(["ok-9", task], workers=2, timeout_s=20) as v:
            v._timeout_s = 1
            v.reset()
            processes, memory = v._processes, v._memory.name
            for _ in range(2):
                v.step(np.zeros((2, 4), np.float32))
    assert time.monotonic() - start < 15
    if task != "unmakeable-9":
        assert not any(process.is_alive() for process in processes)
        assert not Path(f"/dev/shm/{memory}").exists()
        with pytest.raises(RuntimeError, match="closed"):
            v.reset()


def test_misuse():
    with vector(["ok-9"]) as v:
        v.reset()
        with pytest.raises(RuntimeError, match="send.. must come before"):
            v.recv()
        with pytest.raises(ValueError, match=r"shape \(1, 4\), got \(1, 2\)"):
            v.send(np.zeros((1, 2), np.float32))
        with pytest.raises(ValueError, match="ok-9 is not finite"):
            v.send(np.full((1, 4), np.nan, np.float32))
        v.send(np.zeros((1, 4), np.float32))
        for call in (v.reset, lambda: v.send(np.zeros((1, 4), np.float32))):
            with pytest.raises(RuntimeError, match="recv.. must follow"):
                call()
        v.recv()
    v.close()  # a second time
    with pytest.raises(RuntimeError, match="closed"):
        v.send(np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="at least one task"):
        vector([])
    with pytest.raises(ValueError, match="0 workers"):
        vector(["ok-9"], workers=0)
    with pytest.raises(RuntimeError, match="more than"):
        VectorEnv(["ok-9"], 0, 1, 2, 4, make=make)


SCRIPT = """
import sys, time
import numpy as np
assert __name__ == "__main__", "the program was imported again by a worker"
import torch
from envs.vector import VectorEnv
v = VectorEnv(["walker-walk"], 0)
v.reset()
worker = v._processes[0].pid
maps = open(f"/proc/{worker}/maps").read() if sys.platform == "linux" else ""
print(worker, v._memory.name, "torch" in maps, "mujoco" in maps, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_workers_are_light_and_end_with_the_program(how, tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"], stdout=-1, stderr=-3, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    worker, memory, torch_loaded, mujoco_loaded = process.stdout.readline().split()
    assert (torch_loaded, mujoco_loaded) == ("False", "True")
    process.send_signal(how)
    process.wait(10)
    process.stdout.close()
    end = time.monotonic() + 10
    while (Path(f"/proc/{worker}").exists() or Path(f"/dev/shm/{memory}").exists()) and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists() and not Path(f"/dev/shm/{memory}").exists()
