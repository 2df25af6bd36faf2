"""Atari 2600: 27 games of the Arcade Learning Environment, played from the console's 128 bytes of RAM.

    obs     RAM / 255
    action  (deflection, direction, fire)  ->  r = (a0 + 1) / 2, angle = pi a1, fire if (a2 + 1) / 2 > 0.5
    stick   x = r cos(angle), y = r sin(angle): right if x > 0.5, left if x < STICK_BACK; up and down likewise with y
    step    4 frames of the same action; the reward is the game's, unclipped
    end     after 1000 steps, whatever the game does: lost lives change nothing, after game over nothing moves or pays
    score   (return so far - LOW) / (HIGH - LOW), clipped to 0..1      see GAMES; success is always 0

NOTE: nothing here is random. The emulator starts the same way whatever the seed, so all episodes of a policy without
noise are the same episode: a mean over several says nothing more than one.
Source: ALE (arXiv 1207.4708) and its continuous stick (arXiv 2410.23810), package ale-py 0.12.1, ROMs included;
lengths and scores as in Newt's benchmark.
Differs from upstream: the stick (the published benchmark pins ale-py 0.10, see STICK_BACK) and reset.

Reset restores the console as it was first switched on. The emulator's own, as published, fills its memory from a
generator that goes on from one reset to the next, and keeps what the last game left elsewhere. That isn't chance, the
same past gives the same start, but it is the past's, not the seed's, so it isn't offered. Lost by that are the other
starts of eight games, seven of them within six resets; all first episodes are the published ones.

    game             start depends on            RAM bytes (hex) that differ then     return of a row of random actions
    assault          resets before               18 19 39 66 67 6b                    210; other starts: 168, 189
    beamrider        resets before               33 of the 128                        264; 264
    boxing           resets before, from 16 on   00 5d 5e 69 71                       -2; -7
    chopper-command  resets before, from 4 on    00 05 06 07 1a 56 57 58 66 67 72     100; 200
    ice-hockey       resets and play before      04 08 62 63 6e 73 74 75 76           -5; -6
    krull            resets before               01 02                                0; 0 (no other byte, ever)
    seaquest         resets before               01                                   200; 200, paid in other steps
    yars-revenge     play before                 15 1b 1c 22 26 2f 30 31 33 36        1104; 1173, 1518

Test: pytest tests/test_atari.py
"""

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding

# Below this x the stick is left, below this y it is down. 0.5 is ale-py 0.10, with which the published results were
# made: the stick has no rest position, what isn't right is left, what isn't up is down. -0.5 is ale-py since: a stick
# less than half out does nothing. The two are different tasks; agents and demonstrations don't carry over.
STICK_BACK = 0.5
GAMES = {  # task -> LOW and HIGH: the returns of score 0 and 1
    "alien": (0, 1000),
    "assault": (0, 1000),
    "asterix": (0, 5000),
    "atlantis": (0, 50000),
    "bank-heist": (0, 1000),
    "battle-zone": (0, 15000),
    "beamrider": (0, 2000),
    "boxing": (-100, 100),
    "chopper-command": (0, 1000),
    "crazy-climber": (0, 20000),
    "double-dunk": (0, 25),
    "gopher": (0, 2000),
    "ice-hockey": (-15, 15),
    "jamesbond": (0, 1000),
    "kangaroo": (0, 10000),
    "krull": (0, 10000),
    "ms-pacman": (0, 5000),
    "name-this-game": (0, 3000),
    "phoenix": (0, 1000),
    "pong": (-21, 21),
    "road-runner": (0, 50000),
    "robotank": (0, 50),
    "seaquest": (0, 5000),
    "space-invaders": (0, 2000),
    "tutankham": (0, 100),
    "upndown": (0, 5000),
    "yars-revenge": (0, 20000),
}
ROMS = {"beamrider": "beam_rider", "upndown": "up_n_down"}  # where the emulator's word isn't the task's


def make(task, seed: int, render_mode: str | None) -> gym.Env:
    """task: a row of envs.TASKS; the rest as in envs.make. Raises ImportError without ale_py."""
    return Atari(task, seed, render_mode)


