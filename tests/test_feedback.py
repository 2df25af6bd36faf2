"""Feedback controllers: what they reach, that they are functions of what is observed, and the mechanics in them.

Run: pytest tests/test_feedback.py
"""

import numpy as np
import pytest
from scipy.linalg import solve_discrete_are

import envs
import experts
from envs import feedback

# Scores of the planner's demonstrations that these replaced (sampling MPC on the true simulator, ten episodes a task),
# less 0.1: starts differ, and so does what can be had from them.
AT_LEAST = {
    "cartpole-balance": 0.99, "cartpole-balance-sparse": 0.99, "cartpole-swingup": 0.77,
    "cartpole-swingup-sparse": 0.66, "mujoco-inverted-pendulum": 0.99, "mujoco-reacher": 0.78, "pendulum-spin": 0.74,
    "pendulum-swingup": 0.66, "reacher-easy": 0.87, "reacher-hard": 0.86, "reacher-three-easy": 0.88,
    "reacher-three-hard": 0.84,
}  # fmt: skip


@pytest.mark.parametrize("task", AT_LEAST)
def test_scores_undisturbed_and_disturbed(task):
    env = envs.make(task)
    try:
        player = experts.player_of(task, "script")
        attempts = [experts.play(env, player, 60 + number, number) for number in range(4)]
        for start in (0, 1):  # without noise, and with it
            assert np.mean([a.score[0] for a in attempts[start::2]]) >= AT_LEAST[task]
    finally:
        env.close()


def test_each_task_is_here_once():
    assert set(AT_LEAST) == set(feedback.TASKS)
    assert all(experts.script_of(task) == "envs.feedback" for task in feedback.TASKS)
    assert experts.script_of("cartpole-balance-two-poles-sparse") is None  # two poles are another matter


@pytest.mark.parametrize("task", ["cartpole-swingup", "pendulum-swingup", "reacher-three-hard", "mujoco-reacher"])
def test_nothing_is_remembered(task):
    """A player that begins in the middle of an episode does what the first one does."""
    env = envs.make(task)
    obs, _ = env.reset(seed=3)
    first = feedback.player(env, obs, 0)
    action = next(first)
    for _ in range(30):
        obs, _, _, _, info = env.step(np.clip(action, -1, 1).astype(np.float32))
        action = first.send((obs, info))
    np.testing.assert_array_equal(next(feedback.player(env, obs, 7)), action)


def linear(env, physics, steps: int, scale: float):
    """Finite differences of an agent step at the upright pole: A (4, 4), B (4, 1)."""
    import mujoco

    model, data = physics.model, physics.data
    model, data = (getattr(x, "ptr", x) for x in (model, data))
    other = mujoco.MjData(model)

    def after(x):
        other.qpos, other.qvel, other.ctrl = x[:2], x[2:4], scale * x[4]
        mujoco.mj_step(model, other, steps)
        return np.concatenate([other.qpos, other.qvel])

    both = np.stack([(after(x) - after(-x)) / 2e-4 for x in 1e-4 * np.eye(5)], 1)
    return both[:, :4], both[:, 4:]


@pytest.mark.parametrize("task", ["cartpole-balance", "mujoco-inverted-pendulum"])
def test_gains_are_those_of_the_riccati_equation(task):
    """Costs of 1, 10, 0.1, 0.5 for x, angle and their speeds, 1 for the action, as the file says."""
    env = envs.make(task)
    env.reset(seed=0)
    gym = task.startswith("mujoco")
    physics, play = (env._env, feedback.rod) if gym else (env._env.physics, feedback.cartpole)
    a, b = linear(env, physics, 4 if gym else 2, 3.0 if gym else 1.0)
    p = solve_discrete_are(a, b, np.diag([1, 10, 0.1, 0.5]), np.eye(1))
    gains = -np.linalg.solve(1 + b.T @ p @ b, b.T @ p @ a)[0]
    for k, gain in enumerate(gains):
        state = np.zeros(4)
        state[k] = 0.01
        physics.data.qpos[:], physics.data.qvel[:] = state[:2], state[2:]
        assert play(physics) == pytest.approx(0.01 * gain, rel=0.02)


def test_spring_does_no_more_than_its_force():
    """Torques of hinges are force times lever: virtual work of small turns, by finite differences of the fingertip."""
    env = envs.make("reacher-three-easy")
    env.reset(seed=1)
    physics = env._env.physics
    physics.data.qpos[:] = [0.3, -0.8, 1.1]
    physics.forward()
    place = physics.named.data.geom_xpos["finger", :2].copy()
    force = 15 * (physics.named.data.geom_xpos["target", :2] - place)
    action = feedback.reach(physics)
    for joint in range(3):
        physics.data.qpos[joint] += 1e-6
        physics.forward()
        work = force @ (physics.named.data.geom_xpos["finger", :2] - place) / 1e-6
        physics.data.qpos[joint] -= 1e-6
        assert 0.05 * action[joint] == pytest.approx(work, abs=1e-5)
