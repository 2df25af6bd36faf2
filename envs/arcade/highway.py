"""Highway: a car on a road of five lanes seen from above; slower and faster traffic comes towards it from the right.

    reward   0.01 exp(-n^2), n = distance to the lane's centre / 18.8; for what is ahead in the agent's lane +0.01
             nothing, +0.005 far, -0.02 (1 - gap / 84) near; -0.0005 |action|^2; -1 when a collision starts.
             At most 0.02 per step; passing pays nothing
    action   acceleration to the right and downwards
    crash    the car that was hit drags the agent along for 5 steps, or to the left edge, and vanishes; meanwhile
             nothing else can be hit
    traffic  four slots; more may be in use the longer the episode lasts. A slot counts only the cars in the slots
             before it, so there are often more cars than the limit says
    obs      agent 0-3, flash 4, lanes 5-11 (gap ahead, are the lanes beside free), slots 12-23; see observe()
    score    return / 10

Obs 4 (flash) goes to 1 at the episode's first crash and stays there, as in the original as long as nothing is rendered;
there every rendered frame counts it down. Here no picture changes the state, and the screen flashes while a crash is
fresh.
Source: the game of Newt's benchmark (arXiv 2511.19584).
Test: pytest tests/test_arcade_highway.py
"""

from math import inf

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game, IntRect

TOP, BOTTOM, LANE = 18, 206, 37.6  # the road; height of a lane
CENTERS = TOP + LANE * (np.arange(5) + 0.5)
WIDTH, HEIGHT = 28, 18  # of a car; a truck is twice as long
LENGTHS = {"blue": 28, "yellow": 28, "truck": 56}
THRUST, DAMPING, TRAFFIC, FAST = 0.65, 0.95, 6.0, 7.2
DRAG = 5  # steps


def make(task, seed: int, render_mode: str | None) -> "Highway":
    return Highway(task, seed, render_mode)


