"""Rocket collect: fly to one coin after the other and away from asteroids, one more every 150 steps, at most three.

    action   thrust along x and y: v <- 0.98 (v + 0.75 a), at most 4 px per step; at the edge it stops, but v goes on
    reward   +1 per coin, -0.2 per step and asteroid that it touches, and up to 0.002 for being near the coin
    obs      position / 224, velocity / 4; coin / 224; way to the coin / 224; 1 for 5 steps after touching an asteroid;
             three asteroids: position / 224, velocity / 4, or 0
    score    return / 25

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: one generator for all draws; scenery.
Test: pytest tests/test_arcade_rocket_collect.py
"""

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game

THRUST, DAMPING, MAX_SPEED = 0.75, 0.98, 4
COIN, ROCK = 9, 14  # radii
COIN_REACH, ROCK_REACH = 19, 24  # distances; the agent's radius is 10
LOW, HIGH = 15, 209  # of the agent's centre, both axes
ROCK_LOW, ROCK_HIGH = 14, 210
FAR = SIZE * 2**0.5


def make(task, seed: int, render_mode: str | None) -> "RocketCollect":
    return RocketCollect(task, seed, render_mode)


class RocketCollect(Game):
    # asteroids: one row each of x, y, vx, vy, entered (1 once it was inside: from then on the edges hold it)
    STATE = ("position", "velocity", "coin", "coins", "asteroids", "timer")
    pickup = None  # where and when the last coin was taken; only for the picture

    def start(self):
        self.position, self.velocity = np.array([112.0, 184.0]), np.zeros(2)
        self.coins, self.timer, self.pickup = 0, 0, None
        self._place_coin()
        self.asteroids = np.zeros((0, 5))
        self._spawn()

    def _place_coin(self) -> None:
        self.coin = self.np_random.integers((30, 40), (194, 112)).astype(float)

    def _spawn(self) -> None:
        side, along = int(self.np_random.integers(4)), int(self.np_random.integers(20, 204))
        start = np.array([(along, -28), (along, 252), (-28, along), (252, along)][side])
        way = self.np_random.uniform(56, 168, 2) - start
        velocity = self.np_random.uniform(1, 2.2) * way / np.hypot(*way)
        self.asteroids = np.vstack([self.asteroids, [*start, *velocity, 0]])

    def advance(self, action):
        self.position, self.velocity = thrust(self.position, self.velocity, action)
        self.asteroids = drift(self.asteroids)
        distance = np.hypot(*(self.coin - self.position))
        reward = 0.002 * (1 - min(1, distance / FAR))
        if distance < COIN_REACH:
            reward += 1
            self.coins, self.pickup = self.coins + 1, (*self.coin, self.t + 1)
            self._place_coin()
        hits = int((np.hypot(*(self.asteroids[:, :2] - self.position).T) < ROCK_REACH).sum())
        if hits:
            reward -= 0.2 * hits
            self.timer = 6
        while len(self.asteroids) < min(1 + (self.t + 1) // 150, 3):
            self._spawn()
        self.timer = max(0, self.timer - 1)
        return reward

    def observe(self):
        rocks = np.zeros((3, 4))
        rocks[: len(self.asteroids)] = self.asteroids[:, :4] / (SIZE, SIZE, MAX_SPEED, MAX_SPEED)
        body = self.position / SIZE, self.velocity / MAX_SPEED, self.coin / SIZE, (self.coin - self.position) / SIZE
        return np.concatenate([*body, [self.timer > 0], rocks.ravel()])

    def grade(self):
        return self.ret / 25

    def draw(self, canvas: Canvas):
        for y in range(SIZE):
            c = 20 + 40 * y // SIZE
            canvas.line((c // 2, 0, c), 0, y, SIZE, y)
        for x, y, radius in np.random.default_rng(0).integers((0, 0, 1), (SIZE, SIZE, 3), (40, 3)):
            canvas.circle((255, 255, 255), x, y, radius)
        flicker = np.random.default_rng(self.t)
        x, y = self.position
        speed = np.hypot(*self.velocity)
        canvas.polygon((180, 180, 255), [(x, y - 14), (x - 8, y + 10), (x + 8, y + 10)])
        for side in (-1, 1):
            canvas.polygon((150, 150, 200), [(x + 8 * side, y + 10), (x + 12 * side, y + 16), (x + 4 * side, y + 10)])
        if speed > 0.05:
            tip = y + 10 + int(3 + 4 * speed + flicker.integers(-1, 2))
            canvas.polygon((255, int(flicker.integers(150, 200)), 80), [(x - 3, y + 10), (x + 3, y + 10), (x, tip)])
        for number, rock in enumerate(self.asteroids):
            shape = np.random.default_rng(number)
            angles = np.arange(8) * np.pi / 4 + self.t * shape.uniform(-0.02, 0.02)
            radii = ROCK + shape.integers(-3, 4, (2, 8))
            canvas.polygon((120, 120, 120), (rock[:2] + (radii * (np.cos(angles), np.sin(angles))).T).tolist())
        canvas.circle((255, 215, 0), *self.coin, COIN)
        canvas.circle((200, 120, 0), *self.coin, COIN, width=2)
        if self.pickup is not None:
            self._draw_pickup(canvas, *self.pickup[:2], self.t - self.pickup[2])
        canvas.text((255, 255, 255), f"Score: {self.coins}", 5, 5, 20)
        if self.timer > 0:
            canvas.rect((255, 0, 0, 80), 0, 0, SIZE, SIZE)
            picture = canvas.surface.copy()
            canvas.surface.fill((0, 0, 0))
            canvas.surface.blit(picture, flicker.integers(-3, 4, 2).tolist())

    def _draw_pickup(self, canvas: Canvas, x, y, age: int) -> None:
        if 0 <= age < 8:
            canvas.circle((255, 220, 100, 255 - 32 * age), x, y, COIN + 2 * age, width=2)
        if 0 <= age < 20:
            canvas.text((255, 255, 0, 255 - 12 * age), "+1", x - 6, y - 20 - age, 20)


# The rules below take one body, (2,), or many, (N, 2): the player plans with them.


def thrust(position, velocity, action):
    """-> position, velocity of the agent after one step."""
    velocity = DAMPING * (velocity + THRUST * action)
    speed = np.hypot(velocity[..., 0], velocity[..., 1])[..., None]
    velocity = velocity * MAX_SPEED / np.maximum(speed, MAX_SPEED)
    return np.clip(position + velocity, LOW, HIGH), velocity


def drift(asteroids):
    """-> asteroids after one step; those inside bounce off the edges."""
    x = asteroids[:, :2] + asteroids[:, 2:4]
    entered = (asteroids[:, 4:] > 0) | ((x >= ROCK_LOW) & (x <= ROCK_HIGH)).all(axis=1, keepdims=True)
    bounce = entered & ((x < ROCK_LOW) | (x > ROCK_HIGH))
    velocity = np.where(bounce, -asteroids[:, 2:4], asteroids[:, 2:4])
    return np.hstack([np.where(entered, np.clip(x, ROCK_LOW, ROCK_HIGH), x), velocity, entered])


ANGLES = np.pi / 8 * np.arange(16)
FIRST = np.concatenate([np.stack([np.cos(ANGLES), np.sin(ANGLES)], axis=-1), [[0, 0]]])
HORIZON, HOLD = 24, np.repeat([4, 10], len(FIRST))  # steps that a plan looks ahead, and that it keeps its first action


def player(game: RocketCollect) -> np.ndarray:
    """Flies straight to the coin, or first 4 or 10 steps elsewhere if the rules say that this hits less. -> (2,)."""
    first, hold = np.concatenate([FIRST, FIRST, [[0, 0]]]), np.append(HOLD, 0)  # the last plan is the straight way
    position, velocity = (np.tile(v, (len(first), 1)) for v in (game.position, game.velocity))
    asteroids, coin = np.asarray(game.asteroids), np.asarray(game.coin)
    cost, taken, actions = np.zeros(len(first)), np.zeros(len(first), bool), []
    for k in range(HORIZON):
        action = np.where((k < hold)[:, None], first, toward(coin, position, velocity))
        actions.append(action)
        position, velocity = thrust(position, velocity, action)
        asteroids = drift(asteroids)
        near = np.linalg.norm(position[:, None] - asteroids[:, :2], axis=-1) < ROCK_REACH + 2
        taken |= np.linalg.norm(coin - position, axis=-1) < COIN_REACH
        cost += 0.2 * near.sum(axis=1) + 0.02 * ~taken
    # Far from the coin no plan reaches it: then the one that gets nearest wins.
    cost += 0.02 / MAX_SPEED * ~taken * np.linalg.norm(coin - position, axis=-1)
    return actions[0][cost.argmin()].astype(np.float32)


def toward(coin, position, velocity):
    """Thrust that turns the velocity to the coin."""
    way = coin - position
    wanted = MAX_SPEED * way / np.maximum(np.linalg.norm(way, axis=-1, keepdims=True), 1e-8)
    return ((wanted - velocity) / THRUST).clip(-1, 1)
