"""OGBench: a point and an ant in seven mazes, an ant that follows a direction, an ant that dribbles a ball.

    task         obs      reward of an agent step                                              success at its end
    og-point-*   9 / 20   s - (|d|_1 / 2 + |d|_2 / 2 + 0.025 |xy - xy one raw step ago|) / 20  s: |d|_2 <= 1.0
    og-ant-*     36 / 20  s - (|d|_1 / 2 + |d|_2 / 2 + 0.001 |qvel|) / 20                      s: |d|_2 <= 0.5
    og-antball   42       25 (ball-goal distance before - after) + 10 (ant-ball before - after)  ball-goal <= 0.5
    og-ant       29       metres moved along the direction                                     none, always 0

    d      = xy - goal. Maze cell (row i, column j) is 4 m wide and centred at x = 4 j - 4, y = 4 i - 4
    start  = centre of a cell + U(-1, 1) per axis, the goal likewise; the two cells are one of the maze's pairs
    step   = the same action for `action_repeat` raw steps of 0.1 s; a raw step shifts the point by 0.2 * action
    score  = success at the last step; og-ant: the return so far / 250, cut to [0, 1]
Nothing ends an episode early: not the goal, and not an ant on its back, which stays there.

Source: OGBench (arXiv 2410.20092), package ogbench 1.1.5: bodies, motion and noise are its classes. Rewards, goals and
five of the mazes are those of Newt's benchmark.
Differs from upstream: every draw comes from `np_random`, where the package draws goals from numpy's global generator
and takes five random steps before each start. The scenery is added to the package's bodies here: its own classes leave
a temporary file and an open descriptor behind per environment, and its ball task needs OpenGL even for states.
Test: pytest tests/test_ogbench.py
"""

import collections
import itertools
import tempfile
import xml.etree.ElementTree as ET

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

from envs.camera import Camera

# Columns go up in x, rows go up in y: a frame shows the first row at its bottom. var1 and var2 are held out; their
# outer wall has gaps, so a body can leave, and nothing brings it back.
_DRAWING = """
    arena      maze       bottleneck circle     spiral     var1       var2
    ########   ########   ########   ########   ########   ####..##   ..##..##
    #......#   #..##..#   #..##..#   ##....##   #......#   ##....##   #......#
    #......#   #..#...#   #..##..#   #..##..#   #.#.##.#   #.......   #..##...
    #......#   ##...###   #......#   #.####.#   #.#....#   #.##.#..   #......#
    #......#   #..#...#   #......#   #.####.#   #....#.#   ..#..#.#   .......#
    #......#   #.#..#.#   #..##..#   #..##..#   #.##.#.#   #.......   ...##...
    #......#   #...#..#   #..##..#   ##....##   #......#   ##....##   #..#...#
    ########   ########   ########   ########   ########   ##.#####   ##.#..##
"""
_names, *_rows = (line.split() for line in _DRAWING.strip().splitlines())
# maze -> (8, 8) bool, True is wall
MAPS = {name: np.array([list(row) for row in rows]) == "#" for name, *rows in zip(_names, *_rows, strict=True)}

# Cells "ij" between which episodes run: every ordered pair at least this many cells apart, by |di| + |dj|.
_RING = "21 12 22 31 13 41 51 52 62 63 64 65 55 56 46 14 15 25 26 36"
_ROOMS = "11 12 21 22 55 56 65 66 15 25 16 26 51 61 52 62 33 34 43 44"
_CELLS = {
    "arena": (2, "22 23 24 32 33 34 42 43 44"),
    "bottleneck": (3, _ROOMS),
    "circle": (3, _RING),
    "spiral": (3, "11 12 21 16 26 15 61 62 51 66 56 65 33 34 43 44"),
    "var1": (3, _RING),
    "var2": (3, _ROOMS),
}
_MAZE_PAIRS = "11-66 61-16 53-24 22-61 26-11 21-45 65-46 22-44 61-21 63-33"  # of "maze": start-goal


def pairs(maze: str) -> np.ndarray:
    """Where episodes of a maze start and where their goal is  ->  (N, 2, 2) int: start or goal; row, column."""
    if maze == "maze":
        return np.array([[list(map(int, cell)) for cell in pair.split("-")] for pair in _MAZE_PAIRS.split()])
    gap, cells = _CELLS[maze]
    both = np.array(list(itertools.product([list(map(int, cell)) for cell in cells.split()], repeat=2)))
    return both[np.abs(both[:, 0] - both[:, 1]).sum(1) >= gap]


