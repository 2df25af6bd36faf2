"""bench.py: both sides of a comparison do the same work, memory is what the system says, and the guard guards."""

import multiprocessing
import time

import numpy as np
import psutil
import pytest
import torch

import bench
import envs
import newt
from envs.vector import VectorEnv, episode_seed

TASKS = ["walker-walk", "pygame-landing"]


def sleep_for_ever() -> None:
    time.sleep(1000)


@pytest.fixture(scope="module")
def usual():
    vector = bench.process_for_each(TASKS, "spawn", 0)
    yield vector
    vector.close()


def test_both_step_the_same_environments(usual):
    actions = np.random.default_rng(0).uniform(-1, 1, (20, len(TASKS), bench.ACTION_DIM)).astype(np.float32)
    seen, _ = usual.reset(seed=[episode_seed(0, name, 0, 0) for name in TASKS])
    with VectorEnv(TASKS, 0, 1, bench.OBS_DIM, bench.ACTION_DIM) as ours:
        np.testing.assert_array_equal(ours.reset(), seen)
        for action in actions:
            step, (obs, reward, *_) = ours.step(action), usual.step(action)
            np.testing.assert_array_equal(step.obs, obs)
            np.testing.assert_array_equal(step.reward, reward.astype(np.float32))


def test_a_process_for_each_task_without_torch(usual):
    """Were this program loaded there, its torch would be counted as memory that the usual way needs."""
    for process in usual.processes:
        libraries = {m.path for m in psutil.Process(process.pid).memory_maps()}
        assert any("numpy" in path for path in libraries)
        assert not any("libtorch" in path for path in libraries)
    assert len(usual.processes) == len(TASKS)


def test_memory_counts_shared_pages_once_or_often(usual):
    processes = {psutil.Process(process.pid) for process in usual.processes}
    pss, rss = bench.memory_gb(processes)
    assert 0 < pss <= rss
    assert rss == pytest.approx(sum(p.memory_info().rss for p in processes) / 1e9, rel=0.05)


def test_guard_ends_the_children_of_its_block_in_time(usual, monkeypatch):
    child = multiprocessing.get_context("spawn").Process(target=sleep_for_ever)
    with pytest.raises(RuntimeError, match="GB of memory were left.*advice"), bench.memory_guard("advice"):
        child.start()
        monkeypatch.setattr(bench, "LEAST_FREE_GB", 1e9)
        child.join(10)
        raise EOFError  # what a pipe to it would say
    assert child.exitcode == -9
    assert all(process.is_alive() for process in usual.processes)


def test_guard_leaves_other_errors_alone():
    with pytest.raises(RuntimeError, match="mine"), bench.memory_guard("advice"):
        raise RuntimeError("mine")


def test_filled_holds_episodes_of_all_tasks():
    cfg = newt.Config(size="XS", obs_dim=3, action_dim=2)
    replay = bench.filled(capacity=11 * 5, cfg=cfg, tasks=2, length=10)  # five episodes of eleven rows
    batch = replay.sample(64, 3, torch.Generator().manual_seed(0))
    assert replay.steps == 50
    assert set(batch.task.tolist()) == {0, 1}
    assert all(torch.isfinite(x).all() for x in batch[:3])


def test_vector_prints_a_row_for_each_side(capsys):
    bench.main_vector(bench.VectorBench(",".join(TASKS), workers=(1,), start="spawn", steps=5, turns=1))
    rows = {line[:34].strip(): line[34:].split() for line in capsys.readouterr().out.splitlines() if line[34:].strip()}
    ours, usual = rows["VectorEnv, 1 worker"], rows["AsyncVectorEnv, spawn"]
    assert ours[:2] == ["1", "2"] and usual[:2] == ["2", "2"]
    assert float(ours[2]) > 0 and float(usual[2]) > 0
    assert float(ours[6]) > 0.02 and float(usual[6]) > float(ours[6])


def test_vector_takes_a_count_of_the_tasks_evenly(monkeypatch):
    every, taken = envs.select("all"), []
    monkeypatch.setattr(bench, "take_turns", lambda cfg, names, usual: taken.append((names, usual)))
    for count in (0, 200, 50, 150):
        bench.main_vector(bench.VectorBench(count=count))
    assert taken[:3] == [(every, True), (every, True), (every, False)] and taken[3] == (every[::4], True)
    assert taken[4] == (every, False) and len(taken) == 6
    names, usual = taken[5]
    assert usual and len(set(names)) == 150 and names == [name for name in every if name in names]
    assert not any({a, b}.isdisjoint(names) for a, b in zip(every, every[1:], strict=False))
    with pytest.raises(ValueError, match="count must be from 0 to 27"):
        bench.main_vector(bench.VectorBench("atari", 28))


def test_vector_without_the_usual_way_makes_no_process_for_each(capsys):
    bench.take_turns(bench.VectorBench(workers=(1,), steps=5, turns=1), TASKS, usual=False)
    labels = [line[:34].strip() for line in capsys.readouterr().out.splitlines()]
    assert labels[1:] == ["", "VectorEnv, 1 worker"]


def test_overlap_prints_both_ways_and_their_parts(capsys):
    threads = torch.get_num_threads()
    bench.main_overlap(bench.OverlapBench("pygame-landing", utd=1, workers=1, steps=2, turns=1))
    torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("1 tasks, 1 workers, 1 updates per step of all")
    assert [line[:34].strip() for line in lines[2:]] == ["send, recv, update", "send, update, recv", "ideal"]


@pytest.mark.parametrize(
    "main, settings, said",
    [
        (bench.main, bench.Bench(envs=0), "envs must be at least 1"),
        (bench.main, bench.Bench(batch_size=0), "batch_size must be at least 1"),
        (bench.main, bench.Bench(buffer_steps=500), "buffer_steps must be at least 1024"),
        (bench.main_envs, bench.EnvBench(steps=0), "steps must be at least 1"),  # never ended
        (bench.main_vector, bench.VectorBench(steps=0), "steps must be at least 1"),
        (bench.main_vector, bench.VectorBench(workers=(1, 0)), "workers must be numbers of at least 1"),
        (bench.main_overlap, bench.OverlapBench(steps=0), "steps must be at least 1"),
        (bench.main_overlap, bench.OverlapBench(turns=0), "turns must be at least 1"),
        (bench.main_overlap, bench.OverlapBench(utd=float("nan")), "utd"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(main, settings, said):
    with pytest.raises(ValueError, match=said):
        main(settings)
