"""Scripted players for ManiSkill's robot dog and cartpoles; the tasks themselves are in envs/maniskill.py.

    player(env, obs, number)    yields actions, and reads the joints of the simulator; the caller clips them to [-1, 1]

The cart follows a velocity: an action moves the slider's target to `action` metres from where it is, and within a
simulator step of 0.05 s the cart goes 40 % of the way; after an agent step it moves at 0.36 v + 4.9 action.
Source: swing-up by energy, Astrom and Furuta 2000; the gains that balance are an LQR's, for finite differences over an
agent step and costs of 1, 10, 0.1, 0.5 (x, angle, their speeds) and 1 (action).

The dog trots: two legs across from each other swing while the other two push back, at 1.4 Hz; in any direction, as it
need not turn. Feet are moved in metres, for small angles. Only 6 of its 52 kg weigh anything, which is why it swings
longer than it stands, leaves the ground easily, and is kept upright by longer legs on the side that is lower. The
numbers of the gait were found by CMA-ES in a minute, rounded, and what didn't matter is left out.
Test: pytest tests/test_maniskill_bodies.py
"""

import numpy as np

STIFFNESS = 14.2  # of the pole at the cart, rad/s^2 per sin(angle): m g l / (I + m l^2) of the package's model


# The dog's legs: left front, right front, left hind, right hind.
_FRONT, _LEFT = np.array([1, 1, -1, -1]), np.array([1, -1, 1, -1])
_FEET = np.stack([0.461 * _FRONT, 0.317 * _LEFT], 1)  # in the body's frame, m
_SWINGS = np.array([0, 0.5, 0.5, 0])  # when in a period a leg's stance begins
_STANCE, _HZ, _LIFT, _CROUCH, _AHEAD = 0.4, 1.4, 0.06, 0.03, 0.03  # part of a period, 1/s, m, m, m
_SPEED, _RADIAN = 0.6, 0.225  # m/s at most; what an action of 1 means
# Angles (abduction, hip, knee) per metre (x, y, z) of each foot, near the standing pose.
_ANGLES = np.linalg.inv([
    [[0, -0.539, -0.277], [0.533, 0, 0], [0.213 * left, -0.102 * front, -0.212 * front]]
    for front, left in zip(_FRONT, _LEFT, strict=True)
])  # fmt: skip


def player(env, obs, number):
    """Script of one episode of ms-anymal-reach or ms-cartpole-*."""
    return trot(env) if env._name == "ms-anymal-reach" else balance(env)


def trot(env):
    """Trot straight to the goal and stand there."""
    robot, goal = env._sim.agent.robot, env._sim.goal.pose.p[0, :2].numpy()
    stand, phase = env._sim.agent.keyframes["standing"].qpos, 0.0
    while True:
        pose = robot.pose.to_transformation_matrix()[0].numpy()
        yaw = np.arctan2(pose[1, 0], pose[0, 0])
        way = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]]) @ (goal - pose[:2, 3])
        left = np.linalg.norm(way)
        moves = np.zeros((4, 3))  # of the feet
        moves[:, 0] = _AHEAD
        moves[:, 2] = _CROUCH - 0.45 * _FEET @ pose[2, :2]
        if left > 0.2:
            speeds = way / left * min(_SPEED, 1.1 * (left - 0.1)) - 0.5 * yaw * _FEET[:, ::-1] * [-1, 1]
            time = (phase + _SWINGS) % 1
            swing = np.clip((time - _STANCE) / (1 - _STANCE), 0, 1)
            stride = np.where(time < _STANCE, 0.5 - time / _STANCE, -0.5 * np.cos(np.pi * swing))
            moves[:, :2] += speeds * _STANCE / _HZ * stride[:, None]
            moves[:, 2] += _LIFT * np.sin(np.pi * swing)
        target = stand + np.einsum("lam,lm->al", _ANGLES, moves).ravel()  # all abductions, then hips, then knees
        yield 0.9 * (target - robot.get_qpos()[0].numpy()) / _RADIAN
        phase += 0.1 * _HZ


def balance(env):
    """Push the cart against the pole's swing until it has the energy to stand, then balance."""
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
