"""buffer.py against its definition, kept as a naive list of rows; bad input; saved and restored rings.

Run: pytest tests/test_buffer.py        (about 10 s on one core)

Every number stored here says where it belongs: obs = (environment, episode, step, 1 at a reset), the action chosen at
an observation repeats it, and its reward is that observation's step + 1/2. A row in a wrong place gives itself away.
"""

import contextlib
import csv
import itertools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import buffer
from buffer import Batch, Buffer, Collector, gigabytes, sample_mixed

ROOT = Path(buffer.__file__).parent
MODES = ("episode", "task", "step")


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def episode(env: int, number: int, steps: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """obs (T+1, 4), action (T+1, 3), reward (T+1,)"""
    t = torch.arange(steps + 1.0)
    obs = torch.stack([torch.full_like(t, env), torch.full_like(t, number), t, (t == 0).float()], 1)
    action, reward = torch.full((steps + 1, 3), torch.nan), torch.full((steps + 1,), torch.nan)
    action[1:], reward[1:] = obs[:-1, :3], t[:-1] + 0.5
    return obs, action, reward


class Naive:
    """What the ring must hold: one owner per place. An episode is stored as long as it owns all of its places."""

    def __init__(self, capacity: int):
        self.owner, self.head, self.lengths, self.tasks = [None] * capacity, 0, [], []

    def add(self, steps: int, task: int) -> None:
        for t in range(steps + 1):
            self.owner[self.head] = (len(self.lengths), t)
            self.head = (self.head + 1) % len(self.owner)
        self.lengths.append(steps)
        self.tasks.append(task)

    def stored(self) -> list[int]:
        left = [owner[0] for owner in self.owner if owner]
        return [k for k in sorted(set(left)) if left.count(k) == self.lengths[k] + 1]

    def starts(self, horizon: int) -> dict[tuple[int, int], int]:
        """(episode, step) -> task, of every slice of H transitions."""
        return {(k, t): self.tasks[k] for k in self.stored() for t in range(self.lengths[k] - horizon + 1)}


def check_slices(batch: Batch) -> None:
    """Every slice is one episode's, step after step, with the actions and rewards between its observations."""
    obs, action, reward, task, terminated = batch
    for tensor in batch[:3]:
        assert tensor.dtype == torch.float32 and tensor.isfinite().all()
    assert task.dtype == torch.int64 and terminated.shape == reward.shape and not terminated.any()
    assert torch.equal(obs[:, :, :2], obs[:1, :, :2].expand(len(obs), -1, -1))  # environment and episode
    assert torch.equal(obs[1:, :, 2], obs[:-1, :, 2] + 1)
    assert torch.equal(obs[:, :, 3], (obs[:, :, 2] == 0).float())  # a reset observation is row 0, and row 0 is one
    assert torch.equal(action, obs[:-1, :, :3]) and torch.equal(reward, obs[:-1, :, 2] + 0.5)


def starts_of(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.obs[0, :, 1].int().tolist(), batch.obs[0, :, 2].int().tolist(), strict=True))


def full_of_nan(capacity: int, **kwargs) -> Buffer:
    """A ring whose unwritten rows would be noticed: its memory is uninitialised otherwise."""
    ring = Buffer(capacity, 4, 3, **kwargs)
    for storage in (ring._obs, ring._action, ring._reward):
        storage.fill_(torch.nan)
    return ring


def filled(capacity: int, lengths: list[int], tasks: int = 3) -> tuple[Buffer, Naive]:
    ring, naive = full_of_nan(capacity), Naive(capacity)
    for k, steps in enumerate(lengths):
        ring.add(*episode(k % tasks, k, steps), task=k % tasks)
        naive.add(steps, k % tasks)
    return ring, naive


@contextlib.contextmanager
def one_line(*words: str, error: type[Exception] = ValueError):
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert message and "\n" not in message
    for word in words:
        assert word in message, message


# ---------------------------------------------------------------- the ring


def test_shapes_and_alignment_by_hand():
    ring = Buffer(8, 2, 1)
    ring.add(torch.tensor([[1.0, 2], [3, 4], [5, 6]]), torch.tensor([[torch.nan], [0.1], [0.2]]), torch.tensor(
        [torch.nan, 10.0, 20.0]), task=7)  # fmt: skip
    batch = ring.sample(1, 2, seeded())  # only one slice is possible
    torch.testing.assert_close(batch.obs, torch.tensor([[[1.0, 2]], [[3, 4]], [[5, 6]]]))
    torch.testing.assert_close(batch.action, torch.tensor([[[0.1]], [[0.2]]]))
    torch.testing.assert_close(batch.reward, torch.tensor([[10.0], [20.0]]))
    assert batch.task.tolist() == [7]
    shapes = [tuple(x.shape) for x in ring.sample(5, 1, seeded())]
    assert shapes == [(2, 5, 2), (1, 5, 1), (1, 5), (5,), (1, 5)]


