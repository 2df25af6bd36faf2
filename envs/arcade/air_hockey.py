"""Air hockey: two mallets and a puck on a table seen from above; the agent guards the lower goal.

    reward   +1 the puck is in the upper goal, -1 in the lower one; both mallets go back, the puck is launched anew
    action   the mallet's velocity / 7.5. A wall stops the mallet, but its hits (and the observation) go on as if not
    obs      puck, its velocity / 12, then agent and opponent: position / 224, velocity / 7.5
    score    return / 10

The opponent goes for the puck when it is above y = 120 and moves up, after a reaction time. It aims at a point below
the puck and sometimes scores against itself.
Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: fonts.
Test: pytest tests/test_arcade_air_hockey.py
"""

import numpy as np

from envs.arcade.game import Canvas, Game

LEFT, RIGHT, TOP, BOTTOM = 33, 191, 24, 200
MOUTH = 84, 140  # x of the goals
PUCK, MALLET = 6, 10  # radii
SPEED, OPP_SPEED, PUCK_CAP = 7.5, 6.375, 12  # per step
RESTITUTION, BOOST, DAMPING = 0.9, 0.35, 0.998
AGENT_BOX = np.array([43, 122]), np.array([181, 190])  # of the mallets' centres
OPP_BOX = np.array([43, 34]), np.array([181, 102])
AGENT_START, OPP_START, OPP_HOME = np.array([112.0, 170.0]), np.array([112.0, 54.0]), np.array([112.0, 52.0])


def make(task, seed: int, render_mode: str | None) -> "AirHockey":
    return AirHockey(task, seed, render_mode)


class AirHockey(Game):
    STATE = (
        *("puck", "puck_vel", "agent", "agent_vel", "opp", "opp_vel"),
        *("opp_delay", "opp_engaged", "agent_goals", "opp_goals"),
    )

    def start(self):
        self.agent_goals = self.opp_goals = self.opp_delay = 0
        self.opp_engaged = False
        self._launch(self.np_random.choice([-1, 1]))

    def _launch(self, direction: int) -> None:
        """Mallets to their places, puck to the middle; direction -1: upwards. The opponent's reaction time stays."""
        self.agent, self.opp = AGENT_START.copy(), OPP_START.copy()
        self.agent_vel, self.opp_vel, self.puck = np.zeros(2), np.zeros(2), np.array([112.0, 112.0])
        phi = np.pi * self.np_random.uniform(-0.35, 0.35)
        side = self.np_random.choice([-1, 1])
        self.puck_vel = 6 * np.array([np.cos(phi) * side, abs(0.7 * np.sin(phi) + 0.3) * direction])

    def advance(self, action):
        self.agent_vel = SPEED * action
        self.agent = np.clip(self.agent + self.agent_vel, *AGENT_BOX)
        self._move_opponent()
        puck = np.add(self.puck, self.puck_vel)
        puck, vel = hit(puck, self.puck_vel, self.agent, self.agent_vel)
        puck, vel = hit(puck, vel, self.opp, self.opp_vel)
        self.puck, self.puck_vel, goal = bounce(puck, vel)
        if goal:
            self.agent_goals += int(goal > 0)
            self.opp_goals += int(goal < 0)
            self._launch(-goal)
        self.puck_vel = slow_down(self.puck_vel)
        return goal

    def _move_opponent(self) -> None:
        threat = self.puck[1] < 120 and self.puck_vel[1] < 0
        if threat and not self.opp_engaged:  # the faster the puck, the shorter the reaction
            n = np.clip((np.hypot(*self.puck_vel) - 2) / 8, 0, 1)
            self.opp_delay = int(self.np_random.integers(int(5 - 4 * n), int(10 - 6 * n) + 1))
        self.opp_engaged = bool(threat)
        target = OPP_HOME
        if threat and self.opp_delay > 0:
            self.opp_delay -= 1
        elif threat:
            target = attack(self.puck)
        way = target - self.opp
        distance = np.hypot(*way)
        self.opp_vel = np.zeros(2)
        if distance > 1e-5:
            self.opp_vel = way / distance * min(OPP_SPEED, distance) + self.np_random.normal(0, 0.25, 2)
        self.opp = np.clip(self.opp + self.opp_vel, *OPP_BOX)

    def observe(self):
        parts = self.puck, self.puck_vel, self.agent, self.agent_vel, self.opp, self.opp_vel
        scales = 224, PUCK_CAP, 224, SPEED, 224, SPEED
        return np.concatenate([np.divide(part, scale) for part, scale in zip(parts, scales, strict=True)])

    def grade(self):
        return self.ret / 10

    def draw(self, canvas: Canvas):
        canvas.rect((200, 200, 200), LEFT, TOP, RIGHT - LEFT, BOTTOM - TOP, width=2)
        for y in (TOP - 2, BOTTOM - 2):
            canvas.rect((0, 0, 0), MOUTH[0], y, MOUTH[1] - MOUTH[0], 8)
        canvas.line((80, 80, 80), LEFT, 112, RIGHT, 112, width=2)
        canvas.circle((255, 255, 255), *self.puck, PUCK)
        canvas.circle((255, 140, 0), *self.agent, MALLET)
        canvas.circle((180, 180, 180), *self.opp, MALLET)
        for color, goals, y in (((180, 180, 180), self.opp_goals, 6), ((255, 140, 0), self.agent_goals, 206)):
            canvas.text(color, goals, 112 - 4 * len(str(goals)), y, 20)


