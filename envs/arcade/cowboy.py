"""Cowboy: a runner who jumps over cacti; while a cactus holds him up the world stands still.

    reward   +1 per step, -1 in a step in contact with a cactus
    action   above 0 and on the ground: a jump of that strength, as in coinrun.py
    landing  coming down with more than half his width over a cactus, from any depth, puts him on its top. He can't
             jump from there
    obs      (y - 154) / 224, vy / 10, left edge of the cactus / 224; its size can't be seen
    score    return / 500

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: no dust.
Test: pytest tests/test_arcade_cowboy.py
"""

import numpy as np

from envs.arcade.coinrun import AGENT_H, AGENT_W, AGENT_X, GROUND, SCROLL, STAND, blend, leap
from envs.arcade.game import SIZE, Canvas, Game, IntRect

SMALL, BIG, GAP = (15, 25), (20, 40), 5  # width and height of a cactus; space between the two of a pair
START = 264  # left edge of a new obstacle


def make(task, seed: int, render_mode: str | None) -> "Cowboy":
    return Cowboy(task, seed, render_mode)


class Cowboy(Game):
    STATE = ("y", "vy", "obstacle", "stuck", "small_first")  # small_first: the picture of a pair, nothing else
    scenery, scrolled = 0, 0  # only looked at; also there before the first reset

    def start(self):
        self.y, self.vy, self.stuck = float(STAND), 0.0, False
        self._spawn()
        self.scenery = int(self.cosmetic.integers(2**31))
        self.scrolled = 0

    def _spawn(self) -> None:
        """A small cactus, a big one, or both, in either order, as one box."""
        variant = int(self.np_random.integers(4))
        width, height = (SMALL, BIG, (SMALL[0] + GAP + BIG[0], BIG[1]))[min(variant, 2)]
        self.obstacle = {"left": START, "top": GROUND - height, "width": width, "height": height}
        self.small_first = variant == 2

    def advance(self, action):
        self.y, self.vy = leap(self.y, self.vy, float(action[0]))
        box = IntRect(*(self.obstacle[key] for key in ("left", "top", "width", "height")))
        if self._touches(box) and self.vy > 0:
            shared = min(AGENT_X + AGENT_W, box.right) - max(AGENT_X, box.left)
            if shared / AGENT_W > 0.5:
                self.y, self.vy = float(box.top - AGENT_H), 0.0
        self.stuck = self._touches(box)
        reward = -1.0 if self.stuck else 1.0
        if not self.stuck:
            self.obstacle["left"] -= SCROLL
            self.scrolled += SCROLL
        if self.obstacle["left"] + self.obstacle["width"] < 0:
            self._spawn()
        return reward

    def _touches(self, box: IntRect) -> bool:
        return IntRect(AGENT_X, self.y, AGENT_W, AGENT_H).overlaps(box)

    def observe(self):
        return (self.y - STAND) / 224, self.vy / 10, self.obstacle["left"] / 224

    def grade(self):
        return self.ret / 500

    def draw(self, canvas: Canvas):
        rng = np.random.default_rng(self.scenery)  # the same sun and pebbles all through the episode
        blend(canvas, (150, 190, 220), (210, 220, 235), 0, SIZE)
        blend(canvas, (196, 166, 135), (140, 110, 90), GROUND, SIZE)
        canvas.line((115, 90, 65), 0, GROUND, SIZE, GROUND, width=2)
        for _ in range(10):
            x, y = rng.integers((0, 185), (SIZE, 189)).tolist()
            canvas.circle((115, 90, 65), (x - self.scrolled) % SIZE, y, 1)
        self._draw_cowboy(canvas)
        left, width, height = (self.obstacle[key] for key in ("left", "width", "height"))
        if width <= BIG[0]:
            self._draw_cactus(canvas, left, width, height)
        else:
            sizes = (SMALL, BIG) if self.small_first else (BIG, SMALL)
            self._draw_cactus(canvas, left, *sizes[0])
            self._draw_cactus(canvas, left + sizes[0][0] + GAP, *sizes[1])
        self._draw_sun(canvas, rng)
        if self.stuck:
            canvas.rect((220, 60, 60, 20), 0, 0, SIZE, SIZE)

    def _draw_cowboy(self, canvas: Canvas) -> None:
        x, y, black = AGENT_X, int(self.y), (0, 0, 0)
        canvas.rect((139, 69, 19), x + 6, y + 10, 6, 15)
        canvas.circle((222, 184, 135), x + 9, y + 5, 5)
        canvas.line(black, x, y + 1, x + 18, y + 1, width=2)
        canvas.polygon(black, [(x + 5, y - 3), (x + 13, y - 3), (x + 9, y - 8)])
        wide = 2 * (self.scrolled // (6 * SCROLL) % 2)
        canvas.line(black, x + 6, y + 12, x - 2 + wide, y + 18 + wide, width=2)
        canvas.line(black, x + 12, y + 12, x + 20 + wide, y + 18 + wide, width=2)
        canvas.line(black, x + 6, y + 25, x - wide, y + 35, width=2)
        canvas.line(black, x + 12, y + 25, x + 18 + wide, y + 35, width=2)

    def _draw_cactus(self, canvas: Canvas, left: float, width: int, height: int) -> None:
        green, top = (108, 138, 72), GROUND - height
        arm = top + height // 3
        canvas.rect(green, left, top, width, height)
        canvas.rect(green, left - 4, arm, 4, 10)
        canvas.rect(green, left + width, arm - 5, 4, 10)

    def _draw_sun(self, canvas: Canvas, rng: np.random.Generator) -> None:
        size, x, y = rng.integers((12, 185, 15), (20, 205, 35)).tolist()
        color = tuple(([230, 212, 100] + rng.integers(-10, 10, 3)).tolist())
        for radius in range(2 * size, size, -4):
            canvas.circle((*color, max(0, 30 - (2 * size - radius) // 2)), x, y, radius)
        canvas.circle(color, x, y, size)


def player(game: Cowboy) -> np.ndarray:
    """Jumps as high as it can when the cactus is near: high enough for the tallest, long enough for the widest."""
    near = game.y >= STAND - 0.001 and 90 < game.obstacle["left"] <= 140
    return np.float32([1 if near else 0])