@pytest.mark.parametrize("capacity", [12, 57])
def test_wraps_like_a_list_of_rows(capacity):
    ring, naive = full_of_nan(capacity), Naive(capacity)
    lengths = torch.randint(1, 12, (150,), generator=seeded()).tolist()
    assert sum(lengths) > 10 * capacity and max(lengths) == 11  # 12 rows: fills the small ring on its own
    for k, steps in enumerate(lengths):
        ring.add(*episode(k % 5, k, steps), task=k % 5)
        naive.add(steps, k % 5)
        stored = naive.stored()
        assert (ring.episodes, ring.total_episodes, ring.first_episode) == (len(stored), k + 1, stored[0])
        assert ring.steps == sum(naive.lengths[i] for i in stored)
        for horizon, by in ((1, "step"), (3, "task"), (2, "episode")):
            want = naive.starts(horizon)
            if not want:
                with one_line("nothing to sample"):
                    ring.sample(4, horizon, by=by)
                continue
            batch = ring.sample(3000, horizon, seeded(k), by)
            check_slices(batch)
            assert set(starts_of(batch)) == set(want)  # all of them are drawn, and nothing else
            assert all(want[start] == task for start, task in zip(starts_of(batch), batch.task.tolist(), strict=True))


def test_table_of_many_episodes():
    """More episodes than the table has room for at first, with and without eviction."""
    ring, naive = filled(3000, [1, 2, 1] * 1500)
    assert ring.total_episodes == 4500 and ring.first_episode == naive.stored()[0] and ring.episodes > 1024
    batch = ring.sample(60_000, 1, seeded(), by="step")
    check_slices(batch)
    assert set(starts_of(batch)) == set(naive.starts(1))


def test_narrow_episodes_are_padded_with_zeros():
    ring = Buffer(6, 4, 3)
    ring.add(torch.ones(6, 4), torch.ones(6, 3), torch.ones(6), task=0)  # the next one lands on these ones
    ring.add(np.ones((6, 2)), np.ones((6, 1)), np.ones(6), task=1)
    batch = ring.sample(50, 2, seeded())
    assert (batch.obs == torch.tensor([1.0, 1, 0, 0])).all() and (batch.action == torch.tensor([1.0, 0, 0])).all()


def test_first_action_is_never_used():
    ring = Buffer(10, 4, 3)
    obs, action, reward = episode(0, 0, 4)
    action[0], reward[0] = 99, 99  # a caller may have anything there
    ring.add(obs, action, reward, task=0)
    for horizon in range(1, 5):
        check_slices(ring.sample(100, horizon, seeded()))
    with one_line("nothing to sample", "5 steps"):
        ring.sample(1, 5)


def test_first_rows_are_marked_with_nan(tmp_path):
    """Whatever a caller has there: an index that is off by one then gives NaN, in memory and from a file, not data."""
    ring = Buffer(13, 4, 3)  # the third episode wraps and evicts the first
    for k, steps in enumerate((4, 5, 3)):
        obs, action, reward = episode(0, k, steps)
        action[0], reward[0] = 99, 99
        ring.add(obs, action, reward, task=0)
        ring.save(tmp_path / str(k))
        rows = load_file(next((tmp_path / str(k)).iterdir()))
        first = rows["obs"][:, 3] == 1
        assert first.sum() == ring.episodes and torch.equal(rows["reward"].isnan(), first)
        assert torch.equal(rows["action"].isnan(), first.unsqueeze(1).expand(-1, 3))


# ---------------------------------------------------------------- what is drawn


def probabilities(naive: Naive, horizon: int, by: str) -> dict[tuple[int, int], float]:
    """By definition: uniform over groups, then uniform over the starts of the group."""
    starts = naive.starts(horizon)
    group = {s: {"episode": s[0], "task": task, "step": 0}[by] for s, task in starts.items()}
    members = list(group.values())
    return {s: 1 / len(set(members)) / members.count(group[s]) for s in starts}


def chi_square(batch: Batch, p: dict[tuple[int, int], float]) -> float:
    """Distance in standard deviations from what chance gives; drawing something impossible counts as infinite."""
    drawn, n = starts_of(batch), batch.obs.shape[1]
    count = dict.fromkeys(p, 0)
    for start in drawn:
        if start not in count:
            return float("inf")
        count[start] += 1
    statistic, df = sum((count[s] - n * p[s]) ** 2 / (n * p[s]) for s in p), len(p) - 1
    return (statistic - df) / (2 * df) ** 0.5


