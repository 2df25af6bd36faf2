"""Box2D: a planar biped on five kinds of ground and a lander with three jobs, as variants of Gymnasium's environments.

    biped      reward = clip(8.67 (x - x before) - 5 (|angle| - |angle| before) - 0.028 sum|action|, -1, 10)
               fallen, or left of the start line: -1                              8.67 = 130 / 15; score = return / 250
    land       reward = clip(shaping - shaping before - 0.3 main - 0.03 side, -5, 10) / 20         score = return / 500
               crashed, or out of sight: -0.25; asleep: 0.5, also if crashed. So no score is above 0.5
    hover,     reward = clip(1 - |goal - position| / 6 - 0.03 main - 0.003 side, 0, 1)             score = return / 500
    takeoff             0 below the height at which it stands on the pad
These are per simulator step (0.02 s); an agent step is the same action twice and pays the sum. Scores are cut to
[0, 1]. Nothing ends an episode: a fallen biped stays there and pays until step 250. Success is always 0.

Source: Gymnasium 1.4.0, BipedalWalker-v3 and LunarLander-v3 (continuous); grounds, jobs and scales of Newt's benchmark.
Differs from upstream: all draws come from `np_random`; colours don't change from one episode to the next; the biped
gets a new world at every reset (see Walker.reset), so returns after the first few resets aren't the published ones.
Test: pytest tests/test_box2d.py
"""

import math

import Box2D  # before Gymnasium asks for it: its own error doesn't count as a missing module
import gymnasium as gym
import numpy as np
from gymnasium.envs.box2d import bipedal_walker as walker
from gymnasium.envs.box2d import lunar_lander as lander
from gymnasium.utils import seeding

# Newt's benchmark sets the scale of a frame to 15 pixels per metre, and by that changes two velocities in the biped's
# observation and its pay for a metre. The bodies, made for 30, stay as they are.
VIEW = 224 / 15  # metres that a frame of the biped shows
METRE = 130 / 15  # reward
STEP, LEVEL = walker.TERRAIN_STEP, walker.TERRAIN_HEIGHT  # of the ground: 0.467 m between points, height at the start
SIDE = 400 / lander.SCALE  # width and height of the lander's world in metres; Gymnasium's is 600 / 30 wide


# ---- the biped's grounds: generator -> (heights of the 200 points, boxes as four corners) ----


def flat(rng):
    return [LEVEL] * walker.TERRAIN_LENGTH, []


def rolling(rng, keep: float, pull: float, noise: float):
    """A random slope that is pulled back to LEVEL; the first 20 steps are level."""
    heights, slope, y = [], 0.0, LEVEL
    for i in range(walker.TERRAIN_LENGTH):
        slope = _next_slope(rng, i, slope, y, keep, pull, noise)
        y = min(max(y + slope, 1.0), 5.5)
        heights.append(y)
    return heights, []


def _next_slope(rng, i: int, slope: float, y: float, keep: float, pull: float, noise: float) -> float:
    slope = keep * slope + pull * float(np.sign(LEVEL - y))
    return slope + noise * rng.uniform(-1, 1) / 15 if i > walker.TERRAIN_STARTPAD else slope


def hills(rng):
    """One wave from the first point on: the biped starts in the air."""
    middle, size, length = LEVEL + rng.uniform(-1, -0.8), rng.uniform(0.4, 0.8), rng.uniform(7, 14)
    waves = (math.sin(2 * math.pi * i * STEP / length) for i in range(walker.TERRAIN_LENGTH))
    return [min(max(middle + size * wave, 1.0), 5.5) for wave in waves], []


