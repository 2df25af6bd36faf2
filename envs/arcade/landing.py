"""Landing: a helicopter sets down on the deck of a ship that sails to and fro.

    action   thrust to the right and downwards; gravity pulls with a third of the full thrust
    reward   on the deck 0.1 + 0.9 (1 - n), n = distance of the centres / 35, at most 1; once per touchdown minus twice
             the speed of impact, at most 10; above the deck's height 0.025 (1 - n) + 0.1 (1 - height / 224), below
             it -0.5; -0.001 per pixel and step of falling
    contact  already counts 3 px above the deck
    locked   a helicopter that stands still on the deck sails along; it can still be shifted sideways
    obs      x, y, vx, vy of the helicopter, the deck's centre (its height never changes), velocity of the ship
    score    return / 200

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: double precision.
Test: pytest tests/test_arcade_landing.py
"""

from math import sqrt

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game, IntRect

WIDTH, HEIGHT = 28, 18  # of the helicopter; x and y are its top left corner
DECK_Y, DECK_WIDTH, DECK_HEIGHT = 189, 70, 12  # DECK_Y is the middle
DECK_TOP, DECK_BOTTOM = 183, 195
ON_DECK = DECK_TOP - HEIGHT  # y of a helicopter that stands there
WATER = 179
THRUST, GRAVITY, DAMPING = 0.6, 0.20, 0.96


def make(task, seed: int, render_mode: str | None) -> "Landing":
    return Landing(task, seed, render_mode)


