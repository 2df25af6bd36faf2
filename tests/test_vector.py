"""envs/vector.py against a plain loop over the same environments; seeds, padding, faults, nothing left behind.

Run: pytest tests/test_vector.py        (about 40 seconds on two cores)
"""

import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import envs
from envs.processes import hidden_from_signals
from envs.vector import STEP_MS, Step, VectorEnv, episode_seed, share_out

ROOT = Path(envs.__path__[0]).parent


def defined_seed(seed, task, copy, k):
    """Of the k-th episode of the copy-th environment of a task: written again here, not taken from the program."""
    return int(np.random.SeedSequence([seed, zlib.crc32(bytes(task, "utf-8")), copy, k]).generate_state(1)[0])


def fault(kind: str):
    """What goes wrong in step 2. -> what to overwrite in the step's answer."""
    if kind == "raises":
        raise ArithmeticError("the simulator exploded")
    if kind == "ends":  # the error that a closed pipe gives, too
        raise EOFError("no more data")
    if kind == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "stops":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "exits":
        os._exit(3)
    while kind == "hangs":
        pass
    return {"nan_obs": {"obs": np.nan}, "nan_reward": {"reward": np.nan}, "inf_score": {"score": np.inf},
            "nan_score": {"score": np.nan}, "long_reward": {"reward": [1.0]}, "narrow": {"all": [7.0]}}.get(kind, {})


class Counter(gym.Env):
    """Obs: (clock, a number drawn at reset, last action); ends after `length` steps; the name says what goes wrong.

    A fault comes in step 2 of the run's (seed 0's) first episode; with "!" in each one, with "~" in every second one.
    """

    def __init__(self, name: str, seed: int):
        self.kind, length = name.split("-")
        if self.kind == "unmakeable" and os.environ.get("UNMAKEABLE", "1") == "1":
            raise OSError("no such robot")
        if self.kind.startswith("unborn") and not (tried := Path(os.environ["TRIED"])).exists():
            if self.kind[-1] != "!":
                tried.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self.length, self.name = int(length), name
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1, 1, (2,), np.float32)

    def is_episode(self, *numbers):
        return self.seed in [defined_seed(0, self.name, 0, k) for k in numbers]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t, self.drawn, self.seed, self.kept = 0, self.np_random.random(), seed, np.zeros(2)
        if self.kind == "reset_dies" and self.is_episode(0):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.kind == "unresettable" and self.is_episode(1):
            raise OSError("no way back")
        obs = [0, self.drawn, 0]
        if self.kind == "spy":  # what this process is like
            obs = ["torch" in sys.modules, os.environ["OMP_NUM_THREADS"] == "1", os.getpid()]
        return np.array(obs, np.float32), {"score": 0.0, "success": 0.0}

    def step(self, action):
        assert action.shape == (2,)
        self.t += 1
        if self.kind == "slow":
            time.sleep(0.5)
        obs = np.array([self.t, self.drawn, action[1]], np.float32)
        if self.kind == "keeper":  # shows the action before, which it has kept
            obs[2], self.kept = self.kept[1], action
        score, reward = self.t / self.length, float(10 * action[0])
        info = {"score": score, "success": float(score == 1)}
        often = {"!": range(99), "~": range(0, 99, 2)}.get(self.kind[-1], [0])
        if self.t == 2 and self.is_episode(*often):
            wrong = fault(self.kind.rstrip("!~"))
            obs[2], reward = wrong.get("obs", obs[2]), wrong.get("reward", reward)
            info["score"] = wrong.get("score", score)
            obs = np.array(wrong.get("all", obs), np.float32)
        end = self.t == self.length
        return obs, reward, end and self.kind == "over", end and self.kind != "over", info

    def render(self):
        return np.full((224, 224, 3), self.t, np.uint8)


def make(name, seed, render_mode=None):
    return Counter(name, seed)


def vector(tasks, seed=0, workers=None, **options) -> VectorEnv:
    return VectorEnv(tasks, seed, workers, 5, 4, make=make, **options)


def random_actions(steps, n, dims=4):
    return np.random.default_rng(1).uniform(-1, 1, (steps, n, dims)).astype(np.float32)


