"""Coinrun: a girl runs to the right, coins come towards her; her only input is how strongly to jump.

    reward   +1 per coin touched
    action   above 0 and on the ground: a jump of that strength; 1/12 or less does not lift off
    coins    2 to 5 in a row, one row at a time: the next one comes when all coins are taken or past the left edge
    quirk    a full jump comes down on exactly the ground's height, which counts as landing one step later only
    obs      (y - 154) / 224, vy / 10, five coins / 224; -1, -1 for a missing or taken one
    score    return / 50

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: simpler scenery, no sparkles.
Test: pytest tests/test_arcade_coinrun.py
"""

from math import cos, pi, sin

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game, IntRect

GROUND, AGENT_X, AGENT_W, AGENT_H = 184, 40, 18, 30
STAND = GROUND - AGENT_H  # y of the agent's top while on the ground
JUMP, GRAVITY, SCROLL = 12, 1, 10
RADIUS = 9  # of a coin


def make(task, seed: int, render_mode: str | None) -> "Coinrun":
    return Coinrun(task, seed, render_mode)


class Coinrun(Game):
    STATE = ("y", "vy", "coins")
    scenery = 0  # seed of what is only looked at; also there before the first reset

    def start(self):
        self.y, self.vy = float(STAND), 0.0
        self.coins = self._row()
        self.scenery = int(self.cosmetic.integers(2**31))

    def _row(self) -> list:
        """[x, y, active] of each coin, from left to right."""
        count, x, level = self.np_random.integers((2, 244, 1), (6, 284, 5)).tolist()
        y, coins = 173 - 18 * level, []
        for _ in range(count):
            coins.append([x, y, True])
            x += 27
            if self.np_random.random() < 0.6:
                y = min(173, max(83, y + 18 * int(self.np_random.choice([-1, 1]))))
        return coins

    def advance(self, action):
        self.y, self.vy = leap(self.y, self.vy, float(action[0]))
        for coin in self.coins:
            coin[0] -= SCROLL
        if all(not active or x < -RADIUS for x, _, active in self.coins):
            self.coins = self._row()
        agent, taken = IntRect(AGENT_X, self.y, AGENT_W, AGENT_H), 0
        for coin in self.coins:
            x, y, active = coin
            if active and agent.overlaps(IntRect(x - RADIUS, y - RADIUS, 2 * RADIUS, 2 * RADIUS)):
                coin[2] = False
                taken += 1
        return float(taken)

    def observe(self):
        obs = np.full(12, -1.0)
        obs[:2] = (self.y - STAND) / 224, self.vy / 10
        for i, (x, y, active) in enumerate(self.coins):
            if active:
                obs[2 + 2 * i : 4 + 2 * i] = x / 224, y / 224
        return obs

    def grade(self):
        return self.ret / 50

    def draw(self, canvas: Canvas):
        rng = np.random.default_rng(self.scenery)  # the same things all through the episode; they scroll
        blend(canvas, (173, 216, 230), (255, 182, 193), 0, GROUND)
        blend(canvas, (76, 130, 78), (112, 170, 112), GROUND, SIZE)
        canvas.line((51, 92, 53), 0, GROUND, SIZE, GROUND, width=2)
        for _ in range(7):
            size, y, speed, x = rng.uniform((16, 15, 0.18, 0), (26, 82.8, 0.42, SIZE + 60))
            x = (x - SCROLL * speed * self.t) % (SIZE + 60) - 60
            for dx, dy, scale in ((0, 0.2, 1), (0.5, 0, 1.2), (1.2, 0.2, 1)):
                canvas.ellipse((255, 204, 214), x + dx * size, y + dy * size, scale * size, 0.6 * scale * size)
        plants = [(*rng.uniform(size=3), rng.integers(4)) for _ in range(12)]
        for _ in range(10):
            x, y = rng.integers((0, GROUND + 2), (SIZE, GROUND + 10)).tolist()
            canvas.circle((51, 92, 53), (x - SCROLL * self.t) % SIZE, y, 1)
        for i, plant in enumerate(plants):
            if i == 8:  # the rest stands in front of her
                self._draw_girl(canvas)
            self._draw_plant(canvas, i, *plant)
        for x, y, active in self.coins:
            if active:
                canvas.circle((255, 215, 0), x, y, RADIUS)
                pulse = int(20 * sin(2 * pi * self.t / 30))
                canvas.circle((227 + pulse, 190 + pulse, 30 + pulse), x, y, RADIUS, width=2)
                gx, gy = x + 4 * cos(2 * pi * self.t / 45), y + 4 * sin(2 * pi * self.t / 45)
                canvas.line((255, 255, 255), gx - 1, gy, gx + 1, gy)
                canvas.line((255, 255, 255), gx, gy - 1, gx, gy + 1)

    def _draw_plant(self, canvas: Canvas, i: int, where: float, depth: float, height: float, petals: int) -> None:
        x, tip = (where * 260 - SCROLL * self.t) % 260 - 18, GROUND - 5 - 5 * height
        if i % 3:
            for blade in (-4, -1, 2, 5):
                color = [int(a + (b - a) * depth) for a, b in ((34, 70), (110, 160), (38, 72))]
                canvas.line(color, x + blade / 2, GROUND, x + blade, tip + abs(blade))
        else:
            canvas.line((34, 110, 38), x, GROUND, x, tip)
            color = ((255, 182, 193), (255, 204, 229), (255, 255, 153), (221, 160, 221))[petals]
            for k in range(5):
                canvas.circle(color, x + 3 * cos(2 * pi * k / 5), tip + 3 * sin(2 * pi * k / 5), 2)
            canvas.circle((255, 230, 120), x, tip, 2)

    def _draw_girl(self, canvas: Canvas) -> None:
        x, y, black, brown = AGENT_X, int(self.y), (0, 0, 0), (139, 69, 19)
        canvas.rect((220, 20, 60), x + 2, y - 1, 14, 18, radius=5)
        canvas.circle((222, 184, 135), x + 9, y + 5, 5)
        wide = 4 if self.t // 3 % 2 else 8
        hands = (20, wide) if y >= STAND else (14, 3)  # in the air she tucks her arms in
        for side in (-1, 1):
            canvas.line(black, x + 9 + 3 * side, y + 12, x + 9 + side * (3 + hands[1]), y + hands[0], width=2)
            canvas.line(black, x + 9 + side, y + 25, x + 9 + side * wide, y + 35, width=2)
        canvas.polygon(brown, [(x + 6, y + 10), (x + 12, y + 10), (x + 9, y + 25)])
        canvas.polygon(brown, [(x + 3, y + 30), (x + 15, y + 30), (x + 9, y + 18)])