def cells_to(walls: np.ndarray, goal: tuple[int, int]) -> dict[tuple[int, int], int]:
    """Steps from every free cell that is connected to the goal, by breadth-first search."""
    distance, queue = {goal: 0}, collections.deque([goal])
    while queue:
        i, j = queue.popleft()
        for cell in ((i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)):
            if cell not in distance and min(cell) >= 0 and max(cell) < len(walls) and not walls[cell]:
                distance[cell] = distance[i, j] + 1
                queue.append(cell)
    return distance


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. Raises ImportError without ogbench."""
    body, _, maze = task.name.removeprefix("og-").partition("-")
    if maze:
        return Maze(task, seed, render_mode, body, maze)
    return {"ant": Direction, "antball": Ball}[body](task, seed, render_mode)


class OGBench(gym.Env):
    """What the tasks share. A task adds _place (a start), _advance (one agent step), _observe, _succeeds and _view."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # of raw steps

    def __init__(self, task, seed: int, render_mode: str | None, body: gym.Env):
        self._body = body  # an environment of the package; only its simulation and its noise are used
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode, self._camera = render_mode, None
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._steps, self._return = self._length, 0.0  # as after an episode: reset comes first
        self._goal = np.zeros(2)  # where the marker is; in og-ant the direction
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        self._body.np_random = self.np_random  # one stream for the body's noise and the task's draws
        self._steps, self._return = 0, 0.0
        self._place()
        return self._observe().astype(np.float32), {"score": 0.0, "success": 0.0}

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        self._steps += 1
        reward = float(self._advance(action.clip(-1, 1)))  # nothing else keeps the point from jumping over walls
        self._return += reward
        success = float(self._succeeds())
        info = {"score": self._score(success), "success": success}
        return self._observe().astype(np.float32), reward, False, self._steps == self._length, info

    def _score(self, success: float) -> float:
        return success

    def _show_goal(self) -> None:
        self._body.model.geom("target").pos[:2] = self._goal

    def get_state(self) -> dict:
        """Everything the future depends on, as copies."""
        import mujoco

        model, kind = self._body.model, mujoco.mjtState.mjSTATE_INTEGRATION  # with the solver's warm start
        physics = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, self._body.data, physics, kind)
        rng = self.np_random.bit_generator.state
        return {"physics": physics, "goal": self._goal.copy(), "steps": self._steps, "return": self._return, "rng": rng}

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task."""
        import mujoco

        self._goal, self._steps, self._return = state["goal"].copy(), state["steps"], state["return"]
        self.np_random.bit_generator.state = state["rng"]
        model, data = self._body.model, self._body.data
        mujoco.mj_setState(model, data, state["physics"], mujoco.mjtState.mjSTATE_INTEGRATION)
        self._show_goal()
        mujoco.mj_fwdPosition(model, data)  # for a frame before the next step

    def render(self) -> np.ndarray:
        self._camera = self._camera or Camera(self._body.model, self._view(), self.frames)
        return self._camera.frame(self._body.data)

    def close(self):
        if self._camera:
            self._camera.close()
            self._camera = None


class Maze(OGBench):
    """og-point-* and og-ant-*: get to the marker."""

    def __init__(self, task, seed: int, render_mode: str | None, body: str, maze: str):
        from ogbench.locomaze.ant import AntEnv
        from ogbench.locomaze.point import PointEnv

        super().__init__(
            task, seed, render_mode, _build({"point": PointEnv, "ant": AntEnv}[body], _add_maze, MAPS[maze])
        )
        self._is_point, self._tolerance = body == "point", 1.0 if body == "point" else 0.5
        self._pairs, self._walls, self._before = pairs(maze), MAPS[maze], np.zeros(2)

    def _place(self):
        start, self._goal = (
            4.0 * cell[::-1] - 4 + self.np_random.uniform(-1, 1, 2)  # x comes from the column
            for cell in self._pairs[self.np_random.integers(len(self._pairs))]
        )
        self._body.reset()
        self._body.set_xy(start)
        self._before = start
        self._show_goal()

    def _advance(self, action) -> float:
        for _ in range(self._repeat):
            self._before = self._body.get_xy()  # the last one counts: speed is per raw step
            self._body.step(action)
        xy = self._body.get_xy()
        away, moved = xy - self._goal, xy - self._before
        haste = 0.025 * np.linalg.norm(moved) if self._is_point else 0.001 * np.linalg.norm(self._body.data.qvel)
        return self._succeeds() - (np.abs(away).sum() / 2 + np.linalg.norm(away) / 2 + haste) / 20

    def _succeeds(self) -> bool:
        return np.linalg.norm(self._body.get_xy() - self._goal) <= self._tolerance

    def waypoint(self) -> np.ndarray:
        """(2,): the goal if it is in this cell, else the centre of the neighbouring cell from which it is nearest."""
        here, goal = (tuple(int(k) for k in np.rint(xy[::-1] / 4 + 1)) for xy in (self._body.get_xy(), self._goal))
        if here == goal:
            return self._goal
        distance = cells_to(self._walls, goal)
        i, j = here
        neighbours = [(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)]
        i, j = min(neighbours, key=lambda cell: distance.get(cell, np.inf))
        return np.array([4.0 * j - 4, 4.0 * i - 4])

    def _observe(self) -> np.ndarray:
        xy, data = self._body.get_xy(), self._body.data
        own = [xy, xy - self._before] if self._is_point else [data.qpos, data.qvel, xy]
        return np.concatenate([*own, self._goal, xy - self._goal, [np.linalg.norm(xy - self._goal)]]) / 20

    def _view(self):
        return _from_above((10, 10, 0), distance=30)


class Direction(OGBench):
    """og-ant: run where the direction points, which changes every 100 steps."""

    def __init__(self, task, seed: int, render_mode: str | None):
        from ogbench.online_locomotion.ant import AntEnv

        super().__init__(task, seed, render_mode, AntEnv())

    def _place(self):
        self._body.reset()
        self._turn()

    def _turn(self):
        self._goal = self.np_random.standard_normal(2)
        self._goal /= np.linalg.norm(self._goal)

    def _advance(self, action) -> float:
        before = self._body.data.qpos[:2].copy()
        self._body.step(action)
        reward = (self._body.data.qpos[:2] - before) @ self._goal
        if self._steps % 100 == 0:
            self._turn()  # after the reward, before the observation: the agent sees what it will be paid for
        return reward

    def _succeeds(self) -> bool:
        return False

    def _score(self, success: float) -> float:
        return min(max(self._return / 250, 0.0), 1.0)

    def _observe(self) -> np.ndarray:
        data = self._body.data
        return np.concatenate([data.qpos[2:], data.qvel, self._goal])

    def _show_goal(self):
        """The scene has no marker for a direction."""

    def _view(self):
        return self._body.model.camera("track").id


class Ball(OGBench):
    """og-antball: dribble the ball, which drops from 3 m at the start, to the marker."""

    def __init__(self, task, seed: int, render_mode: str | None):
        from ogbench.online_locomotion.ant import AntEnv

        super().__init__(task, seed, render_mode, _build(AntEnv, _add_ball))

    def _place(self):
        self._body.reset()
        ant, ball, self._goal = (self.np_random.uniform(-size, size, 2) for size in (1, 2, 3))
        qpos = self._body.data.qpos.copy()
        qpos[:2], qpos[15:17] = ant, ball
        self._body.set_state(qpos, self._body.data.qvel)
        self._show_goal()

    def _distances(self) -> np.ndarray:
        """Ball to goal, ant to ball, in the plane."""
        ant, ball = self._body.data.qpos[:2], self._body.data.qpos[15:17]
        return np.array([np.linalg.norm(ball - self._goal), np.linalg.norm(ant - ball)])

    def _advance(self, action) -> float:
        before = self._distances()
        self._body.step(action)
        return np.array([25, 10]) @ (before - self._distances())

    def _succeeds(self) -> bool:
        return self._distances()[0] <= 0.5

    def _observe(self) -> np.ndarray:
        qpos, qvel = self._body.data.qpos, self._body.data.qvel
        ant, ball = qpos[:2], qpos[15:17]
        return np.concatenate([qpos[2:15], qpos[17:], qvel, ball - ant, self._goal - ball])

    def _view(self):
        return _from_above((0, 0, 0.75), distance=8)  # 0.75: the package aims at the middle of the ant


def player(env, obs, number):
    """og-point-*: yields the way to the next waypoint; an agent step moves the point by 4 times 0.2 * action."""
    while True:
        yield (env.waypoint() - env._body.get_xy()) / 0.8


def _build(body: type, add, *arguments) -> gym.Env:
    """The package's body in a scene: add(worldbody, *arguments) puts things into its XML before it is loaded."""
    tree = ET.parse(body.xml_file)
    add(tree.find("worldbody"), *arguments)
    with tempfile.TemporaryDirectory() as folder:  # the package loads models from files only
        tree.write(f"{folder}/scene.xml")
        return body(xml_file=f"{folder}/scene.xml")


