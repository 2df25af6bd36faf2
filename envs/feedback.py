"""Scripted players for bodies that feedback controls: DMControl's carts with a pole, pendulum and reachers, Gym's rod.

    player(env, obs, number)    yields actions, and reads the joints of the simulator; the caller clips them to [-1, 1]

balance    an LQR, for finite differences over an agent step (0.02 s; 0.08 s for Gym's) and costs of 1, 10, 0.1, 0.5
           (x, angle, their speeds) and 1 (action)
swing up   by energy, Astrom and Furuta 2000: push along with the swing until it has the energy to stand
reach      a spring from the fingertip to the target, through the transposed Jacobian

Nothing is remembered between two steps: an action is a function of the state, and so of the observation. Plans, which
these replace (envs/mpc.py), score as much and are not: imitation explained half of what they do.
Test: pytest tests/test_feedback.py
"""

import numpy as np

from envs.gaits import wrap

G = 9.81


def player(env, obs, number):
    """Script of one episode of a task of TASKS."""
    play, physics = TASKS[env.name], env._env if env.name.startswith("mujoco-") else env._env.physics
    while True:
        yield np.atleast_1d(play(physics))


def cartpole(physics) -> float:
    """1 kg of cart, a pole of 0.1 kg and 1 m, 10 N of motor; the hinge's angle is 0 upright."""
    (x, angle), (v, spin) = physics.data.qpos, physics.data.qvel
    angle, stiffness = wrap(angle), 14.5  # of the pole at the cart, rad/s^2 per sin(angle)
    energy = spin**2 / 2 + stiffness * (np.cos(angle) - 1)  # 0: enough to get up and stand
    if np.cos(angle) > 0.85 and abs(spin) < 4:
        return 0.835 * x + 7.245 * angle + 1.054 * v + 1.828 * spin
    return 1.1 / 10 * (np.clip(2 * energy * spin * np.cos(angle), -8, 8) - 3 * x - 2 * v)


def pendulum(physics) -> float:
    """1 kg at 0.5 m, 1 Nm of motor: a fifth of what would lift it."""
    angle, spin = wrap(physics.data.qpos[0]), physics.data.qvel[0]
    energy = 0.251 * spin**2 / 2 + G / 2 * (np.cos(angle) - 1)  # J; 0: enough to get up and stand
    if np.cos(angle) > 0.95 and abs(spin) < 2:
        return -20 * angle - 4 * spin
    return np.clip(4 - 20 * energy, -1, 1) * (1 if spin >= 0 else -1)


def whirl(physics) -> float:
    """The same pendulum, always faster."""
    return 1.0 if physics.data.qvel[0] >= 0 else -1.0


def rod(env) -> float:
    """Gym's inverted pendulum: 10 kg of cart, 5 kg of rod, 300 N of motor."""
    (x, angle), (v, spin) = env.data.qpos, env.data.qvel
    return 0.217 * x + 2.141 * angle + 0.281 * v + 0.368 * spin


def reach(physics) -> np.ndarray:
    """0.12 m of each link, motors of 0.05 Nm; hinges are damped so much that the spring needs no damping of its own.

    The arm of three links folds no further than 80 degrees at a hinge: a fifth of the targets it does not reach.
    """
    finger, target = (physics.named.data.geom_xpos[name, :2] for name in ("finger", "target"))
    return spring(physics.data, finger, target, 15) / 0.05


def gym_reach(env) -> np.ndarray:
    """Gym's reacher: 0.1 m of each link, motors of 200 Nm, hinges with inertia and damping of 1."""
    finger, target = (env.get_body_com(name)[:2] for name in ("fingertip", "target"))
    return (spring(env.data, finger, target, 2500)[:2] - 10 * env.data.qvel[:2]) / 200


def spring(data, finger, target, stiffness: float) -> np.ndarray:
    """Torques in Nm of hinges about z: what a spring from finger (2,) to target (2,) would do. stiffness in N/m."""
    away = finger - data.xanchor[:, :2]  # from each hinge
    return stiffness * (away[:, 0] * (target - finger)[1] - away[:, 1] * (target - finger)[0])


TASKS = {
    "pendulum-swingup": pendulum,
    "pendulum-spin": whirl,
    "mujoco-inverted-pendulum": rod,
    "mujoco-reacher": gym_reach,
}
TASKS |= {f"cartpole-{task}": cartpole for task in ("balance", "balance-sparse", "swingup", "swingup-sparse")}
TASKS |= {f"reacher-{task}": reach for task in ("easy", "hard", "three-easy", "three-hard")}