class Highway(Game):
    STATE = ("x", "y", "vx", "vy", "cars", "sticky", "flash")  # x, y: top left; sticky: slot of the car hit, or None

    def start(self):
        rng = self.np_random
        self.x, (self.vx, self.vy) = rng.uniform(20, 60), rng.uniform(-0.2, 0.2, 2).tolist()
        self.y = float(CENTERS[rng.integers(1, 4)] - HEIGHT / 2)
        self.sticky, self.flash = None, 0
        free = {"active": False, "x": 0.0, "lane": 0, "kind": "blue", "len": WIDTH, "timer": 0}
        self.cars = [free | {"respawn": int(rng.integers(7))} for _ in range(4)]
        self._spawn(self.cars[0], 264.0)

    def _spawn(self, car: dict, x: float | None = None) -> bool:
        """Put a new car into a free slot, if within 8 tries a place is found that isn't too near to another car."""
        kind = str(self.np_random.choice(list(LENGTHS)))
        for _ in range(8):
            lane = int(self.np_random.integers(5))
            place = 224 + self.np_random.uniform(20, 60) if x is None else x
            if all(abs(other["x"] - place) >= max(LENGTHS[kind], other["len"]) + 18 for other in self._in_lane(lane)):
                car.update(active=True, x=place, lane=lane, kind=kind, len=LENGTHS[kind], respawn=0, timer=0)
                return True
        return False

    def _in_lane(self, lane: int) -> list[dict]:
        return [car for car in self.cars if car["active"] and car["lane"] == lane]

    def _vanish(self, car: dict) -> None:
        car.update(active=False, respawn=int(self.np_random.integers(4, 11)))

    def _leader(self, car: dict) -> dict | None:
        """The next car to the left in the same lane, all of it. The agent isn't looked at."""
        ahead = [o for o in self._in_lane(car["lane"]) if o["x"] < car["x"] and o["x"] + o["len"] <= car["x"]]
        return max(ahead, key=lambda o: o["x"] + o["len"], default=None)

    def _drive(self, car: dict) -> tuple[float, float]:
        """-> speed, new x. Yellow cars are faster, but slow down for a leader and never overtake."""
        leader = self._leader(car) if car["kind"] == "yellow" else None
        if leader is None:
            speed = FAST if car["kind"] == "yellow" else TRAFFIC
            return speed, car["x"] - speed
        end = leader["x"] + leader["len"]
        speed = TRAFFIC if car["x"] - end <= max(car["len"], leader["len"]) else FAST
        return speed, max(car["x"] - speed, end + 1)

    def advance(self, action):
        self.vx += THRUST * float(action[0])
        self.vy += THRUST * float(action[1])
        self.x = min(SIZE - WIDTH, max(0.0, self.x + self.vx))
        self.y = min(BOTTOM - HEIGHT, max(TOP, self.y + self.vy))
        self.vx, self.vy = DAMPING * self.vx, DAMPING * self.vy
        if self.sticky is not None:
            self._drag(self.cars[self.sticky])
        crash = self._move_traffic(int(1 + 3 * min(1, self.t / 499) + 1e-9))
        lane = self.lane()
        offset = self.y + HEIGHT / 2 - CENTERS[lane]
        return pay(offset, self.gap(lane)) - 0.0005 * action @ action - crash

    def _drag(self, car: dict) -> None:
        """The car that was hit pushes the agent to the left."""
        speed, place = self._drive(car)
        x, want = self.x - speed, car["x"] - speed - (WIDTH - 1)  # want: from before the car stops for its leader
        if x >= 0 and want >= 0:
            car["x"], self.x = place, min(x, want)
            car["timer"] -= 1
            if car["timer"] > 0 and place + car["len"] >= 0:
                return
        self._vanish(car)
        car["timer"], self.vx, self.vy, self.sticky = 0, 0.0, 0.0, None

    def _move_traffic(self, limit: int) -> bool:
        """-> whether a collision starts."""
        agent, count, crash = IntRect(self.x, self.y, WIDTH, HEIGHT), 0, False
        for i, car in enumerate(self.cars):
            if not car["active"]:
                car["respawn"] = max(0, car["respawn"] - 1)
                if car["respawn"] == 0 and count < limit:
                    if self._spawn(car):
                        count += 1
                    else:
                        car["respawn"] = 1
                continue
            count += 1
            if i == self.sticky:
                continue
            _, car["x"] = self._drive(car)
            box = IntRect(car["x"], CENTERS[car["lane"]] - HEIGHT / 2, car["len"], HEIGHT)
            if self.sticky is None and agent.overlaps(box):
                car["timer"], self.sticky, self.flash, crash = DRAG, i, 3, True
            if car["timer"] == 0 and car["x"] + car["len"] < 0:
                self._vanish(car)
        return crash

    def lane(self) -> int:
        return int(abs(CENTERS - self.y - HEIGHT / 2).argmin())

    def gap(self, lane: int) -> float:
        """Pixels between the agent's front and the next car ahead in a lane; inf if there is none."""
        gaps = [car["x"] - (self.x + WIDTH) for car in self._in_lane(lane)]
        return min((gap for gap in gaps if gap >= 0), default=inf)

    def observe(self):
        lane = self.lane()
        gaps = [self.gap(i) for i in (lane, lane - 1, lane + 1)]
        near, above, below = (-1 if gap == inf else min(gap / 224, 1) for gap in gaps)
        free = [0 <= i < 5 and gap > 70 for i, gap in zip((lane - 1, lane + 1), gaps[1:], strict=True)]
        center = self.y + HEIGHT / 2
        obs = [self.x / 224, center / 224, self.vx / 10, self.vy / 10, self.flash / 3, near, *free, above, below]
        obs += [min(1, max(-1, (center - CENTERS[lane]) / (LANE / 2))), lane / 4]
        for car in self.cars:
            seen = car["x"] / 224, CENTERS[car["lane"]] / 224, car["kind"] == "truck"
            obs += seen if car["active"] else (-1, -1, -1)
        return obs

    def grade(self):
        return self.ret / 10

    def draw(self, canvas: Canvas):
        canvas.rect((97, 133, 80), 0, 0, SIZE, SIZE)
        canvas.rect((60, 60, 60), 0, TOP, SIZE, BOTTOM - TOP)
        for y in (55, 93, 130, 168):
            for x in range(-(6 * self.t % 24), SIZE, 24):
                canvas.line((220, 220, 220), x, y, x + 13, y, width=2)
        for y in (TOP, BOTTOM):
            canvas.line((200, 200, 200), 0, y, SIZE, y, width=2)
        paint = {"blue": (95, 135, 212), "yellow": (227, 188, 34), "truck": (82, 140, 66)}
        for car in self.cars:
            if car["active"]:
                y = CENTERS[car["lane"]] - HEIGHT / 2
                self._draw_car(canvas, paint[car["kind"]], (40, 40, 40), car["x"], y, car["len"])
        self._draw_car(canvas, (220, 60, 60), (120, 20, 20), self.x, self.y, WIDTH)
        x, y = int(self.x) + WIDTH + 4, int(self.y) + HEIGHT // 2
        canvas.polygon((220, 60, 60, 128), [(x, y - 4), (x, y + 4), (x + 8, y)])
        if self.sticky is not None and self.cars[self.sticky]["timer"] > DRAG - 3:  # three frames
            canvas.rect((220, 60, 60, 50), 0, 0, SIZE, SIZE)

    def _draw_car(self, canvas: Canvas, color, border, x: float, y: float, length: int) -> None:
        x, y = int(x), int(y)
        canvas.rect(color, x, y, length, HEIGHT)
        canvas.rect(border, x, y, length, HEIGHT, width=2)
        for wx in (x + int(0.22 * length), x + length - int(0.22 * length)):
            for wy in (y + 2, y + HEIGHT - 2):
                canvas.circle((20, 20, 20), wx, wy, 2)