def _add_marker(world: ET.Element, size: str) -> None:
    look = {"type": "cylinder", "size": size, "pos": "0 0 .05", "material": "target"}
    ET.SubElement(world, "geom", look, name="target", contype="0", conaffinity="0")


def _add_maze(world: ET.Element, walls: np.ndarray) -> None:
    # In this order, which is the package's: the solver sees contacts in the order of the geoms.
    for i, j in np.argwhere(walls):
        box = {"type": "box", "size": "2 2 1", "pos": f"{4 * j - 4} {4 * i - 4} 1", "material": "wall"}
        ET.SubElement(world, "geom", box, name=f"block_{i}_{j}", contype="1", conaffinity="1")
    floor = world.find("geom[@name='floor']")
    floor.set("pos", "10 10 0")
    floor.set("size", "16 16 .2")  # for the eye: the plane collides everywhere
    _add_marker(world, ".5 .05")


def _add_ball(world: ET.Element) -> None:
    _add_marker(world, ".4 .05")
    ball = ET.SubElement(world, "body", name="ball", pos="0 0 3")
    ET.SubElement(ball, "freejoint", name="ball_root")
    ET.SubElement(ball, "geom", name="ball", size=".25", material="ball", priority="1", conaffinity="1", condim="6")
    ET.SubElement(ball, "light", name="ball_light", pos="0 0 4", mode="trackcom")


def _from_above(point: tuple, distance: float):
    """A mujoco.MjvCamera that looks straight down at a point."""
    import mujoco

    camera = mujoco.MjvCamera()
    camera.lookat[:], camera.distance, camera.elevation = point, distance, -90
    return camera
