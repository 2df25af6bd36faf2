"""Spaceship: a side scroller at 12 px per step; collect rows of 2 to 4 coins, keep clear of the asteroid.

    action   thrust along x and y: v += 0.65 a, then the ship moves, then v *= 0.95; at the edge it stops, but v goes on
    reward   +1 per coin, -2 per step in which the ship and the asteroid overlap (it may be several)
    coins    the next row appears, at the right, in the step after the last coin was taken or has left the screen;
             with it, half the time, an asteroid, if there is none
    obs      position / 224, velocity / 10; four coins: centre / 224, -1 if taken; the asteroid: the same
    score    return / 60

An asteroid outlives the episode: the next one starts with it.
Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: a reset with a seed starts without the old
asteroid; no extra try for an asteroid in the very first episode; one generator for all draws; scenery.
Test: pytest tests/test_arcade_spaceship.py
"""

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game, IntRect

SCROLL, THRUST, DAMPING = 12, 0.65, 0.95
SHIP_W, SHIP_H, MAX_X, MAX_Y = 28, 18, 196, 206  # its box, and the limits of its top left corner
COIN, ROCK = 9, 18  # half a box
SPACING = 27  # of the coins


def make(task, seed: int, render_mode: str | None) -> "Spaceship":
    return Spaceship(task, seed, render_mode)


class Spaceship(Game):
    # coins: rows of x, y, available; asteroid: [x, y] or None
    STATE = ("x", "y", "vx", "vy", "coins", "asteroid")

    def __init__(self, task, seed: int, render_mode: str | None):
        super().__init__(task, seed, render_mode)
        self.asteroid = None

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:  # else the asteroid of an earlier episode would make two equal seeds differ
            self.asteroid = None
        return super().reset(seed=seed, options=options)

    def start(self):
        self.x, self.y, self.vx, self.vy = 40.0, 112.0, 0.0, 0.0
        self._spawn()

    def _spawn(self) -> None:
        """A new row of coins; perhaps an asteroid, so far behind that it touches none of them."""
        rng = self.np_random
        n, x, y = int(rng.integers(2, 5)), SIZE + int(rng.integers(20, 60)), int(rng.integers(30, 194))
        behind = x + (n + 2) * SPACING
        self.coins = []
        for _ in range(n):
            self.coins.append([x, y, True])
            x += SPACING
            if rng.random() < 0.6:
                y = min(204, max(20, y + 18 * int(rng.choice([-1, 1]))))
        if self.asteroid is None and rng.random() < 0.5:
            self.asteroid = [float(behind + rng.uniform(-30, 30)), int(rng.integers(40, 184))]

    def advance(self, action):
        self.vx, self.vy = self.vx + THRUST * float(action[0]), self.vy + THRUST * float(action[1])
        self.x = min(MAX_X, max(0.0, self.x + self.vx))
        self.y = min(MAX_Y, max(0.0, self.y + self.vy))
        self.vx, self.vy = DAMPING * self.vx, DAMPING * self.vy
        if self.asteroid is not None:
            self.asteroid = [self.asteroid[0] - SCROLL, self.asteroid[1]]
            if self.asteroid[0] < -ROCK:
                self.asteroid = None
        reward = -2 * self.crashed()
        self.coins = [[x - SCROLL, y, available] for x, y, available in self.coins]
        if not any(available and x >= -COIN for x, _, available in self.coins):
            self._spawn()
        for coin in self.coins:
            if coin[2] and box(coin, COIN).overlaps(self.ship()):
                coin[2] = False
                reward += 1
        return reward

    def ship(self) -> IntRect:
        return IntRect(self.x, self.y, SHIP_W, SHIP_H)

    def crashed(self) -> bool:
        return self.asteroid is not None and box(self.asteroid, ROCK).overlaps(self.ship())

    def observe(self):
        coins = np.full((4, 2), -1.0)
        for i, (x, y, available) in enumerate(self.coins):  # missed ones too, with x < 0, until the next row comes
            if available:
                coins[i] = x / SIZE, y / SIZE
        rock = (-1, -1) if self.asteroid is None else np.divide(self.asteroid, SIZE)
        return np.concatenate([[self.x / SIZE, self.y / SIZE, self.vx / 10, self.vy / 10], coins.ravel(), rock])

    def grade(self):
        return self.ret / 60

    def draw(self, canvas: Canvas):
        for x, y in np.random.default_rng(0).integers(SIZE, size=(50, 2)):
            canvas.circle((255, 255, 255), (x - 6 * self.t) % SIZE, y, 1)
        x, y, speed = self.x, self.y, float(np.hypot(self.vx, self.vy))
        if speed > 0.1:
            flicker = np.random.default_rng(self.t).uniform(0.9, 1.1, 2)
            length, width = min(28, 14 + 4 * speed) * flicker[0], (4 + 0.3 * speed) * flicker[1]
            for size, color in ((1, (255, 255, 120)), (0.7, (255, 200, 60)), (0.5, (255, 140, 0))):
                tips = [(x, y + 9 - size * width), (x, y + 9 + size * width), (x - size * length, y + 9)]
                canvas.polygon(color, tips)
        canvas.polygon((180, 180, 255), [(x, y), (x, y + 18), (x + 28, y + 9)])
        canvas.line((100, 100, 200), x + 4, y - 2, x + 4, y + 20, width=2)
        for cx, cy, available in self.coins:
            if available:
                canvas.circle((255, 215, 0), cx, cy, COIN)
                canvas.circle((200, 160, 0), cx, cy, COIN, width=2)
        if self.asteroid is not None:
            radii = ROCK * np.random.default_rng(self.asteroid[1]).uniform(0.7, 1.3, 10)
            angles = 2 * np.pi * np.arange(10) / 10 + 0.02 * self.t
            corners = np.stack([np.cos(angles), np.sin(angles)], axis=-1) * radii[:, None] + self.asteroid
            canvas.polygon((100, 100, 100), corners.tolist())
            canvas.polygon((60, 60, 60), corners.tolist(), width=2)
        if self.crashed():
            canvas.rect((220, 60, 60, 40), 0, 0, SIZE, SIZE)


