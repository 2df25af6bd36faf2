"""What agents observe: states, features, both; from the buffer over training and its checkpoints to evaluation.

Run: pytest tests/test_observe.py
"""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

import agent_file
import envs
import newt
import observe
import prepare
import vision
import world_model as wm
from agent_config import FEATURES, Config
from buffer import Buffer, Collector
from train_config import check, parse

ROOT = Path(vision.__file__).parent
TASK = "pygame-landing"
SMALL = Config(size="XS", batch_size=8, num_samples=16, num_elites=4, num_pi=4, iterations=1)


def feature_like(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).half().float()


# ---- replay ----


def test_features_are_kept_beside_states_and_come_back_exactly(tmp_path):
    buffer = Buffer(50, 5, 2, feature_dim=7)
    assert buffer._obs.shape == (50, 5) and buffer._feature.shape == (50, 7) and buffer._feature.dtype == torch.float16
    state, feature = torch.rand(11, 5), feature_like(11, 7)
    buffer.add(torch.cat([state, feature], 1), torch.rand(11, 2), torch.rand(11), task=0)
    batch = buffer.sample(64, 3, torch.Generator().manual_seed(1))
    assert batch.obs.shape == (4, 64, 12)
    for row in batch.obs.flatten(0, 1):
        t = int((state == row[:5]).all(1).nonzero())
        assert torch.equal(row[5:], feature[t])
    buffer.save(tmp_path)
    again = Buffer(50, 5, 2, feature_dim=7)
    again.load(tmp_path, 0, 1)
    assert torch.equal(again.sample(64, 3, torch.Generator().manual_seed(1)).obs, batch.obs)
    for other in (Buffer(50, 5, 2), Buffer(50, 5, 2, feature_dim=6)):
        with pytest.raises(ValueError, match="does not fit this buffer"):
            other.load(tmp_path, 0, 1)


def test_features_that_float16_would_change_are_refused():
    buffer, row = Buffer(50, 1, 1, feature_dim=2), torch.zeros(3, 3)
    for wrong in (torch.full((3, 3), 0.1), torch.full((3, 3), torch.inf), torch.zeros(3, 2), torch.zeros(3, 4)):
        with pytest.raises(ValueError):
            buffer.add(wrong, torch.zeros(3, 1), torch.zeros(3), 0)
    buffer.add(row, torch.zeros(3, 1), torch.zeros(3), 0)
    with pytest.raises(ValueError, match="obs_dim must be at least 1"):
        Buffer(50, 0, 1)


def test_only_features_need_no_state():
    """And the absorbing state behind the end of an own task shows nothing, its one input of state tells it."""
    buffer = Buffer(50, 0, 1, feature_dim=3)
    buffer.add(feature_like(4, 3), torch.zeros(4, 1), torch.zeros(4), 0)
    assert buffer.sample(4, 2).obs.shape == (3, 4, 3)
    with pytest.raises(ValueError, match="needs obs_dim 1"):
        buffer.add(feature_like(4, 3), torch.zeros(4, 1), torch.zeros(4), 0, terminated=True)
    ends = Buffer(50, 1, 1, feature_dim=3)
    ends.add(torch.cat([torch.zeros(4, 1), feature_like(4, 3)], 1), torch.zeros(4, 1), torch.ones(4), 0, True)
    batch = ends.sample(64, 2, torch.Generator().manual_seed(0))
    over = batch.terminated[-1] > 0
    assert over.any() and not over.all()
    assert torch.equal(batch.obs[-1, over], torch.tensor([1.0, 0, 0, 0]).expand(int(over.sum()), 4))
    assert batch.obs[-1, ~over, 1:].abs().sum(1).min() > 0 and not batch.obs[-1, ~over, 0].any()


def test_memory_is_stated_with_features():
    """2 bytes a number, and unfinished episodes of all environments besides."""
    setup = parse(["--tasks", TASK, "--obs", "state+rgb", "--demos", "none", "--preset", "laptop",
                   "--buffer-steps", "1000000000"])  # fmt: skip
    with pytest.raises(ValueError, match=f"{(128 * 4 + 17 * 4 + FEATURES * 2):d}.0 GB are needed for the buffer"):
        check(setup, 1, 1)


