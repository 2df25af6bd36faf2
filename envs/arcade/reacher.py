"""Reacher: an arm of two links brings its fingertip to a disc and keeps it there; easy and hard differ in its size.

    w <- clip(w + dt (g a - l w - c |w| w), -30, 30);  q <- q + dt w        per joint; action a: torque
    joint 1: g = 90, l = 4, c = 1.2, turns freely;  joint 2: g = 180, l = 38, c = 0.05, stops at +-160 degrees
    reward   1 while the fingertip is within 0.04 m (easy) or 0.025 m (hard) of the disc's centre
    obs      q (never wrapped), target - fingertip in m (y upwards), w
    score    return / 200

Not the task of the same name in dmcontrol.py: there is no contact, and the joints do not feel each other.
Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: always double precision.
Test: pytest tests/test_arcade_reacher.py
"""

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game

LINK, DT = 0.11, 0.02
GAIN, LINEAR, QUADRATIC = np.array([90, 180]), np.array([4, 38]), np.array([1.2, 0.05])
MAX_W, MAX_Q2 = 30, np.deg2rad(160)
SCALE = 376.36  # px per m


def make(task, seed: int, render_mode: str | None) -> "Reacher":
    return Reacher(task, seed, render_mode)


class Reacher(Game):
    STATE = ("q", "w", "target")

    def __init__(self, task, seed: int, render_mode: str | None):
        super().__init__(task, seed, render_mode)
        self.radius = 0.04 if self.name.endswith("easy") else 0.025
        self.trail = []

    def start(self):
        self.q, self.w = self.np_random.uniform((-np.pi, -MAX_Q2), (np.pi, MAX_Q2)), np.zeros(2)
        angle, distance = self.np_random.uniform((0, 0.05), (2 * np.pi, 0.2))
        self.target = distance * np.array([np.cos(angle), np.sin(angle)])
        self.trail = []

    def finger(self) -> np.ndarray:
        return self.elbow() + LINK * np.array([np.cos(sum(self.q)), np.sin(sum(self.q))])

    def elbow(self) -> np.ndarray:
        return LINK * np.array([np.cos(self.q[0]), np.sin(self.q[0])])

    def advance(self, action):
        self.trail = [*self.trail[-9:], self.finger()]
        torque = GAIN * action - LINEAR * self.w - QUADRATIC * abs(self.w) * self.w
        self.w = np.clip(self.w + DT * torque, -MAX_W, MAX_W)
        self.q = self.q + DT * self.w
        if abs(self.q[1]) > MAX_Q2:
            self.q[1], self.w[1] = np.clip(self.q[1], -MAX_Q2, MAX_Q2), 0
        return np.hypot(*(self.target - self.finger())) <= self.radius

    def observe(self):
        return np.concatenate([self.q, self.target - self.finger(), self.w])

    def grade(self):
        return self.ret / 200

    def draw(self, canvas: Canvas):
        stops = np.array([(120, 160, 160), (115, 95, 165), (160, 90, 130)])
        t = np.add.outer(np.arange(SIZE), np.arange(SIZE)) / (2 * (SIZE - 1))
        colors = np.stack([np.interp(t, (0, 0.5, 1), channel) for channel in stops.T], axis=-1)
        canvas.pygame.surfarray.blit_array(canvas.surface, colors.astype(np.uint8))
        canvas.rect((0, 0, 0, 30), 20, 20, 184, 184, radius=14)
        canvas.rect((60, 220, 255), 20, 20, 184, 184, width=2, radius=14)
        canvas.rect((255, 70, 200), 23, 23, 178, 178, width=1, radius=12)
        target, elbow, finger = pixel(self.target), pixel(self.elbow()), pixel(self.finger())
        canvas.circle((210, 70, 60), *target, self.radius * SCALE)
        canvas.circle((220, 80, 70), *target, self.radius * SCALE, width=3)
        for age, position in enumerate(self.trail):
            canvas.circle((230, 230, 230, 4 * (age + 1)), *pixel(position), 3)
        canvas.line((180, 180, 180), 112, 112, *elbow, width=6)
        canvas.line((255, 140, 0), *elbow, *finger, width=6)
        canvas.circle((160, 160, 160), 112, 112, 4)
        canvas.circle((255, 200, 120), *elbow, 4)
        canvas.circle((230, 230, 230), *finger, 3)


def pixel(position):
    """m, y upwards -> px, y downwards."""
    return 112 + SCALE * position[0], 112 - SCALE * position[1]


def player(game: Reacher) -> np.ndarray:
    """Inverse kinematics, of the two elbows the one reached sooner; speeds that can still be braked. -> action (2,)."""
    x, y = game.target
    bend = np.arccos(np.clip((x * x + y * y) / (2 * LINK**2) - 1, -1, 1))
    errors = []
    for q2 in (bend, -bend):
        e1 = np.arctan2(y, x) - q2 / 2 - game.q[0]  # links of equal length: the bisector points at the target
        errors.append(np.array([(e1 + np.pi) % (2 * np.pi) - np.pi, q2 - game.q[1]]))
    error = min(errors, key=lambda e: max(abs(e) / (7.5, 4.5)))
    speed = min(np.sqrt(2 * 90 * 0.8 * abs(error[0])), 17.5 * abs(error[0]))
    wanted = np.array([np.sign(error[0]) * speed, np.clip(20 * error[1], -10, 10)])
    torque = (wanted - game.w) / DT + LINEAR * game.w + QUADRATIC * abs(game.w) * game.w
    return (torque / GAIN).clip(-1, 1).astype(np.float32)