def box(center, half: int) -> IntRect:
    return IntRect(center[0] - half, center[1] - half, 2 * half, 2 * half)


HOLD_X, HORIZON = 55, 26
SWITCH = np.array([1, 2, 4, 6, 9, 13])  # steps after which a plan changes its target


def player(game: Spaceship) -> np.ndarray:
    """Stays at the left; plans the height: this target for some steps, then that one. -> action (2,)."""
    coins = np.array([(x, y) for x, y, available in game.coins if available and x >= -COIN], float).reshape(-1, 2)
    targets = [*(coins[coins[:, 0] < SIZE + 40, 1] - COIN), game.y]
    if game.asteroid is not None:
        targets += [game.asteroid[1] - 39, game.asteroid[1] + 21]
    targets = np.clip(targets, 0, MAX_Y)
    first, then, switch = (grid.ravel() for grid in np.meshgrid(targets, targets, SWITCH, indexing="ij"))
    x, vx, y, vy = game.x, game.vx, np.full(len(first), game.y), np.full(len(first), game.vy)
    value, taken, actions = np.zeros(len(first)), np.zeros((len(first), len(coins)), bool), []
    for k in range(1, HORIZON + 1):
        push = np.clip(0.03 * (HOLD_X - x) - 0.35 * vx, -1, 1)
        lift = np.clip(0.25 * (np.where(k <= switch, first, then) - y) - 1.3 * vy, -1, 1)
        actions.append((push, lift))
        vx, vy = vx + THRUST * push, vy + THRUST * lift
        x, y = np.clip(x + vx, 0, MAX_X), np.clip(y + vy, 0, MAX_Y)
        vx, vy = DAMPING * vx, DAMPING * vy
        if game.asteroid is not None:  # 2 px wider than it is; coins 1 px narrower
            ax, ay = game.asteroid[0] - SCROLL * k - ROCK, game.asteroid[1] - ROCK
            level = (y < ay + 2 * ROCK + 2) & (y + SHIP_H > ay - 2)
            value -= 2 * (level & (x < ax + 2 * ROCK + 2) & (x + SHIP_W > ax - 2))
        if len(coins):
            cx, cy = (coins - (SCROLL * k, 0) - COIN).T
            over = (x < cx + 2 * COIN - 1) & (x + SHIP_W > cx + 1)
            new = over & (y[:, None] < cy + 2 * COIN - 1) & (y[:, None] + SHIP_H > cy + 1) & ~taken
            value += new.sum(axis=1) * (1 - 0.002 * k)
            taken |= new
    if len(coins):
        value -= 0.001 * abs(y + COIN - coins[-1, 1])
    push, lift = actions[0]
    return np.float32([push, lift[value.argmax()]])
