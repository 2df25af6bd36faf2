"""Cartpole: five tasks of one cart with a pole; the pole's angle is never wrapped and the track has no walls.

    balance, -sparse   starts upright        pays 1 - |theta| / (pi / 2), at least 0; sparse: 1 while |theta| < 0.15
    swingup, -sparse   starts hanging        the same; the pole must come up at theta = 0, not at 2 pi
    tremor             starts upright        now and then the ground shakes: an extra angular acceleration, 5..10 steps
    all                |x| > 2.4 pays nothing; explicit Euler; obs = (x, x_dot, theta, theta_dot); score = return / 500

theta = 0 is upright, positive to the right.
Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: always double precision; scenery.
Test: pytest tests/test_arcade_cartpole.py
"""

from math import cos, pi, sin

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game

GRAVITY, FORCE, DT = 9.81, 11.0, 0.025
TOTAL_MASS, POLE_MASS, HALF_LENGTH = 1.01, 0.11, 0.6
TRACK = 2.4  # from the middle to either end
GAIN = np.array([-2.20, -2.63, -14.85, -3.79])  # of the linear controller in player()


def make(task, seed: int, render_mode: str | None) -> "Cartpole":
    return Cartpole(task, seed, render_mode)


class Cartpole(Game):
    STATE = ("x", "x_dot", "theta", "theta_dot")

    def __init__(self, task, seed: int, render_mode: str | None):
        super().__init__(task, seed, render_mode)
        self.swingup, self.sparse = "swingup" in self.name, "sparse" in self.name
        self.tremor = "tremor" in self.name
        if self.tremor:
            self.STATE += ("shake_left", "shake_acc", "shake_countdown")

    def start(self):
        self.x, self.x_dot, self.theta, self.theta_dot = self.np_random.uniform(-0.065, 0.065, 4).tolist()
        if self.swingup:
            self.theta += pi
        self.shake_left, self.shake_acc = 0, 0.0
        if self.tremor:
            self.shake_countdown = int(self.np_random.integers(40, 81))
        self.scenery, self.dust = int(self.cosmetic.integers(2**31)), []

    def advance(self, action):
        push, s, c = FORCE * float(action[0]), sin(self.theta), cos(self.theta)
        ml = POLE_MASS * HALF_LENGTH
        p = (push + ml * self.theta_dot**2 * s) / TOTAL_MASS
        theta_acc = (GRAVITY * s - c * p) / (HALF_LENGTH * (4 / 3 - POLE_MASS * c**2 / TOTAL_MASS))
        theta_acc += self._shake() if self.tremor else 0.0
        x_acc = p - ml * theta_acc * c / TOTAL_MASS
        self.x, self.x_dot = self.x + DT * self.x_dot, self.x_dot + DT * x_acc
        self.theta, self.theta_dot = self.theta + DT * self.theta_dot, self.theta_dot + DT * theta_acc
        if abs(self.x) > TRACK:
            return 0.0
        if self.sparse:
            return float(abs(self.theta) < 0.15)
        return 1 - min(abs(self.theta), pi / 2) / (pi / 2)

    def _shake(self) -> float:
        """Angular acceleration of this step. A shake that is drawn now is felt from the next step on."""
        self._move_dust()
        if self.shake_left > 0:
            self.shake_left -= 1
            return self.shake_acc
        self.shake_countdown -= 1
        if self.shake_countdown <= 0:
            self.shake_left = int(self.np_random.integers(5, 11))
            self.shake_acc = float(5 * self.np_random.uniform(0.35, 1) * self.np_random.choice([-1, 1]))
            self.shake_countdown = int(self.np_random.integers(50, 91))
        return 0.0

    def _move_dust(self) -> None:
        for grain in self.dust:
            grain["y"] += grain["speed"]
            grain["life"] -= 1
        self.dust = [grain for grain in self.dust if grain["life"] > 0 and grain["y"] < 214]
        if self.shake_left > 0 and self.cosmetic.random() < 0.3:
            x, radius, life = self.cosmetic.integers((20, 2, 18), (204, 4, 40)).tolist()
            self.dust.append({"x": x, "y": 50, "radius": radius, "life": life, "speed": self.cosmetic.uniform(1.5, 4)})

    def observe(self):
        return self.x, self.x_dot, self.theta, self.theta_dot

    def grade(self):
        return self.ret / 500

    def draw(self, canvas: Canvas):
        rng = np.random.default_rng(self.scenery)  # the same cave all through the episode
        for y in range(SIZE):
            u = y / SIZE
            canvas.line((int(120 - 30 * u), int(90 - 30 * u), int(50 - 15 * u)), 0, y, SIZE, y)
        for left, phase in zip((50, 154), rng.uniform(0, 2 * pi, 2), strict=True):
            glow = canvas.pygame.Surface((SIZE, SIZE), canvas.pygame.SRCALPHA)
            flicker = 0.9 + 0.35 * sin(2 * pi * self.t / 60 + phase)
            for radius in range(55, 0, -3):  # on this layer a disc replaces what is below, so the centre is brightest
                color = (255, 210, 120, int(90 * flicker * (1 - radius / 55) ** 2))
                canvas.pygame.draw.circle(glow, color, (left + 6, 67), radius)
            canvas.surface.blit(glow, (0, 0))
            canvas.rect((160, 160, 160), left + 4, 45, 4, 14)
            canvas.rect((230, 190, 90), left, 59, 12, 16)
            canvas.rect((120, 100, 60), left, 59, 12, 16, width=2)
        edge = [(i * SIZE / 11, 45 + rng.integers(12)) for i in range(12)]
        canvas.polygon((85, 65, 45), [(0, 0), (0, 45), *edge, (SIZE, 45), (SIZE, 0)])
        canvas.rect((100, 75, 45), 0, 192, SIZE, 32)
        for _ in range(rng.integers(5, 8)):
            x, depth, b, shade, round_ = rng.integers((10, 26, 4, 70, 0), (214, 34, 8, 110, 2)).tolist()
            a, h = (b, b) if round_ else (int(b * rng.uniform(1.2, 1.6)), int(b * rng.uniform(0.8, 1.2)))
            canvas.ellipse((shade, shade - 25, shade - 35), x - a, SIZE - depth - h, 2 * a, 2 * h)
        canvas.line((125, 120, 120), 0, 161, SIZE, 161, width=6)
        cart = round(112 + 32.5 * self.x)
        canvas.rect((180, 110, 60), cart - 14, 147, 28, 14)
        canvas.rect((190, 185, 185), cart - 14, 147, 28, 14, width=2)
        canvas.circle((200, 195, 195), cart - 10, 161, 5)
        canvas.circle((200, 195, 195), cart + 9, 161, 5)
        tip = cart + round(39 * sin(self.theta)), 147 - round(39 * cos(self.theta))
        canvas.line((200, 140, 80), cart, 147, *tip, width=4)
        for grain in self.dust:
            canvas.circle((150, 120, 90), grain["x"], grain["y"], grain["radius"])
        if self.shake_left > 0:
            far = int(5 * abs(self.shake_acc) / 11)
            picture = canvas.surface.copy()
            canvas.surface.fill((100, 75, 45))
            canvas.surface.blit(picture, np.random.default_rng(self.t).integers(-far, far + 1, 2).tolist())


def player(game: Cartpole) -> np.ndarray:
    """Swings up by a fixed sequence of pushes, then balances by linear feedback. -> action (1,)."""
    state = np.array(game.observe())
    caught = abs(game.theta) < 0.7 and abs(game.theta_dot) < 4
    if game.swingup and not caught and game.t < 61:
        # Timed for the hanging start: one step less or more of the second push and the pole falls back or over.
        return np.float32([0.96 if game.t < 9 else -0.85 if game.t < 35 else 0.85])
    return np.float32([-GAIN @ state]).clip(-1, 1)