def stick(action: np.ndarray) -> tuple[str, float]:
    """(3,) float32 in [-1, 1]  ->  the emulator's word for it, such as UPRIGHTFIRE; deflection in [0, 1]."""
    r, angle, fire = (action[0] + 1) / 2, np.float32(np.pi) * action[1], (action[2] + 1) / 2
    x, y = r * np.cos(angle), r * np.sin(angle)
    word = "UP" if y > 0.5 else "DOWN" if y < STICK_BACK else ""
    word += "RIGHT" if x > 0.5 else "LEFT" if x < STICK_BACK else ""
    word += "FIRE" if fire > 0.5 else ""
    return word or "NOOP", float(r)


class Atari(gym.Env):
    """One game. The rules are in the header, what it promises in envs/__init__.py."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(self, task, seed: int, render_mode: str | None):
        import ale_py
        import ale_py.roms

        name = task.name.removeprefix("atari-")
        self._ale_py, (self._low, self._high) = ale_py, GAMES[name]
        ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)  # or it greets on stderr
        self._ale = ale_py.ALEInterface()
        self._ale.setFloat("repeat_action_probability", 0.0)
        self._ale.loadROM(ale_py.roms.get_rom_path(ROMS.get(name, name.replace("-", "_"))))
        self._ale.reset_game()
        self._start = self._ale.cloneState(include_rng=True), self._ale.getScreenRGB().copy()
        self.action_space = gym.spaces.Box(-1, 1, (task.action_dim,), np.float32)
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (task.obs_dim,), np.float32)
        self.render_mode = render_mode
        self._length, self._repeat = task.episode_length, task.action_repeat
        self._steps, self._return = self._length, 0.0  # as after an episode: reset comes first
        self._screen = None  # of a restored state, until the emulator draws the next one
        self._np_random, self._np_random_seed = seeding.np_random(seed)

    def reset(self, *, seed: int | None = None, options: dict | None = None):
        super().reset(seed=seed)
        console, screen = self._start  # the emulator's own reset remembers the past in eight of the 27, see the header
        self._ale.restoreState(console)
        self._steps, self._return, self._screen = 0, 0.0, screen
        return self._obs(), self._info()

    def step(self, action):
        if self._steps >= self._length:
            raise gym.error.ResetNeeded("the episode is over, or none was started: call reset() before step()")
        action = np.asarray(action, np.float32)
        if action.shape != self.action_space.shape:
            raise ValueError(f"action has shape {action.shape}, this task takes {self.action_space.shape}")
        word, deflection = stick(action)  # Pong reads the deflection, too: its paddle turns that fast
        reward = 0.0
        for _ in range(self._repeat):
            reward += self._ale.act(self._ale_py.Action.__members__[word], deflection)
        self._steps += 1
        self._return += reward
        self._screen = None
        return self._obs(), reward, False, self._steps == self._length, self._info()

    def _obs(self) -> np.ndarray:
        return self._ale.getRAM().astype(np.float32) / 255

    def _info(self) -> dict:
        score = (self._return - self._low) / (self._high - self._low)
        return {"score": float(np.clip(score, 0, 1)), "success": 0.0}

    def get_state(self) -> dict:
        """Everything the future depends on, as copies. `screen` is only looked at."""
        console = np.frombuffer(self._ale.cloneState(include_rng=True).serialize(), np.uint8).copy()
        return {"console": console, "screen": self._rgb().copy(), "steps": self._steps, "return": self._return,
                "rng": self.np_random.bit_generator.state}  # fmt: skip

    def set_state(self, state: dict) -> None:
        """Go on from what get_state returned, here or in another environment of the same task."""
        self._ale.restoreState(self._ale_py.ALEState(state["console"].tobytes()))
        self._screen = state["screen"].copy()  # restoring leaves the old picture up until the next frame
        self._steps, self._return = state["steps"], state["return"]
        self.np_random.bit_generator.state = state["rng"]

    def _rgb(self) -> np.ndarray:
        return self._ale.getScreenRGB() if self._screen is None else self._screen

    def render(self) -> np.ndarray:
        frame = np.zeros((224, 224, 3), np.uint8)
        frame[7:217, 32:192] = self._rgb()  # 210 x 160, unscaled
        return frame
