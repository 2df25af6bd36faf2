"""Pong: the agent's paddle on the left, the computer's on the right; whoever misses the ball loses a point.

    reward   +1 the ball is beyond x = 204, -1 it is beyond x = 20; it is launched anew from the middle
    action   the paddle's velocity / 8.5
    ball     bounces by a change of sign, 8 px per step for ever: where it hits the paddle doesn't matter
    obs      ball / 224, its velocity / 8, top edges of the agent's and the computer's paddle / 224
    score    (return + 3) / 6

The computer watches the right 70 % of the court, after a reaction time, the faster the nearer the ball is. It never
loses from most angles of launch, so a player that concedes nothing gets 0.57 on average.
Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: a reset with a seed also resets the computer's
attention, which an unseeded one does not; fonts.
Test: pytest tests/test_arcade_pong.py
"""

import numpy as np

from envs.arcade.game import SIZE, Canvas, Game, IntRect

LOW, HIGH = 20, 204  # the court, both axes
AGENT_X, OPP_X = 30, 188  # left edges of the paddles
PADDLE_W, PADDLE_H, PADDLE_MAX = 6, 40, 164
BALL, SPEED, PADDLE_SPEED = 7, 8, 8.5


def make(task, seed: int, render_mode: str | None) -> "Pong":
    return Pong(task, seed, render_mode)


class Pong(Game):
    STATE = ("bx", "by", "vx", "vy", "ya", "yo", "aware", "delay", "agent_points", "opp_points")

    def __init__(self, task, seed: int, render_mode: str | None):
        super().__init__(task, seed, render_mode)
        self.aware, self.delay = False, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        if seed is not None:  # else the attention of an earlier episode would make two equal seeds differ
            self.aware, self.delay = False, 0
        return super().reset(seed=seed, options=options)

    def start(self):
        self.ya = self.yo = 92.0
        self.agent_points = self.opp_points = 0
        self._launch()

    def _launch(self) -> None:
        angle = self.np_random.uniform(-np.pi / 2, np.pi / 2)
        side = self.np_random.choice([-1, 1])
        self.bx = self.by = 112.0
        self.vx, self.vy = float(side * SPEED * np.cos(angle)), float(SPEED * np.sin(angle))

    def advance(self, action):
        self.ya = min(PADDLE_MAX, max(LOW, self.ya + PADDLE_SPEED * float(action[0])))
        self._move_opponent()
        self.bx, self.by, self.vy = fly(self.bx, self.by, self.vx, self.vy)
        ball = IntRect(self.bx - BALL / 2, self.by - BALL / 2, BALL, BALL)
        if self.vx < 0 and ball.overlaps(IntRect(AGENT_X, self.ya, PADDLE_W, PADDLE_H)):
            self.vx = -self.vx
        if self.vx > 0 and ball.overlaps(IntRect(OPP_X, self.yo, PADDLE_W, PADDLE_H)):
            self.vx = -self.vx
        reward = int(self.bx > HIGH) - int(self.bx < LOW)
        if reward:
            self.agent_points += int(reward > 0)
            self.opp_points += int(reward < 0)
            self._launch()
        return reward

    def _move_opponent(self) -> None:
        p = (self.bx - LOW) / (HIGH - LOW)
        if p <= 0.3:
            self.aware = False
            return
        if not self.aware:
            self.aware, self.delay = True, int(self.np_random.integers(2, 7))
        if self.delay > 0:
            self.delay -= 1
            return
        step = PADDLE_SPEED * (0.5 + 0.35 * min(1, (p - 0.3) / 0.65))  # a whole one, even if the ball is level with it
        self.yo += step if self.by - PADDLE_H / 2 > self.yo else -step
        self.yo = min(PADDLE_MAX, max(LOW, self.yo))

    def observe(self):
        return (
            *(v / SIZE for v in (self.bx, self.by)),
            self.vx / SPEED,
            self.vy / SPEED,
            self.ya / SIZE,
            self.yo / SIZE,
        )

    def grade(self):
        return (self.ret + 3) / 6

    def draw(self, canvas: Canvas):
        canvas.rect((255, 255, 255), LOW, LOW, HIGH - LOW, HIGH - LOW, width=2)
        canvas.rect((255, 140, 0), AGENT_X, self.ya, PADDLE_W, PADDLE_H)
        canvas.rect((180, 180, 180), OPP_X, self.yo, PADDLE_W, PADDLE_H)
        canvas.rect((255, 255, 255), self.bx - BALL / 2, self.by - BALL / 2, BALL, BALL)
        canvas.text((255, 140, 0), self.agent_points, 36, 2, 24)
        canvas.text((180, 180, 180), self.opp_points, 188 - 10 * len(str(self.opp_points)), 2, 24)


def fly(bx, by, vx, vy):
    """One step of the ball -> bx, by, vy. It turns 7 px before the wall and is not moved back."""
    bx, by = bx + vx, by + vy
    return bx, by, -vy if by - BALL < LOW or by + BALL > HIGH else vy


def player(game: Pong) -> np.ndarray:
    """Waits with the middle of the paddle where the ball will arrive; in the centre while it flies away. -> (1,)."""
    bx, by, vy = game.bx, game.by, game.vy
    if game.vx > 0:
        by = 112
    elif bx < 50:
        by += vy
    else:
        for _ in range(500):  # a ball launched upwards hardly comes nearer
            if bx <= AGENT_X + PADDLE_W:
                break
            bx, by, vy = fly(bx, by, game.vx, vy)
    return np.float32([(by - PADDLE_H / 2 - game.ya) / PADDLE_SPEED]).clip(-1, 1)
