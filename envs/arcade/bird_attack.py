"""Bird attack: a gun at the bottom shoots down a flock of 16 birds; later a boss appears that can only be dodged.

    action   [sideways, fire if > 0]; 8 steps between two shots
    reward   +1 per bird (two hits each), -2 per hit on the agent; +1 in every step without a living bird
    stun     a hit makes the agent slow (a fifth of its speed) for 16 steps and stops its fire
    boss     from step 250 on, also after the last bird; a big shot every 50 steps
    score    return / 16: clearing the flock is enough

Source: the game of Newt's benchmark (arXiv 2511.19584). Differs from it: double precision; fonts.
Test: pytest tests/test_arcade_bird_attack.py
"""

import numpy as np

from envs.arcade.game import Canvas, Game

LOW, HIGH = 20, 204  # walls of the play area, both axes
AGENT_Y, AGENT_SPEED, AGENT_MAX = 184, 6, 190  # top-left corner of a 14 x 8 box; the speed is 1.2 while stunned
BULLET_SPEED, RELOAD, STUN = 7, 8, 16
BIRD_FIRE = 0.0075  # probability, per bird and step
BOSS_STEP, BOSS_ANCHOR, BOSS_PERIOD, BOSS_FADE = 250, (112, 40), 50, 5
SHOT_RADIUS, SHOT_SPEED = 10, 5


def make(task, seed: int, render_mode: str | None) -> "BirdAttack":
    return BirdAttack(task, seed, render_mode)


class BirdAttack(Game):
    STATE = (
        *("agent_x", "reload", "stun", "kills", "birds", "bird_dir", "agent_bullets", "bird_bullets"),
        *("boss_active", "boss_center", "boss_fade", "boss_timer", "boss_bullet"),
    )

    def start(self):
        self.agent_x, self.reload, self.stun, self.kills = 105.0, 0, 0, 0
        self.birds = [[40 + 20 * c, 40 + 20 * r, 2] for r in range(2) for c in range(8)]  # x, y, hits left
        self.bird_dir = 1
        self.agent_bullets, self.bird_bullets = [], []  # [x, y], oldest first
        self.boss_active, self.boss_center, self.boss_fade, self.boss_timer = False, None, 0, 0
        self.boss_bullet = None  # or [x, y, vx, vy]

    def advance(self, action):
        self._move_agent(*action.tolist())
        self._move_birds()
        reward = float(self._hit_birds()) - 2 * self._hit_agent()
        if not self.boss_active and self.t >= BOSS_STEP:
            self.boss_active, self.boss_center = True, list(BOSS_ANCHOR)
            self.boss_timer, self.boss_fade = BOSS_PERIOD, BOSS_FADE
        if self.boss_active:
            self._move_boss()
        if self.boss_bullet is not None:
            reward -= 2 * self._move_boss_bullet()
        return reward + (not self.birds)

    def _move_agent(self, sideways: float, fire: float) -> None:
        speed = AGENT_SPEED * (0.2 if self.stun > 0 else 1)
        self.agent_x = min(AGENT_MAX, max(LOW, self.agent_x + sideways * speed))
        self.stun = max(0, self.stun - 1)
        if fire > 0 and self.reload == 0:
            self.agent_bullets.append([self.agent_x + 7, 178])
            self.reload = RELOAD
        self.reload = max(0, self.reload - 1)
        self.agent_bullets = [[x, y - BULLET_SPEED] for x, y in self.agent_bullets if y - BULLET_SPEED > LOW]

    def _move_birds(self) -> None:
        if self.birds:
            xs = [bird[0] for bird in self.birds]
            if max(xs) + 14 + self.bird_dir > HIGH or min(xs) + self.bird_dir < LOW:
                self.bird_dir = -self.bird_dir
                self.birds = [[x, y + 4, hits] for x, y, hits in self.birds]
            else:
                self.birds = [[x + self.bird_dir, y, hits] for x, y, hits in self.birds]
        fires = self.np_random.random(len(self.birds)) < BIRD_FIRE
        self.bird_bullets += [[x + 7, y + 12] for (x, y, _), fire in zip(self.birds, fires, strict=True) if fire]
        self.bird_bullets = [[x, y + BULLET_SPEED] for x, y in self.bird_bullets if y + BULLET_SPEED < HIGH]

    def _hit_birds(self) -> int:
        """-> birds killed in this step. A bird takes at most one bullet per step, the oldest that touches it."""
        for bird in self.birds:
            for i, (x, y) in enumerate(self.agent_bullets):
                if abs(x - bird[0] - 7) < 7 and abs(y - bird[1] - 6) < 6:
                    del self.agent_bullets[i]
                    bird[2] -= 1
                    break
        alive = [bird for bird in self.birds if bird[2] > 0]
        killed, self.birds = len(self.birds) - len(alive), alive
        self.kills += killed
        return killed

    def _hit_agent(self) -> int:
        """-> hits. The bullet that follows a hit in the list isn't looked at, as in the original."""
        hits, i = 0, 0
        while i < len(self.bird_bullets):
            x, y = self.bird_bullets[i]
            if abs(x - self.agent_x - 7) < 7 and abs(y - AGENT_Y - 4) < 4:
                del self.bird_bullets[i]
                self.stun, self.reload = STUN, STUN
                hits += 1
            i += 1
        return hits

    def _move_boss(self) -> None:
        if self.boss_fade > 0:
            self.boss_fade -= 1
            return
        jitter = self.np_random.uniform((-0.03, -0.01), (0.03, 0.01)) * (HIGH - LOW)
        self.boss_center = (jitter + BOSS_ANCHOR).tolist()  # always around the anchor: it trembles, but stays
        self.boss_timer -= 1
        if self.boss_timer <= 0 and self.boss_bullet is None:
            x, y = self.boss_center[0], self.boss_center[1] + 8
            way = np.array([self.agent_x + 7 - x, AGENT_Y + 4 - y])
            self.boss_bullet = [x, y, *(SHOT_SPEED * way / np.hypot(*way)).tolist()]
            self.boss_timer = BOSS_PERIOD

    def _move_boss_bullet(self) -> bool:
        """-> whether it hits the agent."""
        self.boss_bullet = fly(self.boss_bullet)
        x, y, _, _ = self.boss_bullet
        hit = abs(x - self.agent_x - 7) < SHOT_RADIUS + 7 and abs(y - AGENT_Y - 4) < SHOT_RADIUS + 4
        if y - SHOT_RADIUS >= HIGH:
            self.boss_bullet = None
        elif hit:
            self.stun, self.reload, self.boss_bullet = STUN, STUN, None
            return True
        return False

    def observe(self):
        obs = np.zeros(55)
        obs[:3] = self.agent_x / 224, self.reload / 5, len(self.birds) / 16
        obs[3 : 3 + len(self.birds)] = [bird[0] / 224 for bird in self.birds]
        obs[19] = max((bird[1] for bird in self.birds), default=20) / 224
        for start, bullets in ((20, self.agent_bullets[:5]), (30, self.bird_bullets[:10])):
            obs[start : start + 2 * len(bullets)] = np.ravel(bullets) / 224
        obs[50] = self.stun / 10
        if self.boss_bullet is not None:
            scaled = np.divide(self.boss_bullet, (224, 224, SHOT_SPEED, SHOT_SPEED))
            obs[51:] = scaled.clip((0, 0, -1, -1), 1)
        return obs

    def grade(self):
        return self.ret / 16

    def draw(self, canvas: Canvas):
        white, grey, orange = (255, 255, 255), (200, 200, 200), (255, 140, 0)
        canvas.rect(white, LOW, LOW, HIGH - LOW, HIGH - LOW, width=2)
        x = self.agent_x
        canvas.rect(orange, x, AGENT_Y, 14, 8)
        canvas.polygon(orange, [(x + 3, AGENT_Y), (x + 11, AGENT_Y), (x + 7, AGENT_Y - 6)])
        for x, y, hits in self.birds:
            canvas.polygon(grey, [(x, y), (x + 7, y + 12), (x + 14, y)], width=0 if hits == 2 else 2)
        for color, bullets, above in ((orange, self.agent_bullets, 6), (grey, self.bird_bullets, 0)):
            for x, y in bullets:
                canvas.rect(color, x - 2, y - above, 4, 6)
        if self.boss_active:
            x, y = self.boss_center
            wings = [(x - 32, y + 8), (x - 16, y - 8), (x, y + 8), (x + 16, y - 8), (x + 32, y + 8)]
            for a, b in zip(wings, wings[1:], strict=False):
                canvas.line((*grey, int(255 * (1 - self.boss_fade / BOSS_FADE))), *a, *b, width=3)
        if self.boss_bullet is not None:
            canvas.circle(grey, *self.boss_bullet[:2], SHOT_RADIUS)
        canvas.text((80, 200, 110) if self.kills == 16 else white, self.kills, 24, 0, 18)
        if self.stun > 0:
            canvas.rect((220, 30, 10, int(140 * self.stun / STUN)), LOW, LOW, HIGH - LOW, HIGH - LOW)


