"""Coconut dodge: a traveller on a beach runs left and right under falling coconuts, 1 at first, 5 at the end.

    reward   -1 in every step in which a falling coconut touches the traveller, otherwise 0
    action   acceleration; a wall stops the traveller but not its velocity
    coconut  bounces off the walls, cracks on the ground, lies there harmless for 10 steps and falls anew, faster later
    obs      traveller, way to the nearest falling coconut, 1 for 5 steps from a hit on; all coconuts, nearest first
    score    (return + 15) / 15: it starts at 1

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: double precision; no footprints, no landing
dust, simpler palms.
Test: pytest tests/test_arcade_coconut_dodge.py
"""

import copy
from math import cos, hypot, pi, sin

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game

LOW, HIGH = 12, 212  # walls of the play square, both axes
AGENT_Y, AGENT_RADIUS = 200, 9
THRUST, DAMPING, SPEED = 0.85, 0.97, 5
CRACKED, HIT = 10, 6  # steps that a shell lies on the ground, that a hit is shown


def make(task, seed: int, render_mode: str | None) -> "CoconutDodge":
    return CoconutDodge(task, seed, render_mode)


class CoconutDodge(Game):
    STATE = ("x", "vx", "balls", "hit_timer")
    scenery = 0  # seed of what is only looked at; also there before the first reset

    def start(self):
        self.x, self.vx, self.hit_timer = 112.0, 0.0, 0
        self.balls = [self._spawn(0)]
        self.scenery = int(self.cosmetic.integers(2**31))

    def _spawn(self, t: int) -> dict:
        hard, uniform = t / 500, self.np_random.uniform
        r = int(self.np_random.integers(6, 9))
        return {
            **{"x": uniform(LOW + r, HIGH - r), "y": LOW + 1.0 + r},
            **{"vx": uniform(-0.5, 0.5) * (1 + 0.6 * hard), "vy": uniform(1.4, 2.6) * (1 + 0.8 * hard)},
            **{"r": r, "falling": True, "crack_left": 0},
        }

    def advance(self, action):
        self.x, self.vx = (float(v) for v in run(self.x, self.vx, action[0]))
        for i, ball in enumerate(self.balls):
            if ball["falling"]:
                fall(ball)
            else:
                ball["crack_left"] -= 1
                if ball["crack_left"] <= 0:
                    self.balls[i] = self._spawn(self.t)
        hit = any(ball["falling"] and self._distance(ball) < AGENT_RADIUS + ball["r"] for ball in self.balls)
        if hit:
            self.hit_timer = HIT
        while len(self.balls) < 1 + 5 * (self.t + 1) // 500:
            self.balls.append(self._spawn(self.t + 1))
        self.hit_timer = max(0, self.hit_timer - 1)
        return -float(hit)

    def _distance(self, ball: dict) -> float:
        return hypot(ball["x"] - self.x, ball["y"] - AGENT_Y)

    def observe(self):
        obs = np.zeros(29)
        obs[:5] = (self.x - LOW) / 200, self.vx / SPEED, 0, -1, self.hit_timer > 0
        balls = sorted(self.balls, key=self._distance)
        falling = next((ball for ball in balls if ball["falling"]), None)
        if falling:
            obs[2:4] = (falling["x"] - self.x) / 200, (falling["y"] - AGENT_Y) / 200
        for i, ball in enumerate(balls):
            place = (ball["x"] - LOW) / 200, (ball["y"] - LOW) / 200
            obs[5 + 4 * i : 9 + 4 * i] = *place, ball["vx"] / SPEED, ball["vy"] / SPEED
        return obs

    def grade(self):
        return (self.ret + 15) / 15

    def draw(self, canvas: Canvas):
        self._draw_beach(canvas, np.random.default_rng(self.scenery))
        for ball in self.balls:
            x, y, r = ball["x"], ball["y"], ball["r"]
            if ball["falling"]:
                canvas.circle((133, 102, 62), x, y, r)
                canvas.circle((90, 66, 38), x, y, r, width=2)
                for dx, dy in ((-2, -3), (2, -2), (0, 2)):
                    canvas.circle((70, 52, 30), x + dx, y + dy, 1)
            else:  # two halves move apart
                apart = 6 * (1 - ball["crack_left"] / CRACKED)
                for side in (-1, 1):
                    angles = [side * pi * k / 8 for k in range(9)]
                    for color, size in (((90, 66, 38), r), ((123, 92, 52), r - 1), ((240, 240, 240), r - 3)):
                        half = [(x + side * apart + size * sin(a), y - size * cos(a)) for a in angles]
                        canvas.polygon(color, half, width=0 if size > r - 3 else 1)
        self._draw_traveller(canvas)
        if self.hit_timer > 0:
            canvas.rect((186, 108, 24, 70), 0, 0, SIZE, SIZE)
            picture = canvas.surface.copy()
            canvas.surface.fill((0, 0, 0))
            canvas.surface.blit(picture, np.random.default_rng(self.t).integers(-3, 4, 2).tolist())

    def _draw_beach(self, canvas: Canvas, rng: np.random.Generator) -> None:
        """The same all through an episode."""
        for y in range(LOW, 104):
            u = (y - LOW) / 91
            canvas.line(
                [int((a + (b - a) * u) * 235 / 255) for a, b in ((80, 252), (40, 165), (120, 3))], 12, y, 211, y
            )
        for _ in range(22):
            x, y, r = rng.integers((18, 18, 1), (206, 98, 3)).tolist()
            canvas.circle((255, 255, 255, 110), x, y, r)
        canvas.rect((181, 164, 118), LOW, 104, 200, 108)
        (p, q), near, far = rng.uniform(0, 2 * pi, 2), rng.uniform(3, 5), rng.uniform(4.5, 6)
        for color, crest in (
            ((208, 190, 140), lambda i: 104 + int(near + near * sin(i / 23 + p))),
            ((192, 175, 132), lambda i: 104 + int(12 + far * sin((i + 40) / 19 + q))),
        ):
            canvas.polygon(color, [*((LOW + i, crest(i)) for i in range(200)), (HIGH - 1, HIGH - 1), (LOW, HIGH - 1)])
        for x, y, scale, lean in ((68, 120, 1.1, 1), (164, 110, 0.55, -1)):
            scale = scale * rng.uniform(0.9, 1.1)
            trunk = [(x + lean * 5 * scale * sin(1.2 * k / 11), y - 44 * scale * k / 11) for k in range(12)]
            for a, b in zip(trunk, trunk[1:], strict=False):
                canvas.line((50, 35, 20), *a, *b, width=3)
            x, y = trunk[-1]
            for angle in (-1.05, -0.6, -0.2, 0.2, 0.6, 1.05):
                for side in (-1, 1):  # the crown: leaves to both sides
                    length = 26 * scale * (0.9 + 0.2 * (1 - abs(angle)))
                    canvas.line((50, 35, 20), x, y, x + side * length * cos(angle), y + length * sin(angle), width=2)
        canvas.rect((230, 230, 230), LOW, LOW, 200, 200, width=2)

    def _draw_traveller(self, canvas: Canvas) -> None:
        x, step = self.x, 2 * sin(0.12 * self.x)
        canvas.ellipse((90, 70, 55), x - 6 + step, 201, 6, 3)
        canvas.ellipse((90, 70, 55), x - step, 201, 6, 3)
        for side in (-1, 1):
            canvas.line((160, 120, 90), x + side * 5, 189, x + side * 11, 194, width=4)
        canvas.ellipse((235, 205, 170), x - 7, 185, 14, 18)
        canvas.ellipse((160, 120, 90), x - 7, 185, 14, 18, width=2)
        canvas.rect((235, 205, 170), x - 3, 181, 6, 4)
        canvas.circle((245, 220, 185), x, 177, 5)
        canvas.circle((160, 120, 90), x, 177, 5, width=1)