class Landing(Game):
    STATE = ("x", "y", "vx", "vy", "sx", "d", "v", "contact", "locked")  # ship: centre, direction, speed
    scenery = 0  # seed of what is only looked at; also there before the first reset

    def start(self):
        rng = self.np_random
        (self.x, self.y), (self.vx, self.vy) = rng.uniform(12, 36, 2).tolist(), rng.uniform(-0.3, 0.3, 2).tolist()
        self.sx, self.d, self.v = 74.0, int(rng.choice([-1, 1])), 1.4 + rng.uniform(-0.3, 0.3)
        self.contact = self.locked = False
        self.scenery = int(self.cosmetic.integers(2**31))

    def advance(self, action):
        self.vx += THRUST * float(action[0])
        self.vy += THRUST * float(action[1]) + GRAVITY
        self.x = min(SIZE - WIDTH, max(0.0, self.x + self.vx))
        self.y = min(SIZE - HEIGHT, max(0.0, self.y + self.vy))
        self.vx, self.vy = DAMPING * self.vx, DAMPING * self.vy
        self.sx, self.d = sail(self.sx, self.d, self.v)
        deck, impact = IntRect(self.sx - DECK_WIDTH / 2, DECK_TOP, DECK_WIDTH, DECK_HEIGHT), self.vy
        if self._box().overlaps(deck):
            self._push_out(deck)
        box, before, ship = self._box(), self.contact, self.d * self.v
        beside = box.right <= deck.left + 4 or box.left >= deck.right - 4
        self.contact = not beside and DECK_TOP - 3 <= box.bottom <= DECK_TOP + 3
        if self.contact:
            self.vx = 0.7 * self.vx + 0.3 * ship
            self.locked = self.locked or (abs(self.vy) < 0.20 and abs(self.vx - ship) < 0.20)
        else:
            self.locked = False
        if self.locked:  # `box` stays where it was: the reward is about the place before
            self.vx, self.vy, self.y = ship, min(0.0, self.vy), float(ON_DECK)
        return self._reward(box, deck, impact if self.contact and not before else None)

    def _box(self) -> IntRect:
        return IntRect(self.x, self.y, WIDTH, HEIGHT)

    def _push_out(self, deck: IntRect) -> None:
        """Out of the deck to the side where it is shorter; upwards or downwards if equal."""
        box = self._box()
        sideways = min(box.right - deck.left, deck.right - box.left)
        if min(box.bottom - deck.top, deck.bottom - box.top) <= sideways:
            if box.center[1] < deck.center[1]:
                self.y, self.vy = float(ON_DECK), min(0.0, self.vy)
                self.vx *= 0.90
            else:
                self.y, self.vy = float(DECK_BOTTOM), max(0.0, self.vy)
        elif box.center[0] < deck.center[0]:
            self.x, self.vx = float(deck.left - WIDTH), min(0.0, self.vx)
        else:
            self.x, self.vx = float(deck.right), max(0.0, self.vx)

    def _reward(self, box: IntRect, deck: IntRect, impact: float | None) -> float:
        """impact: downward speed of a touchdown in this step, None if there is none."""
        (x, y), reward = box.center, -0.001 * max(0.0, self.vy)
        near = 1 - min(1, abs(x - deck.center[0]) / 35)
        if self.contact:
            reward += 0.1 + 0.9 * near
        if impact is not None:
            reward -= min(10, 2 * max(0, impact))
        if y > DECK_TOP:
            return reward - 0.5
        return reward + 0.025 * near + 0.1 * (1 - min(1, abs(y - DECK_Y) / 224))

    def observe(self):
        place = self.x / 224, self.y / 224, self.vx / 10, self.vy / 10
        return *place, self.sx / 224, DECK_Y / 224, self.d * self.v / 5

    def grade(self):
        return self.ret / 200

    def draw(self, canvas: Canvas):
        canvas.rect((150, 190, 255), 0, 0, SIZE, WATER)
        canvas.rect((50, 120, 200), 0, WATER, SIZE, SIZE - WATER)
        for x, y in np.random.default_rng(self.scenery).uniform(0, (SIZE, WATER), (40, 2)):
            canvas.circle((240, 240, 255), x, y, 1)
        self._draw_ship(canvas, int(self.sx - DECK_WIDTH / 2))
        self._draw_helicopter(canvas, int(self.x), int(self.y))
        if self.contact:
            canvas.rect((80, 220, 120, 40), 0, 0, SIZE, SIZE)

    def _draw_ship(self, canvas: Canvas, left: int) -> None:
        right, middle, low = left + DECK_WIDTH, left + DECK_WIDTH // 2, DECK_BOTTOM
        hull = [(left, low), (right, low), (right - 10, low + 16), (left + 10, low + 16)]
        canvas.polygon((120, 120, 140), hull)
        canvas.polygon((80, 80, 100), hull, width=2)
        canvas.rect((240, 240, 240), left, DECK_TOP, DECK_WIDTH, DECK_HEIGHT)
        canvas.rect((180, 180, 180), left, DECK_TOP, DECK_WIDTH, DECK_HEIGHT, width=2)
        canvas.line((160, 160, 160), left + 6, DECK_Y, right - 6, DECK_Y)
        front = right if self.d > 0 else left
        bow = [(front, DECK_TOP), (front + 10 * self.d, DECK_Y), (front, low)]
        canvas.polygon((240, 240, 240), bow)
        canvas.polygon((180, 180, 180), bow, width=2)
        cabin = left + 6 if self.d > 0 else right - 24
        canvas.rect((230, 230, 235), cabin, DECK_TOP - 12, 18, 12)
        canvas.rect((160, 160, 170), cabin, DECK_TOP - 12, 18, 12, width=2)
        for dx in (3, 9, 15):
            canvas.rect((180, 210, 240), cabin + dx, DECK_TOP - 9, 4, 5)
        top = DECK_TOP - 10
        canvas.line((70, 70, 70), middle, DECK_TOP, middle, top, width=2)
        canvas.polygon((220, 40, 40), [(middle, top), (middle + 8, top + 3), (middle, top + 6)])

    def _draw_helicopter(self, canvas: Canvas, x: int, y: int) -> None:
        body, trim = [(x, y + 9), (x + 22, y), (x + 28, y + 9), (x + 22, y + 18)], (90, 120, 180)
        canvas.polygon((180, 200, 220), body)
        canvas.polygon(trim, body, width=2)
        canvas.line(trim, x + 6, y + 9, x - 8, y + 9, width=2)
        canvas.line((80, 80, 80), x + 4, y + 18, x + 20, y + 18, width=3)
        for dx in (8, 16):
            canvas.line((80, 80, 80), x + dx, y + 12, x + dx, y + 18, width=2)
        canvas.line((50, 50, 50), x - 2, y - 3, x + 30, y - 3, width=2)


def sail(sx: float, d: int, v: float) -> tuple[float, int]:
    """One step of the ship -> centre of the deck, direction."""
    sx += d * v
    if sx <= DECK_WIDTH / 2:
        return DECK_WIDTH / 2, 1
    if sx >= SIZE - DECK_WIDTH / 2:
        return SIZE - DECK_WIDTH / 2, -1
    return sx, d


def player(game: Landing) -> np.ndarray:
    """Flies to where the ship will be, waits above it and comes down slowly, at last with its speed. -> action (2,)."""
    sx, d = game.sx, game.d
    for _ in range(1 if game.contact else 3):
        sx, d = sail(sx, d, game.v)
    error = sx - game.x - WIDTH / 2
    if game.contact:  # carry the own weight only, so that nothing is left to bounce; go to the middle
        return np.clip([(error - game.vx) / THRUST, -GRAVITY / THRUST], -1, 1).astype(np.float32)
    sideways = d * game.v + min(5, max(-5, 0.16 * error))
    gap = (ON_DECK if abs(error) < 24 else 135) - game.y
    down = 0.06 if 0 <= gap < 4 else min(7, sqrt(0.5 * max(0, gap - 1.5))) if gap >= 0 else 0.1 * gap
    command = (sideways - game.vx) / THRUST, (down - GRAVITY - game.vy) / THRUST
    return np.clip(command, -1, 1).astype(np.float32)