def fly(shot: list) -> list:
    """One step of the boss's shot. At a wall it only turns round: its position isn't corrected."""
    x, y, vx, vy = shot
    x, y = x + vx, y + vy
    turn = x - SHOT_RADIUS < LOW or x + SHOT_RADIUS > HIGH
    return [x, y, -vx if turn else vx, vy]


def player(game: BirdAttack) -> np.ndarray:
    """Keeps firing at where a bird will be, and goes out of the way of what falls. -> action (2,)."""
    x, target = game.agent_x, 105.0
    if game.birds:
        xs = np.array([bird[0] for bird in game.birds])
        low, high = LOW, HIGH - 14 - np.ptp(xs)  # between these the leftmost bird goes to and fro
        ahead = xs.min() + game.bird_dir * (172 - max(bird[1] for bird in game.birds)) / BULLET_SPEED
        ahead = 2 * low - ahead if ahead < low else 2 * high - ahead if ahead > high else ahead
        xs = xs + ahead - xs.min()
        target = xs[abs(xs - x).argmin()]
    wish = np.clip((target - x) / AGENT_SPEED, -1, 1)
    commands = [c for c in (wish, 0, -0.5, 0.5, -1, 1) if not _touched(game, c)]
    move = min(commands, key=lambda c: abs(c - wish), default=wish)
    return np.array([move, 1], np.float32)


def _touched(game: BirdAttack, command: float) -> bool:
    """Whether something hits the agent within 15 steps of this command, with a margin."""
    speed, x, shot = command * AGENT_SPEED * (0.2 if game.stun > 0 else 1), game.agent_x, game.boss_bullet
    for step in range(1, 16):
        x = min(AGENT_MAX, max(LOW, x + speed))
        if any(abs(bx - x - 7) < 8.5 and 183 < by + BULLET_SPEED * step < 193 for bx, by in game.bird_bullets):
            return True
        shot = shot and fly(shot)
        if shot and abs(shot[0] - x - 7) < 19 and abs(shot[1] - 188) < 15:
            return True
    return False
