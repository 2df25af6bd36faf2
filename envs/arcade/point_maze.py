"""Point maze: a dot in a maze of 5 x 5 cells has to be at the goal when the episode ends; one cell pushes it aside.

    action   velocity / 5 px per step; in the force cell 2 px per step are added
    walls    each axis moves by itself: a move into a wall is dropped, there is no sliding up to it
    reward   1 - distance to the goal / 184, at least 0
    obs      position, goal / 224; velocity / 5 as commanded; the maze (1 wall, -1 force cell); direction of the force;
             way to the goal / 184 and its length; 1 at the goal; 1 in the force cell; the force / 5; row, column / 4
    score    success at the last step: within 12 px of the goal; the return is not used

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: always double precision; the goal's glow.
Test: pytest tests/test_arcade_point_maze.py
"""

import functools
import heapq

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game, IntRect

LAYOUTS = {  # 1: wall
    "var1": ("10110", "00100", "10001", "00100", "01101"),
    "var2": ("01100", "00001", "01100", "00110", "10000"),
    "var3": ("01110", "00100", "00100", "10001", "11111"),
    "var4": ("11011", "10001", "00000", "10001", "11011"),
}
EDGE, ARENA, CELL = 20, 184, 37  # left and top of the arena, its size, a cell's size
STARTS = 20, 57, 94, 130, 167  # left or top of the cells: two of them share a row of pixels
RADIUS, SPEED, FORCE, REACH = 6, 5, 2, 12
LOW, HIGH = 27, 197  # of the dot's centre
DIRECTIONS = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])  # up, right, down, left


def make(task, seed: int, render_mode: str | None) -> "PointMaze":
    return PointMaze(task, seed, render_mode)


def walls(maze: np.ndarray, margin: int) -> np.ndarray:
    """maze (5, 5) -> (224, 224) bool: True at [y, x] if that pixel is in a wall grown by `margin`."""
    table = np.zeros((SIZE, SIZE), bool)
    for row, column in np.argwhere(maze):
        top, left = STARTS[row], STARTS[column]
        table[top - margin : top + CELL + margin, left - margin : left + CELL + margin] = True
    return table