def obstacles(rng):
    """Grass, and after each piece of it a stump to climb or a pit to cross, 2 or 3 steps wide."""
    heights, boxes = [], []
    kind, begins, left = "grass", False, walker.TERRAIN_STARTPAD  # left: points of the present piece
    slope, y, rim = 0.0, LEVEL, 0.0
    for i in range(walker.TERRAIN_LENGTH):
        x = i * STEP
        if kind == "grass" and not begins:
            slope = _next_slope(rng, i, slope, y, 0.8, 0.01, 1)
            y = min(max(y + slope, 1.5), 5.5)
        elif kind == "stump" and begins:
            left = int(rng.integers(2, 4))
            boxes.append(_box(x, y, left * STEP, 0.75 * left * STEP))
        elif kind == "pit" and begins:
            left = int(rng.integers(2, 4))
            boxes += [_box(wall, y - 3 * STEP, STEP, 3 * STEP) for wall in (x, x + left * STEP)]
            left, rim = left + 2, y
        elif kind == "pit":
            y = rim - 3 * STEP if left > 1 else rim
        begins = False
        heights.append(y)
        left -= 1
        if left == 0:
            left, begins = int(rng.integers(walker.TERRAIN_GRASS // 2, walker.TERRAIN_GRASS)), True
            kind = ("stump", "pit")[rng.integers(2)] if kind == "grass" else "grass"
    return heights, boxes


def _box(x: float, y: float, width: float, height: float) -> list:
    return [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]


GROUNDS = {
    "flat": flat,
    "uneven": lambda rng: rolling(rng, 0.8, 0.011, 1),
    "rugged": lambda rng: rolling(rng, 0.75, 0.015, 2.25),
    "hills": hills,
    "obstacles": obstacles,
}


class Walker(walker.BipedalWalker):
    """Gymnasium's biped on another ground and with the benchmark's scales. Rewards are those of the header."""

    full_return = 250

    def __init__(self, ground):
        super().__init__()
        self.ground = ground

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        # Differs from upstream: Gymnasium, and with it the published biped, empties its world and uses it again. An
        # emptied world remembers: the tree of its contact search keeps the shape that past grounds gave it, contacts
        # are then found and solved in another order, and a last bit grows into another fall. From the third reset on
        # the same seed and actions gave other episodes, with obstacles returns up to 415 apart. Here an episode
        # follows from its seed alone, whatever was played before.
        self._destroy()
        self.world = Box2D.b2World()
        return super().reset(seed=seed, options=options)

    def _generate_terrain(self, hardcore):
        heights, boxes = self.ground(self.np_random)
        self.terrain = []
        for corners in boxes:
            self.fd_polygon.shape.vertices = corners
            self.terrain.append(self.world.CreateStaticBody(fixtures=self.fd_polygon))
            self.terrain[-1].color1 = (235, 235, 235)
        self.line = [(i * STEP, y) for i, y in enumerate(heights)]
        for edge in zip(self.line, self.line[1:], strict=False):
            self.fd_edge.shape.vertices = edge
            self.terrain.append(self.world.CreateStaticBody(fixtures=self.fd_edge))
        self.terrain.reverse()

    def step(self, action):
        before = self.hull.position.x
        obs, reward, *rest = super().step(action)
        x, (vx, vy) = self.hull.position.x, self.hull.linearVelocity
        obs[2], obs[3] = 0.3 * vx * VIEW / walker.FPS, 0.3 * vy * VIEW / walker.FPS
        if not (self.game_over or x < 0):  # else it is Gymnasium's -100
            reward += (METRE - 130 / walker.SCALE) * (x - before)
        return obs, min(max(float(reward), -1.0), 10.0), *rest

    def draw(self, canvas) -> None:
        left, line = self.hull.position.x - VIEW / 5, self.line
        for cloud, _, _ in self.cloud_poly:  # far away: they pass at half the speed
            canvas.polygon((250, 250, 255), _pixels([(x - left / 2, y) for x, y in cloud], 0, VIEW))
        canvas.polygon((102, 153, 76), _pixels([*line, (line[-1][0], -1), (0, -1)], left, VIEW))
        _draw_bodies(canvas, self.drawlist, left, VIEW)


# ---- the lander ----


class Land(lander.LunarLander):
    """Gymnasium's lander, bodies and engines, in a square world with 7 or 9 points of ground."""

    full_return = 500
    reset_steps = 1  # simulator steps without action before the first observation

    def __init__(self):
        super().__init__(continuous=True)

    def start(self) -> tuple:
        """Draw  ->  (x, y) in metres, push (x, y) in newtons for one simulator step."""
        y = 0.8 * SIDE * self.np_random.uniform(0.95, 1.05)
        x = SIDE / 2 * self.np_random.uniform(0.95, 1.05)
        return (x, y), (self.np_random.uniform(-600, 600), self.np_random.uniform(-600, 600))

    def choose_goal(self) -> None:
        """Landing needs none."""

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        gym.Env.reset(self, seed=seed)  # Gymnasium's own has 11 points and its start written into one function
        self.world = Box2D.b2World(gravity=(0, self.gravity))
        self.world.contactListener = self.listener = lander.ContactDetector(self)  # Box2D keeps no reference
        self.game_over, self.prev_shaping, self.shaping = False, None, None

        # Ground: random heights, the middle five at the pad's, then smoothed; index -1 is the last one, deliberately.
        points = int(self.np_random.choice([7, 9]))
        heights = self.np_random.uniform(0, SIDE / 2, points + 1)
        self.helipad_y, middle = SIDE / 4, points // 2
        heights[middle - 2 : middle + 3] = self.helipad_y
        smooth = [0.33 * float(heights[i - 1] + heights[i] + heights[i + 1]) for i in range(points)]
        self.line = [(SIDE / (points - 1) * i, y) for i, y in enumerate(smooth)]
        self.helipad_x1, self.helipad_x2 = self.line[middle - 1][0], self.line[middle + 1][0]
        self.moon = self.world.CreateStaticBody(shapes=Box2D.b2EdgeShape(vertices=[(0, 0), (SIDE, 0)]))
        for edge in zip(self.line, self.line[1:], strict=False):
            self.moon.CreateEdgeFixture(vertices=edge, density=0, friction=0.1)

        # Bodies: Gymnasium's numbers, compared with Gymnasium's in the tests.
        (x, y), push = self.start()
        hull = Box2D.b2PolygonShape(vertices=[(px / lander.SCALE, py / lander.SCALE) for px, py in lander.LANDER_POLY])
        touch = {"maskBits": 0x001, "restitution": 0.0}  # the ground only
        self.lander = self.world.CreateDynamicBody(
            position=(x, y), fixtures=Box2D.b2FixtureDef(shape=hull, density=5, friction=0.1, categoryBits=16, **touch)
        )
        self.lander.ApplyForceToCenter(push, True)
        self.legs = []
        away, down = lander.LEG_AWAY / lander.SCALE, lander.LEG_DOWN / lander.SCALE
        box = Box2D.b2PolygonShape(box=(lander.LEG_W / lander.SCALE, lander.LEG_H / lander.SCALE))
        for i in (-1, 1):
            leg = self.world.CreateDynamicBody(
                position=(x - i * away, y),
                angle=i * 0.05,
                fixtures=Box2D.b2FixtureDef(shape=box, density=1, categoryBits=32, **touch),
            )
            leg.ground_contact = False
            leg.joint = self.world.CreateRevoluteJoint(
                bodyA=self.lander,
                bodyB=leg,
                localAnchorA=(0, 0),
                localAnchorB=(i * away, down),
                enableMotor=True,
                enableLimit=True,
                maxMotorTorque=lander.LEG_SPRING_TORQUE,
                motorSpeed=0.3 * i,
                lowerAngle=0.4 if i == -1 else -0.9,
                upperAngle=0.9 if i == -1 else -0.4,
            )
            self.legs.append(leg)
        self.drawlist = [*self.legs, self.lander]
        for body in self.drawlist:
            body.color1 = (128, 102, 230)

        self.choose_goal()
        for _ in range(self.reset_steps):
            obs = self.step(np.zeros(2))[0]
        return obs, {}

    def step(self, action):
        super().step(action)  # the physics; its observation and reward are those of a world 600 pixels wide
        main, side = np.asarray(action).tolist()
        main, side = (min(main, 1.0) + 1) / 2 if main > 0 else 0.0, min(abs(side), 1.0) if abs(side) > 0.5 else 0.0
        obs = self.observe()
        return obs, self.pay(obs, main, side), False, False, {}

    def observe(self) -> list:
        place, speed, half = self.lander.position, self.lander.linearVelocity, SIDE / 2
        x, y, vx, vy = place.x, place.y, speed.x, speed.y
        self.at = x, y
        return [
            (x - half) / half,
            (y - self.helipad_y - lander.LEG_DOWN / lander.SCALE) / half,
            vx * half / lander.FPS,
            vy * half / lander.FPS,
            self.lander.angle,
            20 * self.lander.angularVelocity / lander.FPS,
            float(self.legs[0].ground_contact),
            float(self.legs[1].ground_contact),
        ]

    def pay(self, obs, main: float, side: float) -> float:
        """Reward of a simulator step. main, side: how much of their power the engines used, 0 or 0.5 to 1."""
        x, y, vx, vy, angle, _, left, right = np.array(obs, np.float32).tolist()  # rounded, as it is published
        before = self.shaping
        self.shaping = 10 * (left + right) - 100 * (math.hypot(x, y) + math.hypot(vx, vy) + abs(angle))
        if not self.lander.awake:  # NOTE: it comes first, so that a wreck that lies still is paid, too
            return 0.5
        if self.game_over or abs(x) >= 1:
            return -0.25
        reward = (0.0 if before is None else self.shaping - before) - 0.3 * main - 0.03 * side
        return min(max(reward, -5.0), 10.0) / 20

    def draw(self, canvas) -> None:
        canvas.polygon((225, 225, 225), _pixels([*self.line, (SIDE, -1), (0, -1)], 0, SIDE))
        self.draw_target(canvas)
        _draw_bodies(canvas, self.drawlist, 0, SIDE)

    def draw_target(self, canvas) -> None:
        y = self.helipad_y
        for x in (self.helipad_x1, self.helipad_x2):
            corners = (x, y), (x, y + 5 / 3), (x + 5 / 6, y + 3 / 2), (x, y + 4 / 3)
            foot, *flag = _pixels(corners, 0, SIDE)
            canvas.line((160, 160, 160), *foot, *flag[0])
            canvas.polygon((204, 204, 0), flag)


class Hover(Land):
    """Land's world; the job is to stay at a point in the air."""

    def choose_goal(self) -> None:
        x, y = SIDE / 2, 2 * self.helipad_y
        self.goal = (x + self.np_random.uniform(-1, 1), y + self.np_random.uniform(-1, 1))

    def observe(self) -> list:
        obs, (x, y) = super().observe(), self.at
        return [*obs, (self.goal[0] - x) / (SIDE / 2), (self.goal[1] - y) / (SIDE / 2)]

    def pay(self, obs, main: float, side: float) -> float:
        x, y = self.at
        if y < self.helipad_y + lander.LEG_DOWN / lander.SCALE:
            return 0.0
        return min(max(1 - math.dist(self.goal, (x, y)) / 6 - 0.03 * main - 0.003 * side, 0.0), 1.0)

    def draw_target(self, canvas) -> None:
        canvas.circle((90, 200, 90, 110), *_pixels([self.goal], 0, SIDE)[0], 224 / SIDE)


class Takeoff(Hover):
    """Hover's job, from the pad and with a goal further up."""

    reset_steps = 6

    def start(self) -> tuple:
        quarter = (self.helipad_x2 - self.helipad_x1) / 4
        x = self.np_random.uniform(self.helipad_x1 + quarter, self.helipad_x2 - quarter)
        y = self.helipad_y + lander.LEG_DOWN / lander.SCALE
        return (x, y), (0.5 * self.np_random.uniform(-600, 600), -1200.0)

    def choose_goal(self) -> None:
        self.goal = (self.np_random.uniform(0.2, 0.8) * SIDE, self.np_random.uniform(0.6, 0.8) * SIDE)


# ---- the task ----


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. The import of this file raises ImportError without Box2D."""
    name = task.name.rpartition("-")[2]
    inner = Walker(GROUNDS[name]) if name in GROUNDS else {"land": Land, "hover": Hover, "takeoff": Takeoff}[name]()
    return Box2DTask(task, inner, seed, render_mode)


class Box2DTask(gym.Env):
    """One task: a simulator from above, its action repeat, its score and a past that can be replayed."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}  # an agent step is 0.04 s

    def __init__(self, task, env, seed: int, render_mode: str | None):
        self._env = env
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode = render_mode
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._actions, self._return = None, 0.0  # None: no episode was started
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self._env.np_random = self.np_random
        self._start, self._actions, self._return = self.np_random.bit_generator.state, [], 0.0
        return np.array(self._env.reset()[0], np.float32), {"score": 0.0, "success": 0.0}

    def step(self, action):
        if self._actions is None or len(self._actions) >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.array(action, np.float32)  # a copy: it is kept
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        self._actions.append(action)
        total = 0.0
        for _ in range(self._repeat):
            obs, reward, *_ = self._env.step(action)
            total += reward
        self._return += total
        info = {"score": min(max(self._return / self._env.full_return, 0.0), 1.0), "success": 0.0}
        obs = np.array(obs, np.float32)  # once: the lander's is a list, as numpy's numbers are slow one by one
        return obs, total, False, len(self._actions) == self._length, info

    def get_state(self) -> dict:
        """How the episode began and what was done since: Box2D can't be given the contacts of a moment again."""
        if self._actions is None:
            return {"rng": self.np_random.bit_generator.state, "started": False}
        actions = np.array(self._actions, np.float32).reshape(-1, *self.action_space.shape)
        return {"rng": self._start, "started": True, "actions": actions}

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task, by playing it again."""
        self.np_random.bit_generator.state = state["rng"]
        if not state["started"]:
            self._actions = None
            return
        self.reset()
        for action in state["actions"]:
            self.step(action)

    def render(self) -> np.ndarray:
        from envs.arcade.game import Canvas

        canvas = Canvas((215, 215, 255) if isinstance(self._env, Walker) else (20, 20, 40))
        self._env.draw(canvas)
        return canvas.frame()


def _pixels(points, left: float, width: float) -> list:
    """Metres, y up  ->  pixels, y down, of a frame that shows `width` metres from x = left and y = 0 on."""
    return [((x - left) * 224 / width, 224 - y * 224 / width) for x, y in points]


def _draw_bodies(canvas, bodies, left: float, width: float) -> None:
    for body in bodies:
        for fixture in body.fixtures:
            corners = _pixels([body.transform * v for v in fixture.shape.vertices], left, width)
            if len(corners) > 2:  # an edge of the ground has two, and is drawn already
                canvas.polygon(body.color1, corners)
                canvas.polygon(tuple(c * 2 // 3 for c in body.color1), corners, 1)


# ---- scripted player ----


def player(env, obs, number):
    """lunarlander-*: yields (main, side). Gravity is 9.6 m/s^2, and what the main engine gives 9.6 to 19.2, or 0.

    One law tilts the lander towards where it shall go. Land falls first and brakes late: each step at rest pays.
    """
    while True:
        x, height, vx, vy, angle, spin, left, right, *goal = obs.tolist()
        x, height, vx, vy, spin = x * SIDE / 2, height * SIDE / 2, vx * 7.5, vy * 7.5, spin * 2.5  # m, m/s, 1/s
        if goal:
            ahead, above = goal[0] * SIDE / 2, goal[1] * SIDE / 2
            tilt = 0.2 * vx - 0.15 * ahead
            lift = (9.6 + 8 * above - 5 * vy) / math.cos(angle)
            on = lift > 5.4  # where less than the engine's least is wanted, it pulses
        else:
            fall = math.sqrt(9 * max(height, 0) + 0.5)  # m/s, from which a braking of 4.5 m/s^2 ends just above 0
            tilt = (0.28 * vx + 0.12 * x) * min(max(height / 1.7, 0), 1)
            lift = 9.6 + 4.5 - 7 * (fall + vy)
            on = lift > 9.6
        main = max(lift / 9.6 - 1, 0.01) if on else -1.0
        side = 0.8 * spin - 5.5 * (min(max(tilt, -0.5), 0.5) - angle)
        resting = not goal and (left or right) and vy > -0.8  # the engines would wake it
        obs, _ = yield np.array([0.0, 0.0] if resting else [main, side])
