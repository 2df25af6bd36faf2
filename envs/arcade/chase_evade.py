"""Chase and evade: tag in a round arena with three turning posts. Whoever is caught becomes the pursuer.

    reward   0.1 * distance / 90, positive for the evader, negative for the pursuer; the roles after a catch count
    catch    closer than 16: the roles change, actions are ignored until the new pursuer has walked to the centre
    action   velocity / 3.5 (evader / 3.325) per axis: only the agent is faster on the diagonal
    obs      agent, opponent: position / 224, velocity / 3.5; 1 if the agent evades; the posts' positions / 224
    score    (return + 50) / 100

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: the flash after a catch lasts 12 steps, not 12
frames; fonts.
Test: pytest tests/test_arcade_chase_evade.py
"""

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game

CENTER, RADIUS = np.array([112.0, 118.0]), 90
BODY, POST, POST_ORBIT, TURN = 8, 12, 40, 0.01  # radii, and radians per step
SPEED, EVADER_SPEED = 3.5, 3.325
LIMIT, SWITCH_LIMIT = 78, 67  # of a character's distance to the centre; for the evader while the roles change
CATCH = 16
TEAM = (255, 140, 0), (70, 160, 70)  # agent, opponent


def make(task, seed: int, render_mode: str | None) -> "ChaseEvade":
    return ChaseEvade(task, seed, render_mode)