# The rules below take one puck, (2,), or many, (N, 2): the player plans with them.


def attack(puck):
    """Where the opponent goes: below the puck, but not too far from its goal."""
    x, y = np.clip(puck[..., 0], 43, 181), np.minimum(puck[..., 1] + 12, 83)
    return np.stack([x, y], axis=-1)


def hit(puck, vel, mallet, mallet_vel):
    """-> puck, vel after a mallet that touches the puck has pushed it away, and struck it if they were closing in."""
    away = puck - mallet
    distance = np.hypot(away[..., 0], away[..., 1])[..., None]
    normal, overlap = away / (distance + 1e-8), PUCK + MALLET - distance
    closing = ((vel - mallet_vel) * normal).sum(-1, keepdims=True)
    struck = vel - (1 + RESTITUTION) * closing * normal + BOOST * mallet_vel
    touch = overlap > 0
    return np.where(touch, puck + normal * (overlap + 0.5), puck), np.where(touch & (closing < 0), struck, vel)


def bounce(puck, vel):
    """-> puck, vel, goal: +1 in the upper goal, -1 in the lower one, else 0. Side walls first, then the ends."""
    (x, y), (vx, vy) = np.moveaxis(puck, -1, 0), np.moveaxis(vel, -1, 0)
    left, right = x - PUCK < LEFT, x + PUCK > RIGHT
    vx = np.where(left | right, -RESTITUTION * vx, vx)  # also if the puck was on its way back already
    x = np.where(left, LEFT + PUCK, np.where(right, RIGHT - PUCK, x))
    mouth = (x >= MOUTH[0]) & (x <= MOUTH[1])
    goal = np.where(mouth & (y <= TOP - 10), 1, np.where(mouth & (y >= BOTTOM + 10), -1, 0))
    up, down = ~mouth & (y - PUCK < TOP), ~mouth & (y + PUCK > BOTTOM)
    vy = np.where(up | down, -RESTITUTION * vy, vy)
    y = np.where(up, TOP + PUCK, np.where(down, BOTTOM - PUCK, y))
    return np.stack([x, y], axis=-1), np.stack([vx, vy], axis=-1), goal


def slow_down(vel):
    vel = DAMPING * vel
    speed = np.hypot(vel[..., 0], vel[..., 1])[..., None]
    return np.where(speed > PUCK_CAP, vel * PUCK_CAP / (speed + 1e-8), vel)


HORIZON, PLANS = 36, 256


def player(game: AirHockey) -> np.ndarray:
    """Tries random plans of three velocities, 1..9 steps each, on the rules above. -> action (2,), of the best one."""
    rng = np.random.default_rng(game.t)
    moves, ends = rng.uniform(-1, 1, (PLANS, 3, 2)), rng.integers(1, 10, (PLANS, 3)).cumsum(axis=1)
    moves[: PLANS // 3] = np.sign(moves[: PLANS // 3])  # at full speed: what strikes hardest
    puck, vel, agent, opp = (np.tile(v, (PLANS, 1)) for v in (game.puck, game.puck_vel, game.agent, game.opp))
    engaged, delay = np.full(PLANS, game.opp_engaged), np.full(PLANS, game.opp_delay)
    value, running = np.zeros(PLANS), np.ones(PLANS, bool)
    for k in range(HORIZON):
        agent_vel = SPEED * moves[np.arange(PLANS), (ends[:, :2] <= k).sum(axis=1)]
        agent = np.clip(agent + agent_vel, *AGENT_BOX)
        threat = (puck[:, 1] < 120) & (vel[:, 1] < 0)
        delay = np.where(threat & ~engaged, 3, delay)  # chance decides; 3 is a quick one
        engaged, waits = threat, threat & (delay > 0)
        delay = delay - waits
        way = np.where((threat & ~waits)[:, None], attack(puck), OPP_HOME) - opp
        distance = np.hypot(way[:, 0], way[:, 1])[:, None]
        opp_vel = way * np.minimum(1, OPP_SPEED / np.maximum(distance, 1e-5))
        opp = np.clip(opp + opp_vel, *OPP_BOX)
        puck, vel = hit(puck + vel, vel, agent, agent_vel)
        puck, vel = hit(puck, vel, opp, opp_vel)
        puck, vel, goal = bounce(puck, vel)
        vel = slow_down(vel)
        in_front = (puck[:, 1] > 112) & (puck[:, 1] < agent[:, 1])
        near = np.hypot(puck[:, 0] - agent[:, 0], puck[:, 1] - agent[:, 1])
        value += running * (goal * (1 - 0.01 * k) + 0.002 * in_front - 0.00005 * near)
        running &= goal == 0
    return moves[value.argmax(), 0].astype(np.float32)