def pay(offset, gap):
    """Reward for the place on the road; numbers or arrays. offset: from the lane's centre; gap: ahead, inf if free."""
    clear = np.where(np.isinf(gap), 0.01, np.where(gap < 84, -0.02 * (1 - gap / 84), 0.005))
    return 0.01 * np.exp(-((offset / (LANE / 2)) ** 2)) + clear


HORIZON = 48  # steps that the player looks ahead: until a car that has just come is past


def player(game: Highway) -> np.ndarray:
    """Stays at the left edge, where it sees farthest, and tries on today's cars to go to each lane. -> action (2,)."""
    y, vy, ys = np.full(5, game.y), np.full(5, game.vy), []
    for _ in range(HORIZON):
        vy = vy + THRUST * _steer(CENTERS - HEIGHT / 2 - y, vy)
        y, vy = np.clip(y + vy, TOP, BOTTOM - HEIGHT), DAMPING * vy
        ys.append(y)
    y = np.stack(ys, axis=1)  # (target lanes, steps)
    # (cars, 1, steps): a yellow car may have to slow down, so it is somewhere between two places
    speed = np.array([FAST if car["kind"] == "yellow" else TRAFFIC for car in game.cars])[:, None, None]
    front = np.array([car["x"] if car["active"] else -inf for car in game.cars])[:, None, None]
    end = front + np.array([car["len"] for car in game.cars])[:, None, None] - TRAFFIC * np.arange(1, HORIZON + 1)
    front = front - speed * np.arange(1, HORIZON + 1)
    top = np.array([CENTERS[car["lane"]] for car in game.cars])[:, None, None] - HEIGHT / 2
    nose, apart = game.x + WIDTH, abs(top - y)
    crash = ((apart < HEIGHT + 2) & (front < nose + 4) & (end > game.x - 4)).any(axis=0)
    gap = np.where((apart < LANE / 2) & (front >= nose), front - nose, inf).min(axis=0)
    offset = abs(CENTERS[:, None, None] - HEIGHT / 2 - y).min(axis=0)
    value = np.where(np.logical_or.accumulate(crash, axis=1), -1, pay(offset, gap)).sum(axis=1)
    steer = _steer(CENTERS - HEIGHT / 2 - game.y, game.vy)[value.argmax()]
    return np.clip([0.02 * (6 - game.x) - 0.3 * game.vx, steer], -1, 1).astype(np.float32)


def _steer(error, vy):
    """Command that goes to a lane and stays there."""
    return np.where(abs(error) > 1, np.clip(0.10 * error - 0.75 * vy, -1, 1), 0)