class ChaseEvade(Game):
    STATE = (
        *("agent", "agent_vel", "opp", "opp_vel"),
        *("agent_is_evader", "switching", "switch_count", "base_angles", "spin"),
    )

    def start(self):
        angle, phase = self.np_random.uniform(0, 2 * np.pi, 2)
        self.agent = CENTER + 75 * np.array([np.cos(angle), np.sin(angle)])
        self.opp, self.agent_vel, self.opp_vel = CENTER.copy(), np.zeros(2), np.zeros(2)
        self.agent_is_evader = bool(self.np_random.integers(2))
        self.switching, self.switch_count = False, 0
        self.base_angles = phase + 2 * np.pi * np.arange(3) / 3
        self.spin = int(self.np_random.choice([-1, 1]))
        self.flash = None  # where and when the last catch was; only for the picture

    def posts(self, t: int) -> np.ndarray:
        """(3, 2), positions in the step that begins at time t."""
        angles = np.add(self.base_angles, self.spin * TURN * t)
        return CENTER + POST_ORBIT * np.stack([np.cos(angles), np.sin(angles)], axis=-1)

    def advance(self, action):
        if self.switching:
            self._change_roles()
        else:
            zigzag = self.np_random.choice([-1, 1], 2)
            self.agent, self.agent_vel, self.opp, self.opp_vel = play(
                self.agent, self.opp, action, self.agent_is_evader, self.posts(self.t), zigzag
            )
            if length(self.agent - self.opp) < CATCH:
                self.agent_is_evader = not self.agent_is_evader
                self.switching, self.switch_count = True, 0
                self.flash = *((self.agent + self.opp) / 2), self.t
        reward = 0.1 * length(np.subtract(self.agent, self.opp)) / RADIUS
        return reward if self.agent_is_evader else -reward

    def _change_roles(self) -> None:
        """The pursuer walks to the centre, the evader to the rim; posts don't stop them. Velocities stay as shown."""
        self.switch_count += 1
        pursuer, evader = (self.opp, self.agent) if self.agent_is_evader else (self.agent, self.opp)
        way, out = CENTER - pursuer, evader - CENTER
        if length(way) > 1.5:
            pursuer = pursuer + SPEED * way / length(way)
        if length(out) > 0.01:
            evader = clamp(evader + EVADER_SPEED * out / length(out), SWITCH_LIMIT)
        self.agent, self.opp = (evader, pursuer) if self.agent_is_evader else (pursuer, evader)
        if self.switch_count >= 5 and length(pursuer - CENTER) < 2:
            self.switching = False

    def observe(self):
        parts = self.agent, self.agent_vel, self.opp, self.opp_vel
        bodies = [np.divide(part, scale) for part, scale in zip(parts, (224, SPEED, 224, SPEED), strict=True)]
        posts = self.posts(max(0, self.t - 1)) / 224  # where they were in the step that has just ended
        return np.concatenate([*bodies, [self.agent_is_evader], posts.ravel()])

    def grade(self):
        return (self.ret + 50) / 100

    def draw(self, canvas: Canvas):
        evader, pursuer = TEAM if self.agent_is_evader else TEAM[::-1]
        weight = min(1, self.switch_count / 10) if self.switching else 1
        tint = weight * np.array(evader) + (1 - weight) * np.array(pursuer)
        for y in range(SIZE):
            sky = np.array([130, 185, 180]) + y / SIZE * np.array([-50, -15, 0])
            canvas.line((0.75 * sky + 0.25 * tint).astype(int).tolist(), 0, y, SIZE, y)
        canvas.circle((40, 40, 45), *CENTER, RADIUS)
        canvas.circle((220, 220, 220), *CENTER, RADIUS, width=2)
        canvas.line((180, 180, 180), 112, 106, 112, 130, width=2)
        canvas.polygon(evader, [(112, 106), (122, 110), (112, 114)])
        for x, y in self.posts(max(0, self.t - 1)):
            canvas.rect((90, 90, 95), x - POST, y, 2 * POST, 4)
            canvas.circle((130, 130, 130), x, y, POST)
        self._draw_body(canvas, TEAM[0], self.agent, self.agent_vel)
        self._draw_body(canvas, TEAM[1], self.opp, self.opp_vel)
        if self.flash is not None and 0 <= self.t - self.flash[2] <= 12:
            strength = 1 - abs(self.t - self.flash[2] - 6) / 6
            canvas.circle((*pursuer, int(255 * strength)), *self.flash[:2], 10 + 40 * strength, width=3)
        word, color = ("orange", TEAM[0]) if self.agent_is_evader else ("green", (0, 180, 0))
        _outlined(canvas, color, word, 6, 3, 18)
        _outlined(canvas, (255, 255, 255), "is evading", 54, 3, 18)
        count = max(0, 3 - self.switch_count // 5)
        if self.switching and count:
            _outlined(canvas, pursuer, count, 106, 68, 28)

    def _draw_body(self, canvas: Canvas, color, position, velocity) -> None:
        x, y = np.trunc(position)
        step = (1 if self.t // 3 % 2 else -1) if np.abs(velocity).sum() > 0.5 else 0
        canvas.ellipse((220, 220, 220), x - 6, y - 10, 12, 18)
        canvas.rect(color, x - 6, y - 3, 12, 6)
        canvas.circle(color, x - 4, y + 8 + step, 3)
        canvas.circle(color, x + 4, y + 8 - step, 3)
        canvas.ellipse((220, 220, 220), x - 9, y, 6, 4)
        canvas.ellipse((220, 220, 220), x + 3, y, 6, 4)
        canvas.polygon(color, [(x, y - 14), (x - 6, y - 10), (x + 6, y - 10)])


def _outlined(canvas: Canvas, color, words, x, y, size) -> None:
    for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        canvas.text((0, 0, 0), words, x + dx, y + dy, size)
    canvas.text(color, words, x, y, size)


# The rules below take one pair of characters, (2,) each, or many, (N, 2): the player plans with them.


def length(v):
    return np.hypot(v[..., 0], v[..., 1])


def unit(v):
    """(.., 2) of length 1, or 0 where v has hardly any."""
    norm = length(v)[..., None]
    return np.where(norm > 1e-8, v / np.maximum(norm, 1e-8), 0)


def clamp(p, limit):
    """p, moved back if it is farther than `limit` from the centre."""
    out = p - CENTER
    distance = length(out)[..., None]
    return np.where(distance > limit, CENTER + out * limit / (distance + 1e-8), p)


def resolve(p, v, posts):
    """-> p pushed out of the posts, one after the other; v mirrored there if it points at the post."""
    for post in posts:
        way = post - p
        distance = length(way)[..., None]
        n, overlap = way / (distance + 1e-8), BODY + POST - distance
        toward = (v * n).sum(-1, keepdims=True)
        p = np.where(overlap > 0, p - n * (overlap + 0.5), p)
        v = np.where((overlap > 0) & (toward > 0), v - 2 * toward * n, v)
    return p, v


def play(agent, opp, action, agent_is_evader: bool, posts, zigzag):
    """One step of tag -> agent, agent_vel, opp, opp_vel. zigzag: two signs, for a fleeing opponent."""
    agent_vel = action * (EVADER_SPEED if agent_is_evader else SPEED)
    agent, agent_vel = resolve(clamp(agent + agent_vel, LIMIT), agent_vel, posts)
    steer = chase if agent_is_evader else flee
    opp_vel = steer(agent, opp, posts, zigzag)
    opp, opp_vel = resolve(clamp(opp + opp_vel, LIMIT), opp_vel, posts)
    return agent, agent_vel, opp, opp_vel


def chase(agent, opp, posts, zigzag):
    """Velocity of a pursuing opponent: straight at the agent, pushed off by near posts. No chance in it."""
    way = agent - opp
    heading = np.where(length(way)[..., None] < 1e-5, 0, unit(way))
    for post in posts:
        off = opp - post
        distance = length(off)[..., None]
        heading = heading + np.where(distance < 36, off / (distance + 1e-8) * (36 - distance) / 36, 0)
    return SPEED * unit(heading)


def flee(agent, opp, posts, zigzag):
    """Velocity of an evading opponent: away from the agent and the rim, behind posts, zigzagging when it gets tight."""
    way, out = opp - agent, opp - CENTER
    distance, from_center = length(way)[..., None], length(out)[..., None]
    heading = unit(way) - np.where(from_center > 72, 0.5 * out / (from_center + 1e-8), 0)
    for post in posts:
        between = ((agent - post) * (opp - post)).sum(-1, keepdims=True) < 0
        heading = heading + np.where(between, 0.02 * (post - opp), 0)
    aside = np.stack([-way[..., 1], way[..., 0]], axis=-1) / (distance + 1e-8)
    heading = heading + np.where(distance < 36, 0.2 * aside * zigzag, 0)
    return EVADER_SPEED * unit(heading)


HEADINGS = np.pi / 8 * np.arange(16)
HORIZON, FIRST = 24, 8  # steps that the player looks ahead, and of those in the first direction


def player(game: ChaseEvade) -> np.ndarray:
    """Tries 16 directions (as evader also to stay), each then kept or turned by 45 degrees. -> action (2,)."""
    turns = HEADINGS[:, None] + np.pi / 4 * np.array([-1, 0, 1])
    first, then = _square(np.repeat(HEADINGS, 3)), _square(turns.ravel())
    if game.agent_is_evader:
        first, then = np.concatenate([first, [[0, 0]]]), np.concatenate([then, [[0, 0]]])
    agent, opp = np.tile(game.agent, (len(first), 1)), np.tile(game.opp, (len(first), 1))
    value, caught = np.zeros(len(first)), np.zeros(len(first), bool)
    for k in range(HORIZON):
        action = first if k < FIRST else then
        agent, _, opp, _ = play(agent, opp, action, game.agent_is_evader, game.posts(game.t + k), np.zeros(2))
        distance = length(agent - opp)
        caught |= distance < CATCH
        value += np.where(caught, -100, distance) if game.agent_is_evader else np.where(caught, 100, -distance)
    return first[value.argmax()].astype(np.float32)


def _square(angles):
    """Directions with their larger part at 1: the fastest the agent can move that way."""
    v = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
    return v / abs(v).max(-1, keepdims=True)