def test_collector_takes_observations_as_they_are():
    collector, buffer = Collector(1, 2, 4, 1, np.zeros(1)), Buffer(9, 1, 1, feature_dim=3)
    rows = np.concatenate([np.zeros((3, 1)), feature_like(3, 3).numpy()], 1).astype(np.float32)
    collector.start(rows[:1])
    for t in (1, 2):
        done = np.array([t == 2])
        collector.add(buffer, np.zeros((1, 1)), np.zeros(1), done, rows[t : t + 1], rows[t : t + 1])
    assert np.array_equal(buffer._feature[:3], rows[:, 1:].astype(np.float16))


# ---- agents ----


def agent_of(obs: str, **settings) -> newt.Agent:
    cfg = replace(SMALL, obs=obs, obs_dim=0 if obs == "rgb" else 128, **settings)
    row = envs.TASKS[TASK]
    agent = newt.create(cfg, [TASK], torch.ones(1, cfg.task_dim), [row.action_dim], [row.discount])
    prepare.open_eyes(agent, parse(["--tasks", TASK, "--demos", "none"]).cfg)
    return agent


def test_an_agent_of_states_begins_to_see_and_does_what_it_did():
    source = agent_of("state")
    params = prepare.start_from(source, replace(source.cfg, obs="state+rgb"), Path("x"))
    task = wm.Task(torch.randn(1, 384), source.mask, torch.zeros(6, dtype=torch.long))
    state, feature = torch.randn(6, 128), feature_like(6, FEATURES)
    assert params["encoder.0.weight"].shape[1] == 128 + FEATURES + 384
    before = wm.encode(source.params, state, task)
    assert torch.equal(wm.encode(params, torch.cat([state, feature], 1), task), before)
    grown = newt.create(replace(source.cfg, obs="state+rgb"), [TASK], source.emb, [2], [0.9], params=params)
    assert grown.cfg.input_dim == 128 + FEATURES


@pytest.mark.parametrize("was, now", [("state", "rgb"), ("rgb", "state"), ("state+rgb", "rgb"), ("state+rgb", "state")])
def test_agents_of_other_observations_are_refused(was, now):
    source = agent_of(was)
    with pytest.raises(ValueError, match=f"with --obs {was.replace('+', '.')} and can't go on with --obs {now}"):
        prepare.start_from(source, replace(source.cfg, obs=now), Path("x"))


def test_other_features_are_refused():
    source = agent_of("rgb")
    with pytest.raises(ValueError, match="--frames fast; other features"):
        prepare.start_from(source, replace(source.cfg, frames="full"), Path("x"))
    source.cfg = replace(source.cfg, image_hash="0" * 12)
    with pytest.raises(ValueError, match="not those that the agent learned with"):
        observe.open_eyes(source.cfg, None, torch.device("cpu"))
    for obs, dim in (("rgb", 128), ("state", 0), ("state+rgb", 0)):
        with pytest.raises(ValueError, match="doesn't go with obs"):
            newt.check(replace(SMALL, obs=obs, obs_dim=dim))


def test_files_say_what_an_agent_sees(tmp_path):
    agent = agent_of("state+rgb")
    agent_file.save(tmp_path / "a.safetensors", agent)
    again, _ = agent_file.load(tmp_path / "a.safetensors")
    assert again.cfg == agent.cfg and again.cfg.features == f"lite0 {agent.eyes.weights} fast"
    assert agent_of("state").cfg.features == ""


@pytest.mark.parametrize("obs", ["rgb", "state+rgb"])
def test_a_vector_gives_state_and_feature_of_every_observation(obs):
    """Also of the last one of an episode, and of the first of the next."""
    agent, alone = agent_of(obs), envs.make(TASK)
    with observe.environments(agent, [TASK, TASK], 0, 1) as vector:
        assert isinstance(vector, observe.Seeing)
        obs = vector.reset()
        alone.reset(seed=observe.envs.vector.episode_seed(0, TASK, 0, 0))
        for t in range(1, 201):
            step = vector.step(np.full((2, 16), 0.1, np.float32))
            state, *_ = alone.step(np.full(2, 0.1, np.float32))
            if t in (1, 200):
                wanted = observe.padded(agent, alone, state)[0].numpy()
                assert np.array_equal(step.final_obs[0], wanted) and step.done[0] == (t == 200)
                assert obs.shape == (2, agent.cfg.input_dim) and np.isfinite(obs).all()
        state, _ = alone.reset(seed=observe.envs.vector.episode_seed(0, TASK, 0, 1))
        assert np.array_equal(step.obs[0], observe.padded(agent, alone, state)[0].numpy())
        assert not np.array_equal(step.obs[0], step.final_obs[0])
        assert np.array_equal(step.obs[0].astype(np.float16)[-FEATURES:], step.obs[0][-FEATURES:])