def plain_loop(tasks, actions, seed, make_one, dims, breaks=()):
    """The definition: step and reset each environment by itself. -> list of lists of rows, one per step.

    breaks  {(step, i)}: there environment i loses its episode and begins the next one.
    """
    made, episode = [make_one(task) for task in tasks], [-1] * len(tasks)

    def begin(i):
        episode[i] += 1
        return made[i].reset(seed=defined_seed(seed, tasks[i], tasks[:i].count(tasks[i]), episode[i]))[0]

    steps = [[begin(i) for i in range(len(tasks))]]
    for t, action in enumerate(actions):
        row = []
        for i, env in enumerate(made):
            final, reward, _, done, info = env.step(action[i, : dims[i]])
            if (t, i) in breaks:
                row.append((begin(i), 0, False, 0 * final, 0, 0, True))
            else:
                row.append((begin(i) if done else final, reward, done, final, info["score"], info["success"], False))
        steps.append(row)
    return steps


def test_seeds_are_as_defined():
    for words in ((0, "walker-walk", 0, 0), (7, "ok-3", 1, 2), (7, "ok-3", 2, 1), (7, "ok-4", 2, 1)):
        assert episode_seed(*words) == defined_seed(*words)


def test_starts_do_not_depend_on_what_else_is_played():
    with vector(["ok-3", "ok-4", "ok-3"], seed=2, workers=2) as v, vector(["ok-3", "ok-3", "ok-5"], 2, 1) as other:
        first, second = v.reset()[:, 1], other.reset()[:, 1]
        assert first[0] == second[0] and first[2] == second[1] and len({*first, *second}) == 4


def check(step: Step, row) -> None:
    for i, (obs, reward, done, final, score, success, dropped) in enumerate(row):
        np.testing.assert_array_equal(step.obs[i, : len(obs)], obs)
        np.testing.assert_array_equal(step.final_obs[i, : len(obs)], final)
        assert not step.obs[i, len(obs) :].any() and not step.final_obs[i, len(obs) :].any()  # padding
        assert step.reward[i] == np.float32(reward) and step.done[i] == done and step.dropped[i] == dropped
        assert step.score[i] == np.float32(score) and step.success[i] == success
    numbers = (step.obs, step.final_obs, step.reward, step.score, step.success)
    assert step.done.dtype == step.dropped.dtype == bool and all(x.dtype == np.float32 for x in numbers)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_same_as_a_plain_loop_for_any_number_of_workers(workers):
    tasks = ["ok-3", "ok-5", "ok-3", "ok-1", "keeper-5"]
    actions = random_actions(12, 5)
    expected = plain_loop(tasks, actions, 7, lambda task: Counter(task, 0), [2] * 5)
    with vector(tasks, seed=7, workers=workers) as v:
        obs = v.reset()
        np.testing.assert_array_equal(obs[:, :3], expected[0])
        assert obs.shape == (5, 5) and not obs[:, 3:].any()
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


def test_own_tasks_end_when_they_say_so():
    """And are stored as long as they were; what ends for good is told from what is cut off."""
    import torch  # here: workers import this file, and must not pay for torch

    from buffer import Buffer, Collector

    names, step_of = ["my_envs:dies", "my_envs:cut", "my_envs:integer", "my_envs:quiet"], {0: 7, 1: 5, 2: 20, 3: 4}
    ring, collector = Buffer(500, 5, 4), Collector(4, 20, 5, 4, np.arange(4))
    with VectorEnv(names, 0, 1, 5, 4) as v:
        collector.start(v.reset())
        for t in range(1, 61):
            action = random_actions(1, 4)[0]
            s = v.step(action)
            assert s.done.tolist() == [t % step_of[i] == 0 for i in range(4)]
            assert s.terminated.tolist() == [t % 7 == 0, False, False, t % 4 == 0]
            assert s.final_obs[:, 0].tolist() == [(t - 1) % step_of[i] + 1 for i in range(4)]
            assert s.obs[:, 0].tolist() == [t % step_of[i] for i in range(4)] and not s.dropped.any()
            assert np.isnan(s.score).tolist() == np.isnan(s.success).tolist() == [False] * 3 + [True]
            collector.add(ring, action, s.reward, s.done, s.final_obs, s.obs, s.dropped, s.terminated)
    assert ring.steps == 56 + 60 + 60 + 60 and ring.episodes == 8 + 12 + 3 + 15  # no row that did not happen
    batch = ring.sample(4000, 3, torch.Generator().manual_seed(0), "task")
    ends = [bool(batch.terminated[:, batch.task == i].any()) for i in range(4)]
    assert ends == [True, False, False, True]


