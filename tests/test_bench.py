"""bench.py: the commands run and print what they promise; padding for one process per task.

Run: pytest tests/test_bench.py        (about 20 seconds on one core)
"""

import numpy as np
import pytest

import bench
import envs


def test_padding_changes_nothing_else():
    env, plain = bench.Padded("mw-reach"), envs.make("mw-reach")
    obs, _ = env.reset(seed=3)
    expected, _ = plain.reset(seed=3)
    assert obs.shape == (128,) and not obs[len(expected) :].any()
    np.testing.assert_array_equal(obs[: len(expected)], expected)
    action = np.linspace(-1, 1, 16, dtype=np.float32)
    obs, reward, _, done, info = env.step(action)
    other = plain.step(action[:4])
    np.testing.assert_array_equal(obs[: len(expected)], other[0])
    assert (reward, done, info["score"]) == (other[1], other[3], other[4]["score"])


def test_vector(capsys):
    bench.main_vector(bench.VectorBench("reacher-easy,pygame-landing", workers=(1,), steps=2, turns=1))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("2 tasks") and [line[:12].strip() for line in lines[2:]] == ["ours, 1", "one per task"]
    for line in lines[2:]:
        made, rate, gib = map(float, line[16:].split())
        assert made > 0 and rate > 0 and 0.02 < gib < 2


def test_vector_stops_before_memory_runs_out():
    with pytest.raises(ValueError, match="GiB are left; use a larger --every"):
        bench.main_vector(bench.VectorBench("reacher-easy", workers=(1,), spare_gib=1e6))


def test_overlap(capsys):
    bench.main_overlap(bench.OverlapBench("reacher-easy,pygame-landing", updates=1, steps=2, turns=1))
    words = [line.rsplit(maxsplit=2) for line in capsys.readouterr().out.splitlines()[1:]]
    assert [word[0].strip() for word in words] == ["plan", "learn", "step", "overlapped", "one after the other"]
    assert all(float(word[1]) > 0 for word in words)
