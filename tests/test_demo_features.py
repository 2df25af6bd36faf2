"""Features of demonstrations: made by playing again, in parallel, resumable; refused where they are others'.

Run: pytest tests/test_demo_features.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import demo_features
import demo_format
import demos
import envs
import vision
from demo_format import load, place

ROOT = Path(vision.__file__).parent
TASK = "pygame-point-maze-var1"
FEATURES = f"lite0 {vision.load('lite0').weights} fast"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two short demonstrations, cut: replaying does not ask how long an episode is."""
    folder, rng, parts = tmp_path_factory.mktemp("demos"), np.random.default_rng(0), []
    env = envs.make(TASK)
    for seed in (3, 4, 5):
        obs, _ = env.reset(seed=seed)
        rows, actions, rewards = [obs], rng.uniform(-1, 1, (6 + seed, 2)).astype(np.float32), []
        for action in actions:
            obs, reward, *_ = env.step(action)
            rows.append(obs), rewards.append(reward)
        parts.append(demo_format.from_arrays(TASK, rows, actions, rewards)._replace(seed=np.array([seed])))
    demo_format.save(place(folder, TASK), demo_format.join(parts, parts[0].meta))
    return folder


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "demos.py", *words], cwd=ROOT, capture_output=True, text=True)


def copy_of(folder: Path, to: Path) -> Path:
    to.mkdir()
    place(to, TASK).write_bytes(place(folder, TASK).read_bytes())
    return to


def test_each_row_has_the_feature_of_its_frame(folder, tmp_path):
    mine = copy_of(folder, tmp_path / "demos")
    with pytest.raises(ValueError, match="3 of 3 demonstrations .* have no features of lite0"):
        demo_features.load(place(mine, TASK), TASK, FEATURES)
    done = run("features", str(mine), "--workers", "2")
    assert done.returncode == 0 and "1 tasks have features of lite0" in done.stdout, done.stderr
    demo, eyes = demo_features.load(place(mine, TASK), TASK, FEATURES), vision.load("lite0")
    assert demo.feature.shape == (len(demo.obs), 768) and demo.feature.dtype == np.float16
    env = envs.make(TASK)
    for e in range(3):
        one = demo_format.episode(demo, e)
        env.reset(seed=int(one.seed[0]))
        for t in range(len(one.obs)):
            if t:
                env.step(one.action[t])
            assert np.array_equal(one.feature[t], eyes(env.render()[None])[0])
    whole = demo_format.join([demo_format.episode(demo, e) for e in (2, 0)], demo.meta)
    assert len(whole.feature) == len(whole.obs)
    before = (mine / "features/lite0-fast" / f"{TASK}.safetensors").stat().st_mtime_ns
    assert run("features", str(mine)).returncode == 0  # nothing is left to do
    assert before == (mine / "features/lite0-fast" / f"{TASK}.safetensors").stat().st_mtime_ns
    assert load(place(mine, TASK), TASK).feature is None and len(demos.overview(mine)) == 1


def test_what_was_made_is_kept_by_the_episode(folder, tmp_path, monkeypatch):
    """Also where the demonstrations have another order, or more episodes, since."""
    mine = copy_of(folder, tmp_path / "demos")
    demo, path = load(place(mine, TASK), TASK), demo_features.place(place(mine, TASK), FEATURES)
    known = {1: np.full((11, 768), 7, np.float16)}
    demo_features.save(path, TASK, FEATURES, demo, known)
    turned = demo_format.join([demo_format.episode(demo, e) for e in (2, 1, 0)], demo.meta)
    assert list(demo_features.read(path, TASK, FEATURES, turned)) == [1]
    turned = demo_format.join([demo_format.episode(demo, e) for e in (1, 2)], demo.meta)
    assert list(demo_features.read(path, TASK, FEATURES, turned)) == [0]
    assert demo_features.make_all([TASK], mine, FEATURES, None, 1) == {}
    full = demo_features.load(place(mine, TASK), TASK, FEATURES)
    first = full.episode_start[1]
    assert (full.feature[first : first + 11] == 7).all() and not (full.feature[:first] == 7).any()


def test_others_features_are_refused(folder, tmp_path):
    mine = copy_of(folder, tmp_path / "demos")
    demo, path = load(place(mine, TASK), TASK), demo_features.place(place(mine, TASK), FEATURES)
    known = {e: np.zeros((n, 768), np.float16) for e, n in enumerate(np.diff(demo.episode_start))}
    demo_features.save(path, TASK, "lite0 000000000000 fast", demo, known)
    with pytest.raises(ValueError, match=f"holds features of {TASK} lite0 000000000000 fast, needed are"):
        demo_features.load(place(mine, TASK), TASK, FEATURES)
    done = run("features", str(mine))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    demo_features.save(path, TASK, "lite0 published fast", demo, known)  # of which no fingerprint is known
    assert demo_features.load(place(mine, TASK), TASK, FEATURES).feature.shape == (len(demo.obs), 768)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no complete file of features"):
        demo_features.load(place(mine, TASK), TASK, FEATURES)
    for wrong in ({0: known[0] * np.float16(np.nan)}, {0: known[0].astype(np.float32)}, {0: known[0][:, :5]}):
        demo_features.save(path, TASK, FEATURES, demo, wrong)
        with pytest.raises(ValueError, match="of another shape or type"):
            demo_features.load(place(mine, TASK), TASK, FEATURES)


def test_another_simulator_is_noticed(folder, tmp_path):
    mine = copy_of(folder, tmp_path / "demos")
    demo = load(place(mine, TASK), TASK)
    demo.reward[demo.episode_start[1] + 4] += 1e-3
    demo_format.save(place(mine, TASK), demo)
    done = run("features", str(mine), "--workers", "1")
    assert done.returncode == 2 and "episode 1: step 4 gives another reward" in done.stderr
    kept = demo_features.read(demo_features.place(place(mine, TASK), FEATURES), TASK, FEATURES, demo)
    assert sorted(kept) == [0, 2]
    demo_format.save(place(mine, TASK), demo._replace(seed=np.full(3, -1)))
    done = run("features", str(mine))
    assert done.returncode == 2 and "doesn't say its seeds" in done.stderr
    assert run("features", str(tmp_path / "none")).returncode == 2
    assert "no demonstrations of walker-walk" in run("features", str(mine), "--tasks", "walker-walk").stderr


def test_training_uses_them(folder, tmp_path):
    mine = copy_of(folder, tmp_path / "demos")
    words = ["train.py", "--tasks", TASK, "--obs", "state+rgb", "--preset", "laptop", "--demos", str(mine), "--folder",
             str(tmp_path / "run"), "--pretrain-updates", "4", "--steps", "2", "--final-episodes", "1", "--batch-size",
             "8", "--num-samples", "16", "--num-elites", "4", "--num-pi", "4", "--workers", "1", "--horizon", "2",
             "--compile", "off", "--buffer-steps", "2000", "--iterations", "1"]  # fmt: skip
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}

    def train() -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=environ)

    done = train()
    assert done.returncode == 2 and "demos.py features" in done.stderr and not (tmp_path / "run").exists()
    assert demo_features.make_all([TASK], mine, FEATURES, None, 1) == {}
    done = train()
    assert done.returncode == 0, done.stderr
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["agent"]["obs"] == "state+rgb" and config["agent"]["obs_dim"] == 128