def test_hopper_leaves_no_frozen_rows():
    """600 random steps of Gymnasium's Hopper: many short episodes, every row of which happened."""
    import torch  # here: workers import this file, and must not pay for torch

    from buffer import Buffer, Collector

    ring, collector = Buffer(2000, 16, 4), Collector(1, 1000, 16, 4, np.zeros(1, int))
    kept, ends = 0, 0
    with VectorEnv(["gym:Hopper-v5"], 0, 1, 16, 4) as v:
        collector.start(v.reset())
        for action in random_actions(600, 1):
            s = v.step(action)
            ends += int(s.terminated[0])
            kept += sum(steps for _, _, steps in collector.add(ring, action, *s[1:4], s.obs, s.dropped, s.terminated))
    assert ring.steps == kept > 500 and ring.episodes == ends > 10
    batch = ring.sample(5000, 1, torch.Generator().manual_seed(0), "step")
    frozen = (batch.obs[1] == batch.obs[0]).all(1) & (batch.terminated[0] == 0)
    assert not frozen.any() and ring.steps <= 600  # nothing is stored that did not happen


def test_a_task_of_another_shape_than_declared_ends_the_run(capfd):
    with VectorEnv(["my_envs:narrow"], 0, 1, 5, 4) as v:
        with pytest.raises(RuntimeError, match=r"obs has the shape \(1,\), declared is \(3,\)"):
            v.reset()


def test_reset_counts_episodes_from_where_it_is_told():
    with vector(["ok-2", "ok-2"], seed=5) as v:
        drawn = {k: v.reset(episode=k)[:, 1] for k in (0, 1, 9, 0)}
        assert len({float(x) for row in drawn.values() for x in row}) == 6
        v.reset()
        v.step(np.zeros((2, 4), np.float32))
        step = v.step(np.zeros((2, 4), np.float32))
        np.testing.assert_array_equal(step.obs[:, 1], drawn[1])  # the next episode after number 0
        np.testing.assert_array_equal(step.final_obs[:, 1], drawn[0])


