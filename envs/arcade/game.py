"""What all MiniArcade games share: the episode, the score, saving a state, and the off-screen surface.

A game is a subclass with five methods, and the names of the attributes that are its state:

    class Pong(Game):
        STATE = ("ball", "velocity", ...)   attributes that define the future; get_state and set_state copy them
        def start(self)                     draw a new episode from self.np_random
        def advance(self, action) -> float  one step, action (A,) float64 in [-1, 1]; returns the reward
        def observe(self)                   the observation's numbers
        def grade(self) -> float            score before clipping, from self.ret (return so far in this episode)
        def draw(self, canvas)              the picture of the present state

self.t counts the steps of the episode: 0 in start(), still the old value inside advance(). What is only looked at
(particles, scenery) draws from `self.cosmetic`, a generator of its own, so that drawing never changes the future.
Test: pytest tests/test_arcade_game.py
"""

import copy

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

SIZE = 224  # pixels, both sides of the screen


class Game(gym.Env):
    """One game. What it promises is in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    STATE: tuple[str, ...] = ()

    def __init__(self, task, seed: int, render_mode: str | None):
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode, self.name = render_mode, task.name
        self.length, self.t, self.ret = task.episode_length, task.episode_length, 0.0  # reset comes first
        self.cosmetic, self._started = np.random.default_rng(0), False
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def start(self) -> None:
        raise NotImplementedError

    def advance(self, action: np.ndarray) -> float:
        raise NotImplementedError

    def observe(self):
        raise NotImplementedError

    def grade(self) -> float:
        raise NotImplementedError

    def draw(self, canvas: "Canvas") -> None:
        raise NotImplementedError

    def success(self) -> float:
        """1.0 if the present state solves the task; only point-maze says so."""
        return 0.0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        if seed is not None:
            self.cosmetic = np.random.default_rng(0)
        self._begin()
        return self._obs(), self._info()

    def _begin(self) -> None:
        self.t, self.ret, self._started = 0, 0.0, True
        self.start()

    def step(self, action):
        if self.t >= self.length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float64)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        reward = float(self.advance(action.clip(-1, 1)))
        self.t += 1
        self.ret += reward
        return self._obs(), reward, False, self.t == self.length, self._info()

    def get_state(self) -> dict:
        """Everything the future depends on: the game's named state, `t`, `ret` and the generator."""
        names = (*self.STATE, "t", "ret")
        return {name: copy.deepcopy(getattr(self, name)) for name in names} | {
            "rng": copy.deepcopy(self.np_random.bit_generator.state)
        }

    def set_state(self, state: dict) -> None:
        """Go on from `state`. Names that it lacks keep their value; ValueError for a name the game doesn't know."""
        unknown = set(state) - {*self.STATE, "t", "ret", "rng"}
        if unknown:
            raise ValueError(f"{self.name} has no state called {', '.join(sorted(unknown))}")
        if not self._started:  # scenery and the like, which no state holds
            self._begin()
        for name, value in copy.deepcopy(state).items():
            if name == "rng":
                self.np_random.bit_generator.state = value
            else:
                setattr(self, name, value)

    def render(self) -> np.ndarray:
        canvas = Canvas()
        self.draw(canvas)
        return canvas.frame()

    def _obs(self) -> np.ndarray:
        return np.asarray(self.observe(), np.float32)

    def _info(self) -> dict:
        return {"score": min(1.0, max(0.0, float(self.grade()))), "success": float(self.success())}


class Canvas:
    """A 224 x 224 picture. Positions are truncated to whole pixels; color is (r, g, b) or (r, g, b, alpha).

    width 0 fills a shape, else it is the outline's width in pixels. No display is needed. ImportError without pygame.
    """

    def __init__(self, background=(0, 0, 0)):
        try:
            import pygame  # only pictures need it
        except ModuleNotFoundError as error:
            raise ImportError(f"pictures of MiniArcade need `pip install pygame-ce` ({error})") from error
        self.pygame = pygame
        self.surface = pygame.Surface((SIZE, SIZE))
        self.surface.fill(background)

    def _draw(self, color, call) -> None:
        """call(surface, color) draws; with alpha below 255 on a layer of its own, blended over what is below."""
        if len(color) == 3 or color[3] == 255:
            call(self.surface, color[:3])
            return
        layer = self.pygame.Surface((SIZE, SIZE), self.pygame.SRCALPHA)
        call(layer, color)
        self.surface.blit(layer, (0, 0))

    def rect(self, color, x, y, w, h, width=0, radius=0) -> None:
        box = self.pygame.Rect(int(x), int(y), int(w), int(h))
        self._draw(color, lambda s, c: self.pygame.draw.rect(s, c, box, width, border_radius=int(radius)))

    def circle(self, color, x, y, radius, width=0) -> None:
        self._draw(color, lambda s, c: self.pygame.draw.circle(s, c, (int(x), int(y)), int(radius), width))

    def ellipse(self, color, x, y, w, h, width=0) -> None:
        box = self.pygame.Rect(int(x), int(y), int(w), int(h))
        self._draw(color, lambda s, c: self.pygame.draw.ellipse(s, c, box, width))

    def line(self, color, x0, y0, x1, y1, width=1) -> None:
        self._draw(color, lambda s, c: self.pygame.draw.line(s, c, (int(x0), int(y0)), (int(x1), int(y1)), width))

    def polygon(self, color, points, width=0) -> None:
        points = [(int(x), int(y)) for x, y in points]
        self._draw(color, lambda s, c: self.pygame.draw.polygon(s, c, points, width))

    def text(self, color, words, x, y, size=16) -> None:
        """Top left corner at (x, y), `size` pixels high."""
        if not self.pygame.font.get_init():
            self.pygame.font.init()
        image = self.pygame.font.Font(None, int(size)).render(str(words), True, color[:3])
        image.set_alpha(color[3] if len(color) == 4 else 255)
        self.surface.blit(image, (int(x), int(y)))

    def frame(self) -> np.ndarray:
        """(224, 224, 3) uint8, first row on top."""
        return np.ascontiguousarray(self.pygame.surfarray.array3d(self.surface).swapaxes(0, 1))


class IntRect:
    """Whole-pixel rectangle: real numbers are truncated towards zero; touching edges don't overlap."""

    __slots__ = ("left", "top", "w", "h")

    def __init__(self, left, top, w, h):
        self.left, self.top, self.w, self.h = int(left), int(top), int(w), int(h)

    @property
    def right(self) -> int:
        return self.left + self.w

    @property
    def bottom(self) -> int:
        return self.top + self.h

    @property
    def center(self) -> tuple[int, int]:
        return self.left + self.w // 2, self.top + self.h // 2

    def overlaps(self, other: "IntRect") -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def contains(self, x, y) -> bool:
        return self.left <= x < self.right and self.top <= y < self.bottom