@pytest.mark.parametrize("by", MODES)
def test_starts_are_uniform(by):
    # Some too short for the horizon, tasks of unequal size, wrapped.
    ring, naive = filled(130, [5, 9, 30, 2, 3, 8, 1, 25, 7, 40, 2, 2, 3, 12, 5, 21], tasks=3)
    assert 6 < ring.episodes < 16 and any(naive.lengths[k] < 3 for k in naive.stored())
    batch = ring.sample(200_000, 3, seeded(), by)
    check_slices(batch)
    assert abs(chi_square(batch, probabilities(naive, 3, by))) < 5
    for other in set(MODES) - {by}:  # the test can tell the three apart
        assert chi_square(batch, probabilities(naive, 3, other)) > 100


def test_slices_of_a_batch_are_independent():
    """Pairs of neighbours in the batch are uniform, too: no pattern such as a shared offset or stratification."""
    ring, _ = filled(20, [4, 4, 4], tasks=3)
    first = ring.sample(120_000, 4, seeded(), "episode").task.view(-1, 2)
    count = torch.bincount(first[:, 0] * 3 + first[:, 1], minlength=9)
    want = len(first) / 9
    assert float(((count - want) ** 2 / want).sum()) < 8 + 5 * 4
    ring, _ = filled(100, [49, 49], tasks=2)
    a, b = ring.sample(100_000, 1, seeded(), "episode").obs[0].view(-1, 2, 4).unbind(1)
    assert abs(float(torch.corrcoef(torch.stack([a[:, 2], b[:, 2]]))[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(a[:, 1:3].T)[0, 1])) < 0.02  # which episode says nothing about where in it


def test_same_generator_same_batch():
    ring, _ = filled(100, [9] * 30)
    for by in MODES:
        a, b, c = (ring.sample(64, 3, seeded(s), by) for s in (1, 1, 2))
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)) and not torch.equal(a.obs, c.obs)


def test_batch_does_not_change_when_the_ring_does():
    ring, _ = filled(20, [9, 9])
    batch = ring.sample(8, 3, seeded())
    copy = [x.clone() for x in batch]
    ring.add(*episode(9, 9, 18), task=9)
    assert all(torch.equal(x, y) for x, y in zip(batch, copy, strict=True))


def test_half_demonstrations_half_online():
    demo, online, empty = Buffer(50, 4, 3), Buffer(50, 4, 3), Buffer(50, 4, 3)
    for k in range(3):
        demo.add(*episode(0, k, 6), task=0)
        online.add(*episode(1, k, 6), task=1)
    for size, demos in ((8, 4), (9, 4), (1, 0)):  # odd: one more online
        batch = sample_mixed(demo, online, size, 3, seeded(), "episode")
        check_slices(batch)
        assert torch.equal(batch.obs[0, :, 0].long(), batch.task)  # every column is one slice, in all four tensors
        assert batch.obs.shape == (4, size, 4) and (batch.task == 0).sum() == demos
    for nothing in (None, empty):
        assert (sample_mixed(demo, nothing, 9, 3, seeded(), "task").task == 0).all()
        assert (sample_mixed(nothing, online, 9, 3, seeded(), "step").task == 1).all()
        with one_line("nothing to sample"):
            sample_mixed(nothing, None, 9, 3, seeded(), "step")


# ---------------------------------------------------------------- parallel environments


class Clock:
    """n environments that end after different numbers of steps and reset themselves; obs as at this file's top."""

    def __init__(self, lengths: list[int]):
        self.lengths = np.array(lengths)
        self.t, self.number = np.zeros(len(lengths), int), np.zeros(len(lengths), int)

    def obs(self) -> np.ndarray:
        return np.stack([np.arange(len(self.t)), self.number, self.t, self.t == 0], 1).astype(np.float32)

    def step(self) -> tuple[np.ndarray, ...]:
        action, reward = self.obs()[:, :3], (self.t + 0.5).astype(np.float32)
        self.t += 1
        done, final_obs = self.t == self.lengths, self.obs()
        self.number[done] += 1
        self.t[done] = 0
        return action, reward, done, final_obs, self.obs()