class PointMaze(Game):
    STATE = ("x", "y", "vx", "vy", "gx", "gy", "force_cell", "force_dir")

    def __init__(self, task, seed: int, render_mode: str | None):
        super().__init__(task, seed, render_mode)
        self.layout = self.name.rpartition("-")[2]
        self.maze = np.array([[int(cell) for cell in row] for row in LAYOUTS[self.layout]])
        self.blocked = walls(self.maze, RADIUS)
        self.trail = []

    def start(self):
        self.force_cell = self.np_random.choice(np.argwhere(self.maze == 0)).tolist()  # row, column
        self.force_dir = int(self.np_random.integers(4))  # index in DIRECTIONS
        self.x, self.y = self._free_point()
        self.gx, self.gy = self._free_point()
        while not 0.2 * ARENA <= self.distance() <= 0.7 * ARENA:
            self.gx, self.gy = self._free_point()
        self.vx = self.vy = 0.0
        self.trail = []

    def _free_point(self) -> list[float]:
        while True:
            x, y = self.np_random.uniform(28, 196, 2).tolist()
            if not self.blocked[int(y), int(x)]:
                return [x, y]

    def distance(self) -> float:
        return float(np.hypot(self.gx - self.x, self.gy - self.y))

    def force(self) -> np.ndarray:
        """(2,), px per step, at the present position."""
        row, column = self.force_cell
        inside = IntRect(STARTS[column], STARTS[row], CELL, CELL).contains(int(self.x), int(self.y))
        return inside * FORCE * DIRECTIONS[self.force_dir]

    def success(self):
        return float(self.distance() <= REACH)

    def grade(self):
        return self.success()

    def advance(self, action):
        self.trail = [*self.trail[-23:], (self.x, self.y)]
        self.vx, self.vy = (SPEED * action + self.force()).tolist()
        x, y = min(HIGH, max(LOW, self.x + self.vx)), min(HIGH, max(LOW, self.y + self.vy))
        if not self.blocked[int(self.y), int(x)]:
            self.x = x
        if not self.blocked[int(y), int(self.x)]:
            self.y = y
        return 1 - min(1, self.distance() / ARENA)

    def observe(self):
        maze, force = self.maze.copy(), self.force()
        maze[tuple(self.force_cell)] = -1
        way = np.array([self.gx - self.x, self.gy - self.y]) / ARENA
        # Here the cells are fifths of the arena, not the pixels that block or push.
        row, column = np.clip((5 * (np.array([self.y, self.x]) - EDGE) // ARENA), 0, 4)
        return np.concatenate(
            [
                np.array([self.x, self.y, self.gx, self.gy]) / SIZE,
                *([self.vx / SPEED, self.vy / SPEED], maze.ravel(), np.arange(4) == self.force_dir),
                *(way, [np.hypot(*way), self.success(), force.any()], force / SPEED, [row / 4, column / 4]),
            ]
        )

    def draw(self, canvas: Canvas):
        canvas.surface.fill((6, 8, 10))
        for y in range(EDGE, EDGE + ARENA):
            u = (y - EDGE) / ARENA
            canvas.line((int(30 - 10 * u), int(36 - 8 * u), int(42 - 6 * u)), EDGE, y, EDGE + ARENA - 1, y)
        canvas.rect((180, 180, 190), EDGE, EDGE, ARENA, ARENA, width=2)
        self._draw_force(canvas)
        glow = canvas.pygame.Surface((SIZE, SIZE), canvas.pygame.SRCALPHA)
        reach = int(38 + 3 * np.sin(2 * np.pi * self.t / 40))
        for r in range(reach, 0, -1):  # on this layer a disc replaces what is below, so the centre is brightest
            u = 1 - r / reach
            color = int(60 + 30 * u), int(190 + 45 * u), int(120 + 30 * u), int(95 * u**2.2)
            canvas.pygame.draw.circle(glow, color, (int(self.gx), int(self.gy)), r)
        canvas.surface.blit(glow, (0, 0))
        canvas.circle((80, 220, 120), self.gx, self.gy, RADIUS)
        for age, (x, y) in enumerate(self.trail, start=25 - len(self.trail)):  # the newest has age 24
            canvas.circle((255, 140, 0, 30 * age // 24), x, y, 5 + 3 * age // 24)
            canvas.circle((255, 160, 60, 80 * age // 24), x, y, 3 + 3 * age // 24)
        for row, column in np.argwhere(self.maze):
            box = STARTS[column], STARTS[row], CELL, CELL
            canvas.rect((30, 30, 35), box[0] + 1, box[1] + 1, CELL, CELL, radius=4)
            canvas.rect((180, 180, 190), *box, radius=4)
            canvas.rect((120, 120, 130), *box, width=1, radius=4)
        canvas.circle((255, 180, 80), self.x, self.y, RADIUS)
        canvas.circle((255, 120, 0), self.x, self.y, RADIUS, width=1)

    def _draw_force(self, canvas: Canvas) -> None:
        row, column = self.force_cell
        canvas.rect((90, 150, 210, 55), STARTS[column], STARTS[row], CELL, CELL)
        along = DIRECTIONS[self.force_dir]
        across, center = along[::-1], np.array([STARTS[column], STARTS[row]]) + CELL / 2
        for offset in (-16, 0, 16):
            offset += 1.2 * self.t % 16
            if abs(offset) <= CELL / 2 - 12:
                tip = center + (offset + 4) * along
                canvas.polygon(
                    (120, 230, 255, 150), [tip, tip - 8 * along + 10 * across, tip - 8 * along - 10 * across]
                )


@functools.lru_cache(maxsize=8)
def distances(layout: str, goal: tuple[int, int]) -> np.ndarray:
    """(224, 224), at [y, x] the length of the shortest way to the goal that keeps 7 px off the walls; else inf."""
    closed = walls(np.array([[int(cell) for cell in row] for row in LAYOUTS[layout]]), RADIUS + 1)
    closed[:LOW], closed[HIGH + 1 :], closed[:, :LOW], closed[:, HIGH + 1 :] = True, True, True, True
    out = np.full((SIZE, SIZE), np.inf)
    heap = [(0.0, *goal[::-1])]
    out[goal[::-1]] = 0
    while heap:
        length, y, x = heapq.heappop(heap)
        if length > out[y, x]:
            continue
        for dy, dx in NEIGHBOURS:
            step = length + (1.414 if dx and dy else 1)
            if not closed[y + dy, x + dx] and step < out[y + dy, x + dx]:
                out[y + dy, x + dx] = step
                heapq.heappush(heap, (step, y + dy, x + dx))
    return out


NEIGHBOURS = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]


def player(game: PointMaze) -> np.ndarray:
    """Follows the shortest way, 8 pixels ahead; at the goal it stays. -> action (2,)."""
    aim = np.array([game.gx, game.gy])
    if game.distance() > REACH:
        field = distances(game.layout, (int(game.gx), int(game.gy)))
        y, x = int(game.y), int(game.x)
        for _ in range(8):
            y, x = min(((y + dy, x + dx) for dy, dx in NEIGHBOURS), key=lambda cell: field[cell])
        aim = np.array([x, y])
    return ((aim - (game.x, game.y) - game.force()) / SPEED).clip(-1, 1).astype(np.float32)