def run(x, vx, command):
    """One step of the traveller -> x, vx; numbers or arrays."""
    vx = np.clip((vx + THRUST * command) * DAMPING, -SPEED, SPEED)
    return np.clip(x + vx, LOW + AGENT_RADIUS, HIGH - AGENT_RADIUS), vx


def fall(ball: dict) -> None:
    """One step of a falling coconut, in place."""
    ball["x"] += ball["vx"]
    ball["y"] += ball["vy"]
    low, high = LOW + ball["r"], HIGH - ball["r"]
    if not low <= ball["x"] <= high:
        ball["x"] = min(high, max(low, ball["x"]))
        ball["vx"] = -ball["vx"]
    if ball["y"] + ball["r"] >= HIGH:
        ball["y"], ball["falling"], ball["crack_left"] = HIGH - ball["r"], False, CRACKED


COMMANDS = np.linspace(-1, 1, 5)
HORIZON, FIRST = 45, 8  # steps that the player looks ahead, and of those with the first command


def player(game: CoconutDodge) -> np.ndarray:
    """Tries all pairs of five commands on the coconuts in the air; of the safe ones the laziest. -> action (1,)."""
    first, then = (grid.ravel() for grid in np.meshgrid(COMMANDS, COMMANDS))
    x, vx = np.full(len(first), game.x), np.full(len(first), game.vx)
    balls = copy.deepcopy([ball for ball in game.balls if ball["falling"]])
    cost = 0.01 * (abs(first) + abs(then))
    for k in range(HORIZON):
        x, vx = run(x, vx, first if k < FIRST else then)
        for ball in balls:
            fall(ball)
        balls = [ball for ball in balls if ball["falling"]]
        for ball in balls:
            cost += np.hypot(ball["x"] - x, ball["y"] - AGENT_Y) < 19  # they touch at 15 to 17
    cost += 0.002 * abs(x - 112)
    return np.float32([first[cost.argmin()]])
