"""MiniArcade: 19 small 2-D games (and 3 held-out), one file per game, drawn with pygame on an off-screen surface.

Every file holds one subclass of `Game` (game.py) that names its state, and a scripted player. What all games share:
    screen   224 x 224 pixels, x to the right, y downwards; one action is one step, there is no frame skip
    action   clipped to [-1, 1] first
    score    a formula of the return so far, clipped to [0, 1]; success is 0 in all games but point-maze

Source: the games of Newt's benchmark (arXiv 2511.19584), written from a description of their behaviour.
Test: pytest tests/test_arcade_*.py
"""

import importlib

import gymnasium as gym


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. The longest file name that starts the task's name wins."""
    word = task.name.removeprefix("pygame-").replace("-", "_")
    module = max((name for name in FILES if word.startswith(name)), key=len)
    return importlib.import_module(f"{__name__}.{module}").make(task, seed, render_mode)


def player(env, obs, number):
    """Yields what the game's own player does."""
    play = importlib.import_module(type(env).__module__).player
    while True:
        yield play(env)


FILES = (
    "air_hockey",
    "bird_attack",
    "cartpole",
    "chase_evade",
    "coconut_dodge",
    "coinrun",
    "cowboy",
    "highway",
    "landing",
    "point_maze",
    "pong",
    "reacher",
    "rocket_collect",
    "spaceship",
)