def leap(y: float, vy: float, push: float) -> tuple[float, float]:
    """One step of a runner's height and speed. Downwards is positive, as on the screen; cowboy.py shares this."""
    if push > 0 and y >= STAND - 0.001:
        vy = -JUMP * push
    vy += GRAVITY
    y += vy
    return (float(STAND), 0.0) if y > STAND else (y, vy)  # at y == STAND it goes on falling: the quirk


def blend(canvas: Canvas, top: tuple, bottom: tuple, y0: int, y1: int) -> None:
    """Rows y0 to y1 - 1, from one color to the other."""
    for y in range(y0, y1):
        u = (y - y0) / (y1 - y0)
        canvas.line([int(a + (b - a) * u) for a, b in zip(top, bottom, strict=True)], 0, y, SIZE, y)


# What the player may do from the ground: wait, then one jump. Weak and early ones first, so that they win ties.
PLANS = [(strength, wait) for strength in (0, 0.45, 0.55, 0.65, 0.75, 0.85, 1) for wait in range(25)]
HORIZON = 45  # steps; the last coin of the farthest row has passed by then


def _heights(strength: float, wait: int) -> list[int]:
    y, vy, ys = float(STAND), 0.0, []
    for k in range(HORIZON):
        y, vy = leap(y, vy, strength if k == wait else 0)
        ys.append(int(y))
    return ys


HEIGHTS = np.array([_heights(*plan) for plan in PLANS])[:, None]  # (plans, 1, steps)


def player(game: Coinrun) -> np.ndarray:
    """On the ground: the plan that takes most of this row's coins. -> action (1,)."""
    if game.y < STAND:
        return np.zeros(1, np.float32)
    x, y = np.array([coin[:2] for coin in game.coins if coin[2]]).reshape(-1, 2, 1).swapaxes(0, 1)
    x = x - SCROLL * np.arange(1, HORIZON + 1)
    touch = (abs(x - 49) < 18) & (HEIGHTS - 9 < y) & (y < HEIGHTS + 39)  # (plans, coins, steps)
    strength, wait = PLANS[touch.any(-1).sum(-1).argmax()]
    return np.float32([0 if wait else strength])