def test_all_episode_lengths_of_the_benchmark_at_once():
    with open(ROOT / "envs" / "tasks.csv", newline="", encoding="utf-8") as file:
        lengths = sorted({int(row["episode_length"]) for row in csv.DictReader(file)})
    assert lengths == [25, 50, 100, 200, 250, 500, 1000]
    lengths = lengths[::2] + lengths  # several environments of one length, and not in order
    n, capacity = len(lengths), 7000
    ring, naive, envs = full_of_nan(capacity), Naive(capacity), Clock(lengths)
    collector = Collector(n, 1000, 4, 3, task=np.arange(n) + 20)
    collector.start(envs.obs())
    ended = []  # (environment, its how many-th episode), in the order in which they ended
    for step in range(1, 2101):
        number = envs.number.copy()
        want = [(i, float(lengths[i] ** 2 / 2), lengths[i]) for i in range(n) if step % lengths[i] == 0]
        assert collector.add(ring, *envs.step()) == want  # 0.5 + 1.5 + ... = T^2 / 2
        for i, _, steps in want:
            ended.append((i, number[i]))
            naive.add(steps, i + 20)
    assert ring.total_episodes == len(ended) == sum(2100 // steps for steps in lengths)
    assert ring.first_episode > 0 and ring.episodes == len(naive.stored())  # it wrapped
    batch = ring.sample(200_000, 3, seeded(), by="step")
    check_slices(batch)
    assert torch.equal(batch.obs[0, :, 0].long() + 20, batch.task)
    stored = {(*ended[k], t) for k, t in naive.starts(3)}
    assert {ended[k][0] for k in naive.stored()} == set(range(n))  # every environment is among them
    assert set(map(tuple, batch.obs[0, :, :3].int().tolist())) == stored


def test_a_restart_drops_unfinished_episodes():
    envs, ring, collector = Clock([5, 7]), Buffer(100, 4, 3), Collector(2, 7, 4, 3, np.array([0, 1]))
    collector.start(envs.obs())
    for _ in range(6):  # environment 0: one finished and one step; environment 1: unfinished
        collector.add(ring, *envs.step())
    envs = Clock([5, 7])
    envs.number += 50
    collector.start(envs.obs())
    for _ in range(7):
        collector.add(ring, *envs.step())
    batch = ring.sample(500, 1, seeded(), "step")
    check_slices(batch)
    assert {tuple(x) for x in batch.obs[0, :, :2].int().tolist()} == {(0, 0), (0, 50), (1, 50)} and ring.steps == 17


def test_a_dropped_episode_leaves_no_row():
    """As if the environment had been alone in its fault: the others, and its own next episode, are whole."""
    envs, ring, collector = Clock([5, 7]), Buffer(100, 4, 3), Collector(2, 7, 4, 3, np.array([0, 1]))
    collector.start(envs.obs())
    finished = []
    for step in range(1, 13):
        action, reward, done, final_obs, obs = envs.step()
        dropped = np.array([False, step == 5])
        if step == 5:  # of environment 1's first episode; the other one's ends in the same step
            envs.number[1], envs.t[1] = 50, 0
            obs = envs.obs()
            reward[1], final_obs[1] = np.nan, np.nan  # mean nothing there
        finished += collector.add(ring, action, reward, done, final_obs, obs, dropped)
    assert finished == [(0, 12.5, 5), (0, 12.5, 5), (1, 24.5, 7)]  # 0.5 + 1.5 + ... = T^2 / 2
    batch = ring.sample(500, 1, seeded(), "step")
    check_slices(batch)
    assert {tuple(x) for x in batch.obs[0, :, :2].int().tolist()} == {(0, 0), (0, 1), (1, 50)} and ring.steps == 17


def ending(ring: Buffer, k: int, steps: int, terminated: bool, task: int = 0) -> None:
    """Observation (k, t, 0, 0): the last input is free; action 10 k + t, reward t + 0.5."""
    t = torch.arange(steps + 1.0)
    obs = torch.stack([torch.full_like(t, k), t, 0 * t, 0 * t], 1)
    ring.add(obs, (10 * k + t).unsqueeze(1).expand(-1, 3), t + 0.5, task, terminated)


@pytest.mark.parametrize("by", ["episode", "task", "step"])
def test_behind_a_terminated_end_is_the_absorbing_state(by):
    """Written from the definition: the last state is never seen, every step may begin a slice, the end may, too."""
    ring = full_of_nan(23)
    for k, (steps, terminated) in enumerate([(4, True), (2, False), (5, False), (1, True)] * 2):
        ending(ring, k, steps, terminated, task=k % 2)
    # Oldest first, those that 23 rows can't hold are gone: 3 (1, over) 4 (4, over) 5 (2) 6 (5) 7 (1, over)
    assert ring.first_episode == 3 and ring.episodes == 5
    batch, horizon = ring.sample(20_000, 3, seeded(), by), 3
    absorbing, lengths, seen = torch.tensor([0.0, 0, 0, 1]), {3: 1, 4: 4, 6: 5, 7: 1}, set()
    for b in range(3000):
        obs, action, reward, over = (x[:, b] for x in (batch.obs, batch.action, batch.reward, batch.terminated))
        assert obs.isfinite().all() and action.isfinite().all() and reward.isfinite().all()
        if torch.equal(obs[0], absorbing):  # begins at the end
            seen.add("end")
            assert (obs == absorbing).all() and not reward.any() and over.all()
            continue
        k, first = int(obs[0, 0]), int(obs[0, 1])
        seen.add((k, first))
        for i in range(horizon):
            t = first + i + 1  # this transition is step t of the episode
            if k == 6 or t < lengths[k]:
                assert obs[i + 1].tolist() == [k, t, 0, 0] and (reward[i], over[i]) == (t + 0.5, 0)
                assert (action[i] == 10 * k + t).all()
            else:
                assert torch.equal(obs[i + 1], absorbing) and over[i] == 1
                assert reward[i] == (t + 0.5 if t == lengths[k] else 0)
                assert (action[i] == 10 * k + (t - 1) % lengths[k] + 1).all()  # they come round again
    assert seen == {"end", (3, 0), (6, 0), (6, 1), (6, 2), (7, 0), *((4, t) for t in range(4))}
    if by == "step":
        count = {1: 2, 4: 5}  # starts of an ended episode: its steps, and the end
        ends = (batch.obs[0, :, 3] == 1).float().mean()
        assert abs(float(ends) - 3 / (count[1] + count[4] + 3 + count[1])) < 0.01


def test_terminated_episodes_survive_the_disk_and_need_a_free_input(tmp_path):
    a, b = Buffer(40, 4, 3), Buffer(40, 4, 3)
    for k in range(9):
        ending(a, k, 1 + k % 4, terminated=k % 3 == 0)
        a.save(tmp_path / "saved")
    names = [set(load_file(path)) for path in sorted((tmp_path / "saved").iterdir())]
    assert names == [{"obs", "action", "reward", "table"} | ({"terminated"} if k % 3 == 0 else set()) for k in
                     range(a.first_episode, 9)]  # fmt: skip
    b.load(tmp_path / "saved", a.first_episode, a.total_episodes)
    for x, y in zip(a.sample(500, 2, seeded()), b.sample(500, 2, seeded()), strict=True):
        assert torch.equal(x, y)
    with one_line("terminates", "obs_dim 5"):
        a.add(torch.ones(3, 4), torch.ones(3, 3), torch.ones(3), 0, terminated=True)


def test_collector_passes_on_what_ended_for_good():
    ring, collector = Buffer(60, 4, 1), Collector(3, 5, 4, 1, np.array([0, 1, 2]))
    obs = np.zeros((3, 4), np.float32)
    collector.start(obs)
    for t in range(1, 6):
        done, over = np.array([t == 2, t == 3, t == 5]), np.array([t == 2, False, False])
        collector.add(ring, np.zeros((3, 1)), np.ones(3), done, obs, obs, None, over)
    batch = ring.sample(2000, 2, seeded(), "task")
    assert [bool(batch.terminated[:, batch.task == k].any()) for k in range(3)] == [True, False, False]
    assert set(batch.reward[:, batch.task == 0].T.unique(dim=0).sum(1).tolist()) == {0, 1, 2}


def test_collector_refuses_what_it_cannot_keep():
    envs, ring, collector = Clock([5, 9]), Buffer(100, 4, 3), Collector(2, 8, 4, 3, np.array([0, 1]))
    with one_line("start"):
        collector.add(ring, *envs.step())
    envs = Clock([5, 9])
    collector.start(envs.obs())
    for _ in range(8):
        collector.add(ring, *envs.step())
    with one_line("environment 1", "max_steps 8"):
        collector.add(ring, *envs.step())
    for sizes in ((0, 1, 1, 1), (2, 0, 1, 1), (2, 1, 0, 1), (2, 1, 1, 0), (3, 1, 1, 1)):  # last: a task is missing
        with one_line():
            Collector(*sizes, task=np.zeros(2 if sizes[0] else 0))


# ---------------------------------------------------------------- storage


def test_bytes_survive_uint8():
    values = np.arange(256, dtype=np.float32) / np.float32(255)  # what an Atari task returns
    ring = Buffer(9, 256, 1, obs_dtype=torch.uint8)
    ring.add(np.tile(values, (4, 1)), np.zeros((4, 1)), np.zeros(4), task=0)
    assert np.array_equal(ring.sample(3, 2, seeded()).obs.numpy(), np.tile(values, (3, 3, 1)))  # bit for bit
    for bad in (0.5 / 255, -1 / 255, 256 / 255, 0.1, 7.0):
        with one_line("without loss"):
            ring.add(torch.full((4, 256), bad), torch.zeros(4, 1), torch.zeros(4), task=0)
    assert ring.total_episodes == 1


def test_float16_only_where_exact():
    ring = Buffer(9, 2, 1, obs_dtype=torch.float16)
    obs = torch.tensor([[0.5, -3.25], [1.0, 2048.0], [0.0, 2.0**-24]])
    ring.add(obs, torch.zeros(3, 1), torch.zeros(3), task=0)
    assert torch.equal(ring.sample(1, 2, seeded()).obs[:, 0], obs)
    for bad in (0.1, 2049.0, 70_000.0):
        with one_line("without loss"):
            ring.add(torch.full((3, 2), bad), torch.zeros(3, 1), torch.zeros(3), task=0)


def test_gigabytes():
    assert gigabytes(10_000_000, 128, 16, torch.float32) == pytest.approx(1e7 * (128 * 4 + 16 * 4 + 4) / 1e9)
    for dtype in (torch.uint8, torch.float16, torch.float32):
        ring = Buffer(1000, 20, 3, obs_dtype=dtype)
        taken = sum(x.numel() * x.element_size() for x in vars(ring).values() if isinstance(x, torch.Tensor))
        assert gigabytes(1000, 20, 3, dtype) == pytest.approx(taken / 1e9)


def test_two_milliseconds_per_sample():
    """The promise of bench.py; the fastest of 100 is what the machine can do when nothing else runs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ring, generator = Buffer(500_000, 128, 16), seeded()
        parts = {steps: (torch.zeros(steps + 1, 128), torch.zeros(steps + 1, 16), torch.zeros(steps + 1))
                 for steps in (25, 100, 500, 1000)}  # fmt: skip
        for k, steps in enumerate(itertools.cycle(parts)):
            ring.add(*parts[steps], task=k % 200)
            if ring.first_episode:
                break
        for by in MODES:
            times = []
            for _ in range(100):
                start = time.process_time()
                ring.sample(1024, 3, generator, by)
                times.append(time.process_time() - start)
            assert min(times) < 2e-3, f"{by}: {min(times) * 1e3:.1f} ms"
    finally:
        torch.set_num_threads(threads)


# ---------------------------------------------------------------- files


def same(a: Buffer, b: Buffer, size: int = 4000) -> None:
    """Same counts, same draws. So many of them that every stored row is compared."""
    assert (a.episodes, a.steps, a.first_episode, a.total_episodes) == (
        b.episodes, b.steps, b.first_episode, b.total_episodes)  # fmt: skip
    for by in MODES if a.episodes else ():
        x, y = (ring.sample(size, 1, seeded(5), by) for ring in (a, b))
        assert all(torch.equal(i, j) for i, j in zip(x, y, strict=True))


def restored(ring: Buffer, folder: Path, first: int, total: int) -> Buffer:
    again = full_of_nan(ring.capacity)
    again.load(folder, first, total)
    return again


def grow(rings: list[Buffer], count: int) -> None:
    """The same new episodes for all; after each one they must have evicted the same, so their heads are the same."""
    for _ in range(count):
        k = rings[0].total_episodes
        for ring in rings:
            ring.add(*episode(k % 4, k, 1 + k * 7 % 11), task=k % 4)
        assert len({ring.first_episode for ring in rings}) == 1


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_saved_ring_comes_back_bit_for_bit(tmp_path):
    ring = full_of_nan(60)
    ring.save(tmp_path)
    same(ring, restored(ring, tmp_path, 0, 0))  # nothing yet
    # Within the ring, around its end, nothing new, several times around (some episodes never reach a file).
    for count in (3, 2, 1, 4, 0, 5, 40, 1, 6):
        before = files(tmp_path)
        grow([ring], count)
        ring.save(tmp_path)
        after = files(tmp_path)
        assert len(set(after) - set(before)) == (count > 0) and not any(name.endswith("tmp") for name in after)
        assert all(after[name] == before[name] for name in set(after) & set(before))  # append-only
        assert len(after) <= ring.episodes  # files of evicted episodes are gone
        again = restored(ring, tmp_path, ring.first_episode, ring.total_episodes)
        same(ring, again)
        twin = restored(ring, tmp_path, ring.first_episode, ring.total_episodes)
        grow([twin, again], 25)  # heads agree a whole round later
        same(twin, again)
    assert ring.first_episode > 40
    copy = restored(ring, tmp_path, ring.first_episode, ring.total_episodes)
    grow([ring, copy], 25)  # the original and the restored one live on alike
    same(ring, copy)
    copy.save(tmp_path)
    same(ring, restored(ring, tmp_path, ring.first_episode, ring.total_episodes))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16])
def test_saved_in_its_own_dtype(tmp_path, dtype):
    ring, again = (Buffer(20, 5, 2, obs_dtype=dtype) for _ in range(2))
    for k in range(9):
        obs = torch.tensor([0, 51, 255, k, 2]).float().expand(4, 5) / (255 if dtype == torch.uint8 else 1)
        ring.add(obs, torch.rand(4, 2), torch.rand(4), task=k)
    ring.save(tmp_path)
    assert load_file(next(tmp_path.iterdir()))["obs"].dtype == dtype
    again.load(tmp_path, ring.first_episode, ring.total_episodes)
    same(ring, again)


def test_an_older_checkpoint_stays_loadable_and_can_be_continued(tmp_path):
    ring, checkpoints = full_of_nan(60), []
    for count in (5, 4, 3, 6, 30, 2, 7):
        grow([ring], count)
        ring.save(tmp_path, oldest_needed=checkpoints[-1][0] if checkpoints else None)
        for first, total in checkpoints[-1:]:
            older = restored(ring, tmp_path, first, total)
            assert (older.first_episode, older.total_episodes) == (first, total)
            check_slices(older.sample(500, 1, seeded(), "step"))
        checkpoints.append((ring.first_episode, ring.total_episodes))
    # Killed; resumed from the older one: the newer one's file goes with the next save, which holds other episodes.
    older = restored(ring, tmp_path, *checkpoints[-2])
    other = restored(ring, tmp_path, *checkpoints[-2])
    newest = f"{checkpoints[-1][1]:09d}.safetensors"
    assert any(name.endswith(newest) for name in files(tmp_path))
    for one in (older, other):
        one.add(*episode(3, 777, 8), task=3)
    older.save(tmp_path, oldest_needed=checkpoints[-2][0])
    assert not any(name.endswith(newest) for name in files(tmp_path))
    same(other, restored(ring, tmp_path, older.first_episode, older.total_episodes))
    restored(ring, tmp_path, *checkpoints[-2])


def test_killed_while_writing(tmp_path, monkeypatch):
    ring = full_of_nan(60)
    grow([ring], 7)
    ring.save(tmp_path)
    first, total, before = ring.first_episode, ring.total_episodes, files(tmp_path)
    grow([ring], 2)

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            ring.save(tmp_path, oldest_needed=first)
    left = set(files(tmp_path)) - set(before)
    assert len(left) == 1  # the temporary file, cut short as if killed earlier
    (tmp_path / left.pop()).write_bytes(b"half")
    again = restored(ring, tmp_path, first, total)
    grow([again], 2)
    same(ring, again)
    again.save(tmp_path)
    same(ring, restored(ring, tmp_path, again.first_episode, again.total_episodes))


def test_damaged_and_foreign_files(tmp_path):
    ring = full_of_nan(200)
    for _ in range(3):
        grow([ring], 4)
        ring.save(tmp_path / "good")
    counts = ring.first_episode, ring.total_episodes
    names = sorted(files(tmp_path / "good"))
    middle = names[1]

    def broken(change) -> Path:
        folder = tmp_path / "bad"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / "good", folder)
        change(folder)
        return folder

    content = (tmp_path / "good" / middle).read_bytes()
    for size in (0, 5, 100, len(content) // 2, len(content) - 1):  # truncated
        folder = broken(lambda f, size=size: (f / middle).write_bytes(content[:size]))
        with one_line(middle):
            restored(ring, folder, *counts)
    tensors = load_file(tmp_path / "good" / middle)
    table = tensors["table"].clone()
    table[1, 0] += 1
    for change in (
        {"table": table},  # says more rows than there are
        {"table": tensors["table"][:, 1:].contiguous()},
        {"reward": tensors["reward"][1:].contiguous()},
        {"obs": tensors["obs"].to(torch.uint8)},
        {"obs": tensors["obs"][:, :3].contiguous()},
        {"table": tensors["table"] + torch.tensor([[1], [0], [0]])},  # another run's place in the ring
    ):
        folder = broken(lambda f, change=change: save_file(tensors | change, f / middle))
        with one_line(middle):
            restored(ring, folder, *counts)
    with one_line(middle):  # a safetensors file, but of something else
        restored(ring, broken(lambda f: save_file({"weight": torch.zeros(3)}, f / middle)), *counts)
    for name in names:  # missing
        with one_line():
            restored(ring, broken(lambda f, name=name: (f / name).unlink()), *counts)
    with one_line("bad"):
        restored(ring, tmp_path / "bad" / "nowhere", *counts)
    for wrong in (Buffer(200, 5, 3), Buffer(200, 4, 2), Buffer(200, 4, 3, obs_dtype=torch.float16)):
        with one_line(names[0]):
            wrong.load(tmp_path / "good", *counts)
    with one_line():  # too small to hold it
        Buffer(40, 4, 3).load(tmp_path / "good", *counts)
    with one_line("empty"):
        ring.load(tmp_path / "good", *counts)
    # Not ours, hence ignored; nor is a file looked at that only a newer checkpoint needs.
    folder = broken(lambda f: [(f / name).write_bytes(b"?") for name in ("episodes-a-b.safetensors", "notes.txt")])
    same(ring, restored(ring, folder, *counts))
    folder = broken(lambda f: (f / names[2]).write_bytes(b"?"))
    assert restored(ring, folder, 0, 8).total_episodes == 8


def test_files_that_moved_are_continued(tmp_path):
    ring = full_of_nan(60)
    grow([ring], 3)
    ring.save(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    ring.moved(tmp_path / "b")
    grow([ring], 2)
    ring.save(tmp_path / "b")
    same(ring, restored(ring, tmp_path / "b", ring.first_episode, ring.total_episodes))


def test_files_that_were_cut_short_go(tmp_path):
    """Of a program that was killed while writing one; each has a name of its own."""
    ring = full_of_nan(60)
    grow([ring], 3)
    ring.save(tmp_path)
    for name in ("episodes-000000003-000000005.safetensors.0123456789abcdef0123456789abcdef.tmp", ".tmpAbC123"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    grow([ring], 2)
    ring.save(tmp_path)
    assert all(name.endswith((".safetensors", "notes.txt")) for name in map(str, tmp_path.iterdir()))
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_save_overwrites_no_other_ring(tmp_path):
    ring, other = full_of_nan(60), full_of_nan(60)
    grow([ring], 6)
    grow([other], 3)
    ring.save(tmp_path / "a")
    before = files(tmp_path / "a")
    with one_line(str(tmp_path / "a")):
        other.save(tmp_path / "a")
    assert files(tmp_path / "a") == before
    grow([ring], 3)
    ring.save(tmp_path / "b")  # a second folder gets everything, not only what the first one lacks
    same(ring, restored(ring, tmp_path / "b", ring.first_episode, ring.total_episodes))


# ---------------------------------------------------------------- bad input


def test_bad_sizes_and_choices():
    for sizes in itertools.product((0, 1), repeat=3):
        if 0 in sizes:
            with one_line("at least 1"):
                Buffer(*sizes)
    with one_line("obs_dtype"):
        Buffer(10, 2, 2, obs_dtype=torch.int64)
    with one_line("GB"):
        Buffer(10**14, 128, 16)  # 58 million GB
    ring, _ = filled(100, [9, 9])
    for batch_size, horizon in ((0, 3), (-1, 3), (4, 0), (4, -2)):
        with one_line("at least 1"):
            ring.sample(batch_size, horizon)
    with one_line("episode, task or step"):
        ring.sample(4, 3, by="random")
    with one_line("nothing to sample", "10 steps"):
        ring.sample(4, 10)
    for by in MODES:
        with one_line("nothing to sample"):
            Buffer(10, 2, 2).sample(4, 3, by=by)


def test_bad_episodes():
    ring, _ = filled(12, [5])
    obs, action, reward = episode(0, 0, 4)

    def changed(x: torch.Tensor, row: int, value: float) -> torch.Tensor:
        x = x.clone()
        x[row] = value
        return x

    for bad in (
        (obs[1:], action, reward), (obs, action[1:], reward), (obs, action, reward[1:]), (obs[0], action, reward),
        (obs[:1], action[:1], reward[:1]), (obs[:0], action[:0], reward[:0]), (obs, action, reward[:, None]),
        (torch.zeros(5, 5), action, reward), (obs, torch.zeros(5, 4), reward), episode(0, 0, 12),
        (changed(obs, 0, torch.nan), action, reward), (changed(obs, 4, torch.inf), action, reward),
        (obs, changed(action, 1, torch.nan), reward), (obs, action, changed(reward, 4, torch.nan)),
    ):  # fmt: skip
        with one_line():
            ring.add(*bad, task=0)
    assert ring.total_episodes == 1
    check_slices(ring.sample(100, 3, seeded()))  # and nothing was written
    ring.add(*episode(0, 1, 11), task=0)  # 12 rows just fit
    assert ring.episodes == 1


# ---------------------------------------------------------------- on its own


def test_works_copied_alone(tmp_path):
    shutil.copy(ROOT / "buffer.py", tmp_path)
    program = """
import importlib.util, sys
sys.path.insert(0, "")
import numpy as np, torch, buffer
assert not any(importlib.util.find_spec(name) for name in ("newt", "world_model", "planner", "demos"))
ring, again = buffer.Buffer(100, 3, 2), buffer.Buffer(100, 3, 2)
collector = buffer.Collector(2, 10, 3, 2, np.array([0, 1]))
collector.start(np.zeros((2, 3)))
for step in range(1, 31):
    done = np.array([step % 10 == 0, step % 5 == 0])
    collector.add(ring, np.ones((2, 2)), np.ones(2), done, np.full((2, 3), step), np.full((2, 3), step))
ring.save("saved")
again.load("saved", ring.first_episode, ring.total_episodes)
batch = buffer.sample_mixed(ring, again, 16, 3, torch.Generator().manual_seed(0), "task")
print(*(tuple(x.shape) for x in batch), ring.episodes, again.steps)
"""
    # -I: neither PYTHONPATH nor the user's packages; the working folder is the only one besides the installed packages.
    done = subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "(4, 16, 3) (3, 16, 2) (3, 16) (16,) (3, 16) 9 60"