def test_an_end_and_a_cut_are_told_apart():
    with vector(["over-2", "ok-3"], seed=5) as v:
        v.reset()
        steps = [v.step(np.zeros((2, 4), np.float32)) for _ in range(4)]
        assert [step.done.tolist() for step in steps] == [[0, 0], [1, 0], [0, 1], [1, 0]]
        assert [step.terminated.tolist() for step in steps] == [[0, 0], [1, 0], [0, 0], [1, 0]]
        assert [step.obs[0, 0] for step in steps] == [1, 0, 1, 0]  # the next episode begins at once


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


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_all_tasks_are_shared_out_evenly_and_maniskill_to_few(workers):
    tasks = envs.select("all")
    suite = [envs.TASKS[task].domain for task in tasks]
    shares = share_out(tasks, workers)
    assert sorted(sum(shares, [])) == list(range(200))
    load = [sum(STEP_MS[suite[i]] for i in share) for share in shares]
    assert max(load) < 1.1 * min(load)
    heavy = [sum(suite[i] == "maniskill" for i in share) for share in shares]
    room = int(sum(load) / workers / STEP_MS["maniskill"])  # whole ones that a fair share of the work has room for
    assert sum(n > 0 for n in heavy) == -(-sum(heavy) // room) and max(heavy) <= room


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


def healthy(task: str) -> Counter:
    return Counter(f"ok-{task.split('-')[1]}", 0)


def check_run(v: VectorEnv, tasks, breaks, steps=12) -> None:
    """Everything but the broken environments is as in a plain loop, and these go on with the next episode's seed."""
    actions, start = random_actions(steps, len(tasks)), time.monotonic()
    expected = plain_loop(tasks, actions, 0, healthy, [2] * len(tasks), breaks)
    np.testing.assert_array_equal(v.reset()[:, :3], expected[0])
    for action, row in zip(actions, expected[1:], strict=True):
        check(v.step(action), row)
    for i in range(len(tasks)):
        assert v.finished[i] == sum(row[i][2] for row in expected[1:])
        assert v.dropped[i] == sum(row[i][6] for row in expected[1:])
    assert time.monotonic() - start < 20


def test_broken_environments_are_made_anew(capfd):
    what = {"raises": "ArithmeticError: the simulator exploded", "ends": "EOFError: no more data",
            "nan_obs": "ValueError: obs is not finite", "nan_reward": "ValueError: reward is not finite",
            "inf_score": "ValueError: score is not finite", "nan_score": "ValueError: score is not finite",
            "long_reward": "ValueError: reward has the shape (1,), declared is ()",
            "narrow": "ValueError: obs has the shape (1,), declared is (3,)"}  # fmt: skip
    tasks = [*(f"{kind}-5" for kind in what), "ok-3", "ok-4"]
    with vector(tasks, workers=2) as v:
        pids = [process.pid for process in v._processes.values()]
        check_run(v, tasks, {(1, i) for i in range(8)})
        assert pids == [process.pid for process in v._processes.values()]
        v.reset()
        assert v.dropped.sum() == 8  # what a reset cuts off is not lost to a fault
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"{kind}-5: {text}; 1 unfinished episode dropped" for kind, text in what.items())


def test_lost_workers_are_replaced(capfd):
    what = {"dies": "a worker process died (exit code -9)", "exits": "a worker process died (exit code 3)",
            "stops": "no answer for 2 s", "hangs": "no answer for 2 s"}  # fmt: skip
    tasks = [*(f"{kind}-5" for kind in what), "ok-3", *["ok-4"] * 5]  # in each of five workers a second one
    with vector(tasks, workers=5, timeout_s=2) as v:
        before = [process.pid for process in v._processes.values()]
        check_run(v, tasks, {(1, i) for i in (*range(4), *range(5, 9))})
        after = [process.pid for process in v._processes.values()]
        assert [a == b for a, b in zip(before, after, strict=True)] == [False] * 4 + [True]
        assert all(gone(pid) for pid in before[:4])
    lines = capfd.readouterr().err.splitlines()
    assert sorted(lines) == sorted(f"{kind}-5: {text}; 2 unfinished episodes dropped" for kind, text in what.items())


@pytest.mark.parametrize("how, text", [("KILL", "a worker process died (exit code -9)"), ("STOP", "no answer for 2 s")])
def test_a_worker_lost_while_idle_is_blamed_on_nobody(how, text, capfd):
    with vector(["ok-9", "ok-9", "ok-9"], workers=2, timeout_s=2) as v:
        v.reset()
        os.kill(v._processes[0].pid, getattr(signal, f"SIG{how}"))
        step = v.step(np.zeros((3, 4), np.float32))
        assert step.dropped.tolist() == [True, False, True] and step.obs[:, 0].tolist() == [0, 1, 0]
        lines = f"no task at fault: {text}; 2 unfinished episodes dropped\n"
        assert capfd.readouterr().err == lines
        # Replacements, too, leave it to the parent what these mean.
        pids = [process.pid for process in v._processes.values()]
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
            os.kill(pid, signal.SIGINT)
        assert v.step(np.zeros((3, 4), np.float32)).obs[:, 0].tolist() == [1, 2, 1]
        assert pids == [process.pid for process in v._processes.values()] and not capfd.readouterr().err