def test_agents_of_states_have_the_plain_vector_and_nothing_of_images():
    code = ("import sys, train, eval, prepare, demos, observe, newt\n"
            "with observe.environments(newt.create(newt.Config(size='XS'), ['pygame-pong'], __import__('torch').zeros("
            "1, 384), [1], [.9]), ['pygame-pong'], 0, 1) as v: print(type(v).__name__, v.frames)\n"
            "print([m for m in ('vision', 'pygame', 'imageio', 'OpenGL') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "VectorEnv None\n[]\n", done.stdout + done.stderr


# ---- the programs ----

RUN = ["--tasks", TASK, "--preset", "laptop", "--demos", "none", "--steps", "420", "--eval-every", "200",
       "--eval-episodes", "1", "--final-episodes", "1", "--batch-size", "8", "--num-samples", "16",
       "--num-elites", "4", "--num-pi", "4", "--iterations", "1", "--workers", "1", "--compile", "off",
       "--buffer-steps", "2000", "--utd", "0.1"]  # fmt: skip


def program(*words: str, **options) -> subprocess.CompletedProcess:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, env=environ, **options)


def weights(folder: Path) -> dict[str, np.ndarray]:
    return safetensors.numpy.load_file(folder / "agent.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("seeing") / "run"
    done = program("train.py", *RUN, "--obs", "rgb", "--folder", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def test_training_goes_on_bit_for_bit_after_a_kill(trained, tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "train.py", *RUN, "--obs", "rgb", "--folder", str(folder)]
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ)
    end = time.monotonic() + 200
    while not (folder / "checkpoints/200/state.safetensors").is_file() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (folder / "checkpoints/420").exists()
    done = program("train.py", "--resume", str(folder))
    assert done.returncode == 0, done.stderr
    one, other = weights(trained), weights(folder)
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)
    assert one["encoder.0.weight"].shape[1] == FEATURES + 384  # no state at all


def test_evaluation_gives_the_same_numbers_twice(trained, tmp_path):
    results = []
    for k in range(2):
        words = ["--ckpt", str(trained / "agent.safetensors"), "--episodes", "1", "--json", str(tmp_path / f"{k}.json")]
        done = program("eval.py", *words, *(["--video", str(tmp_path / "films")] if k else []))
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / f"{k}.json").read_text())["tasks"])
    assert results[0] == results[1] and (tmp_path / f"films/{TASK}.mp4").stat().st_size > 1000


def test_bad_input_is_one_line(trained, tmp_path):
    ckpt = str(trained / "agent.safetensors")
    new = ["--preset", "laptop", "--demos", "none", "--folder", str(tmp_path / "new")]
    for words, reason in (
        (["train.py", "--tasks", TASK, "--ckpt", ckpt, *new], "--obs rgb and can't go on with --obs state"),
        (["train.py", "--tasks", TASK, "--obs", "rgb", "--image-encoder", "dinov2", *new], "--image-weights"),
        (["train.py", "--tasks", TASK, "--image-weights", "x.pth", *new], "for agents that see"),
        (["eval.py", "--ckpt", ckpt, "--image-weights", "x.pth"], "is for dinov2"),
    ):
        done = program(*words)
        last = done.stderr.strip().splitlines()[-1:]
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and reason in last[0], done.stderr
    assert not (tmp_path / "new").exists()


def test_without_opengl_it_ends_before_the_work(tmp_path):
    environ = {**os.environ, "MUJOCO_GL": "osmesa", "PYOPENGL_PLATFORM": "nothing", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "train.py", "--tasks", "walker-walk", "--obs", "rgb", "--preset", "laptop", "--demos",
             "none", "--folder", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=environ)
    assert done.returncode == 2 and not (tmp_path / "run").exists()
    assert len(done.stderr.strip().splitlines()) == 1 and "apt-get install" in done.stderr, done.stderr
