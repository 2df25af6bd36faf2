"""Frames for agents: fast ones, and many of them out of worker processes.

Run: pytest tests/test_frames.py
"""

import numpy as np
import pytest

import envs
from envs.vector import VectorEnv, episode_seed, share_out

TASKS = ["walker-walk", "mw-drawer-open", "mujoco-reacher", "rd-push-red", "og-point-maze"]


def frame(task: str, frames: str, seed: int = 0) -> np.ndarray:
    env = envs.make(task, render_mode="rgb_array", frames=frames)
    env.reset(seed=seed)
    for _ in range(3):
        env.step(np.full(env.action_space.shape, 0.3, np.float32))
    try:
        picture = env.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert np.array_equal(picture, env.render())
    env.close()
    return picture


@pytest.mark.parametrize("task", TASKS)
def test_fast_frames_are_deterministic_and_show_the_same(task):
    fast, full = frame(task, "fast"), frame(task, "full")
    assert np.array_equal(fast, frame(task, "fast")) and fast.shape == (224, 224, 3)
    away = np.abs(fast.astype(float) - full.astype(float)).mean(2)
    assert not np.array_equal(fast, full)
    assert np.median(away) < 30, "more than shadows and edges differ"
    assert not np.array_equal(fast, frame(task, "fast", seed=1))


def test_full_frames_are_those_of_a_model_that_was_not_touched():
    """A fast camera gives the model its settings back: the next full one draws as before."""
    before = frame("walker-walk", "full")
    env = envs.make("walker-walk", render_mode="rgb_array", frames="fast")
    env.reset(seed=0)
    model = env._env.physics.model.ptr
    settings = model.vis.quality.shadowsize, model.vis.quality.offsamples, model.vis.global_.offwidth
    try:
        env.render()
    except RuntimeError as error:
        pytest.skip(str(error))
    assert settings == (model.vis.quality.shadowsize, model.vis.quality.offsamples, model.vis.global_.offwidth)
    assert not env._camera.scene.flags[0]  # shadows
    env.close()
    assert np.array_equal(before, frame("walker-walk", "full"))


def test_other_words_are_refused():
    with pytest.raises(ValueError, match="full or fast, not 'fine'"):
        envs.make("walker-walk", frames="fine")
    assert envs.make("pygame-pong", frames="fast").frames == "fast"  # its own pictures are as they are


def test_frames_of_a_vector_are_those_of_its_environments():
    """Of resets, of steps, and of the last observation of an episode, whichever process draws."""
    tasks, length = ["pygame-point-maze-var1", "pygame-landing"], 200
    alone = [envs.make(task) for task in tasks]
    for env, task in zip(alone, tasks, strict=True):
        env.reset(seed=episode_seed(5, task, 0, 0))
    with VectorEnv(tasks, 5, 2, render_mode="rgb_array", frames=True) as vector:
        vector.reset()
        assert all(np.array_equal(vector.frames[i], env.render()) for i, env in enumerate(alone))
        for t in range(1, length + 1):
            done = vector.step(np.full((2, 16), 0.2, np.float32)).done
            for env in alone:
                env.step(np.full(2, 0.2, np.float32))
            shown = vector.final_frames if t == length else vector.frames
            assert done.all() == (t == length)
            if t % 40 == 0:
                assert all(np.array_equal(shown[i], env.render()) for i, env in enumerate(alone))
        for i, env in enumerate(alone):
            env.reset(seed=episode_seed(5, tasks[i], 0, 1))
            assert np.array_equal(vector.frames[i], env.render())
            assert not np.array_equal(vector.frames[i], vector.final_frames[i])
    assert vector.frames is None


def test_states_cost_no_frames():
    with VectorEnv(["pygame-landing"], 0, 1) as vector:
        vector.reset()
        assert vector.frames is None and vector._pictures is None


def test_without_opengl_one_line_names_the_package(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setenv("PYOPENGL_PLATFORM", "nothing")  # also where the library is installed
    with pytest.raises(RuntimeError, match="apt-get install") as caught:
        VectorEnv(["walker-walk"], 0, 1, render_mode="rgb_array", frames=True)
    assert "Traceback" not in str(caught.value) and "walker-walk failed" in str(caught.value)


def test_work_is_shared_out_by_what_frames_cost():
    """A step of RoboDesk takes as long as 13 of Meta-World, but with their frames (30 ms against 13) as long as 2.4."""
    tasks = ["rd-push-red"] + ["mw-reach"] * 10
    drawn, stepped = (share_out(tasks, 2, frames) for frames in (True, False))
    assert len(stepped[0]) == 1 and len(drawn[0]) == 1 + 4