def test_a_worker_killed_in_a_reset_is_replaced(capfd):
    with vector(["reset_dies-9", "ok-9", "ok-9"], workers=2) as v:
        drawn = v.reset()[:, 1]
        for x, (task, copy, k) in zip(drawn, (("reset_dies-9", 0, 1), ("ok-9", 0, 0), ("ok-9", 1, 1)), strict=True):
            assert x == np.float32(np.random.default_rng(defined_seed(0, task, copy, k)).random())
        assert not v.step(np.zeros((3, 4), np.float32)).dropped.any() and not v.dropped.any()
    lines = "reset_dies-9: a worker process died (exit code -9); 0 unfinished episodes dropped\n"
    assert capfd.readouterr().err == lines


def test_an_episode_counts_although_the_next_one_cannot_begin(capfd):
    with vector(["unresettable-2"]) as v:
        first = v.reset()[0, 1]
        v.step(np.zeros((1, 4), np.float32))
        step = v.step(np.full((1, 4), 0.5, np.float32))
        assert step.done[0] and not step.dropped[0] and step.reward[0] == 5 and step.score[0] == 1
        assert step.final_obs[0, :3].tolist() == [2, first, 0.5]
        assert step.obs[0, 1] == np.float32(np.random.default_rng(defined_seed(0, "unresettable-2", 0, 2)).random())
        assert v.finished.tolist() == [1] and v.dropped.tolist() == [0]
    assert capfd.readouterr().err == "unresettable-2: OSError: no way back; 0 unfinished episodes dropped\n"


@pytest.mark.parametrize(
    "task, message",
    [("raises!-9", "environment raises!-9 failed 3 times(.|\n)*the simulator exploded"),
     ("dies!-9", r"environment dies!-9 failed 3 times(.|\n)*died \(exit code -9\)"),
     ("hangs!-9", "environment hangs!-9 failed 3 times(.|\n)*no answer for 1 s")],
)  # fmt: skip
def test_a_task_that_fails_again_and_again_ends_it(task, message):
    start = time.monotonic()
    with vector([task, "ok-9"], workers=1, timeout_s=1) as v, pytest.raises(RuntimeError, match=message):
        v.reset()
        for step in range(9):  # noqa: B007
            processes = list(v._processes.values())
            v.step(np.zeros((2, 4), np.float32))
    assert step == 5  # two steps per attempt, and nothing counts that the other task finishes
    assert time.monotonic() - start < 15 and not any(process.is_alive() for process in processes)
    with pytest.raises(RuntimeError, match="closed"):
        v.reset()


def test_failures_between_finished_episodes_do_not_add_up():
    with vector(["raises~-3"]) as v:
        v.reset()
        for _ in range(25):  # two steps until it fails, three of a whole episode, and so on
            v.step(np.zeros((1, 4), np.float32))
        assert v.finished.tolist() == v.dropped.tolist() == [5]


def test_a_replacement_that_cannot_be_built_counts_as_failures(monkeypatch):
    monkeypatch.setenv("UNMAKEABLE", "0")
    with vector(["ok-9", "unmakeable-9"], workers=1) as v:
        v.reset()
        monkeypatch.setenv("UNMAKEABLE", "1")
        v._processes[0].kill()
        with pytest.raises(RuntimeError, match="environment unmakeable-9 failed 3 times(.|\n)*no such robot"):
            v.step(np.zeros((2, 4), np.float32))


def test_a_worker_killed_before_every_step_is_not_replaced_for_ever():
    with vector(["ok-9", "ok-8"], workers=1) as v:
        v.reset()
        v.step(np.zeros((2, 4), np.float32))
        for _ in range(3):
            v._processes[0].kill()
            assert v.step(np.zeros((2, 4), np.float32)).dropped.all()
        v._processes[0].kill()
        with pytest.raises(RuntimeError, match=r"exit code -9\), with the environments of ok-8, ok-9, again and again"):
            v.step(np.zeros((2, 4), np.float32))


def test_what_cannot_be_built_ends_it_at_once():
    with pytest.raises(RuntimeError, match="environment unmakeable-9 failed(.|\n)*no such robot"):
        vector(["unmakeable-9", "ok-9"], workers=1)  # the wrong one is not the last that was touched


