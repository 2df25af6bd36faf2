"""Scripted players for ManiSkill's walkers and cartpoles; the tasks themselves are in envs/maniskill.py.

    player(env, obs, number)    yields actions, and reads the joints of the simulator; the caller clips them to [-1, 1]

The cart follows a velocity: an action moves the slider's target to `action` metres from where it is, and within a
simulator step of 0.05 s the cart goes 40 % of the way; after an agent step it moves at 0.36 v + 4.9 action.
Source: swing-up by energy, Astrom and Furuta 2000; the gains that balance are an LQR's, for finite differences over an
agent step and costs of 1, 10, 0.1, 0.5 (x, angle, their speeds) and 1 (action).
Test: pytest tests/test_maniskill_bodies.py
"""

import numpy as np

STIFFNESS = 14.2  # of the pole at the cart, rad/s^2 per sin(angle): m g l / (I + m l^2) of the package's model


def player(env, obs, number):
    """ms-cartpole-*: push the cart against the pole's swing until it has the energy to stand, then balance."""
    robot = env._sim.agent.robot
    while True:
        (x, angle), (v, spin) = robot.get_qpos()[0].tolist(), robot.get_qvel()[0].tolist()
        angle = (angle + np.pi) % (2 * np.pi) - np.pi  # 0 is upright
        energy = spin**2 / 2 + STIFFNESS * (np.cos(angle) - 1)  # 0: enough to get up and stand
        if np.cos(angle) > 0.8 and abs(spin) < 6:
            yield np.array([0.13 * x + 1.13 * angle + 0.28 * v + 0.28 * spin])
        else:
            acceleration = np.clip(1.5 * energy * spin * np.cos(angle), -7, 7) - 3 * x - v
            yield np.array([(0.64 * v + 0.1 * acceleration) / 4.9])