def test_a_worker_killed_while_it_builds_is_replaced_once(capfd, monkeypatch, tmp_path):
    monkeypatch.setenv("TRIED", str(tmp_path / "tried"))
    with pytest.raises(RuntimeError, match=r"environment unborn!-9 failed(.|\n)*exit code -9"):
        vector(["unborn!-9", "ok-9"], workers=2)
    line = "environment unborn{}-9 failed: a worker process died (exit code -9); a new one is started\n"
    assert capfd.readouterr().err == line.format("!")
    with vector(["unborn-9", "ok-9"], workers=2) as v:
        assert v.reset().shape == (2, 5) and v.dropped.tolist() == [0, 0]
        assert v.step(np.zeros((2, 4), np.float32)).obs[:, 0].tolist() == [1, 1]
    assert capfd.readouterr().err == line.format("")


def test_a_killed_worker_is_noticed_at_once_while_others_step(capfd):
    with vector(["slow-9", "ok-9", "ok-8"], workers=3, timeout_s=30) as v:
        v.reset()
        v.send(np.zeros((3, 4), np.float32))
        time.sleep(0.1)
        v._processes[0].kill()
        start = time.monotonic()
        assert v.recv().dropped.tolist() == [True, False, False]
        assert time.monotonic() - start < 10
    lines = "slow-9: a worker process died (exit code -9); 1 unfinished episode dropped\n"
    assert capfd.readouterr().err == lines


def test_memory_is_given_back():
    counts = []
    for _ in range(3):
        with vector(["ok-9"]):
            pass
        counts.append(len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
    assert counts[0] == counts[2]


@pytest.fixture
def ctrl_c_on():
    """As in a terminal: a shell's background job (`pytest &`) starts with Ctrl-C turned off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_workers_get_no_signal_that_the_parent_answers(monkeypatch):
    """Also none of a closed terminal. Windows has neither that nor masks."""
    if hasattr(signal, "pthread_sigmask"):
        with hidden_from_signals():
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= blocked
    for name in ("pthread_sigmask", "SIGHUP", "SIG_BLOCK"):
        monkeypatch.delattr(signal, name, raising=False)
    with hidden_from_signals():
        pass


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
stuck = "stuck" in sys.argv
v = VectorEnv(["hangs-999" if stuck else "slow-999", "spy-9"], 0, 2, 5, 4, make=make)
torch_loaded = int(v.reset()[1, 0])
if stuck:
    v.step(np.zeros((2, 4), np.float32))  # the next one hangs
v.send(np.zeros((2, 4), np.float32))
print(torch_loaded, *(process.pid for process in v._processes.values()), flush=True)
if "return" in sys.argv:
    sys.stdin.readline()
    assert not v.recv().dropped.any()
    v.send(np.zeros((2, 4), np.float32))
else:
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


@pytest.mark.parametrize("how", ["ctrl-c", "kill", "stuck", "return"])
def test_workers_are_light_and_end_with_the_program(how, tmp_path, request):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "temporary").mkdir()
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [sys.executable, tmp_path / "program.py", how], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    request.addfinalizer(process.kill)  # whatever goes wrong below
    torch_loaded, *workers = process.stdout.readline().split()
    assert torch_loaded == "0" and len(workers) == 2
    # Nothing to remove, even if all were killed now: the shared memory has no name, not even while it is in use.
    if Path("/proc/self/maps").exists():
        maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in workers).splitlines()
        shared = [line for line in maps if line.split()[1] == "rw-s"]
        assert len(shared) == 2 and all(line.endswith("(deleted)") for line in shared)
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the program and to its workers
    if how in ("kill", "stuck"):
        process.kill()
    if how == "return":
        for pid in workers:  # as some launchers do, to every process; only the program decides what it means
            os.kill(int(pid), signal.SIGTERM)
    _, errors = process.communicate("go on\n", timeout=30)  # ends when the last process that could write has ended
    assert errors.count("Traceback") == (how == "ctrl-c") and "leaked" not in errors  # workers have nothing to say
    assert errors == "" or how == "ctrl-c"
    end = time.monotonic() + 10
    while not all(gone(int(pid)) for pid in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert all(gone(int(pid)) for pid in workers)
    assert not list((tmp_path / "temporary").iterdir())
